"""What instrumented clients were seen to send, and what went out past them; for warnings only."""

from __future__ import annotations

import re
import threading
import warnings
from typing import Any

from scheduler.adapters.dialects import is_endpoint
from scheduler.errors import UncountedCalls
from scheduler.guards.plain import one_line
from scheduler.providers.known import kind_at

_HOSTS = re.compile(
    r"(^|[.-])(openai\.azure\.com|aiplatform\.googleapis\.com|api\.cohere\.(ai|com)|huggingface\.co)$"
    r"|^bedrock-runtime[.-].*amazonaws\.com"
)
_PATHS = re.compile(
    r"^/model/[^/]+/(invoke|converse)"  # Bedrock's
    r"|/publishers/\w+/models/[^/]+:\w+$|:(raw|streamRaw)Predict$"  # Vertex's
)
WHAT_TO_DO = (
    "Wrap the client (s.wrap), give it s.http_client(), or decorate the function that calls it "
    "(s.budgeted(quote=…))"
)


def is_of_a_model(host: str | None, path: str | None) -> bool:
    """Whether a POST there is unmistakably a call to a model, or a host one of a model's."""
    if path is None or not host:
        return bool(host) and (kind_at(host) is not None or _HOSTS.search(host or "") is not None)
    is_known = is_of_a_model(host, None)
    ends_so = path.rstrip("/").endswith("/chat/completions")
    return ends_so or _PATHS.search(path) is not None or (is_known and is_endpoint(path))


def may_cost(host: Any, path: str | None) -> bool:
    """Whether a POST may cost something: a call to a model, or whatever goes to a model's host."""
    return isinstance(host, str) and (is_of_a_model(host, None) or is_of_a_model(host, path))


class Sightings:
    """What one instrumentation has seen.

    Attributes:
        has_seen: A call to a model, or what was admitted as one.
    """

    def __init__(self) -> None:
        self.has_seen = False
        self._hosts: set[str] = set()  # that clients sent to which are reached
        self._told: set[str] = set()
        self._lock = threading.Lock()

    def sent(self, method: str, host: str, path: str) -> None:
        """A client that is reached is about to send this."""
        self._hosts.add(host)
        if method.upper() == "POST" and is_endpoint(path):
            self.has_seen = True

    def reaches(self, host: Any) -> bool:
        """Whether a client that is reached has sent something there."""
        return host in self._hosts

    def passed(self, host: str, path: str) -> None:
        """This goes out uncounted, by whatever means: told once for each host."""
        if is_of_a_model(host, path):
            self._tell(host, f"a call to {host} ({one_line(path)[:100]}) goes out uncounted")

    def looked_up(self, host: Any) -> None:
        """Somebody asked for the address of a host: mostly to send something there."""
        if isinstance(host, str) and host not in self._hosts and is_of_a_model(host, None):
            self._tell(
                host,
                f"something that is not reached connects to {host}: what it sends is uncounted",
            )

    def ended(self) -> None:
        """It is over."""
        if not self.has_seen:
            warnings.warn(
                "instrument has seen no call to a model. If there were any, they went out uncounted, "
                "by means that it does not reach: it reaches httpx, httpx2, aiohttp and requests in "
                f"this process, not gRPC, sockets of a library's own, or other processes. {WHAT_TO_DO}",
                UncountedCalls,
                stacklevel=4,
            )

    def _tell(self, host: str, what: str) -> None:
        with self._lock:
            if host in self._told:
                return
            self._told.add(host)
        warnings.warn(
            f"{what}, unless it is within a function that is budgeted. {WHAT_TO_DO}",
            UncountedCalls, stacklevel=4,
        )  # fmt: skip
