"""The store as SQL: plain synchronous functions within a transaction that somebody else opens.

A turn: `turn`, made of `settle`, `submit` and `waiting`, on the `books` of accounts and the `gates`.
What is looked at: `views`, `look` (without writing). What is kept in order: `prune`, `upgrade`.
"""
