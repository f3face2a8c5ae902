"""``scheduler serve``: a gateway that clients reach as they reach their providers."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scheduler.cli.helping import Command
from scheduler.cli.look import DEFAULT_STORE
from scheduler.cli.options import (
    ENDING,
    MONEY,
    SENDING,
    TELLING,
    BaseUrlOption,
    BudgetOption,
    CapOutputOption,
    ConcurrencyOption,
    KeptStoreOption,
    MaxAttemptsOption,
    MaxCostOption,
    MaxPromptOption,
    OnUnknownOption,
    PatienceOption,
    PriceOption,
    RequestsOption,
    RiskOption,
    TimeoutOption,
    TokensOption,
    config_option,
)
from scheduler.cli.output import plural, say

if TYPE_CHECKING:
    from scheduler.budget import Budget
    from scheduler.server.life import Open, Settings

EXAMPLES = """\
scheduler serve --budget '$10/day'
scheduler token create ann --budget team && scheduler serve --host 0.0.0.0
scheduler serve --base-url sim: --budget '$1'   # no key, no cost"""
LOOK_S = 0.5  # so often it is looked whether queue and ledger can still be written


def register(app: typer.Typer) -> None:
    """Add the command to the root."""
    app.command("serve", cls=Command, epilog=EXAMPLES)(serve)


def serve(
    port: Annotated[
        int, typer.Option("--port", "-p", metavar="N", min=0, max=65535, help="0: any.")
    ] = 8787,
    host: Annotated[
        str, typer.Option("--host", metavar="ADDRESS", help="Where to listen.")
    ] = "127.0.0.1",
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A name by which clients call it; repeatable."),
    ] = None,
    budget: BudgetOption = None,
    risk: RiskOption = None,
    max_cost: MaxCostOption = None,
    cap_output: CapOutputOption = None,
    price: PriceOption = None,
    on_unknown: OnUnknownOption = None,
    max_hold: Annotated[
        str,
        typer.Option(
            metavar="SPAN",
            help="Hold calls that fit within so long; refuse others at once.",
            rich_help_panel=MONEY,
        ),
    ] = "10m",
    base_url: BaseUrlOption = None,
    config: Annotated[str | None, config_option(SENDING)] = None,
    concurrency: ConcurrencyOption = 256,
    max_requests_per_minute: RequestsOption = None,
    max_tokens_per_minute: TokensOption = None,
    max_prompt_tokens: MaxPromptOption = None,
    max_attempts: MaxAttemptsOption = None,
    patience: PatienceOption = None,
    timeout: TimeoutOption = None,
    grace: Annotated[
        str,
        typer.Option(
            metavar="SPAN", help="For running calls after SIGTERM.", rich_help_panel=ENDING
        ),
    ] = "30s",
    store: KeptStoreOption = DEFAULT_STORE,
    allow_changes: Annotated[
        bool,
        typer.Option(
            "--allow-changes", help="Let its page change limits, too.", rich_help_panel=TELLING
        ),
    ] = False,
    metrics: Annotated[
        bool,
        typer.Option(
            "--metrics",
            help="Tell Prometheus at /metrics, if it has a token.",
            rich_help_panel=TELLING,
        ),
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Tell address and token as a line of JSON.", rich_help_panel=TELLING
        ),
    ] = False,
) -> None:
    """Serve OpenAI's, Anthropic's and Google's APIs within budgets, until Ctrl-C.

    What does not fit is held, if it will soon, else refused with 429. Clients use a token of the
    gateway as their API key: provider keys stay here.
    """
    from scheduler.cli.options import Sending, budgets_of, check_store
    from scheduler.duration import parse_duration_ms
    from scheduler.server.listen import make_loop

    check_store(store)
    sending = Sending(
        config, base_url, timeout, max_requests_per_minute, max_tokens_per_minute,
        max_prompt_tokens, max_cost, cap_output, (), max_attempts, patience,
    )  # fmt: skip
    settings = scheduler_settings(sending, store, price or (), concurrency, on_unknown)
    life = gateway_settings(
        sending, settings, host=host, port=port, hosts=tuple(allow_host or ()),
        max_hold_ms=parse_duration_ms(max_hold, "--max-hold"), page=store,
        may_change=allow_changes, metrics=metrics, on_link=_tell_link,
    )  # fmt: skip
    grace_s = parse_duration_ms(grace, "--grace") / 1000
    budgets = budgets_of(budget, risk, config)
    with asyncio.Runner(loop_factory=make_loop()) as runner:
        runner.run(_serve(settings, budgets, life, grace_s, as_json))


def scheduler_settings(
    sending: Any, store: str, price: Sequence[str], concurrency: int, on_unknown: str | None
) -> dict[str, Any]:
    """Arguments for the `Scheduler` of a gateway; who lacks a key is found out when asked."""
    from scheduler.cli.options import parse_prices

    settings: dict[str, Any] = sending.settings(needs_key=False)
    if on_unknown is not None:
        for provider in settings["providers"]:
            provider.on_unknown = on_unknown
    return {
        **settings, "store": store, "prices": parse_prices(price), "concurrency": concurrency,
    }  # fmt: skip


def gateway_settings(sending: Any, settings: dict[str, Any], **more: Any) -> Settings:
    """How the gateway is to be, as far as its providers say."""
    from scheduler.config import load_config
    from scheduler.server.life import Settings

    named = set(load_config(sending.config).tables)
    is_meant = sending.base_url is not None
    default = settings["providers"][0].name
    found = frozenset(
        each.name for each in settings["providers"]
        if each.name not in named and each.name != default
    )  # fmt: skip
    return Settings(at_last=found, is_meant=is_meant, **more)


async def _serve(
    settings: dict[str, Any], budgets: Sequence[Budget], life: Settings, grace_s: float,
    as_json: bool,
) -> None:  # fmt: skip
    from scheduler.guards.signals import signals_to
    from scheduler.providers.descriptors import raise_limit
    from scheduler.scheduler import Scheduler
    from scheduler.server.life import open_gateway
    from scheduler.server.listen import settle_down

    raise_limit()  # each client takes one, held or not

    stop, gateway = asyncio.Event(), None

    def told(number: int) -> None:
        if stop.is_set() and gateway is not None:
            for each in list(gateway.exchanges):  # told again
                each.cut_short()
        stop.set()

    with signals_to(told):  # until the very end: one that comes late ends nothing half-way
        async with (
            Scheduler(**settings, budgets=budgets) as s,
            open_gateway(s, settings["providers"], life) as opened,
        ):
            gateway = opened.gateway
            settle_down()
            _tell(opened, as_json)
            while not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_S):
                        await stop.wait()
                s.check()
            calls = len(gateway.exchanges)
            if calls:
                say(f"stopping: {plural(calls, 'call')} under way; again to cut them short")
            await gateway.drain(grace_s)
    from scheduler.money import format_usd

    say(f"answered {plural(gateway.succeeded, 'call')}, {format_usd(gateway.cost_nusd)} spent")


def _tell(opened: Open, as_json: bool) -> None:
    """Say where it listens; all that there is on stdout."""
    url, secret = f"{opened.url}/v1", opened.secret
    if as_json:
        print(json.dumps({"url": url, "token": secret, "page": opened.link}), flush=True)
    else:
        key = "" if secret is None else f"\nOPENAI_API_KEY={secret}"
        print(f"OPENAI_BASE_URL={url}{key}", flush=True)
    whose = "takes the tokens of the store" if secret is None else "that token ends with it"
    say(f"gateway; {whose}. ANTHROPIC_BASE_URL and GOOGLE_GEMINI_BASE_URL={opened.url}")
    if not as_json:
        say(f"watch it at {opened.link}")


def _tell_link(link: str) -> None:
    say(f"the page's link was used; another one: {link}")
