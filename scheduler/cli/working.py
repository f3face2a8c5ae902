"""What a worker is told, and doing it: in a process of its own, or wherever else it is placed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import typer

from scheduler.cli.look import store_option
from scheduler.duration import parse_duration_ms
from scheduler.errors import ConfigError
from scheduler.guards.plain import without_password

if TYPE_CHECKING:
    from scheduler.cli.progress import Progress
    from scheduler.cli.serving import Served, Serving


@dataclass(frozen=True, slots=True)
class Orders:
    """The options of a worker, by the names that they have there; see ``scheduler worker --help``.

    They can be sent to other machines, and show neither the store nor a URL that may hold a password.
    """

    store: str = field(repr=False)
    provider: Sequence[str] = ()
    base_url: str | None = field(default=None, repr=False)
    config: str | None = None
    concurrency: int = 64
    max_requests_per_minute: int | None = None
    max_tokens_per_minute: int | None = None
    max_attempts: int | None = None
    patience: str | None = None
    timeout: str | None = None
    price: Sequence[str] = ()
    on_unknown: str | None = None
    on_exhausted: str = "wait"
    until_idle: bool = False
    max_wait: str | None = None
    grace: str = "30s"
    fair_by: str | None = None
    weight: Sequence[str] = ()

    @property
    def grace_s(self) -> float:
        """How long calls under way may take once it is told to stop."""
        return parse_duration_ms(self.grace, "--grace") / 1000

    def check(self) -> None:
        """Refuse what cannot be done, wherever it is. Raises `ConfigError`, or a usage error."""
        from scheduler.cli.choices import check_on_exhausted
        from scheduler.cli.options import check_store

        check_on_exhausted(self.on_exhausted)
        if not self.until_idle and (self.max_wait is not None or self.on_exhausted != "wait"):
            raise typer.BadParameter(
                "is of use with --until-idle only", param_hint="--max-wait, --on-exhausted"
            )
        check_store(self.store)
        if self.store == "memory://":
            raise ConfigError(
                "--store", "memory:// is of one process; a worker needs one that others share"
            )

    def settings(self, *, needs_key: bool = True) -> dict[str, Any]:
        """Arguments for `Scheduler`.

        Args:
            needs_key: Whether the keys are here, and only those it has a key for are asked.

        Raises:
            ConfigError: Something of it cannot be used; nothing was sent.
        """
        from scheduler.cli.options import Sending, parse_prices
        from scheduler.cli.serving import able
        from scheduler.limits.retry import BATCH_ATTEMPTS

        sending = Sending(
            self.config, self.base_url, self.timeout, self.max_requests_per_minute,
            self.max_tokens_per_minute, max_attempts=self.max_attempts, patience=self.patience,
            fair_by=self.fair_by, weight=self.weight,
        ).settings(needs_key=False, by_others=not needs_key)  # fmt: skip
        if needs_key:
            sending["providers"] = able(sending["providers"], self.provider)
        sending["routes"] = {}  # what is submitted names its provider
        for each in sending["providers"] if self.on_unknown is not None else ():
            each.on_unknown = self.on_unknown
        return {
            "max_attempts": BATCH_ATTEMPTS,
            **sending,
            "store": self.store,
            "prices": parse_prices(self.price),
            "concurrency": self.concurrency,
        }

    def ending(self) -> dict[str, Any]:
        """When it ends, for `Serving`. Raises `ConfigError` for what is no span of time."""
        most = self.max_wait
        return {
            "grace_s": self.grace_s,
            "until_idle": self.until_idle,
            "stops": self.on_exhausted == "stop",
            "max_wait_ms": None if most is None else parse_duration_ms(most, "--max-wait"),
        }

    async def carry_out(
        self, shown: Progress, on_begin: Callable[[Serving], object] = lambda serving: None
    ) -> Served:
        """Send what others submit, until it is told to stop or there is nothing more to do.

        Args:
            shown: Is told how it goes.
            on_begin: Takes what can be told to stop.

        Raises:
            ConfigError, StoreError: It cannot be done, or not any more.
        """
        from scheduler.cli.run import not_told_twice
        from scheduler.cli.serving import Serving
        from scheduler.scheduler import Scheduler
        from scheduler.telemetry.webhooks import start_webhooks

        settings, ending = self.settings(), self.ending()
        with not_told_twice():
            s = Scheduler(**settings, role="worker")
            start_webhooks(s, self.config)
            async with s:
                named = without_password(self.store), store_option(self.store)
                serving = Serving(s, shown, *named, **ending)
                on_begin(serving)
                return await serving.run(settings["providers"])
