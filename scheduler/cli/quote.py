"""``scheduler quote``: what a batch will cost, what fits, and when it would be done."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scheduler.batch.input import MAX_LINE_BYTES, LineOptions
from scheduler.cli.exits import Exit
from scheduler.cli.look import DEFAULT_STORE, JsonOption
from scheduler.cli.options import ConfigOption
from scheduler.errors import ConfigError

if TYPE_CHECKING:
    from scheduler.batch.input import BadLine, BatchLine
    from scheduler.budget import Cap
    from scheduler.cli.options import Sending
    from scheduler.request import Quote, Request
    from scheduler.stats import CapStatus

MAX_WINDOWS = 100_000


@dataclass(slots=True)
class Total:
    """Sums over quotes."""

    requests: int = 0
    least_nusd: int = 0
    expected_nusd: int = 0
    ceiling_nusd: int = 0
    unbounded: int = 0

    def add(self, quote: Quote) -> None:
        """Count one more."""
        self.requests += 1
        self.least_nusd += quote.least_nusd
        self.expected_nusd += quote.expected_nusd
        self.ceiling_nusd += quote.ceiling_nusd
        self.unbounded += not quote.is_bound


@dataclass(slots=True)
class Forecast:
    """What a batch will cost and when it would be done.

    Attributes:
        fits_now: Requests that fit what is available now, in order, at their expected cost.
        done_at_ms: When the window begins in which the last ones fit; None: not without a raise.
        windows: How many more windows are needed.
    """

    total: Total = field(default_factory=Total)
    by_model: dict[str, Total] = field(default_factory=dict)
    unknown: dict[str, int] = field(default_factory=dict)
    bad: list[str] = field(default_factory=list)
    fits_now: int = 0
    windows: int = 0
    done_at_ms: int | None = None
    has_limit: bool = False
    _left_nusd: int = 0
    _stuck: bool = False

    def begin(self, status: CapStatus | None, now_ms: int) -> None:
        """Start with what one cap has now; None: no limit."""
        self.done_at_ms = now_ms
        self.has_limit = status is not None
        if status is not None:
            self._left_nusd = max(0, status.available or 0)

    def spend(self, quote: Quote, cap: Cap | None) -> None:
        """Fit one more request, in this window or a later one."""
        if cap is None or cap.limit is None:
            self.fits_now += 1
            return
        while not self._stuck and quote.expected_nusd > self._left_nusd:
            self._next_window(cap)
        if not self._stuck:
            self._left_nusd -= quote.expected_nusd
            self.fits_now += not self.windows

    def _next_window(self, cap: Cap) -> None:
        assert cap.limit is not None
        now_ms = self.done_at_ms or 0
        reset_ms = cap.window.resets_at_ms(now_ms)
        if reset_ms is None and cap.window.span_ms:
            reset_ms = now_ms + cap.window.span_ms + cap.window.bucket_ms
        if (
            reset_ms is None
            or self.windows >= MAX_WINDOWS
            or not cap.limit
            or self._left_nusd >= cap.limit
        ):
            self._stuck, self.done_at_ms = True, None
            return
        self.windows += 1
        self.done_at_ms, self._left_nusd = reset_ms, cap.limit


def register(app: typer.Typer) -> None:
    """Add the command to the root."""
    app.command("quote")(quote)


def quote(
    input_file: Annotated[
        str, typer.Argument(metavar="PROMPTS", help="JSONL file, or - for stdin.")
    ],
    budget: Annotated[
        str | None,
        typer.Option(help="What if this were the budget, e.g. '$10/day'; default: the stored one."),
    ] = None,
    store: Annotated[
        str,
        typer.Option(envvar="SCHEDULER_STORE", metavar="URL", help="Where 'default' is looked up."),
    ] = DEFAULT_STORE,
    base_url: Annotated[str | None, typer.Option(help="OpenAI-compatible API, or sim:")] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="For lines that name none.")
    ] = None,
    price: Annotated[
        list[str] | None, typer.Option(metavar="MODEL=IN/OUT", help="USD per million tokens.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N lines.")] = None,
    max_line_bytes: Annotated[
        int, typer.Option(min=1, help="Longer lines are errors, and not kept in memory.")
    ] = MAX_LINE_BYTES,
    cap_output: Annotated[
        int | None, typer.Option(min=1, help="Output cap where there is none.")
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a batch will cost before it runs; sends nothing."""
    import time

    from scheduler.cli.options import Sending, parse_prices

    now_ms = time.time_ns() // 1_000_000
    status, stored = asyncio.run(_stored(store, now_ms))
    cap = _usd_cap(budget, status, now_ms)
    sending = Sending(config, base_url, cap_output=cap_output)
    quote_one = _quoter(sending, {**stored, **parse_prices(price or ())})
    forecast = Forecast()
    forecast.begin(cap, now_ms)
    _read(
        forecast,
        _lines(input_file, LineOptions(model=model, limit=limit, max_line_bytes=max_line_bytes)),
        quote_one,
        None if cap is None else cap.cap,
    )
    if as_json:
        from scheduler.cli.output import emit_json

        emit_json(_as_json(forecast, cap))
    else:
        _show(forecast, cap, now_ms)
    if forecast.unknown:
        raise typer.Exit(Exit.CONFIG)
    if forecast.bad:
        raise typer.Exit(Exit.FAILED)


async def _stored(url: str, now_ms: int) -> tuple[list[Any], dict[str, str]]:
    """Budgets and prices of the store, if there is one."""
    from scheduler.cli.look import store_path
    from scheduler.stores import open_store

    path = store_path(url)
    if path is None or not path.exists():
        return [], {}
    store = open_store(url, create=False)
    await store.open(now_ms)
    try:
        return await store.budgets(now_ms), await store.prices()
    finally:
        await store.aclose()


def _usd_cap(budget: str | None, statuses: list[Any], now_ms: int) -> CapStatus | None:
    """The tightest cap in dollars: of the given budget, with what the stored one has spent."""
    from scheduler.budget import Budget, Unit
    from scheduler.stats import CapStatus

    stored = next((s for s in statuses if s.budget.name == "default"), None)
    caps = [] if stored is None else [c for c in stored.caps if c.cap.unit is Unit.USD]
    if budget is not None:
        spent = {c.cap.window: c for c in caps}
        caps = []
        for cap in Budget("default", budget).caps:
            known = spent.get(cap.window)
            posted, reserved = (known.posted, known.reserved) if known else (0, 0)
            if cap.unit is Unit.USD:
                caps.append(CapStatus(cap, cap.limit, posted, reserved, 0, now_ms, None))
    limited = [cap for cap in caps if cap.limit is not None]
    return min(limited, key=lambda cap: cap.available or 0, default=None)


def _quoter(sending: Sending, prices: dict[str, str]) -> Callable[[Request], Quote]:
    """Quotes as a run would, with its providers, routes and caps; needs no key."""
    from scheduler.clock import SystemClock
    from scheduler.intake import Intake, Prevention
    from scheduler.pricing import PriceBook

    settings = sending.settings(needs_key=False)
    prevention = Prevention(cap_output=settings["cap_output"])
    intake = Intake(
        settings["providers"], PriceBook(prices), SystemClock(), "wait", prevention,
        settings["routes"],
    )  # fmt: skip
    return intake.quote


def _lines(source: str, options: LineOptions) -> Iterator[BatchLine | BadLine]:
    from scheduler.batch.input import check_input, read_lines

    if source == "-":
        yield from read_lines(sys.stdin.buffer, "<stdin>", options)
        return
    path = Path(source)
    try:
        check_input(path)
    except ConfigError as error:
        raise typer.BadParameter(str(error.problem), param_hint="PROMPTS") from None
    with path.open("rb") as file:
        yield from read_lines(file, source, options)


def _read(
    forecast: Forecast,
    lines: Iterator[BatchLine | BadLine],
    quote_one: Callable[[Request], Quote],
    cap: Cap | None,
) -> None:
    from scheduler.batch.input import BadLine
    from scheduler.errors import PriceUnknown

    for line in lines:
        if isinstance(line, BadLine):
            forecast.bad.append(str(line.error))
            continue
        request = line.request
        try:
            quoted = quote_one(request)
        except PriceUnknown:
            forecast.unknown[request.model] = forecast.unknown.get(request.model, 0) + 1
            continue
        forecast.total.add(quoted)
        forecast.by_model.setdefault(request.model, Total()).add(quoted)
        forecast.spend(quoted, cap)


def _as_json(forecast: Forecast, cap: CapStatus | None) -> dict[str, Any]:
    from scheduler.cli.output import iso

    zone = "UTC" if cap is None else cap.cap.window.zone
    return {
        **_sums(forecast.total),
        "by_model": {model: _sums(total) for model, total in forecast.by_model.items()},
        "unknown_prices": forecast.unknown,
        "bad_lines": len(forecast.bad),
        "budget": None if cap is None else str(cap.cap),
        "fits_now": forecast.fits_now,
        "more_windows": forecast.windows,
        "done_at": iso(forecast.done_at_ms, zone),
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


def _show(forecast: Forecast, cap: CapStatus | None, now_ms: int) -> None:
    from scheduler.cli.output import plural, say, table, until
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
    if cap is None:
        print("no limit in dollars: everything fits now")
    elif forecast.windows == 0 and forecast.done_at_ms is not None:
        print(f"within {cap.cap}: all of them fit now, at their expected cost")
    else:
        zone = cap.cap.window.zone
        when = "not without a raise"
        if forecast.done_at_ms is not None:
            when = f"after {until(forecast.done_at_ms, zone, now_ms)}"
        print(
            f"within {cap.cap}: {forecast.fits_now:,} of {total.requests:,} fit now, at their "
            f"expected cost; the rest would be done {when}"
        )
    if total.unbounded:
        say(f"for {plural(total.unbounded, 'request')} 'most' is an estimate, not a bound")
    for model, count in forecast.unknown.items():
        say(
            f"no price is known for {model!r} ({plural(count, 'request')}): "
            f"scheduler prices set {model} --in 0.10 --out 0.20"
        )
    for problem in forecast.bad[:20]:
        say(f"error: {problem}")
