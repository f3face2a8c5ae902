r"""No text can break a store: what goes in one comes through here.

*Names* (keys, jobs, models, providers) are kept whole and found again, whatever is in them: a NUL,
line breaks, any script. Only half a character (a lone surrogate, as ``json.loads('"\\ud800"')``
gives one) is refused, since neither a file nor a service can hold it; in what is asked it may
stand, where it is JSON. *Words* are what others say (a provider's error, its id for a call): they
are kept with such halves written out.

>>> words("broken \ud800"), words(17), words(None)
('broken \\ud800', '17', None)
"""

from __future__ import annotations

from scheduler.errors import ConfigError
from scheduler.request import Request

MOST_SHOWN = 80


def check_name(what: str, name: object) -> None:
    """Refuse what cannot be a name. Raises `ConfigError`."""
    if not isinstance(name, str):
        raise ConfigError(what, f"{name!r:.{MOST_SHOWN}} is not a text; nothing was sent")
    if name.isascii():
        return
    try:
        name.encode()
    except UnicodeEncodeError as exc:
        start = max(0, exc.start - MOST_SHOWN // 2)
        shown = ascii(name[start : start + MOST_SHOWN])
        raise ConfigError(
            what, f"{shown} has half a character (a lone surrogate), which cannot be stored or sent; "
            "nothing was sent",
        ) from None  # fmt: skip


def check_names(request: Request) -> None:
    """Refuse a request whose names no store could find again. Raises `ConfigError`."""
    key, job, model = request.key, request.job, request.model
    if key is not None and not (key.__class__ is str and key.isascii()):
        check_name("key", key)
    if job != "" and not (job.__class__ is str and job.isascii()):
        check_name("job", job)
    if not model.isascii():
        check_name("model", model)
    if not (request.url.__class__ is str and request.url.isascii()):
        check_name("url", request.url)


def words(said: object) -> str | None:
    """What somebody else says, so that it can be stored."""
    if said is None:
        return None
    text = said if isinstance(said, str) else str(said)
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()
