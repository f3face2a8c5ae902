"""The store in memory: the reference model, exact under virtual time.

`store` is the contract; `budgets`, `rows`, `ended` and `journal` are what it is made of.
"""

from scheduler.stores.memory.store import MemoryStore

__all__ = ["MemoryStore"]
