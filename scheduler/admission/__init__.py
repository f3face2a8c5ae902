"""Who may go, who waits, and why? Pure.

`plan` decides; `notices` says it to people.
"""
