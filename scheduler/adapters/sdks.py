"""OpenAI's, Anthropic's and Groq's clients out of reach: all of them, by their classes.

They note what they ask, as those do that `linked` changes, so that a call is tried again, and made
anew, as the SDK's own loop would do it.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

from scheduler.adapters.linked import attempting, begin, is_linked, note, retries_told
from scheduler.adapters.renewal import Asking, asking
from scheduler.adapters.shadow import Budgeted

SDKS = ("openai", "anthropic", "groq")
_KINDS = ("SyncAPIClient", "AsyncAPIClient")
_NEEDED = ("request", "_process_response", "_prepare_options")

Patch = Callable[[Any, str, Callable[[Any], Any]], None]


class Sdks:
    """Those that have been imported so far.

    Args:
        patch: Replaces a method of a class, given what makes the other one of it.

    Attributes:
        is_over: It is as if they were not reached.
    """

    def __init__(self, patch: Patch) -> None:
        self._patch, self.is_over = patch, False
        self._left = set(SDKS)  # not imported yet
        self._seen: set[type] = set()  # whose way to prepare a call is known
        self.reach()

    def reach(self) -> None:
        """Reach those that were imported meanwhile."""
        for name in [name for name in self._left if f"{name}._base_client" in sys.modules]:
            self._left.discard(name)
            module = sys.modules[f"{name}._base_client"]
            for kind in (getattr(module, each, None) for each in _KINDS):
                if all(hasattr(kind, each) for each in _NEEDED):
                    self._patch(kind, "request", self._request)
                    self._patch(kind, "_process_response", _process_response)
                if hasattr(kind, "_attempt_request"):
                    self._patch(kind, "_attempt_request", _attempt_request)

    def _request(self, original: Any) -> Any:
        async def request(client: Any, cast_to: Any, options: Any, **more: Any) -> Any:
            if self._passes(client):
                return await original(client, cast_to, options, **more)
            call, options = self._begin(client, options)
            with asking(call):
                return await original(client, cast_to, options, **more)

        def request_sync(client: Any, cast_to: Any, options: Any, **more: Any) -> Any:
            if self._passes(client):
                return original(client, cast_to, options, **more)
            call, options = self._begin(client, options)
            with asking(call):
                return original(client, cast_to, options, **more)

        return request if inspect.iscoroutinefunction(original) else request_sync

    def _passes(self, client: Any) -> bool:
        if self.is_over or isinstance(client._client, Budgeted):
            return True
        return is_linked(client)  # which notes that itself

    def _begin(self, client: Any, options: Any) -> tuple[Asking | None, Any]:
        for kind in type(client).__mro__:
            if kind not in self._seen:
                self._seen.add(kind)
                if "_prepare_options" in vars(kind):
                    self._patch(kind, "_prepare_options", _prepare_options)
        return begin(client, options, is_strict=True)


def _prepare_options(original: Any) -> Any:
    def prepare_options(client: Any, options: Any) -> Any:
        note(client, options)
        return original(client, options)

    return prepare_options


def _attempt_request(original: Any) -> Any:
    def attempt(client: Any, options: Any, **more: Any) -> Any:
        with attempting(client, options, more.get("call")):
            return original(client, options, **more)

    async def attempt_async(client: Any, options: Any, **more: Any) -> Any:
        with attempting(client, options, more.get("call")):
            return await original(client, options, **more)

    return attempt_async if inspect.iscoroutinefunction(original) else attempt


def _process_response(original: Any) -> Any:
    def process_response(client: Any, *, retries_taken: int = 0, **more: Any) -> Any:
        return original(client, retries_taken=retries_told(retries_taken), **more)

    async def process_response_async(client: Any, **more: Any) -> Any:
        return await process_response(client, **more)

    is_async = inspect.iscoroutinefunction(original)
    return process_response_async if is_async else process_response
