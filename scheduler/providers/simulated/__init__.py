"""A provider that needs no key: it answers, bills, refuses and fails like real ones.

`provider` is what a scheduler uses; `server` the same behind HTTP, for any client.
"""

from scheduler.providers.simulated.provider import Simulated, Spread

__all__ = ["Simulated", "Spread"]
