"""The public `Scheduler`: the shell, and how code that is there already comes to wait for money.

The work on other people's code is done in `scheduler.adapters`, which is loaded when it is first
needed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    ParamSpec,
    Protocol,
    TypeVar,
    Unpack,
    cast,
    overload,
)

from scheduler.core.intake import OnExceeded
from scheduler.core.marks import NO_MARKS, Marks, merge
from scheduler.core.shell import Shell
from scheduler.errors import ConfigError
from scheduler.request import Duration

if TYPE_CHECKING:
    from pydantic import SecretStr

    from scheduler.providers.function import Dollars
    from scheduler.rehearsal import Finish
    from scheduler.telemetry.hooks import Form
    from scheduler.telemetry.prometheus import Metrics
    from scheduler.telemetry.webhooks import Herald

PROMETHEUS_MISSING = (
    "prometheus_client is not installed: pip install 'llm-budget-scheduler[prometheus]'"
)

C_ = TypeVar("C_")
T_ = TypeVar("T_")
P_ = ParamSpec("P_")
Family = Literal["auto", "httpx", "httpx2"]


class Decorator(Protocol):
    """What `Scheduler.budgeted` gives."""

    @overload
    def __call__(
        self, function: Callable[P_, AsyncGenerator[T_, None]]
    ) -> Callable[P_, AsyncGenerator[T_, None]]: ...

    @overload
    def __call__(
        self, function: Callable[P_, Awaitable[T_]]
    ) -> Callable[P_, Coroutine[Any, Any, T_]]: ...


class Scheduler(Shell):
    """Runs requests within budgets; what does not fit waits and goes on by itself.

    Args:
        store: Where queue and ledger live: a URL such as ``sqlite:///scheduler.db``,
            or a `Store`. None: in memory, gone with the process.
        budgets: Budgets to define. One that is stored already is changed to this
            definition and keeps what was spent. A bare limit such as ``"$10/day"`` is that of
            a budget named ``default``. A request that names no budget draws on one of these; others
            in the store bind who names them, and all whom their rules cover. None given: the store's.
        providers: How requests leave; the first is the default. None given: OpenAI's
            API, with the key from ``OPENAI_API_KEY``.
        prices: Prices of your own, model to ``"IN/OUT"`` in USD per million tokens;
            they come before the catalogue's. Or a `PriceBook`.
        concurrency: Most calls under way at once, per provider.
        on_exceeded: ``"wait"`` parks what does not fit; ``"raise"`` refuses it with
            `BudgetExceeded`; ``"fallback"`` asks another model, see `fallback`.
        max_attempts: Most attempts for one request that may have cost something; each has its own
            reservation.
        patience: How long failures that provably cost nothing (no connection, an overload that
            the provider refused) use up no attempt; none with ``max_attempts=1``, and none for calls
            that their callers make (wrapped clients, functions), who wait for the error.
        max_queue: Most requests of this process that may wait. None: no bound.
        cap_output: Most output tokens for requests whose body sets no cap; written
            into the body. None: bodies are sent as they are.
        max_prompt_tokens: Refuse longer prompts with `PromptTooLong`, by an estimate of four
            bytes a token (or your `PriceBook.count_tokens`). None: no bound.
        max_cost: As `Request.max_cost`, for requests that set none. In USD.
        fallback: As `Request.fallback`, for requests that set none.
        routes: Which provider answers for which model: names or patterns with ``*`` to a
            provider's name, or to ``"provider:model"``. A model may also be written
            ``"provider:model"`` in a request. None: only that.
        retry_wait_s: From the number of an attempt that failed to the seconds to wait
            before the next. None: exponential with jitter.
        retry: When to try again, in full, in place of `max_attempts`, `patience` and
            `retry_wait_s`; a provider's own comes first.
        store_prompts: What of a request a durable store keeps on the disk: ``"full"``,
            ``"hash"`` or ``"none"``; see `StorePrompts` for what that costs.
        keep_finished: Most requests with keys whose outcomes a store in memory keeps; then the
            oldest are forgotten: asked again they are sent, and paid, again. None: all of them. A
            file keeps all; see `prune`.
        clock: Tells the time. None: the computer's clock.
        poll_interval: How often to look for changes by other processes.
        role: ``"client"`` submits, and leaves the sending to other processes on the same file: what
            it submits needs a key, and a provider known there by the same name and URL, else
            `ConfigError`. ``"worker"`` sends what others submit, and takes in nothing. ``"both"``
            does both.
        fair_by: The tag that tells tenants apart, as ``"user"``: within a priority they share what
            there is in dollars, however many requests each has. All processes on one store should
            say the same. None: requests go by age.
        weights: Tenants that are to get more, or less, than the others, which weigh 1.

    Use it as an async context manager. Everything runs in the event loop it was
    entered in.
    """

    _metrics: Metrics | None = None
    _herald: Herald | None = None

    def wrap(
        self, client: C_, *, on_exceeded: OnExceeded | None = None, **marks: Unpack[Marks]
    ) -> C_:
        """Let the calls of an SDK's client wait for money here.

        Takes clients of ``openai``, ``anthropic``, ``groq``, ``mistralai`` and ``google-genai``,
        sync or async, and bare ones of httpx and httpx2. Their answers, streams and errors stay
        what they are, and so do proxies and limits. How often a call is sent is bounded by the
        client's ``max_retries``, if that was set; the scheduler tries again itself. Calls to other
        endpoints than those of `Request` go out as they are, uncounted, with the SDK's own retries.
        Keys, tokens and signatures are made anew when a call is sent.

        A call that is refused gives the SDK's own error for status 402 (it will not run as it is)
        or 429 (later), with the reason, and nothing was sent.

        Args:
            client: Stays as it is if its kind can be copied, and none of its methods was replaced
                (by a tracing library); use what is given back.
            on_exceeded: As on the scheduler, for these calls.
            marks: As for `tag`; what `tag` and headers say comes first.

        Raises:
            ConfigError: It is wrapped already, or of a kind that cannot be.
            SchedulerClosed: After `aclose`.
        """
        from scheduler.adapters.wrap import wrap

        return cast(C_, wrap(self, client, on_exceeded, merge(NO_MARKS, marks)))

    def http_client(
        self,
        family: Family = "auto",
        *,
        sync: bool = False,
        on_exceeded: OnExceeded | None = None,
        **options: Any,
    ) -> Any:
        """An HTTP client whose calls to models wait for money here; for SDKs that take one.

        Give such an SDK ``max_retries=0`` as well: the scheduler tries again itself.

        Args:
            family: ``"httpx"``, ``"httpx2"``, or ``"auto"``: httpx2 where it is installed.
            sync: For threads, in place of one for an event loop.
            on_exceeded: As on the scheduler, for these calls.
            options: As for the client's own class. Not given: 600 s for an answer, 1,000
                connections, redirects followed, as SDKs have it.

        Raises:
            ConfigError: The family is not installed.
            SchedulerClosed: After `aclose`.
        """
        from scheduler.adapters.wrap import make_client

        return make_client(self, family, sync, on_exceeded, options)

    async def call(
        self,
        function: Callable[..., Awaitable[T_]],
        /,
        *args: Any,
        on_exceeded: OnExceeded | None = None,
        **kwargs: Any,
    ) -> T_:
        """Call an async function such as ``litellm.acompletion`` when there is money for it.

        What it may cost at most is told by ``model`` and ``messages`` (or ``input``, ``prompt``,
        ``contents``) among its arguments, and by the prices known here; what it did cost, by its
        result: LiteLLM's ``response_cost``, or its usage. It is taken to make one call: for
        others see `budgeted`. Its own retries are switched off (LiteLLM's) or refused.

        Args:
            function: What is called, each time it is admitted: again, if it fails in a way that
                may pass.
            args: The function's own.
            on_exceeded: As on the scheduler, for this call.
            kwargs: The function's own.

        Raises:
            RequestRejected: It was not called.
            ConfigError: It names no model or no prompt, or tries again by itself.
            Exception: What the function raised last, with a note on attempts and money.
        """
        from scheduler.adapters.arguments import Arguments
        from scheduler.adapters.functions import call

        single = Arguments(function, *args, **kwargs)
        args, kwargs = (), {}  # no frame of a refusal shows them: there may be keys among them
        return cast(T_, await call(self, single, on_exceeded))

    def budgeted(
        self,
        *,
        quote: Dollars | Callable[..., Dollars],
        cost: Dollars | Callable[[Any], Dollars | None] | None = None,
        on_exceeded: OnExceeded | None = None,
        **marks: Unpack[Marks],
    ) -> Decorator:
        """Decorate an async function: it is called when there is money for it.

        It may be an async generator, or give one back: that is read as always, and the function
        has ended when that has.

        It may make any number of calls: those of wrapped or instrumented clients, of `call` and of
        other budgeted functions are parts of it, covered by its quote; what it asks with `run` or
        `submit` is reserved and posted beside that, and never waits for it (see `run`). As soon as
        one of its parts came by, it costs what its parts cost, one of which nobody knows what
        became its ceiling; it is settled when the last of them has ended. If it pays elsewhere,
        too, say so by `cost`.

        What it raises counts its parts, too. Without any it is taken for an unknown outcome, whose
        quote keeps counting, unless it is an error of this package, which is taken at its word: a
        refusal (`RequestRejected`) costs nothing.

        Args:
            quote: The most a call may cost, in dollars, or a function of its arguments to that.
            cost: What it did cost in all, in dollars, or a function of its result to that; never
                counted below its parts. None, given or returned: its parts, or what its result
                tells, else the quote.
            on_exceeded: As on the scheduler, for these calls.
            marks: As for `tag`.
        """
        from scheduler.adapters.functions import Budgeted

        return cast(Decorator, Budgeted(self, quote, cost, on_exceeded, merge(NO_MARKS, marks)))

    def metrics(self) -> Metrics:
        """What Prometheus is told: as text, as an ASGI app, or as a collector for a registry.

        It counts from when this is called first; to have everything counted, call it before the
        first request. Needs ``prometheus_client``; see docs/observability.md.

        Raises:
            ConfigError: That is not installed.
        """
        if self._metrics is None:
            try:
                from scheduler.telemetry.prometheus import Metrics
            except ModuleNotFoundError as exc:
                if exc.name != "prometheus_client":
                    raise
                raise ConfigError("metrics", PROMETHEUS_MISSING) from None
            self._metrics = Metrics(self)
        return self._metrics

    def webhook(
        self,
        url: str | SecretStr | None = None,
        *,
        command: Sequence[str] = (),
        name: str | None = None,
        secret: str | SecretStr | None = None,
        form: Form = "cloudevents",
        on: Sequence[str] | None = None,
        thresholds: Sequence[int] = (80, 100),
        parked_after: Duration = "30m",
        unknown_after: Duration = "1h",
        budgets: Sequence[str] = (),
        timeout: Duration = "10s",
    ) -> None:
        """Tell somebody what is new, for as long as this is open; it need not be yet.

        Each piece of news is told once (a threshold once a window), by one of all processes on
        the store that tell the hook of that name, and again until it was taken: whoever is told
        may be told twice. It is found by looking every few seconds, at all that is in the store.

        Args:
            url: Where it is posted: a CloudEvent in JSON, signed by Standard Webhooks.
            command: In place of a URL a program with its arguments, which reads it on stdin.
            name: What the hook is called in all processes. None: by its URL or command.
            secret: For signing: ``whsec_…``, or any text of 24 bytes. None: it is not signed.
            form: ``"text"`` posts ``{"text": "…"}``, as Slack takes it.
            on: Some of ``budget.threshold``, ``budget.projected``, ``requests.parked``,
                ``outcomes.unknown`` and ``job.done``. None: all of these.
            thresholds: Percent of a limit that was spent.
            parked_after: How long requests have to be parked.
            unknown_after: How long the outcome of a call has to be unknown.
            budgets: Names of budgets, or patterns such as ``"team-*"``. Empty: all.
            timeout: For one delivery, at most a minute.

        Raises:
            ConfigError: Something of it makes no sense.
        """
        from scheduler.telemetry.hooks import make_webhook
        from scheduler.telemetry.news import KINDS

        hook = make_webhook(
            url, command=command, name=name, secret=secret, form=form,
            on=KINDS if on is None else on, thresholds=thresholds, parked_after=parked_after,
            unknown_after=unknown_after, budgets=budgets, timeout=timeout,
        )  # fmt: skip
        url = secret = None  # no frame of an error shows them
        self.herald.add(hook)

    @property
    def herald(self) -> Herald:
        """Tells webhooks what is new."""
        if self._herald is None:
            from scheduler.telemetry.webhooks import Herald

            self._herald = Herald(self)
            self.accompany(self._herald)
        return self._herald

    async def forecast(self) -> Finish:
        """When all that waits, here or in the store, will be done.

        What waits is rehearsed: by the real scheduler in virtual time, within the budgets as they are,
        with as many calls at once and the rate limits that are known, from what earlier calls cost and
        took. That takes about a second of processor time in a thread, whether much waits or little, so
        ask it now and then, and not for each request. See docs/forecast.md for how far it may be off.
        """
        from scheduler.rehearsal import finish
        from scheduler.rehearsal.remaining import remaining

        at_once = self._intake.concurrency(self.concurrency)
        scene = await remaining(self.store, self._clock.now_ms(), at_once)
        return await asyncio.to_thread(finish, scene)
