"""The simulated provider as a real HTTP server, for trying any client against it.

    POST /v1/chat/completions, responses, embeddings, completions, moderations
    POST /v1/messages          as Anthropic
    POST /v1beta/models/MODEL:generateContent, streamGenerateContent?alt=sse, embedContent,
         batchEmbedContents    as Google; also below /v1/
    GET  /v1/models            the models there are prices for (any other name works, too)
    GET  /billed               the provider's own count; ?records=1 with every billed call

All of it is there below ``/openai`` once more, also as ``/openai/deployments/NAME/…``. Keys come as a
bearer token, in ``x-api-key``, ``api-key`` or ``x-goog-api-key``. ``python -m scheduler.providers.simulated_server`` prints its URL as one line of JSON, then
serves until it gets SIGTERM or SIGINT. Do not put it on a network that others use.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import hmac
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from scheduler.errors import ConfigError
from scheduler.guards.plain import one_line
from scheduler.guards.signals import signals_to
from scheduler.money import decimal_usd
from scheduler.providers.simulated.http import Connection, Refused
from scheduler.providers.simulated.limits import STYLES
from scheduler.providers.simulated.provider import Simulated, Spread


class Service:
    """What all connections share: the provider, the key, and who is connected.

    Args:
        provider: Answers, and keeps the bill.
        api_key: Others are refused with 401. None: anybody may call.
    """

    def __init__(self, provider: Simulated, api_key: str | None = None) -> None:
        self.provider = provider
        self.connections: set[Connection] = set()
        self._expected = None if api_key is None else f"Bearer {api_key}".encode("latin-1")
        self._callers: dict[bytes, str] = {}

    def admit(self, authorization: bytes) -> str:
        """Check who calls; gives a name that tells callers apart without telling their keys."""
        if self._expected is not None and not hmac.compare_digest(authorization, self._expected):
            raise Refused(401, "Incorrect API key provided.")
        name = self._callers.get(authorization)
        if name is None:
            digest = hashlib.sha256(authorization).hexdigest()[:8]
            name = f"key-{digest}" if authorization else "no key"
            if len(self._callers) < 1000:
                self._callers[authorization] = name
        return name

    def read(self, path: str, query: str) -> dict[str, Any]:
        """Answer a GET."""
        if path == "/billed":
            return self._billed("records=1" in query.split("&"))
        if path.startswith("/v1beta/models"):
            path = "/v1" + path.removeprefix("/v1beta")
        if path == "/v1/models":
            listed = [_model(name) for name in self.provider.prices or ()]
            return {"object": "list", "data": listed, "models": listed}  # as Google names it
        if path.startswith("/v1/models/"):
            return _model(path.removeprefix("/v1/models/"))
        raise Refused(404, f"Unknown request URL: GET {path}")

    def _billed(self, with_records: bool) -> dict[str, Any]:
        bill = self.provider.bill
        answer: dict[str, Any] = {
            "calls": bill.calls,
            "received": bill.received,
            "billed_usd": decimal_usd(bill.nusd),
            "billed_nusd": bill.nusd,
            "tokens": bill.tokens,
            "by_model": bill.by_model,
            "by_key": bill.by_caller,
        }
        if with_records:
            answer["records"] = [
                {"url": each.url, "body": each.body, "billed_nusd": each.nusd,
                 "headers": each.headers}
                for each in bill.records or ()
            ]  # fmt: skip
        return answer


def _model(name: str) -> dict[str, Any]:
    """As OpenAI tells it, with what others' clients look for."""
    model = {"id": name, "object": "model", "created": 0, "owned_by": "simulated"}
    return {**model, "type": "model", "name": f"models/{name}"}  # Anthropic's, and Google's


async def serve(
    provider: Simulated,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    on_ready: Callable[[str], None] | None = None,
    stop: asyncio.Event | None = None,
    api_key: str | None = None,
    allow_remote: bool = False,
) -> None:
    """Serve until cancelled, or until `stop` is set.

    Args:
        provider: Answers, and keeps the bill.
        host: Where to listen.
        port: 0: any that is free.
        on_ready: Called with the base URL, ``/v1`` included, once connections are taken.
        stop: Ends it in good order.
        api_key: What callers must present. None: nothing.
        allow_remote: Listen on an address that is not this machine's own.

    Raises:
        ConfigError: The host is not loopback and that was not allowed, or cannot be used.
    """
    from scheduler.providers.openai import is_loopback

    if not is_loopback(host) and not allow_remote:
        raise ConfigError("host", f"{host!r} is reachable from elsewhere; allow that explicitly")
    service = Service(provider, api_key)
    loop = asyncio.get_running_loop()
    try:
        server = await loop.create_server(lambda: Connection(service), host, port)
    except OSError as exc:
        raise ConfigError("port", f"cannot listen at {host}:{port}: {exc.strerror}") from exc
    try:
        shown = f"[{host}]" if ":" in host else host
        if on_ready is not None:
            on_ready(f"http://{shown}:{server.sockets[0].getsockname()[1]}/v1")
        await (stop or asyncio.Event()).wait()
    finally:
        server.close()
        for connection in list(service.connections):
            connection.close()
        await server.wait_closed()


async def serve_until_signal(provider: Simulated, **options: Any) -> None:
    """Serve until SIGTERM or SIGINT; options as for `serve`."""
    stop = asyncio.Event()
    with signals_to(lambda number: stop.set()):
        await serve(provider, stop=stop, **options)


def print_url(url: str) -> None:
    """Tell a program that waits for it where the server is: one line of JSON."""
    sys.stdout.write(json.dumps({"url": url}) + "\n")
    sys.stdout.flush()


@contextlib.contextmanager
def running_server(*options: str) -> Iterator[str]:
    """A server in a process of its own; gives its base URL. Options are those of `main`."""
    words = [sys.executable, "-m", "scheduler.providers.simulated.server", *options]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"the simulated provider did not start (exit {process.wait()})")
            yield json.loads(line)["url"]
        finally:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()


def main(words: Sequence[str] | None = None) -> int:
    """Serve as the command line says."""
    options = _parser().parse_args(words)
    try:
        provider = Simulated(
            seed=options.seed,
            latency=options.latency,
            tokens_per_s=options.tokens_per_s,
            output_tokens=Spread(options.output_tokens, options.output_sigma),
            error_rate=options.error_rate,
            fail=parse_shares(options.fail),
            rpm=options.rpm,
            rpd=options.rpd,
            tpm=options.tpm,
            itpm=options.itpm,
            otpm=options.otpm,
            concurrent=options.concurrent,
            style=options.style,
            prices=parse_prices(options.price),
            bill_cancelled=not options.free_if_cancelled,
            record=options.record,
        )
        asyncio.run(
            serve_until_signal(
                provider,
                host=options.host,
                port=options.port,
                on_ready=print_url,
                api_key=options.api_key,
                allow_remote=options.allow_remote,
            )
        )
    except ConfigError as exc:
        sys.stderr.write(f"{one_line(exc)}\n")
        return 3
    return 0


def parse_shares(pairs: Sequence[str]) -> dict[str, float]:
    """Faults and their shares of calls, from ``KIND=SHARE``.

    >>> parse_shares(["429=0.1", "reset=0.01"])
    {'429': 0.1, 'reset': 0.01}
    """
    shares = {}
    for pair in pairs:
        name, _, share = pair.partition("=")
        try:
            shares[name] = float(share)
        except ValueError:
            raise ConfigError("fail", f"{pair!r} is not KIND=SHARE such as 429=0.1") from None
    return shares


def parse_prices(pairs: Sequence[str]) -> dict[str, str]:
    """Prices by model, from ``MODEL=IN/OUT``; a model's name may have a ``=`` in it.

    >>> parse_prices(["sim-tiny=0.05/0.20"])
    {'sim-tiny': '0.05/0.20'}
    """
    prices = {}
    for pair in pairs:
        model, equals, price = pair.rpartition("=")
        if not equals or not model:
            raise ConfigError("price", f"{pair!r} is not MODEL=IN/OUT such as sim-tiny=0.05/0.20")
        prices[model] = price
    return prices


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scheduler.providers.simulated_server", description="A provider for tests."
    )
    add = parser.add_argument
    add("--host", default="127.0.0.1")
    add("--port", type=int, default=0, help="0, the default: any that is free")
    add("--allow-remote", action="store_true", help="listen on addresses others can reach")
    add("--api-key", help="refuse callers that do not present it")
    add("--seed", type=int, default=0)
    add("--latency", default="0s", help="until the first token, such as 150ms")
    add("--tokens-per-s", type=float)
    add("--output-tokens", type=float, default=120, help="mean length of answers")
    add("--output-sigma", type=float, default=0.5, help="0: every answer has the mean length")
    add("--error-rate", type=float, default=0.0, help="share of 429, 500 and 503")
    add("--fail", action="append", default=[], metavar="KIND=SHARE", help="reset=0.01, html=0.1")
    add("--rpm", type=int, help="requests a minute")
    add("--rpd", type=int, help="requests a day")
    add("--tpm", type=int, help="tokens a minute")
    add("--itpm", type=int, help="input tokens a minute")
    add("--otpm", type=int, help="output tokens a minute")
    add("--concurrent", type=int, help="calls at once")
    add("--style", default="plain", choices=STYLES, help="whose way of counting limits")
    add("--price", action="append", default=[], metavar="MODEL=IN/OUT")
    add("--free-if-cancelled", action="store_true", help="do not bill calls that are given up")
    add("--record", action="store_true", help="keep every billed call for /billed?records=1")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
