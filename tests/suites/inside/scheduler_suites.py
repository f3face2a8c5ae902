"""A pytest plugin that runs within another project's suite and adopts the clients that it makes.

It stands in a folder of its own, since the suites have packages named ``tests``, too. Told by
variables of the environment:

    SUITES_MODE      ``bare``, ``wrapped`` or ``instrumented``
    SUITES_CLIENTS   ``module:Class``, by spaces: whose clients are wrapped
    SUITES_RESULTS   the file that gets a line of JSON for each test
    SUITES_SERVED    places of tests, by spaces, whose requests bring their answers for our server
    SUITES_ONLY      a file of test ids, one a line, if only these are to be run
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from scheduler_suites_answers import bring_answers

import scheduler
from scheduler import Budget, Simulated
from scheduler.adapters import linked
from scheduler.prices.book import PriceBook
from scheduler.prices.tariff import Tariff

MODE = os.environ.get("SUITES_MODE", "bare")
RESULTS = Path(os.environ.get("SUITES_RESULTS", os.devnull))


class AnyPrice(PriceBook):
    """Has a price for every model: suites ask for many that do not exist."""

    def tariff(
        self, price_source: str | None = None, brought: Mapping[str, str] | None = None,
        provider: str | None = None, base_url: str | None = None,
    ) -> Tariff:  # fmt: skip
        return super().tariff(price_source, {"*": "1/1", **(brought or {})}, provider, base_url)


def open_generous() -> Any:
    """A scheduler that has money for everything; in a thread, since suites have loops of theirs."""
    return scheduler.open(
        budgets=Budget("suites", "$1000000000"),
        prices=AnyPrice(),
        providers=Simulated(),  # so that no variable of the environment is read
    )


class Current:
    """The scheduler of the test that runs, so that no test feels the limits another one met.

    A client that outlives tests, or is made between them, is adopted by this one, and so by each
    test's in turn.
    """

    def __init__(self) -> None:
        self.__dict__["made"] = None

    @property
    def __class__(self) -> type:  # type: ignore[override]
        return scheduler.Scheduler

    def __getattr__(self, name: str) -> Any:
        made = self.__dict__["made"]
        if made is None:
            made = self.__dict__["made"] = open_generous()
        return getattr(made.scheduler, name)


current: Any = Current()
making = threading.local()  # .depth: how many constructors and copies deep a thread is


def note(**line: Any) -> None:
    with RESULTS.open("a") as file:
        file.write(json.dumps(line) + "\n")


def adopt(client: Any) -> None:
    """Let a client be what `wrap` gives for it, in the same object, so that nobody has to know."""
    try:
        wrapped = scheduler.Scheduler.wrap(current, client)
    except scheduler.ConfigError as error:
        if "already" not in str(error):  # such as one made of another's HTTP client
            note(refused=type(client).__name__, error=str(error))
        return
    assert wrapped is client, f"a {type(client).__name__} was copied into another object"


_copied: Any = linked._copy


def copy_back(client: Any, inner: Any, shadowed: Any) -> Any:
    """The copy that `wrap` makes of a client, in the client's own place: what is hooked is this."""
    made = _copied(client, inner, shadowed)
    vars(client).clear()
    linked._fill(client, made, shadowed, shadowed)
    return client


def patch(kind: type) -> None:
    """Wrap what its constructor makes, and those of its subclasses; a copy is as its original is."""
    if "__init__" in vars(kind):
        kind.__init__ = _within(kind.__init__, adopt)  # type: ignore[misc]
    for name in ("copy", "with_options"):
        if name in vars(kind):
            setattr(kind, name, _within(vars(kind)[name]))
    for known in kind.__subclasses__():
        patch(known)


def patch_coming(kind: type) -> None:
    """Wrap what those of its subclasses make that are written later."""
    original: Any = kind.__init_subclass__

    def __init_subclass__(cls: type, **options: Any) -> None:
        original.__func__(cls, **options) if hasattr(original, "__func__") else original(**options)
        patch(cls)

    kind.__init_subclass__ = classmethod(__init_subclass__)  # type: ignore[assignment]


def _within(original: Any, then: Callable[[Any], None] | None = None) -> Any:
    """The same function; after the outermost of these, `then` is done with the object."""

    @functools.wraps(original)
    def function(self: Any, *args: Any, **options: Any) -> Any:
        making.depth = getattr(making, "depth", 0) + 1
        try:
            result = original(self, *args, **options)
            if making.depth == 1 and then is not None:
                then(self)
        finally:
            making.depth -= 1
        return result

    return function


def is_controller(config: pytest.Config) -> bool:
    """Whether others run the tests for this process."""
    return not hasattr(config, "workerinput") and bool(getattr(config.option, "numprocesses", 0))


@pytest.hookimpl(trylast=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """After the suite's own settings, some of which must come before its SDK is imported."""
    if is_controller(session.config):
        return
    served = tuple(os.environ.get("SUITES_SERVED", "").split())
    if MODE == "instrumented":
        session.config.stash[_UNDO] = scheduler.instrument(current)
    for target in os.environ["SUITES_CLIENTS"].split():
        module, _, name = target.partition(":")
        kind = getattr(importlib.import_module(module), name)
        if served:
            bring_answers(kind, served)
        if MODE == "wrapped":
            linked._copy = copy_back
            patch(kind)
            patch_coming(kind)


_UNDO: pytest.StashKey[Any] = pytest.StashKey()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    undo = session.config.stash.get(_UNDO, None)
    if undo is not None:
        undo()
    end_scheduler()


def end_scheduler() -> None:
    made, vars(current)["made"] = vars(current)["made"], None
    if made is not None:
        made.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Iterator[None]:
    try:
        return (yield)
    finally:
        end_scheduler()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    only = os.environ.get("SUITES_ONLY")
    if only:
        wanted = set(Path(only).read_text().splitlines())
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in wanted])
        items[:] = [item for item in items if item.nodeid in wanted]


class Recorder:
    """Writes down how each test ended, where the reports of all of them arrive."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:
            return
        crash = getattr(report.longrepr, "reprcrash", None)
        error = crash.message if crash is not None else report.longreprtext
        note(
            id=report.nodeid, when=report.when, outcome=report.outcome,
            error=error if report.failed else "", text=report.longreprtext if report.failed else "",
        )  # fmt: skip

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            note(id=report.nodeid, when="collect", outcome="failed",
                 error=report.longreprtext, text=report.longreprtext)  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(), "suites-recorder")
