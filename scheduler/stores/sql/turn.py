"""A turn on a database: gather, decide, apply, within one transaction.

Everything here is plain synchronous code over a `Connection`, on rows it has just read. What a
process remembers between turns (`Books`) holds no money. First what has ended and what is new is
settled, queued and written; then those who wait are looked at, and some are started. Each step
reads and writes by lists: a turn of a thousand requests takes as many statements as one of two.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from scheduler.budget import Budget
from scheduler.errors import StoreLocked
from scheduler.request import RequestState
from scheduler.stats import BudgetStatus
from scheduler.stores.base import (
    Finished,
    LaneStatus,
    Settlement,
    Turn,
    TurnResult,
)
from scheduler.stores.lanes import hear
from scheduler.stores.process import Process, is_dead
from scheduler.stores.sql import budgets as defining
from scheduler.stores.sql import changes, workers
from scheduler.stores.sql.books import Books
from scheduler.stores.sql.claim import claim
from scheduler.stores.sql.connection import Connection
from scheduler.stores.sql.gates import know_gates, load_gates, save_gates
from scheduler.stores.sql.rows import COLUMNS, Row, read_finished
from scheduler.stores.sql.settle import ask_holds, read_holds, read_unknown, settle, write_answers
from scheduler.stores.sql.sheet import Sheet, begin
from scheduler.stores.sql.submit import amend, answer, ask_known, lend, read_known, submit
from scheduler.stores.sql.tenants import hear_of
from scheduler.stores.sql.waiting import (
    MOST_DUE,
    ask_due,
    ask_next_due,
    budgets_of,
    cancel,
    drop,
    expire,
    know_lanes,
    learn_shared,
    next_due_ms,
    promote,
    read_due,
)


class Transactions(Books):
    """What this process does to the store, one transaction per public method."""

    def turn(self, db: Connection, turn: Turn) -> TurnResult:
        """`Store.turn`."""
        self.lanes.leave(self.left)
        self._ask(db, turn)
        write_answers(turn.settle)  # while the engine is at it, or somebody else's turn is
        sheet = begin(db, self, turn.now_ms)
        result = TurnResult(crossings=self.untold)
        self.untold = []
        if self.worker_id:
            self._catch_up(sheet, result)
        workers.keep_lease(sheet)
        know_gates(sheet, (
            (each.report.provider, each.report.model)
            for each in turn.settle if each.report is not None
        ))  # fmt: skip
        hear(self.gates, turn.settle, self.lanes, sheet.now_ms)

        # What has ended, and what is new
        ask_due(sheet)
        holds = read_holds(sheet, _ids(turn.settle))
        named = [*turn.cancel, *(each for each, _ in turn.amend), *(each for each, _ in turn.lend)]
        sheet.load_rows(named)
        due = read_due(sheet)
        asked = read_known(sheet, turn.submit)
        rows = [*(sheet.rows[each] for each in named if each in sheet.rows), *due]
        know_lanes(sheet, rows)
        sheet.load(budgets_of(sheet, rows))

        result.settled = settle(sheet, turn.settle, holds, result)
        result.cancelled = [cancel(sheet, request_id) for request_id in turn.cancel]
        promote(sheet, due)
        amend(sheet, turn.amend)
        lend(sheet, turn.lend)
        result.submitted = submit(sheet, turn.submit, asked)
        expire(sheet, sheet.rows.values(), result)

        sheet.write_waiting()
        answer(sheet, asked)

        # Who goes
        self.lanes.wake_due(sheet.now_ms)
        if turn.slots is not None:
            claim(sheet, turn, result)
        elif self.lanes.any_waiting:
            workers.step_out_of_line(sheet, self.worker_id)
        self._end(sheet, result, is_more_due=len(due) >= MOST_DUE)
        return result

    def _ask(self, db: Connection, turn: Turn) -> None:
        """Ask for what a turn reads in any case, all at once."""
        if self.worker_id:
            db.ahead(changes.HEARD, self.changes)
            ask_holds(db, _ids(turn.settle))
            ask_known(db, self, turn.submit)

    def _catch_up(self, sheet: Sheet, result: TurnResult) -> None:
        """Look at what others changed since the last turn, and at nothing else."""
        self.changes, news = changes.heard(sheet.db, self.changes, self.worker_id)
        if news.is_all:
            self.lanes.wake_all(sheet.now_ms)
            learn_shared(sheet, None)
            load_gates(sheet, self.known_gates)
        if news.is_company or news.is_all:
            workers.know_company(sheet)
        load_gates(sheet, news.gates & self.known_gates)
        learn_shared(sheet, news.lanes)
        if news.lanes or news.is_all:
            workers.recount(sheet, None if news.is_all else news.lanes)
        hear_of(sheet, news.tenants, is_all=news.is_all)
        self._look_at_accounts(sheet, news)
        for budget_id in news.defined:
            self.lanes.wake_on(budget_id, sheet.now_ms)
        if news and self.taken:
            result.answered = self._answered_elsewhere(sheet)

    def _look_at_accounts(self, sheet: Sheet, news: changes.News) -> None:
        """Wake whoever waits for money that others gave back, or a place they gave up."""
        drawn_on = {each for each in news.budgets if self.lanes.has_budget(each)}
        if news.moved:
            self.lanes.wake_behind(news.moved, sheet.now_ms)
        sheet.load(drawn_on)
        for budget_id in drawn_on:
            for account in sheet.accounts[budget_id]:
                self.lanes.wake(account, sheet.now_ms)
                if account.id in news.moved and account.cap.window.span_ms:
                    self.lanes.wake_returned(account, sheet.now_ms)

    def _answered_elsewhere(self, sheet: Sheet) -> list[Finished]:
        """Of what was taken over from processes that seemed dead, what these have answered."""
        finished = read_finished(sheet.db, list(self.taken))
        self.taken.difference_update(finished)
        answered = [each for each in finished.values() if each.state is RequestState.SUCCEEDED]
        self.is_miscounted |= bool(answered)
        return answered

    def _end(self, sheet: Sheet, result: TurnResult, *, is_more_due: bool) -> None:
        """Write the rest, and say when to look again."""
        save_gates(sheet)
        result.lanes = [
            LaneStatus(lane.key, lane.waiting, lane.shortfall) for lane in sheet.write_lanes()
        ]
        db = sheet.db
        sheet.write()
        ask_next_due(db, self.worker_id)
        sheet.finish()
        self.shares.forget(self.lanes.active, sheet.now_ms)
        instants = [
            result.look_again_at_ms, self.lanes.due_ms, next_due_ms(db, self.worker_id),
            sheet.now_ms if is_more_due else None,
        ]  # fmt: skip
        result.look_again_at_ms = min((each for each in instants if each is not None), default=None)
        if self.was_lost or self.is_miscounted:
            result.was_lost, self.was_lost, self.is_miscounted = self.was_lost, False, False
            result.waiting = sheet.db.value(
                "SELECT count(*) FROM requests WHERE state IN ('queued', 'delayed')"
                " AND lane_id IN (SELECT id FROM lanes WHERE worker_id = ?)",
                self.worker_id,
            )
        result.waiting_shared = self.lanes.waiting_shared
        result.lease_ms = self.seen_at_ms + self.lease_ms - sheet.now_ms

    def resolve(self, db: Connection, settlements: Sequence[Settlement], now_ms: int) -> list[bool]:
        """`Store.resolve`."""
        sheet = begin(db, self, now_ms)
        unknown = read_unknown(db, [each.reservation_id for each in settlements])
        wanted = [each for each in settlements if each.reservation_id in unknown]
        result = TurnResult()
        holds = read_holds(sheet, _ids(wanted))
        done = iter(settle(sheet, wanted, holds, result))
        self.untold += result.crossings
        sheet.finish()
        return [each.reservation_id in unknown and next(done) for each in settlements]

    def forget(self, db: Connection, job: str, now_ms: int) -> None:
        """`Store.forget`."""
        sheet = begin(db, self, now_ms)
        self._check_idle(db, job)
        found = db.one("SELECT id FROM jobs WHERE name = ?", job)
        if found is None:
            return
        rows = [
            sheet.meet(Row(*row)) for row in db.read(
                f"SELECT {COLUMNS} FROM requests r WHERE r.job_id = ?"
                " AND r.state IN ('queued', 'delayed')",
                found[0],
            )
        ]  # fmt: skip
        know_lanes(sheet, rows)
        sheet.load(budgets_of(sheet, rows))
        for row in rows:
            drop(sheet, row, RequestState.CANCELLED)
        sheet.finish()
        db.write("UPDATE requests SET key = NULL, is_delivered = 1 WHERE job_id = ?", found[0])

    def _check_idle(self, db: Connection, job: str) -> None:
        for host, pid, started in db.read(
            "SELECT DISTINCT w.host, w.pid, w.started FROM requests r JOIN lanes l ON l.id = r.lane_id"
            " JOIN workers w ON w.id = l.worker_id"
            " WHERE r.job_id = (SELECT id FROM jobs WHERE name = ?) AND w.id <> ?"
            " AND r.state IN ('queued', 'delayed', 'running')",
            job, self.worker_id,
        ):  # fmt: skip
            if not is_dead(self.process, Process(host, pid, started)):
                raise StoreLocked(
                    f"process {pid} is running the job {job!r}; nothing was changed. Stop it first"
                )

    def leave(self, db: Connection) -> None:
        """This process goes: what waits, waits for its key to be submitted again."""
        if self.worker_id:
            workers.leave(begin(db, self, self.now_ms))

    # Budgets

    def define(self, db: Connection, budgets: Sequence[Budget], now_ms: int) -> None:
        """`Store.define`."""
        sheet = begin(db, self, now_ms)
        defining.define(sheet, budgets)
        sheet.finish()

    def remove(self, db: Connection, name: str, now_ms: int) -> None:
        """`Store.remove`."""
        sheet = begin(db, self, now_ms)
        defining.remove(sheet, name)
        sheet.finish()

    def pause(self, db: Connection, name: str, paused: bool, now_ms: int) -> None:
        """`Store.pause`."""
        sheet = begin(db, self, now_ms)
        defining.pause(sheet, name, paused)
        sheet.finish()

    def is_all_the_same(self, db: Connection, budgets: Sequence[Budget]) -> bool:
        """Whether these budgets are defined so already; writes nothing."""
        return defining.is_all_the_same(db, self, budgets)

    def defined(self, db: Connection, names: Iterable[str]) -> list[tuple[int, Budget]]:
        """`Store.defined`; writes nothing."""
        return defining.defined(db, self, names)

    def redefined(self, db: Connection, now_ms: int) -> tuple[list[tuple[int, Budget]], list[str]]:
        """`Store.redefined`; writes nothing."""
        return defining.redefined(begin(db, self, now_ms))

    def read_budgets(self, db: Connection, now_ms: int) -> list[BudgetStatus]:
        """`Store.budgets`; writes nothing."""
        return defining.read_budgets(begin(db, self, now_ms))


def _ids(settlements: Iterable[Settlement]) -> list[tuple[int, int]]:
    return [(each.reservation_id, each.request_id) for each in settlements]
