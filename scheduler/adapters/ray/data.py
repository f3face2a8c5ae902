"""A dataset's rows as calls within the shared budget: each is answered once, however often it is read.

What becomes of a row is in the store under the row's key. So when a node dies and Ray Data does a block
again, the answers that were paid for are taken from there; and other programs on the same store spend
from the same budgets.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import inspect
import os
import socket
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from scheduler.adapters.blocking import BlockingScheduler
from scheduler.adapters.ray.joining import ray_module, seen
from scheduler.adapters.ray.rows import require_free, rows_of, with_columns
from scheduler.budget import Budget
from scheduler.core.future import RequestFuture
from scheduler.errors import (
    BudgetUnknown,
    ConfigError,
    CredentialsRefused,
    RequestRejected,
    SchedulerClosed,
    SchedulerError,
    StoreError,
    brief,
)
from scheduler.ledger.matching import DEFAULT
from scheduler.money import usd
from scheduler.providers.base import Provider
from scheduler.request import Priority, Request, Response
from scheduler.scheduler import Scheduler
from scheduler.stores import file_of

if TYPE_CHECKING:
    from scheduler.core.roles import Role

Row = dict[str, Any]
Asked = Request | Mapping[str, Any]
Budgets = Budget | str | Iterable[Budget]
STORE = "SCHEDULER_STORE"  # the variable that names one, where none is given
CALLS = 64  # at once
BATCH_SIZE = 64
TASKS = 4  # that an actor works on at once, so that the last rows of one keep no places empty
ANSWER, ERROR, COST = "answer", "error", "cost_usd"
# What is wrong with all rows, and not with one: the pipeline ends with it, before more is sent.
OF_ALL = (ConfigError, BudgetUnknown, CredentialsRefused, SchedulerClosed, StoreError)


class Calls:
    """Asks a model for each row of a batch: for `ray.data.Dataset.map_batches`.

    It adds three columns: ``answer``, ``error`` (what went wrong with this row, and what it cost; else
    null) and ``cost_usd`` (what the row's request cost in all; rows with one key show the same). While
    the budget is spent it waits; no row fails for lack of money.

    Each actor has a scheduler of its own, in a thread of its own. Providers' keys are those of its node.

    Args:
        request: From a row to what is asked: a `Request`, or the JSON body of a chat request.
        job: Names this work. The same rows under the same job are answered, and paid for, once,
            also when the program runs again.
        store: As for `Scheduler`: PostgreSQL where there is more than one node. None: what
            ``SCHEDULER_STORE`` says on the node. A password is better there, or in a `SecretStr`, than
            in a text: Ray may export the arguments of a class.
        budget: Made if there is none by that name; a limit that somebody changed stays. A bare limit
            such as ``"$10/day"`` is that of the budget ``default``.
        key: The column that names a row, or a function of the row. None: what is asked names it,
            so that rows which ask the same are asked once.
        answer: From a response to the value of ``answer``. None: its text.
        prefix: Before the names of the new columns.
        providers: A function that makes them on the node, where their keys are. None: OpenAI.
        retry_failed: Ask again for rows that failed before.
        role: ``"both"``: the actors make the calls themselves. ``"client"``: they leave it to workers
            (``scheduler ray up``, ``scheduler worker``), and need no keys.
        calls: Most at once, in each actor.
        options: More of `Scheduler`, such as ``prices`` and ``cap_output``.

    Raises:
        ConfigError: Something of it cannot be used; nothing was sent.
    """

    def __init__(
        self, request: Callable[[Row], Asked], *, job: str, store: str | SecretStr | None = None,
        budget: Budgets | None = None, key: str | Callable[[Row], object] | None = None,
        answer: Callable[[Response], Any] | None = None, prefix: str = "",
        providers: Callable[[], Provider | Iterable[Provider]] | None = None,
        retry_failed: bool = True, role: Role = "both", calls: int = CALLS, **options: Any,
    ) -> None:  # fmt: skip
        self._request, self._job, self._key = request, job, key
        self._answer, self._retry_failed = answer, retry_failed
        self._names = {each: f"{prefix}{each}" for each in (ANSWER, ERROR, COST)}
        check(job, providers)
        url = store.get_secret_value() if isinstance(store, SecretStr) else store
        url = url or os.environ.get(STORE)
        _check_store(url)
        made = () if providers is None else providers()
        scheduler = Scheduler(url, providers=made, role=role, concurrency=calls, **options)
        if role == "both":  # it may end at any time, so it takes on nothing of other work
            scheduler.keep_to(hashlib.sha256(job.encode()).hexdigest()[:32])
        self._s: BlockingScheduler | None = None  # there even if it cannot be opened
        self._s = BlockingScheduler(scheduler)
        self._s.ensure(*_budgets(budget))

    async def __call__(self, batch: Any) -> Any:
        """The batch with its answers. Several may be under way."""
        assert self._s is not None
        require_free(batch, list(self._names.values()))
        requests = [self._asked(row) for row in rows_of(batch)]
        # Ray Data stops its own loop now and then, and a scheduler's must go on.
        doing = asyncio.run_coroutine_threadsafe(self._ask(requests), self._s.scheduler.loop)
        outcomes = await asyncio.wrap_future(doing)
        cells = [self._cells(outcome) for outcome in outcomes]
        columns = {
            name: [each[place] for each in cells] for place, name in enumerate(self._names.values())
        }
        texts = [self._names[ERROR], *([] if self._answer else [self._names[ANSWER]])]
        return with_columns(batch, columns, texts)

    def _asked(self, row: Row) -> Request:
        """What is asked for a row, with its key."""
        asked = self._request(row)
        if isinstance(asked, Mapping):
            asked = Request(dict(asked), priority=Priority.BATCH)
        if not isinstance(asked, Request):
            raise ConfigError(
                "request", f"gave {brief(asked)}, neither a Request nor a body; nothing was sent"
            )
        return replace(asked, job=asked.job or self._job, key=self._key_of(row, asked))

    def _key_of(self, row: Row, asked: Request) -> str:
        if asked.key is not None:
            return asked.key
        if self._key is None:
            return f"{asked.provider}/{asked.digest()}" if asked.provider else asked.digest()
        found = self._key(row) if callable(self._key) else row.get(self._key)
        if found is None or found == "":
            where = "the key function" if callable(self._key) else f"column {self._key!r}"
            raise ConfigError("key", f"{where} gives a row none; nothing was sent for its batch")
        return str(found)

    async def _ask(self, requests: Sequence[Request]) -> list[Response | SchedulerError]:
        """The outcome of each. Raises what is wrong with all of them."""
        assert self._s is not None
        s, futures = self._s.scheduler, dict[int, RequestFuture]()
        refused = dict[int, SchedulerError]()
        for number, request in enumerate(requests):
            try:
                futures[number] = s.submit(request, retry_failed=self._retry_failed)
            except OF_ALL:
                for each in futures.values():
                    each.cancel()  # nothing of them has left
                raise
            except RequestRejected as error:
                refused[number] = error
        await _all_ended(futures.values())
        return [
            refused[number] if number in refused else _outcome(futures[number])
            for number in range(len(requests))
        ]

    def _cells(self, outcome: Response | SchedulerError) -> tuple[Any, str | None, float]:
        if isinstance(outcome, Response):
            value = outcome.text if self._answer is None else self._answer(outcome)
            return value, None, float(outcome.cost)
        cost = usd(getattr(outcome, "cost_nusd", 0))
        return None, f"{type(outcome).__name__}: {outcome}", float(cost)

    def close(self) -> None:
        """End it; calls under way, which another actor may wait for, finish first."""
        if self._s is not None:
            self._s.close(drain=True)

    def __del__(self) -> None:
        """Ray Data drops it when the pipeline has ended."""
        if getattr(self, "_s", None) is not None:
            with contextlib.suppress(Exception):
                self.close()


async def _all_ended(futures: Iterable[RequestFuture]) -> None:
    """Wait for all; where one says what is wrong with all, those that wait are given up."""
    these = list(futures)

    def ended(future: asyncio.Future[Response]) -> None:
        if not future.cancelled() and isinstance(future.exception(), OF_ALL):
            for each in these:
                if not (each.done() or each.is_running):
                    each.cancel()

    for each in these:
        each.add_done_callback(ended)
    if these:
        await asyncio.wait(these)
    for each in these:
        if not each.cancelled() and isinstance(error := each.exception(), OF_ALL):
            raise error


def _outcome(future: RequestFuture) -> Response | SchedulerError:
    error = future.exception()
    if error is None:
        return future.result()
    if not isinstance(error, SchedulerError):
        raise error
    return error


def check(job: str, providers: object) -> None:
    """Refuse what can be seen to be wrong wherever it is. Raises `ConfigError`."""
    if not job.strip():
        raise ConfigError(
            "job", "is empty; nothing was sent. Name the work, so that it is paid once"
        )
    if providers is not None and not callable(providers):
        raise ConfigError(
            "providers",
            "is a function here, which makes them on each node: their keys and connections are there. "
            "Nothing was sent",
        )


def _check_store(url: str | None) -> None:
    """Refuse a store that the actors of several nodes would not share. Raises `ConfigError`."""
    if url is None or url == "memory://":
        said = "none is named" if url is None else "memory:// is of one process"
        raise ConfigError(
            "store",
            f"{said}, and actors share one; nothing was sent. Give store=, or set {STORE}",
        )
    path = file_of(url)
    if path is None:
        return
    if not path.is_absolute():
        raise ConfigError("store", f"{path}: actors need its whole path; nothing was sent")
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        seen(ray).require_shared(str(path), socket.gethostname())


def _budgets(given: Budgets | None) -> list[Budget]:
    if given is None:
        return []
    if isinstance(given, str):
        return [Budget(DEFAULT, given)]
    return [given] if isinstance(given, Budget) else list(given)


def map_batches(
    ds: Any, request: Callable[[Row], Asked], *, job: str, store: str | SecretStr | None = None,
    actors: int | tuple[int, int] = 1, batch_size: int = BATCH_SIZE, num_cpus: float = 0.25,
    ray_options: Mapping[str, Any] | None = None, **settings: Any,
) -> Any:  # fmt: skip
    """Ask a model for each row of a dataset, within the budget that all on the store share.

    Rows come out with ``answer``, ``error`` and ``cost_usd`` beside what they had; see `Calls`, which
    makes the calls and takes the other arguments. Nothing is asked before the dataset is read.

    >>> ds = map_batches(  # doctest: +SKIP
    ...     ray.data.read_parquet("questions/"),
    ...     lambda row: {"model": "gpt-4o-mini", "max_tokens": 50,
    ...                  "messages": [{"role": "user", "content": row["text"]}]},
    ...     job="questions", budget="$10/day", key="id", actors=4,
    ... )

    Args:
        ds: A `ray.data.Dataset`.
        request: From a row to what is asked.
        job: Names this work; see `Calls`.
        store: See `Calls`; None: what ``SCHEDULER_STORE`` says here. It is shown to nobody.
        actors: How many, or the fewest and the most.
        batch_size: Rows that are handed to an actor together.
        num_cpus: What Ray sets aside for each actor; they mostly wait.
        ray_options: More of `Dataset.map_batches`, such as ``runtime_env``.
        settings: More of `Calls`.

    Returns:
        The dataset with three more columns.

    Raises:
        ConfigError: Ray is not installed, or something cannot be used.
    """
    ray = ray_module()
    check(job, settings.get("providers"))
    url = store.get_secret_value() if isinstance(store, SecretStr) else store
    url = url or os.environ.get(STORE)
    path = None if url is None else file_of(url)
    if path is not None:
        url = str(Path(path).resolve())
    if url is not None:
        _check_store(url)
    given = {"request": request, "job": job, "store": SecretStr(url or ""), **settings}
    options: dict[str, Any] = {
        "batch_size": batch_size, "batch_format": "pyarrow", "num_cpus": num_cpus,
        "fn_constructor_kwargs": given, **_pool(ray, actors), **(ray_options or {}),
    }  # fmt: skip
    return ds.map_batches(Calls, **options)


def _pool(ray: Any, actors: int | tuple[int, int]) -> dict[str, Any]:
    """How many actors, and that each works on several tasks at once, as this version of Ray says it."""
    import importlib

    strategy = importlib.import_module("ray.data").ActorPoolStrategy
    least, most = (actors, actors) if isinstance(actors, int) else actors
    sizes = {"min_size": least, "max_size": most}
    if "max_concurrent_calls_per_actor" in inspect.signature(strategy).parameters:
        return {"compute": strategy(**sizes, max_concurrent_calls_per_actor=TASKS)}
    return {"compute": strategy(**sizes), "max_concurrency": TASKS}
