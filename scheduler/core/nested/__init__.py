"""Calls within calls: whose place do they take, whose money, and can they go at all?

`nesting` lets inner calls run on their callers' places, `stuck` finds those that can never go,
`resting` lends the places of who does nothing for now (`pace`: readers of streams), `parts` adds up
what a function asked, `opening` says what may still start at the end.
"""
