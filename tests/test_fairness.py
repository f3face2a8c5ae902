"""Nobody starves: invariants 8 and 9 over every kind of window, by any traffic."""

from __future__ import annotations

import sqlite3
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from tests.traffic import Stream, Traffic

# Of each kind of window, in each unit, alone and together; a hundred of everything, or less.
BUDGETS = [
    "100 tokens/10s", "100 tokens/1m", "100 tokens/10m", "100 tokens/24h", "100 tokens/minute",
    "100 tokens/hour", "100 tokens/day @Europe/Athens", "100 tokens", "$0.0000001/30s",
    "$0.0000001/minute", "$0.0000001", "12 requests/10s", "12 requests/minute", "12 requests",
    "60 tokens/10s, 300 tokens/2m", "60 tokens/minute, 200 tokens/10m", "80 tokens/20s, 500 tokens",
    "100 tokens/1m, 10 requests/20s", "$0.0000001/10s, 90 tokens/minute",
]  # fmt: skip
RAISES = (3, 10, 40, 100, 150, 1000)  # percent of what the budget was

# Not shrunk: that takes minutes, and what fails reads well as it is.
THOROUGH = settings(
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
STREAMS = st.builds(
    Stream,
    draws=st.sampled_from([(0,), (0,), (1,), (0, 1)]),
    priority=st.sampled_from([0, 10, 20, 30]),
    need=st.sampled_from([0, 1, 3, 5, 10, 25, 50, 60, 80, 100]),
    first_ms=st.sampled_from([0, 0, 500, 5_000, 59_000, 3_599_000]),
    every_ms=st.sampled_from([0, 50, 300, 1_000, 7_000, 60_000]),
    at_once=st.sampled_from([1, 1, 2, 10]),
    count=st.sampled_from([1, 2, 5, 40, 150]),
    runs_ms=st.sampled_from([10, 500, 4_000, 45_000]),
    share=st.sampled_from([0, 10, 60, 100]),
    lost=st.sampled_from([0, 0, 0, 2, 5]),
    patience_ms=st.sampled_from([None, None, 400, 20_000]),
    may_wait=st.sampled_from([True, True, True, False]),
    process=st.integers(0, 1),
)


@st.composite
def traffic(draw, path=None):
    """Two budgets, some streams, and somebody who changes limits."""
    budgets = [draw(st.sampled_from(BUDGETS)) for _ in range(2)]
    streams = draw(st.lists(STREAMS, min_size=2, max_size=5, unique=True))
    limits = [
        (at_ms, number, percent)
        for at_ms, number, percent in draw(
            st.lists(
                st.tuples(
                    st.sampled_from([3_000, 30_000, 31_000, 90_000, 91_000, 3_700_000]),
                    st.integers(0, 1),
                    st.sampled_from([0, *RAISES]),
                ),
                max_size=4,
            )
        )
    ]
    return budgets, streams, sorted(limits), draw(st.sampled_from([1, 3, 8, 64]))


def lived(made, path=None):
    """Let it run for two hours, then with money for all: everything has to have ended."""
    budgets, streams, limits, slots = made
    if path is None:
        streams = [Stream(**{**_fields(each), "process": 0}) for each in streams]
    world = Traffic(budgets, streams, slots=slots, limits=limits, path=path, processes=2)
    world.run(7_200_000)
    world.release()
    assert not world.asked, f"never started: {sorted(world.asked)}"
    return world


def _fields(stream):
    return {name: getattr(stream, name) for name in stream.__dataclass_fields__}


def _often(priority, need, **more):
    return Stream(priority=priority, need=need, every_ms=50, count=40, runs_ms=500, **more)


# One who enters a line and is pushed out of it again in one turn lets nobody go on: no turn follows.
PUSHED_OUT = (
    ["100 tokens/24h", "12 requests/10s"],
    [
        _often(20, 1, draws=(0, 1), first_ms=500, process=1),
        _often(20, 80, draws=(0, 1), share=60, lost=5, patience_ms=20_000, process=1),
        Stream(draws=(0,), priority=0, need=50, every_ms=60_000, at_once=10, count=5, runs_ms=500,
               share=60, lost=2, patience_ms=400, process=0),
    ],
    [],
    3,
)  # fmt: skip

# For a while it is larger than a limit: it waits for a raise then, in no line, and joins it anew.
LARGER_FOR_A_WHILE = (
    ["100 tokens/1m, 10 requests/20s"] * 2,
    [
        Stream(need=5, priority=30, every_ms=7_000, at_once=2, count=40, runs_ms=500, share=10,
               may_wait=False),
        Stream(draws=(0, 1), need=100, first_ms=500, every_ms=300, at_once=2, count=5, runs_ms=4_000,
               share=10, lost=2),
    ],
    [(3_000, 1, 3), (30_000, 1, 100)],
    8,
)  # fmt: skip

# The line is full of smaller ones when the large one waits for the other budget alone for a while,
# and gives up its place: as it comes back it has been the first for as long as before.
GAVE_UP_ITS_PLACE = (
    ["100 tokens/1m", "$0.0000001/30s"],
    [
        Stream(draws=(0, 1), need=80, count=2),
        Stream(draws=(1,), need=1, at_once=10, count=44, runs_ms=500),
    ],
    [],
    3,
)  # fmt: skip

# The same of one that has been passed meanwhile, by those who came before it in line.
GAVE_UP_ITS_PLACE_LATER = (
    ["100 tokens/1m", "$0.0000001/30s"],
    [
        Stream(draws=(0, 1), priority=0, need=80, first_ms=5_000, count=150, runs_ms=4_000),
        Stream(draws=(0, 1), priority=0, need=50, first_ms=59_000, every_ms=7_000, count=2, runs_ms=10,
               share=60),
        Stream(draws=(0, 1), need=3, every_ms=7_000, at_once=2, count=150, runs_ms=500, share=10),
        Stream(draws=(1,), need=10, first_ms=5_000, at_once=10, count=150, runs_ms=500),
    ],
    [(31_000, 0, 40), (31_000, 0, 100), (31_000, 0, 100), (3_700_000, 1, 0)],
    3,
)  # fmt: skip


@settings(THOROUGH, max_examples=300)
@given(made=traffic())
@example(made=PUSHED_OUT)
@example(made=LARGER_FOR_A_WHILE)
@example(made=GAVE_UP_ITS_PLACE)
@example(made=GAVE_UP_ITS_PLACE_LATER)
def test_whoever_waits_for_money_is_passed_within_the_bound(made):
    lived(made)


# In parts: together they are twenty seconds of work, which may be minutes on a busy machine.
@pytest.mark.parametrize("part", range(3))
@settings(THOROUGH, max_examples=14)
@given(made=traffic())
@example(made=GAVE_UP_ITS_PLACE)
def test_the_bound_holds_between_processes_on_one_file(part, made):
    with tempfile.TemporaryDirectory(
        dir="/dev/shm" if Path("/dev/shm").is_dir() else None
    ) as folder:
        lived(made, Path(folder) / "s.db")


def test_a_process_that_leaves_the_file_takes_nobody_elses_place_with_it(tmp_path):
    large = Stream(need=90, process=0, count=1, first_ms=2_000)
    small = [Stream(need=60, process=0, count=1), Stream(need=1, process=1, count=3)]
    world = Traffic(["100 tokens/10m"], [large, *small], path=tmp_path / "s.db", processes=2)
    world.run(5_000)
    reader = sqlite3.connect(tmp_path / "s.db")
    (before,) = reader.execute("SELECT waiter FROM accounts").fetchone()
    with pytest.raises(StopIteration):
        world.stores[1].aclose().send(None)

    (after,) = reader.execute("SELECT waiter FROM accounts").fetchone()

    reader.close()
    assert after == before is not None
