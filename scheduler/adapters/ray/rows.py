"""Batches as Ray Data hands them out: what is in them, and the same with more columns. Pure.

A batch is a pyarrow table, a pandas data frame or a dict of arrays; none of these is loaded here.

>>> batch = {"id": [1, 2], "text": ["a", "b"]}
>>> rows_of(batch)
[{'id': 1, 'text': 'a'}, {'id': 2, 'text': 'b'}]
>>> with_columns(batch, {"answer": ["A", None]})["answer"]
['A', None]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scheduler.errors import ConfigError

Columns = Mapping[str, Sequence[Any]]


def rows_of(batch: Any) -> list[dict[str, Any]]:
    """Its rows, with values of Python's own where there are such."""
    if hasattr(batch, "to_pylist"):
        rows: list[dict[str, Any]] = batch.to_pylist()
        return rows
    if hasattr(batch, "to_dict"):
        records: list[dict[str, Any]] = batch.to_dict("records")
        return records
    columns = {name: _plain(values) for name, values in batch.items()}
    return [
        dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
    ]  # fmt: skip


def _plain(values: Any) -> Any:
    return values.tolist() if hasattr(values, "tolist") else values


def names_in(batch: Any) -> list[str]:
    """The names of its columns."""
    if hasattr(batch, "column_names"):
        return list(batch.column_names)
    return list(batch.columns if hasattr(batch, "to_dict") else batch)


def require_free(batch: Any, names: Sequence[str]) -> None:
    """Refuse to replace a column that is there. Raises `ConfigError`."""
    taken = sorted(set(names).intersection(names_in(batch)))
    if taken:
        raise ConfigError(
            "prefix",
            f"the dataset has a column {taken[0]!r} already; nothing was sent for this batch. Name the "
            "new ones otherwise, with prefix='llm_' or the like, or drop it first",
        )


def with_columns(batch: Any, columns: Columns, texts: Sequence[str] = ()) -> Any:
    """The batch with more columns, of the kind that it is.

    Args:
        batch: Stays as it is.
        columns: By name.
        texts: Names of those that hold text or nothing, also where a batch has none of it.
    """
    if hasattr(batch, "append_column"):
        import pyarrow as pa

        for name, values in columns.items():
            kind = pa.string() if name in texts else None
            batch = batch.append_column(name, pa.array(values, kind))
        return batch
    if hasattr(batch, "assign"):
        return batch.assign(**columns)
    return {**batch, **columns}
