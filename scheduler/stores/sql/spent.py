"""What was ever posted, in sums that are kept as reservations are settled.

They are kept by the quarter of an hour in which the reservations were made: by model and job, and by
budget. So neither a report of what was spent, nor a budget that is defined with another window, reads
all reservations that a file has, but rows that are as many as quarters of an hour. Pruning changes
none of them. What a quarter cannot tell, since the span asked for begins within it or a boundary of
the window lies in it, is read from the reservations of that quarter alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Protocol

from scheduler.ledger.account import Account, Needs, Tally, cost_in
from scheduler.stores.course import QUARTER_MS, CourseRow, TookRow, bucket_of
from scheduler.stores.sql.codec import decode_budgets
from scheduler.stores.sql.connection import Connection
from scheduler.stores.sql.dialect import INT, TEXT, Insert
from scheduler.stores.tagged import Label, decode_tags, heading

MINUTE_MS = 60_000
MOST_QUARTERS = 8  # whose tags are remembered
Cost = tuple[int, int]  # nano-dollars, tokens
Tagged = dict[int, dict[str, set[str]]]

_QUARTERS = (
    f"SELECT made_at_ms - made_at_ms % {QUARTER_MS} AS quarter_ms, budgets, job_id, model,"
    " 1 AS attempts, nusd, tokens,"
    " CASE WHEN nusd > ceiling_nusd THEN nusd - ceiling_nusd ELSE 0 END AS over_nusd,"
    " CASE WHEN tokens > ceiling_tokens THEN tokens - ceiling_tokens ELSE 0 END AS over_tokens"
    " FROM reservations WHERE state = 'posted'"
    f" UNION ALL SELECT minute_ms - minute_ms % {QUARTER_MS}, budgets, job_id, model, attempts,"
    " nusd, tokens, 0, 0 FROM sums"
)
_SUMMED = (
    "sum(attempts) AS attempts, sum(nusd) AS nusd, sum(tokens) AS tokens,"
    f" sum(over_nusd) AS over_nusd, sum(over_tokens) AS over_tokens FROM ({_QUARTERS}) AS q GROUP BY"
)
POSTED = (
    "SELECT quarter_ms, job_id, model, attempts, nusd, tokens FROM"
    f" (SELECT quarter_ms, job_id, model, {_SUMMED} quarter_ms, job_id, model) AS p"
)
"""The rows of `spent`, from what they are the sums of."""

POSTED_ON = f"SELECT budgets, quarter_ms, {_SUMMED} budgets, quarter_ms"
"""The same for `spent_of_budgets`, by all budgets of a reservation together."""

POSTED_AS = f"SELECT quarter_ms, model, budgets, {_SUMMED} quarter_ms, model, budgets"


def _added(table: str, columns: Sequence[str]) -> str:
    return ", ".join(f"{name} = {table}.{name} + excluded.{name}" for name in columns)


_SUMS = {"attempts": INT, "nusd": INT, "tokens": INT}
_OVER = {"over_nusd": INT, "over_tokens": INT}
_OPEN = ("pending", "suspense")
_ADD = Insert(
    "spent",
    {"quarter_ms": INT, "job_id": INT, "model": TEXT} | _SUMS,
    f"ON CONFLICT (quarter_ms, job_id, model) DO UPDATE SET {_added('spent', list(_SUMS))}",
)
_ADD_ON = Insert(
    "spent_of_budgets",
    {"budget_id": INT, "quarter_ms": INT} | _SUMS | _OVER,
    "ON CONFLICT (budget_id, quarter_ms) DO UPDATE SET "
    + _added("spent_of_budgets", list(_SUMS | _OVER)),
)
_ADD_TAGGED = Insert(
    "spent_of_tags",
    {"quarter_ms": INT, "tag": TEXT, "value": TEXT} | _SUMS,
    f"ON CONFLICT (quarter_ms, tag, value) DO UPDATE SET {_added('spent_of_tags', list(_SUMS))}",
)
_TOOK = {"calls": INT, "nusd": INT, "ceiling_nusd": INT}
_ADD_TOOK = Insert(
    "took",
    {"quarter_ms": INT, "model": TEXT, "bucket": INT} | _TOOK,
    f"ON CONFLICT (quarter_ms, model, bucket) DO UPDATE SET {_added('took', list(_TOOK))}",
)


class Hold(Protocol):
    """A reservation, as far as the sums are concerned."""

    made_at_ms: int
    job_id: int
    model: str
    budgets: tuple[int, ...]
    needs: Needs

    @property
    def labels(self) -> tuple[Label, ...]:
        """By what else it is summed."""


class Spent:
    """What a transaction adds to the sums.

    Args:
        tagged: By quarter of an hour, which tags and values have sums of their own: some of those
            that are stored, or all.
    """

    def __init__(self, tagged: Tagged) -> None:
        self._tagged = tagged
        self._by_model: dict[tuple[int, int, str], list[int]] = {}
        self._by_budget: dict[tuple[int, int], list[int]] = {}
        self._took: dict[tuple[int, str, int], list[int]] = {}
        self._by_tag: dict[tuple[int, Label], list[int]] = {}

    def settled(self, hold: Hold, before: Cost | None, now: Cost | None) -> None:
        """A reservation that had posted that much posts this much from now on; None: nothing."""
        # What cost nothing has a row, too: a report names all that was asked.
        change: Sequence[int] = (0, 0, 0, 0, 0) if now is None else _costs(hold.needs, now)
        if before is not None:
            was = _costs(hold.needs, before)
            change = [new - old for new, old in zip(change, was, strict=True)]
        quarter_ms = hold.made_at_ms - hold.made_at_ms % QUARTER_MS
        add(self._by_model.setdefault((quarter_ms, hold.job_id, hold.model), [0, 0, 0]), change)
        for budget_id in hold.budgets:
            add(self._by_budget.setdefault((budget_id, quarter_ms), [0, 0, 0, 0, 0]), change)
        if before is not None or now is not None:
            for label in hold.labels:
                add(self._by_tag.setdefault((quarter_ms, label), [0, 0, 0]), change)

    def answered(self, hold: Hold, now_ms: int, nusd: int) -> None:
        """An attempt was posted by its own answer."""
        key = now_ms - now_ms % QUARTER_MS, hold.model, bucket_of(now_ms - hold.made_at_ms)
        add(self._took.setdefault(key, [0, 0, 0]), (1, nusd, hold.needs[0]))

    def write(self, db: Connection) -> None:
        """Write them."""
        # In the order of their keys, as all do who share the store: none waits in a circle.
        db.write_many(_ADD, [(*key, *sums) for key, sums in sorted(self._by_model.items())])
        db.write_many(_ADD_ON, [(*key, *sums) for key, sums in sorted(self._by_budget.items())])
        db.write_many(_ADD_TOOK, [(*key, *sums) for key, sums in sorted(self._took.items())])
        if self._by_tag:
            self._write_tagged(db)
        self.clear()

    def _write_tagged(self, db: Connection) -> None:
        read: set[int] = set()
        rows: dict[tuple[int, str, str], list[int]] = {}
        for (quarter_ms, label), sums in self._by_tag.items():
            known = self._tagged.setdefault(quarter_ms, {})
            if quarter_ms not in read and _is_new(known, label):
                read.add(quarter_ms)
                _read_tagged(db, quarter_ms, known)  # others may have added some
            under = heading(known, label)
            if under is not None:
                known.setdefault(under[0], set()).add(under[1])
                add(rows.setdefault((quarter_ms, *under), [0, 0, 0]), sums)
        db.write_many(_ADD_TAGGED, [(*key, *sums) for key, sums in sorted(rows.items())])
        while len(self._tagged) > MOST_QUARTERS:
            del self._tagged[min(self._tagged)]

    def clear(self) -> None:
        """Begin anew."""
        self._by_model.clear()
        self._by_budget.clear()
        self._took.clear()
        self._by_tag.clear()


def _is_new(known: dict[str, set[str]], label: Label) -> bool:
    """Whether a label would have a sum of its own that it has not yet, as far as is known."""
    return heading(known, label) == label and label[1] not in known.get(label[0], ())


def _read_tagged(db: Connection, quarter_ms: int, known: dict[str, set[str]]) -> None:
    for tag, value in db.read(
        "SELECT tag, value FROM spent_of_tags WHERE quarter_ms = ?", quarter_ms
    ):
        known.setdefault(tag, set()).add(value)


def _costs(needs: Needs, cost: Cost) -> tuple[int, int, int, int, int]:
    """What an attempt counts: itself, what it cost, and how much more than was reserved."""
    nusd, tokens = cost
    return 1, nusd, tokens, max(0, nusd - needs[0]), max(0, tokens - needs[1])


def add(sums: list[int], change: Sequence[int]) -> None:
    """Add numbers to those that are there."""
    for at in range(len(sums)):
        sums[at] += change[at]


# What an account that is new counts from the beginning


class Recount:
    """Fills the slots of accounts that are new, of budgets that are not, all in the same reads.

    Args:
        db: The store.
        accounts: They, empty.
        now_ms: The time: slots that stopped counting are left out, unless something is open there.
    """

    def __init__(self, db: Connection, accounts: Iterable[Account], now_ms: int) -> None:
        self._db = db
        self._accounts: dict[int, list[Account]] = {}  # by budget
        self._since_ms: dict[int, int] = {}  # the first slot of each
        self._torn: set[tuple[int, int]] = set()  # account and quarter: it has more slots than one
        oldest_ms = self._oldest_open_ms()
        for account in accounts:
            window = account.cap.window
            since_ms = window.oldest_counting_ms(now_ms)
            if oldest_ms is not None:
                since_ms = min(since_ms, window.slot_start_ms(oldest_ms))
            self._since_ms[account.id] = since_ms
            self._accounts.setdefault(account.budget_id, []).append(account)

    def run(self) -> None:
        """Count."""
        self._count_quarters()
        for from_ms, to_ms in _spans(sorted({quarter_ms for _, quarter_ms in self._torn})):
            self._count_posted(from_ms, to_ms)
            self._count_pruned(from_ms, to_ms)
        self._count_open()

    def _oldest_open_ms(self) -> int | None:
        # Not by when they were made: all that have ended would come first.
        oldest = [
            self._db.value(f"SELECT min(+made_at_ms) FROM reservations WHERE state = '{state}'")
            for state in _OPEN
        ]
        return min((each for each in oldest if each is not None), default=None)

    def _of(self, budgets: str) -> Iterator[Account]:
        for budget_id in decode_budgets(budgets):
            yield from self._accounts.get(budget_id, ())

    def _tally(self, account: Account, at_ms: int) -> Tally:
        return account.slots.setdefault(account.cap.window.slot_start_ms(at_ms), Tally())

    def _count_quarters(self) -> None:
        db, first_ms = self._db, min(self._since_ms.values())
        for budget_id, quarter_ms, *posted, over_nusd, over_tokens in db.read(
            "SELECT budget_id, quarter_ms, nusd, tokens, attempts, over_nusd, over_tokens"
            f" FROM spent_of_budgets WHERE budget_id {db.dialect.among} AND quarter_ms > ?",
            db.dialect.a_list(self._accounts), first_ms - QUARTER_MS,
        ):  # fmt: skip
            end_ms = quarter_ms + QUARTER_MS - 1
            for account in self._accounts[budget_id]:
                slot_start_ms = account.cap.window.slot_start_ms
                if end_ms < self._since_ms[account.id]:
                    continue
                if slot_start_ms(quarter_ms) != slot_start_ms(end_ms):
                    self._torn.add((account.id, quarter_ms))
                    continue
                tally = self._tally(account, quarter_ms)
                tally.posted += posted[account.index]
                tally.overrun += (over_nusd, over_tokens, 0)[account.index]

    def _counts(self, account: Account, at_ms: int) -> bool:
        """Whether what was made then was not counted with its quarter."""
        is_torn = (account.id, at_ms - at_ms % QUARTER_MS) in self._torn
        return is_torn and at_ms >= self._since_ms[account.id]

    def _count_posted(self, from_ms: int, to_ms: int) -> None:
        for budgets, made_at_ms, nusd, tokens, *held in self._db.scan(
            "SELECT budgets, made_at_ms, nusd, tokens, ceiling_nusd, ceiling_tokens"
            " FROM reservations WHERE made_at_ms >= ? AND made_at_ms < ? AND state = 'posted'",
            from_ms, to_ms,
        ):  # fmt: skip
            for account in self._of(budgets):
                if self._counts(account, made_at_ms):
                    tally = self._tally(account, made_at_ms)
                    cost = cost_in(account.index, nusd, tokens)
                    tally.posted += cost
                    tally.overrun += max(0, cost - (*held, 1)[account.index])

    def _count_pruned(self, from_ms: int, to_ms: int) -> None:
        for budgets, minute_ms, *posted in self._db.scan(
            "SELECT budgets, minute_ms, nusd, tokens, attempts FROM sums"
            " WHERE minute_ms >= ? AND minute_ms < ?",
            from_ms, to_ms,
        ):  # fmt: skip
            at_ms = minute_ms + MINUTE_MS - 1  # so that it counts rather longer than not
            for account in self._of(budgets):
                if self._counts(account, at_ms):
                    self._tally(account, at_ms).posted += posted[account.index]

    def _count_open(self) -> None:
        for state in _OPEN:
            for budgets, made_at_ms, *held in self._db.scan(
                "SELECT budgets, made_at_ms, ceiling_nusd, ceiling_tokens FROM reservations"
                f" WHERE state = '{state}'"
            ):
                for account in self._of(budgets):
                    tally, amount = self._tally(account, made_at_ms), (*held, 1)[account.index]
                    tally.reserved += amount
                    tally.suspense += amount if state == "suspense" else 0


def _spans(quarters: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Quarters, those that follow each other together."""
    from_ms = to_ms = None
    for quarter_ms in quarters:
        if quarter_ms != to_ms:
            if from_ms is not None and to_ms is not None:
                yield from_ms, to_ms
            from_ms = quarter_ms
        to_ms = quarter_ms + QUARTER_MS
    if from_ms is not None and to_ms is not None:
        yield from_ms, to_ms


# How it went


def course(db: Connection, budgets: Collection[int], since_ms: int) -> list[CourseRow]:
    """`Store.course`."""
    return [CourseRow(*row) for row in db.read(
        "SELECT budget_id, quarter_ms, nusd, tokens, attempts FROM spent_of_budgets"
        f" WHERE budget_id {db.dialect.among} AND quarter_ms > ? ORDER BY budget_id, quarter_ms",
        db.dialect.a_list(budgets), since_ms - QUARTER_MS,
    )]  # fmt: skip


def durations(db: Connection, since_ms: int) -> list[TookRow]:
    """`Store.durations`."""
    return [TookRow(*row) for row in db.read(
        "SELECT quarter_ms, model, bucket, calls, nusd, ceiling_nusd FROM took"
        " WHERE quarter_ms > ? ORDER BY quarter_ms, model, bucket",
        since_ms - QUARTER_MS,
    )]  # fmt: skip


# What was spent

_HELD = (
    "SELECT {head}, count(*), 0, sum(ceiling_nusd), sum({unknown}), 0 FROM reservations"
    " WHERE state = '{state}' AND +made_at_ms >= ? GROUP BY 1"
)


def parts(
    db: Connection, by: str, since_ms: int
) -> Iterator[tuple[Sequence[int | str], Sequence[int]]]:
    """Parts of what attempts begun since then cost, each with the headings it belongs under.

    Args:
        db: The store.
        by: ``model``, ``job_id`` or ``budget``.
        since_ms: The instant.

    Returns:
        Models, jobs or budgets by their ids; attempts, posted, reserved, suspense, tokens.
    """
    from_ms = -(-since_ms // QUARTER_MS) * QUARTER_MS
    head, table, column = ("budgets", "spent_of_budgets", "budget_id")
    if by != "budget":
        head, table, column = by, "spent", by
    for name, *sums in db.read(
        f"SELECT {column}, sum(attempts), sum(nusd), 0, 0, sum(tokens) FROM {table}"
        " WHERE quarter_ms >= ? GROUP BY 1",
        from_ms,
    ):
        yield [name], sums
    rows = db.read(
        f"SELECT {head}, count(*), sum(nusd), 0, 0, sum(tokens) FROM reservations"
        " WHERE made_at_ms >= ? AND made_at_ms < ? AND state = 'posted' GROUP BY 1",
        since_ms, from_ms,
    )  # fmt: skip
    rows += db.read(
        f"SELECT {head}, sum(attempts), sum(nusd), 0, 0, sum(tokens) FROM sums"
        " WHERE minute_ms > ? AND minute_ms < ? GROUP BY 1",
        since_ms - MINUTE_MS, from_ms,
    )  # fmt: skip
    for state, unknown in (("pending", "0"), ("suspense", "ceiling_nusd")):
        rows += db.read(_HELD.format(head=head, state=state, unknown=unknown), since_ms)
    for name, *sums in rows:
        yield (decode_budgets(name) if by == "budget" else [name]), sums


def tagged(db: Connection, tag: str | None, since_ms: int) -> Iterator[tuple[Label, Sequence[int]]]:
    """What attempts cost by their tags, from the quarter of an hour of an instant on.

    Args:
        db: The store.
        tag: Only this one; None: all.
        since_ms: The instant.

    Returns:
        Parts of it, as `parts` does.
    """
    from_ms = since_ms - since_ms % QUARTER_MS
    for name, value, *sums in db.read(
        "SELECT tag, value, sum(attempts), sum(nusd), 0, 0, sum(tokens) FROM spent_of_tags"
        f" WHERE quarter_ms >= ?{'' if tag is None else ' AND tag = ?'} GROUP BY tag, value",
        from_ms, *(() if tag is None else (tag,)),
    ):  # fmt: skip
        yield (name, value), sums
    for state, unknown in (("pending", "0"), ("suspense", "ceiling_nusd")):
        for text, *sums in db.read(
            _HELD.format(head="tags", state=state, unknown=unknown), from_ms
        ):
            for label in () if text is None else decode_tags(text):
                if tag is None or label[0] == tag:
                    yield label, sums
