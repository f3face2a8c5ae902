"""How does work on a Ray cluster wait for money? Workers as actors, and datasets within a budget.

Nothing of Ray is loaded before it is used.
"""

from scheduler.adapters.ray.data import Calls, map_batches

__all__ = ["Calls", "map_batches"]
