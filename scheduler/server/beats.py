"""How long is a call held, and when does its client have to hear something? Pure.

The first word is the status: once something was said, what the provider answers later has none any
more. So nothing is said before its client would begin to lose patience, and then often enough.

>>> beats_of({"x-stainless-read-timeout": "1.0"})
Beats(first_s=0.3333333333333333, every_s=0.3333333333333333, patience_s=1.0)
>>> beats_of({"x-stainless-read-timeout": "600"}), beats_of({})
(Beats(first_s=60.0, every_s=15.0, patience_s=600.0), Beats(first_s=15.0, every_s=15.0, patience_s=None))
>>> beats_of({"x-stainless-timeout": "0"}).patience_s  # less than a second
0.5
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from scheduler.adapters.dialects import Dialect
from scheduler.shortfall import ParkReason, Shortfall

EVERY_S = 15.0
LATEST_FIRST_S = 60.0  # proxies and load balancers give up after about that
LEAST_S = 0.05
CLIENT_TIMEOUT = "x-scheduler-client-timeout"
_WHOLE = (
    "x-stainless-timeout"  # as SDKs in other languages than Python say it: cut to whole seconds
)
_TOLD = (CLIENT_TIMEOUT, "x-stainless-read-timeout", _WHOLE, "x-server-timeout")
_CUT_TO_NOTHING_S = 0.5
# No time ends these: somebody has to do something.
_OF_PEOPLE = (ParkReason.PAUSED, ParkReason.LARGER_THAN_LIMIT, ParkReason.PROVIDER_CREDIT)


class Beats(NamedTuple):
    """When a client that waits hears something.

    Attributes:
        first_s: After it asked.
        every_s: From then on.
        patience_s: How long it waits without a word, as it said itself. None: it did not.
    """

    first_s: float
    every_s: float
    patience_s: float | None = None


NO_BEATS = Beats(EVERY_S, EVERY_S)


def beats_of(headers: Mapping[str, str]) -> Beats:
    """The rhythm for a client: a third of its own timeout, where it tells that.

    Args:
        headers: By names in lower case.
    """
    for name in _TOLD:
        try:
            patience_s = float(headers[name])
        except (KeyError, ValueError):
            continue
        if name == _WHOLE and patience_s == 0:
            patience_s = _CUT_TO_NOTHING_S
        if 0 < patience_s < float("inf"):
            third_s = max(LEAST_S, patience_s / 3)
            return Beats(min(third_s, LATEST_FIRST_S), min(third_s, EVERY_S), patience_s)
    return NO_BEATS


def word_of(dialect: Dialect, is_stream: bool) -> bytes:
    """A beat: a line break before JSON, a comment in a stream.

    Google's SDKs take a comment for a piece of JSON; an empty line between events is nothing to
    anybody, but nobody sees it either.
    """
    return b": parked\n\n" if is_stream and dialect is not Dialect.GOOGLE else b"\n"


def expected_ms(lack: Shortfall, now_ms: int) -> int | None:
    """How long what parks a call is expected to last; None: until somebody does something."""
    if lack.reason in _OF_PEOPLE:
        return None
    if lack.is_brief:
        return 0
    return None if lack.resumes_at_ms is None else max(0, lack.resumes_at_ms - now_ms)
