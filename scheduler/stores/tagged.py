"""What attempts cost by the tags of their requests: whose labels these are, and how many are kept apart.

A tag may have a value of its own for each request. So that sums stay few, and a look at them cheap, each
quarter of an hour keeps `MOST_VALUES` values of a tag apart, those that came first; what comes beyond is
summed as `REST`. Of more than `MOST_TAGS` tags the last ones are not summed at all.

>>> labels_of({"user": "ann", "page": 7})
(('page', '7'), ('user', 'ann'))
>>> heading({"user": {"ann"}}, ("user", "bob"))
('user', 'bob')
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Any

from scheduler.errors import ConfigError
from scheduler.guards.texts import words

MOST_TAGS = 32
MOST_VALUES = 200
MOST_CHARACTERS = 120  # of a tag, and of a value
REST = "(other)"
HEADINGS = ("model", "job", "budget", "tag", "tag:NAME")

Label = tuple[str, str]  # a tag and its value


def labels_of(tags: Mapping[str, Any]) -> tuple[Label, ...]:
    """Tags as they are summed: plain texts that are not too long, in order."""
    return tuple(sorted({_plain(tag): _plain(value) for tag, value in tags.items()}.items()))


def _plain(said: object) -> str:
    text = words(said) or ""
    return text[:MOST_CHARACTERS].replace("\0", "\\x00")


def encode_tags(tags: Mapping[str, Any]) -> str | None:
    """Tags as they are stored beside what they are of; None: there are none."""
    return json.dumps(dict(labels_of(tags))) if tags else None


@lru_cache(maxsize=1024)
def decode_tags(text: str) -> tuple[Label, ...]:
    """The labels of what `encode_tags` wrote."""
    return labels_of(json.loads(text))


def heading(known: Mapping[str, Collection[str]], label: Label) -> Label | None:
    """Under what a label is summed in a quarter of an hour; None: it is not.

    Once full, a tag stays so: what was summed with the rest is corrected there, too.

    Args:
        known: The tags and values that have sums in it.
        label: It.
    """
    tag, value = label
    values = known.get(tag)
    if values is None:
        return label if len(known) < MOST_TAGS else None
    return label if value in values or len(values) < MOST_VALUES else (tag, REST)


def tag_of(by: str) -> str | None:
    """The one tag whose values are asked for; None: all tags are.

    Raises:
        ConfigError: Something else than tags is asked for.
    """
    what, _, tag = by.partition(":")
    if what != "tag":
        raise ConfigError("by", f"{by!r} is not one of {', '.join(HEADINGS)}")
    return tag or None


def name_of(label: Label, tag: str | None) -> str:
    """How a label is told among those of one tag; None: of all tags.

    >>> name_of(("user", "ann"), None), name_of(("user", "ann"), "user")
    ('user=ann', 'ann')
    """
    return label[1] if tag is not None else "=".join(label)
