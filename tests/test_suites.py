"""What the runner of other projects' suites makes of their results."""

from __future__ import annotations

import http.client
import importlib
import json
import threading
from datetime import datetime
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Annotated, Generic, Literal, Optional, TypeVar

import pytest
from pydantic import BaseModel, Field

from scheduler.adapters import linked
from scheduler.adapters.shadow import Budgeted
from tests.suites import reasons, report
from tests.suites.catalogue import Suite, load
from tests.suites.catalogue import read as read_catalogue
from tests.suites.difference import ABSENT, Verdict, candidates, judge, settled, stale
from tests.suites.inside.scheduler_suites_answers import bring_answers, example
from tests.suites.reasons import Reason
from tests.suites.results import Outcome, Results, read
from tests.suites.serving import Echo


def line(name, outcome="passed", when="call", error="", text=""):
    return json.dumps({"id": name, "when": when, "outcome": outcome, "error": error, "text": text})


def results(**words):
    return Results({name: Outcome(word) for name, word in words.items()})


# Results


def test_results_are_read_by_test():
    found = read([line("a"), line("b", "failed", error="E\nassert 1 == 2"), line("c", "skipped")])

    assert found.passed == {"a"}
    assert found.tests["b"].last_line == "E"
    assert found.tests["c"].word == "skipped"


def test_a_test_whose_teardown_fails_has_failed():
    found = read([line("a"), line("a", "failed", when="teardown", error="left open")])

    assert found.passed == set()
    assert found.tests["a"].last_line == "left open"


def test_a_teardown_does_not_mend_what_failed():
    found = read([line("a", "failed", error="wrong"), line("a", "skipped", when="teardown")])

    assert found.tests["a"].last_line == "wrong"


def test_what_cannot_be_collected_and_what_wrap_refuses_are_no_tests():
    refused = json.dumps({"refused": "AzureOpenAI", "error": "not this one"})
    found = read([
        line("tests/x.py", "failed", when="collect", text="No module"), refused, refused, "\n",
    ])  # fmt: skip

    assert found.tests == {}
    assert found.broken == {"tests/x.py": "No module"}
    assert found.refused == {"AzureOpenAI: not this one": 2}


@pytest.mark.parametrize(
    ("error", "told"),
    [
        ("\n  boom  \nmore", "boom"),
        ("", "no error was told"),
        ("x" * 999, "x" * 300),
    ],
)
def test_an_error_is_told_in_a_line(error, told):
    assert Outcome("failed", error).last_line == told


# Difference


def test_only_what_passed_bare_can_differ():
    bare = results(a="passed", b="passed", c="failed", d="skipped", e="passed")
    adopted = results(a="passed", b="failed", c="failed", d="failed", f="failed")

    assert candidates(bare, adopted) == {"b", "e"}


def test_what_is_fickle_is_no_difference():
    found = {"steady", "fickle bare", "fickle adopted", "gone"}
    again = results(**{"steady": "passed", "fickle adopted": "passed", "gone": "passed",
                       "fickle bare": "failed"})  # fmt: skip
    adopted = results(**{"steady": "failed", "fickle adopted": "passed", "fickle bare": "failed"})

    assert settled(found, again, adopted) == {"gone": ABSENT, "steady": Outcome("failed")}


def test_differences_get_the_first_reason_that_meets_them():
    known = [
        Reason("x", "tests/a.py::*", "seen", "wrapped"),
        Reason("x", "*", "all"),
        Reason("y", "*", "another's"),
    ]
    outcomes = {"tests/a.py::one[1-2]": Outcome("failed")}

    assert judge("x", "wrapped", outcomes, known)[0].reason == "seen"
    assert judge("x", "instrumented", outcomes, known)[0].reason == "all"
    assert judge("z", "wrapped", outcomes, known)[0].reason is None


def test_reasons_that_nothing_needs_are_found():
    known = [Reason("x", "a*", "one"), Reason("x", "b", "two", "wrapped"), Reason("y", "b", "else")]
    found = judge("x", "instrumented", {"a1": Outcome("failed"), "b": Outcome("failed")}, known)

    assert stale("x", found, known) == [known[1]]


def test_a_test_that_is_ours_one_way_is_ours():
    known = [Reason("x", "a", "natural", "wrapped"), Reason("x", "b", "natural")]
    verdict = verdict_of(known)

    assert verdict.ours == {"a"}
    assert verdict.by_nature == {"b"}


def verdict_of(known):
    failed = Outcome("failed", "AssertionError: 1\nmore", "where")
    differences = [
        *judge("x", "wrapped", {"a": failed, "b": failed}, known),
        *judge("x", "instrumented", {"a": failed}, known),
    ]
    adopted = {"wrapped": 1198, "instrumented": 1199}
    return Verdict("x", "1.2", 1234, 1200, adopted, differences, {})


# Reasons


def test_a_pattern_has_stars_and_no_other_signs():
    reason = Reason("x", "tests/*.py::test[a.b-*]", "why")

    assert reason.meets("tests/lib/t.py::test[a.b-1]")
    assert not reason.meets("tests/lib/t.py::test[axb-1]")
    assert not reason.meets("tests/lib/t.py::test[a.b-1]::more")


def test_reasons_are_read():
    text = """
    [[test]]
    suite = "x"
    ids = ["a", "b*"]
    mode = "wrapped"
    reason = "  so it is  "
    """

    assert reasons.read(text) == [
        Reason("x", "a", "so it is", "wrapped"), Reason("x", "b*", "so it is", "wrapped"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ('suite = "x"\nids = ["a"]', "lacks"),
        ('suite = "x"\nids = ["a"]\nreason = " "', "no reason"),
        ('suite = "x"\nids = []\nreason = "r"', "no ids"),
        ('suite = "x"\nids = ["a"]\nreason = "r"\nmode = "wraped"', "wraped"),
        ('suite = "x"\nids = ["a"]\nreason = "r"\nwhy = "r"', "why"),
    ],
)
def test_a_reason_that_is_not_whole_is_refused(entry, told):
    with pytest.raises(ValueError, match=told):
        reasons.read(f"[[test]]\n{entry}")


# Report


def test_the_report_says_who_differs_and_why():
    verdicts = [verdict_of([Reason("x", "b", "it counts sockets")])]

    assert report.table(verdicts).splitlines()[1].split() == [
        "x", "1.2", "1,234", "1,200", "1,198", "1,199", "1", "1",
    ]  # fmt: skip
    assert "| x | 1.2 | 1,234 | 1,200 | 1,198 | 1,199 | 1 | 1 |" in report.markdown(verdicts)
    assert "- it counts sockets (1)" in report.markdown(verdicts)
    assert report.listing(verdicts[0].differences).split() == [
        "wrapped", "a", "AssertionError:", "1", "instrumented", "a", "AssertionError:", "1",
    ]  # fmt: skip
    data = json.loads(json.dumps(report.as_data(verdicts[0])))
    assert data["ours"] == ["a"]
    assert report.from_data(data) == verdicts[0]


def test_the_report_stands_between_its_markers():
    page = f"before\n{report.BEGIN}\nold\n{report.END}\nafter"

    once = report.spliced(page, "new")

    assert once == f"before\n{report.BEGIN}\n\nnew\n\n{report.END}\nafter"
    assert report.spliced(once, "new") == once
    with pytest.raises(ValueError, match="no <!--"):
        report.spliced("a page", "new")


# What there is


def test_the_catalogue_and_the_reasons_fit_each_other():
    suites = load()
    known = reasons.read((reasons_file()).read_text())

    assert {reason.suite for reason in known} <= set(suites)
    assert all(":" in client for suite in suites.values() for client in suite.clients)


def reasons_file():
    from tests.suites.__main__ import BY_NATURE

    return BY_NATURE


def test_a_suite_is_read_with_defaults():
    assert read_catalogue(
        '[one]\nclients = ["one:Client"]\n[two]\npackage = "2"\nclients = []'
    ) == {
        "one": Suite("one", "one", ("one:Client",)),
        "two": Suite("two", "2", ()),
    }
    with pytest.raises(TypeError):
        read_catalogue('[one]\nclients = []\nclint = "a"')


# A server for tests that need one

T = TypeVar("T")


class Part(BaseModel):
    kind: Literal["part", "piece"]
    at: datetime
    size: int = 3
    next: Part | None


class Page(BaseModel, Generic[T]):
    data: list[T]
    first: T = Field(alias="firstOne")


class Endless(BaseModel):
    more: Endless


PART = {"kind": "part", "at": "2019-12-27T18:11:19.117Z", "next": None}


@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        (Part, PART),
        (Page[Part], {"data": [], "firstOne": PART}),
        (Annotated[Endless | Part, "by kind"], PART),
        (Optional[Part], None),  # noqa: UP045
        (list[Part], []),
        (dict[str, Part], {}),
        (str | int, "string"),
        (object, {}),
        (type(None), None),
    ],
)
def test_an_answer_is_of_the_type_that_is_expected(kind, answer):
    assert example(kind) == answer


def test_an_answer_without_end_is_an_error():
    with pytest.raises(ValueError, match="too deep"):
        example(Endless)


class Options(BaseModel):
    headers: object = None


class Caller:
    def request(self, cast_to, options, **more):
        return options.headers


@pytest.mark.parametrize(
    ("cast_to", "more", "type_", "body"),
    [
        (Part, {}, "application/json", json.dumps(PART).encode()),
        (str, {}, "text/plain", b'"string"'),
        (int, {"stream": True}, "text/event-stream", b"data: 1\n\n"),
    ],
)
def test_a_request_brings_its_answer_along(cast_to, more, type_, body, echo):
    class Client(Caller):
        pass

    bring_answers(Client, ("tests/test_suites.py",))
    headers = Client().request(cast_to, Options(headers={"X-Own": "1"}), **more)
    echo.request("POST", "/v1/things", body=b"{}", headers=headers)
    response = echo.getresponse()

    assert headers["X-Own"] == "1"
    assert (response.headers["content-type"], response.read()) == (type_, body)


def test_a_request_of_another_place_brings_none():
    class Client(Caller):
        pass

    bring_answers(Client, ("tests/api_resources",))

    assert Client().request(Part, Options()) is None


def test_the_server_takes_in_what_is_sent_in_chunks(echo):
    for _ in range(2):  # on one connection
        echo.request("POST", "/", body=iter([b"one", b"two"]), encode_chunked=True,
                     headers={"transfer-encoding": "chunked"})  # fmt: skip
        assert echo.getresponse().read() == b""


@pytest.fixture
def echo():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    connection = http.client.HTTPConnection(*server.server_address)
    try:
        yield connection
    finally:
        connection.close()
        server.shutdown()
        thread.join()
        server.server_close()


def test_an_adopted_client_is_the_same_object_and_its_own_methods_know_it(monkeypatch):
    import openai

    monkeypatch.syspath_prepend(str(Path(__file__).parent / "suites" / "inside"))
    plugin = importlib.import_module("scheduler_suites")
    monkeypatch.setattr(linked, "_copy", plugin.copy_back)
    client, completions = openai.OpenAI(api_key="k", base_url="http://h"), None
    try:
        completions = client.chat.completions
        plugin.adopt(client)

        assert isinstance(client._client, Budgeted)
        assert client.request.args[0].client is client
        assert client.chat.completions._client is client
        assert client.chat.completions is not completions
    finally:
        plugin.end_scheduler()
        client.close()
