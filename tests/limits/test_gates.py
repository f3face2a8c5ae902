"""Gates: what shuts them, what opens them, what they tell others and people."""

import json

import pytest

from scheduler.limits import (
    DOWN_AFTER,
    FIRST_PROBE_MS,
    FIRST_WINDOW,
    LONGEST_PROBE_MS,
    MARGIN_MS,
    NEVER,
    PROBE_LEASE_MS,
    Gates,
    Heard,
    ProviderRules,
    Report,
)
from scheduler.limits.meter import Dimension, Limits, Seen
from scheduler.request import Tokens

T0 = 1_000_000
ASKS = Tokens(100, 50)
CREDIT, DOWN = "provider_credit", "provider_down"


class Bench:
    """The gates of one model, and a clock."""

    def __init__(self, limits=None, counting="default", concurrency=64):
        rules = ProviderRules(limits or Limits(), {}, counting, concurrency)
        self.gates = Gates({"p": rules})
        self.front, self.gate = self.gates.of("p", "m")
        self.now_ms, self.next_id = T0, 1

    def may_go(self):
        closed = self.front.closed
        if closed is not None and not closed.may_probe(self.now_ms):
            return False
        return all(each.opens_at_ms(ASKS, self.now_ms) <= self.now_ms for each in self.pair)

    @property
    def pair(self):
        return (self.front, self.gate)

    def send(self):
        request_id, self.next_id = self.next_id, self.next_id + 1
        for each in self.pair:
            each.take(request_id, ASKS, self.now_ms)
        return request_id

    def hear(self, request_id, heard=Heard.ANSWERED, **told):
        report = Report(request_id, "p", "m", heard, self.now_ms, **told)
        return self.gates.hear([report])

    def send_all(self):
        sent = []
        while self.may_go() and len(sent) < 1000:
            sent.append(self.send())
        return sent


def test_without_rules_there_is_no_gate():
    assert Gates().of("p", "m") == ()
    assert not Gates().has_rules


def test_a_given_limit_lets_its_burst_through_and_then_its_rate():
    bench = Bench(Limits(requests_per_minute=600))

    assert len(bench.send_all()) == 9
    bench.now_ms += 1000
    assert len(bench.send_all()) == 9
    bench.now_ms += 102
    assert len(bench.send_all()) in (0, 1, 2)


def test_tokens_limit_as_well_as_requests():
    bench = Bench(Limits(requests_per_minute=6000, tokens_per_minute=60_000))

    assert len(bench.send_all()) == 6  # 900 at once, 150 each


def test_what_was_promised_is_corrected_by_what_was_used():
    bench = Bench(Limits(tokens_per_minute=60_000))
    sent = bench.send_all()
    assert not bench.may_go()

    bench.hear(sent[0], usage=(10, 0, 0))
    assert not bench.may_go()  # 140 of the 150 it takes
    bench.hear(sent[1], usage=(100, 40, 0))

    assert bench.may_go()


@pytest.mark.parametrize(
    ("heard", "counting", "comes_back"),
    [
        (Heard.UNSENT, "default", True),
        (Heard.LIMITED, "openai", False),
        (Heard.DOWN, "openai", False),
    ],
)
def test_what_was_not_sent_counts_nothing(heard, counting, comes_back):
    bench = Bench(Limits(requests_per_minute=60), counting)
    (sent,) = bench.send_all()

    bench.hear(sent, heard)

    assert bench.may_go() is comes_back


def test_headers_teach_a_limit_nobody_gave():
    bench = Bench(counting="openai")
    seen = (Seen(Dimension.REQUESTS, 600, 599, 100), Seen(Dimension.TOKENS, 30_000, 29_900, 200))
    bench.hear(bench.send(), seen=seen)

    assert {m.dimension: m.limit for m in bench.gate.meters.values()} == {
        "requests": 600, "tokens": 30_000}  # fmt: skip
    assert bench.gate.is_known


def test_a_pause_holds_all_of_a_model_and_not_the_others():
    bench = Bench()
    bench.hear(bench.send(), Heard.LIMITED, retry_after_ms=5000)

    assert not bench.may_go()
    assert all(each.opens_at_ms(ASKS, T0) <= T0 for each in bench.gates.of("p", "other"))
    assert bench.gates.statuses(T0)[0].until_ms == T0 + 5000 + MARGIN_MS
    bench.now_ms += 5000 + MARGIN_MS
    assert bench.may_go()


def test_pauses_widen_while_nothing_succeeds_and_no_time_is_told():
    bench, pauses_ms = Bench(), []
    for _ in range(9):
        sent = bench.send()
        bench.hear(sent, Heard.LIMITED)
        pauses_ms.append(bench.gate.paused_until_ms - bench.now_ms)
        bench.now_ms = bench.gate.paused_until_ms
    assert pauses_ms[:4] == [1000, 2000, 4000, 8000]
    assert max(pauses_ms) == 30_000


def test_an_unknown_provider_is_begun_with_a_few_calls_and_more_with_each_success():
    bench = Bench()
    sent = bench.send_all()
    assert len(sent) == FIRST_WINDOW
    assert bench.gate.opens_at_ms(ASKS, T0) == NEVER

    for each in sent:
        bench.hear(each)

    assert len(bench.send_all()) > 1.5 * FIRST_WINDOW


def test_a_surprise_lowers_the_number_of_calls_once_for_all_that_were_under_way():
    bench = Bench()
    sent = bench.send_all()
    bench.now_ms += 100
    for each in sent[:10]:
        bench.hear(each, Heard.LIMITED)

    assert 0.85 * FIRST_WINDOW < bench.gate.window < FIRST_WINDOW


def test_a_surprise_at_a_known_limit_uses_less_of_it_and_recovers():
    bench = Bench(Limits(requests_per_minute=600))
    bench.hear(bench.send(), Heard.LIMITED, retry_after_ms=0)
    assert bench.gate.share == 1.0  # it has no limit of its own
    assert bench.front.share == 0.8

    for _ in range(200):
        bench.now_ms += 1000
        bench.hear(bench.send())

    assert bench.front.share == 1.0


# No credit, or down


def test_no_credit_closes_and_one_request_at_a_time_tries():
    bench = Bench()
    first, other = bench.send(), bench.send()
    bench.hear(first, Heard.NO_CREDIT, words="quota")
    closed = bench.front.closed
    assert (closed.reason, closed.words) == (CREDIT, "quota")
    assert not bench.may_go()

    bench.hear(other)  # sent before: says nothing about credit
    assert bench.front.closed is closed

    bench.now_ms = closed.probe_at_ms
    probe = bench.send()
    assert not bench.may_go()
    assert bench.hear(probe) == {"p"}
    assert bench.may_go()


def test_the_time_between_tries_widens_and_the_providers_own_wish_counts():
    bench, waits_ms = Bench(), []
    bench.hear(bench.send(), Heard.NO_CREDIT)
    for _ in range(7):
        waits_ms.append(bench.front.closed.probe_at_ms - bench.now_ms)
        bench.now_ms = bench.front.closed.probe_at_ms
        bench.hear(bench.send(), Heard.NO_CREDIT)
    assert waits_ms[:3] == [30_000, 60_000, 120_000]
    assert waits_ms[-1] == LONGEST_PROBE_MS[CREDIT]

    bench = Bench()
    bench.hear(bench.send(), Heard.NO_CREDIT, retry_after_ms=3_600_000)
    assert bench.front.closed.probe_at_ms == T0 + 3_600_000


def test_a_provider_that_never_answers_is_left_alone_until_it_does():
    bench = Bench()
    sent = [bench.send() for _ in range(DOWN_AFTER + 3)]
    for each in sent[: DOWN_AFTER - 1]:
        bench.hear(each, Heard.DOWN)
    assert bench.may_go()
    bench.hear(sent[DOWN_AFTER - 1], Heard.DOWN)
    assert bench.front.closed.reason == DOWN
    assert bench.front.closed.probe_at_ms == T0 + FIRST_PROBE_MS[DOWN]

    bench.hear(sent[DOWN_AFTER], Heard.OTHER)  # any answer says that it lives
    assert bench.may_go()


def test_one_success_in_between_keeps_it_open():
    bench = Bench()
    for n in range(3 * DOWN_AFTER):
        bench.hear(bench.send(), Heard.ANSWERED if n % DOWN_AFTER == 0 else Heard.DOWN)
    assert bench.front.closed is None


def test_a_probe_whose_process_died_is_made_again():
    bench = Bench()
    bench.hear(bench.send(), Heard.NO_CREDIT)
    bench.now_ms = bench.front.closed.probe_at_ms
    bench.send()
    assert not bench.may_go()
    assert bench.front.closed.next_at_ms(bench.now_ms) == bench.now_ms + PROBE_LEASE_MS

    bench.now_ms += PROBE_LEASE_MS

    assert bench.may_go()


def test_a_probe_that_was_not_sent_leaves_the_place_to_another():
    bench = Bench()
    bench.hear(bench.send(), Heard.NO_CREDIT)
    bench.now_ms = bench.front.closed.probe_at_ms
    bench.hear(bench.send(), Heard.UNSENT)

    assert bench.may_go()


def test_somebody_may_want_it_tried_at_once():
    bench = Bench()
    assert not bench.gates.probe("p")
    bench.hear(bench.send(), Heard.NO_CREDIT)

    assert bench.gates.probe("p")
    assert bench.gates.hear([]) == {"p"}

    assert bench.may_go()


# Among processes


def test_what_one_process_writes_another_takes_over():
    limits = Limits(requests_per_minute=600)
    one, other = Bench(limits, "openai"), Bench(limits, "openai")
    one.send_all()
    one.hear(one.send(), Heard.NO_CREDIT, words="quota",
             seen=(Seen(Dimension.TOKENS, 30_000, 100, 50_000),))  # fmt: skip
    for mine, theirs in zip(one.pair, other.pair, strict=True):
        theirs.load(json.loads(json.dumps(mine.dump())), T0)

    assert other.front.closed == one.front.closed
    assert not other.may_go()
    assert other.front.meters["requests"].due_ms == one.front.meters["requests"].due_ms
    assert other.gate.meters["tokens"].limit == 30_000
    assert [each.dump() for each in one.pair] == [each.dump() for each in other.pair]


def test_a_limit_given_to_one_process_is_not_given_to_all_nor_kept_for_ever():
    one, other = Bench(Limits(requests_per_minute=600)), Bench()
    changed = Bench(Limits(requests_per_minute=60))
    one.send_all()
    state = json.loads(json.dumps(one.front.dump()))

    other.front.load(state, T0)
    changed.front.load(state, T0)

    assert other.front.meters == {}
    assert changed.front.meters["requests"].limit == 60
    assert changed.front.meters["requests"].burst == 1


def test_a_clock_that_was_far_ahead_holds_nobody_back_for_long():
    bench = Bench(counting="openai")
    bench.hear(bench.send(), seen=(Seen(Dimension.REQUESTS, 600, 599, 100),))
    state = bench.gate.dump()
    state[2][0][4], state[3] = T0 + 10**12, T0 + 10**12
    bench.gate.load(state, T0)

    assert bench.gate.opens_at_ms(ASKS, T0) <= T0 + 86_400_000
    bench.gate.paused_until_ms = 0
    assert bench.gate.opens_at_ms(ASKS, T0) <= T0 + 120_000


@pytest.mark.parametrize(
    ("prepare", "why"),
    [
        (lambda b: b.send_all(), "at its limit of 60 requests a minute"),
        (
            lambda b: b.hear(b.send(), Heard.LIMITED, retry_after_ms=9000),
            "the provider asked to wait",
        ),
        (lambda b: b.hear(b.send(), Heard.NO_CREDIT, words="quota"), "provider credit: quota"),
    ],
)
def test_people_are_told_what_holds_them_back(prepare, why):
    bench = Bench(Limits(requests_per_minute=60))
    prepare(bench)

    told = bench.gates.statuses(T0)

    assert why in [each.why for each in told]
    assert all(each.until_ms is None or each.until_ms > T0 for each in told)


def test_nothing_is_told_when_nothing_is_held_back():
    assert Bench(Limits(requests_per_minute=600)).gates.statuses(T0) == []


def test_what_a_refused_request_would_have_used_is_given_back_but_not_the_request():
    bench = Bench(Limits(requests_per_minute=600, tokens_per_minute=60_000), "openai")
    before = {name: meter.level(T0, 1.0) for name, meter in bench.front.meters.items()}
    bench.front.take(1, ASKS, T0)
    bench.front._correct(
        Report(1, "p", "m", Heard.LIMITED, T0), bench.front._marks.pop(1)
    )  # fmt: skip
    after = {name: meter.level(T0, 1.0) for name, meter in bench.front.meters.items()}

    assert after["tokens"] == pytest.approx(before["tokens"])
    assert after["requests"] == pytest.approx(before["requests"] - 1)
