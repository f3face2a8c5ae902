"""Celery's own worker, prefork, with a broker of files: no server is needed."""

from __future__ import annotations

import contextlib
import time

import pytest

from tests.processes.harness import wait_for

WORKER = ("-m", "celery", "-A", "tasks", "worker", "--pool", "prefork", "--loglevel", "INFO")
SEND = """
import sys
from celery.exceptions import TimeoutError
import tasks
name, text, options = sys.argv[1], sys.argv[2], eval(sys.argv[3])
result = getattr(tasks, name).apply_async((text,), **options)
if "--forget" not in sys.argv:
    try:
        print(result.get(timeout=80))
    except Exception as error:
        print(type(error).__name__, error)
"""


@pytest.fixture
def tasks(here):
    """The recipe, its broker in a folder."""
    box = here.path / "box"
    box.mkdir()
    (here.path / "results").mkdir()
    here.write("llm.py", "tasks.py")
    options = {
        "data_folder_in": str(box), "data_folder_out": str(box), "control_folder": str(box / "c"),
    }  # fmt: skip
    with (here.path / "tasks.py").open("a") as file:
        file.write(f"\napp.conf.broker_transport_options = {options!r}\n")
    return here


def places(here):
    return {"BROKER": "filesystem://", "BACKEND": f"file://{here.path}/results"}


@contextlib.contextmanager
def worker(here, *words, concurrency=2):
    with here.started(
        *WORKER, "--concurrency", str(concurrency), *words, **places(here)
    ) as started:
        started.wait_for("(ready)")
        yield started


def send(here, name, text="Hi", options=None, *words):
    done = here.run("-c", SEND, name, text, repr(options or {}), *words, **places(here))
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_processes_share_a_budget_and_end_in_order(tasks):
    with worker(tasks) as celery:
        for number in range(8):
            send(tasks, "summarise", f"text {number}", None, "--forget")
        assert send(tasks, "summarise").strip()
        wait_for(lambda: tasks.provider.bill()["calls"] == 9, "all answers")
        tasks.wait_until_parked(0)
        assert celery.end() == 0
    tasks.check_books_exactly(9)


def test_a_task_that_is_delivered_again_is_not_paid_again(tasks):
    with worker(tasks):
        first = send(tasks, "label", "Hi", {"task_id": "t-1"})
        again = send(tasks, "label", "Hi", {"task_id": "t-1"})
        other = send(tasks, "label", "Hi", {"task_id": "t-2"})

    assert first == again != ""
    assert other.strip()
    tasks.check_books_exactly(2)


def test_delivered_twice_at_a_time_it_is_paid_once(tasks):
    tasks.write("llm.py", limit='"$0.00000001"')
    with worker(tasks):
        send(tasks, "label", "Hi", {"task_id": "t-1"}, "--forget")
        tasks.wait_until_parked()
        send(tasks, "label", "Hi", {"task_id": "t-1"}, "--forget")
        time.sleep(1)  # as when the broker's visibility timeout is over
        tasks.raise_limit()
        assert send(tasks, "label", "Hi", {"task_id": "t-1"}).strip()

    tasks.check_books_exactly(1)


def test_a_parked_task_goes_on_when_the_limit_is_raised(tasks):
    tasks.write("llm.py", limit='"$0.00000001"')
    with worker(tasks):
        send(tasks, "summarise", "Hi", {"task_id": "t-1"}, "--forget")
        tasks.wait_until_parked()
        tasks.check_nothing_was_spent()
        tasks.raise_limit()
        wait_for(lambda: tasks.provider.bill()["calls"] == 1, "the answer")
    tasks.check_books()


@pytest.mark.parametrize("task", ["summarise", "label"])
def test_a_soft_time_limit_ends_a_parked_task_at_no_cost(tasks, task):
    tasks.write("llm.py", limit='"$0.00000001"')
    with worker(tasks):
        told = send(tasks, task, "Hi", {"soft_time_limit": 1})

        assert told.startswith("SoftTimeLimitExceeded"), told
        tasks.check_nothing_was_spent()
        tasks.wait_until_parked(0)
        tasks.raise_limit()  # and its process goes on
        assert send(tasks, "summarise").strip()
        tasks.check_books_exactly(1)


def test_a_time_limit_kills_a_parked_task_at_no_cost_and_the_next_one_goes_on(tasks):
    tasks.write("llm.py", limit='"$0.00000001"')
    with worker(tasks, concurrency=1) as celery:
        told = send(tasks, "summarise", "Hi", {"time_limit": 1})

        assert told.startswith("TimeLimitExceeded"), told
        celery.wait_for("exited with 'signal")  # it is told first, and killed then
        tasks.check_nothing_was_spent()
        tasks.raise_limit()
        assert send(tasks, "summarise").strip()
        tasks.check_books_exactly(1)
