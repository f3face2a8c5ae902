"""What will a batch cost, judged by what some calls like its own have cost? Pure.

`total` says so, with an interval; see `scheduler.estimates.total`.
"""

from scheduler.estimates.total import FEWEST, Interval, Paid, Rest, total

__all__ = ["FEWEST", "Interval", "Paid", "Rest", "total"]
