"""An input is opened once, recognised by its beginning, and read whole from there."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import threading
import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.batch.input import BadLine, BatchLine, LineOptions, read_source
from scheduler.batch.recognise import is_settled, layout_of
from scheduler.batch.records import MAX_LINE_BYTES, is_json, values
from scheduler.batch.source import Source, open_source
from scheduler.errors import ConfigError

ROWS = [{"custom_id": f"r{n}", "prompt": f'q{n} ]}}"\\ ü,\n{{['} for n in range(300)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)

FORMS = {
    "lines": LINES,
    "lines without an end": LINES.rstrip(),
    "lines of Windows": LINES.replace("\n", "\r\n"),
    "array on a line": json.dumps(ROWS),
    "array, a newline behind it": json.dumps(ROWS) + "\n",
    "pretty array": json.dumps(ROWS, indent=2),
    "array of lines": "[\n" + ",\n".join(map(json.dumps, ROWS)) + "\n]\n",
    "array of lines, begun on the first": "[" + "\n,".join(map(json.dumps, ROWS)) + "]",
    "pretty objects": "\n".join(json.dumps(row, indent=4) for row in ROWS),
    "pretty objects at the margin": "\n".join(json.dumps(row, indent=0) for row in ROWS),
    "objects with commas": ",\n".join(map(json.dumps, ROWS)),
    "objects in a row": "".join(map(json.dumps, ROWS)),
    "requests": json.dumps({"requests": ROWS}),
    "pretty requests": json.dumps({"requests": ROWS}, indent=1) + "\n",
    "data": json.dumps({"data": ROWS}, indent=2),
    "blank lines first": "\n\n" + LINES,
}
ENCODINGS = {
    "plain": lambda text: text.encode(),
    "with a mark": lambda text: text.encode("utf-8-sig"),
    "utf-16": lambda text: text.encode("utf-16"),
    "utf-16-be": lambda text: b"\xfe\xff" + text.encode("utf-16-be"),
    "utf-16 without a mark": lambda text: text.lstrip().encode("utf-16-le"),
    "utf-32": lambda text: text.encode("utf-32"),
    "gzip": lambda text: gzip.compress(text.encode()),
    "two gzips": lambda text: gzip.compress(text[:50].encode()) + gzip.compress(text[50:].encode()),
    "gzip of utf-16": lambda text: gzip.compress(text.encode("utf-16")),
    "bzip2": lambda text: bz2.compress(text.encode()),
    "xz": lambda text: lzma.compress(text.encode()),
}


def read(source: Source, **options):
    return list(read_source(source, LineOptions(**{"model": "m", **options})))


def prompts(lines):
    assert all(isinstance(line, BatchLine) for line in lines), lines
    return [(line.request.key, line.request.body["messages"][0]["content"]) for line in lines]


EXPECTED = [(row["custom_id"], row["prompt"]) for row in ROWS]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_in_every_encoding_is_read_whole_and_can_be_read_again(tmp_path, form, encoding):
    path = tmp_path / "in"
    path.write_bytes(ENCODINGS[encoding](FORMS[form]))

    with open_source(path) as source:
        assert prompts(read(source)) == EXPECTED
        source.rewind()
        assert prompts(read(source)) == EXPECTED


@pytest.mark.parametrize("size", [1, 7, 4096, 10_000_000])
@pytest.mark.parametrize("encoding", ["plain", "utf-16", "gzip"])
@pytest.mark.parametrize("form", ["lines", "pretty array", "array of lines", "pretty requests"])
def test_a_pipe_loses_nothing_of_what_was_looked_at(form, encoding, size):
    data = ENCODINGS[encoding](FORMS[form][:2_000_000])
    reader, writer = os.pipe()

    def write():
        with os.fdopen(writer, "wb", buffering=0) as file:
            for start in range(0, len(data) if size > 1 else 3, size):
                file.write(data[start : start + size])
            if size == 1:
                file.write(data[3:])

    thread = threading.Thread(target=write)
    thread.start()
    with open_source(_at(reader)) as source:
        assert not source.can_rewind
        assert prompts(read(source)) == EXPECTED
    thread.join()
    os.close(reader)


def _at(number):
    from pathlib import Path

    return Path(f"/dev/fd/{number}")


def test_a_fifo_is_opened_once(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    thread = threading.Thread(target=lambda: path.write_text(LINES))
    thread.start()

    with open_source(path) as source:
        assert prompts(read(source)) == EXPECTED
    thread.join()


def test_what_comes_slowly_is_recognised_by_its_first_line():
    reader, writer = os.pipe()
    os.write(writer, (json.dumps(ROWS[0]) + "\n").encode())

    with open_source(_at(reader)) as source:  # it does not wait for more
        source.is_stopping = lambda: True
        assert prompts(read(source)) == EXPECTED[:1]
    os.close(writer)
    os.close(reader)


def test_a_line_that_was_cut_by_stopping_is_no_bad_line():
    reader, writer = os.pipe()
    os.write(writer, (LINES + '{"custom_id": "cut').encode())

    with open_source(_at(reader)) as source:
        source.is_stopping = lambda: True
        assert prompts(read(source)) == EXPECTED
    os.close(writer)
    os.close(reader)


def zipped(data):
    return gzip.compress(data, mtime=0)  # the same in every process: it is in names of tests


ZIP = b"PK\3\4" + bytes(30)


@pytest.mark.parametrize(
    ("name", "data", "problem"),
    [
        ("a.jsonl", b"", "is empty"),
        ("a.jsonl", b" \n\t\n ", "is empty"),
        ("a.gz", zipped(b""), "is empty"),
        ("a.csv", b"prompt,label\nSay hello,1\n", "is CSV.*csv.DictReader.*< a.csv > a.jsonl"),
        ("a", b'id,prompt\n1,"a, b"\n', "is CSV"),
        ("a.txt", b"prompt;label\nSay hello;1\n", 'is CSV.*delimiter=";"'),
        ("a.tsv", b"prompt\tlabel\nSay hello\t1\n", r"is TSV.*delimiter=\"\\t\""),
        ("a.csv", b"prompt\nSay hello\n", "is CSV"),
        ("a.csv", "prompt,label\nSay hello,1\n".encode("utf-16"), "is CSV"),
        ("a.csv.gz", zipped(b"prompt,label\nSay hello,1\n"), "is CSV"),
        ("a.txt", b"Say hello\nSay bye, please\n", 'is plain text.*"prompt": line'),
        ("a.jsonl", b'"Say hello"\n"Say bye"\n', "a JSON text a line, not objects.*jq -c"),
        ("a.jsonl", b"{'prompt': 'x'}\n{'prompt': 'y'}\n", "Python's own notation.*literal_eval"),
        ("a.html", b"<html><body>x</body></html>", "HTML or XML"),
        ("a.parquet", b"PAR1" + bytes(30), "not text but a Parquet file.*read_parquet"),
        ("a.arrow", b"ARROW1" + bytes(30), "an Arrow file"),
        ("a.zip", ZIP, "a ZIP archive.*unzip -p a.zip > a.jsonl"),
        ("a.xlsx", ZIP, "an Excel workbook.*read_excel"),
        ("b", ZIP + b"[Content_Types].xml", "an Excel workbook"),
        ("a.tar", b"x".ljust(257, b"\0") + b"ustar" + bytes(300), "a tar archive"),
        ("a.zst", b"\x28\xb5\x2f\xfd" + bytes(9), "zstd.*zstd -dc a.zst"),
        ("a.db", b"SQLite format 3\0" + bytes(99), "SQLite database.*sqlite3 -json a.db"),
        ("a.pdf", b"%PDF-1.7\n", "a PDF"),
        ("a.bin", bytes(range(256)) * 9, "not text: it holds NUL bytes"),
        ("a b.csv", b"prompt,label\nSay hello,1\n", "< 'a b.csv' > 'a b.jsonl'"),
        ("a.jsonl", zipped(LINES.encode())[:9], "cannot read .*cut off"),
    ],
)
def test_what_is_not_read_is_named_with_what_to_do(tmp_path, monkeypatch, name, data, problem):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(data)

    with pytest.raises(ConfigError, match=problem) as caught:
        open_source(_relative(name))

    assert caught.value.key == "input"


def _relative(name):
    from pathlib import Path

    return Path(name)


def test_what_is_not_there_or_a_folder_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        open_source(tmp_path / "none")
    with pytest.raises(ConfigError, match="Is a directory"):
        open_source(tmp_path)


@pytest.mark.parametrize(
    ("text", "good", "bad"),
    [
        ("{oops\n" + LINES, 300, [(1, "not JSON")]),
        ('{"prompt": "x",\n' + LINES, 300, [(1, "not JSON")]),
        ("# my prompts\n" + LINES, 300, [(1, "not JSON")]),
        ("[1, 2]\n" + LINES, 300, [(1, "but list")]),
        ('["a"]\n["b"]\n', 0, [(1, "but list"), (2, "but list")]),
        ('[1, {"prompt": "x"}, null]', 1, [(1, "but int"), (1, "but NoneType")]),
        ('[\n{"prompt": "x"},\n{"prompt": oops},\n{"prompt": "y"}\n]', 2, [(3, "not JSON")]),
        ('[\n{"prompt": "x"},\n{"prompt": "y"\n', 1, [(3, "has no end")]),
        ('[\n{"prompt": "x"}\n]\n{"prompt": "y"}\n', 2, []),
        ('{"requests": [{"prompt": "x"}], "model": "m"}', 1, [(1, "behind the array")]),
        ('[{"prompt": "x"}] trailing', 1, [(1, "not JSON")]),
        ('[[{"prompt": "x"}]]', 0, [(1, "but list")]),
        ("[]", 0, []),
    ],
)
def test_what_is_bad_in_a_file_is_told_by_its_line_and_the_rest_is_read(text, good, bad):
    lines = read(Source(io.BytesIO(text.encode()), "in"))

    assert sum(isinstance(line, BatchLine) for line in lines) == good
    found = [line.error for line in lines if isinstance(line, BadLine)]
    assert [error.line for error in found] == [number for number, _ in bad]
    for error, (_, problem) in zip(found, bad, strict=True):
        assert problem in error.problem


TORN = {
    "a brace": '{"prompt": "torn"',
    "a brace, with a comma": '{"prompt": "torn",',
    "a quote": '{"prompt": "torn},',
    "a quote and a brace": '{"prompt": "torn,',
    "a bracket within": '{"prompt": "torn", "stop": ["x"},',
    "a brace within": '{"prompt": "torn", "metadata": {"a": 1},',
    "two braces": '{"prompt": "torn", "metadata": {"a": {"b": 1,',
    "a quote of a name": '{"prompt": "torn", stop": "x"},',
}
ROW = '{{"prompt": "{}"}}'


@pytest.mark.parametrize("drip", [3, 65_536])
@pytest.mark.parametrize("at", [0, 1, 3])
@pytest.mark.parametrize("torn", TORN)
@pytest.mark.parametrize("layout", ["[\n{}\n]\n", '{{"requests": [\n{}\n]}}', "[\n  {}\n]", "[{}]"])
def test_behind_one_that_has_no_end_reading_goes_on_at_the_next(torn, at, layout, drip):
    class Dripping(io.BytesIO):
        def read1(self, size=-1):
            return super().read1(drip)

    rows = [ROW.format(n) + "," for n in range(6)]
    rows[5] = rows[5][:-1]
    rows[at] = TORN[torn]
    joint = "\n  " if "\n  {}" in layout else "\n," if layout == "[{}]" else "\n"
    rows = [row.strip(",") for row in rows] if layout == "[{}]" else rows
    text = layout.format(joint.join(rows))

    records = list(values(Dripping(text.encode()), 10_000, layout.startswith("{{")))

    good = [record for record in records if not record.problem and is_json(record.data)]
    bad = [record for record in records if record not in good]
    assert [json.loads(record.data)["prompt"] for record in good] == [
        str(n) for n in range(6) if n != at
    ]
    first = 1 + layout.startswith(("[\n", "{{"))
    assert [(record.number, record.place) for record in bad] == [(first + at, f"item-{at + 1}")]
    assert [record.number - first for record in good] == [n for n in range(6) if n != at]
    assert [record.place for record in good] == [f"item-{n + 1}" for n in range(6) if n != at]


def test_a_file_with_one_that_has_no_end_is_told_by_its_line_and_sent_but_for_that(tmp_path):
    rows = [{**row, "prompt": f"{row['prompt']} {'x' * 2000}"} for row in ROWS]
    lines = list(map(json.dumps, rows))
    for n in (17, 18, 150, 299):
        lines[n] = lines[n][:-1]
    source = Source(io.BytesIO(("[\n" + ",\n".join(lines) + "\n]").encode()), "in")

    found = read(source)

    bad = [line for line in found if isinstance(line, BadLine)]
    assert [(line.error.line, line.key) for line in bad] == [
        (n + 2, f"r{n}") for n in (17, 18, 150, 299)
    ]
    assert "has no end: a bracket or a quote is missing" in bad[0].error.problem
    assert "begins again on line 20" in bad[0].error.problem
    assert len(found) == 300


@pytest.mark.parametrize("text", [
    # What stands in a value, however it is laid out, is a part of it: even if something is wrong.
    '[\n{"prompt": "a", "rows": [\n{"prompt": "no"},\n{"prompt": "no"}\n]},\n{"prompt": "b"}\n]',
    '[\n{"prompt": "a" "rows": [\n{"prompt": "no"},\n{"prompt": "no"}\n]},\n{"prompt": "b"}\n]',
    '[\n{"prompt": "a", "rows": [\n{"prompt": "no"},\n{"prompt": "no"}\n],\n{"prompt": "b"}\n]',
    '[\n{"prompt": "a", "rows":\n{"prompt": "no"},\n{"prompt": "b"}\n]',
    '[\n{"prompt": "a\n{\\"prompt\\": \\"no\\"},\n"},\n{"prompt": "b"}\n]',
    # What is nothing that a run would send, or not whole, or not followed by anything.
    '[\n{"prompt": "a",\n{"prompt": "no"\n{"prompt": "b"}\n]',
    '[\n{"prompt": "a",\n{"prompt": no},\n{"prompt": "b"}\n]',
    '[\n{"prompt": "a",\n  {"prompt": "no"},\n{"prompt": "b"}\n]',
    '[\n{"prompt": "a",\n{"role": "no"},\n{"prompt": "b"}\n]',
    '[\n{"prompt": "a",\n{"prompt": "b"}\n]',
    '[\n{"prompt": "a",\n{"prompt": "b"},\n{"prompt": "no"}\n',
])  # fmt: skip
def test_what_might_be_a_part_of_another_is_not_read_by_itself(text):
    def prompts_in(**options):
        records = values(io.BytesIO(text.encode()), 10_000)
        good = [json.loads(r.data) for r in records if not r.problem and is_json(r.data)]
        return [each.get("prompt") for each in good]

    found = prompts_in()
    assert "no" not in found or text.endswith('"no"}\n')
    assert "b" in found


def test_many_that_have_no_end_take_no_time_that_grows_with_their_number():
    rows = [f'{{"prompt": "{"x" * 400}"' for _ in range(1_000)]
    started = time.perf_counter()
    records = list(values(io.BytesIO(("[\n" + ",\n".join(rows) + "\n]").encode()), MAX_LINE_BYTES))
    assert len(records) <= 1_000
    assert all(record.problem or not is_json(record.data) for record in records)
    assert time.perf_counter() - started < 10


def test_rows_of_an_array_without_ids_are_called_by_their_place_in_it():
    lines = read(Source(io.BytesIO(b'[{"prompt": "a"}, {"prompt": "b"}]'), "in"))

    assert [line.request.key for line in lines] == ["item-1", "item-2"]


@pytest.mark.parametrize("form", ["lines", "pretty array"])
def test_a_limit_counts_records(form):
    source = Source(io.BytesIO(FORMS[form].encode()), "in")

    assert prompts(read(source, limit=3)) == EXPECTED[:3]


@pytest.mark.parametrize("cut", [1000, 2000])
def test_a_file_that_is_cut_off_is_read_to_there_and_told(tmp_path, cut):
    path = tmp_path / "in.gz"
    noise = [{"prompt": os.urandom(20).hex()} for _ in range(500)]
    data = zipped("".join(json.dumps(row) + "\n" for row in noise).encode())
    path.write_bytes(data[: len(data) - cut])

    with open_source(path) as source:
        lines = read(source)

    assert sum(isinstance(line, BatchLine) for line in lines) > 300
    assert isinstance(lines[-1], BadLine)
    assert "cut off in the middle" in lines[-1].error.problem


def test_an_id_is_taken_once_and_the_line_that_had_it_first_is_told():
    rows = ['{"custom_id":"a","prompt":"x"}', '{"custom_id":"a","prompt":"x"}',
            '{"custom_id":"a","prompt":"y"}', '{"id":"b","prompt":"x"}', '{"id":"b","prompt":"x"}']  # fmt: skip
    lines = read(Source(io.BytesIO("\n".join(rows).encode()), "in"))

    assert [isinstance(line, BatchLine) for line in lines] == [True, False, False, True, False]
    assert [(line.code, line.key, line.error.problem) for line in lines if isinstance(line, BadLine)] == [
        ("duplicate_custom_id", "a",
         "custom_id 'a' stands on an earlier line too (line 1); it is sent once"),
        ("duplicate_custom_id", "a",
         "custom_id 'a' was used before for another body (line 1); nothing was sent for it"),
        ("duplicate_custom_id", "b", "id 'b' stands on an earlier line too (line 4); it is sent once"),
    ]  # fmt: skip


@pytest.mark.parametrize("layout", ["lines", "array"])
def test_memory_does_not_grow_with_the_file(tmp_path, layout):
    path = tmp_path / "in"
    with path.open("w") as file:
        file.write("[" if layout == "array" else "")
        for n in range(1_500):
            file.write(f'{{"custom_id": "request number {n}", "prompt": "{"x" * 3000}"}}')
            file.write(",\n" if layout == "array" else "\n")
        file.write('{"prompt": "x"}' + ("]" if layout == "array" else "\n"))

    with open_source(path) as source:
        lines = read_source(source, LineOptions(model="m"))
        next(lines)
        tracemalloc.start()
        count = sum(isinstance(line, BatchLine) for line in lines)
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()

    assert count == 1_500
    assert peak_bytes < 1_500_000


def test_an_element_too_long_is_told_without_being_kept():
    long = b'{"custom_id": "a", "prompt": "' + b"x" * 3_000_000 + b'"}'
    file = io.BytesIO(b"[" + long + b',{"b": 1}]')
    tracemalloc.start()
    records = list(values(file, 1000))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert [(record.number, len(record.data)) for record in records] == [(1, 4096), (1, 8)]
    assert "bytes; the longest one allowed has 1,000" in records[0].problem
    assert peak_bytes < 1_000_000


@given(st.binary(max_size=200) | st.text('[]{}",:\\\n 1ax', max_size=60).map(str.encode))
def test_any_bytes_are_read_or_refused_in_words(data):
    try:
        lines = read(Source(io.BytesIO(data), "in"))
    except ConfigError:
        return
    for line in lines:
        number = line.number if isinstance(line, BatchLine) else line.error.line
        assert 1 <= number <= data.count(b"\n") + 2


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.lists(st.dictionaries(st.text(max_size=5), JSON, max_size=3), max_size=5),
       st.sampled_from([None, 0, 2]), st.booleans())  # fmt: skip
def test_values_end_where_they_end_however_they_are_laid_out(rows, indent, is_array):
    text = json.dumps(rows, indent=indent) if is_array else " ".join(
        json.dumps(row, indent=indent, ensure_ascii=False) for row in rows
    )  # fmt: skip

    class Dripping(io.BytesIO):
        def read1(self, size=-1):
            return super().read1(3)

    found = [
        json.loads(record.data)
        for record in values(Dripping(text.encode("utf-8", "replace")), 10**6)
    ]

    assert found == json.loads(json.dumps(rows).encode("utf-8", "replace"))


@pytest.mark.parametrize("form", FORMS)
def test_what_comes_bit_by_bit_is_taken_for_the_same(form):
    whole = FORMS[form].encode()[:2_000]
    expected = layout_of(whole, "x")

    for size in range(1, len(whole)):
        if is_settled(whole[:size]):
            assert layout_of(whole[:size], "x") is expected, whole[:size]
