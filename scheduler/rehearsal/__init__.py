"""When will what waits be done? The real scheduler says so, by doing it in virtual time.

`finish` runs what waits (`Scene`) through a scheduler of its own, in memory, with a provider that only
passes the time: the same lanes, windows, paces, risks and rates. Where much waits it is a smaller world
in which the same takes as long (`scale`), so that a million costs what a thousand does.
"""

from scheduler.rehearsal.finish import FEW, Finish, finish, finish_once
from scheduler.rehearsal.lore import Lesson, Lore
from scheduler.rehearsal.scene import Ask, Desk, Group, Purse, Scene

__all__ = [
    "FEW", "Ask", "Desk", "Finish", "Group", "Lesson", "Lore", "Purse", "Scene", "finish", "finish_once",
]  # fmt: skip
