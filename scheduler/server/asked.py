"""What the headers of a call say of it, and what its token lets them say; pure.

>>> from scheduler.server.tokens import Token
>>> bound = Token("ann", "", budgets=("team",), tags={"user": "ann"})
>>> read_asked({"x-scheduler-tags": "page=home", "x-scheduler-wait": "30s"}, bound, 0)
Asked(marks={'budget': 'team', 'tags': {'page': 'home', 'user': 'ann'}}, wait_ms=30000, is_forever=False)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from scheduler.adapters.dialects import HEADER_PREFIX, read_marks
from scheduler.core.marks import NO_MARKS, Marks, merge, within
from scheduler.duration import parse_duration_ms
from scheduler.errors import ConfigError
from scheduler.server.beats import CLIENT_TIMEOUT
from scheduler.server.tokens import Token, read_tags

TAGS, WAIT = "x-scheduler-tags", "x-scheduler-wait"
FOREVER = "forever"
MAX_PLAIN = 1_000


class Asked(NamedTuple):
    """What is said of a call.

    Attributes:
        marks: Fields of its `Request`.
        wait_ms: So long it may be held. None: as long as the gateway holds calls.
        is_forever: It is held however long it takes.
    """

    marks: Mapping[str, Any]
    wait_ms: int | None = None
    is_forever: bool = False


def read_asked(headers: Mapping[str, str], token: Token, now_ms: int) -> Asked:
    """What the ``X-Scheduler-…`` headers of a call say, within what its token allows.

    Args:
        headers: By names in lower case.
        token: What it says stays: another budget, or another value for one of its tags, is
            refused rather than overlooked.
        now_ms: When deadlines that are spans begin.

    Raises:
        ConfigError: There is no such header, it says nothing that makes sense, or more than the
            token allows.
    """
    own = {name: headers[name] for name in headers if name.startswith(HEADER_PREFIX)}
    if not own:
        return _plain(token)
    wait_ms, is_forever = _wait(own.pop(WAIT, None))
    _check_timeout(own.pop(CLIENT_TIMEOUT, "1"))
    tags = read_tags(own.pop(TAGS, ""))
    asked = read_marks(own)
    _check_budget(asked, token)
    for name, value in tags.items():
        if token.tags.get(name, value) != value:
            raise ConfigError(
                "X-Scheduler-Tags", f"the token {token.name!r} says {name}={token.tags[name]}, which "
                f"no header changes (asked: {name}={value[:100]}); nothing was sent",
            )  # fmt: skip
    merge(NO_MARKS, asked)  # refuses a priority that is none
    said = within(token.marks, asked, now_ms)
    if tags:
        said["tags"] = {**tags, **token.tags}
    return Asked(said, wait_ms, is_forever)


_PLAIN: dict[int, tuple[Token, Asked]] = {}


def _plain(token: Token) -> Asked:
    """What is said of a call without such headers, as of most."""
    known = _PLAIN.get(id(token))
    if known is None or known[0] is not token:
        if len(_PLAIN) >= MAX_PLAIN:
            _PLAIN.clear()
        known = _PLAIN[id(token)] = token, Asked(within(token.marks, NO_MARKS, 0))
    return known[1]


def named_in(marks: Mapping[str, Any]) -> list[str]:
    """The budgets that are named; empty: none.

    >>> named_in({"budget": "a"}), named_in({"budget": ["a", "b"]}), named_in({})
    (['a'], ['a', 'b'], [])
    """
    named = marks.get("budget") or []
    return [named] if isinstance(named, str) else list(named)


def _check_budget(asked: Marks, token: Token) -> None:
    wanted = asked.get("budget")
    if wanted is None or not token.budgets:
        return
    names = {wanted} if isinstance(wanted, str) else set(wanted)
    if names != set(token.budgets):
        bound = ", ".join(map(repr, token.budgets))
        raise ConfigError(
            "X-Scheduler-Budget", f"the token {token.name!r} is bound to {bound}, and no header "
            "changes that; nothing was sent",
        )  # fmt: skip


def _wait(text: str | None) -> tuple[int | None, bool]:
    if text is None:
        return None, False
    if text.strip().lower() == FOREVER:
        return None, True
    if text.strip() == "0":
        return 0, False
    return parse_duration_ms(text.strip(), "X-Scheduler-Wait"), False


def _check_timeout(text: str) -> None:
    """Of `beats`, which overlooks what is none."""
    try:
        is_one = 0 < float(text) < float("inf")
    except ValueError:
        is_one = False
    if not is_one:
        raise ConfigError(
            "X-Scheduler-Client-Timeout",
            f"{text[:100]!r} is no number of seconds; nothing was sent",
        )
