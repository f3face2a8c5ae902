"""Starting what may go: the reservation and the running request are one transaction."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence

from scheduler.admission.plan import LaneView, Plan, Planner
from scheduler.request import Request, RequestState
from scheduler.stores.base import Claimed, Refused, Turn, TurnResult
from scheduler.stores.lanes import Lane
from scheduler.stores.lineup import Lineup
from scheduler.stores.refusing import refusal
from scheduler.stores.sql.codec import decode_request, encode_budgets
from scheduler.stores.sql.dialect import INT, TEXT, Insert, Update
from scheduler.stores.sql.gates import know_fronts
from scheduler.stores.sql.heads import Heads, Waiting
from scheduler.stores.sql.rows import QUEUED, RUNNING, ask_payloads
from scheduler.stores.sql.sheet import Sheet
from scheduler.stores.sql.waiting import drop

FEWEST, MOST_AT_ONCE = 16, 1_024  # lanes that are read together: about as many as there are places

_RUNNING = Update(
    "requests",
    "state = 'running', attempts = attempts + 1, reservation_id = :reservation_id,"
    " parked_ms = :parked_ms",
    "id = :id",
    {"reservation_id": INT, "parked_ms": INT, "id": INT},
)  # fmt: skip
_RESERVED = Insert(
    "reservations",
    {"id": INT, "request_id": INT, "worker_id": INT, "job_id": INT, "budgets": TEXT, "model": TEXT,
     "state": TEXT, "made_at_ms": INT, "ceiling_nusd": INT, "ceiling_tokens": INT, "tags": TEXT},
)  # fmt: skip


def claim(sheet: Sheet, turn: Turn, result: TurnResult) -> None:
    """Decide whom to admit, and write it; all that was settled and submitted is written."""
    books, now_ms = sheet.books, sheet.now_ms
    books.lanes.wake_eased(sheet.accounts_of, now_ms)
    if not books.lanes.open:
        return
    assert turn.slots is not None
    know_fronts(sheet, turn.slots)
    places = sum(turn.slots.values())

    def show(lanes: Sequence[Lane]) -> Sequence[LaneView]:
        return Heads(sheet, lanes, places).views()

    lineup = Lineup(
        books.lanes.open, show, books.gates, turn.slots, now_ms,
        at_once=min(max(FEWEST, places), MOST_AT_ONCE),
    )  # fmt: skip
    decided = Planner(lineup, turn.slots, now_ms, books.admitted).decide()
    books.admitted += len(decided.admitted)
    result.look_again_at_ms = now_ms if decided.is_cut else decided.look_again_at_ms
    _start(sheet, decided, result)
    _refuse(sheet, decided, turn, result)
    for lane, verdict, rest in zip(lineup.looked, decided.verdicts, decided.rests, strict=True):
        books.lanes.settle(lane, verdict, rest, now_ms)
    sheet.news.moved |= decided.moved
    if books.lanes.wake_behind(decided.moved, now_ms):
        result.look_again_at_ms = now_ms


def _start(sheet: Sheet, decided: Plan, result: TurnResult) -> None:
    admitted: Sequence[Waiting] = decided.admitted  # type: ignore[assignment]
    if not admitted:
        return
    books, now_ms = sheet.books, sheet.now_ms
    ids = sheet.db.new_ids("reservations", len(admitted))
    lanes = {id_: _Leaving(sheet, id_) for id_ in {each.lane_id for each in admitted}}
    running, reserved, ways = [], [], []
    for each, reservation_id in zip(admitted, ids, strict=True):
        lane, (nusd, tokens, _) = lanes[each.lane_id], each.needs
        lane.count += 1
        parked_ms = each.parked_ms + max(0, lane.clock_ms - each.parked_mark_ms)
        running.append((reservation_id, parked_ms, each.id))
        reserved.append((
            reservation_id, each.id, books.worker_id, each.job_id, lane.text, each.model, "pending",
            now_ms, nusd, tokens, each.tags,
        ))  # fmt: skip
        ways.append((
            each.attempts + 1, nusd, tokens, each.cost_nusd, each.submitted_at_ms, parked_ms,
            each.digest, lane.budgets, now_ms, lane.lane.key.is_shared,
        ))  # fmt: skip
    for job_id, count in Counter(each.job_id for each in admitted).items():
        sheet.tallies[job_id, QUEUED] -= count
        sheet.tallies[job_id, RUNNING] += count
    for leaving in lanes.values():
        sheet.leave(leaving.lane, leaving.count)
    requests = _ask(sheet, admitted, is_taken=True)
    sheet.db.write_many(_RUNNING, running)
    sheet.db.write_many(_RESERVED, reserved)

    def hear() -> None:
        asked = requests()
        result.claimed = [
            Claimed(each.id, reservation_id, asked[each.id], *way)
            for each, reservation_id, way in zip(admitted, ids, ways, strict=True)
        ]

    sheet.hear = hear
    books.claimed.update(
        (each.id, reservation_id) for each, reservation_id in zip(admitted, ids, strict=True)
        if lanes[each.lane_id].lane.key.is_shared
    )  # fmt: skip


class _Leaving:
    """A lane out of which requests go."""

    __slots__ = ("budgets", "clock_ms", "count", "lane", "text")

    def __init__(self, sheet: Sheet, lane_id: int) -> None:
        lane = sheet.books.lanes.by_id(lane_id)
        assert lane is not None
        self.lane, self.count = lane, 0
        self.budgets, self.text = lane.key.budgets, encode_budgets(lane.key.budgets)
        self.clock_ms = lane.parked_clock_ms(sheet.now_ms)


def _refuse(sheet: Sheet, decided: Plan, turn: Turn, result: TurnResult) -> None:
    refused: Sequence[Waiting] = [each for each, _ in decided.refused]  # type: ignore[misc]
    if not refused:
        return
    requests = _ask(sheet, refused, is_taken=False)()
    sheet.load_rows(each.id for each in refused)
    for candidate, lack in decided.refused:
        request = requests[candidate.id]
        result.refused.append(Refused(candidate.id, request, lack))
        if not (request.fallback or candidate.id in turn.holds):
            drop(sheet, sheet.rows[candidate.id], RequestState.FAILED, json.dumps(refusal(lack)))


def _ask(
    sheet: Sheet, those: Sequence[Waiting], *, is_taken: bool
) -> Callable[[], dict[int, Request]]:
    """What these requests ask, to be had later: as it was kept here, else as it is stored."""
    books = sheet.books
    kept = {each.id: books.kept[each.id] for each in those if each.id in books.kept}
    payloads = ask_payloads(sheet.db, [each.id for each in those if each.id not in kept])
    if is_taken and books.store_prompts == "full":
        for each in kept:
            del books.kept[each]  # it can be read back

    def had() -> dict[int, Request]:
        return kept | {each: decode_request(text) for each, text in payloads().items()}  # type: ignore[arg-type]

    return had
