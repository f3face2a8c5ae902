"""How one piece of news reaches one hook, and what is said if it does not.

Whatever is at the other end may be slow, silent, full of words, or point elsewhere: it has its timeout, no
more than the head of its answer is read, and no redirect is followed. A command gets the event on stdin,
without a shell, in a process group of its own that ends with its timeout.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass

from scheduler.errors import BadAnswer, CallFailed
from scheduler.guards.plain import one_line
from scheduler.providers.engines import make_engine
from scheduler.providers.hidden import Headers, Secrets, sealed
from scheduler.stores.outbox import News
from scheduler.telemetry.hooks import Webhook

MOST_ANSWER_BYTES = 16_384
FIRST_WAIT_S, LONGEST_WAIT_S = 5.0, 3_600.0
GIVE_UP_MS = 3 * 86_400_000
GONE = 410  # the endpoint wants no more, by Standard Webhooks
ON_WINDOWS = os.name == "nt"


@dataclass(frozen=True, slots=True)
class Told:
    """How a delivery ended.

    Attributes:
        problem: Why it was not taken, without any secret; empty: it was.
        is_final: It is of no use to try again.
        after_s: So long it is to be waited at least before the next try.
    """

    problem: str = ""
    is_final: bool = False
    after_s: float = 0.0


async def deliver(hook: Webhook, news: News, now_ms: int) -> Told:
    """Tell a hook. Whatever is wrong is told, not raised."""
    try:
        event = json.loads(news.event)
        body = hook.body(event)
    except (ValueError, KeyError, TypeError) as exc:
        return Told(f"what is stored cannot be read: {type(exc).__name__}", is_final=True)
    try:
        async with asyncio.timeout(hook.timeout_s):
            if hook.command:
                return await _run(hook, body)
            return await _post(hook, str(event["id"]), body, now_ms)
    except TimeoutError:
        return Told(f"no answer within {hook.timeout_s:g} s")
    except Exception as exc:  # whatever an engine or an operating system thinks of
        return Told(f"{type(exc).__name__}")


async def _post(hook: Webhook, event_id: str, body: bytes, now_ms: int) -> Told:
    headers = Headers(hook.headers(event_id, body, now_ms))
    engine = make_engine(headers, hook.timeout_s, MOST_ANSWER_BYTES, None, use_proxies=True)
    secrets = Secrets([hook.url.get_secret_value()])
    try:
        status, answer, _ = await sealed(
            engine.post(hook.url.get_secret_value(), body), secrets,
            lambda exc: isinstance(exc, TimeoutError | asyncio.CancelledError),
        )  # fmt: skip
    except BadAnswer as error:  # a long one, whose head is what counts
        status, answer = error.status or 0, {}
    except CallFailed as error:
        return Told(one_line(error.message, 200))
    finally:
        await engine.aclose()
    if 200 <= status < 300:
        return Told()
    if status == GONE:
        return Told(f"it answers {status}: it wants no more", is_final=True)
    where = ": redirects are not followed" if 300 <= status < 400 else ""
    return Told(f"it answers {status}{where}", after_s=_asked_s(answer))


def _asked_s(headers: Mapping[str, str]) -> float:
    """How long it asks to be left alone."""
    said = headers.get("retry-after", "").strip()
    return min(float(said), LONGEST_WAIT_S) if said.isascii() and said.isdigit() else 0.0


async def _run(hook: Webhook, body: bytes) -> Told:
    try:
        process = await asyncio.create_subprocess_exec(
            *hook.command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL, start_new_session=not ON_WINDOWS,
        )  # fmt: skip
    except (OSError, ValueError) as exc:
        reason = getattr(exc, "strerror", None) or type(exc).__name__
        return Told(f"{one_line(hook.command[0], 80)} cannot be run: {reason}")
    try:
        await process.communicate(body)
    finally:
        _end(process)
        with contextlib.suppress(ProcessLookupError):
            await asyncio.shield(process.wait())
    if process.returncode:
        return Told(f"{one_line(hook.command[0], 80)} ended with {process.returncode}")
    return Told()


def _end(process: asyncio.subprocess.Process) -> None:
    """End it, and what it began and left running, if it has not ended by itself."""
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if ON_WINDOWS:
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)


def again_at_ms(news: News, told: Told, now_ms: int) -> int | None:
    """When to try again; None: it is given up."""
    import tenacity

    if told.is_final or now_ms - news.made_at_ms >= GIVE_UP_MS:
        return None
    state = tenacity.RetryCallState(None, None, (), {})  # type: ignore[arg-type]
    state.attempt_number = news.tries
    wait = tenacity.wait_exponential_jitter(FIRST_WAIT_S, LONGEST_WAIT_S, jitter=FIRST_WAIT_S)
    return now_ms + int(1000 * max(wait(state), told.after_s))
