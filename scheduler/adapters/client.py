"""OpenAI-shaped clients of our own: over budget they wait.

    client = scheduler.Client(api_key=os.environ["OPENAI_API_KEY"], cost_tracking_budget=100)
    client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "Hi"}])

They need no SDK. Where ``openai`` is installed, its types are given back.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from decimal import Decimal
from types import TracebackType
from typing import Any, Self

from scheduler.adapters.blocking import BlockingScheduler, BlockingStream
from scheduler.adapters.dialects import read_marks
from scheduler.adapters.shapes import Shape, as_plain, chunk_of, result_of
from scheduler.budget import Budget
from scheduler.core.ending import DRAIN
from scheduler.core.intake import OnExceeded
from scheduler.core.marks import MARKS, Marks, merge, within
from scheduler.core.stream import ResponseStream
from scheduler.errors import ConfigError, SchedulerClosed
from scheduler.ledger.matching import DEFAULT
from scheduler.money import usd
from scheduler.providers.base import Provider
from scheduler.providers.openai import OpenAI
from scheduler.request import CHAT, EMBEDDINGS, RESPONSES, Duration, Request
from scheduler.scheduler import Scheduler

Limit = str | int | float | Decimal | None

_OF_THE_REQUEST = (
    "budget", "priority", "job", "deadline", "max_wait", "max_cost", "tags", "provider", "key",
    "fallback",
)  # fmt: skip
_OF_THE_CLIENT = ("timeout", "extra_query", "max_retries")


class _Client:
    """What the sync and the async client have in common."""

    def __init__(
        self,
        api_key: str | None = None,
        base_url: str | None = None,
        cost_tracking_budget: Limit | Budget = None,
        *,
        on_exceeded: OnExceeded = "wait",
        max_wait: Duration | None = None,
        timeout: Duration = 600,
        provider: Provider | None = None,
        **options: Any,
    ) -> None:
        if provider is None:
            provider = OpenAI(api_key=api_key, base_url=base_url, timeout=timeout)
        elif api_key is not None or base_url is not None:
            raise ConfigError("provider", "is given, so it has a key and a base URL of its own")
        budget = cost_tracking_budget
        self._budget = budget if isinstance(budget, Budget) else Budget(DEFAULT, budget)
        self._max_wait = max_wait
        self._scheduler = Scheduler(
            budgets=self._budget, providers=provider, on_exceeded=on_exceeded, **options
        )

    @property
    def cost_tracking_budget(self) -> str:
        """The limit, as `Budget` writes it; ``"none"``: there is none."""
        return self._budget.spec

    @property
    def current_cost(self) -> Decimal:
        """What this client's calls have cost since it was made, in dollars.

        Calls under way and those nobody heard back from are counted by what is reserved for them.
        """
        stats = self._scheduler.stats()
        return usd(stats.posted_nusd + stats.reserved_nusd + stats.suspense_nusd)

    def _request(self, url: str, params: dict[str, Any]) -> Request:
        """The request that an OpenAI client's arguments amount to.

        Raises:
            ConfigError: One of them is about what is the client's here.
        """
        for name in _OF_THE_CLIENT:
            if params.get(name) is not None:
                raise ConfigError(name, "is said to the client here, not to a call of it")
        said: dict[str, Any] = {name: params.pop(name) for name in _OF_THE_REQUEST
                                if name in params}  # fmt: skip
        headers: Mapping[str, str] = params.pop("extra_headers", None) or {}
        strange = [name for name in headers if not name.lower().startswith("x-scheduler-")]
        if strange:
            raise ConfigError(
                "extra_headers", f"{strange[0]!r}: headers for the provider are given to it"
            )
        marks: Marks = read_marks(headers)
        extra = params.pop("extra_body", None) or {}
        body = {name: as_plain(value) for name, value in (params | extra).items()
                if not _is_unset(value)}  # fmt: skip
        by_app = Marks(**{name: value for name, value in said.items() if name in MARKS})  # type: ignore[typeddict-item]
        asked = within(merge(self._scheduler.marks, by_app), marks, self._scheduler.now_ms())
        merged = {"max_wait": self._max_wait, **said, **asked}
        return Request(body, url=url, **merged)


def _is_unset(value: object) -> bool:
    """Whether it is one of OpenAI's marks for what was not given."""
    return type(value).__name__ in ("NotGiven", "Omit")


class AsyncClient(_Client):
    """An OpenAI-shaped client for event loops; its arguments are those of `Client`.

    ``await client.chat.completions.create(…)``, ``client.responses.create``,
    ``client.embeddings.create``. Nothing is opened before the first call; it is closed by
    `aclose`, or used in ``async with``.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._opening = asyncio.Lock()
        self._is_open = False
        self.chat = _Chat(_AsyncEndpoint(self, Shape.CHAT, CHAT))
        self.responses = _AsyncEndpoint(self, Shape.RESPONSES, RESPONSES)
        self.embeddings = _AsyncEndpoint(self, Shape.EMBEDDINGS, EMBEDDINGS)

    async def set_budget(self, limit: Limit) -> None:
        """Change the limit; calls that are parked go on when it is raised. None: no limit."""
        changed = self._budget.with_limit(limit)
        if self._is_open:
            await self._scheduler.define(changed)
        else:
            self._scheduler.redefine(changed)
        self._budget = changed

    async def scheduler(self) -> Scheduler:
        """The scheduler behind it, open."""
        async with self._opening:
            if not self._is_open:
                await self._scheduler.__aenter__()
                self._is_open = True
        return self._scheduler

    async def aclose(self, *, drain: bool = False, drain_timeout: Duration | None = DRAIN) -> None:
        """End everything; see `Scheduler.aclose`."""
        await self._scheduler.aclose(drain=drain, drain_timeout=drain_timeout)

    async def __aenter__(self) -> Self:
        await self.scheduler()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self._scheduler.__aexit__(kind, error, tb)  # it cuts no drain short


class Client(_Client):
    """An OpenAI-shaped client for code that blocks; it may be used from any thread.

    ``client.chat.completions.create(…)``, ``client.responses.create``,
    ``client.embeddings.create``. It is closed by `close`, by leaving its block, or when the
    program ends.

    Args:
        api_key: Default: ``OPENAI_API_KEY``.
        base_url: Default: ``OPENAI_BASE_URL``, else OpenAI's.
        cost_tracking_budget: What may be spent: dollars in all (``100``), ``"$100/month"``, or
            None for no limit. Its budget is named ``default``.
        on_exceeded: Over budget, ``"wait"`` parks a call until there is money, ``"raise"``
            raises `BudgetExceeded`.
        max_wait: Longest time a call may be parked; then `DeadlineExceeded`. None: no bound.
        timeout: For one attempt; in seconds, or ``"5m"``.
        provider: Asked in place of OpenAI's API.
        options: As for `Scheduler`: ``store``, ``prices``, ``concurrency``, …

    Nothing is opened before the first call.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._opening = threading.Lock()
        self._blocking: BlockingScheduler | None = None
        self._is_closed = False
        self.chat = _Chat(_Endpoint(self, Shape.CHAT, CHAT))
        self.responses = _Endpoint(self, Shape.RESPONSES, RESPONSES)
        self.embeddings = _Endpoint(self, Shape.EMBEDDINGS, EMBEDDINGS)

    @property
    def cost_tracking_budget(self) -> str:
        """The limit, as `Budget` writes it; may be set to a new one while calls wait."""
        return super().cost_tracking_budget

    @cost_tracking_budget.setter
    def cost_tracking_budget(self, limit: Limit) -> None:
        self.set_budget(limit)

    def set_budget(self, limit: Limit) -> None:
        """Change the limit; calls that are parked go on when it is raised. None: no limit."""
        changed = self._budget.with_limit(limit)
        if self._blocking is not None:
            self._blocking.define(changed)
        else:
            self._scheduler.redefine(changed)
        self._budget = changed

    @property
    def scheduler(self) -> BlockingScheduler:
        """The scheduler behind it, open."""
        with self._opening:
            if self._is_closed:
                raise SchedulerClosed("the client is closed; nothing was sent")
            if self._blocking is None:
                self._blocking = BlockingScheduler(self._scheduler)
            return self._blocking

    def close(self, *, drain: bool = False) -> None:
        """End everything; see `Scheduler.aclose`."""
        with self._opening:
            self._is_closed = True
            if self._blocking is not None:
                self._blocking.close(drain=drain)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class _Chat:
    """``client.chat``."""

    def __init__(self, completions: Any) -> None:
        self.completions = completions


class _AsyncEndpoint:
    """``client.responses`` and its like, for event loops."""

    def __init__(self, client: AsyncClient, shape: Shape, url: str) -> None:
        self._client, self._shape, self._url = client, shape, url

    async def create(self, **params: Any) -> Any:
        """As OpenAI's method of that name: an answer, or with ``stream=True`` its chunks.

        Also taken are the fields of `Request` that say how it is treated: ``priority``,
        ``deadline``, ``max_wait``, ``max_cost``, ``budget``, ``job``, ``tags``, ``key``. The
        answer has one field more, ``scheduler``: what it cost, how often it was tried, how long
        it waited.

        Raises:
            BudgetExceeded: Over budget, with ``on_exceeded="raise"``.
            SchedulerError: As `Scheduler.run`.
        """
        is_streamed = bool(params.pop("stream", False))
        request = self._client._request(self._url, params)
        scheduler = await self._client.scheduler()
        if is_streamed:
            return AsyncChunks(scheduler.stream(request), self._shape)
        return result_of(await scheduler.run(request), self._shape)


class _Endpoint:
    """``client.responses`` and its like, for code that blocks."""

    def __init__(self, client: Client, shape: Shape, url: str) -> None:
        self._client, self._shape, self._url = client, shape, url

    def create(self, **params: Any) -> Any:
        """As OpenAI's method of that name; see `AsyncClient`."""
        is_streamed = bool(params.pop("stream", False))
        request = self._client._request(self._url, params)
        if is_streamed:
            return Chunks(self._client.scheduler.stream(request), self._shape)
        return result_of(self._client.scheduler.run(request), self._shape)


class AsyncChunks:
    """The chunks of a streamed answer; best used in ``async with``, or read to the end."""

    def __init__(self, stream: ResponseStream, shape: Shape) -> None:
        self._stream, self._shape = stream, shape

    async def __aiter__(self) -> AsyncIterator[Any]:
        async for event in self._stream:
            yield chunk_of(event, self._shape)

    async def close(self) -> None:
        """End the call; what it reserved keeps counting, if it had not ended."""
        await self._stream.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


class Chunks:
    """The chunks of a streamed answer; best used in ``with``, or read to the end."""

    def __init__(self, stream: BlockingStream, shape: Shape) -> None:
        self._stream, self._shape = stream, shape

    def __iter__(self) -> Iterator[Any]:
        for event in self._stream:
            yield chunk_of(event, self._shape)

    def close(self) -> None:
        """End the call; what it reserved keeps counting, if it had not ended."""
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
