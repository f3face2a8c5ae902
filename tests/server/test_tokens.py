"""Tokens: what their clients can do, and what they cannot."""

import asyncio
import json

import pytest

from scheduler.errors import ConfigError
from scheduler.server.asked import read_asked
from scheduler.server.tokens import (
    FRESH_S,
    Token,
    Tokens,
    digest_of,
    keep,
    kept,
    make_token,
    revoke,
)
from scheduler.stores import open_store
from tests.server.conftest import ASKED, wait_for

pytestmark = pytest.mark.filterwarnings("default")

BOUND = Token("ann", "", ("team",), {"user": "ann"}, "batch")


def test_what_a_token_says_stays():
    asked = read_asked(
        {"x-scheduler-tags": "page=home,user=ann", "x-scheduler-priority": "interactive",
         "x-scheduler-budget": "team", "x-scheduler-job": "j"},
        BOUND, 0,
    )  # fmt: skip

    assert asked.marks == {
        "budget": "team", "priority": "batch", "job": "j", "tags": {"page": "home", "user": "ann"},
    }  # fmt: skip
    assert read_asked({}, BOUND, 0).marks == {
        "budget": "team",
        "priority": "batch",
        "tags": {"user": "ann"},
    }
    assert read_asked({"x-scheduler-priority": "idle"}, BOUND, 0).marks["priority"] == "idle"


@pytest.mark.parametrize(
    ("header", "text"), [("budget", "other"), ("budget", "team,other"), ("tags", "user=bob")]
)
def test_a_forged_one_is_refused_rather_than_overlooked(header, text):
    with pytest.raises(ConfigError, match=r"'ann'.*nothing was sent"):
        read_asked({f"x-scheduler-{header}": text}, BOUND, 0)


@pytest.mark.parametrize(
    ("name", "more"), [("", {}), ("a b", {}), ("a" * 65, {}), ("a", {"tags": {"x y": "1"}}),
                       ("a", {"priority": "first"}), ("a", {"tags": {"x": ""}})],
)  # fmt: skip
def test_what_cannot_be_one_is_not_made(name, more):
    with pytest.raises(ConfigError):
        make_token(name, **more)


async def test_none_is_called_like_those_that_are_not_kept():
    store = open_store(None)
    await store.open(0)
    token, _ = make_token("one-time")
    with pytest.raises(ConfigError, match="a gateway's own"):
        await keep(store, token)


async def test_one_is_known_by_its_hash_until_it_is_revoked_or_over():
    store = open_store(None)
    await store.open(0)
    token, secret = make_token("ann", budgets=["team"], now_ms=5, expires_at_ms=100)
    tokens = Tokens(store)

    assert await tokens.find(secret, 10, 0.0) is None  # not kept yet
    assert await keep(store, token)
    assert not await keep(store, make_token("ann")[0])  # the name is taken
    assert await kept(store) == [token]
    assert await tokens.find(secret, 10, 0.5) == token  # looked for again
    assert await tokens.find(f"{secret}x", 10, 0.6) is None
    assert await tokens.find(digest_of(secret), 10, 0.8) is None
    assert await tokens.find(secret, 100, 1.0) is None  # over
    assert await revoke(store, "ann")
    assert not await revoke(store, "ann")
    assert await tokens.find(secret, 10, 9.0) is None
    await store.aclose()


async def test_while_nobody_asks_nothing_is_read():
    store, reads = open_store(None), []
    await store.open(0)
    notes = store.notes

    async def counted(kind):
        reads.append(kind)
        return await notes(kind)

    store.notes = counted
    token, secret = make_token("ann")
    await keep(store, token)
    tokens = Tokens(store)
    for at_s in (0.0, 0.1, 0.9, 1.5):
        assert await tokens.find(secret, 0, at_s) == token

    assert len(reads) == 2
    await store.aclose()


async def test_of_many_that_ask_at_once_one_reads():
    store, reads = open_store(None), []
    await store.open(0)
    notes = store.notes

    async def counted(kind):
        reads.append(kind)
        await asyncio.sleep(0)
        return await notes(kind)

    store.notes = counted
    token, secret = make_token("ann")
    await keep(store, token)
    tokens = Tokens(store)
    found = await asyncio.gather(*(tokens.find(secret, 0, 0.0) for _ in range(50)))
    strangers = await asyncio.gather(*(tokens.find(f"x{n}", 0, 0.5) for n in range(50)))

    assert found == [token] * 50
    assert strangers == [None] * 50
    assert len(reads) == 2
    await store.aclose()


@pytest.mark.parametrize("base", ["", "/openai", "/at/openai", "/at/x/openai"])
def test_no_path_leads_round_what_a_token_is_bound_to(start, provider, base):
    made = start(provider)
    made.cli("budget", "set", "small", "$1", "--create")
    told = json.loads(made.cli("token", "create", "ann", "--budget", "small", "--json"))
    bearer = {"authorization": f"Bearer {told['token']}"}
    google = {"contents": [{"parts": [{"text": "hi"}]}], "generationConfig": {"maxOutputTokens": 9}}
    calls = [("/v1/chat/completions", ASKED), ("/v1/messages", ASKED),
             ("/v1beta/models/sim-small:generateContent", google)]  # fmt: skip
    for path, body in calls:
        assert made.ask(body, base + path, **bearer).status == 200
        assert made.ask(body, base + path, **bearer, x_scheduler_budget="default").status == 400

    assert float(made.settled("small")["posted_usd"]) == pytest.approx(0.029)
    assert float(made.budget("default")["posted_usd"]) == 0


def test_made_listed_and_revoked_by_commands(start, provider):
    made = start(provider, budget="$0.25")
    made.cli("budget", "set", "small", "$0.15", "--create")
    told = json.loads(made.cli("token", "create", "ann", "--budget", "small", "--tag", "user=ann",
                               "--expires", "30d", "--json"))  # fmt: skip
    secret = told["token"]

    assert "small" in made.cli("token", "list")
    assert secret not in made.cli("token", "list", "--json")
    assert secret.encode() not in (made.folder / "s.db").read_bytes()
    assert "there is one named" in made.cli("token", "create", "ann", ok=False)
    assert "no budget is named" in made.cli("token", "create", "bob", "--budget", "x", ok=False)

    bearer = {"authorization": f"Bearer {secret}"}
    assert made.ask(**bearer).status == 200  # made while the gateway runs
    assert float(made.settled("small")["posted_usd"]) == 0.01
    assert float(made.budget("default")["posted_usd"]) == 0
    forged = made.ask(**bearer, x_scheduler_budget="default")
    assert forged.status == 400
    assert "bound to 'small'" in forged.error["message"]
    assert made.ask(**bearer, x_scheduler_tags="user=bob").status == 400

    made.cli("token", "revoke", "ann")
    wait_for(lambda: made.ask(**bearer).status == 401, "it to be taken no more")
    assert "none named" in made.cli("token", "revoke", "ann", ok=False)


def test_with_tokens_made_there_is_no_other(start, provider):
    made = start(provider)
    told = json.loads(made.cli("token", "create", "ann", "--json"))
    one_time = made.token
    made.end()
    made.start()

    assert made.token is None
    assert made.ask(authorization=f"Bearer {one_time}").status == 401
    assert made.ask(authorization=f"Bearer {told['token']}").status == 200


async def test_what_a_revoked_one_has_held_is_not_sent(start, provider):
    made = start(provider, budget="$0.05")
    told = json.loads(made.cli("token", "create", "ann", "--json"))
    bearer = {"authorization": f"Bearer {told['token']}", "x_scheduler_wait": "forever"}
    asking = asyncio.create_task(asyncio.to_thread(made.ask, **bearer))
    await asyncio.to_thread(wait_for, lambda: made.states().get("parked") == 1, "it to be parked")
    before = provider.billed()["received"]
    await asyncio.to_thread(made.cli, "token", "revoke", "ann")
    await asyncio.sleep(FRESH_S + 0.1)
    await asyncio.to_thread(made.cli, "budget", "set", "default", "$1")
    answer = await asking

    assert answer.status == 401
    assert "not taken any more" in answer.error["message"]
    assert provider.billed()["received"] == before
    assert float(made.budget()["posted_usd"]) == float(made.budget()["reserved_usd"]) == 0
