"""Where the command begins: Ctrl-C ends it in one plain line, also before all of it is loaded.

This imports next to nothing, so that hardly an instant passes before it watches.
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]  # what `signal` is made of: there at once
import os

TYPE_CHECKING = False  # as in `typing`, which is not loaded for it
if TYPE_CHECKING:
    from collections.abc import Callable

CONFIG, INTERRUPTED = 3, 130  # as in `exits`, which may not be there to be imported
WORDS = "interrupted\n"


def main() -> None:
    """Entry point of the command ``scheduler``."""
    try:
        _watch()
        run = _load()
        run(on_begin=_unwatch)
    except KeyboardInterrupt:
        _leave()


def _load() -> Callable[..., None]:
    """The command itself; ends in one line where another project's files are in its way."""
    from scheduler.guards.installed import Mixed, require

    try:
        require()
        from scheduler.cli.app import main as run
    except Mixed as error:
        os.write(2, f"error: {error}\n".encode())
        os._exit(CONFIG)
    return run


def _watch() -> None:
    """Let Ctrl-C end the process at once: nothing has begun that would have to be ended first."""
    if (
        signal.getsignal(signal.SIGINT) is signal.default_int_handler
    ):  # else it is ignored, on purpose
        signal.signal(signal.SIGINT, _leave)


def _unwatch() -> None:
    """From now on Ctrl-C is an exception, so that what is under way can be ended."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(*_: object) -> None:
    # An exception could be lost in a module that is being loaded, or be shown with its traceback.
    try:  # noqa: SIM105 - one import less
        os.write(2, WORDS.encode())
    except OSError:
        pass
    os._exit(INTERRUPTED)
