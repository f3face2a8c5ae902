r"""A password on the command line is seen by everyone who lists processes: hide it there.

>>> concealed("postgresql://ann:p%40w@db/q?sslpassword=s&schema=x")
'postgresql://ann:*****@db/q?sslpassword=*&schema=x'
>>> concealed("sqlite:///a.db")
'sqlite:///a.db'
"""

from __future__ import annotations

import re
import sys
from contextlib import suppress
from pathlib import Path

_SECRETS = re.compile(r"(?<=:)(?<!//)(?!//)[^:/@?#]*(?=@)|(?<=password=)[^&]*")
ARG_START, ARG_END = 45, 46  # of /proc/self/stat, behind the program's name


def concealed(url: str) -> str:
    """The URL with stars for its passwords, and as long as it was."""
    return _SECRETS.sub(lambda found: "*" * len(found[0]), url) if "://" in url else url


def conceal(url: str) -> bool:
    """Hide the URL's passwords in this process's command line, where the system lets us.

    Returns:
        Whether it has any: somebody may have seen it meanwhile.
    """
    hidden = concealed(url)
    if hidden == url:
        return False
    sys.argv = [each.replace(url, hidden) for each in sys.argv]
    with suppress(OSError, ValueError, IndexError, ImportError):
        _overwrite(url.encode(), hidden.encode())
    return True


def _overwrite(found: bytes, instead: bytes) -> None:
    """What /proc/self/cmdline shows is memory of this process."""
    import ctypes

    stat = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace")
    fields = stat.rpartition(")")[2].split()
    start, end = int(fields[ARG_START]), int(fields[ARG_END])
    if not 0 < start < end:
        return
    words = ctypes.string_at(start, end - start)
    ctypes.memmove(start, words.replace(found, instead), end - start)
