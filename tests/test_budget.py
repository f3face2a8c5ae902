"""The budget grammar, what set_limit does, and which budgets a request draws on."""

from __future__ import annotations

import contextlib
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.budget import Budget, Unit, parse_caps
from scheduler.duration import format_duration, parse_duration_ms
from scheduler.errors import BudgetUnknown, ConfigError
from scheduler.ledger.matching import BudgetBook

USD = 10**9


@pytest.mark.parametrize(
    ("spec", "caps"),
    [
        ("$20", [(Unit.USD, 20 * USD, "total")]),
        (20, [(Unit.USD, 20 * USD, "total")]),
        (0.1, [(Unit.USD, USD // 10, "total")]),
        (Decimal("0.000000001"), [(Unit.USD, 1, "total")]),
        ("20", [(Unit.USD, 20 * USD, "total")]),
        ("20 usd", [(Unit.USD, 20 * USD, "total")]),
        ("$0", [(Unit.USD, 0, "total")]),
        (None, [(Unit.USD, None, "total")]),
        ("none/day", [(Unit.USD, None, "day")]),
        ("unlimited", [(Unit.USD, None, "total")]),
        ("$10/day @Europe/Athens", [(Unit.USD, 10 * USD, "day @Europe/Athens")]),
        ("$10/day@Europe/Athens", [(Unit.USD, 10 * USD, "day @Europe/Athens")]),
        ("$100/month from 15", [(Unit.USD, 100 * USD, "month from 15")]),
        ("$1/month from 15 @Asia/Tokyo", [(Unit.USD, USD, "month @Asia/Tokyo from 15")]),
        ("$1/month @Asia/Tokyo from 15", [(Unit.USD, USD, "month @Asia/Tokyo from 15")]),
        ("$5/24h", [(Unit.USD, 5 * USD, "24h")]),
        ("$5 / 1h30m", [(Unit.USD, 5 * USD, "90m")]),
        ("$5/hour,$50/day", [(Unit.USD, 5 * USD, "hour"), (Unit.USD, 50 * USD, "day")]),
        ("$1,000/day", [(Unit.USD, 1000 * USD, "day")]),
        ("2M tokens/day", [(Unit.TOKENS, 2_000_000, "day")]),
        ("1.5k requests/hour", [(Unit.REQUESTS, 1500, "hour")]),
        ("1 request/day", [(Unit.REQUESTS, 1, "day")]),
        ("1,000 tokens", [(Unit.TOKENS, 1000, "total")]),
        ("$5/hour,500 requests/hour", [(Unit.USD, 5 * USD, "hour"), (Unit.REQUESTS, 500, "hour")]),
        ("$.5/day", [(Unit.USD, USD // 2, "day")]),
    ],
)
def test_the_grammar_reads_what_people_write(spec, caps):
    assert [(cap.unit, cap.limit, str(cap.window)) for cap in parse_caps(spec)] == caps


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ("", "lacks an amount"),
        ("/day", "lacks an amount"),
        ("$5/", "lacks a window"),
        ("$5/day,", "lacks an amount"),
        ("-5", "is not an amount of dollars"),
        (-5, "is not between 0"),
        (float("nan"), "is not between 0"),
        (float("inf"), "is not between 0"),
        ("$1e99", "is not an amount"),
        ("$99999999999/day", "is not between 0"),
        ("€5/day", "is not an amount of dollars"),
        ("1.5 tokens", "is not a whole number"),
        ("99999999B tokens", "is not a whole number"),
        ("$5/day,$6/day", "limits usd per day twice"),
        ("$5/day @UTC @UTC", "where one is enough"),
        ("five", "is not an amount of dollars"),
        ("$5/day" * 1000, "is no budget"),
    ],
)
def test_a_wrong_budget_is_a_clear_error(spec, problem):
    with pytest.raises(ConfigError, match=problem):
        Budget("b", spec)


@pytest.mark.parametrize("name", ["", "  ", "x" * 101, "a\nb", "\x00"])
def test_a_wrong_name_is_a_clear_error(name):
    with pytest.raises(ConfigError, match="is not a name"):
        Budget(name, "$1")


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("$10/day @Europe/Athens", "<Budget 'b' $10/day (calendar day, Europe/Athens)>"),
        ("$5/24h", "<Budget 'b' $5/24h (rolling 24h)>"),
        ("$20", "<Budget 'b' $20 (total)>"),
        (None, "<Budget 'b' none (total)>"),
        (
            "2M tokens/week from sun, $0.5/7d",
            "<Budget 'b' 2000000 tokens/week from sun (calendar week from sun, UTC), "
            "$0.5/7d (rolling 7d)>",
        ),
    ],
)
def test_the_repr_says_calendar_or_rolling_and_the_zone(spec, text):
    assert repr(Budget("b", spec)) == text


@pytest.mark.parametrize(
    ("before", "limit", "after"),
    [
        ("$100/month @Europe/Athens", "$150", "$150/month @Europe/Athens"),
        ("$100/month", 150, "$150/month"),
        ("$100/month", Decimal("0.5"), "$0.5/month"),
        ("$10/day", "$20/total", "$20"),
        ("$10/day", "$5/hour,$50/day", "$5/hour, $50/day"),
        ("$10/day", None, "none/day"),
        ("$10/day", "none", "none/day"),
        ("none/day", "$10", "$10/day"),
        ("$5/hour,2M tokens/day", "$8", "$8/hour, 2000000 tokens/day"),
        ("$5/hour,2M tokens/day", "3M tokens", "$5/hour, 3000000 tokens/day"),
        ("$5/hour,2M tokens/day", None, "none/hour, none tokens/day"),
    ],
)
def test_a_new_limit_keeps_the_window_unless_it_names_one(before, limit, after):
    budget = Budget("b", before, models=["m"], tags={"a": "b"}, parent="p")

    changed = budget.with_limit(limit)

    assert changed.spec == after
    assert (changed.models, changed.tags, changed.parent) == (("m",), {"a": "b"}, "p")
    assert budget.spec == Budget("b", before).spec


@pytest.mark.parametrize(("before", "limit"), [("$5/hour,$50/day", "$8"), ("$5/hour", "3 tokens")])
def test_an_ambiguous_limit_asks_for_the_full_form(before, limit):
    with pytest.raises(ConfigError, match="by giving the full form, such as"):
        Budget("b", before).with_limit(limit)


@pytest.mark.parametrize(
    ("models", "tags", "model", "given_tags", "covers"),
    [
        ([], {}, "gpt-4o", {}, False),
        (["gpt-4*"], {}, "gpt-4o", {}, True),
        (["gpt-4*"], {}, "GPT-4o", {}, True),
        (["a", "gpt-*"], {}, "gpt-4o", {}, True),
        ([], {"user": "ann"}, "x", {"user": "ann", "more": "1"}, True),
        ([], {"user": "ann"}, "x", {"user": "bob"}, False),
        ([], {"user": "*"}, "x", {}, False),
        (["gpt-*"], {"user": "ann"}, "llama", {"user": "ann"}, False),
    ],
)
def test_rules_match_models_and_tags(models, tags, model, given_tags, covers):
    assert Budget("b", 1, models=models, tags=tags).covers(model, given_tags) is covers


BOOK = BudgetBook(
    [
        (1, Budget("default", 1)),
        (2, Budget("org", 1)),
        (3, Budget("team", 1, parent="org")),
        (4, Budget("gpt", 1, models=["gpt-*"], parent="org")),
    ]
)


@pytest.mark.parametrize(
    ("model", "named", "ids"),
    [
        ("llama", None, (1,)),
        ("gpt-4o", None, (1, 2, 4)),
        ("llama", "team", (2, 3)),
        ("gpt-4o", ["team", "default"], (1, 2, 3, 4)),
        ("llama", (), ()),
    ],
)
def test_a_request_draws_on_what_it_names_what_covers_it_and_their_parents(model, named, ids):
    assert BOOK.draws_on(model, {}, named) == ids


def test_the_only_budget_is_the_default_and_of_several_one_must_be_named():
    assert BudgetBook([(7, Budget("team", 1))]).draws_on("m", {}, None) == (7,)
    assert BudgetBook([]).draws_on("m", {}, None) == ()
    several = BudgetBook([(7, Budget("a", 1)), (8, Budget("b", 1))])
    with pytest.raises(BudgetUnknown, match="there are several"):
        several.draws_on("m", {}, None)
    with pytest.raises(BudgetUnknown, match="no budget is named 'x'"):
        several.draws_on("m", {}, "x")


AMOUNTS = st.one_of(
    st.decimals(0, 10**6, places=9).map(lambda d: f"${d:f}"),
    st.integers(0, 10**9).map(lambda n: f"{n} tokens"),
    st.integers(0, 10**9).map(lambda n: f"{n} requests"),
    st.sampled_from(["none", "none tokens"]),
)
WINDOWS = st.sampled_from(
    ["", "/day", "/day @Asia/Tokyo", "/week from sun", "/month @Europe/Athens from 31", "/90s",
     "/24h", "/7d", "/hour", "/year from 04-01", "/day from 06:30"]
)  # fmt: skip


@settings(max_examples=200)
@given(st.lists(st.tuples(AMOUNTS, WINDOWS).map("".join), min_size=1, max_size=3))
def test_a_budgets_text_reads_back_as_the_same_budget(parts):
    try:
        budget = Budget("b", ", ".join(parts))
    except ConfigError as error:
        assert "twice" in str(error)  # noqa: PT017 - the only reason to refuse these
        return
    assert Budget("b", budget.spec).caps == budget.caps


@settings(max_examples=400)
@given(st.one_of(st.text(), st.text(alphabet="$0123456789./@, dayhourfm:-kMtokens")))
def test_whatever_is_written_the_only_error_is_a_config_error(text):
    for parse in (parse_caps, parse_duration_ms):
        with contextlib.suppress(ConfigError):
            parse(text)


@pytest.mark.parametrize(
    ("value", "ms"),
    [
        ("10m", 600_000),
        ("1h30m", 5_400_000),
        ("1.5s", 1500),
        (90, 90_000),
        (0.5, 500),
        ("2w", 1_209_600_000),
    ],
)
def test_durations_are_read(value, ms):
    assert parse_duration_ms(value) == ms


@pytest.mark.parametrize(
    "value", ["", "10", "-5m", "5 minutes", "m", -1, 1e12, "99999d", float("nan")]
)
def test_a_wrong_duration_is_a_clear_error(value):
    with pytest.raises(ConfigError, match="duration: "):
        parse_duration_ms(value)


@pytest.mark.parametrize(
    ("ms", "text"),
    [(0, "0s"), (999, "0s"), (61_000, "1m1s"), (3_600_000, "1h"), (183_845_000, "2d3h")],
)
def test_durations_are_told_in_two_units(ms, text):
    assert format_duration(ms) == text
