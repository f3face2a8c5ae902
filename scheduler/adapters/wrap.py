"""SDK clients whose calls wait for money.

Which attribute of a client holds its HTTP client: the SDKs' business, looked up when it is needed,
so that none of them has to be installed.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast
from weakref import ref

from scheduler.adapters.dialects import asks
from scheduler.adapters.http import Door, family_of
from scheduler.adapters.linked import NEEDED, link
from scheduler.adapters.renewal import Bearer
from scheduler.adapters.shadow import Budgeted, shadow
from scheduler.core.intake import EXCEEDED, OnExceeded
from scheduler.core.marks import NO_MARKS, Marks
from scheduler.errors import ConfigError, SchedulerClosed

if TYPE_CHECKING:
    from scheduler.scheduler import Scheduler

TIMEOUT_S, CONNECT_TIMEOUT_S = 600.0, 10.0
MOST_CONNECTIONS, MOST_IDLE = 1000, 100


def wrap(scheduler: Scheduler, client: Any, on_exceeded: OnExceeded | None, marks: Marks) -> Any:
    """A client like this one whose calls go through a scheduler; see `Scheduler.wrap`."""
    door = make_door(scheduler, on_exceeded, marks)
    if isinstance(client, Budgeted) or family_of(client) is not None:
        return shadow(client, door)
    for kind in type(client).__mro__:
        wrapper = _WRAPPERS.get(kind.__module__.partition(".")[0])
        if kind.__module__.startswith("google.genai"):
            wrapper = _wrap_google
        if wrapper is not None:
            return wrapper(client, door)
    kind = type(client)
    raise ConfigError(
        "client",
        f"a {kind.__module__}.{kind.__qualname__} is not one that can be wrapped: give its "
        "constructor http_client=s.http_client(), or call it by s.call, or use "
        "scheduler.instrument(s)",
    )


def make_door(scheduler: Scheduler, on_exceeded: OnExceeded | None, marks: Marks) -> Door:
    """What wrapped calls go through.

    Raises:
        SchedulerClosed: The scheduler is closed.
        ConfigError: `on_exceeded` is no word for it.
    """
    if scheduler.is_closed:
        raise SchedulerClosed("the scheduler is closed: it can wrap no client")
    if on_exceeded is not None and on_exceeded not in EXCEEDED:
        words = ", ".join(map(repr, EXCEEDED))
        raise ConfigError("on_exceeded", f"{on_exceeded!r} is not one of {words}")
    return Door(scheduler, on_exceeded, marks)


def _wrap_stainless(client: Any, door: Door) -> Any:
    """OpenAI's, Anthropic's and Groq's, and what is made of them."""
    if any(not hasattr(client, name) for name in NEEDED) or family_of(client._client) is None:
        raise _changed(client)
    return link(client, door)


def _wrap_mistral(client: Any, door: Door) -> Any:
    """Mistral's: its parts share one configuration, so it is changed itself."""
    configuration = getattr(client, "sdk_configuration", None)
    if configuration is None:
        raise _changed(client)

    def token() -> str | None:
        security = getattr(configuration, "security", None)
        key = getattr(security() if callable(security) else security, "api_key", None)
        return key if isinstance(key, str) else None

    async def token_async() -> str | None:
        return token()

    retries = getattr(configuration, "retry_config", None)
    door.renewal = Bearer(token, token_async, 0 if getattr(retries, "strategy", None) else None)
    return _change(client, configuration, ("client", "async_client"), door)


def _wrap_google(client: Any, door: Door) -> Any:
    """Google's: likewise."""
    api = getattr(client, "_api_client", None)
    if api is None or not hasattr(api, "_http_options"):
        raise _changed(client)
    if getattr(api, "_async_httpx_client", None) is None:
        raise ConfigError(
            "client",
            "this genai.Client sends by google-auth (it has a client certificate), so its calls "
            "cannot be counted; give it http_options with an httpx_async_client",
        )

    _change(client, api, ("_httpx_client", "_async_httpx_client"), door)
    held: Callable[[], Any] = ref(
        api
    )  # its HTTP clients hold these, and others may hold on to them

    def token() -> str | None:
        api = held()
        found = api._access_token() if getattr(api, "_credentials", None) else None
        return found if isinstance(found, str) else None

    async def token_async() -> str | None:
        api = held()
        found = await api._async_access_token() if getattr(api, "_credentials", None) else None
        return found if isinstance(found, str) else None

    # Who sets how it tries again wants the SDK to do it.
    retries = 0 if getattr(api._http_options, "retry_options", None) is not None else None
    door.renewal = Bearer(token, token_async, retries)
    _count_sessions(api, door)
    return client


def _count_sessions(api: Any, door: Door) -> None:
    """Have Google's client send through a door by aiohttp, which it does where that is installed."""
    find, held = getattr(type(api), "_get_aiohttp_session", None), ref(api)
    if find is None:
        api._use_aiohttp = lambda: False
        return
    made: dict[int, Any] = {}  # one for each session, which it keeps

    @functools.wraps(find)
    async def get() -> Any:
        from scheduler.adapters.aio import Counted

        session = await find(held())
        if session is None or isinstance(session, Counted):
            return session
        if id(session) not in made:
            for each in [each for each, known in made.items() if known.closed]:
                del made[each]
            made[id(session)] = Counted(session, door)
        return made[id(session)]

    api._get_aiohttp_session = get
    _leave_retries(api)


def _leave_retries(api: Any) -> None:
    """By aiohttp Google's client tries once more by itself; what is counted was tried by then."""
    once, held = getattr(type(api), "_async_request_once", None), ref(api)
    if once is None or "implicit_retry" not in inspect.signature(once).parameters:
        return

    @functools.wraps(once)
    async def ask(http_request: Any, *args: Any, **options: Any) -> Any:
        if http_request.method.lower() == "post" and asks(http_request.url, http_request.data):
            options["implicit_retry"] = False
        return await once(held(), http_request, *args, **options)

    api._async_request_once = ask


def _change(client: Any, holder: Any, names: tuple[str, str], door: Door) -> Any:
    """Put shadows in place of both HTTP clients; all or nothing."""
    shadows = {}
    for name in names:
        if not hasattr(holder, name):
            raise _changed(client)
        http_client = getattr(holder, name)
        if http_client is not None:
            shadows[name] = shadow(http_client, door)
    for name, made in shadows.items():
        setattr(holder, name, made)
    return client


def _changed(client: Any) -> ConfigError:
    module = type(client).__module__.partition(".")[0]
    return ConfigError(
        "client",
        f"this {type(client).__qualname__} is not built as the versions of {module!r} that are "
        "known: give its constructor http_client=s.http_client() instead",
    )


_WRAPPERS: Mapping[str, Callable[[Any, Door], Any]] = {
    "openai": _wrap_stainless,
    "anthropic": _wrap_stainless,
    "groq": _wrap_stainless,
    "mistralai": _wrap_mistral,
}


def make_client(
    scheduler: Scheduler,
    family: str,
    sync: bool,
    on_exceeded: OnExceeded | None,
    options: dict[str, Any],
) -> Any:
    """An HTTP client whose calls go through a scheduler; see `Scheduler.http_client`."""
    door = make_door(scheduler, on_exceeded, NO_MARKS)
    module = cast(Any, _import_family(family))
    defaults = {
        "timeout": module.Timeout(TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
        "limits": module.Limits(
            max_connections=MOST_CONNECTIONS, max_keepalive_connections=MOST_IDLE
        ),
        "follow_redirects": True,
    }
    kind = module.Client if sync else module.AsyncClient
    return shadow(kind(**defaults | options), door)


def _import_family(family: str) -> ModuleType:
    if family not in ("auto", "httpx", "httpx2"):
        raise ConfigError("family", f"{family!r} is not one of 'auto', 'httpx', 'httpx2'")
    try:
        return importlib.import_module("httpx2" if family == "auto" else family)
    except ImportError:
        if family == "auto":
            return importlib.import_module("httpx")
        raise ConfigError(
            "family", f"{family} is not installed; pip install {family}, or use the other family"
        ) from None
