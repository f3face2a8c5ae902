"""``scheduler.toml``: providers, limits, routes and defaults, read once and checked whole.

Keys never stand in the file: it names the environment variable, or the command, that has one.
"""

from __future__ import annotations

import difflib
import os
import subprocess
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, SecretStr, ValidationError

from scheduler.errors import ConfigError
from scheduler.limits.meter import Limits
from scheduler.providers.address import is_azure_url
from scheduler.providers.base import Provider
from scheduler.providers.hidden import Headers, check_key, seal
from scheduler.providers.known import KNOWN, Known, asks_usage_at

DEFAULT_FILE = "scheduler.toml"
KEY_COMMAND_S = 10


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class LimitTable(_Strict):
    """What a provider, or one of its models, allows."""

    max_requests_per_minute: PositiveInt | None = None
    max_tokens_per_minute: PositiveInt | None = None
    max_input_tokens_per_minute: PositiveInt | None = None
    max_output_tokens_per_minute: PositiveInt | None = None
    concurrency: PositiveInt | None = None

    def limits(self) -> Limits:
        """The same as the scheduler takes it."""
        return Limits(
            self.max_requests_per_minute, self.max_tokens_per_minute,
            self.max_input_tokens_per_minute, self.max_output_tokens_per_minute, self.concurrency,
        )  # fmt: skip


class ModelTable(LimitTable):
    """``[provider.NAME.models.MODEL]``: its limits, and the model that it is, for its price."""

    priced_as: str | None = None


class ProviderTable(ModelTable):
    """``[provider.NAME]``."""

    kind: str | None = None
    # Not in its `repr`: error trackers show what frames hold, and there may be a secret in them.
    base_url: str | None = Field(default=None, repr=False)
    api_key_env: str | None = None
    api_key_command: list[str] | None = Field(default=None, repr=False)
    headers: dict[str, str] = Field(default_factory=dict, repr=False)
    timeout: str | int | float = 600
    silence_timeout: str | int | float = "5m"
    counting: str | None = None
    price: str | None = None
    prices: dict[str, str] = Field(default_factory=dict)
    on_unknown: str = "charge"
    models: dict[str, ModelTable] = Field(default_factory=dict)


class DefaultsTable(_Strict):
    """``[defaults]``."""

    provider: str | None = None
    max_prompt_tokens: PositiveInt | None = None
    max_cost: str | float | None = None
    cap_output: PositiveInt | None = None
    on_exceeded: Literal["wait", "raise", "fallback"] = "wait"
    risk: Literal["none", "low", "default", "high"] | None = None
    max_attempts: PositiveInt | None = None
    patience: str | float | None = None
    fallback: list[str] = Field(default_factory=list)


class WebhookTable(_Strict):
    """``[[webhooks]]``: who is told what is new; see `Scheduler.webhook`."""

    name: str | None = None
    url: str | None = Field(default=None, repr=False)
    url_env: str | None = None
    command: list[str] = Field(default_factory=list)
    secret_env: str | None = None
    form: Literal["cloudevents", "text"] = "cloudevents"
    on: list[str] | None = None
    thresholds: list[int] = Field(default_factory=lambda: [80, 100])
    parked_after: str | int | float = "30m"
    unknown_after: str | int | float = "1h"
    budgets: list[str] = Field(default_factory=list)
    timeout: str | int | float = "10s"


class FairnessTable(_Strict):
    """``[fairness]``: who shares with whom, and ``[fairness.weights]``."""

    by: str | None = None
    weights: dict[str, float] = Field(default_factory=dict)


class _File(_Strict):
    store: str | None = Field(default=None, repr=False)
    store_env: str | None = None
    provider: dict[str, ProviderTable] = Field(default_factory=dict)
    route: dict[str, str] = Field(default_factory=dict)
    defaults: DefaultsTable = Field(default_factory=DefaultsTable)
    webhooks: list[WebhookTable] = Field(default_factory=list)
    fairness: FairnessTable = Field(default_factory=FairnessTable)


@dataclass(slots=True)
class Config:
    """What a configuration file says; without one, nothing.

    Attributes:
        path: The file; None: there was none.
        store: Where queue and ledger live; there may be a password in it.
        store_env: The variable that says it.
    """

    path: Path | None = None
    store: SecretStr | None = None
    store_env: str | None = None
    tables: Mapping[str, ProviderTable] = field(default_factory=dict)
    routes: Mapping[str, str] = field(default_factory=dict)
    defaults: DefaultsTable = field(default_factory=DefaultsTable)
    webhooks: Sequence[WebhookTable] = ()
    fairness: FairnessTable = field(default_factory=FairnessTable)

    def store_url(self) -> str | None:
        """Where queue and ledger live; None: it is not said.

        Raises:
            ConfigError: The variable that should say it is not set.
        """
        if self.store_env is not None:
            url = os.environ.get(self.store_env)
            if not url:
                raise ConfigError(f"{self.path}: store_env", f"{self.store_env} is not set")
            return url
        return None if self.store is None else self.store.get_secret_value()

    def providers(self, *, with_keys: bool = True) -> list[Provider]:
        """Those of the file, the default first.

        Args:
            with_keys: Whether commands are run that print keys.

        Raises:
            ConfigError: A kind that is not known, a URL or a key that cannot be used.
        """
        names = sorted(self.tables, key=lambda name: name != self.defaults.provider)
        tables = dict(self.tables)
        if not with_keys:
            tables = {
                name: table.model_copy(update={"api_key_command": None})
                for name, table in tables.items()
            }
        return [make_provider(name, tables[name], str(self.path)) for name in names]


def load_config(path: str | Path | None = None) -> Config:
    """Read a configuration file.

    Args:
        path: Where it is. None: ``SCHEDULER_CONFIG``, else ``scheduler.toml`` in the working
            directory if that is there, else nothing is configured.

    Raises:
        ConfigError: It cannot be read, or something in it is wrong: which file, table and key.
    """
    chosen = path or os.environ.get("SCHEDULER_CONFIG")
    file = Path(chosen or DEFAULT_FILE)
    if chosen is None and not file.is_file():
        return Config()
    read = _read(file)
    if isinstance(read, ConfigError):
        raise read
    default = read.defaults.provider
    if default is not None and default not in read.provider:
        known = ", ".join(map(repr, read.provider)) or "none"
        raise ConfigError(
            f"{file}: defaults.provider", f"{default!r} is not configured (there are: {known})"
        )
    store = None if read.store is None else SecretStr(read.store)
    if store is not None and read.store_env is not None:
        raise ConfigError(f"{file}: store", "and store_env cannot both be set")
    return Config(
        file,
        store,
        read.store_env,
        read.provider,
        read.route,
        read.defaults,
        read.webhooks,
        read.fairness,
    )


def _read(file: Path) -> _File | ConfigError:
    """What the file says, or what is wrong with it.

    The error is not raised here, where a variable holds the whole file, with what may be a key.
    """
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as exc:
        return ConfigError("--config", f"{file}: {exc.strerror or exc}")
    except UnicodeError:
        return ConfigError(str(file), "is no TOML: it is not UTF-8 text")
    except (ValueError, RecursionError) as exc:  # no TOML, absurd numbers or nesting
        return ConfigError(str(file), f"is no TOML: {exc}")
    named = _with_key(tables)
    if named is not None:
        return ConfigError(
            f"{file}: provider.{named}.api_key",
            "keys do not belong in a file; name the environment variable that has it in "
            "api_key_env, or a command that prints it in api_key_command",
        )
    for number, table in enumerate(_webhooks(tables), 1):
        if isinstance(table, dict) and "secret" in table:
            return ConfigError(
                f"{file}: webhooks {table.get('name') or number}.secret",
                "secrets do not belong in a file; name the environment variable that has it in "
                "secret_env",
            )
    try:
        return _File.model_validate(tables)
    except ValidationError as exc:
        return _explain(exc, file)


def _with_key(tables: Mapping[str, Any]) -> str | None:
    """The first provider with a key in the file: on the disk, in copies of it, in its history."""
    providers = tables.get("provider")
    for name, table in providers.items() if isinstance(providers, dict) else ():
        if isinstance(table, dict) and {"api_key", "key"} & table.keys():
            return str(name)
    return None


def _webhooks(tables: Mapping[str, Any]) -> list[Any]:
    found = tables.get("webhooks")
    return found if isinstance(found, list) else []


def _explain(exc: ValidationError, file: Path) -> ConfigError:
    first = exc.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"]))
    problem = first["msg"]
    if first["type"] == "extra_forbidden":
        name = str(first["loc"][-1])
        tables = (ProviderTable, DefaultsTable, WebhookTable, FairnessTable, _File)
        known = {each for table in tables for each in table.model_fields}
        near = difflib.get_close_matches(name, known, 1, 0.6)
        problem = f"is not known{f'; is it {near[0]!r}?' if near else ''}"
    return ConfigError(f"{file}: {where}", problem)


def make_provider(name: str, table: ProviderTable, file: str = "") -> Provider:
    """A provider as a table describes it.

    Raises:
        ConfigError: A kind that is not known, a URL that is missing, a key that cannot be used.
    """
    kind = table.kind or name
    where = f"{file}: provider.{name}" if file else f"provider.{name}"
    if kind == "simulated":
        from scheduler.providers.simulated.provider import Simulated

        provider: Provider = Simulated(name)
        provider.service = "sim:"  # any process can be one
    elif kind in KNOWN:
        provider = _make(name, kind, table, KNOWN[kind], where)
    else:
        near = difflib.get_close_matches(kind, [*KNOWN, "simulated"], 1, 0.5)
        hint = f"; is it {near[0]!r}?" if near else f"; known are {', '.join(KNOWN)}"
        raise ConfigError(f"{where}.kind", f"{kind!r} is not known{hint}")
    provider.on_unknown = table.on_unknown
    provider.limits = table.limits()
    provider.model_limits = {model: each.limits() for model, each in table.models.items()}
    all_models = {"*": table.priced_as} if table.priced_as else {}
    provider.priced_as = all_models | {
        model: each.priced_as for model, each in table.models.items() if each.priced_as
    }
    if table.counting is not None:
        provider.counting = table.counting
    listed = ({"*": table.price} if table.price is not None else {}) | table.prices
    if listed:
        provider.prices = {**(provider.prices or {}), **listed}
    return provider


def _make(name: str, kind: str, table: ProviderTable, known: Known, where: str) -> Provider:
    base_url = seal(table.base_url or known.base_url)
    if not base_url.get_secret_value():
        raise ConfigError(f"{where}.base_url", f"is needed for {kind}")
    if kind == "openai" and is_azure_url(base_url.get_secret_value()):
        kind, names = "azure", (*KNOWN["azure"].key_variables, *known.key_variables)
        known = replace(KNOWN["azure"], key_variables=names)
    key = _key(table, known, where)
    headers = Headers(table.headers).check(f"{where}.headers")
    silence = None if table.silence_timeout == "off" else table.silence_timeout
    if kind == "anthropic":
        from scheduler.providers.anthropic import Anthropic

        return Anthropic(
            name, api_key=key, base_url=base_url, headers=headers.as_given(),
            timeout=table.timeout, silence_timeout=silence,
        )  # fmt: skip
    if kind == "google":
        from scheduler.providers.google import Google

        return Google(
            name, api_key=key, base_url=base_url, headers=headers.as_given(),
            timeout=table.timeout, silence_timeout=silence,
        )  # fmt: skip
    from scheduler.providers.openai import OpenAI

    provider = OpenAI(
        name, api_key=key, base_url=base_url, headers=headers.as_given(), timeout=table.timeout,
        silence_timeout=silence,
        key_variable=table.api_key_env or next(iter(known.key_variables), "an API key"),
    )  # fmt: skip
    provider.extra_body, provider.key_header = dict(known.body), known.key_header
    if table.base_url is None or kind != "openai":  # that kind stands for any service elsewhere
        provider.asks_usage = asks_usage_at(None, kind)
    if table.base_url is None or kind == "azure":
        provider.price_source = known.price_source or provider.price_source
    provider.counting = known.counting
    return provider


def _key(table: ProviderTable, known: Known, where: str) -> SecretStr:
    """The key, from where the table says it is; empty if it is not there.

    Raises:
        ConfigError: There is none where the table says, or it is one that cannot be sent.
    """
    if table.api_key_command is not None:
        setting = f"{where}.api_key_command"
        key, problem = _printed_by(table.api_key_command)
        if problem:
            raise ConfigError(setting, problem)
        return check_key(key, setting)
    names: Sequence[str] = known.key_variables if table.api_key_env is None else [table.api_key_env]
    for name in names:
        if os.environ.get(name):
            return check_key(seal(os.environ[name]), name)
    return SecretStr("")


def _printed_by(command: Sequence[str]) -> tuple[SecretStr, str]:
    """What a command prints, and what went wrong; its own words about that are never shown.

    Nothing is raised here, where a variable holds what it printed.
    """
    nothing = SecretStr("")
    if not command:
        return nothing, "is empty"
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
            timeout=KEY_COMMAND_S, check=False,
        )  # fmt: skip
    except (OSError, ValueError) as exc:
        reason = getattr(exc, "strerror", None) or type(exc).__name__
        return nothing, f"{command[0]!r} cannot be run: {reason}"
    except subprocess.TimeoutExpired:
        return nothing, f"{command[0]!r} printed nothing within {KEY_COMMAND_S} s"
    if done.returncode or not done.stdout.strip():
        return nothing, f"{command[0]!r} gave no key (exit code {done.returncode})"
    return seal(done.stdout.decode("utf-8", "replace")), ""
