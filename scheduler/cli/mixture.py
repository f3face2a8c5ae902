"""Whether files of another project are mixed into this one; a part of ``scheduler doctor``."""

from __future__ import annotations

from scheduler import __version__
from scheduler.cli.output import plural
from scheduler.guards.installed import DISTRIBUTION, FOLDER, damaged, mixture, remedy

MOST_SHOWN = 3


def look() -> tuple[bool, str]:
    """Whether all is well, and what was found: where this package is, or what is the matter."""
    broken = damaged()
    names = ", ".join(broken[:MOST_SHOWN]) + (", …" if len(broken) > MOST_SHOWN else "")
    lost = f"{plural(len(broken), 'file')} missing or changed: {names}" if broken else ""
    wrong = [each for each in (mixture(), lost) if each]
    if wrong:
        return False, f"{'; '.join(wrong)}. {remedy()}"
    return True, f"{DISTRIBUTION} {__version__} in {FOLDER}"
