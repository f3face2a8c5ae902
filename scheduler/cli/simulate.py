"""``scheduler simulate``: a provider to try any client against, without a key or a bill."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from scheduler.cli.helping import Command
from scheduler.cli.output import plural, say
from scheduler.money import format_usd

EXAMPLES = "scheduler simulate --port 8000 --rpm 500 --credit '$1'"


def register(app: typer.Typer) -> None:
    """Add the command to the root."""
    app.command("simulate", cls=Command, epilog=EXAMPLES)(simulate)


def simulate(
    port: Annotated[
        int, typer.Option("--port", "-p", metavar="N", min=0, max=65535, help="0: any.")
    ] = 8080,
    host: Annotated[
        str, typer.Option("--host", metavar="ADDRESS", help="Where to listen.")
    ] = "127.0.0.1",
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Same seed, same answers.")] = 0,
    latency: Annotated[
        str, typer.Option("--latency", metavar="SPAN", help="Until the first token, such as 200ms.")
    ] = "0ms",
    tokens_per_s: Annotated[
        float | None, typer.Option("--tokens-per-s", metavar="N", help="How fast output comes.")
    ] = None,
    output_tokens: Annotated[
        int | None,
        typer.Option("--output-tokens", metavar="N", min=1, help="How long answers are."),
    ] = None,
    rpm: Annotated[
        int | None, typer.Option("--rpm", metavar="N", help="Most requests a minute.")
    ] = None,
    rpd: Annotated[
        int | None, typer.Option("--rpd", metavar="N", help="Most requests a day.")
    ] = None,
    tpm: Annotated[
        int | None, typer.Option("--tpm", metavar="N", help="Most tokens a minute.")
    ] = None,
    credit: Annotated[
        str | None,
        typer.Option(
            "--credit", metavar="USD", help="What it bills in all, such as '$1'; then 402."
        ),
    ] = None,
    error_rate: Annotated[
        float,
        typer.Option(
            "--error-rate", metavar="SHARE", help="Share of calls that fail: 429, 500, 503."
        ),
    ] = 0.0,
    fail: Annotated[
        list[str] | None,
        typer.Option("--fail", metavar="FAULT=SHARE", help="Such as timeout=0.01; repeatable."),
    ] = None,
    price: Annotated[
        list[str] | None,
        typer.Option("--price", metavar="MODEL=IN/OUT", help="USD per million tokens; repeatable."),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option("--api-key", metavar="KEY", help="Refuse callers that do not present it."),
    ] = None,
    allow_remote: Annotated[
        bool, typer.Option("--allow-remote", help="Listen on an address others can reach.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Tell the address as a line of JSON.")
    ] = False,
) -> None:
    """Serve a simulated, OpenAI-compatible provider on loopback until Ctrl-C.

    GET /billed tells what it billed, by its own count.
    """
    from scheduler.providers.simulated.provider import Simulated, Spread
    from scheduler.providers.simulated.server import serve_until_signal

    length = Spread(120, 0.5) if output_tokens is None else output_tokens
    provider = Simulated(
        seed=seed,
        latency=latency,
        tokens_per_s=tokens_per_s,
        output_tokens=length,
        error_rate=error_rate,
        fail={name: _share(share) for name, share in pairs(fail or (), "--fail")},
        rpm=rpm,
        rpd=rpd,
        tpm=tpm,
        credit=credit,
        prices=dict(pairs(price or (), "--price")),
    )
    asyncio.run(
        serve_until_signal(
            provider,
            host=host,
            port=port,
            on_ready=_teller(as_json),
            api_key=api_key,
            allow_remote=allow_remote,
        )
    )
    say(f"billed {plural(provider.calls, 'call')}, {format_usd(provider.billed_nusd)}")


def pairs(words: Sequence[str], option: str) -> list[tuple[str, str]]:
    """Options of the form NAME=VALUE; model names may hold an equals sign.

    Raises:
        ConfigError: One has another form.
    """
    from scheduler.errors import ConfigError

    found = []
    for word in words:
        name, separator, value = word.rpartition("=")
        if not (name and separator and value):
            raise ConfigError(option, f"{word!r} is not of the form NAME=VALUE")
        found.append((name, value))
    return found


def _share(text: str) -> float:
    from scheduler.errors import ConfigError

    try:
        return float(text)
    except ValueError:
        raise ConfigError("--fail", f"{text!r} is not a share between 0 and 1") from None


def _teller(as_json: bool) -> Callable[[str], None]:
    def tell(url: str) -> None:
        """Say where it listens; the only line on stdout."""
        print(json.dumps({"url": url}) if as_json else f"OPENAI_BASE_URL={url}", flush=True)
        say("simulated provider; Ctrl-C ends it")

    return tell
