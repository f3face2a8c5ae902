"""One connection to a server, made so that our SQL means what it says, and never waits for ever.

Nothing of it is kept in the session, so that a proxy which gives each transaction another
connection changes nothing: what a transaction needs is set within it.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any

import psycopg
from psycopg.abc import Buffer
from psycopg.adapt import Loader
from psycopg.generators import fetch_many
from psycopg.types.numeric import Int8Dumper
from psycopg.types.string import StrDumperUnknown

from scheduler.errors import StoreError
from scheduler.stores.postgres.address import Address

CONNECT_S = 10
MORE_S = 30.0  # than a statement may take: the network is gone, or the server
WORST_SQLSTATES = ("08", "57P", "53300", "25006", "40001", "40P01", "55P03", "57014", "25P0")
PREPARED_SQLSTATES = ("26000", "42P05")


class Whole(Loader):
    """Sums of whole numbers are whole."""

    def load(self, data: Buffer) -> int:
        """See the class."""
        return int(bytes(data))


class Link(psycopg.Connection[tuple[Any, ...]]):
    """A connection that gives up on a server that does not answer."""

    answer_s = MORE_S

    def wait(self, gen: Generator[Any, Any, Any], *args: Any, **kwargs: Any) -> Any:
        """See `psycopg.Connection.wait`."""
        return super().wait(_bounded(gen, self.answer_s), *args, **kwargs)

    # psycopg hears all answers of a pipeline or none. What it has no name for is kept here.

    def expect_all(self, pipeline: psycopg.Pipeline) -> None:
        """Have the server send all answers that are due, without waiting for them."""
        pipeline._enqueue_sync()
        self.wait(pipeline._communicate_gen())

    def hear(self, pipeline: psycopg.Pipeline, cursor: psycopg.Cursor[Any]) -> None:
        """Wait until this one's answer is there; what was asked behind it may take its time."""
        while cursor.pgresult is None:
            self.wait(_next_answer(pipeline))


def _next_answer(pipeline: psycopg.Pipeline) -> Generator[Any, Any, None]:
    answer = yield from fetch_many(pipeline.pgconn)
    if not answer:
        raise psycopg.OperationalError("the server closed the connection before it answered")
    pipeline._process_results(pipeline.result_queue.popleft(), answer)


def _bounded(gen: Generator[Any, Any, Any], seconds: float) -> Generator[Any, Any, Any]:
    """The same steps, until the time is over."""
    until_s = time.monotonic() + seconds
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            if not ready and time.monotonic() > until_s:
                gen.close()
                raise psycopg.OperationalError(f"no answer within {seconds:g} s")
            wanted = gen.send(ready)
    except StopIteration as done:
        return done.value


class Unreachable(StoreError):
    """The database cannot be reached."""


def connect(address: Address) -> Link:
    """Make a connection. Raises `Unreachable`, which knows nothing of a password."""
    try:
        link = Link.connect(
            address.url.get_secret_value(),
            autocommit=True,
            **_defaults(address),
        )
    except (psycopg.Error, UnicodeError) as exc:
        problem = _plain(exc, address)
        exc.__traceback__ = None  # its frames hold the URL
    else:
        adapters = link.adapters
        adapters.register_dumper(int, Int8Dumper)  # whatever its size, or each would be a statement
        adapters.register_dumper(str, StrDumperUnknown)
        adapters.register_loader("numeric", Whole)
        link.prepare_threshold = 0 if is_direct(link) else None
        return link
    raise Unreachable(problem)


def _defaults(address: Address) -> dict[str, Any]:
    told = address.url.get_secret_value()
    wanted = {
        "connect_timeout": CONNECT_S, "application_name": "llm-budget-scheduler",
        "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3,
        "tcp_user_timeout": 30_000,
    }  # fmt: skip
    return {name: value for name, value in wanted.items() if f"{name}=" not in told} | {
        "client_encoding": "UTF8"
    }


def _plain(exc: Exception, address: Address) -> str:
    said = " ".join(str(exc).split())
    if isinstance(exc, psycopg.ProgrammingError | UnicodeError):
        said = "its URL cannot be read"  # and what libpq says may quote any part of it
    return f"{address.shown} cannot be reached: {said}"


def is_direct(link: Link) -> bool:
    """Whether no proxy is between: it would not tell the server's process as its own.

    Only then a prepared statement is there in the next transaction, and LISTEN hears anything.
    """
    found = link.execute("SELECT pg_backend_pid()").fetchone()
    return found is not None and found[0] == link.info.backend_pid


def may_try_again(exc: BaseException) -> bool:
    """Whether an error tells of the connection, or of what others did, and not of a statement."""
    if not isinstance(exc, psycopg.Error):
        return isinstance(exc, Unreachable)
    if exc.sqlstate is not None:
        return exc.sqlstate.startswith(WORST_SQLSTATES + PREPARED_SQLSTATES)
    return isinstance(exc, psycopg.OperationalError | psycopg.InterfaceError)
