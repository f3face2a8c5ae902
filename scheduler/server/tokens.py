"""Who may use a gateway, and what they may spend: names, secrets, budgets.

A token is 256 random bits, so its SHA-256 is enough to know it by, and all that is kept. It is
shown once, when it is made.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from scheduler.core.marks import Marks
from scheduler.errors import ConfigError
from scheduler.request import Priority
from scheduler.stores.noting import Noting

KIND = "token"  # of notes in a store
PREFIX = "sched-"
ONE_TIME = "one-time"  # the name of a token that ends with its gateway
FRESH_S = 1.0  # so long a revoked token may still be taken
_AGAIN_S = 0.1  # one that is not known is looked for no more often
_NAME = re.compile(r"[\w.@+\-]{1,64}", re.ASCII)
_TAG = re.compile(r"[\w.\-]{1,64}", re.ASCII)
MAX_TAGS, MAX_TAG_CHARS = 32, 200


@dataclass(frozen=True, slots=True)
class Token:
    """What is known of a token.

    Attributes:
        name: Whose it is.
        digest: SHA-256 of the secret, in hex.
        budgets: What its calls draw on, besides budgets whose rules match. Empty: what they name.
        tags: Of all its calls.
        priority: Its calls are no more urgent. None: they say so themselves.
        made_at_ms: When it was made, in Unix milliseconds.
        expires_at_ms: From then on it is not taken. None: it never expires.
    """

    name: str
    digest: str
    budgets: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    priority: str | None = None
    made_at_ms: int = 0
    expires_at_ms: int | None = None

    @property
    def marks(self) -> Marks:
        """What it says of its calls."""
        said: dict[str, Any] = {}
        if self.budgets:
            said["budget"] = self.budgets[0] if len(self.budgets) == 1 else list(self.budgets)
        if self.tags:
            said["tags"] = dict(self.tags)
        if self.priority is not None:
            said["priority"] = self.priority
        return cast(Marks, said)

    def is_over(self, now_ms: int) -> bool:
        """Whether it has expired."""
        return self.expires_at_ms is not None and now_ms >= self.expires_at_ms

    def as_text(self) -> str:
        """All but its name, as it is stored."""
        return json.dumps({
            "digest": self.digest, "budgets": list(self.budgets), "tags": dict(self.tags),
            "priority": self.priority, "made_at_ms": self.made_at_ms,
            "expires_at_ms": self.expires_at_ms,
        })  # fmt: skip

    @classmethod
    def read(cls, name: str, text: str) -> Token:
        """The other way."""
        said = json.loads(text)
        return cls(
            name, said["digest"], tuple(said["budgets"]), said["tags"], said["priority"],
            said["made_at_ms"], said["expires_at_ms"],
        )  # fmt: skip


def digest_of(secret: str) -> str:
    """How a token is known.

    >>> digest_of("sched-x") == digest_of("sched-x"), len(digest_of("sched-x"))
    (True, 64)
    """
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def make_token(
    name: str, *, budgets: Iterable[str] = (), tags: Mapping[str, str] | None = None,
    priority: str | None = None, now_ms: int = 0, expires_at_ms: int | None = None,
) -> tuple[Token, str]:  # fmt: skip
    """A new token, and its secret, which nobody can tell again.

    Raises:
        ConfigError: A name, a tag or a priority that is none.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            "token", f"{name!r} is no name: up to 64 letters, digits and _ . @ + -; none was made"
        )
    if priority is not None:
        Priority.parse(priority)
    secret = PREFIX + secrets.token_urlsafe(32)
    token = Token(
        name, digest_of(secret), tuple(dict.fromkeys(budgets)), check_tags(tags or {}), priority,
        now_ms, expires_at_ms,
    )  # fmt: skip
    return token, secret


def read_tags(text: str) -> dict[str, str]:
    """Tags as they are written in one line.

    >>> read_tags("user=alice, team=x")
    {'user': 'alice', 'team': 'x'}

    Raises:
        ConfigError: It is none of that form.
    """
    tags: dict[str, str] = {}
    for part in filter(None, (each.strip() for each in text.split(","))):
        name, equals, value = part.partition("=")
        if not equals:
            raise ConfigError("tags", f"{part!r} is not of the form NAME=VALUE; nothing was sent")
        if tags.setdefault(name.strip(), value.strip()) != value.strip():
            raise ConfigError("tags", f"{name.strip()!r} is said twice; nothing was sent")
    return check_tags(tags)


def check_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags that can be kept and matched. Raises `ConfigError` for others."""
    for name, value in tags.items():
        if not _TAG.fullmatch(name) or not value or len(value) > MAX_TAG_CHARS:
            raise ConfigError(
                "tags", f"{name[:MAX_TAG_CHARS]!r} needs a name of up to 64 letters, digits and _ . -, "
                f"and a value of up to {MAX_TAG_CHARS} characters; nothing was sent",
            )  # fmt: skip
    if len(tags) > MAX_TAGS:
        raise ConfigError("tags", f"{len(tags)} of them are more than {MAX_TAGS}; nothing was sent")
    return dict(tags)


async def keep(store: Noting, token: Token) -> bool:
    """Keep a new token; False: there is one of that name, which stays as it is.

    Raises:
        ConfigError: It has the name of those that are not kept, whose files and batches it would see.
    """
    if token.name == ONE_TIME:
        raise ConfigError("token", f"{ONE_TIME!r} is what a gateway's own is called; none was made")
    return await store.note(KIND, token.name, token.as_text(), only_new=True)


async def revoke(store: Noting, name: str) -> bool:
    """Take a token no more, at any gateway of the store; False: there is none of that name."""
    return await store.note(KIND, name, None)


async def kept(store: Noting) -> list[Token]:
    """The tokens of a store, by name."""
    return [Token.read(name, text) for name, text in (await store.notes(KIND)).items()]


class Tokens:
    """The tokens that a gateway takes; asks the store while it is asked itself, and no more.

    Args:
        store: Where they are kept.
        own: Of this process alone, which is not stored. None: there is none.
    """

    def __init__(self, store: Noting, own: Token | None = None) -> None:
        self._store, self._own = store, own
        self._by_digest: dict[str, Token] = {}
        self._read_s = float("-inf")
        self._lock = asyncio.Lock()

    def held(self, presented: str, now_ms: int, now_s: float) -> Token | None:
        """As `find`, as far as it is known without asking the store; None: it has to be asked."""
        digest = digest_of(presented)
        if self._own is not None and hmac.compare_digest(self._own.digest, digest):
            return self._own
        if now_s - self._read_s > FRESH_S:
            return None
        found = self._by_digest.get(digest)
        if found is None or not hmac.compare_digest(found.digest, digest):
            return None
        return None if found.is_over(now_ms) else found

    async def find(self, presented: str, now_ms: int, now_s: float) -> Token | None:
        """The token of a secret; None: there is none, or no more.

        Args:
            presented: What a client says.
            now_ms: The time.
            now_s: By a clock that is never set.

        Raises:
            StoreError: The store cannot be read.
        """
        found = self.held(presented, now_ms, now_s)
        if found is None and now_s - self._read_s > _AGAIN_S:
            await self._read(now_s)  # it may have been made a moment ago
            found = self.held(presented, now_ms, now_s)
        return found

    async def _read(self, now_s: float) -> None:
        before_s = self._read_s
        async with self._lock:  # of many that ask at once, one reads
            if self._read_s == before_s:
                tokens = await kept(self._store)
                self._by_digest = {each.digest: each for each in tokens}
                self._read_s = now_s
