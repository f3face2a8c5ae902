"""gunicorn's own master and workers, the app preloaded before they are forked."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.processes.harness import wait_for

WORDS = ("-m", "gunicorn", "--workers", "2", "--bind", "127.0.0.1:0")
OPENED_BEFORE = """
from llm import opened, ask
from wsgi import app as answer

opened()


def app(environ, start_response):
    try:
        return answer(environ, start_response)
    except Exception as error:
        start_response("500 No", [("Content-Type", "text/plain")])
        return [str(error).encode()]
"""


def url_of(gunicorn):
    url = gunicorn.wait_for(r"Listening at: (http://\S+)")
    gunicorn.wait_for("Booting worker", 2)
    return url


@pytest.mark.parametrize("words", [("--preload",), ("--preload", "-k", "gthread"), ()])
def test_workers_share_the_budget_and_what_was_imported_before_the_fork_works(here, words):
    here.write("llm.py", "wsgi.py", "gunicorn.conf.py")
    if not words:
        path = here.path / "gunicorn.conf.py"
        path.write_text(path.read_text().replace("preload_app = True", ""))

    with here.started(*WORDS, *words, "wsgi:app") as gunicorn, ThreadPoolExecutor(4) as pool:
        url = url_of(gunicorn)
        answers = list(pool.map(lambda n: httpx.get(f"{url}/?Hi%20{n}", timeout=30), range(12)))
        assert [answer.status_code for answer in answers] == [200] * 12, answers[0].text
        assert all(answer.text for answer in answers)
        assert gunicorn.end() == 0

    here.check_books_exactly(12)


def test_a_raise_from_outside_lets_a_worker_go_on_and_outlives_the_next_one(here):
    here.write("llm.py", "wsgi.py", "gunicorn.conf.py", limit='"$0.00000001"')

    with here.started(*WORDS, "wsgi:app") as gunicorn, ThreadPoolExecutor(1) as pool:
        url = url_of(gunicorn)
        answer = pool.submit(httpx.get, f"{url}/?Hi", timeout=60)
        here.wait_until_parked()
        here.raise_limit()
        assert answer.result().status_code == 200
        gunicorn.process.send_signal(1)  # SIGHUP: new workers, which do not set the limit anew
        gunicorn.wait_for("Booting worker", 4)
        assert httpx.get(f"{url}/?Hi", timeout=30).status_code == 200
    here.check_books_exactly(2)


def test_its_timeout_kills_a_worker_whose_call_is_parked_at_no_cost(here):
    here.write("llm.py", "wsgi.py", "gunicorn.conf.py", limit='"$0.00000001"')
    path = here.path / "gunicorn.conf.py"
    path.write_text(path.read_text().replace("timeout = 0", "timeout = 1"))

    with here.started(*WORDS, "wsgi:app") as gunicorn:
        url = url_of(gunicorn)
        with contextlib.suppress(
            httpx.TransportError
        ):  # a moment later, and its connection is gone
            assert httpx.get(f"{url}/?Hi", timeout=30).status_code == 500
        gunicorn.wait_for("WORKER TIMEOUT")
        gunicorn.wait_for("Booting worker", 3)
        here.check_nothing_was_spent()
        here.raise_limit()
        assert httpx.get(f"{url}/?Hi", timeout=30).status_code == 200
        here.check_books_exactly(1)


def test_threads_do_not_mind_a_parked_call(here):
    here.write("llm.py", "wsgi.py", "gunicorn.conf.py", limit='"$0.00000001"')
    path = here.path / "gunicorn.conf.py"
    path.write_text(path.read_text().replace("timeout = 0", "timeout = 1"))
    words = [*WORDS, "-k", "gthread", "--threads", "4", "wsgi:app"]

    with here.started(*words) as gunicorn, ThreadPoolExecutor(1) as pool:
        url = url_of(gunicorn)
        answer = pool.submit(httpx.get, f"{url}/?Hi", timeout=60)
        here.wait_until_parked()
        threading.Event().wait(2.5)  # longer than the timeout, twice
        assert "WORKER TIMEOUT" not in gunicorn.log.read_text()
        here.raise_limit()
        assert answer.result().status_code == 200


def test_one_that_was_opened_before_the_fork_says_what_to_do(here):
    here.write("llm.py", "wsgi.py")
    (here.path / "early.py").write_text(OPENED_BEFORE)

    with here.started(*WORDS, "--preload", "early:app") as gunicorn:
        answer = httpx.get(f"{url_of(gunicorn)}/?Hi", timeout=30)

    assert answer.status_code == 500
    assert "opened before this process was forked" in answer.text
    assert "nothing was sent. Open one in each process after the fork" in answer.text
    wait_for(lambda: here.provider.bill()["received"] == 0, "nothing")
    here.check_nothing_was_spent()
