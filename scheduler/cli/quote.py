"""``scheduler quote``: what a batch will cost, what fits, and when it would be done."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scheduler.batch.input import MAX_LINE_BYTES, LineOptions
from scheduler.cli.exits import Exit
from scheduler.cli.helping import Command
from scheduler.cli.look import DEFAULT_STORE, JsonOption, now_ms, opened, store_path
from scheduler.cli.options import (
    MONEY,
    SENDING,
    BaseUrlOption,
    CapOutputOption,
    IdColumnOption,
    LimitOption,
    MaxLineBytesOption,
    ModelOption,
    OutputOption,
    PriceOption,
    config_option,
)

if TYPE_CHECKING:
    from scheduler.batch.held import Held
    from scheduler.batch.input import BatchLine
    from scheduler.batch.source import Source
    from scheduler.cli.delivery import Files
    from scheduler.cli.forecast import Forecast, Never, Total
    from scheduler.cli.learned import Learned
    from scheduler.cli.options import Sending
    from scheduler.cli.sampling import Draw
    from scheduler.core.intake import Intake
    from scheduler.rehearsal import Scene
    from scheduler.request import Quote, Request
    from scheduler.stats import CapStatus
    from scheduler.stores.base import Known, Store

EXAMPLES = """\
scheduler quote prompts.jsonl
scheduler quote prompts.jsonl --budget '$10/day'
scheduler quote prompts.jsonl --sample 50 --budget '$0.10'   # sends 50 lines, to know better"""
MOST_SHOWN = 20  # bad lines
FEW_AT_ONCE = 16  # so few or fewer are worth a word
CENT_NUSD = 10**7


def register(app: typer.Typer) -> None:
    """Add the command to the root."""
    app.command("quote", cls=Command, epilog=EXAMPLES)(quote)


def quote(
    input_file: Annotated[
        str,
        typer.Argument(metavar="PROMPTS", help="JSON lines or an array, also gzipped; - is stdin."),
    ],
    output: OutputOption = None,
    model: ModelOption = None,
    limit: LimitOption = None,
    id_column: IdColumnOption = None,
    max_line_bytes: MaxLineBytesOption = MAX_LINE_BYTES,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="LIMIT",
            help="What if this were it, e.g. '$10/day'; default: the stored one. With --sample: what "
            "the sample may cost, e.g. '$0.10'.",
            rich_help_panel=MONEY,
        ),
    ] = None,
    sample: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Send N lines drawn at random, within --budget, and judge by them. Their answers are "
            "kept: a run does not send them again.",
            rich_help_panel=MONEY,
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(metavar="N", help="Of what is drawn at random.", rich_help_panel=MONEY)
    ] = 0,
    cap_output: CapOutputOption = None,
    price: PriceOption = None,
    base_url: BaseUrlOption = None,
    config: Annotated[str | None, config_option(SENDING)] = None,
    store: Annotated[
        str,
        typer.Option(
            envvar="SCHEDULER_STORE",
            metavar="URL",
            help="Where budgets and earlier answers are looked up.",
        ),
    ] = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Say what a batch will cost before it runs, and what of it can start.

    Sends nothing, unless --sample says so. What an earlier run of the same command asked is looked
    up: what has its answer costs nothing. Where the store has answers of the same models, what is
    expected is learned from them.
    """
    from scheduler.cli.estimating import (
        Draw,
        Estimate,
        as_json_rows,
        check_sample,
        sampled,
        tell_estimate,
    )
    from scheduler.cli.forecast import Forecast
    from scheduler.cli.learned import Learned
    from scheduler.cli.options import Sending, check_store, open_input, parse_prices
    from scheduler.cli.rehearsing import as_json_row, dates, desks, purse, risk_of, tell_dates
    from scheduler.cli.run import files_of

    with open_input(input_file) as source:
        files = files_of(input_file, source, output)
        check_store(store)
        sending = Sending(config, base_url, cap_output=cap_output)
        options = LineOptions(
            model=model, limit=limit, max_line_bytes=max_line_bytes, id_column=id_column
        )
        given, at_ms = parse_prices(price or ()), now_ms()

        # With --sample it bounds that, and the stored one is what the rest has to fit.
        what_if = budget if sample is None else None

        async def read(
            draw: Draw | None = None,
        ) -> tuple[Forecast, list[CapStatus], Learned, Scene]:
            async with _looked_at(store) as looked:
                status = await looked.budgets(at_ms) if looked else []
                prices = {**(await looked.prices() if looked else {}), **given}
                caps = _caps(what_if, status, at_ms)
                forecast = Forecast()
                forecast.begin(caps, at_ms)
                earlier = await Earlier.of(looked, files)
                learned = await Learned.of(looked, earlier.job, seed)
                intake = _intake(sending, prices)
                reading = _Reading(forecast, intake, earlier, learned, draw)
                await reading.all(source, options)
                rates = await looked.rates(at_ms) if looked else {}
                money = [purse(caps, risk_of(what_if, status))] if caps else []
                scene = reading.lines.scene(at_ms, money, desks(intake, rates), learned.lore())
                return forecast, caps, learned, scene

        taken = None
        if sample is not None:
            bound = check_sample(budget, source)
            draw = Draw(sample, seed)
            asyncio.run(read(draw))
            source.rewind()
            settings = {**sending.settings(), "store": store, "prices": given}
            taken = asyncio.run(sampled(settings, bound, draw, source, files, options))
        forecast, caps, learned, scene = asyncio.run(read())
    estimate, ends = Estimate(learned, taken), dates(scene, seed)
    if as_json:
        from scheduler.cli.output import emit_json

        row = {"finish": as_json_row(ends, scene)}
        emit_json({**_as_json(forecast, caps), **as_json_rows(estimate), **row})
    else:
        _show(forecast, caps, at_ms)
        tell_estimate(estimate)
        tell_dates(ends, scene)
    if taken is not None and taken.exit not in (Exit.DONE, Exit.PARKED, Exit.FAILED):
        raise typer.Exit(taken.exit)
    if forecast.unknown:
        raise typer.Exit(Exit.CONFIG)
    if forecast.bad or forecast.never or forecast.known_failed:
        raise typer.Exit(Exit.FAILED)


@contextlib.asynccontextmanager
async def _looked_at(url: str) -> AsyncIterator[Store | None]:
    """The store, if there is one."""
    path = store_path(url)
    if path is None or not path.exists():
        yield None
        return
    async with opened(url) as store:
        yield store


def _caps(budget: str | None, statuses: list[Any], now_ms: int) -> list[CapStatus]:
    """The caps of the given budget, with what the stored one has spent of them."""
    from scheduler.budget import Budget
    from scheduler.stats import CapStatus

    stored = next((s for s in statuses if s.budget.name == "default"), None)
    caps = [] if stored is None else list(stored.caps)
    if budget is not None:
        spent = {(c.cap.unit, c.cap.window): c for c in caps}
        caps = []
        for cap in Budget("default", budget).caps:
            known = spent.get((cap.unit, cap.window))
            posted, reserved = (known.posted, known.reserved) if known else (0, 0)
            allowed = None
            if cap.pace is not None and cap.limit is not None:
                allowed = cap.pace.allowed(cap.limit, cap.window, now_ms)
            caps.append(
                CapStatus(cap, cap.limit, posted, reserved, 0, now_ms, None, allowed=allowed)
            )
    return [cap for cap in caps if cap.limit is not None]


def _intake(sending: Sending, prices: dict[str, str]) -> Intake:
    """Takes requests as a run would, with its providers, routes and caps; needs no key."""
    from scheduler.clock import SystemClock
    from scheduler.core.intake import Intake, Prevention
    from scheduler.prices.book import PriceBook

    settings = sending.settings(needs_key=False)
    prevention = Prevention(
        settings["max_prompt_tokens"], settings["max_cost"], settings["fallback"],
        settings["cap_output"],
    )  # fmt: skip
    return Intake(
        settings["providers"], PriceBook(prices), SystemClock(), settings["on_exceeded"], prevention,
        settings["routes"],
    )  # fmt: skip


class _Reading:
    """Reads all of an input, a chunk at a time, and does with each line what a run does.

    With `draw`, to draw from what has no answer yet: then nothing is said of it.
    """

    def __init__(
        self, forecast: Forecast, intake: Intake, earlier: Earlier, learned: Learned,
        draw: Draw | None,
    ) -> None:  # fmt: skip
        from scheduler.cli.rehearsing import Lines

        self._forecast, self._intake, self._earlier = forecast, intake, earlier
        self._learned, self._draw = learned, draw
        self.lines = Lines()  # to be sent
        self._told: set[str] = set()

    async def all(self, source: Source, options: LineOptions) -> None:
        """To its end."""
        from scheduler.batch.input import BadLine, read_source
        from scheduler.cli.feeding import CHUNK

        lines = read_source(source, options)
        while chunk := list(itertools.islice(lines, CHUNK)):
            keys = [line.request.key or "" for line in chunk if not isinstance(line, BadLine)]
            known = await self._earlier.known(keys)
            for line in chunk:
                if isinstance(line, BadLine):
                    self._forecast.bad.append(str(line.error))
                else:
                    self._line(source.name, line, known.get(line.request.key or ""))

    def _line(self, name: str, line: BatchLine, stands: Known | None) -> None:
        from scheduler.cli.feeding import conflict, told_columns
        from scheduler.cli.output import say
        from scheduler.request import RequestState

        forecast, held = self._forecast, self._earlier.held
        key, digest = line.request.key or "", _digest(self._intake, line.request)
        if digest and held and held.answers(key, digest):
            forecast.known += 1
            return
        if (words := told_columns(line, self._told)) and self._draw is None:
            say(words)
        quoted = _quoted(forecast, name, line, self._intake)
        if quoted is None:
            return
        if stands is not None and stands.is_conflict(digest):
            forecast.bad.append(str(conflict(name, line)))
        elif stands is not None and stands.state is RequestState.SUCCEEDED:
            forecast.known += 1
        elif stands is not None and _has_failed(stands):
            forecast.known_failed += 1
        elif self._draw is not None:
            if stands is None or stands.state.is_final:  # what waits has its place already
                self._draw.offer(line)
        else:
            expected = self._learned.add(line.request, quoted, self._intake.check)
            if forecast.add(line.request, expected, self._intake.check):
                self.lines.add(line.request, quoted, self._intake)


def _has_failed(known: Known) -> bool:
    """Whether a run leaves it at that."""
    from scheduler.cli.feeding import is_sent_again
    from scheduler.stores.views import is_tried_again

    is_final = known.state.is_final and not is_tried_again(known.state, retry_failed=False)
    return is_final and not is_sent_again(known.error)


def _digest(intake: Intake, request: Request) -> str:
    """What tells it from others; empty: it cannot be prepared, which is told of it then."""
    try:
        return intake.digest(request)
    except Exception:
        return ""


def _quoted(forecast: Forecast, name: str, line: BatchLine, intake: Intake) -> Quote | None:
    """What a line may cost; None: it cannot be sent, which is noted."""
    from scheduler.cli.feeding import refused
    from scheduler.errors import PriceUnknown

    model = line.request.model
    try:
        return intake.check(line.request)
    except PriceUnknown as error:
        forecast.unknown[model] = forecast.unknown.get(model, 0) + 1
        forecast.unknown_why[model] = str(error)
    except Exception as exc:  # as a run would: it is this line's affair
        forecast.bad.append(str(refused(exc, name, line).error))
    return None


class Earlier:
    """What earlier runs of the same command have asked, in the store and in the results file."""

    def __init__(self, store: Store | None, job: str, held: Held) -> None:
        self._store, self.job, self.held = store, job, held

    @classmethod
    async def of(cls, store: Store | None, files: Files) -> Earlier:
        """Find out which job it is, and read its results. Raises as a run would."""
        from scheduler.batch.files import check_lines, lines_of
        from scheduler.batch.held import Held
        from scheduler.cli.delivery import answers_in, job_of

        job = files.job if store is None else (await job_of(store, files))[0]
        if files.results is None or not files.results.exists():
            return cls(store, job, Held())
        check_lines(files.results)
        return cls(store, job, answers_in(lines_of(files.results)))

    async def known(self, keys: Sequence[str]) -> dict[str, Known]:
        """What the store has under these keys."""
        return await self._store.known(self.job, keys) if self._store and keys else {}


def _as_json(forecast: Forecast, caps: list[CapStatus]) -> dict[str, Any]:
    from scheduler.cli.output import iso

    zone = "UTC" if not caps else caps[0].cap.window.zone
    return {
        **_sums(forecast.total),
        "by_model": {model: _sums(total) for model, total in forecast.by_model.items()},
        "unknown_prices": forecast.unknown,
        "why_unknown": forecast.unknown_why,
        "bad_lines": len(forecast.bad),
        "known_before": forecast.known,
        "failed_before": forecast.known_failed,
        "budget": ", ".join(str(each.cap) for each in caps) or None,
        "fits_now": forecast.fits_now,
        "at_once": forecast.at_once if caps else None,
        "never_start": forecast.never_start,
        "never": [_never_json(each) for each in forecast.never.values()],
        "more_windows": forecast.windows,
        "done_at": iso(forecast.done_at_ms, zone),
        "why_unbounded": forecast.unbounded,
    }


def _never_json(never: Never) -> dict[str, Any]:
    from scheduler.budget import Unit
    from scheduler.money import decimal_usd

    def amount(value: int) -> str | int:
        return decimal_usd(value) if never.cap.unit is Unit.USD else value

    return {
        "requests": never.requests,
        "budget": str(never.cap),
        "unit": str(never.cap.unit),
        "room": amount(never.room),
        "needs_at_least": amount(never.least or 0),
        "needs_at_most": amount(never.needs),
        "cap_output": never.cap_output,
        "max_tokens": never.max_tokens,
        "too_long_prompts": never.by_prompt,
    }


def _sums(total: Total) -> dict[str, Any]:
    from scheduler.money import decimal_usd

    return {
        "requests": total.requests,
        "least_usd": decimal_usd(total.least_nusd),
        "expected_usd": decimal_usd(total.expected_nusd),
        "most_usd": decimal_usd(total.ceiling_nusd),
        "unbounded": total.unbounded,
    }


def _show(forecast: Forecast, caps: list[CapStatus], now_ms: int) -> None:
    from scheduler.cli.output import plural, say, table, tell
    from scheduler.money import format_usd

    rows = [
        (
            model,
            f"{t.requests:,}",
            *map(format_usd, (t.least_nusd, t.expected_nusd, t.ceiling_nusd)),
        )
        for model, t in sorted(forecast.by_model.items())
    ]
    total = forecast.total
    sums = map(format_usd, (total.least_nusd, total.expected_nusd, total.ceiling_nusd))
    rows.append(("total", f"{total.requests:,}", *sums))
    print(
        table(
            ("model", "requests", "least", "expected", "most"), rows, "requests least expected most"
        )
    )
    tell(_what_fits(forecast, caps, now_ms))
    for never in forecast.never.values():
        tell(_what_never_starts(never))
    if forecast.known:
        say(f"{plural(forecast.known, 'request')} answered by an earlier run: not sent again")
    if forecast.known_failed:
        say(
            f"{plural(forecast.known_failed, 'request')} failed in an earlier run: sent again only "
            "with --retry-failed"
        )
    for why, count in forecast.unbounded.items():
        say(f"for {plural(count, 'request')} 'most' is an estimate, not a bound: {why}")
    for model, count in forecast.unknown.items():
        say(f"{plural(count, 'request')}: {forecast.unknown_why[model]}")
    for problem in forecast.bad[:MOST_SHOWN]:
        say(f"error: {problem}")


def _what_fits(forecast: Forecast, caps: list[CapStatus], now_ms: int) -> str:
    """What starts now, how many at once, and when the rest would."""
    from scheduler.cli.output import plural, until

    if not forecast.total.requests:
        return "nothing would be sent"
    if not caps:
        return "no limit: everything fits now"
    within = " and ".join(str(each.cap) for each in caps)
    able = forecast.total.requests - forecast.never_start
    if forecast.fits_now == able and able:
        which = "all of them fit" if not forecast.never else f"all others ({able:,}) fit"
        words = f"within {within}: {which} now, at their expected cost"
    else:
        words = f"within {within}: {forecast.fits_now:,} of {forecast.total.requests:,} fit now"
        words += ", at their expected cost"
        if forecast.unfit:
            words += f"; {plural(forecast.unfit, 'request')} not without a raise"
        elif forecast.last_ms > now_ms:
            zone = caps[0].cap.window.zone
            words += f"; the rest would be done after {until(forecast.last_ms, zone, now_ms)}"
    if forecast.at_once < min(forecast.fits_now, FEW_AT_ONCE):
        words += (
            f"; no more than {forecast.at_once:,} at the same time, since each puts aside the most "
            "that it may cost until it ends"
        )
    return words


def _what_never_starts(never: Never) -> str:
    """How many, what they need, and every option that changes it."""
    from scheduler.budget import Unit
    from scheduler.cli.output import plural

    raise_to = never.raise_to
    if never.cap.unit is Unit.USD:
        raise_to = -(-raise_to // CENT_NUSD) * CENT_NUSD  # rounded up: it must be enough
    ways = []
    if never.cap_output is not None:
        ways.append(f"--cap-output {never.cap_output} for bodies that set no output cap")
    if never.max_tokens is not None:
        ways.append(f"at most {never.max_tokens} as max_tokens in those that set one")
    if never.by_prompt:
        ways.append(f"shorter prompts in {never.by_prompt:,}")
    return (
        f"{plural(never.requests, 'request')} can never start: up to {never.cap.format_amount(never.needs)} is put "
        f"aside for one, and {never.cap} never has more than {never.cap.format_amount(never.room)}. "
        f"What changes it: {'; '.join([*ways, f'a limit of at least {never.cap.format_amount(raise_to)}'])}"
    )
