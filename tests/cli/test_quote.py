"""What a batch will cost, what of it can start at all, and what would change that."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from scheduler.cli.app import app
from scheduler.cli.quote import _caps


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
    from scheduler.prices.book import PriceBook
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


@pytest.fixture
def of_a_dollar():
    """Forecasts requests that may cost ten cents each, and are expected to, under a budget."""
    from scheduler.budget import Budget
    from scheduler.cli.forecast import Forecast
    from scheduler.request import Quote, Request
    from scheduler.stats import CapStatus

    cents = 10**7

    def made(spec, priorities, posted=0, at_h=0.0):
        now_ms = round(at_h * 3_600_000)
        (cap,) = Budget("b", spec).caps
        allowed = cap.pace and cap.pace.allowed(cap.limit, cap.window, now_ms)
        forecast = Forecast()
        status = CapStatus(cap, cap.limit, posted * cents, 0, 0, 0, None, allowed=allowed)
        forecast.begin([status], now_ms)
        one = Quote(10 * cents, 10 * cents, 0)
        for priority in priorities:
            forecast.add(Request.chat("m", "x", priority=priority), one, lambda request: one)
        return forecast

    return made


def test_a_forecast_leaves_what_is_kept_until_it_is_released(of_a_dollar):
    made = of_a_dollar("$1/day keep 20% for interactive", ["batch"] * 10)

    assert (made.fits_now, made.at_once) == (8, 8)
    assert made.windows == 0
    assert 23 < made.done_at_ms / 3_600_000 < 24  # the last one has to wait for nearly all of it
    assert of_a_dollar("$1/day keep 20% for interactive", ["interactive"] * 10).fits_now == 10


def test_what_is_kept_for_good_is_never_room_for_others(of_a_dollar):
    made = of_a_dollar("$1/5h keep 25% for interactive", ["batch"] * 9)
    assert (made.fits_now, made.windows) == (7, 1)

    made = of_a_dollar("$1 keep 25% for interactive", ["batch"] * 9)
    assert (made.fits_now, made.unfit, made.done_at_ms) == (7, 2, None)


def test_a_limit_that_is_enough_is_told_where_some_of_it_is_kept(of_a_dollar):
    spec = "$0.11 keep 50% for interactive"
    made = of_a_dollar(spec, ["batch", "interactive"])
    (never,) = made.never.values()

    assert (never.requests, never.room, never.raise_to) == (1, 55_000_000, 200_000_000)
    assert made.fits_now == 1
    assert not of_a_dollar(spec.replace("0.11", "0.20"), ["batch"]).never


def test_a_forecast_knows_what_is_paced_and_kept(of_a_dollar):
    spec = "$1/day paced 12:00-24:00 keep 50% for interactive"
    made = of_a_dollar(spec, ["batch"] * 3, at_h=15)

    # A quarter of it is allowed by then, with an hour of slack, and three eighths are kept.
    assert made.fits_now == 0
    assert 18 < made.done_at_ms / 3_600_000 < 20


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


# What an earlier run of the same command has asked


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "SCHEDULER_STORE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def write(*bodies, name="p.jsonl", ids=True):
    lines = [{"custom_id": f"r{n}"} if ids else {} for n in range(len(bodies))]
    text = "".join(
        f"{json.dumps({**one, **body})}\n" for one, body in zip(lines, bodies, strict=True)
    )
    Path(name).write_text(text)


def command(name, *words):
    done = CliRunner().invoke(app, [name, *words, "--base-url", "sim:", "--json"])
    return done, json.loads(done.stdout[done.stdout.index("{") :])


def sim(content, **more):
    return {"prompt": content, "model": "sim-small", "max_tokens": 20, **more}


def told_and_done(*words):
    """What quote tells, which is what the run that follows does."""
    done, told = command("quote", *words)
    ran, outcome = command("run", *words)
    for name in ("bad_lines", "known_before", "failed_before"):
        assert told[name] == outcome[name], (name, done.stderr, ran.stderr)
    assert told["requests"] == outcome["succeeded"] + outcome["failed"]
    assert done.exit_code == ran.exit_code
    said = CliRunner().invoke(app, ["quote", *words, "--base-url", "sim:"]).stderr
    assert told["bad_lines"] == said.count("error: ")
    return told


@pytest.mark.parametrize("ids", [True, False])
def test_an_id_that_had_another_body_in_an_earlier_run_is_told_as_a_run_tells_it(place, ids):
    write(sim("a"), sim("b"), sim("c"), ids=ids)
    assert told_and_done("p.jsonl")["requests"] == 3
    write(sim("a"), sim("changed"), sim("c"), sim("d"), ids=ids)

    done = CliRunner().invoke(app, ["quote", "p.jsonl", "--base-url", "sim:"])
    told = told_and_done("p.jsonl")

    assert (told["requests"], told["known_before"], told["bad_lines"]) == (1, 2, 1)
    assert done.exit_code == 1
    assert "p.jsonl:2: " in done.stderr
    assert "--fresh forgets earlier answers" in done.stderr
    assert "2 requests answered by an earlier run" in done.stderr


def test_one_that_waits_is_sent_and_its_id_with_another_body_is_refused(place):
    write(*(sim(each) for each in "abc"))
    stop = ("--budget", "$0", "--on-exhausted", "stop")
    assert command("run", "p.jsonl", *stop)[1]["left"] == 3
    write(sim("a"), sim("changed"), sim("c"))

    told = told_and_done("p.jsonl", "--budget", "$1")

    assert (told["requests"], told["known_before"], told["bad_lines"]) == (2, 0, 1)


def test_another_output_is_another_run_and_so_is_another_store(place):
    write(sim("a"), sim("b"))
    told_and_done("p.jsonl")
    write(sim("a"), sim("changed"))

    assert command("quote", "p.jsonl", "-o", "other.jsonl")[1]["requests"] == 2
    assert command("quote", "p.jsonl", "--store", "other.db", "-o", "-")[1]["requests"] == 2
    assert not Path("other.db").exists()
    assert not Path("other.jsonl").exists()
    assert told_and_done("p.jsonl")["bad_lines"] == 1


def test_what_the_results_file_holds_costs_nothing_whatever_the_store_has_forgotten(place):
    write(sim("a"), sim("b"))
    told_and_done("p.jsonl")
    Path("scheduler.db").unlink()
    write(sim("a"), sim("changed"), sim("c"))

    told = told_and_done("p.jsonl")

    assert (told["requests"], told["known_before"], told["bad_lines"]) == (2, 1, 0)


def test_what_failed_is_not_sent_again(place):
    write(sim("a"), sim("b"), sim("c"))
    failing = [
        "run",
        "p.jsonl",
        "--base-url",
        "sim:error_rate=1",
        "--max-attempts",
        "1",
        "--limit",
        "2",
    ]
    assert CliRunner().invoke(app, [*failing, "--patience", "0s"]).exit_code == 1

    told = told_and_done("p.jsonl")

    assert (told["requests"], told["known_before"], told["failed_before"]) == (1, 0, 2)


def test_what_a_run_left_is_quoted_as_that_runs(place):
    write(*(sim(each) for each in "abc"))
    assert command("run", "p.jsonl", "--budget", "$0", "--on-exhausted", "stop")[1]["left"] == 3
    write(sim("a"), sim("changed"), name="q.jsonl")
    lines = Path("p.parked.jsonl").read_text().splitlines()
    changed = lines[1].replace('"b"', '"changed"')
    assert changed != lines[1]
    Path("p.parked.jsonl").write_text("\n".join([lines[0], changed, lines[2]]) + "\n")

    told = told_and_done("p.parked.jsonl", "--budget", "$1")

    assert (told["requests"], told["bad_lines"]) == (2, 1)


def test_looking_changes_nothing_and_asks_in_pages(place, monkeypatch):
    from scheduler.stores.sqlite import SqliteStore

    write(*(sim(f"{n}") for n in range(1_200)))
    command("run", "p.jsonl", "--limit", "3")
    before = {each.name: each.read_bytes() for each in place.iterdir()}
    asked, real = [], SqliteStore.known

    async def known(self, job, keys):
        asked.append(len(keys))
        return await real(self, job, keys)

    monkeypatch.setattr(SqliteStore, "known", known)
    _, told = command("quote", "p.jsonl")

    assert (told["requests"], told["known_before"]) == (1_197, 3)
    assert asked == [500, 500, 200]
    assert {each.name: each.read_bytes() for each in place.iterdir()} == before


def test_a_quote_makes_nothing(place):
    write(sim("a"))
    told_once = command("quote", "p.jsonl", "--budget", "$1")[1]

    assert told_once["requests"] == 1
    assert [each.name for each in place.iterdir()] == ["p.jsonl"]


def test_a_budget_to_be_tried_counts_with_what_its_pace_allows_by_now():
    noon_ms = 12 * 3_600_000

    (cap,) = _caps("$24/day paced", [], noon_ms)

    assert (cap.limit, cap.available) == (24 * 10**9, 13 * 10**9)
