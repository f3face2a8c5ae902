"""What may a request cost, and what did it cost? Pure.

`book` answers both, from `rates` (a price list of others) and prices of a user's own. What is
counted: `tokens` of a body by `counting`, `media` and `lenient`, `outputs` (how long an answer can
be), `searches`, `surcharges`; `usage` reads what an answer says it took; `billing` multiplies.
`routing` says which provider answers for a model, and so at which prices.
"""
