"""Seeds that must go well, crashes at every await, and planted bugs that must be found.

More seeds, for as long as told: ``make simulate``; one of them again: ``make simulate SEED=7``.
"""

from __future__ import annotations

import logging
from collections import Counter

import pytest

from tests.simulation.mutants import MUTANTS
from tests.simulation.world import Report, World

MEMORY_SEEDS = 120  # twice as many as the planted bug needs that is hardest to find
SQLITE_SEEDS, CHUNK = 24, 12
STEPS = 60
PARTS = 4  # of what takes twenty seconds of work, which may be minutes on a busy machine


@pytest.fixture(autouse=True)
def quiet():
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def live(seeds: range, store: str) -> list[Report]:
    reports = []
    for seed in seeds:
        try:
            reports.append(World(seed, STEPS, store).run())
        except BaseException as exc:
            exc.add_note(f"make simulate SEED={seed} STEPS={STEPS} STORE={store}")
            raise
    return reports


@pytest.mark.parametrize("first", range(0, MEMORY_SEEDS, CHUNK))
def test_nothing_goes_wrong_in_a_simulated_world(first):
    reports = live(range(first, first + CHUNK), "memory")

    assert sum(report.answered for report in reports) > 100


@pytest.mark.parametrize("first", range(0, SQLITE_SEEDS, 4))
def test_nothing_goes_wrong_between_processes_on_one_file(first):
    reports = live(range(first, first + 4), "sqlite")

    assert sum(report.answered for report in reports) > 20


@pytest.mark.parametrize(
    ("store", "seed"),
    [
        ("memory", 816),
        ("sqlite", 33),
        ("sqlite", 41),
        ("sqlite", 49),
        ("sqlite", 69),
        ("sqlite", 181),
    ],
)
def test_worlds_beyond_these_that_found_something_go_well(store, seed):
    live(range(seed, seed + 1), store)


def test_the_worlds_are_full_of_trouble():
    """A simulation in which nothing happens would find nothing."""
    worlds = [World(seed, STEPS, "memory") for seed in range(30)]
    reports = [world.run() for world in worlds]

    events: Counter[str] = sum((report.events for report in reports), Counter())
    faults: Counter[str] = sum((world.provider.faults for world in worlds), Counter())
    assert (
        min(
            events[name]
            for name in ("cancel", "change_limit", "set_clock", "close", "pause", "ask_on_terms")
        )
        > 10
    )
    troubles = ("busy", "broken", "reset", "stall", "too much", "no credit")
    assert min(faults[name] for name in troubles) > 5
    assert sum(report.crashes for report in reports) > 10


@pytest.mark.parametrize("store", ["memory", "sqlite"])
def test_a_seed_is_the_same_world_every_time(store):
    traces = []
    for _ in range(2):
        told: list[str] = []
        world = World(3, 30, store)
        world.tell = told.append
        world.run()
        traces.append(told)

    assert traces[0] == traces[1]
    assert len(traces[0]) > 50


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize(
    ("store", "seed", "deaths"), [("memory", 5, 1_000), ("sqlite", 11, 32), ("sqlite", 6, 32)]
)
def test_a_crash_at_every_await_of_the_store_loses_nothing(store, seed, deaths, part):
    """The same world again and again, and each time the process dies some awaits later."""
    points = World(seed, 12, store, crash_at=0).run().points
    step = max(1, points // deaths)
    crashes, dies_at = 0, range(1 + part * step, points, PARTS * step)
    for point in dies_at:
        try:
            crashes += World(seed, 12, store, crash_at=point).run().crashes
        except BaseException as exc:
            exc.add_note(f"World({seed}, 12, {store!r}, crash_at={point})")
            raise

    assert points > 40
    assert crashes > len(dies_at) / 3  # in the end nobody dies


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_planted_bug_is_found_within_its_number_of_seeds(mutant):
    with mutant.planted():
        for seed in range(mutant.seeds):
            try:
                World(seed, STEPS, mutant.store).run()
            except Exception:
                return
    pytest.fail(f"{mutant.seeds} seeds did not find: {mutant.name}")
