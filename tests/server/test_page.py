"""The page's server: whom it lets in, what it tells, what it changes, and that it notes who did."""

from __future__ import annotations

import asyncio
import json
import threading
from itertools import pairwise

import httpx
import pytest

from scheduler.admission.fairness import Fairness
from scheduler.budget import Budget
from scheduler.errors import StoreError
from scheduler.rehearsal import finish
from scheduler.server.page import Desk, page_app
from scheduler.server.page.day import Day
from scheduler.server.page.feed import Feed
from scheduler.server.page.figures import shown
from scheduler.server.page.forecast import Forecast
from scheduler.server.page.guard import COOKIE, Keys
from scheduler.stores.acts import KEPT, Act, note, noted
from scheduler.stores.base import Outcome
from scheduler.stores.memory.store import MemoryStore
from scheduler.stores.sqlite import SqliteStore
from tests.conftest import until
from tests.stores.conformance import FAILED, T0, Bench, end, new, post

pytestmark = pytest.mark.anyio
OWN = "http://127.0.0.1:8000"


class Page:
    """A page of a store, and a browser that may see it."""

    def __init__(self, store, *, may_change=True):
        self.bench = Bench(store)
        self.keys = Keys()
        self.desk = Desk(
            store, "postgresql://me:secret@db/x", may_change=may_change,
            now_ms=lambda: self.bench.now_ms,
        )  # fmt: skip
        self.app = page_app(self.desk, self.keys)
        self.browser = self.another()

    def another(self, base=OWN):
        transport = httpx.ASGITransport(self.app, client=("127.0.0.1", 5))
        return httpx.AsyncClient(transport=transport, base_url=base)

    async def enter(self):
        answer = await self.browser.get("/", params={"token": self.keys.link()})
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        return answer

    async def get(self, path):
        return (await self.browser.get(path)).json()

    async def post(self, path, body, origin=OWN):
        headers = {} if origin is None else {"origin": origin}
        content = body if isinstance(body, bytes) else json.dumps(body)
        return await self.browser.post(path, content=content, headers=headers)


@pytest.fixture(params=["memory", "sqlite"])
async def page(request, tmp_path):
    store = MemoryStore() if request.param == "memory" else SqliteStore(tmp_path / "s.db")
    await store.open(T0)
    made = Page(store)
    await made.bench.define(Budget("team", "$0.0000001/day"))
    await made.enter()
    yield made
    await made.browser.aclose()
    await store.aclose()


# Whom it lets in


@pytest.mark.parametrize("path", ["/", "/page.js", "/api/picture", "/events", "/api/acts"])
async def test_without_the_link_nothing_is_shown(page, path):
    answer = await page.another().get(path)

    assert answer.status_code == 403
    assert "link" in answer.text


async def test_a_link_is_good_for_one_browser(page):
    link = page.keys.link()
    assert (await page.another().get("/", params={"token": link})).status_code == 303
    assert (await page.another().get("/", params={"token": link})).status_code == 403
    assert (await page.another().get("/", params={"token": "guess"})).status_code == 403
    assert (await page.browser.get("/")).status_code == 200  # whoever was in stays in


async def test_another_link_is_told_when_one_was_used():
    told = []
    keys = Keys(lambda: told.append("used"))
    assert keys.exchange("guess") is None
    assert keys.exchange(keys.link()) is not None
    assert told == ["used"]


async def test_the_cookie_is_of_this_page_alone(page):
    answer = await page.another().get("/", params={"token": page.keys.link()})
    cookie = answer.headers["set-cookie"]

    assert cookie.startswith(f"{COOKIE}=")
    assert "HttpOnly" in cookie
    assert "samesite=strict" in cookie.lower()


async def test_a_link_that_comes_with_a_cookie_leaves_the_address_bar(page):
    answer = await page.browser.get("/", params={"token": "old"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/")


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example:80", ""]
)
async def test_another_name_that_points_here_is_refused(page, host):
    answer = await page.browser.get("/api/picture", headers={"host": host})
    assert answer.status_code == 421


@pytest.mark.parametrize(
    "host", ["localhost:8000", "127.0.0.1:1", "[::1]:8000", "LOCALHOST", "[::1]"]
)
async def test_loopbacks_names_are_its_own(page, host):
    answer = await page.browser.get("/api/picture", headers={"host": host})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "origin", [None, "http://evil.example", "http://127.0.0.1:8001", "null", ""]
)
async def test_a_change_is_taken_from_the_page_itself_only(page, origin):
    answer = await page.post("/api/budgets/1", {"limit": "$5"}, origin)

    assert answer.status_code == 403
    (status,) = await page.bench.store.budgets(T0)
    assert status.budget.text == "$0.0000001/day"


async def test_nothing_from_elsewhere_is_loaded_and_no_frame_shows_it(page):
    answer = await page.browser.get("/")
    rules = answer.headers["content-security-policy"]

    assert "default-src 'none'" in rules
    assert "frame-ancestors 'none'" in rules
    assert answer.headers["cache-control"] == "no-store"
    for name in ("/", "/page.css", "/page.js", "/chart.js", "/icon.svg"):
        text = (await page.browser.get(name)).text.replace("http://www.w3.org/2000/svg", "")
        assert "http:" not in text
        assert "https:" not in text
        assert "innerHTML" not in text


# What it tells


async def test_it_shows_what_waits_why_and_what_was_spent(page):
    bench, team = page.bench, page.bench.ids["team"]
    done, _ = (
        await bench.submit(new([team], 40), new([team], 50), new([team], 70, key="k"))
    ).claimed
    bench.now_ms += 1_000
    await bench.settle(post(done, 30))

    told = await page.get("/api/picture")

    assert told["store"] == "postgresql://***@db/x"
    assert (told["counts"]["running"], told["counts"]["parked"], told["counts"]["succeeded"]) == (
        1,
        1,
        1,
    )
    (budget,) = told["budgets"]
    (cap,) = budget["caps"]
    assert (cap["limit"], cap["posted"], cap["reserved"], cap["available"]) == (100, 30, 50, 20)
    assert cap["said"]["posted"] == "$0.00000003"
    parked = told["standing"][-1]
    assert (parked["state"], parked["requests"], parked["oldest_at_ms"]) == ("parked", 1, T0)
    assert "team" in parked["why"]
    (model,) = told["models"]
    assert (model["calls"], model["of_ceiling"]) == (1, 0.75)
    assert 900 < model["p50_ms"] < 1_100
    assert told["throughput"] == [[T0 - T0 % 900_000, 1]]


async def test_it_shows_what_was_spent_by_tags(page):
    bench = page.bench
    result = await bench.submit(
        *[new([], 40, tags={"user": user, "page": "home"}) for user in ("ann", "bob", "ann")],
        *[new([], 1, tags={"doc": f"{n:02}"}) for n in range(27)],
    )
    await bench.settle(*[post(each, 30) for each in result.claimed[:3]])
    await bench.settle(*[post(each, 1) for each in result.claimed[3:]])

    user, home, doc = (await page.get("/api/picture"))["tags"]

    assert [each["tag"] for each in (user, home, doc)] == ["user", "page", "doc"]
    assert [(row["name"], row["posted"]) for row in user["values"]] == [("ann", 60), ("bob", 30)]
    assert (len(doc["values"]), doc["more"], user["more"]) == (25, 2, 0)


async def test_it_shows_who_shares_with_whom(page):
    assert (await page.get("/api/picture"))["tenants"] == []
    page.bench.store.share(Fairness("user", {"ann": 3}))

    def of(user):
        made = new([], 20, tags={"user": user})
        made.lane = made.lane._replace(tenant=user)
        return made

    await page.bench.submit(*[of("ann")] * 3, of("bob"), of("bob"), slots=4)

    told = (await page.get("/api/picture"))["tenants"]

    assert [(row["tenant"], row["weight"], row["waiting"], row["share"]) for row in told] == [
        ("ann", 3.0, 0, 0.75), ("bob", 1.0, 1, 0.25),
    ]  # fmt: skip


async def test_when_all_will_be_done_is_worked_out_beside_and_not_for_each_look(page, monkeypatch):
    bench, rehearsals, go = page.bench, [], threading.Event()

    def rehearse(scene, most):
        rehearsals.append(threading.current_thread())
        assert go.wait(30)
        return finish(scene, most=most)

    monkeypatch.setattr("scheduler.server.page.forecast.finish", rehearse)
    assert (await page.get("/api/picture"))["finish"] is None  # nothing waits
    assert rehearsals == []
    await bench.submit(new([], 30), new([], 30), slots=0)

    for _ in range(3):  # it is not waited for
        assert (await page.get("/api/picture"))["finish"] is None
    go.set()
    while (told := (await page.get("/api/picture"))["finish"]) is None:
        await asyncio.sleep(0.01)

    assert (told["requests"], told["calls"]) == (2, 0)
    assert bench.now_ms <= told["early_ms"] <= told["likely_ms"] <= told["late_ms"]
    assert bench.now_ms < told["likely_ms"]
    (thread,) = rehearsals
    assert thread is not threading.current_thread()
    assert (await page.get("/api/picture"))["finish"] == told


async def test_another_rehearsal_comes_after_a_while_and_a_store_that_fails_is_no_end(page):
    at_s = [0.0]
    ahead = Forecast(page.bench.store, lambda: page.bench.now_ms, lambda: at_s[0])
    await page.bench.submit(new([], 30), slots=0)

    async def look():
        ahead.look(1)
        task = ahead._task
        await task
        return task

    first = await look()
    assert ahead.look(1).requests == 1
    at_s[0] = 9.9
    assert await look() is first
    at_s[0] = 10.0

    async def broken(most=2000):
        raise StoreError("the disk is full")

    page.bench.store.queued = broken
    second = await look()
    assert second is not first
    assert ahead.look(1).requests == 1  # as last known
    assert ahead.look(0) is None


async def test_sums_that_take_long_to_read_are_not_read_for_each_look(page):
    at_s, took_s, reads = [0.0], [0.04], []
    day = Day(page.bench.store, lambda: at_s[0])

    async def durations(since_ms):
        reads.append(since_ms)
        at_s[0] += took_s[0]
        return []

    page.bench.store.durations = durations
    for _ in range(3):
        await day.look(T0)
    assert len(reads) == 3
    took_s[0] = 0.5
    for _ in range(3):
        await day.look(T0)
    assert len(reads) == 4
    at_s[0] += 10.1
    await day.look(T0)
    assert len(reads) == 5
    assert set(reads) == {T0 - 86_400_000}


async def test_one_request_is_shown_with_its_attempts(page):
    bench = page.bench
    (claimed,) = (await bench.submit(new([bench.ids["team"]], 40, key="k", job="j"))).claimed

    row = await page.get(f"/api/requests/{claimed.request_id}")

    assert (row["key"], row["job"], row["state"]) == ("k", "j", "running")
    (attempt,) = row["tries"]
    assert (attempt["state"], attempt["ceiling"], attempt["cost"]) == (
        "pending",
        "$0.00000004",
        None,
    )
    assert (await page.browser.get("/api/requests/999")).status_code == 404


async def test_requests_come_in_pages(page):
    await page.bench.submit(*[new([], key=f"{n}") for n in range(60)], slots=0)
    seen, after = [], 0
    while after is not None:
        found = await page.get(f"/api/requests?state=queued&after={after}")
        seen += [row["key"] for row in found["requests"]]
        after = found["after_id"]
        assert len(found["requests"]) <= 25

    assert seen == [f"{n}" for n in range(60)]


@pytest.mark.parametrize("query", ["state=odd", "after=x", "after=1e3"])
async def test_a_bad_question_is_answered_with_a_sentence(page, query):
    answer = await page.browser.get(f"/api/requests?{query}")
    assert answer.status_code == 400
    assert answer.json()["said"]


async def test_of_many_budgets_those_are_shown_of_which_least_is_left(page):
    await page.bench.define(*[Budget(f"b{n}", "$1") for n in range(70)])
    team = page.bench.ids["team"]
    await page.bench.submit(new([team], 90))

    told = await page.get("/api/picture")

    assert told["budgets"][0]["name"] == "team"
    assert (len(told["budgets"]), told["more_budgets"]) == (50, 21)


@pytest.mark.parametrize(
    ("nusd", "words"),
    [
        (0, "$0.00"), (1, "$0.000000001"), (123, "$0.00000012"), (99_999, "$0.0001"),
        (1_234_567, "$0.0012"), (1_234_567_890, "$1.2346"), (123_456_789_012, "$123.46"),
    ],
)  # fmt: skip
def test_an_amount_is_as_short_as_a_glance_wants_it(nusd, words):
    assert shown(nusd) == words


# What it changes


async def test_a_raise_lets_what_is_parked_go_on_and_is_noted(page):
    bench, team = page.bench, page.bench.ids["team"]
    await bench.submit(new([team], 500))
    assert (await page.get("/api/picture"))["counts"]["parked"] == 1

    answer = await page.post(f"/api/budgets/{team}", {"limit": "$1"})

    assert answer.json() == {"limit": "$1/day"}  # the window stays
    assert len((await bench.turn()).claimed) == 1
    (act,) = (await page.get("/api/acts"))["acts"]
    assert act == {
        "at_ms": bench.now_ms, "who": "page, 127.0.0.1", "what": "limit", "name": "team",
        "before": "$0.0000001/day", "after": "$1/day",
    }  # fmt: skip


async def test_a_budget_is_paused_and_goes_on(page):
    bench, team = page.bench, page.bench.ids["team"]
    await page.post(f"/api/budgets/{team}", {"paused": True})
    assert (await bench.submit(new([team], 10))).claimed == []
    await page.post(f"/api/budgets/{team}", {"paused": False})
    assert len((await bench.turn()).claimed) == 1

    acts = (await page.get("/api/acts"))["acts"]
    assert [(act["what"], act["before"], act["after"]) for act in acts] == [
        ("resume", "paused", "goes on"), ("pause", "goes on", "paused"),
    ]  # fmt: skip


@pytest.mark.parametrize(("charge", "counts"), [("$0.00000001", 10), (None, 0)])
async def test_an_unknown_outcome_is_resolved_once(page, charge, counts):
    bench, team = page.bench, page.bench.ids["team"]
    (claimed,) = (await bench.submit(new([team], 40))).claimed
    await bench.settle(end(claimed, Outcome.SUSPEND, FAILED))
    (unknown,) = (await page.get("/api/unknown"))["unknown"]
    path = f"/api/unknown/{unknown['attempt']}"

    assert (await page.post(path, {"charge": charge})).status_code == 200
    assert (await page.post(path, {"charge": "$9"})).status_code == 404

    assert await bench.balance() == (counts, 0)
    assert len((await page.get("/api/acts"))["acts"]) == 1


@pytest.mark.parametrize(
    "body",
    [
        {"limit": "much"}, {"limit": 5}, {"limit": ""}, {}, [], None, {"paused": "yes"}, b"", b"{", b"\xff",
        b"[" * 9_000, b" " * 20_000,
    ],
)  # fmt: skip
async def test_a_change_that_is_none_changes_nothing(page, body):
    answer = await page.post(f"/api/budgets/{page.bench.ids['team']}", body)

    assert answer.status_code == 400
    assert answer.json()["said"]
    (status,) = await page.bench.store.budgets(T0)
    assert (status.budget.text, status.paused) == ("$0.0000001/day", False)
    assert (await page.get("/api/acts"))["acts"] == []


async def test_what_is_not_there_is_not_changed(page):
    for path in ("/api/budgets/99", "/api/unknown/99"):
        body = {"limit": "$1"} if "budgets" in path else {"charge": None}
        assert (await page.post(path, body)).status_code == 404


async def test_a_page_that_only_shows_changes_nothing(page):
    page.desk.may_change = False
    team = page.bench.ids["team"]
    for path, body in (
        (f"/api/budgets/{team}", {"limit": "$1"}), (f"/api/budgets/{team}", {"paused": True}),
        ("/api/unknown/1", {"charge": None}),
    ):  # fmt: skip
        answer = await page.post(path, body)
        assert answer.status_code == 400
        assert "--allow-changes" in answer.json()["said"]
    assert (await page.get("/api/picture"))["may_change"] is False
    assert (await page.bench.store.budgets(T0))[0].budget.text == "$0.0000001/day"


async def test_of_very_many_changes_the_newest_are_kept(page, monkeypatch):
    monkeypatch.setattr("scheduler.stores.acts.KEPT", 3)
    for n in range(5):
        await note(page.bench.store, Act(T0, "me", "limit", f"b{n}", "", ""))

    assert [act.name for act in await noted(page.bench.store)] == ["b4", "b3", "b2"]
    assert KEPT >= 100


# How it keeps up


class Counting(Desk):
    looks = 0

    async def picture(self):
        type(self).looks += 1
        return await super().picture()


async def watch(feed, count, told=None):
    told = [] if told is None else told
    async for event in feed.events():
        if event.startswith("event: "):
            told.append(json.loads(event.partition("data: ")[2]))
        if len(told) >= count:
            return told
    return told


async def test_all_who_watch_share_one_look_and_nobody_who_does_not(page, monkeypatch):
    monkeypatch.setattr("scheduler.server.page.feed.EVERY_S", 0.01)
    desk = Counting(page.bench.store, "s", now_ms=lambda: page.bench.now_ms)
    feed = Feed(desk)
    told = await asyncio.gather(*[watch(feed, 1) for _ in range(50)])
    assert {each[0]["store"] for each in told} == {"s"}
    assert Counting.looks <= 3

    looks = Counting.looks
    await asyncio.sleep(0.1)
    assert Counting.looks == looks  # nobody watches
    await feed.aclose()


async def test_only_what_changed_is_told(page, monkeypatch):
    monkeypatch.setattr("scheduler.server.page.feed.EVERY_S", 0.01)
    feed = Feed(page.desk)
    told = []
    task = asyncio.create_task(watch(feed, 1_000, told))
    await until(lambda: told)
    await asyncio.sleep(0.1)
    await page.bench.submit(new([page.bench.ids["team"]], 10), slots=0)
    await until(lambda: told[-1]["counts"]["queued"] == 1)
    await asyncio.sleep(0.1)

    task.cancel()
    pictures = [{**each, "at_ms": 0} for each in told]
    assert pictures[0]["counts"]["queued"] == 0
    assert all(one != other for one, other in pairwise(pictures))
    await feed.aclose()


async def test_a_store_that_cannot_be_read_is_told_and_looked_at_again(page, monkeypatch):
    from scheduler.errors import StoreError

    monkeypatch.setattr("scheduler.server.page.feed.EVERY_S", 0.01)
    fails = [StoreError("the disk is gone")]
    budgets = page.bench.store.budgets

    async def failing(now_ms):
        if fails:
            raise fails.pop()
        return await budgets(now_ms)

    monkeypatch.setattr(page.bench.store, "budgets", failing)
    feed = Feed(page.desk)
    trouble, picture = await asyncio.wait_for(watch(feed, 2), 60)

    assert trouble == {"said": "the disk is gone"}
    assert picture["counts"]["queued"] == 0
    await feed.aclose()
