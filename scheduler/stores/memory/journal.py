"""Settled reservations of the memory store, folded into sums.

The sums are kept by minute, budgets, model, job and the slots the reservations
belonged to, so that balances can be recomputed from them exactly while memory
grows with the number of minutes and models, not with the number of calls.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from scheduler.foresight import Amounts
from scheduler.ledger.account import Account, Needs, ReservationState, Tally, cost_in
from scheduler.stats import SpendRow
from scheduler.stores.course import QUARTER_MS, CourseRow, TookRow, bucket_of
from scheduler.stores.tagged import Label, heading, name_of, tag_of

_MINUTE_MS = 60_000


class Hold(Protocol):
    """A reservation, as far as the journal is concerned."""

    budgets: tuple[int, ...]
    made_at_ms: int
    model: str
    job: str
    needs: Needs
    nusd: int
    tokens: int
    state: ReservationState
    is_assumed: bool
    labels: tuple[Label, ...]


@dataclass(slots=True)
class _Sum:
    attempts: int = 0
    nusd: int = 0
    tokens: int = 0


class _Key(NamedTuple):
    minute_ms: int
    budgets: tuple[int, ...]
    model: str
    job: str
    slots: tuple[tuple[int, int], ...]  # account id, start of its slot


class Journal:
    """Sums of everything that was posted."""

    def __init__(self) -> None:
        self._sums: dict[_Key, _Sum] = {}
        self._last: tuple[tuple[object, ...], _Sum] = ((), _Sum())  # most come in runs
        self.count = 0  # settled reservations, voided ones too
        self.overruns = 0
        self._took: dict[tuple[int, str, int], list[int]] = {}  # by quarter, model and bucket
        self._tagged: dict[int, dict[str, dict[str, _Sum]]] = {}  # by quarter, tag and value

    def add(self, hold: Hold, accounts: Sequence[Account]) -> None:
        """Fold in a reservation that was posted or voided."""
        self.count += 1
        if hold.state is not ReservationState.POSTED:
            return
        self.overruns += hold.nusd > hold.needs[0]
        made_at_ms = hold.made_at_ms
        run = (made_at_ms, hold.budgets, hold.model, hold.job)
        if self._last[0] == run:
            total = self._last[1]
        else:
            total = self._sum_of(hold, accounts)
            self._last = run, total
        total.attempts += 1
        total.nusd += hold.nusd
        total.tokens += hold.tokens

    def answered(self, hold: Hold, old: ReservationState, now_ms: int) -> None:
        """Note how long an attempt took, if it was posted by its own answer just now."""
        if old is not ReservationState.PENDING or hold.state is not ReservationState.POSTED:
            return
        bucket = bucket_of(now_ms - hold.made_at_ms)
        key = now_ms - now_ms % QUARTER_MS, hold.model, bucket
        sums = self._took.setdefault(key, [0, 0, 0])
        sums[0] += 1
        sums[1] += hold.nusd
        sums[2] += hold.needs[0]

    def tagged(self, hold: Hold, before: tuple[int, int] | None) -> None:
        """Note by its tags what an attempt costs now, that had been posted with that much before."""
        is_posted = hold.state is ReservationState.POSTED
        if not hold.labels or not (is_posted or before is not None):
            return
        nusd, tokens = (0, 0) if before is None else before
        known = self._tagged.setdefault(hold.made_at_ms - hold.made_at_ms % QUARTER_MS, {})
        for label in hold.labels:
            under = heading(known, label)
            if under is not None:
                total = known.setdefault(under[0], {}).setdefault(under[1], _Sum())
                total.attempts += is_posted - (before is not None)
                total.nusd += hold.nusd - nusd
                total.tokens += hold.tokens - tokens

    def durations(self, since_ms: int) -> list[TookRow]:
        """Rows of `Store.durations`."""
        rows = sorted(self._took.items())
        return [TookRow(*key, *sums) for key, sums in rows if key[0] + QUARTER_MS > since_ms]

    def course(
        self, budgets: Collection[int], since_ms: int, holds: Iterable[Hold]
    ) -> list[CourseRow]:
        """Rows of `Store.course`."""
        sums: dict[tuple[int, int], list[int]] = {}
        posted = [
            (key.budgets, key.minute_ms, (total.nusd, total.tokens, total.attempts))
            for key, total in self._sums.items()
        ]
        posted += [
            (hold.budgets, hold.made_at_ms, (hold.nusd, hold.tokens, 1))
            for hold in holds
            if hold.state is ReservationState.POSTED
        ]
        for drawn, at_ms, amounts in posted:
            quarter_ms = at_ms - at_ms % QUARTER_MS
            if quarter_ms + QUARTER_MS <= since_ms:
                continue
            for budget_id in set(drawn).intersection(budgets):
                row = sums.setdefault((budget_id, quarter_ms), [0, 0, 0])
                for at, amount in enumerate(amounts):
                    row[at] += amount
        return [CourseRow(*key, *row) for key, row in sorted(sums.items())]

    def forget_run(self) -> None:
        """Accounts were defined anew: sums of the next hold are found afresh."""
        self._last = ((), _Sum())

    def _sum_of(self, hold: Hold, accounts: Sequence[Account]) -> _Sum:
        made_at_ms = hold.made_at_ms
        slots = tuple([(a.id, a.cap.window.slot_start_ms(made_at_ms)) for a in accounts])
        key = _Key(made_at_ms - made_at_ms % _MINUTE_MS, hold.budgets, hold.model, hold.job, slots)
        total = self._sums.get(key)
        if total is None:
            total = self._sums[key] = _Sum()
        return total

    def replay(self, account: Account, holds: Iterable[Hold]) -> None:
        """Recompute an account's slots from everything posted and all `holds` still open.

        A window that is newer than a sum counts it in its minute's last slot, so
        that it counts rather longer than not.
        """
        window = account.cap.window
        for key, total in self._sums.items():
            if account.budget_id in key.budgets:
                slot_ms = dict(key.slots).get(account.id)
                if slot_ms is None:
                    slot_ms = window.slot_start_ms(key.minute_ms + _MINUTE_MS - 1)
                tally = account.slots.setdefault(slot_ms, Tally())
                tally.posted += (total.nusd, total.tokens, total.attempts)[account.index]
        for hold in holds:
            if account.budget_id in hold.budgets:
                tally = account.slots.setdefault(window.slot_start_ms(hold.made_at_ms), Tally())
                if hold.is_assumed:  # an end that may still be corrected, and so is not folded in
                    if hold.state is ReservationState.POSTED:
                        tally.posted += cost_in(account.index, hold.nusd, hold.tokens)
                    continue
                tally.reserved += hold.needs[account.index]
                if hold.state is ReservationState.SUSPENSE:
                    tally.suspense += hold.needs[account.index]

    def spend(
        self, by: str, since_ms: int, holds: Iterable[Hold], budget_names: dict[int, str]
    ) -> list[SpendRow]:
        """Rows of `Store.spend`, dearest first."""
        if by not in ("model", "job", "budget"):
            return self._spend_of_tags(tag_of(by), since_ms, holds)
        rows: dict[str, list[int]] = {}

        def heads(budgets: tuple[int, ...], model: str, job: str) -> list[list[int]]:
            names = {"model": [model], "job": [job]}.get(by) or [budget_names[b] for b in budgets]
            return [rows.setdefault(name, [0, 0, 0, 0, 0]) for name in names]

        for key, total in self._sums.items():
            if key.minute_ms + _MINUTE_MS > since_ms:
                for row in heads(key.budgets, key.model, key.job):
                    row[0] += total.attempts
                    row[1] += total.nusd
                    row[4] += total.tokens
        for hold in holds:
            if hold.made_at_ms >= since_ms:
                for row in heads(hold.budgets, hold.model, hold.job):
                    row[0] += hold.state is not ReservationState.VOIDED
                    row[1] += hold.nusd
                    row[4] += hold.tokens
                    row[2] += 0 if hold.is_assumed else hold.needs[0]
                    row[3] += hold.needs[0] if hold.state is ReservationState.SUSPENSE else 0
        return _ordered(rows)

    def _spend_of_tags(
        self, tag: str | None, since_ms: int, holds: Iterable[Hold]
    ) -> list[SpendRow]:
        rows: dict[str, list[int]] = {}
        from_ms = since_ms - since_ms % QUARTER_MS
        for quarter_ms, known in self._tagged.items():
            for name, values in known.items() if quarter_ms >= from_ms else ():
                for value, total in values.items() if tag in (None, name) else ():
                    row = rows.setdefault(name_of((name, value), tag), [0, 0, 0, 0, 0])
                    row[0] += total.attempts
                    row[1] += total.nusd
                    row[4] += total.tokens
        for hold in holds:
            if hold.made_at_ms >= from_ms and not hold.state.is_end:
                for label in hold.labels:
                    if tag in (None, label[0]):
                        row = rows.setdefault(name_of(label, tag), [0, 0, 0, 0, 0])
                        row[0] += 1
                        row[2] += hold.needs[0]
                        row[3] += hold.needs[0] if hold.state is ReservationState.SUSPENSE else 0
        return _ordered(rows)


def _ordered(rows: dict[str, list[int]]) -> list[SpendRow]:
    """Dearest first."""
    ordered = sorted(rows.items(), key=lambda item: (-item[1][1], item[0]))
    return [SpendRow(name, *numbers) for name, numbers in ordered]


def counts_for_good(hold: Hold) -> Amounts | None:
    """What one that has ended counts, to learn of; None: it was never answered, nor billed."""
    if hold.state is ReservationState.POSTED:
        return hold.nusd, hold.tokens
    return hold.needs[:2] if hold.state is ReservationState.SUSPENSE else None


def held_cost(hold: Hold) -> int:
    """What a reservation counts beyond being under way, in nano-dollars."""
    if hold.state is ReservationState.POSTED:
        return hold.nusd
    return hold.needs[0] if hold.state is ReservationState.SUSPENSE else 0
