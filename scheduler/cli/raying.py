"""A worker as it is sent to a machine of a Ray cluster: what it is told, and what it needs from here."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scheduler.adapters.ray.fleet import Counts, Ended, Fleet
from scheduler.cli.exits import exit_for
from scheduler.cli.look import DEFAULT_FILE
from scheduler.cli.progress import Snapshot
from scheduler.cli.working import Orders
from scheduler.errors import ConfigError, SchedulerError, StoreError
from scheduler.guards.plain import one_line, plain_line
from scheduler.money import decimal_usd

if TYPE_CHECKING:
    from scheduler.cli.serving import Served, Serving

KEPT = 200  # of what a worker said, until it is asked


@dataclass(frozen=True, slots=True)
class Sent:
    """The work of a worker elsewhere (see `scheduler.adapters.ray.actor.Work`).

    Attributes:
        orders: As for a worker here.
        config: What the configuration file says that it is to use; None: there is none here.
        variables: To be set in its environment; shown to nobody.
    """

    orders: Orders
    config: str | None = field(default=None, repr=False)
    variables: dict[str, str] = field(default_factory=dict, repr=False)

    def begin(self) -> Here:
        """Make ready for it, in the process that does it."""
        os.environ.update(self.variables)
        return Here(self.orders, self.config)


def sent(orders: Orders, names: Sequence[str]) -> Sent:
    """What is sent to a worker.

    Args:
        orders: What it is told.
        names: Variables of this process's environment that it needs.

    Raises:
        ConfigError: A variable is not set here, or the configuration file cannot be used.
    """
    missing = [name for name in names if name not in os.environ]
    if missing:
        raise ConfigError("--env", f"{missing[0]} is not set here; nothing was started")
    orders.settings(needs_key=False)  # what is wrong with it is told here, and not by each of them
    orders.ending()
    chosen = orders.config or os.environ.get("SCHEDULER_CONFIG")
    path = Path(chosen or DEFAULT_FILE)
    is_there = chosen is not None or path.is_file()
    text = path.read_text(encoding="utf-8-sig") if is_there else None
    variables = {name: os.environ[name] for name in names}
    return Sent(replace(orders, config=path.name if is_there else None), text, variables)


class Here:
    """Work that has begun (see `scheduler.adapters.ray.actor.Working`)."""

    def __init__(self, orders: Orders, config: str | None) -> None:
        self._orders, self._config = orders, config
        self._shown = _Heard()
        self._serving: Serving | None = None
        self._stops = 0

    async def run(self) -> Ended:
        """Send what waits, to its end, and say how that was."""
        try:
            with _written(self._config, self._orders) as orders:
                served = await orders.carry_out(self._shown, self._took)
        except SchedulerError as error:
            is_passing = isinstance(error, StoreError) and self._serving is not None
            told = one_line(str(error)) or type(error).__name__
            return Ended(int(exit_for(error)), told, self.counts(), is_final=not is_passing)
        return Ended(int(served.exit), served.message, _in_the_end(served))

    def _took(self, serving: Serving) -> None:
        self._serving = serving
        for _ in range(self._stops):
            serving.stop()

    def stop(self) -> None:
        """As a signal does."""
        self._stops += 1
        if self._serving is not None:
            self._serving.stop()

    def counts(self) -> Counts:
        """How far it is."""
        return self._shown.counts

    def said(self, heard: int) -> tuple[tuple[str, ...], int]:
        """What it said after so much had been heard of it, and how much it has said in all."""
        return self._shown.said_after(heard)


@contextlib.contextmanager
def _written(config: str | None, orders: Orders) -> Iterator[Orders]:
    """The configuration file of where it was sent from, while the block lasts."""
    if config is None or orders.config is None:
        yield orders
        return
    with tempfile.TemporaryDirectory(prefix="scheduler-") as folder:  # of this user alone
        path = Path(folder) / orders.config
        path.write_text(config, encoding="utf-8")
        yield replace(orders, config=str(path))


def _in_the_end(served: Served) -> Counts:
    return Counts(
        served.succeeded, served.failed, 0, served.waiting, served.cost_nusd, served.reserved_nusd
    )


class _Heard:
    """Takes what a worker tells (a `Progress`): for whoever asks, and for its log."""

    def __init__(self) -> None:
        self.counts = Counts()
        self._said: list[str] = []
        self._count = 0

    def update(self, now: Snapshot) -> None:
        waiting = max(0, now.total - now.done - now.failed - now.running)
        self.counts = Counts(
            now.done, now.failed, now.running, waiting, now.posted_nusd, now.reserved_nusd
        )

    def say(self, text: str) -> None:
        print(plain_line(text), file=sys.stderr, flush=True)
        self._said = [*self._said, plain_line(text)][-KEPT:]
        self._count += 1

    def close(self) -> None:
        """Nothing to end."""

    def said_after(self, heard: int) -> tuple[tuple[str, ...], int]:
        new = min(self._count - heard, len(self._said))
        return tuple(self._said[-new:]) if new > 0 else (), self._count


def read_environment(path: str | None) -> dict[str, Any] | None:
    """A runtime environment for Ray from a file of JSON or YAML; None: there is none.

    Raises:
        ConfigError: It is none.
    """
    if path is None:
        return None
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeError) as exc:
        reason = getattr(exc, "strerror", None) or "it is not UTF-8 text"
        raise ConfigError("--runtime-env", f"{path}: {reason}") from None
    found = _parsed(text)
    if not isinstance(found, dict):
        raise ConfigError("--runtime-env", f"{path} is no object in JSON or YAML")
    return found


def _parsed(text: str) -> Any:
    """The value; None, since what is wrong with it may quote a secret: it is none."""
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        import yaml  # type: ignore[import-untyped]  # comes with Ray
    except ImportError:
        return None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None


def summary(fleet: Fleet, seconds: float) -> dict[str, Any]:
    """The object of ``--json``."""
    counts = fleet.counts
    return {
        "exit": fleet.exit,
        "restarts": fleet.restarts,
        "succeeded": counts.succeeded,
        "failed": counts.failed,
        "waiting": counts.waiting,
        "cost_usd": decimal_usd(counts.cost_nusd),
        "reserved_usd": decimal_usd(counts.reserved_nusd),
        "seconds": round(seconds, 3),
        "workers": [
            {
                "number": each.number,
                "node": each.node or None,
                "pid": each.pid,
                "restarts": each.restarts,
                "succeeded": each.counts.succeeded,
                "failed": each.counts.failed,
                "exit": None if each.ended is None else each.ended.exit,
                "message": "" if each.ended is None else each.ended.message,
            }
            for each in fleet.members
        ],
    }
