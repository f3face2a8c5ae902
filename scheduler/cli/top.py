"""``scheduler top``: budgets, queue, speed and spend, live in a terminal; on any store, and read only."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scheduler.cli.helping import Command
from scheduler.cli.look import DEFAULT_STORE, JsonOption, StoreOption, now_ms, opened
from scheduler.cli.output import emit_json, iso
from scheduler.cli.screen import Line, Speed, plain, screen
from scheduler.cli.status import shortfall_row, status_row
from scheduler.cli.widths import columns_of
from scheduler.money import decimal_usd
from scheduler.request import priority_word
from scheduler.telemetry.picture import Picture, look

if TYPE_CHECKING:
    from scheduler.stats import SpendRow, Standing
    from scheduler.stores.base import Store

REFRESH_S = 1.0  # looked at most so often whether something changed
STALE_S = 10.0  # looked at in any case: windows end, and money leaves them, by themselves
SPEND_EVERY = 10  # looks; what was ever spent is the one figure that costs more with the years
SPEED_S = 60.0  # over so long it is told how fast requests end
ASIDE = 100  # columns where there is no terminal
EXAMPLES = """\
scheduler top
scheduler top --once
scheduler top --json --store postgresql://db/llm"""


def register(app: typer.Typer) -> None:
    """Add the command to the root."""
    app.command("top", cls=Command, epilog=EXAMPLES)(top)


def top(
    store: StoreOption = DEFAULT_STORE,
    once: Annotated[bool, typer.Option("--once", help="Show one picture, and end.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show budgets, queue, speed and spend as they change; q ends it. It changes nothing.

    Where stdout is no terminal, or with --json, it shows one picture.
    """
    is_live = not (once or as_json) and sys.stdout.isatty()

    async def show() -> None:
        async with opened(store) as open_store:
            view = View(open_store, store)
            if is_live:
                await _live(view)
            elif as_json:
                emit_json(top_row(await view.look()))
            else:
                lines = screen(await view.look(), view.speed, columns_of(sys.stdout) or ASIDE)
                print(plain(lines), flush=True)

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(show())


class View:
    """A store that is looked at again when something changed.

    Args:
        store: Open.
        url: How it is told to people.
    """

    def __init__(self, store: Store, url: str) -> None:
        self._store, self._url = store, url
        self._picture: Picture | None = None
        self._looked_s, self._looks = 0.0, 0
        self._spend: Sequence[SpendRow] | None = None
        self._ended: deque[tuple[int, int]] = deque()  # when, and how many had

    async def look(self) -> Picture:
        """A picture of now: what the last one told, if nothing has changed since."""
        now_s = asyncio.get_running_loop().time()
        is_old = self._picture is None or now_s >= self._looked_s + STALE_S
        if await self._store.changed(now_ms()) or is_old:
            spend = self._spend if self._looks % SPEND_EVERY else None
            self._picture = await look(self._store, self._url, now_ms(), spend=spend)
            self._looks, self._looked_s, self._spend = self._looks + 1, now_s, self._picture.spend
        assert self._picture is not None
        picture = replace(self._picture, at_ms=now_ms())
        self._note(picture.at_ms, picture)
        return picture

    def _note(self, at_ms: int, picture: Picture) -> None:
        counts = picture.counts
        self._ended.append((at_ms, counts.succeeded + counts.failed))
        while self._ended[0][0] < at_ms - SPEED_S * 1000:
            self._ended.popleft()

    @property
    def speed(self) -> Speed:
        """How fast requests end: in the last minute, as far as it was seen, else lately."""
        (first_ms, before), (last_ms, after) = self._ended[0], self._ended[-1]
        if last_ms - first_ms >= 5 * REFRESH_S * 1000:
            return Speed(max(0, after - before), (last_ms - first_ms) / 1000)
        picture = self._picture
        assert picture is not None
        attempts = sum(row.attempts for row in picture.lately.by_model)
        return Speed(attempts, max(1, picture.at_ms - picture.lately.since_ms) / 1000)


async def _live(view: View) -> None:
    """Redraw until somebody wants it to end."""
    from rich.console import Console
    from rich.live import Live

    console = Console(file=sys.stdout, highlight=False)
    ended = asyncio.Event()
    drawn: tuple[object, ...] = ()
    with (
        _keys(ended.set),
        Live(console=console, screen=True, auto_refresh=False, transient=True) as live,
    ):
        while not ended.is_set():
            picture = await view.look()
            lines = screen(picture, view.speed, console.width, console.height, is_live=True)
            size = (console.width, console.height, plain(lines))
            if size != drawn:
                drawn = size
                live.update(_text(lines), refresh=True)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REFRESH_S):
                    await ended.wait()


def _text(lines: Sequence[Line]) -> Any:
    from rich.text import Text  # which takes nothing in a name for markup or an emoji

    shown = Text(no_wrap=True, overflow="crop", end="")
    for number, line in enumerate(lines):
        shown.append("\n" * bool(number))
        for piece in line:
            shown.append(piece.text, piece.style or None)
    return shown


@contextlib.contextmanager
def _keys(quit: Callable[[], object]) -> Iterator[None]:
    """Have ``q`` typed at the terminal end it; where keys cannot be read one by one, Ctrl-C does."""
    try:
        import termios
        import tty

        typed = sys.stdin.fileno()
        before = termios.tcgetattr(typed)
    except (ImportError, OSError, ValueError, AttributeError, termios.error):
        yield
        return
    loop = asyncio.get_running_loop()

    def read() -> None:
        import os

        keys = os.read(typed, 64)
        if not keys or b"q" in keys.lower() or b"\x03" in keys:
            loop.remove_reader(typed)
            quit()

    tty.setcbreak(typed)
    try:
        loop.add_reader(typed, read)
        try:
            yield
        finally:
            loop.remove_reader(typed)
    finally:
        termios.tcsetattr(typed, termios.TCSADRAIN, before)


def top_row(picture: Picture) -> dict[str, Any]:
    """A picture for programs: what ``status --json`` tells, and more."""
    found = status_row(picture)
    caps = [(status, cap) for status in picture.budgets for cap in status.caps]
    for row, (status, cap) in zip(found["budgets"], caps, strict=True):
        rate, is_usd = round(picture.per_hour(status, cap)), cap.cap.unit.value == "usd"
        row["per_hour_usd"] = decimal_usd(rate) if is_usd else None
        row["per_hour"] = None if is_usd else rate
        row["spent_at"] = iso(picture.spent_at_ms(status, cap), cap.cap.window.zone)
    unknown = picture.unknown
    return found | {
        "queue": [_standing_row(each) for each in picture.standing],
        "unknown": {
            "outcomes": unknown.attempts,
            "held_usd": decimal_usd(unknown.nusd),
            "oldest_at": iso(unknown.oldest_at_ms) if unknown.attempts else None,
        },
        "lately": {
            "since": iso(picture.lately.since_ms),
            "models": [_spend_row(each) for each in picture.lately.by_model],
            "jobs": [_spend_row(each) for each in picture.lately.by_job],
        },
    }


def _standing_row(each: Standing) -> dict[str, Any]:
    return {
        "state": each.state.value,
        "priority": priority_word(each.priority),
        "reason": each.reason or None,
        "of": each.budget or None,
        "requests": each.requests,
        "oldest_at": iso(each.oldest_at_ms),
        "parked_since": iso(each.since_ms) if each.lack is not None else None,
        "shortfall": None if each.lack is None else shortfall_row(each.lack),
    }


def _spend_row(row: SpendRow) -> dict[str, Any]:
    return {
        "name": row.name,
        "attempts": row.attempts,
        "posted_usd": decimal_usd(row.posted_nusd),
        "reserved_usd": decimal_usd(row.reserved_nusd),
        "suspense_usd": decimal_usd(row.suspense_nusd),
        "tokens": row.tokens,
    }
