"""Who is told news, and how: a URL or a command, what they want to hear, and in which form.

URLs and secrets are held hidden, as keys are: they are in no `repr`, in no log, and nowhere on the disk.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from pydantic import SecretStr

from scheduler.duration import parse_duration_ms
from scheduler.errors import ConfigError
from scheduler.providers.hidden import seal
from scheduler.request import Duration
from scheduler.telemetry.news import KINDS, Wanted

if TYPE_CHECKING:
    from scheduler.config import Config, WebhookTable

Form = Literal["cloudevents", "text"]
LONGEST_TIMEOUT_MS = 60_000
LEAST_SECRET_BYTES = 24  # as Standard Webhooks has it
SECRET_PREFIX = "whsec_"
# Whoever knows such a URL may write there, so it is a secret.
SECRET_HOSTS = ("hooks.slack.com", "discord.com", "discordapp.com", "webhook.office.com",
                "chat.googleapis.com")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Webhook:
    """One who is told; make it with `make_webhook`.

    Attributes:
        name: The same in all processes that tell it: what it was told is kept by that.
        url: Where news is posted; empty: to nobody, `command` is run.
        command: A program with its arguments, which reads the event.
        key: By which what is posted is signed; empty: it is not.
        form: ``"cloudevents"``, or ``"text"``, for Slack and its like.
    """

    name: str
    url: SecretStr
    command: tuple[str, ...]
    key: SecretBytes
    form: Form
    wanted: Wanted
    timeout_s: float

    def body(self, event: Mapping[str, Any]) -> bytes:
        """What is posted, or given to the command."""
        told: Mapping[str, Any] = event
        if self.form == "text":
            told = {"text": event["data"]["text"]}
        return json.dumps(told, separators=(",", ":")).encode()

    def headers(self, event_id: str, body: bytes, now_ms: int) -> dict[str, str]:
        """Headers by Standard Webhooks; the signature is of what is sent, byte for byte."""
        kind = "application/json" if self.form == "text" else "application/cloudevents+json"
        at_s = str(now_ms // 1000)
        found = {
            "content-type": f"{kind}; charset=utf-8", "webhook-id": event_id,
            "webhook-timestamp": at_s,
        }  # fmt: skip
        if self.key:
            signed = f"{event_id}.{at_s}.".encode() + body
            found["webhook-signature"] = f"v1,{self.key.sign(signed)}"
        return found


class SecretBytes:
    """A key for signing, which shows itself to nobody."""

    __slots__ = ("_sign", "_there")

    def __init__(self, key: bytes = b"") -> None:
        def sign(text: bytes) -> str:
            return base64.b64encode(hmac.digest(key, text, hashlib.sha256)).decode()

        self._sign, self._there = sign, bool(key)

    def __bool__(self) -> bool:
        return self._there

    def __repr__(self) -> str:
        return "<hidden>"

    def sign(self, text: bytes) -> str:
        """HMAC-SHA256, in base64."""
        return self._sign(text)


def make_webhook(
    url: str | SecretStr | None = None,
    *,
    command: Sequence[str] = (),
    name: str | None = None,
    secret: str | SecretStr | None = None,
    form: Form = "cloudevents",
    on: Sequence[str] = KINDS,
    thresholds: Sequence[int] = (80, 100),
    parked_after: Duration = "30m",
    unknown_after: Duration = "1h",
    budgets: Sequence[str] = (),
    timeout: Duration = "10s",
    where: str = "webhook",
) -> Webhook:
    """Who is told; see `Scheduler.webhook` for the arguments.

    Raises:
        ConfigError: Something of it makes no sense.
    """
    hidden = seal(url)
    if bool(hidden.get_secret_value()) == bool(command):
        raise ConfigError(where, "needs a URL or a command, and not both")
    _check_url(hidden, where)
    if isinstance(command, str) or not all(isinstance(x, str) and "\0" not in x for x in command):
        raise ConfigError(f"{where}.command", "is a list of a program and its arguments, no line")
    if form not in ("cloudevents", "text"):
        raise ConfigError(f"{where}.form", f"{form!r} is not one of 'cloudevents' and 'text'")
    unknown = [each for each in on if each not in KINDS]
    if unknown or isinstance(on, str) or not on:
        known = ", ".join(KINDS)
        raise ConfigError(f"{where}.on", f"{unknown[0] if unknown else on!r} is not one of {known}")
    for each in thresholds:
        if isinstance(each, bool) or not isinstance(each, int) or not 1 <= each <= 1000:
            raise ConfigError(f"{where}.thresholds", f"{each!r} is no percent between 1 and 1000")
    timeout_ms = parse_duration_ms(timeout, f"{where}.timeout")
    if not 0 < timeout_ms <= LONGEST_TIMEOUT_MS:
        raise ConfigError(f"{where}.timeout", "is not between 0 and 60 seconds")
    wanted = Wanted(
        frozenset(on), tuple(sorted(set(thresholds))),
        parse_duration_ms(parked_after, f"{where}.parked_after"),
        parse_duration_ms(unknown_after, f"{where}.unknown_after"), tuple(budgets),
    )  # fmt: skip
    chosen = _named(hidden, command) if name is None else name.strip()
    if not chosen or len(chosen) > 100 or not chosen.isprintable():
        raise ConfigError(f"{where}.name", f"{name!r} is not a name of 1 to 100 characters")
    key = SecretBytes() if secret is None else _key(seal(secret), where)
    return Webhook(chosen, hidden, tuple(command), key, form, wanted, timeout_ms / 1000)


def _check_url(url: SecretStr, where: str) -> None:
    """Refuse what is no URL; it is not shown."""
    if not url.get_secret_value():
        return
    try:
        parts = urlsplit(url.get_secret_value())
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_url = False
    if not is_url or not url.get_secret_value().isascii() or " " in url.get_secret_value():
        raise ConfigError(f"{where}.url", "is no http or https URL (it is not shown here)")


def _named(url: SecretStr, command: Sequence[str]) -> str:
    """A name that is the same in all processes that tell the same."""
    what = url.get_secret_value() or "\0".join(command)
    return f"hook-{hashlib.sha256(what.encode('utf-8', 'replace')).hexdigest()[:12]}"


def _key(secret: SecretStr, where: str) -> SecretBytes:
    """The key that a secret stands for; the secret is not shown."""
    text = secret.get_secret_value()
    if not text.startswith(SECRET_PREFIX):
        if len(text.encode()) < LEAST_SECRET_BYTES:
            raise ConfigError(
                f"{where}.secret",
                f"is shorter than {LEAST_SECRET_BYTES} bytes (it is not shown here)",
            )
        return SecretBytes(text.encode())
    try:
        key = base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) < LEAST_SECRET_BYTES:
        raise ConfigError(
            f"{where}.secret",
            f"is no whsec_ and at least {LEAST_SECRET_BYTES} bytes in base64 (it is not shown here)",
        )
    return SecretBytes(key)


def configured(config: Config) -> list[Webhook]:
    """Those of a configuration file.

    Raises:
        ConfigError: One of them makes no sense, or a variable that it names is not set.
    """
    found: dict[str, Webhook] = {}
    for number, table in enumerate(config.webhooks, 1):
        where = f"{config.path}: webhooks {table.name or number}"
        hook = _of_table(table, where)
        if hook.name in found:
            raise ConfigError(where, f"there are two of the name {hook.name!r}")
        found[hook.name] = hook
    return list(found.values())


def _of_table(table: WebhookTable, where: str) -> Webhook:
    url = seal(table.url)
    if table.url is not None:
        parts = urlsplit(url.get_secret_value())
        host = (parts.hostname or "").lower()
        is_secret = any(host == x or host.endswith(f".{x}") for x in SECRET_HOSTS)
        if is_secret or parts.username or parts.password:
            raise ConfigError(
                f"{where}: url",
                "is a secret by itself, and secrets do not belong in a file; name the environment "
                "variable that has it in url_env",
            )
    elif table.url_env is not None:
        url = _variable(table.url_env, f"{where}: url_env")
    secret = None
    if table.secret_env is not None:
        secret = _variable(table.secret_env, f"{where}: secret_env")
    return make_webhook(
        url if url.get_secret_value() else None, command=table.command, name=table.name,
        secret=secret, form=table.form, on=KINDS if table.on is None else table.on,
        thresholds=table.thresholds, parked_after=table.parked_after,
        unknown_after=table.unknown_after, budgets=table.budgets, timeout=table.timeout, where=where,
    )  # fmt: skip


def _variable(name: str, where: str) -> SecretStr:
    value = seal(os.environ.get(name))
    if not value.get_secret_value():
        raise ConfigError(where, f"{name} is not set")
    return value
