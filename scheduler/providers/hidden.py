"""What is sent and shown to nobody: keys, and headers that may have keys in them.

A traceback with variables, as error trackers make it, shows the `repr` of what a frame holds,
and looks into lists, tuples and dictionaries. So a secret is held in objects that are none of
these and whose `repr` says nothing, and a function that may raise has no plain one in a variable.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import TypeVar
from urllib.parse import quote

from pydantic import SecretStr

from scheduler.errors import CallFailed, ConfigError, TransportFailed
from scheduler.providers.answers import clean_id
from scheduler.providers.masks import hide

MIN_SECRET_CHARS = 8  # placeholders such as "EMPTY" are no secrets; to hide them garbles errors

_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_ORDINARY_NAME = re.compile(r"[A-Za-z]+(-[A-Za-z]+)*")

T = TypeVar("T")


class Secrets:
    """Texts that must appear nowhere."""

    __slots__ = ("_reveal",)

    def __init__(self, texts: Iterable[str] = ()) -> None:
        found = {form for text in texts for form in _forms(text)}
        kept = tuple(sorted(found, key=len, reverse=True))
        self._reveal: Callable[[], tuple[str, ...]] = lambda: kept

    def __iter__(self) -> Iterator[str]:
        return iter(self._reveal())

    def __repr__(self) -> str:
        return "<hidden>"

    def hide(self, text: str) -> str:
        """The text without any of them, whole or in part."""
        return hide(text, self)


def _forms(text: str) -> Iterator[str]:
    """A secret as it may turn up: without its scheme, quoted in an error, in a URL."""
    for each in {text, text.strip(), text.strip().rpartition(" ")[2]}:
        if len(each) >= MIN_SECRET_CHARS:
            yield from {each, repr(each)[1:-1], json.dumps(each)[1:-1], quote(each, safe="")}


class Headers:
    """Headers of one's own, cleaned; `check` says what is wrong with them without showing it.

    Args:
        given: Names and values; a value may be a `SecretStr`.
    """

    __slots__ = ("_problem", "_values")

    def __init__(self, given: Mapping[str, str | SecretStr] | None = None) -> None:
        self._problem = ""
        self._values: dict[str, SecretStr] = {}
        try:
            for name, value in dict(given or {}).items():
                self._add(name, value)
        except Exception:  # what it is may have a secret in it
            self._problem = "are no mapping of names to texts"

    def _add(self, name: object, value: object) -> None:
        key = str(name).strip()
        secret = seal(value)  # type: ignore[arg-type]
        shown = f"{key!r}" if _ORDINARY_NAME.fullmatch(key) else "one of them"
        if not isinstance(name, str) or not _NAME.fullmatch(key):
            self._problem = "a name in them is none that a header can have (not shown here)"
        elif not is_text_of_header(secret):
            self._problem = (
                f"the value of {shown} has characters in it that no header can have: a line break, "
                "a control character, or one that is not ASCII (not shown here)"
            )
        else:
            self._values[key.lower()] = secret

    def check(self, setting: str = "headers") -> Headers:
        """Raise `ConfigError` if they cannot be sent."""
        if self._problem:
            raise ConfigError(setting, f"{self._problem}; nothing was sent")
        return self

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def __repr__(self) -> str:
        return f"<headers: {', '.join(n for n in self._values if _ORDINARY_NAME.fullmatch(n))}>"

    def items(self) -> list[tuple[str, SecretStr]]:
        """Names in lower case, and hidden values."""
        return list(self._values.items())

    def as_given(self) -> dict[str, str | SecretStr]:
        """As a provider takes them, hidden."""
        return dict(self._values)

    def with_more(self, more: Mapping[str, str | SecretStr] | Headers) -> Headers:
        """These, and over them others."""
        return Headers({**self._values, **dict(more.items())})

    def reveal(self) -> dict[str, str]:
        """As they are sent. Keep it in no variable."""
        return {name: text.get_secret_value() for name, text in self._values.items()}


def seal(text: str | SecretStr | None) -> SecretStr:
    """A text, hidden, without the blanks and line breaks around it. Never raises.

    What is no text becomes one that `check_key` refuses.
    """
    plain = text.get_secret_value() if isinstance(text, SecretStr) else text
    if plain is None:
        return SecretStr("")
    return SecretStr(plain.strip() if isinstance(plain, str) else "\0")


def check_key(key: SecretStr, variable: str) -> SecretStr:
    """The key, if it can be one.

    Args:
        key: Sealed.
        variable: What tells people where it came from.

    Raises:
        ConfigError: It has a line break, a blank or something else in it that no key has.
    """
    if not is_text_of_header(key) or " " in key.get_secret_value():
        raise ConfigError(
            variable,
            "has characters in it that no key has: a blank, a line break, a control character, or "
            "one that is not ASCII (it is not shown here); nothing was sent. Set it anew",
        )
    return key


def is_text_of_header(text: SecretStr) -> bool:
    """Whether it can be the value of a header."""
    plain = text.get_secret_value()
    return plain.isascii() and plain.isprintable()


# What engines raise


async def sealed(
    work: Awaitable[T],
    secrets: Secrets,
    is_own: Callable[[BaseException], bool] = lambda exc: False,
) -> T:
    """Await what an HTTP engine does. What it raises leaves without its past.

    An engine's exceptions quote headers, and the frames that they passed hold them: of these
    only the words remain, masked.

    Args:
        work: What to wait for.
        secrets: What must not be shown.
        is_own: Which exceptions are none of the engine's: they pass as they are.
    """
    try:
        return await work
    except BaseException as exc:
        error = _bare(exc, secrets, is_own)
        if error is None:
            raise
    raise error  # here, where it has no context


def _bare(
    exc: BaseException, secrets: Secrets, is_own: Callable[[BaseException], bool]
) -> CallFailed | None:
    """The error with nothing but its words; None: it is not about the call."""
    if is_own(exc) or not (isinstance(exc, Exception) or is_panic(exc)):
        return None
    if not isinstance(exc, CallFailed):
        return CallFailed(f"the HTTP engine raised {secrets.hide(described(exc))}{_place(exc)}")
    exc.__cause__ = exc.__context__ = None
    mask(exc, secrets)
    return exc.with_traceback(None)


def mask(error: CallFailed, secrets: Iterable[str]) -> None:
    """Hide the secrets in an error's own words."""
    error.message, error.code = hide(error.message, secrets), hide(error.code, secrets)
    error.args = tuple(hide(x, secrets) if isinstance(x, str) else x for x in error.args)
    error.request_id = clean_id(error.request_id, secrets)
    if error.credit is not None:
        error.credit = hide(error.credit, secrets)


def described(exc: BaseException) -> str:
    """An exception's kind and words; of one about coding no more than what went wrong."""
    words = exc.reason if isinstance(exc, UnicodeError) and hasattr(exc, "reason") else str(exc)
    return f"{type(exc).__name__}: {words}" if words else type(exc).__name__


def _place(exc: BaseException) -> str:
    """Where it was raised, since its traceback is not kept."""
    trace = exc.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return ""
    file = trace.tb_frame.f_code.co_filename.replace("\\", "/").rpartition("/")[2]
    return f" ({file}:{trace.tb_lineno})"


def is_panic(exc: BaseException) -> bool:
    """Whether it is how a library written in Rust says that something is wrong with itself."""
    return type(exc).__name__ == "PanicException"


def never_sent(exc: BaseException) -> TransportFailed:
    """The error for a request that an engine would not even make: nothing was sent."""
    error = TransportFailed(f"could not be sent: {described(exc)}", False)
    error.is_retryable = False
    return error
