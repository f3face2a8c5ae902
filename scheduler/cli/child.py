"""``scheduler run … -- COMMAND``: a program that is not changed, within a budget.

Its SDKs find a gateway where they look for their providers: in variables of its environment. The
gateway lives in this process, for as long as the program does, and takes one token, which is the
program's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from scheduler.cli.output import plural, say
from scheduler.errors import ConfigError

if TYPE_CHECKING:
    from scheduler.scheduler import Scheduler
    from scheduler.server.life import Open

NOT_FOUND, NOT_EXECUTABLE = 127, 126  # as a shell has it
# What says something of lines of a file, and nothing of a program.
OF_FILES = (
    "output", "model", "limit", "id_column", "max_line_bytes", "strict", "retry_failed", "fresh",
    "on_exhausted", "fallback", "max_wait", "store_prompts", "progress", "as_json",
)  # fmt: skip
_JOB = "X-Scheduler-Job"
_PASSED_ON = ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGQUIT")


def run_child(ctx: Any, words: Sequence[str]) -> None:
    """Run a command whose calls wait for money; ends with its exit code.

    Args:
        ctx: What else stands on the command line.
        words: The command.
    """
    from scheduler.cli.options import Sending, budgets_of, check_store
    from scheduler.cli.serve import gateway_settings, scheduler_settings
    from scheduler.duration import parse_duration_ms
    from scheduler.server.listen import make_loop

    given = ctx.params
    for name in OF_FILES:
        if ctx.get_parameter_source(name).name == "COMMANDLINE":
            raise typer.BadParameter(
                "says something of the lines of a file, and a command has none",
                param_hint=f"--{name.replace('_', '-')}",
            )
    check_store(given["store"])
    sending = Sending(
        given["config"], given["base_url"], given["timeout"], given["max_requests_per_minute"],
        given["max_tokens_per_minute"], given["max_prompt_tokens"], given["max_cost"],
        given["cap_output"], (), given["max_attempts"], given["patience"],
    )  # fmt: skip
    settings = scheduler_settings(
        sending, given["store"], given["price"] or (), given["concurrency"], given["on_unknown"]
    )
    life = gateway_settings(sending, settings, own={})
    budgets = budgets_of(given["budget"], given["risk"], given["config"])
    grace_s = parse_duration_ms(given["grace"], "--grace") / 1000
    with asyncio.Runner(loop_factory=make_loop()) as runner:
        code = runner.run(_run(settings, budgets, life, list(words), grace_s))
    raise typer.Exit(code)


async def _run(
    settings: dict[str, Any], budgets: Sequence[Any], life: Any, words: list[str], grace_s: float
) -> int:
    from scheduler.scheduler import Scheduler
    from scheduler.server.life import open_gateway

    async with Scheduler(**settings, budgets=budgets) as s:
        async with open_gateway(s, settings["providers"], life) as opened:
            code = await _child(words, environment(opened.url, str(opened.secret), words))
            await opened.gateway.drain(grace_s)
            left = await unfinished(s, settings["store"])
        say(told(s, opened))
        if left:
            say(left)
    return code


async def _child(words: list[str], env: Mapping[str, str]) -> int:
    """The command's exit code, as a shell tells it."""
    with passing_on() as begin:  # before it is there: it may be at work before this goes on
        try:
            child = await asyncio.create_subprocess_exec(*words, env=env)
        except FileNotFoundError:
            say(f"error: there is no command {words[0]!r}; nothing was run")
            return NOT_FOUND
        except OSError as exc:
            say(f"error: {words[0]!r} cannot be run: {exc.strerror or exc}")
            return NOT_EXECUTABLE
        begin(child)
        code = await child.wait()
    return 128 - code if code < 0 else code


@contextlib.contextmanager
def passing_on() -> Iterator[Callable[[asyncio.subprocess.Process], None]]:
    """Signals to this process are the child's while the block lasts; it is named when it is there.

    One of the keyboard goes to both by itself, so it is only not heeded here.
    """
    children: list[asyncio.subprocess.Process] = []
    early: list[int] = []

    def pass_on(number: int, frame: object) -> None:
        if not children:
            early.append(number)
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(number)

    def begin(child: asyncio.subprocess.Process) -> None:
        children.append(child)
        for number in early:
            pass_on(number, None)

    def of_keyboard(number: int, frame: object) -> None:
        if not (sys.stdin is not None and sys.stdin.isatty()):
            pass_on(number, frame)

    before: list[tuple[int, Any]] = []
    for name in ("SIGINT", *_PASSED_ON):
        number = getattr(signal, name, None)
        if number is None or signal.getsignal(number) is signal.SIG_IGN:
            continue
        before.append((number, signal.signal(number, of_keyboard if name == "SIGINT" else pass_on)))
    try:
        yield begin
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def environment(url: str, secret: str, words: Sequence[str]) -> dict[str, str]:
    """The child's variables: where its SDKs look for their providers is the gateway.

    Args:
        url: Of the gateway, without a path.
        secret: Its token.
        words: The command; what it is called becomes the job of its calls.
    """
    env = dict(os.environ)
    env |= {
        "SCHEDULER_GATEWAY_URL": url,
        "OPENAI_BASE_URL": f"{url}/v1", "OPENAI_API_KEY": secret,
        "ANTHROPIC_BASE_URL": url, "ANTHROPIC_API_KEY": secret,
        "GROQ_BASE_URL": f"{url}/at/groq", "GROQ_API_KEY": secret,
        "GOOGLE_GEMINI_BASE_URL": url, "GEMINI_API_KEY": secret, "GOOGLE_API_KEY": secret,
    }  # fmt: skip
    env.pop("ANTHROPIC_AUTH_TOKEN", None)  # it would be sent in place of the key
    job = f"{_JOB}: {job_of(words)}"
    for name in ("OPENAI_CUSTOM_HEADERS", "ANTHROPIC_CUSTOM_HEADERS", "GROQ_CUSTOM_HEADERS"):
        lines = [each for each in env.get(name, "").splitlines() if each.strip()]
        if not any(each.lower().startswith(f"{_JOB.lower()}:") for each in lines):
            lines.append(job)
        env[name] = "\n".join(lines)
    return env


def job_of(words: Sequence[str]) -> str:
    """What a command is called: its script, else the program.

    >>> job_of(["python3", "-u", "old_script.py", "--all"]), job_of(["/usr/bin/node", "app.js"])
    ('old_script.py', 'app.js')
    >>> job_of(["pytest", "-x"])
    'pytest'
    """
    names = [Path(each).name for each in words if not each.startswith("-")]
    scripts = [name for name in names[1:] if "." in name.strip(".")]
    found = scripts[0] if scripts else names[0] if names else "command"
    return "".join(char if char.isascii() and char.isprintable() else "_" for char in found)[:100]


def told(s: Scheduler, opened: Open) -> str:
    """How it ended: spent, how long it was parked, what is left."""
    from scheduler.duration import format_duration
    from scheduler.money import format_usd

    gateway, stats = opened.gateway, s.stats()
    parts = [f"{plural(gateway.succeeded, 'call')} answered, {format_usd(gateway.cost_nusd)} spent"]
    if gateway.parked_ms:
        parts.append(f"parked {format_duration(gateway.parked_ms)} in all")
    if stats.suspense_nusd:
        parts.append(f"{format_usd(stats.suspense_nusd)} kept reserved (outcome unknown)")
    for status in stats.budgets:
        for cap in status.caps:
            if cap.available is not None:
                left = cap.cap.format_amount(max(0, cap.available))
                parts.append(f"{left} left of {status.budget.name!r}")
    return " · ".join(parts)


async def unfinished(s: Scheduler, store: str) -> str:
    """What becomes of batches, and responses in the background, that have not ended; empty: all have."""
    from scheduler.server.batches import record

    batches, responses = (
        len(await record.open_ones(s.store)),
        await s.store.counts(record.BACKGROUND),
    )
    count = responses.waiting + responses.running
    parts = []
    if batches:
        parts.append(f"{batches:,} batch{'es' * (batches != 1)}")
    if count:
        parts.append(f"{plural(count, 'response')} in the background")
    if not parts:
        return ""
    what = " and ".join(parts)
    if s.store.is_shared:
        return f"{what} not finished; 'scheduler serve --store {store}' goes on with that"
    return (
        f"{what} not finished, and lost, since without --store all is kept in memory. With --store FILE "
        "it stays, and 'scheduler serve --store FILE' goes on with it"
    )


def split(args: Sequence[str]) -> tuple[list[str], list[str] | None]:
    """What stands before ``--``, and the command behind it; None: there is no ``--``.

    Raises:
        ConfigError: There is nothing behind it.
    """
    if "--" not in args:
        return list(args), None
    at = list(args).index("--")
    words = list(args[at + 1 :])
    if not words:
        raise ConfigError("input", "there is no command behind '--'; nothing was run")
    return list(args[:at]), words
