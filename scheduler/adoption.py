"""How code that is there already comes to wait for money: tags, wrapped clients, functions.

The work is done in `scheduler.adapters`, which is loaded when it is first needed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, Unpack, cast

from scheduler.intake import OnExceeded
from scheduler.marks import NO_MARKS, Marks, merge

if TYPE_CHECKING:
    from scheduler.providers.function import Dollars
    from scheduler.scheduler import Scheduler

C_ = TypeVar("C_")
T_ = TypeVar("T_")
P_ = ParamSpec("P_")
Family = Literal["auto", "httpx", "httpx2"]

_MARKS: ContextVar[Mapping[object, Marks]] = ContextVar(
    "scheduler_marks", default=MappingProxyType({})
)


class Adoption:
    """The methods of a `Scheduler` for code that was written without one."""

    def __init__(self) -> None:
        self._id = object()  # by which `tag` knows it; not its `id`, which may come again

    @contextlib.contextmanager
    def tag(self, **marks: Unpack[Marks]) -> Iterator[None]:
        """Say things of all requests made within the block, where they do not say them themselves.

        They hold for tasks begun in it, too, and for calls of wrapped clients; an inner block
        comes before an outer one, and tags add up.

        Args:
            marks: Fields of `Request`: ``budget``, ``priority``, ``job``, ``deadline``,
                ``max_wait``, ``max_cost``, ``provider``, and ``tags``, a mapping.

        Raises:
            ConfigError: There is no such mark, or no such priority.
        """
        said = _MARKS.get()
        token = _MARKS.set({**said, self._id: merge(said.get(self._id, NO_MARKS), marks)})
        try:
            yield
        finally:
            _MARKS.reset(token)

    @property
    def marks(self) -> Marks:
        """What `tag` says here and now."""
        return _MARKS.get().get(self._id, NO_MARKS)

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

        return cast(C_, wrap(cast("Scheduler", self), client, on_exceeded, merge(NO_MARKS, marks)))

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

        return make_client(cast("Scheduler", self), family, sync, on_exceeded, options)

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
        return cast(T_, await call(cast("Scheduler", self), single, on_exceeded))

    def budgeted(
        self,
        *,
        quote: Dollars | Callable[..., Dollars],
        cost: Dollars | Callable[[Any], Dollars | None] | None = None,
        on_exceeded: OnExceeded | None = None,
        **marks: Unpack[Marks],
    ) -> Callable[[Callable[P_, Awaitable[T_]]], Callable[P_, Coroutine[Any, Any, T_]]]:
        """Decorate an async function: it is called when there is money for it.

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

        scheduler = cast("Scheduler", self)
        return Budgeted(scheduler, quote, cost, on_exceeded, merge(NO_MARKS, marks))
