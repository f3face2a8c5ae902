"""Batch files, read: records become requests, or errors of lines.

`run` and `quote` read by the same rules, so that the one tells what the other will do. A
record without an id is called by its place, ``line-N``, so that a rerun knows it again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO

from scheduler.batch.forms import Fields, form, read_key, salvage_key
from scheduler.batch.records import MAX_LINE_BYTES, Record, lines
from scheduler.batch.seen import Seen
from scheduler.batch.source import Source
from scheduler.errors import InputError
from scheduler.request import Priority, Request

__all__ = ["MAX_LINE_BYTES", "BadLine", "BatchLine", "LineOptions", "read_lines", "read_source"]

BAD_LINE, DUPLICATE = "bad_line", "duplicate_custom_id"


@dataclass(frozen=True, slots=True)
class BatchLine:
    """A line that can be sent.

    Attributes:
        named_by: The field that has its id; empty: it is called by its place.
        dropped: Its columns that are not sent.
    """

    number: int
    request: Request
    named_by: str = ""
    dropped: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that cannot; `key` is its id, as far as it could be read."""

    error: InputError
    key: str
    code: str = BAD_LINE


@dataclass(frozen=True, slots=True)
class LineOptions:
    """How lines become requests.

    Attributes:
        model: For lines that name none; None: such a line is an error.
        limit: Read only so many lines; None: all.
        max_line_bytes: Longer lines are errors, and are not kept in memory.
        id_column: The field that has a line's id; None: ``custom_id``, else ``id``.
        tags: Of all lines.
    """

    job: str = ""
    model: str | None = None
    priority: int = Priority.BATCH
    limit: int | None = None
    max_line_bytes: int = MAX_LINE_BYTES
    id_column: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)


def read_source(source: Source, options: LineOptions) -> Iterator[BatchLine | BadLine]:
    """Read an input, record by record; memory does not grow with it.

    An id that stands on an earlier line too makes a bad line.
    """
    seen = Seen()
    try:
        for line in _read(source.records(options.max_line_bytes), source.name, options):
            yield line if isinstance(line, BadLine) else _once(line, source.name, seen)
    finally:
        seen.close()


def read_lines(file: BinaryIO, name: str, options: LineOptions) -> Iterator[BatchLine | BadLine]:
    """Read JSON lines, whatever else they may be."""
    return _read(lines(file, options.max_line_bytes), name, options)


def _read(
    records: Iterable[Record], name: str, options: LineOptions
) -> Iterator[BatchLine | BadLine]:
    for record in records:
        if options.limit is not None and int(record.place.rpartition("-")[2]) > options.limit:
            return
        yield _parse(record, name, options)


def _parse(record: Record, name: str, options: LineOptions) -> BatchLine | BadLine:
    fields: Fields | None = None
    try:
        if record.problem:
            raise ValueError(record.problem)
        fields = Fields(record.data)
        key, named_by = read_key(fields.named, options.id_column)
        if fields.problem:
            raise ValueError(fields.problem)
        formed = form(fields.named, options.model)
    except ValueError as exc:
        named = {} if fields is None else fields.named
        key = salvage_key(record.data, named, options.id_column) or record.place
        return BadLine(InputError(name, record.number, str(exc)), key)
    request = Request(
        formed.body, url=formed.url, key=key or record.place, job=options.job,
        priority=options.priority, tags=options.tags,
    )  # fmt: skip
    dropped = tuple(each for each in formed.dropped if each != named_by)
    return BatchLine(record.number, request, named_by, dropped)


def _once(line: BatchLine, name: str, seen: Seen) -> BatchLine | BadLine:
    key = line.request.key or ""
    try:
        earlier = seen.add(key, line.request.digest(), line.number)
    except RecursionError:
        return BadLine(InputError(name, line.number, "nested too deep"), key)
    if earlier is None:
        return line
    number, is_same = earlier
    what = f"{line.named_by or 'custom_id'} {key!r}"
    if is_same:
        problem = f"{what} stands on an earlier line too (line {number:,}); it is sent once"
    else:
        problem = (
            f"{what} was used before for another body (line {number:,}); nothing was sent for it"
        )
    return BadLine(InputError(name, line.number, problem), key, DUPLICATE)
