"""Whether this package's folder is its own.

Its names: ``pip install llm-budget-scheduler``, then ``import scheduler``, and the command ``scheduler``.
Another project is called ``scheduler`` on PyPI. Its files go to the same folder, where whichever was
installed last has its ``__init__.py``; and uninstalling the other removes that of both.
"""

from __future__ import annotations

import os
import sys
from types import FrameType
from warnings import warn_explicit

DISTRIBUTION = "llm-budget-scheduler"
IMPORT_NAME = "scheduler"
FOLDER = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# Of the other project, and never of this one: so one look tells whether it is here.
FOREIGN = os.path.join(FOLDER, "prioritization.py")
_INSTALL = f"'pip install --force-reinstall --no-deps {DISTRIBUTION}'"


class Mixed(ImportError):
    """Another project's file stands where this package's should, or none; nothing was sent."""


def require() -> None:
    """Called when anything of this package is imported; takes some microseconds.

    Raises:
        Mixed: The package's ``__init__.py`` is another project's, or is gone.
    """
    package = sys.modules[IMPORT_NAME]
    if getattr(package, "__distribution__", None) == DISTRIBUTION:
        return
    file = getattr(package, "__file__", None)
    if file is None:
        file = os.path.join(FOLDER, "__init__.py")
        problem = f"{file} is missing, as after 'pip uninstall {IMPORT_NAME}'"
    else:
        problem = f"{file} is another project's"
    found = mixture()
    told = f"{problem}: {found}" if found else problem
    raise Mixed(f"{DISTRIBUTION} cannot be imported. {told}. Nothing was sent. {remedy()}")


def warn_if_mixed() -> None:
    """Warn of another project's files beside this one's: it works, until they are uninstalled."""
    if os.path.exists(FOREIGN):
        text, (file, line) = f"{mixture()}. Nothing was sent. {remedy()}", _importer()
        warn_explicit(text, RuntimeWarning, file, line)


def _importer() -> tuple[str, int]:
    """Where this package was asked for: its own modules load each other."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith((FOLDER, "<frozen")) and "importlib" not in file:
            return file, frame.f_lineno
        frame = frame.f_back
    return FOLDER, 0


def mixture() -> str:
    """Which other projects have this import name; empty if none is known."""
    found = others()
    if found:
        return f"{', '.join(found)} has the import name {IMPORT_NAME!r}, too"
    if os.path.exists(FOREIGN):
        return f"files of another project called {IMPORT_NAME!r} are in {FOLDER}"
    return ""


def remedy() -> str:
    """What to do, in a sentence."""
    found = dict.fromkeys(each.partition(" ")[0] for each in others())
    if not found:
        return f"{_INSTALL} brings back what is missing"
    return (
        f"Keep one of them in an environment. For this one: 'pip uninstall {' '.join(found)}', and then "
        f"{_INSTALL}, since what the other takes along was this one's, too"
    )


def others() -> list[str]:
    """Other projects with files in a package of this name, each with its version and place."""
    from importlib.metadata import distributions

    found = []
    for each in distributions():
        name = str(each.metadata["Name"])
        if name.lower().replace("_", "-") == DISTRIBUTION:
            continue
        if f"\n{IMPORT_NAME}/" in "\n" + (each.read_text("RECORD") or ""):
            place = os.path.abspath(str(each.locate_file("")))
            found.append(f"{name} {each.version} in {place}")
    return list(dict.fromkeys(found))  # a folder may be on the path twice


def damaged() -> list[str]:
    """Files of this package that are missing, or not as they were installed."""
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        files = distribution(DISTRIBUTION).files or []
    except PackageNotFoundError:  # run from its source
        return []
    found = []
    for file in files:
        if file.parts[0] != IMPORT_NAME or file.size is None:
            continue
        try:
            size = os.stat(str(file.locate())).st_size
        except OSError:
            size = None
        if size != file.size:
            found.append(str(file))
    return found
