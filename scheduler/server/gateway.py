"""The part of the gateway that passes calls on: OpenAI's, Anthropic's and Google's APIs.

Which provider a model goes to is said by its prefix, by a route, or by the path
(``/at/PROVIDER/v1/…``); else it is the maker of the API in which it was asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from scheduler import events
from scheduler.adapters.dialects import Call, Dialect, is_endpoint, read_call
from scheduler.core.future import RequestFuture
from scheduler.errors import ConfigError, SchedulerError
from scheduler.guards.plain import logger_of
from scheduler.providers.anthropic import Anthropic
from scheduler.providers.base import Provider
from scheduler.providers.google import Google
from scheduler.providers.http import HttpProvider
from scheduler.providers.known import kind_at
from scheduler.request import RESPONSES, Response
from scheduler.scheduler import Scheduler
from scheduler.server import forwarded
from scheduler.server.asked import named_in, read_asked
from scheduler.server.bodies import Bodies
from scheduler.server.exchange import Exchange
from scheduler.server.line import HungUp, Line, wanted_at
from scheduler.server.nurse import Nurse
from scheduler.server.passing import pass_on
from scheduler.server.refusals import NOT_AGAIN, Unserved, Whole, refused
from scheduler.server.tokens import Token, Tokens

if TYPE_CHECKING:
    from scheduler.server.batches.background import Background

logger = logger_of("scheduler.server")

REMEMBERED, REMEMBERED_S = 1_000, 60.0  # errors that a client may ask for once more
MAX_CHOSEN, MAX_MODEL_CHARS = 10_000, 500
COUNTED = (
    "/v1/chat/completions", "/v1/responses", "/v1/embeddings", "/v1/completions", "/v1/moderations",
    "/v1/messages",
)  # fmt: skip
FREE = ("/v1/messages/count_tokens",)
_LISTS = ("/v1/models", "/v1beta/models")
_SPEAKERS = {
    Dialect.ANTHROPIC: "Anthropic's",
    Dialect.GOOGLE: "Google's",
    Dialect.OPENAI: "OpenAI's",
}
_KEYS = {Dialect.ANTHROPIC: "ANTHROPIC_API_KEY", Dialect.GOOGLE: "GEMINI_API_KEY",
         Dialect.OPENAI: "OPENAI_API_KEY"}  # fmt: skip


class Gateway:
    """Passes calls on within budgets.

    Args:
        scheduler: Open, and in the event loop in which this is used.
        providers: Who may be asked, the default first.
        tokens: Who may ask.
        max_hold_ms: So long a call may wait that does not say otherwise.
        at_last: Names of providers that are asked only if no other speaks an API, since they were
            not chosen, but found by their keys.
        is_meant: Whether the default stands for all that nothing else is said of.

    Attributes:
        exchanges: Calls under way, or held.
        bodies: What the bodies of these, and of what else is asked, take.
        background: Takes those that nobody stays on the line for. None: nobody does.
        succeeded: How many were answered.
        cost_nusd: What these cost.
        parked_ms: How long these were parked, in all.
    """

    def __init__(
        self, scheduler: Scheduler, providers: Sequence[Provider], tokens: Tokens, *,
        max_hold_ms: int, at_last: frozenset[str] = frozenset(), is_meant: bool = False,
    ) -> None:  # fmt: skip
        self.scheduler, self.tokens, self.max_hold_ms = scheduler, tokens, max_hold_ms
        self._providers = {each.name: each for each in providers}
        self._at_last, self._is_meant = at_last, is_meant
        self._loop = asyncio.get_running_loop()
        self.exchanges: set[Exchange] = set()
        self._is_empty = asyncio.Event()
        self._nurse = Nurse(self._loop)
        self.is_stopping = False
        self.background: Background | None = None
        self.bodies = Bodies()
        self.succeeded = self.cost_nusd = self.parked_ms = 0
        self._turns, self._left = -1, dict[tuple[int, ...], int | None]()
        self._chosen: dict[tuple[Dialect, str, str], tuple[str, str]] = {}
        self._remembered: OrderedDict[bytes, tuple[float, Whole]] = OrderedDict()
        scheduler.on(events.Parked, self._parked)

    # Routes

    def routes(self) -> list[BaseRoute]:
        """What this part serves."""
        counted, free = _Endpoint(self), _Endpoint(self, is_free=True)
        found: list[BaseRoute] = []
        for base in ("", "/openai", "/at/{provider}", "/at/{provider}/openai"):
            found += [Route(f"{base}{path}", counted, methods=["POST"]) for path in COUNTED]
            found += [Route(f"{base}{path}", free, methods=["POST"]) for path in FREE]
            for path in _LISTS:
                found.append(Route(f"{base}{path}", free, methods=["GET"]))
                one = _OfModel(counted, free)
                found.append(Route(f"{base}{path}/{{rest:path}}", one, methods=["GET", "POST"]))
        return found

    def quick(self) -> dict[tuple[str, str], ASGIApp]:
        """The same for those that are asked most, by method and path."""
        counted = _Endpoint(self)
        return {("POST", path): counted for path in COUNTED}

    # Calls

    async def serve(self, line: Line, *, is_free: bool) -> None:
        """Answer one call."""
        path = forwarded.path_of(line.scope["path"])
        dialect = forwarded.dialect_of(path)
        if path.startswith(_LISTS) and "anthropic-version" in line.headers:
            dialect = Dialect.ANTHROPIC
        try:
            if self.is_stopping:
                raise Unserved(
                    503, "stopping", "the gateway is stopping; nothing was sent. Ask again",
                    (b"retry-after", b"1"), (b"connection", b"close"),
                )  # fmt: skip
            token = await self.token_of(line)
            asked = read_asked(line.headers, token, self.scheduler.now_ms())
            if "budget" in asked.marks:
                await self.scheduler.learn_budgets(named_in(asked.marks))
            content = b"" if line.scope["method"] == "GET" else await line.body()
            if is_free:
                await pass_on(self, line, dialect, path, content)
                return
            call = _read(path, content, line.headers.get("content-encoding"))
            forwarded.check_query(call, line.scope["query_string"])
            again = self._told_before(line, content)
            if again is not None:
                await line.answer(again)
                return
            if self.background is not None and call.url == RESPONSES:
                if call.body.get("background") is True:
                    await line.answer(await self.background.begin(line, call, asked, token))
                    return
                linked = await self.background.linked(call.body, token)
                if linked is not call.body:
                    call = replace(call, body=linked)
                    content = call.encode(linked)
            provider, model = self.named(call.dialect, call.body["model"], wanted_at(line))
            exchange = Exchange(self, line, call, content, asked, provider, model)
        except HungUp:
            return
        except Unserved as wrong:
            await line.answer(wrong.as_answer(dialect))
            return
        except SchedulerError as error:
            await line.answer(refused(error, dialect, self.scheduler.now_ms()))
            return
        await exchange.run()

    async def still_takes(self, line: Line) -> bool:
        """Whether a call's token is one still."""
        try:
            await self.token_of(line)
        except Unserved:
            return False
        return True

    async def token_of(self, line: Line) -> Token:
        """Whose call it is.

        Raises:
            Unserved: Nobody's who may ask.
        """
        for presented in _presented(line):
            now_ms, now_s = self.scheduler.now_ms(), self._loop.time()
            found = self.tokens.held(presented, now_ms, now_s)
            if found is None:
                found = await self.tokens.find(presented, now_ms, now_s)
            if found is not None:
                return found
        raise Unserved(
            401, "invalid_api_key",
            "this gateway takes its own tokens only, as the API key of the client; make one with "
            "'scheduler token create NAME'. Nothing was sent",
        )  # fmt: skip

    # Providers

    def provider(self, name: str) -> Provider:
        """A provider by its name."""
        return self._providers[name]

    def choose(self, dialect: Dialect, model: str, line: Line) -> str:
        """The name of who is asked for a model.

        Raises:
            ConfigError: There is nobody who could be.
        """
        return self.named(dialect, model, wanted_at(line))[0]

    def named(self, dialect: Dialect, model: str, wanted: str) -> tuple[str, str]:
        """The same, and what the model is called there; a path may name a provider. Raises as `choose`.

        A prefix or a route that leads to a provider is no part of the model's name there.
        """
        found = self._chosen.get((dialect, model, wanted))
        if found is None:
            found = self._choose(dialect, model, wanted), model
            if not wanted:
                led, there = self.scheduler.led_to(model)
                found = found if led is None else (found[0], there)
            if len(self._chosen) < MAX_CHOSEN:
                self._chosen[dialect, model, wanted] = found
        return found

    def _choose(self, dialect: Dialect, model: str, wanted: str) -> str:
        default = next(iter(self._providers.values()))
        if wanted:
            if wanted in self._providers and wanted not in self._at_last:
                return wanted
            if _speaks(default, dialect) is not False and default.name not in self._at_last:
                host = default.base_url and default.base_url.split("/")[2].partition(":")[0]
                if kind_at(host or None) is None:
                    return default.name  # a gateway, or a server of one's own: it stands for all
            if wanted in self._providers:
                return wanted
            known = ", ".join(map(repr, self._providers))
            raise ConfigError(
                "provider", f"none is named {wanted!r} (there are: {known}); nothing was sent"
            )
        led, _ = self.scheduler.led_to(model)
        if led is not None:
            if _speaks(self._providers[led], dialect) is False:
                raise ConfigError(
                    "model", f"{model!r} is asked at {led!r}, which does not speak "
                    f"{_SPEAKERS[dialect]} API; nothing was sent",
                )  # fmt: skip
            return led
        everybody = list(self._providers.values())
        chosen = [each for each in everybody if each.name not in self._at_last]
        if self._is_meant or dialect is Dialect.OPENAI:
            chosen = [each for each in chosen if each is default]
            if chosen and _speaks(default, dialect) is not False:
                return default.name
        for is_sure, among in ((True, chosen), (None, chosen), (True, everybody)):
            for each in among:
                if _speaks(each, dialect) is is_sure:
                    return each.name
        raise ConfigError(
            "provider", f"none that is configured speaks {_SPEAKERS[dialect]} API; set "
            f"{_KEYS[dialect]} where the gateway runs, or add the provider to scheduler.toml. Nothing "
            "was sent",
        )  # fmt: skip

    # What calls ask

    def left_nusd(self, future: RequestFuture) -> int | None:
        """What is left of the tightest budget in dollars that a call draws on; None: of none."""
        lane, turns = future.lane, self.scheduler.turns
        if lane is None:
            return None
        if turns != self._turns:  # many calls end in one of them
            self._turns, self._left = turns, {}
        elif lane.budgets in self._left:
            return self._left[lane.budgets]
        left = [
            cap.available
            for status in self.scheduler.store.balances(lane.budgets)
            for cap in status.caps
            if cap.cap.unit == "usd" and cap.available is not None
        ]
        told = min(left, default=None)
        self._left[lane.budgets] = told
        return told

    def noted(self, response: Response) -> None:
        """One was answered."""
        self.succeeded += 1
        self.cost_nusd += response.cost_nusd
        self.parked_ms += response.parked_ms

    def key_of(self, line: Line, content: bytes) -> bytes:
        """By which a call is known if its client asks again."""
        whose = "\0".join(_presented(line)) + line.scope["path"]
        return hashlib.sha256(whose.encode() + b"\0" + content).digest()

    def remember(self, key: bytes, whole: Whole) -> None:
        """Keep an error for a while that could not be told with its status."""
        self._remembered[key] = self._loop.time() + REMEMBERED_S, whole
        if len(self._remembered) > REMEMBERED:
            self._remembered.popitem(last=False)

    def _told_before(self, line: Line, content: bytes) -> Whole | None:
        """The error that this client could not be told with its status, if it asks again by itself."""
        if not self._remembered or line.headers.get("x-stainless-retry-count", "0") == "0":
            return None
        until_s, whole = self._remembered.pop(self.key_of(line, content), (0.0, None))
        if whole is None or self._loop.time() > until_s:
            return None
        return Whole(whole.status, [*whole.headers, NOT_AGAIN], whole.content)

    def _parked(self, event: events.Parked) -> None:
        for each in list(self.exchanges):
            each.look()

    # The end

    async def drain(self, grace_s: float) -> None:
        """Take nothing more in, tell those that wait, let those that run come to an end."""
        self.is_stopping = True
        for each in list(self.exchanges):
            each.stop()
        await self._until_empty(grace_s)
        for each in list(self.exchanges):
            each.cut_short()
        await self._until_empty(None)

    def enter(self, exchange: Exchange) -> None:
        """One call more is under way, or held."""
        self.exchanges.add(exchange)
        self._nurse.take(exchange)

    def leave(self, exchange: Exchange) -> None:
        """It is not any more."""
        self.exchanges.discard(exchange)
        self._nurse.leave(exchange)
        if not self.exchanges:
            self._is_empty.set()

    async def _until_empty(self, most_s: float | None) -> None:
        if self.exchanges:
            self._is_empty.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(most_s):
                    await self._is_empty.wait()


class _Endpoint:
    """An ASGI app for some paths."""

    def __init__(self, gateway: Gateway, *, is_free: bool = False) -> None:
        self._gateway, self._is_free = gateway, is_free

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        line = Line(scope, receive, send, self._gateway.bodies)
        try:
            await self._gateway.serve(line, is_free=self._is_free)
        finally:
            line.let_go()


class _OfModel:
    """What is told of a model; and Google's paths, which end in what is asked of it."""

    def __init__(self, counted: _Endpoint, free: _Endpoint) -> None:
        self._counted, self._free = counted, free

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = forwarded.path_of(scope["path"])
        if scope["method"] != "POST":
            await self._free(scope, receive, send)
        elif is_endpoint(path):
            await self._counted(scope, receive, send)
        elif path.endswith(":countTokens"):
            await self._free(scope, receive, send)
        else:
            wrong = Unserved(404, "not_found", f"POST {path[:200]} is not served; nothing was sent")
            await Line(scope, receive, send).answer(wrong.as_answer(Dialect.GOOGLE))


def _read(path: str, content: bytes, encoding: str | None) -> Call:
    """The call that a body makes. Raises `Unserved`."""
    call = read_call(path, content) if content else None
    if call is None and encoding is not None:
        raise Unserved(
            415, "unsupported_encoding", f"a body with Content-Encoding {encoding[:100]!r} is not "
            "read here; nothing was sent",
        )  # fmt: skip
    if call is None:
        raise Unserved(
            400,
            "invalid_body",
            f"the body of POST {path[:200]} is no JSON object; nothing was sent",
        )
    if not call.asks or not isinstance(call.body.get("model"), str) or not call.body["model"]:
        raise Unserved(
            400, "invalid_body", f"the body of POST {path[:200]} names no model, or asks nothing; "
            "nothing was sent",
        )  # fmt: skip
    if len(call.body["model"]) > MAX_MODEL_CHARS:
        raise Unserved(
            400, "invalid_body", f"no model has a name of more than {MAX_MODEL_CHARS} characters; "
            "nothing was sent",
        )  # fmt: skip
    return call


def _presented(line: Line) -> list[str]:
    """What a client says that might be its token."""
    headers, found = line.headers, []
    for name in forwarded.KEYS:
        text = headers.get(name, "")
        if name == "authorization":
            scheme, _, text = text.partition(" ")
            text = text if scheme.lower() == "bearer" else ""
        if text:
            found.append(text.strip())
    query = line.scope["query_string"]
    if query and not found:
        found += [text for name, text in parse_qsl(query.decode("latin-1")) if name == "key"]
    return found


def _speaks(provider: Provider, dialect: Dialect) -> bool | None:
    """Whether a provider is asked in a form; None: perhaps, it is not known what it is."""
    if isinstance(provider, Google):
        return dialect is Dialect.GOOGLE
    if isinstance(provider, Anthropic):
        return dialect is Dialect.ANTHROPIC
    if not isinstance(provider, HttpProvider):
        return None
    kind = kind_at(provider.host)
    if kind is None:
        return True if dialect is Dialect.OPENAI else None
    return dialect is Dialect.OPENAI or (kind == "openrouter" and dialect is Dialect.ANTHROPIC)
