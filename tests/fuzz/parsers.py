"""Every parser that meets the outside, as a function of what it is given.

Each returns whether the input was accepted. The only errors let through are those that
stand for a bug; ours are the answer "no".
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

from scheduler.batch.input import BatchLine, LineOptions, read_source
from scheduler.batch.source import Source
from scheduler.budget import Budget
from scheduler.cli.options import make_provider, parse_prices
from scheduler.config import load_config
from scheduler.duration import parse_duration_ms
from scheduler.errors import CallFailed, ConfigError, CostTooHigh, SchedulerError, StoreError
from scheduler.money import parse_usd
from scheduler.prices.book import PriceBook
from scheduler.prices.routing import Router
from scheduler.providers.answers import read_answer
from scheduler.providers.engines import Reply, Take
from scheduler.providers.openai import OpenAI
from scheduler.providers.streaming import nobody_reads, read_stream
from scheduler.request import ENDPOINTS, Request
from scheduler.stores.sql import codec

LOCAL = "http://127.0.0.1:9/v1"
BOOK = PriceBook({"m": "0.15/0.6", "free": "0/0"})


def takes(parse: Callable[[], Any], refusal: type[Exception] = SchedulerError) -> bool:
    try:
        parse()
        return True
    except refusal as exc:
        size = len(str(exc))
    assert size < 20_000, "an error nobody can read"
    return False


def batch(data: bytes) -> bool:
    found: list[Source] = []
    if not takes(lambda: found.append(Source(io.BytesIO(data), "in.jsonl")), ConfigError):
        return False
    lines = list(read_source(found[0], LineOptions(model="m")))
    for line in lines:
        if isinstance(line, BatchLine):
            codec.encode_request(line.request)  # what is accepted can be stored
        else:
            str(line.error)
            line.key.encode()
    return any(isinstance(line, BatchLine) for line in lines)


def budget(text: str) -> bool:
    def parse() -> None:
        parsed = Budget("b", text)
        assert Budget("b", parsed.spec).caps == parsed.caps
        repr(parsed)
        for cap in parsed.caps:
            cap.window.resets_at_ms(1_700_000_000_000)

    return takes(parse)


def money(value: Any) -> bool:
    return takes(lambda: parse_usd(value))


def duration(value: Any) -> bool:
    return takes(lambda: parse_duration_ms(value))


def price(text: str) -> bool:
    return takes(lambda: PriceBook(parse_prices([text])))


def base_url(text: str) -> bool:
    return takes(lambda: make_provider(text) if text.startswith("sim:") else OpenAI(base_url=text))


def answer(status: int, headers: Mapping[str, str], content: bytes) -> bool:
    return takes(lambda: read_answer(status, headers, content, ["sk-secret-key"]), CallFailed)


def quote(body: dict[str, Any], url: str = ENDPOINTS[0]) -> bool:
    def parse() -> None:
        quoted = BOOK.tariff().quote(Request(body, url=url))
        assert 0 <= quoted.least_nusd <= quoted.ceiling_nusd
        assert 0 <= quoted.expected_nusd <= quoted.ceiling_nusd
        str(CostTooHigh(quoted.ceiling_nusd, 1))  # however much: it can be told

    return takes(parse)


def stream(data: bytes, pieces: int = 1) -> bool:
    async def read() -> None:
        async def post(take: Take) -> Reply:
            size = len(data) // pieces + 1
            for start in range(0, len(data), size):
                await take(data[start : start + size])
            return 200, {}, b""

        await read_stream(Request({"model": "m"}), post, nobody_reads, ["sk-secret-key"])

    def parse() -> None:
        with contextlib.suppress(StopIteration):
            read().send(None)  # nothing in it waits

    return takes(parse, CallFailed)


def config(data: bytes) -> bool:
    def parse() -> None:
        with tempfile.NamedTemporaryFile(suffix=".toml") as file:
            file.write(data)
            file.flush()
            found = load_config(file.name)
            if not any(table.api_key_command for table in found.tables.values()):
                Router([each.name for each in found.providers()], found.routes)

    return takes(parse)


def stored(decode: Callable[[str], Any], text: str) -> bool:
    return takes(lambda: decode(text), StoreError)
