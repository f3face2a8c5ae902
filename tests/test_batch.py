"""Batch files: what a line becomes, what is said about a bad one, and files that survive crashes."""

from __future__ import annotations

import io
import json
import os
import stat
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.batch import results
from scheduler.batch.files import LineFile
from scheduler.batch.input import BadLine, BatchLine, LineOptions, read_lines
from scheduler.errors import ConfigError
from scheduler.request import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    MODERATIONS,
    RESPONSES,
    Priority,
    Request,
    Response,
    Usage,
)

MESSAGES = [{"role": "user", "content": "hi"}]


def read(text: str | bytes, **options):
    data = text.encode() if isinstance(text, str) else text
    return list(read_lines(io.BytesIO(data), "in.jsonl", LineOptions(**options)))


def good(fields, **options) -> Request:
    (line,) = read(json.dumps(fields), **options)
    assert isinstance(line, BatchLine), line
    return line.request


@pytest.mark.parametrize(
    ("fields", "url", "body"),
    [
        ({"url": CHAT, "method": "POST", "body": {"model": "m", "messages": MESSAGES}},
         CHAT, {"model": "m", "messages": MESSAGES}),
        ({"body": {"model": "m", "messages": []}}, CHAT, {"model": "m", "messages": []}),
        ({"url": RESPONSES, "body": {"model": "m", "input": "x"}},
         RESPONSES, {"model": "m", "input": "x"}),
        ({"url": MODERATIONS, "body": {"model": "m", "input": "x"}},
         MODERATIONS, {"model": "m", "input": "x"}),
        ({"url": COMPLETIONS, "body": {"model": "m", "prompt": "x"}},
         COMPLETIONS, {"model": "m", "prompt": "x"}),
        ({"model": "m", "messages": MESSAGES, "seed": 1},
         CHAT, {"model": "m", "messages": MESSAGES, "seed": 1}),
        ({"model": "gpt-5", "input": "x"}, RESPONSES, {"model": "gpt-5", "input": "x"}),
        ({"model": "text-embed", "input": "x"}, EMBEDDINGS, {"model": "text-embed", "input": "x"}),
        ({"model": "m", "prompt": "hi", "max_tokens": 5},
         CHAT, {"model": "m", "messages": MESSAGES, "max_tokens": 5}),
    ],
)  # fmt: skip
def test_every_form_of_line_becomes_a_request(fields, url, body):
    request = good({**fields, "custom_id": "a"}, job="j")

    assert (request.url, request.body, request.key) == (url, body, "a")
    assert (request.job, request.priority) == ("j", Priority.BATCH)


@pytest.mark.parametrize(
    ("body", "model"),
    [({}, "given"), ({"model": ""}, "given"), ({"model": None}, "given"), ({"model": "m"}, "m")],
)
def test_a_given_model_is_for_lines_that_name_none(body, model):
    assert good({**body, "prompt": "x"}, model="given").model == model


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{oops", "not JSON: "),
        ('{"a": 1', "not JSON: "),
        ("[1]", "not a JSON object but list"),
        ('"text"', "not a JSON object but str"),
        ("null", "not a JSON object but NoneType"),
        (b'{"prompt": "\xff"}', "not UTF-8 text"),
        ("[" * 100_000, "nested too deep"),
        ('{"model": "m"}', "has none of body, messages, input or prompt"),
        ('{"prompt": "x"}', "names no model"),
        ('{"model": 5, "prompt": "x"}', "names no model"),
        ('{"model": "m", "prompt": 5}', "prompt is not a text but int"),
        ('{"model": "m", "messages": "hi"}', "messages is not a list"),
        ('{"body": {"model": "m", "messages": []}, "method": "GET"}', "method 'GET' is not"),
        ('{"body": {"model": "m", "messages": []}, "url": "/x"}', "url '/x' is not one of"),
        ('{"body": {"model": "m", "messages": []}, "url": ["/x"]}', "url ['/x'] is not one of"),
        ('{"body": "x"}', "body is not an object but str"),
        ('{"custom_id": [5], "prompt": "x"}', "custom_id [5] is not a text"),
        ('{"custom_id": "", "prompt": "x"}', "custom_id '' is not a text"),
        ('{"custom_id": "%s", "prompt": "x"}' % ("a" * 501), "is not a text of 1 to 500"),
        ('{"custom_id": "\\ud800", "prompt": "x"}', "surrogates not allowed"),
    ],
)
def test_a_bad_line_says_where_and_what(text, problem):
    (line,) = read(text)

    assert isinstance(line, BadLine)
    assert str(line.error).startswith("in.jsonl:1: ")
    assert problem in str(line.error)


def test_a_bad_line_keeps_its_id_as_far_as_it_could_be_read():
    named, unread = read('{"custom_id": "a", "body": 1}\n{oops\n')

    assert (named.key, unread.key) == ("a", "line-2")


def test_blank_lines_count_but_are_skipped_and_ids_are_line_numbers():
    lines = read('\n{"model": "m", "prompt": "a"}\r\n  \n{"model": "m", "prompt": "b"}')

    assert [(line.number, line.request.key) for line in lines] == [(2, "line-2"), (4, "line-4")]


def test_a_limit_reads_the_first_lines_only():
    text = "".join(f'{{"model": "m", "prompt": "{n}"}}\n' for n in range(5))

    assert [line.number for line in read(text, limit=3)] == [1, 2, 3]


def test_a_line_too_long_is_told_without_being_read_whole():
    fits = '{"model": "m", "prompt": "%s"}' % ("a" * 970)
    huge = b'{"model": "m", "prompt": "' + b"a" * 5_000_000 + b'"}'
    data = io.BytesIO(huge + b"\n" + fits.encode() + b"\n" + huge)
    assert len(fits) == 998

    tracemalloc.start()
    lines = list(read_lines(data, "in.jsonl", LineOptions(max_line_bytes=1000)))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert [type(line) for line in lines] == [BadLine, BatchLine, BadLine]
    assert "the longest line allowed has 1,000" in str(lines[0].error)
    assert (lines[1].number, lines[2].error.line) == (2, 3)
    assert peak_bytes < 1_000_000


def test_reading_is_lazy_and_does_not_keep_what_it_read():
    line = b'{"model": "m", "prompt": "%s"}\n' % (b"a" * 1000)

    class Endless(io.RawIOBase):
        def readinto(self, buffer):
            chunk = (line * (len(buffer) // len(line) + 1))[: len(buffer)]
            buffer[:] = chunk
            return len(chunk)

        def readable(self):
            return True

    lines = read_lines(io.BufferedReader(Endless()), "endless", LineOptions(limit=20_000))
    next(lines)
    tracemalloc.start()
    count = sum(1 for _ in lines)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert count == 19_999
    assert peak_bytes < 1_000_000


@given(st.binary(max_size=300))
def test_any_bytes_become_lines_or_errors_with_their_number(data):
    for line in read(data):
        number = line.number if isinstance(line, BatchLine) else line.error.line
        assert 1 <= number <= data.count(b"\n") + 1


@given(
    st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=4),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20),
)
def test_what_is_written_as_input_is_read_as_the_same_request(extra, key):
    request = Request({**extra, "model": "m", "messages": MESSAGES}, key=key, job="j")
    request.body.pop("stream", None)

    again = good(results.input_line(request), job="j")

    assert (again.key, again.url, again.body) == (key, CHAT, request.body)
    assert again.digest() == request.digest()


def test_a_success_is_an_openai_result_line_with_what_it_cost():
    response = Response(
        {"x": 1}, request_id="req_9", usage=Usage(7, 3), cost_nusd=1_500, attempts=2, parked_ms=2500
    )

    assert results.result_line(4, "a", response) == {
        "id": "batch_req_4",
        "custom_id": "a",
        "response": {"status_code": 200, "request_id": "req_9", "body": {"x": 1}},
        "error": None,
        "scheduler": {
            "cost_usd": "0.0000015",
            "is_estimated": False,
            "input_tokens": 7,
            "output_tokens": 3,
            "attempts": 2,
            "parked_seconds": 2.5,
        },
    }


@pytest.mark.parametrize(
    ("error", "request_id", "response"),
    [
        ({"code": "timeout", "message": "m"}, 4, None),
        (
            {"code": "bad_request", "message": "m", "status": 400, "body": {"error": {}}},
            4,
            {"status_code": 400, "request_id": None, "body": {"error": {}}},
        ),
        ({"code": "bad_line", "message": "m"}, None, None),
    ],
)
def test_a_failure_is_an_openai_result_line_with_code_and_message(error, request_id, response):
    line = results.error_line(request_id, "a", error, 20_000_000, 3)

    assert line == {
        "id": request_id and f"batch_req_{request_id}",
        "custom_id": "a",
        "response": response,
        "error": {"code": error["code"], "message": "m"},
        "scheduler": {"cost_usd": "0.02", "attempts": 3},
    }


def test_a_line_file_is_made_for_its_owner_and_appended_to(tmp_path):
    path = tmp_path / "out.jsonl"
    with LineFile(path) as file:
        assert file.is_empty
        file.append([{"a": 1}, {"b": "ö"}])
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with LineFile(path) as file:
        assert not file.is_empty
        assert not file.was_torn
        file.append([{"c": 3}])

    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"a": 1}, {"b": "ö"}, {"c": 3},
    ]  # fmt: skip


def test_a_file_that_is_replaced_by_a_copy_while_it_is_written_has_each_line_once(
    tmp_path, monkeypatch
):
    path, fsync = tmp_path / "out.jsonl", os.fsync

    def copied(fd):
        monkeypatch.setattr(os, "fsync", fsync)
        (tmp_path / "copy").write_bytes(path.read_bytes().splitlines(keepends=True)[0])
        os.replace(tmp_path / "copy", path)
        fsync(fd)

    with LineFile(path) as file:
        monkeypatch.setattr(os, "fsync", copied)
        file.append([{"a": 1}, {"b": 2}])
        file.append([{"c": 3}])

    assert path.read_bytes() == b'{"a":1}\n{"b":2}\n{"c":3}\n'


@pytest.mark.parametrize(
    ("change", "told"), [(lambda fd: os.ftruncate(fd, 0), "was made shorter"),
                         (lambda fd: os.write(fd, b'{"z":0}\n'), "was written to")],
)  # fmt: skip
def test_a_file_that_is_changed_while_it_is_written_is_known_to_be(
    tmp_path, monkeypatch, change, told
):
    said, fsync = [], os.fsync

    def changed(fd):
        fsync(fd)
        change(fd)

    with LineFile(tmp_path / "out.jsonl", said.append) as file:
        monkeypatch.setattr(os, "fsync", changed)
        file.append([{"a": 1}])
        monkeypatch.setattr(os, "fsync", fsync)

        assert file.look()
        assert file.is_changed
        assert told in said[0]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'{"a":1}\n{"b"', b'{"a":1}\n'),
        (b'{"b"', b""),
        (b'{"a":1}\n', b'{"a":1}\n'),
        (b'{"a":1}\n{' + b"x" * 200_000, b'{"a":1}\n'),
        (b"{" * 65_535 + b"\n" + b"{" * 65_536, b"{" * 65_535 + b"\n"),
        (b'{"a":1}\n' + b"\0" * 4096, b'{"a":1}\n'),
    ],
)
def test_a_torn_last_line_is_cut(tmp_path, before, after):
    path = tmp_path / "out.jsonl"
    path.write_bytes(before)

    with LineFile(path) as file:
        assert path.read_bytes() == after
        assert file.was_torn == (before != after)
        file.append([{"c": 3}])

    assert path.read_bytes() == after + b'{"c":3}\n'


@pytest.mark.parametrize(
    "content", [b"SQLite format 3\0rest", b"my notes, dear", b'{"a": 1,\n "b": 2\n}', b"[]\n"]
)
def test_what_holds_something_else_is_left_as_it_is(tmp_path, content):
    path = tmp_path / "out.jsonl"
    path.write_bytes(content)

    with pytest.raises(ConfigError, match=r"something else than lines of JSON.*name another file"):
        LineFile(path)

    assert path.read_bytes() == content


def test_a_full_disk_leaves_whole_lines_only(tmp_path, monkeypatch):
    path = tmp_path / "out.jsonl"
    real_write, budget_bytes = os.write, 20

    def write(fd, data):
        nonlocal budget_bytes
        if not budget_bytes:
            raise OSError(28, "No space left on device")
        count = real_write(fd, bytes(data[:budget_bytes]))
        budget_bytes -= count
        return count

    with LineFile(path) as file:
        file.append([{"a": 1}])
        monkeypatch.setattr(os, "write", write)
        with pytest.raises(OSError, match="No space left"):
            file.append([{"b": "x" * 10}, {"c": "y" * 10}])

    assert path.read_bytes() == b'{"a":1}\n'


def test_a_line_file_without_lines_leaves_no_file(tmp_path):
    path = tmp_path / "out.jsonl"
    with LineFile(path):
        assert path.exists()

    assert not path.exists()


def test_a_line_file_that_somebody_removed_is_closed_all_the_same(tmp_path):
    path = tmp_path / "out.jsonl"
    with LineFile(path) as file:
        file.append([{"a": 1}])
        path.unlink()

    assert not path.exists()


def test_what_is_no_regular_file_is_refused_and_never_removed(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)

    with pytest.raises(ConfigError, match="is no regular file; '-' writes to stdout"):
        LineFile(path)

    assert path.is_fifo()
