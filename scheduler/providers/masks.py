"""Texts of others without the secrets that they repeat, whole or in part. Pure.

A service that refuses a key often shows some of it, so that its owner knows which one is meant.
What is shown here may end in a log of anybody's, so what could be part of a key goes:

>>> key = "sk-proj-Q9zL4mT7vX2bN8kR5wYd"
>>> for said in (f"bad: {key}", "bad: sk-proj-Q9zL4m…5wYd", "bad: sk-pr******5wYd", f"{key[:20]}"):
...     hide(said, [key])
'bad: [hidden]'
'bad: [hidden]'
'bad: [hidden]'
'sk-proj-[hidden]'

How keys begin in public, and words that stand in one, are nobody's secret:

>>> hide("keys begin with sk-proj-, see sk-...", [key])
'keys begin with sk-proj-, see sk-...'
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

HIDDEN = "[hidden]"
PART_CHARS = 8  # so many in a row are no accident
FEW_CHARS = 4  # nor are so many around what stands for the rest

_PUBLIC = re.compile(
    r"(?:(?:Bearer|Basic|Token) )?(?:AIza(?:Sy)?|(?:(?:sk|pk|rk|gsk|csk|xai|hf|r8|nvapi|pplx|fw|tgp|key|ant|or|lf|"
    r"proj|svcacct|admin|service|org|live|test|prod|api\d*|v\d)[-_])*)"
)
_REST = re.compile(
    r"[ \t]?(?:\*{2,}|•{2,}|·{3,}|\.{2,}|…+|#{3,}|[xX]{3,}|[\[<(](?i:\.{3}|…|redacted|hidden)[\])>])[ \t]?"
)
_WORD = r"(?:[A-Z]?[a-z]+|(?:[A-Z]?[a-z]{3,})+|[A-Z]+|\d{1,4})"
_WORDS = re.compile(rf"[-_./:=]?{_WORD}(?:[-_./:=]+{_WORD})*[-_./:=]?")
_MOST_OF_WORDS = 20  # characters; what reads like words for longer, and is in a key, is the key
_SEGMENT = re.compile(r"[^\s\-_./:=]{8,}")


def hide(text: str, secrets: Iterable[str]) -> str:
    """The text without any of the secrets, and without parts that are long enough to tell."""
    found = [secret for secret in secrets if secret]
    for secret in found:
        text = text.replace(secret, HIDDEN)
    # What contains another adds nothing: a header with its scheme, quoted in some way.
    keys = [
        key for key in found if _is_random(key) and not any(o in key for o in found if o != key)
    ]
    if not keys or len(text) < FEW_CHARS:
        return text
    text = _cut_out(text, _abridged(text, keys))
    text = _cut_out(text, _begun(text, keys))
    return _cut_out(text, _parts(text, "\n".join(secret[_public(secret) :] for secret in keys)))


def without_half(text: str, secrets: Iterable[str]) -> str:
    """The text without what it ends with, if that is the beginning of a secret."""
    for secret in secrets:
        for length in range(len(secret) - 1, 0, -1):
            if text.endswith(secret[:length]):
                return text[:-length]
    return text


def _public(secret: str) -> int:
    """How many characters a secret begins with that tell nothing."""
    found = _PUBLIC.match(secret)
    return 0 if found is None else found.end()


def _is_random(secret: str) -> bool:
    """Whether it is a key or the like: parts of a name are words that may stand anywhere."""
    body = secret[_public(secret) :]
    return len(body) >= PART_CHARS and any(
        len(each) > _MOST_OF_WORDS or not _WORDS.fullmatch(each) for each in _SEGMENT.findall(body)
    )


def _abridged(text: str, keys: list[str]) -> Iterator[tuple[int, int]]:
    """Where a key stands with something in place of its middle or of one end."""
    for rest in _REST.finditer(text):
        for key in keys:
            sizes = range(len(key) - 1, 0, -1)
            head = next((n for n in sizes if text.endswith(key[:n], 0, rest.start())), 0)
            tail = next((n for n in sizes if text.startswith(key[-n:], rest.end())), 0)
            if max(0, head - _public(key)) + tail >= FEW_CHARS:
                yield rest.start() - head, rest.end() + tail
                break


def _begun(text: str, keys: list[str]) -> Iterator[tuple[int, int]]:
    """Where a key begins as keys do in public, and goes on as this one does."""
    for key in keys:
        public = _public(key)
        least = public + FEW_CHARS
        for found in re.finditer(re.escape(key[:least]), text) if public else ():
            at, end = found.start(), least
            while end < len(key) and text.startswith(key[: end + 1], at):
                end += 1
            yield at + public, at + end


def _parts(text: str, keys: str) -> Iterator[tuple[int, int]]:
    """Where as many characters in a row are a key's as no accident brings there."""
    start = end = -1
    for at in range(len(text) - PART_CHARS + 1):
        if text[at : at + PART_CHARS] not in keys:
            continue
        if at > end:
            yield from _of_a_key(text, start, end)
            start = at
        end = at + PART_CHARS
    yield from _of_a_key(text, start, end)


def _of_a_key(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    part = text[start:end]
    if start >= 0 and (len(part) > _MOST_OF_WORDS or not _WORDS.fullmatch(part)):
        yield start, end


def _cut_out(text: str, spans: Iterable[tuple[int, int]]) -> str:
    pieces: list[str] = []
    last = 0
    for start, end in sorted(spans):
        if end > last:
            pieces += [text[last : max(last, start)], HIDDEN]
            last = end
    return "".join([*pieces, text[last:]])
