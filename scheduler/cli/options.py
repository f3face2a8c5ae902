"""Options that several commands share: where requests go, what they cost, how fast they may go."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scheduler.cli.look import STORE_HELP, which_store
from scheduler.errors import ConfigError

if TYPE_CHECKING:
    from scheduler.batch.source import Source
    from scheduler.budget import Budget
    from scheduler.config import Config
    from scheduler.core.intake import Intake
    from scheduler.providers.base import Provider

SIMULATED = "sim:"

# Headings under which help lists options.
FILES, MONEY, SENDING = "Lines and results", "Money", "Sending"
ENDING, KEEPING, TELLING = "Waiting and ending", "Keeping", "Telling"


def config_option(panel: str | None = None) -> Any:
    """``--config``, under a heading of a command's help."""
    return typer.Option(
        "--config",
        metavar="FILE",
        help="Providers, limits, routes; default scheduler.toml.",
        rich_help_panel=panel,
    )


ConfigOption = Annotated[str | None, config_option()]
OutputOption = Annotated[
    str | None,
    typer.Option(
        "--output-file",
        "-o",
        metavar="FILE",
        help="Results, - is stdout; default PROMPTS.results.jsonl.",
        rich_help_panel=FILES,
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", metavar="MODEL", help="For lines that name none.", rich_help_panel=FILES
    ),
]
LimitOption = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Only the first N lines.", rich_help_panel=FILES),
]
IdColumnOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="The field that names a line; default custom_id, id.",
        rich_help_panel=FILES,
    ),
]
MaxLineBytesOption = Annotated[
    int,
    typer.Option(min=1, metavar="N", help="Longer lines are errors.", rich_help_panel=FILES),
]
CapOutputOption = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="N", help="Output tokens of bodies that set no cap.", rich_help_panel=MONEY
    ),
]
PriceOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="MODEL=IN/OUT", help="USD per million tokens; repeatable.", rich_help_panel=MONEY
    ),
]
BaseUrlOption = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="OpenAI-compatible API, or 'sim:', which needs no server. [env: OPENAI_BASE_URL]",
        rich_help_panel=SENDING,
    ),
]
StrictOption = Annotated[
    bool,
    typer.Option("--strict", help="Send nothing if any line is bad.", rich_help_panel=FILES),
]
RetryFailedOption = Annotated[
    bool,
    typer.Option("--retry-failed", help="Send again what failed before.", rich_help_panel=FILES),
]
BudgetOption = Annotated[
    str | None,
    typer.Option(
        metavar="LIMIT",
        help="Sets the budget 'default', e.g. '$10/day'; its spend is kept.",
        rich_help_panel=MONEY,
    ),
]
RiskOption = Annotated[
    str | None,
    typer.Option(
        metavar="WORD",
        help="With --budget: none (it is never overspent), or low, default, high: its last part is "
        "spent at full speed.",
        rich_help_panel=MONEY,
    ),
]
FairByOption = Annotated[
    str | None,
    typer.Option(
        "--fair-by",
        metavar="TAG",
        help="Whoever differs in this tag shares in dollars, e.g. user.",
        rich_help_panel=SENDING,
    ),
]
WeightOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=N",
        help="With --fair-by: a share of its own, where others have 1; repeatable.",
        rich_help_panel=SENDING,
    ),
]
TagOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE", help="A tag of all lines; repeatable.", rich_help_panel=SENDING
    ),
]
MaxCostOption = Annotated[
    str | None,
    typer.Option(metavar="USD", help="Refuse requests that may cost more.", rich_help_panel=MONEY),
]
OnUnknownOption = Annotated[
    str | None,
    typer.Option(
        metavar="POLICY",
        help="What a call counts that nobody heard back from: charge (all it reserved; the "
        "default), input_only, or 'release after 1h'.",
        rich_help_panel=MONEY,
    ),
]
ConcurrencyOption = Annotated[
    int,
    typer.Option(
        "--concurrency",
        "-c",
        min=1,
        metavar="N",
        help="Most calls at once.",
        rich_help_panel=SENDING,
    ),
]
RequestsOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Of the default provider, over all models.",
        rich_help_panel=SENDING,
    ),
]
TokensOption = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="As the provider counts them.", rich_help_panel=SENDING),
]
MaxPromptOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Refuse longer prompts, by an estimate.",
        rich_help_panel=SENDING,
    ),
]
MaxAttemptsOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Of a line that may cost something; default 6.",
        rich_help_panel=SENDING,
    ),
]
PatienceOption = Annotated[
    str | None,
    typer.Option(
        metavar="SPAN",
        help="So long failures that cost nothing are no attempts; default 2m.",
        rich_help_panel=SENDING,
    ),
]
TimeoutOption = Annotated[
    str | None,
    typer.Option(metavar="SPAN", help="Of one attempt; default 10m.", rich_help_panel=SENDING),
]
MaxWaitOption = Annotated[
    str | None,
    typer.Option(
        metavar="SPAN",
        help="Wait no longer, e.g. 2h, then exit 75.",
        rich_help_panel=ENDING,
    ),
]
GraceOption = Annotated[
    str,
    typer.Option(
        metavar="SPAN",
        help="For running calls after Ctrl-C or SIGTERM.",
        rich_help_panel=ENDING,
    ),
]
KeptStoreOption = Annotated[
    str,
    typer.Option(
        envvar="SCHEDULER_STORE",
        metavar="URL",
        help=STORE_HELP,
        callback=which_store,
        rich_help_panel=KEEPING,
    ),
]


def budgets_of(limit: str | None, risk: str | None, config: str | None) -> list[Budget]:
    """The budget that the command line makes; none: those of the store hold.

    Raises:
        ConfigError: A risk without a budget, or one of them is wrong.
    """
    from scheduler.budget import Budget, split_risk
    from scheduler.config import load_config

    if limit is None:
        if risk is not None:
            raise ConfigError(
                "--risk",
                "needs --budget; of a budget that is there: scheduler budget set NAME LIMIT --risk …",
            )
        return []
    if risk is None and split_risk(limit)[1] is None:
        risk = load_config(config).defaults.risk
    return [Budget("default", limit, risk=risk)]


@dataclass(frozen=True, slots=True)
class Sending:
    """What the options say about sending, before the configuration file is asked."""

    config: str | None = None
    base_url: str | None = None
    timeout: str | None = None
    max_requests_per_minute: int | None = None
    max_tokens_per_minute: int | None = None
    max_prompt_tokens: int | None = None
    max_cost: str | None = None
    cap_output: int | None = None
    fallback: Sequence[str] = ()
    max_attempts: int | None = None
    patience: str | None = None
    fair_by: str | None = None
    weight: Sequence[str] = ()

    def settings(self, needs_key: bool = True, *, by_others: bool = False) -> dict[str, Any]:
        """Arguments for `Scheduler`: the file's, and over them these.

        Args:
            needs_key: Whether anything will be sent.
            by_others: Whether it is sent by others, who have the keys.

        Raises:
            ConfigError: Something is wrong with either; nothing was sent.
        """
        from scheduler.config import load_config

        config = load_config(self.config)
        defaults = config.defaults
        fallback = list(self.fallback) or defaults.fallback
        tries = {
            "max_attempts": self.max_attempts or defaults.max_attempts,
            "patience": self.patience if self.patience is not None else defaults.patience,
        }
        return {name: value for name, value in tries.items() if value is not None} | {
            "providers": self.providers(config, needs_key, by_others=by_others),
            "routes": config.routes,
            "max_prompt_tokens": self.max_prompt_tokens or defaults.max_prompt_tokens,
            "max_cost": self.max_cost or defaults.max_cost,
            "cap_output": self.cap_output or defaults.cap_output,
            "fallback": fallback,
            "on_exceeded": "fallback" if self.fallback else defaults.on_exceeded,
            "fair_by": self.fair_by or config.fairness.by,
            "weights": config.fairness.weights | _weights(self.weight),
        }

    def providers(
        self, config: Config, needs_key: bool = True, *, by_others: bool = False
    ) -> list[Provider]:
        """The default provider, then those a model may name by a prefix or a route.

        A ``--base-url`` is the default; else the first of the file; else OpenAI.
        """
        found = config.providers(with_keys=not by_others)
        if self.base_url is not None or not found:
            first = make_provider(self.base_url, self.timeout)
            found = [first, *(each for each in found if each.name != first.name)]
        if needs_key:
            require_key(found[0])
        found += known_by_key({each.name for each in found}, by_others=by_others)
        first = found[0]
        if self.max_requests_per_minute is not None or self.max_tokens_per_minute is not None:
            from scheduler.limits.meter import Limits

            limits = first.limits or Limits()
            first.limits = replace(
                limits,
                requests_per_minute=self.max_requests_per_minute or limits.requests_per_minute,
                tokens_per_minute=self.max_tokens_per_minute or limits.tokens_per_minute,
            )
        return found


def _weights(options: Sequence[str]) -> dict[str, float]:
    """``NAME=N`` options as a table. Raises `ConfigError`: not of that form."""
    table = {}
    for option in options:
        name, _, number = option.rpartition("=")
        try:
            table[name] = float(number)
        except ValueError:
            raise ConfigError("--weight", f"{option!r} is not NAME=N, like ann=2") from None
    return table


def parse_tags(options: Sequence[str]) -> dict[str, str]:
    """``NAME=VALUE`` options as a table. Raises `ConfigError`: not of that form."""
    pairs = [option.partition("=") for option in options]
    for option, (name, found, _) in zip(options, pairs, strict=True):
        if not (name and found):
            raise ConfigError("--tag", f"{option!r} is not NAME=VALUE, like user=ann")
    return {name: value for name, _, value in pairs}


def make_intake(config: str | None) -> Intake:
    """Providers, routes and prices of a configuration file, to ask what becomes of a request."""
    from scheduler.clock import SystemClock
    from scheduler.core.intake import Intake, Prevention
    from scheduler.prices.book import PriceBook

    found = Sending(config).settings(needs_key=False)
    prices, clock = PriceBook(), SystemClock()
    return Intake(found["providers"], prices, clock, "wait", Prevention(), found["routes"])


def open_input(given: str) -> Source:
    """The input that the command line names, opened and recognised; ``-`` is stdin.

    Raises:
        ConfigError: It is none; says what it is, and how to make one of it.
    """
    from scheduler.batch.source import open_source

    return open_source(None if given == "-" else Path(given))


def check_job(name: str) -> None:
    """Refuse a job without a name. Raises `ConfigError`."""
    if not name.strip():
        raise ConfigError("--job", "is empty; nothing was done")


def check_store(url: str) -> None:
    """Refuse a store that could not be read again. Raises `ConfigError`."""
    from scheduler.cli.look import store_path

    path = store_path(url)
    if path is not None and path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "a pipe or a device"
        raise ConfigError("--store", f"{path} is {what}, not a file; nothing was sent")


def known_by_key(taken: set[str], *, by_others: bool = False) -> list[Provider]:
    """Services whose key is in the environment, so that a model's prefix may name them.

    Of what is sent by others, all that need one: they have it.
    """
    from scheduler.config import ProviderTable
    from scheduler.config import make_provider as make
    from scheduler.providers.known import KNOWN

    return [
        make(name, ProviderTable())
        for name, known in KNOWN.items()
        if name not in taken and known.base_url is not None
        and any(by_others or os.environ.get(variable) for variable in known.key_variables)
    ]  # fmt: skip


def require_key(provider: Provider) -> None:
    """Make sure that the default provider has a key. Raises `ConfigError`."""
    from scheduler.providers.http import HttpProvider

    if isinstance(provider, HttpProvider):
        provider.require_key()


def make_provider(base_url: str | None, timeout: str | None = None) -> Provider:
    """The provider a base URL names; ``sim:`` is the simulated one, in this process.

    Raises:
        ConfigError: It cannot be used.
    """
    if base_url is not None and base_url.startswith(SIMULATED):
        return _simulated(base_url.removeprefix(SIMULATED))
    from scheduler.providers.openai import OpenAI

    return OpenAI(base_url=base_url, timeout=timeout or 600)


def _simulated(options: str) -> Provider:
    """``sim:``, or ``sim:latency=0.2,seed=7,error_rate=0.1``."""
    from scheduler.providers.simulated.provider import Simulated

    kinds = {"latency": float, "seed": int, "error_rate": float, "rpm": int, "tpm": int, "rpd": int,
             "style": str}  # fmt: skip
    chosen: dict[str, Any] = {}
    for option in filter(None, options.split(",")):
        name, _, text = option.partition("=")
        try:
            chosen[name] = kinds[name](text)
        except (KeyError, ValueError):
            raise ConfigError(
                "base-url", f"{option!r} is not one of {', '.join(f'{n}=N' for n in kinds)}"
            ) from None
    provider = Simulated(**chosen)
    provider.service = f"{SIMULATED}{options}"
    return provider


def parse_prices(prices: Sequence[str]) -> dict[str, str]:
    """``MODEL=IN/OUT`` options as a table.

    Raises:
        ConfigError: Not of that form.
    """
    table = {}
    for option in prices:
        model, found, price = option.rpartition("=")
        if not found or not model:
            raise ConfigError("--price", f"{option!r} is not MODEL=IN/OUT, like my-model=0.10/0.20")
        table[model] = price
    return table
