"""What was promised, what was spent, and on whose account? Pure.

`account` is one limit with its balance; `matching` finds the budgets that a request draws on;
`suspense` says what becomes of a call that nobody heard back from.
"""
