"""Where a database is: a URL as libpq reads it, with what the store itself takes of it.

A user, a host or a password that it does not name libpq finds in PGUSER, PGHOST, PGPASSWORD,
``~/.pgpass`` or a service file, as all of its programs do.

>>> found = parse("postgresql://ann:pw@db/q?sslmode=require&schema=calls&notify=off")
>>> found.schema, found.notify, found
('calls', False, Address(postgresql://***@db/q?sslmode=require&schema=calls&notify=off))
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import unquote

from pydantic import SecretStr

from scheduler.duration import parse_duration_ms
from scheduler.errors import ConfigError
from scheduler.guards.plain import without_password

SCHEMES = ("postgresql://", "postgres://")
SCHEMA = "scheduler"
PATIENCE_S = 300.0  # a failover takes a minute or two
MOST_SCHEMA_BYTES = 63  # as the server has it


@dataclass(frozen=True, repr=False)
class Address:
    """A database, and how to use it.

    Attributes:
        url: For libpq; it may hold a password.
        shown: For people, without one.
        schema: Of the tables.
        notify: Whether processes wake each other; else they only look now and then.
        patience_s: How long to try again when the database cannot be reached.
    """

    url: SecretStr
    shown: str
    schema: str = SCHEMA
    notify: bool = True
    patience_s: float = PATIENCE_S

    def __repr__(self) -> str:
        return f"Address({self.shown})"


def parse(url: str) -> Address:
    """Read a URL. Raises `ConfigError`, which does not quote a password."""
    shown = without_password(url)
    place, _, query = url.partition("?")
    del url
    if place.count("@") > 1:  # libpq would take a part of the password for the host, and say it
        raise ConfigError("store", f"{shown}: an @ in a user's name or password is written %40")
    own: dict[str, str] = {}
    rest = []
    for each in query.split("&") if query else ():
        name, _, value = each.partition("=")
        if name in ("schema", "notify", "patience"):
            own[name] = unquote(value)
        else:
            rest.append(each)
    schema = own.get("schema", SCHEMA)
    if not schema or "\0" in schema or len(schema.encode()) > MOST_SCHEMA_BYTES:
        raise ConfigError("store", f"{schema!r} is no name of a schema, in {shown}")
    notify = own.get("notify", "on")
    if notify not in ("on", "off"):
        raise ConfigError("store", f"notify={notify} is neither on nor off, in {shown}")
    patience_s = PATIENCE_S
    if "patience" in own:
        patience_s = parse_duration_ms(own["patience"], "patience") / 1000
    plain = SecretStr(place + (f"?{'&'.join(rest)}" if rest else ""))
    return Address(plain, shown, schema, notify == "on", patience_s)
