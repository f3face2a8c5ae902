"""What a batch will cost, what of it can start at all, and what would change that."""

import json

import pytest
from typer.testing import CliRunner

from scheduler.cli.app import app


@pytest.fixture
def quote(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)

    def run(bodies, *options):
        (tmp_path / "p.jsonl").write_text("".join(f"{json.dumps(body)}\n" for body in bodies))
        done = CliRunner().invoke(app, ["quote", "p.jsonl", *options])
        if "--json" in options:
            return done.exit_code, json.loads(done.stdout)
        return done.exit_code, " ".join(done.output.split())

    return run


def ask(model="gpt-5", content="hi", **more):
    return {"model": model, "messages": [{"role": "user", "content": content}], **more}


def test_what_may_cost_more_than_the_whole_limit_is_said_never_to_start(quote):
    code, said = quote([ask()] * 3 + [ask("gpt-4o-mini")], "--budget", "$1")

    assert code == 1
    assert "3 requests can never start: up to $1.28" in said
    assert "--cap-output 99" in said
    assert "a limit of at least $1.29" in said
    assert "all of them" not in said
    assert "all others (1) fit now" in said


def test_the_option_that_is_named_is_enough(quote):
    _, told = quote([ask()], "--budget", "$1", "--json")
    (never,) = told["never"]

    assert never["needs_at_most"] == "1.2801875"
    assert told["done_at"] is None
    code, told = quote(
        [ask()], "--budget", "$1", "--cap-output", str(never["cap_output"]), "--json"
    )
    assert (code, told["never_start"], told["fits_now"]) == (0, 0, 1)
    code, told = quote([ask()], "--budget", "$1.29", "--json")
    assert (code, told["never_start"], told["fits_now"]) == (0, 0, 1)


def test_a_cap_that_the_body_sets_itself_is_named_by_its_own_name(quote):
    body = ask(max_completion_tokens=120_000)
    _, told = quote([body], "--budget", "$1", "--json")
    _, said = quote([body], "--budget", "$1")
    (never,) = told["never"]

    assert never["cap_output"] is None
    assert f"at most {never['max_tokens']} as max_tokens" in said
    assert "--cap-output" not in said
    body["max_completion_tokens"] = never["max_tokens"]
    assert quote([body], "--budget", "$1", "--json")[1]["never_start"] == 0


def test_several_answers_share_the_room(quote):
    body = ask(max_completion_tokens=120_000, n=2)
    (never,) = quote([body], "--budget", "$1", "--json")[1]["never"]
    body["max_completion_tokens"] = never["max_tokens"]

    assert quote([body], "--budget", "$1", "--json")[1]["never_start"] == 0
    assert never["max_tokens"] > 40_000


def test_a_prompt_that_is_too_dear_alone_needs_a_raise(quote):
    code, said = quote([ask(content="x" * 100_000)], "--budget", "$0.01")

    assert code == 1
    assert "shorter prompts in 1" in said
    assert "--cap-output" not in said


@pytest.mark.parametrize(
    ("budget", "unit"),
    [("1000 tokens", "tokens"), ("$5/hour, 1000 tokens/day", "tokens"),
     ("$5/day, $1/hour", "usd"), ("0 requests/day", "requests")],
)  # fmt: skip
def test_every_cap_is_looked_at_whatever_it_counts(quote, budget, unit):
    code, told = quote([ask()], "--budget", budget, "--json")

    assert (code, told["never_start"]) == (1, 1)
    assert told["never"][0]["unit"] == unit


def test_of_a_budget_without_a_window_what_is_spent_never_comes_back(quote, tmp_path):
    from scheduler.budget import Budget
    from scheduler.cli.forecast import Forecast
    from scheduler.pricing import PriceBook
    from scheduler.request import Request
    from scheduler.stats import CapStatus

    tariff, request = PriceBook({"m": "1000/1000"}).tariff(), Request.chat("m", "x", max_tokens=100)

    def never(spec):
        (cap,) = Budget("b", spec).caps
        forecast = Forecast()
        forecast.begin([CapStatus(cap, cap.limit, 10**9 - 10**8, 0, 0, 0, None)], 0)
        forecast.add(request, tariff.quote(request), tariff.quote)
        return forecast.never_start, forecast.fits_now

    assert never("$1") == (1, 0)  # $0.10 is left of it, for good
    assert never("$1/day") == (0, 0)  # tomorrow


def test_few_at_once_is_said_and_the_rest_told_when(quote):
    code, said = quote([ask()] * 3, "--budget", "$3/day")

    assert code == 0
    assert "all of them fit now, at their expected cost; no more than 2 at the same time" in said
    code, said = quote([ask("gpt-4o-mini")] * 3, "--budget", "$3/day, 1 requests/day")
    assert (code, "1 of 3 fit now" in said, "the rest would be done after" in said) == (
        0, True, True,
    )  # fmt: skip


def test_why_a_quote_is_no_bound_is_told(quote):
    part = {"type": "image_url", "image_url": {"url": "https://x/y.png"}}
    code, said = quote([ask(content=[part], max_completion_tokens=9)], "--budget", "$1")

    assert code == 0
    assert "for 1 request 'most' is an estimate, not a bound: how many tokens" in said


def test_without_a_limit_everything_fits(quote):
    code, said = quote([ask()])

    assert (code, "everything fits now" in said) == (0, True)
