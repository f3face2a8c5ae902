"""The page about scaling says what the model says of what was measured."""

from __future__ import annotations

import json

import pytest

from benchmarks import scaling
from benchmarks.scaling import Cost, Line, Place


def test_the_tables_on_the_page_are_the_models():
    _, written, _ = scaling.parts(scaling.PAGE.read_text(encoding="utf-8"))

    assert written == scaling.report(), "run: python -m benchmarks.scaling --write"


def test_a_line_is_found_again():
    line = Line.through([(size, 3.0 + 0.5 * size) for size in (16, 64, 256)])

    assert line.turn == pytest.approx(3.0)
    assert line.request == pytest.approx(0.5)


def test_the_lock_lets_through_what_a_turn_takes_and_no_more_than_a_request_takes():
    nothing = Line(0, 0)
    cost = Cost(Line(0.001, 0.0001), nothing, nothing, nothing, nothing, trips=4)
    place = Place("p", 0.0005, 0.001, 1, 1, 1)

    assert cost.held_s(10, place) == pytest.approx(0.001 + 0.001 + 0.002 + 0.001)
    assert cost.most_s(10, place) == pytest.approx(10 / 0.005)
    assert cost.most_s(10**9, place) == pytest.approx(10_000, rel=0.01)


@pytest.mark.parametrize("gives_back", [False, True])
def test_leases_never_hand_out_more_than_there_is(gives_back):
    found = scaling.escrow(16, gives_back=gives_back)

    assert found.stranded_nusd >= 0
    most = scaling.MOST_NUSD * (1 if gives_back else 16 + 1)
    assert found.stranded_nusd < most
    assert found.asked < found.requests / (2 if gives_back else 10)


def test_what_was_measured_has_what_the_model_needs():
    curve = json.loads(scaling.MEASURED.read_text())["curve"]

    alone = {(each["kind"], each["size"]) for each in curve if each["workers"] == 1}
    assert alone >= {(kind, size) for kind in ("bare", "ours") for size in (16, 64, 256)}
