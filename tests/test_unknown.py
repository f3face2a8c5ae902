"""Calls nobody heard back from: policies, asking the provider, people, late answers."""

from __future__ import annotations

import asyncio
import contextlib
import json

import httpx
import pytest

from scheduler import Budget, CallTimeout, FunctionProvider, OpenAI, Scheduler, TransportFailed
from scheduler.answer import Answer
from scheduler.clock import SystemClock
from scheduler.errors import CallFailed, ConfigError, StreamBroken
from scheduler.ledger.suspense import FIRST_LOOK_MS, LONGEST_LOOK_MS, next_look_ms, parse_policy
from scheduler.money import parse_usd
from scheduler.providers.answers import read_error, tell
from scheduler.providers.simulated.provider import Simulated
from scheduler.request import Quote, Request, RequestState, Usage
from scheduler.stores.memory import MemoryStore
from scheduler.testing import VirtualClock, run
from tests.conftest import Bench, ask

HOUR_S = 3600.0


def world(provider, main, **options):
    """Run `main(scheduler)` in virtual time on a budget of 1,000 nano-dollars."""

    async def body():
        async with Scheduler(
            budgets=Budget("team", "$0.000001"), providers=provider, clock=VirtualClock(),
            max_attempts=1, **options,
        ) as s:  # fmt: skip
            return await main(s)

    return run(body())


async def lose(s, **options):
    with pytest.raises(CallTimeout):
        await s.run(ask(1, fail=CallTimeout("no answer in time"), budget="team", **options))


def balance(s):
    (cap,) = s.stats().budgets[0].caps
    return cap.posted, cap.reserved, cap.suspense


# Rules


@pytest.mark.parametrize(
    "text",
    ["charge", "input_only", "input_only after 10m", "release after 1h", "release after 1h30m"],
)
def test_a_policy_is_read_and_told_in_the_same_words(text):
    assert str(parse_policy(f" {text} ")) == text


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("free", "'free' is not 'charge', 'input_only'"),
        ("release", "needs a time, as in 'release after 1h'"),
        ("release after 0s", "needs a time"),
        ("charge after 1h", "'charge' needs no time"),
        ("release after soon", "soon"),
        ("", "is not 'charge'"),
    ],
)
def test_a_policy_that_says_nothing_sensible_is_a_clear_error(text, problem):
    with pytest.raises(ConfigError, match=problem):
        parse_policy(text)


def test_a_wrong_policy_is_told_before_anything_opens():
    provider = Bench()
    provider.on_unknown = "free"

    with pytest.raises(ConfigError, match="on_unknown"):
        world(provider, lambda s: asyncio.sleep(0))


def test_the_provider_is_asked_on_a_widening_timer_for_a_day():
    asked_ms, now_ms = [], 0
    while (now_ms := next_look_ms(0, now_ms)) is not None:
        asked_ms.append(now_ms)

    gaps = [b - a for a, b in zip([0, *asked_ms], asked_ms, strict=False)]
    assert gaps[0] == FIRST_LOOK_MS
    assert gaps == sorted(gaps)
    assert gaps[-1] == LONGEST_LOOK_MS
    assert 86_000_000 < asked_ms[-1] <= 87_100_000


# Policies


def test_by_default_it_counts_in_full_until_somebody_knows_more():
    async def main(s):
        await lose(s)
        await asyncio.sleep(1000 * HOUR_S)
        (unknown,) = await s.suspended()
        assert (unknown.why, unknown.ceiling_nusd) == ("no answer in time", 100)
        assert unknown.request.body["n"] == 1
        assert s.stats().suspense_nusd == 100
        return balance(s)

    assert world(Bench(), main) == (0, 100, 100)


def test_released_after_its_time_it_lets_others_go_on():
    provider = Bench(ceiling_nusd=1000)
    provider.on_unknown = "release after 1h"

    async def main(s):
        await lose(s)
        waiting = s.submit(ask(2, budget="team"))
        await asyncio.sleep(HOUR_S - 1)
        assert waiting.state is RequestState.PARKED
        await asyncio.sleep(2)
        assert (await waiting).cost_nusd == 60
        assert s.stats().suspense_nusd == 0
        return balance(s)

    assert world(provider, main) == (60, 0, 0)


def test_input_only_posts_what_the_prompt_costs_at_most():
    async def fail(request):
        raise TransportFailed("reset")

    class Priced(Simulated):
        send = staticmethod(fail)

    provider = Priced(prices={"m": "10/1000"})
    provider.on_unknown = "input_only"

    async def main():
        async with Scheduler(budgets=Budget("team", "$1"), providers=provider,
                             clock=VirtualClock(), max_attempts=1) as s:  # fmt: skip
            request = Request.chat("m", "x" * 1000, max_tokens=500, budget="team")
            ceiling_nusd = s.quote(request).ceiling_nusd
            with pytest.raises(TransportFailed):
                await s.run(request)
            await asyncio.sleep(5)
            posted, reserved, _ = balance(s)
            assert reserved == 0
            # A thousand bytes are a thousand tokens at most, and the answer one.
            assert 10_000 * 1000 < posted < 10_000 * 1200 + 1_000_000
            assert posted < ceiling_nusd / 20

    run(main())


def test_a_policy_sees_to_what_a_process_before_it_left():
    """Reclaimed reservations are found at the start, without any event."""

    async def main(s):
        await lose(s)
        provider.on_unknown = "release after 1m"
        await s.aclose()
        async with Scheduler(s.store, providers=provider, clock=VirtualClock()) as later:
            await asyncio.sleep(61)
            return balance(later)

    provider = Bench()
    assert world(provider, main) == (0, 0, 0)


# Asking


async def lost(request):
    raise TransportFailed("reset")


def hanging(nusd=100):
    """A provider that loses every call and never says what became of it."""

    async def think(unknown):
        await asyncio.sleep(10**9)

    async def vanish(request):
        raise CallFailed("vanished")  # of itself, so that the provider is not taken for down

    return FunctionProvider("f", vanish, quote=Quote(nusd, 1, 10), look_up=think)


def asked(answers):
    """A provider that loses every call and can be asked about it; `answers` in turn."""
    times = []

    async def look_up(unknown):
        times.append(asyncio.get_running_loop().time())
        answer = answers[min(len(times), len(answers)) - 1]
        if isinstance(answer, BaseException):
            raise answer
        return answer

    provider = FunctionProvider("f", lost, quote=Quote(100, 50, 10), look_up=look_up)
    return provider, times


@pytest.mark.parametrize(
    ("answer", "posted"),
    [
        (Answer({}, cost_nusd=42), 42),
        (Answer({}, usage=Usage(3, 4), cost_nusd=0), 0),
        (False, 0),
    ],
)
def test_the_provider_itself_knows(answer, posted):
    provider, times = asked([None, RuntimeError("busy"), answer])

    async def main(s):
        with pytest.raises(TransportFailed):
            await s.run(Request({"n": 1}, budget="team"))
        await asyncio.sleep(60)
        assert await s.suspended() == []
        assert s.stats().suspense_nusd == 0
        return balance(s)

    assert world(provider, main) == (posted, 0, 0)
    assert len(times) == 3


def test_a_provider_that_does_not_know_leaves_it_to_the_policy():
    provider, times = asked([None])
    provider.on_unknown = "release after 10m"

    async def main(s):
        with pytest.raises(TransportFailed):
            await s.run(Request({"n": 1}, budget="team"))
        await asyncio.sleep(599)
        before = balance(s)
        await asyncio.sleep(2)
        return before, balance(s)

    assert world(provider, main) == ((0, 100, 100), (0, 0, 0))
    assert 5 < len(times) < 20


@pytest.mark.parametrize("nonsense", [Answer({}, cost_nusd=-5), Answer({}, cost_nusd=10**30),
                                      Answer({}), "yes", True])  # fmt: skip
def test_nonsense_from_a_look_up_changes_nothing(nonsense):
    provider, _ = asked([nonsense])

    async def main(s):
        with pytest.raises(TransportFailed):
            await s.run(Request({"n": 1}, budget="team"))
        await asyncio.sleep(60)
        return balance(s)

    assert world(provider, main) == (0, 100, 100)


def test_a_look_up_that_never_ends_keeps_no_policy_from_its_time():
    provider = hanging()
    provider.on_unknown = "release after 10m"

    async def main(s):
        with pytest.raises(CallFailed):
            await s.run(Request({"n": 1}, budget="team"))
        await asyncio.sleep(700)
        return balance(s)

    assert world(provider, main) == (0, 0, 0)


def test_a_look_up_that_was_cancelled_by_somebody_else_is_made_again():
    provider, times = asked([asyncio.CancelledError(), asyncio.CancelledError(), False])

    async def main(s):
        with pytest.raises(TransportFailed):
            await s.run(Request({"n": 1}, budget="team"))
        await asyncio.sleep(60)
        return balance(s)

    assert world(provider, main) == (0, 0, 0)
    assert len(times) == 3


def test_a_silent_provider_keeps_hundreds_of_policies_from_their_time_but_once():
    provider = hanging(nusd=1)
    provider.on_unknown = "release after 1m"

    async def main(s):
        requests = [Request({"n": n}, budget="team") for n in range(200)]
        await asyncio.gather(*map(s.run, requests), return_exceptions=True)
        before = balance(s)
        await asyncio.sleep(150)
        return before, balance(s)

    assert world(provider, main) == ((0, 200, 200), (0, 0, 0))


def test_closing_while_the_provider_is_asked_ends_at_once():
    provider = hanging()

    async def main(s):
        with pytest.raises(CallFailed):
            await s.run(Request({"n": 1}, budget="team"))
        await asyncio.sleep(5)
        await s.aclose()
        return asyncio.get_running_loop().time()

    assert world(provider, main) < 10


# A person


def test_a_person_says_what_it_cost_and_what_is_parked_goes_on():
    async def main(s):
        await lose(s, ceiling=1000)
        waiting = s.submit(ask(2, budget="team"))
        await asyncio.sleep(1)
        (unknown,) = await s.suspended()
        assert await s.resolve(unknown, charge="$0.0000005")
        await waiting
        assert not await s.resolve(unknown, charge=None)  # once
        return balance(s)

    assert world(Bench(), main) == (560, 0, 0)


def test_a_person_may_say_it_cost_nothing():
    async def main(s):
        await lose(s)
        (unknown,) = await s.suspended()
        assert await s.resolve(unknown, charge=None)
        return balance(s)

    assert world(Bench(), main) == (0, 0, 0)


# The lease


def test_what_was_claimed_before_a_long_sleep_is_not_sent_after_it():
    """The process stood still between the commit and the call: others may have sent it."""
    provider = Bench()

    async def main(s):
        turn, claims = s.store.turn, []

        async def slow(work):
            result = await turn(work)
            result.lease_ms = 20_000
            claims.extend(result.claimed)
            if len(claims) == 1:
                await asyncio.sleep(30)
            return result

        s.store.turn = slow
        response = await s.run(ask(1, budget="team"))
        assert len(claims) == 2
        assert response.attempts == 1  # the claim that was handed back does not count
        return len(provider.sent), balance(s)

    assert world(provider, main) == (1, (60, 0, 0))


# A real service that can be asked, as OpenRouter's generation endpoint


class OpenRouter(OpenAI):
    """Asks by the id that came with the headers of the answer that broke off."""

    async def look_up(self, unknown):
        if unknown.provider_id is None:
            return None
        async with httpx.AsyncClient() as client:
            found = await client.get(
                f"{self.base_url}/generation", params={"id": unknown.provider_id}
            )
        if found.status_code == 404:
            return None
        return Answer({}, cost_nusd=parse_usd(found.json()["data"]["total_cost"], "total_cost"))


@contextlib.asynccontextmanager
async def breaking_service():
    """Breaks off every answer after its headers; knows a moment later what it cost."""
    asked = []

    async def serve(reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        if head.startswith("POST"):
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 900\r\n"
                b'X-Generation-Id: gen-7\r\n\r\n{"choices": ['
            )
        else:
            asked.append(head.split()[1])
            body = b'{"data": {"total_cost": 0.00000042}}' if len(asked) > 1 else b"{}"
            status = b"200 OK" if len(asked) > 1 else b"404 Not Found"
            writer.write(b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body))
        with contextlib.suppress(ConnectionError):
            await writer.drain()
            writer.close()
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", asked


@pytest.mark.parametrize("engine", ["quick", "httpx"])
async def test_a_gateway_is_asked_by_the_id_it_gave_before_the_answer_broke_off(engine, tmp_path):
    async with breaking_service() as (url, asked), httpx.AsyncClient() as client:
        provider = OpenRouter(base_url=url, client=client if engine == "httpx" else None)
        async with Scheduler(
            tmp_path / "s.db", budgets=Budget("team", "$1"), providers=provider, max_attempts=1,
            prices={"m": "1/1"},
        ) as s:  # fmt: skip
            with pytest.raises(TransportFailed):
                await s.run(Request.chat("m", "hi", max_tokens=5, budget="team", key="k"))
            (unknown,) = await s.suspended()
            assert unknown.provider_id == "gen-7"
            assert "broke off" in unknown.why
            async with asyncio.timeout(20):
                while await s.suspended():
                    await asyncio.sleep(0.1)

            assert asked == ["/v1/generation?id=gen-7"] * 2
            (status,) = await s.store.budgets(SystemClock().now_ms())
            assert (status.caps[0].posted, status.caps[0].reserved) == (420, 0)


# What a lost answer told before it was lost


def lost_after(error, *, on_unknown="input_only", look_s=5.0, prompt="x" * 1000):
    """What is posted and reserved a while after a call failed so; its input bound is 1,160."""

    class Failing(Simulated):
        async def send(self, request):
            raise error

    async def main():
        provider = Failing(prices={"m": "10/1000"})
        provider.on_unknown = on_unknown
        async with Scheduler(budgets=Budget("team", "$1"), providers=provider,
                             clock=VirtualClock(), max_attempts=1) as s:  # fmt: skip
            request = Request.chat("m", prompt, max_tokens=500, budget="team")
            with pytest.raises(CallFailed):
                await s.run(request)
            await asyncio.sleep(look_s)
            return balance(s)

    return run(main())


def broken(usage, body=None):
    """A failure of which nobody knows the bill, whose answer told this much."""
    error = StreamBroken("reset", 3)
    tell(error, {**(body or {}), "usage": usage}, is_final=False)
    return error


@pytest.mark.parametrize(
    ("usage", "nusd"),
    [
        ({"input_tokens": 250, "output_tokens": 1}, 250 * 10_000 + 1_000_000),
        ({"input_tokens": 250, "output_tokens": 0}, 250 * 10_000),
        ({"input_tokens": 250, "output_tokens": 40}, 250 * 10_000 + 40 * 1_000_000),
        # Above the bound of the prompt, which is then none.
        ({"input_tokens": 30_000, "output_tokens": 1}, 30_000 * 10_000 + 1_000_000),
    ],
)
def test_input_only_posts_what_was_told_before_the_answer_was_lost(usage, nusd):
    written = {"content": [{"type": "text", "text": "Hel"}]}

    assert lost_after(broken(usage, written))[:2] == (nusd, 0)


def test_a_server_error_that_tells_its_usage_is_posted_by_input_only():
    told = {"input_tokens": 250, "output_tokens": 3}
    content = json.dumps({"error": {"message": "no"}, "usage": told}).encode()

    posted, reserved, _ = lost_after(read_error(500, {}, content))
    assert (posted, reserved) == (250 * 10_000 + 3 * 1_000_000, 0)


@pytest.mark.parametrize("usage", [None, {}, {"input_tokens": -5, "output_tokens": 1}, "none"])
def test_input_only_posts_its_bound_where_nothing_was_told(usage):
    posted, reserved, _ = lost_after(broken(usage))

    assert reserved == 0
    assert 10_000 * 1000 < posted < 10_000 * 1200 + 1_000_000


def test_what_was_told_is_kept_until_the_policy_is_due():
    told = broken({"input_tokens": 250, "output_tokens": 1})

    posted, reserved, _ = lost_after(told, on_unknown="input_only after 10m", look_s=500)
    assert posted == 0 < reserved
    posted, reserved, _ = lost_after(told, on_unknown="input_only after 10m", look_s=700)
    assert (posted, reserved) == (250 * 10_000 + 1_000_000, 0)


@pytest.mark.parametrize(("policy", "left"), [("charge", True), ("release after 1m", False)])
def test_other_policies_do_not_mind_what_was_told(policy, left):
    posted, reserved, _ = lost_after(
        broken({"input_tokens": 250, "output_tokens": 1}), on_unknown=policy, look_s=100
    )
    assert (posted, reserved > 0) == (0, left)


# However many there are


class Asked(MemoryStore):
    """Counts whose outcomes it is asked about, and in how many transactions they are settled."""

    def __init__(self):
        super().__init__()
        self.ids, self.writes = 0, 0

    async def suspended_of(self, ids):
        self.ids += len(ids)
        return await super().suspended_of(ids)

    async def resolve(self, settlements, now_ms):
        self.writes += 1
        return await super().resolve(settlements, now_ms)


async def break_off(s):
    with pytest.raises(CallFailed):
        await s.run(ask(1, fail=CallFailed("it broke off"), budget="team"))


@pytest.mark.parametrize("policy", ["release after 1h", "input_only after 1h"])
def test_what_is_new_is_looked_at_and_what_is_due_but_not_all_that_is_unknown(policy):
    provider, store, count = Bench(), Asked(), 300
    provider.on_unknown = policy

    async def main():
        async with Scheduler(
            store, providers=provider, budgets=Budget("team", "$1"), clock=VirtualClock()
        ) as s:
            for _ in range(count):
                await break_off(s)
            await asyncio.sleep(300)
            assert s.stats().suspense_nusd == count * 100
            store.ids = 0
            for _ in range(10):
                await break_off(s)
                await asyncio.sleep(61)
            asked = store.ids
            await asyncio.sleep(HOUR_S)
            return asked, store.writes, s.stats().suspense_nusd

    asked, writes, left_nusd = run(main())
    assert asked <= 30  # each once when it is told, and again as one that became so lately
    assert (writes <= 20, left_nusd) == (True, 0)
