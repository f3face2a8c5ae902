"""What will calls under way have cost when they end? Pure, and guesses all of it.

`recall` keeps what earlier calls told; `survival` learns from it how long calls take and what they cost
then, also from those that have not ended; `tail` guesses what outlives them all, `drift` sees whether
those begun lately last longer than others did; `risk` says how sure one wants to be; `reserve` is what
has to be kept for those under way.
"""

from scheduler.foresight.recall import Amounts
from scheduler.foresight.reserve import Flight, Histories, Kind, Pool
from scheduler.foresight.risk import PRESETS, Risk
from scheduler.foresight.survival import Curve, History

__all__ = [
    "PRESETS", "Amounts", "Curve", "Flight", "Histories", "History", "Kind", "Pool", "Risk",
]  # fmt: skip
