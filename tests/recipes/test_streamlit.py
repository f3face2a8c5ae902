"""Streamlit runs a page's script anew for each click, each time in another thread."""

from __future__ import annotations

import gc
import threading
import time

import pytest
import streamlit as st
from openai import OpenAI
from streamlit.testing.v1 import AppTest

from scheduler import BlockingScheduler
from tests.processes.harness import wait_for


@pytest.fixture
def page(here, monkeypatch):
    """The page as Streamlit runs it; what its cache keeps is closed in the end."""
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, here.environment[name])
    monkeypatch.chdir(here.path)
    before = set(threading.enumerate())

    def make(limit='"$5/day"'):
        here.write("page.py", limit=limit)
        return AppTest.from_file(str(here.path / "page.py"), default_timeout=30)

    yield make
    for each in gc.get_objects():
        if isinstance(each, BlockingScheduler | OpenAI):
            each.close()
    st.cache_resource.clear()
    assert not [t for t in set(threading.enumerate()) - before if t.name == "scheduler"]


def answers(app):
    return [each.value for each in app.markdown]


def test_each_rerun_asks_through_the_one_scheduler(here, page):
    app = page().run()
    assert not app.exception, app.exception
    assert answers(app) == []

    for number in range(3):
        app.text_input[0].set_value(f"Hi {number}").run()
        assert not app.exception, app.exception
        assert len(answers(app)) == 3
    assert "9 done" in app.caption[0].value
    here.check_books_exactly(9)


def test_two_who_look_at_the_page_share_its_budget_and_its_scheduler(here, page):
    one = page().run()
    two = AppTest.from_file(str(here.path / "page.py"), default_timeout=30).run()
    one.text_input[0].set_value("Hi").run()
    two.text_input[0].set_value("Hello").run()

    assert not one.exception, one.exception
    assert "6 done" in two.caption[0].value
    here.check_books_exactly(6)


def test_a_run_that_waits_goes_on_when_the_limit_is_raised(here, page):
    app = page('"$0.00000001"').run()
    app.text_input[0].set_value("Hi")
    raising = threading.Thread(target=lambda: (here.wait_until_parked(), here.raise_limit()))
    raising.start()
    try:
        app.run()
    finally:
        raising.join()

    assert not app.exception, app.exception
    assert len(answers(app)) == 3
    here.check_books_exactly(3)


def test_a_run_that_nobody_waits_for_any_longer_costs_nothing(here, page):
    app = page('"$0.00000001"')
    path = here.path / "page.py"
    path.write_text(path.read_text().replace('"1m"', '"1s"'))
    app.run()
    started_s = time.monotonic()
    app.text_input[0].set_value("Hi").run()

    (told,) = [each.value for each in app.exception]
    assert "not sent in time" in told
    assert "budget 'default' lacked" in told
    assert time.monotonic() - started_s < 20
    wait_for(lambda: here.waiting() == 0, "the call to end")
    here.check_nothing_was_spent()
