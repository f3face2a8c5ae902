"""What a process remembers, put right after a transaction of its that did not happen.

A turn changes the books while it writes. Where the engine may lose a connection, a transaction is
tried again, so the books have to be as if it had never been. What is cheap to copy is copied
before, what is looked up by key is undone change by change, and how lanes are doing is read anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from scheduler.stores.lanes import Lane, Lanes
from scheduler.stores.sql import changes
from scheduler.stores.sql.ahead import Learned
from scheduler.stores.sql.books import Books
from scheduler.stores.sql.budgets import read_budgets
from scheduler.stores.sql.connection import Connection
from scheduler.stores.sql.dialect import INT, TEXT, Update
from scheduler.stores.sql.sheet import begin
from scheduler.stores.sql.waiting import learn_shared

K = TypeVar("K")
V = TypeVar("V")

_GONE: Any = object()
_COPIED = (
    "worker_id", "seen_at_ms", "now_ms", "admitted", "was_lost", "is_miscounted", "untold",
    "changes", "definition_changes", "company",
)  # fmt: skip
_TOLD_ANEW = ("?", "", None)  # as a lane was last told, if nobody knows what was
_OPENED = Update(
    "lanes", "shortfall = :shortfall, parked_total_ms = :parked_total_ms", "id = :id",
    {"shortfall": TEXT, "parked_total_ms": INT, "id": INT},
)  # fmt: skip


class Undoable(dict[K, V]):
    """A dict whose changes since `begin` can be taken back."""

    def __init__(self) -> None:
        super().__init__()
        self._before: list[tuple[K, V]] = []

    def begin(self) -> None:
        """What changes from here on can be taken back."""
        self._before.clear()

    def undo(self) -> None:
        """Take it back."""
        for key, value in reversed(self._before):
            if value is _GONE:
                super().pop(key, None)
            else:
                super().__setitem__(key, value)
        self._before.clear()

    def __setitem__(self, key: K, value: V) -> None:
        self._before.append((key, self.get(key, _GONE)))
        super().__setitem__(key, value)

    def __delitem__(self, key: K) -> None:
        self._before.append((key, self[key]))
        super().__delitem__(key)

    def pop(self, key: K, default: Any = _GONE) -> Any:
        """See `dict.pop`."""
        if key in self:
            self._before.append((key, self[key]))
        return super().pop(key) if default is _GONE else super().pop(key, default)

    def update(self, more: Any = (), /, **_: V) -> None:
        """See `dict.update`."""
        pairs: Iterable[tuple[K, V]] = more.items() if isinstance(more, Mapping) else more
        for key, value in pairs:
            self[key] = value


@dataclass(slots=True)
class Memo:
    """The books before a transaction."""

    values: dict[str, Any]
    taken: set[int]


def prepare(books: Books) -> None:
    """Have the books remember what they have to."""
    books.kept, books.claimed = Undoable(), Undoable()


def memo(books: Books) -> Memo:
    """Before a transaction: what it takes to restore the books."""
    for each in (books.kept, books.claimed):
        assert isinstance(each, Undoable)
        each.begin()
    books.saved_gates = ()
    return Memo({name: getattr(books, name) for name in _COPIED}, set(books.taken))


def restore(books: Books, before: Memo) -> None:
    """The transaction did not happen; `mend` does the rest in the next one."""
    for name, value in before.values.items():
        setattr(books, name, value)
    books.taken = before.taken
    for each in (books.kept, books.claimed):
        assert isinstance(each, Undoable)
        each.undo()
    books.jobs = {}  # some may not be there
    books.shares.clear()
    books.is_told = False  # nor may what this process serves
    books.tagged = {}  # likewise: some may have no sum of their own
    books.learned = Learned()  # it may hold what is not written; read anew when it is needed
    for gate in books.saved_gates:
        gate.is_dirty = True


def mend(db: Connection, books: Books) -> None:
    """Read how this process's lanes are doing, and open them all: nobody knows what was decided."""
    sheet = begin(db, books, books.now_ms)
    now_ms, old = sheet.now_ms, books.lanes
    me = books.worker_id
    there: dict[int, int] = (
        dict(db.read("SELECT id, waiting FROM lanes WHERE worker_id = ?", me)) if me else {}
    )
    waiting: dict[int, int] = dict(db.read(
        "SELECT lane_id, count(*) FROM requests WHERE state = 'queued'"
        " AND lane_id IN (SELECT id FROM lanes WHERE worker_id = ?) GROUP BY lane_id", me,
    )) if there else {}  # fmt: skip
    books.lanes = Lanes(books.shares)
    opened = []
    for lane in list(old):
        if lane.key.is_shared or lane.id not in there:
            continue  # what was made by the transaction that did not happen is not there
        made = books.lanes.get(lane.key, lambda lane=lane: lane.id)  # type: ignore[misc]
        _take_over(made, lane, now_ms)
        made.noted = there[lane.id]
        books.lanes.add(made, count=waiting.get(lane.id, 0))
        if lane.version:
            books.lanes.tell(made)
        opened.append((None, made.parked_total_ms, made.id))
    db.write_many(_OPENED, opened)
    shared = {lane.id: lane for lane in old if lane.key.is_shared}
    learn_shared(sheet, shared)
    learn_shared(sheet, None)
    for lane_id, lane in shared.items():
        known = books.lanes.by_id(lane_id)
        if known is not None:
            _take_over(known, lane, now_ms)
            if lane.version:
                books.lanes.tell(known)
    books.changes = changes.newest(db)
    read_budgets(sheet)


def _take_over(made: Lane, lane: Lane, now_ms: int) -> None:
    made.parked_total_ms = lane.parked_clock_ms(now_ms)
    made.version = lane.version + 1
    made.reported = _TOLD_ANEW if lane.version else None
