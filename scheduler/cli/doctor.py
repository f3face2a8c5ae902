"""``scheduler doctor``: is everything here that a run needs?

It changes nothing, sends nothing, and never shows a key.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import typer

from scheduler.cli import adopting
from scheduler.cli.exits import Exit
from scheduler.cli.helping import Command
from scheduler.cli.look import (
    DEFAULT_STORE,
    JsonOption,
    StoreOption,
    now_ms,
    store_path,
    with_store,
)
from scheduler.cli.output import emit_json, local, plural, table
from scheduler.errors import ConfigError
from scheduler.guards.plain import without_password

if TYPE_CHECKING:
    from scheduler.cli.adopting import Adoption
    from scheduler.stats import Counts
    from scheduler.stores.base import Store

PACKAGES = ("anyio", "httpx", "aiosqlite", "tenacity", "pydantic", "genai-prices", "typer", "rich")
OLDEST_PYTHON = (3, 11)
EARLIEST_MS = 1_735_689_600_000  # 2025: a clock before it is not set
OLD_PRICES_DAYS = 120


class Verdict(StrEnum):
    """What a check found."""

    OK = "ok"
    NOTE = "note"  # worth knowing; a run works
    BAD = "bad"  # a run will fail


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at."""

    name: str
    verdict: Verdict
    finding: str


def register(app: typer.Typer) -> None:
    """Add the command to the root."""
    app.command("doctor", cls=Command)(doctor)


def doctor(store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """Check Python, SQLite, store, key, clock and prices; exit 3 if a run would fail.

    Says for each SDK and framework that is installed which line adopts it.
    """
    found = list(adopting.installed())
    checks = [*examine(store), check_sdks(found)]
    if as_json:
        rows: list[dict[str, Any]] = [
            {"name": c.name, "verdict": c.verdict.value, "finding": c.finding} for c in checks
        ]
        rows[-1]["adopt"] = [asdict(each) for each in found]
        emit_json(rows)
    else:
        print(
            table(("check", "", "finding"), [(c.name, c.verdict.value, c.finding) for c in checks])
        )
        for each in found:
            print(f"\n{each.name} {each.version}, by {each.http}\n  {each.line}")
    if any(check.verdict is Verdict.BAD for check in checks):
        raise typer.Exit(Exit.CONFIG)


def check_sdks(found: Sequence[Adoption]) -> Check:
    """Which SDKs and frameworks are installed; the line that adopts each is told with it."""
    if not found:
        return Check("sdks", Verdict.OK, "none is installed of those that one line adopts")
    names = ", ".join(each.name for each in found)
    return Check("sdks", Verdict.OK, f"{names}; how to adopt them, as of {adopting.AS_OF}, with s "
                 "an open scheduler:")  # fmt: skip


def examine(store: str) -> Iterator[Check]:
    """Look at everything, one check after the other; a check that fails is a finding."""
    steps: tuple[tuple[str, Callable[[], Check]], ...] = (
        ("python", check_python),
        ("install", check_install),
        ("packages", check_packages),
        ("engine", check_engine),
        ("sqlite", lambda: check_sqlite(store)),
        ("store", lambda: check_store(store)),
        ("key", check_key),
        ("config", check_config),
        ("clock", lambda: check_clock(now_ms())),
        ("prices", lambda: check_prices(now_ms())),
    )
    for name, step in steps:
        try:
            yield step()
        except Exception as error:
            yield Check(name, Verdict.BAD, f"{type(error).__name__}: {error}")


def check_python() -> Check:
    """Whether this Python is new enough."""
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < OLDEST_PYTHON:
        return Check("python", Verdict.BAD, f"{version} is older than 3.11")
    return Check("python", Verdict.OK, f"{version} on {sys.platform}")


def check_install() -> Check:
    """Whether another project's files are mixed into this package."""
    from scheduler.cli.mixture import look

    is_well, finding = look()
    return Check("install", Verdict.OK if is_well else Verdict.NOTE, finding)


def check_packages() -> Check:
    """Whether what is needed is installed, and in which versions."""
    from importlib.metadata import PackageNotFoundError, version

    found, missing = [], []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        return Check("packages", Verdict.BAD, f"not installed: {', '.join(missing)}")
    return Check("packages", Verdict.OK, ", ".join(found))


def check_engine() -> Check:
    """Which HTTP engine requests leave by."""
    from scheduler.providers.hidden import is_panic

    try:
        import pyreqwest  # noqa: F401 - only whether it can be loaded on this machine
    except BaseException as error:  # a panic is no Exception
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        return Check("engine", Verdict.NOTE, f"httpx (slower): pyreqwest does not load: {error}")
    from importlib.metadata import version

    return Check("engine", Verdict.OK, f"pyreqwest {version('pyreqwest')}")


def check_sqlite(store: str) -> Check:
    """Which SQLite, which journal the store's file has, and why it is not the quicker one."""
    import sqlite3

    from scheduler.stores.file import OLDEST_SQLITE
    from scheduler.stores.places import why_no_log

    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        oldest = ".".join(map(str, OLDEST_SQLITE))
        return Check("sqlite", Verdict.BAD, f"{sqlite3.sqlite_version} is older than {oldest}")
    path, finding, verdict = store_path(store), sqlite3.sqlite_version, Verdict.OK
    if path is None:
        return Check("sqlite", verdict, finding)
    if path.is_file() and _is_sqlite(path):
        finding += f"; the store's file: {_pragmas(path)[0]}"
    why = why_no_log(path)
    if why is not None:
        verdict = Verdict.NOTE
        finding += f"; no write-ahead log for it: {why}. So each commit takes five syncs, not one"
    return Check("sqlite", verdict, finding)


def _is_sqlite(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(16) == b"SQLite format 3\0"


def _pragmas(path: Path) -> tuple[str, int]:
    """Journal and schema version as a file's header has them; looking needs no lock and no writing."""
    with path.open("rb") as file:
        header = file.read(100)
    mode = "write-ahead log" if header[18:19] == b"\x02" else "rollback journal"
    return mode, int.from_bytes(header[60:64], "big")


def check_store(store: str) -> Check:
    """Whether the store is there, ours, readable and not locked."""
    from scheduler.errors import SchedulerError
    from scheduler.stores import open_store
    from scheduler.stores.sql.look import may_write

    try:
        open_store(store)  # opens nothing yet: is it a store's name at all?
    except ConfigError as error:
        return Check("store", Verdict.BAD, error.problem)
    path = store_path(store)
    if path is not None and not path.exists():
        return _check_room(path)

    async def read(opened: Store) -> tuple[Counts, int]:
        return await opened.counts(), len(await opened.budgets(now_ms()))

    try:
        counts, budgets = with_store(store, read)
    except SchedulerError as error:
        return Check("store", Verdict.BAD, str(error))
    size = "" if path is None else f", {path.stat().st_size / 1e6:,.1f} MB"
    version = "" if path is None else f", schema {_pragmas(path)[1]}"
    contents = f"{plural(counts.total, 'request')}, {plural(budgets, 'budget')}"
    verdict, note = Verdict.OK, ""
    if path is not None and not may_write(path):
        verdict, note = Verdict.BAD, "; it cannot be written"
    return Check(
        "store", verdict, f"{without_password(path or store)}: {contents}{size}{version}{note}"
    )


def _check_room(path: Path) -> Check:
    folder, shown = path.absolute().parent, without_password(path)
    if not folder.is_dir():
        return Check("store", Verdict.BAD, f"there is no folder for {shown}")
    if not os.access(folder, os.W_OK):
        return Check("store", Verdict.BAD, f"{without_password(folder)} cannot be written")
    return Check("store", Verdict.NOTE, f"{shown} does not exist yet; 'scheduler run' makes it")


def check_key() -> Check:
    """Whether a key is set, and can be sent; the key itself is never shown."""
    from scheduler.providers.hidden import check_key as check
    from scheduler.providers.hidden import seal

    base_url = os.environ.get("OPENAI_BASE_URL")
    # Without name, password and query: they may be secrets, and so may what is no URL.
    place = urlsplit(without_password(base_url or ""))
    host = place.netloc.rpartition("@")[2]
    shown = f"{place.scheme}://{host}{place.path}" if host else "no URL (not shown here)"
    where = f"; OPENAI_BASE_URL is {shown}" if base_url else ""
    key = seal(os.environ.get("OPENAI_API_KEY"))
    if not key.get_secret_value():
        finding = "OPENAI_API_KEY is not set; needed unless the server is local or simulated"
        return Check("key", Verdict.NOTE, finding + where)
    try:
        check(key, "OPENAI_API_KEY")
    except ConfigError as error:
        return Check("key", Verdict.BAD, f"{error}{where}")
    return Check("key", Verdict.OK, f"OPENAI_API_KEY is set{where}")


def check_config() -> Check:
    """Which providers are configured, and whether their keys are found; no key is ever shown."""
    from scheduler.config import load_config
    from scheduler.providers.http import HttpProvider

    try:
        config = load_config()
        providers = config.providers()
    except ConfigError as error:
        return Check("config", Verdict.BAD, str(error))
    if config.path is None:
        return Check("config", Verdict.OK, "no scheduler.toml: OpenAI's API, or --base-url")
    found = {each.name: not isinstance(each, HttpProvider) or each.has_credentials
             for each in providers}  # fmt: skip
    told = ", ".join(f"{name}{'' if has_key else ' (no key)'}" for name, has_key in found.items())
    verdict = Verdict.OK if all(found.values()) else Verdict.NOTE
    return Check("config", verdict, f"{config.path}: {told or 'no providers'}")


def check_clock(at_ms: int) -> Check:
    """Whether the clock is set, and which zone calendar budgets use by default."""
    from zoneinfo import ZoneInfo

    ZoneInfo("Europe/Athens")  # raises if the zone data is missing
    told = f"{local(at_ms, 'UTC'):%Y-%m-%d %H:%M:%S} UTC; calendar windows are UTC unless told"
    if at_ms < EARLIEST_MS:
        return Check("clock", Verdict.BAD, f"{told}: the clock is not set")
    return Check("clock", Verdict.OK, told)


def check_prices(at_ms: int) -> Check:
    """Which price data there is, and how old it is, told by the newest date in it."""
    from importlib.metadata import version

    from scheduler.telemetry.price_data import newest_price

    number, today = version("genai-prices"), local(at_ms, "UTC").date()
    newest = newest_price(today)
    if newest is None:
        return Check("prices", Verdict.OK, f"genai-prices {number}")
    finding = f"genai-prices {number}, newest price dated {newest}"
    if (today - newest).days > OLD_PRICES_DAYS:
        return Check("prices", Verdict.NOTE, f"{finding}; upgrade genai-prices for newer ones")
    return Check("prices", Verdict.OK, finding)
