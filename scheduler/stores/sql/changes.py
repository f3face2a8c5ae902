"""What processes on one store tell each other: what each transaction changed, in order.

One row a transaction names the budgets, lines, lanes and gates it touched, so that others look at
what changed and not at all there is. It is a hint of where to look: what is there is read anew.
Whoever falls so far behind that rows are gone looks at everything once. Requests that ended are
told likewise, in `ends`, to whoever waits for what another process sends.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from scheduler.admission.fairness import TenantKey
from scheduler.stores.sql.connection import Connection
from scheduler.stores.sql.dialect import INT, Insert

if TYPE_CHECKING:
    from scheduler.stores.sql.books import Books

KEPT_CHANGES = 4_096
KEPT_ENDS = 100_000
EVERY = 512  # transactions between two times that older rows are dropped

HEARD = "SELECT seq, worker_id, what FROM changes WHERE seq > ? ORDER BY seq"
_ENDS = Insert("ends", {"request_id": INT})


@dataclass(slots=True)
class News:
    """What one or several transactions changed that matters to others.

    Attributes:
        budgets: Whose balances changed.
        moved: Accounts in whose line somebody gave up their place, or to which money came back.
        defined: Budgets that were made, changed, paused or removed.
        lanes: Shared ones in which more or fewer wait.
        gates: Provider, model, and whether it is the provider's front.
        tenants: To whom something was given back, so that they start earlier.
        ended: Requests that ended, and that others may wait for.
        is_company: A process began to work on the store, or left it.
        is_all: Nobody knows what changed: too much did.
    """

    budgets: set[int] = field(default_factory=set)
    moved: set[int] = field(default_factory=set)
    defined: set[int] = field(default_factory=set)
    lanes: set[int] = field(default_factory=set)
    gates: set[tuple[str, str, bool]] = field(default_factory=set)
    tenants: set[TenantKey] = field(default_factory=set)
    ended: list[int] = field(default_factory=list)
    is_company: bool = False
    is_all: bool = False

    def __bool__(self) -> bool:
        return bool(
            self.budgets or self.moved or self.defined or self.lanes or self.gates or self.tenants
            or self.is_company or self.is_all
        )  # fmt: skip

    def dump(self) -> str:
        """As text."""
        told: dict[str, Any] = {
            name: sorted(getattr(self, name)) for name in _SETS if getattr(self, name)
        }
        return json.dumps(told | ({"is_company": 1} if self.is_company else {}))

    def add(self, text: str) -> None:
        """What another transaction wrote."""
        told = json.loads(text)
        self.budgets.update(told.get("budgets", ()))
        self.moved.update(told.get("moved", ()))
        self.defined.update(told.get("defined", ()))
        self.lanes.update(told.get("lanes", ()))
        self.gates.update((name, model, bool(f)) for name, model, f in told.get("gates", ()))
        self.tenants.update(TenantKey(*each) for each in told.get("tenants", ()))
        self.is_company |= bool(told.get("is_company"))


_SETS = ("budgets", "moved", "defined", "lanes", "gates", "tenants")


def newest(db: Connection) -> int:
    """The number of the last change."""
    return int(db.value("SELECT coalesce(max(seq), 0) FROM changes"))


def heard(db: Connection, since: int, me: int) -> tuple[int, News]:
    """What others than this worker changed since then, and up to where."""
    news = News()
    rows = db.read(HEARD, since)
    for _, worker_id, what in rows:
        if worker_id != me or not me:
            news.add(what)
    if rows and rows[0][0] > since + 1:
        news.is_all = True
    return (rows[-1][0] if rows else since), news


def tell(db: Connection, books: Books, news: News) -> Callable[[], None]:
    """Write what this transaction changed; what is returned drops what is old."""
    db.write_many(_ENDS, [(request_id,) for request_id in news.ended])
    if news or news.ended:
        db.tell(is_urgent=bool(news.defined))
    if not news:
        return lambda: None
    numbers = db.ask(
        "INSERT INTO changes (worker_id, what) VALUES (?, ?) RETURNING seq",
        books.worker_id, news.dump(),
    )  # fmt: skip

    def drop_old() -> None:
        number = numbers()[0][0]
        if books.changes == number - 1:
            books.changes = number  # one's own is no news
        if number % EVERY == 0:
            db.write("DELETE FROM changes WHERE seq <= ?", number - KEPT_CHANGES)
            db.write("DELETE FROM ends WHERE seq <= (SELECT max(seq) FROM ends) - ?", KEPT_ENDS)

    return drop_old


def ended_since(db: Connection, since: int) -> tuple[int, list[int] | None]:
    """`Store.ended_since`."""
    rows = db.read("SELECT seq, request_id FROM ends WHERE seq >= ? ORDER BY seq", since)
    if rows and rows[0][0] > max(since, 1):
        return rows[-1][0], None
    ended = [request_id for seq, request_id in rows if seq > since]
    return (rows[-1][0] if rows else since), ended
