"""Which line adopts what is installed: a table, and what the packages themselves say."""

from __future__ import annotations

import ast
import json
from importlib.metadata import PackageNotFoundError, version

import pytest

from scheduler.cli import adopting
from scheduler.cli.adopting import FAMILIES, TABLE, UNKNOWN, family

LINES = {row.name: row.line for row in TABLE}


@pytest.fixture
def packages(monkeypatch):
    """Pretends that only these are installed: name to version and what they need."""
    known: dict[str, tuple[str, list[str]]] = {}

    def found(name):
        if name not in known:
            raise PackageNotFoundError(name)
        return known[name]

    monkeypatch.setattr(adopting.metadata, "version", lambda name: found(name)[0])
    monkeypatch.setattr(adopting.metadata, "requires", lambda name: found(name)[1])
    return known


@pytest.mark.parametrize(
    "name",
    [
        "openai", "anthropic", "groq", "mistralai", "google-genai", "litellm", "langchain-openai",
        "llama-index", "pydantic-ai-slim", "instructor", "openai-agents", "dspy", "google-adk",
        "crewai", "smolagents", "haystack-ai", "autogen-ext", "inspect_ai", "deepeval", "ragas",
        "huggingface_hub", "boto3", "requests", "aiohttp",
    ],
)  # fmt: skip
def test_there_is_a_line_of_python_for_it_that_uses_the_scheduler(name):
    tree = ast.parse(LINES[name])

    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert "s" in names
    assert "\n" not in LINES[name]


def test_each_package_stands_in_the_table_once_and_sends_through_another_of_it():
    assert len(LINES) == len(TABLE)
    for row in TABLE:
        assert not row.through or row.through in LINES


@pytest.mark.parametrize(
    ("needs", "told"),
    [
        (["httpx2<3,>=2.12", 'aiohttp>=3; extra == "aiohttp"'], "httpx2"),
        (["httpx<1,>=0.23", "distro"], "httpx"),
        (["httpx[http2]>=0.28 ; python_version >= '3.9'"], "httpx"),
        (["pydantic"], UNKNOWN),
        (['httpx2; extra == "all"', "requests~=2.28"], "requests"),
        (["httpx-sse>=0.4", "aiohttp"], "aiohttp"),  # which is not httpx itself
        (None, UNKNOWN),
    ],
)
def test_the_http_family_is_read_from_what_a_package_needs(packages, needs, told):
    packages["openai"] = ("9.9", needs)

    assert family("openai") == told


def test_a_framework_sends_by_what_the_installed_sdk_sends_by(packages):
    packages["langgraph"] = ("1", ["langchain-core"])
    packages["langchain-openai"] = ("1", ["openai>=2"])
    packages["openai"] = ("2.54", ["httpx<1"])

    assert family("langgraph") == "httpx"
    del packages["openai"]
    assert family("langgraph") == UNKNOWN


def test_what_is_not_installed_or_broken_is_left_out(packages):
    packages.update(openai=("3.57", ["httpx2"]), groq=(None, []), requests=("2\n.3\x1b[31m", []))

    found = {each.name: each for each in adopting.installed()}

    assert list(found) == ["openai", "requests"]
    assert found["requests"].version == "2 .3 [31m"
    assert found["requests"].http == "requests"


def test_the_doctor_tells_what_is_installed_and_the_line(cli, tmp_path):
    told = json.loads(cli("doctor", "--json", "--store", tmp_path / "x.db").stdout)
    text = cli("doctor", "--store", tmp_path / "x.db").stdout

    (sdks,) = [row for row in told if row["name"] == "sdks"]
    by_name = {each["name"]: each for each in sdks["adopt"]}
    assert by_name["openai"]["version"] == version("openai")
    assert by_name["openai"]["http"] in FAMILIES
    for each in sdks["adopt"]:
        assert f"{each['name']} {each['version']}, by {each['http']}\n  {each['line']}\n" in text


def test_without_any_sdk_the_doctor_says_so(cli, tmp_path, packages):
    packages["anyio"] = ("4", [])

    told = json.loads(cli("doctor", "--json", "--store", tmp_path / "x.db").stdout)

    assert told[-1]["adopt"] == []
    assert "none is installed" in told[-1]["finding"]
