"""Files that a batch writes: they belong to a name, to one writer, and say what is delivered."""

from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from scheduler import Budget, Request, Scheduler, Simulated
from scheduler.batch.files import LineFile, Replacement
from scheduler.batch.held import Held, Marks, is_answer
from scheduler.batch.input import LineOptions
from scheduler.batch.lock import OutputLock
from scheduler.batch.results import error_line, input_line, line_text, result_line
from scheduler.batch.source import open_source
from scheduler.batch.wrong import ErrorFile
from scheduler.cli.delivery import Files
from scheduler.cli.feeding import Feeding
from scheduler.cli.left import write_left
from scheduler.errors import ConfigError, OutputInUse
from scheduler.request import Response
from tests import warm


def rows(path):
    return [json.loads(line)["n"] for line in path.read_text().splitlines()]


# A file is what has its name


def replaced(path):  # sed -i, most editors, log rotation with "create"
    other = path.with_name("other")
    other.write_text(path.read_text())
    other.replace(path)


def removed(path):
    path.unlink()


def renamed(path):
    path.rename(path.with_name("out.jsonl.1"))


def truncated(path):  # > file, log rotation with "copytruncate"
    os.truncate(path, 0)


def cut_short(path):
    os.truncate(path, path.read_bytes().index(b"\n") + 3)


def linked(path):
    path.rename(path.with_name("elsewhere.jsonl"))
    path.symlink_to("elsewhere.jsonl")


def left_without_newline(path):
    text = path.read_text().rstrip("\n")
    path.unlink()
    path.write_text(text)


@pytest.mark.parametrize(
    ("change", "before"),
    [
        (replaced, [1, 2]), (removed, []), (renamed, []), (truncated, []), (cut_short, [1]),
        (linked, [1, 2]), (left_without_newline, [1, 2]),
    ],
)  # fmt: skip
def test_lines_go_to_the_file_that_has_the_name_now(tmp_path, change, before):
    path, said = tmp_path / "out.jsonl", []
    with LineFile(path, said.append) as file:
        file.append([{"n": 1}, {"n": 2}])
        assert not file.is_changed
        change(path)
        file.append([{"n": 3}])
        file.append([{"n": 4}])

        assert file.is_changed or change is linked  # which leads to the same file

    assert rows(path) == [*before, 3, 4]
    assert len(said) <= 1
    assert change is linked or str(path) in said[0]


def test_a_change_in_place_is_noticed_though_the_size_is_the_same(tmp_path):
    path = tmp_path / "out.jsonl"
    with LineFile(path) as file:
        file.append([{"n": 1}])
        path.write_text('{"n":7}\n')
        os.utime(path, ns=(1, 1))
        assert file.look()
        assert not file.look()


@pytest.mark.parametrize("is_folder", [True, False])
def test_what_took_the_name_and_is_no_file_of_lines_is_left_alone(tmp_path, is_folder):
    path = tmp_path / "out.jsonl"
    with LineFile(path) as file:
        file.append([{"n": 1}])
        path.unlink()
        path.mkdir() if is_folder else path.write_text("my notes")
        for _ in range(2):
            with pytest.raises(ConfigError, match=r"no regular file|something else"):
                file.append([{"n": 2}])
        assert path.is_dir() if is_folder else path.read_text() == "my notes"
        path.rename(tmp_path / "theirs")
        file.append([{"n": 3}])

    assert rows(path) == [3]


def test_a_folder_that_is_gone_is_an_error_of_the_system(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    with LineFile(folder / "out.jsonl") as file:
        file.append([{"n": 1}])
        folder.rename(tmp_path / "moved")
        with pytest.raises((OSError, ConfigError), match="cannot write"):
            file.append([{"n": 2}])
    assert rows(tmp_path / "moved" / "out.jsonl") == [1]


def test_an_empty_file_of_somebody_else_stays(tmp_path):
    path = tmp_path / "out.jsonl"
    path.touch()
    with LineFile(path):
        pass
    assert path.exists()


def test_a_rewrite_is_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "out.jsonl"
    with LineFile(path) as file:
        file.append([{"n": 1}, {"n": 2}])

        def fail(descriptor):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            with pytest.raises(OSError, match="No space"):
                file.rewrite(['{"n":2}'])
        assert rows(path) == [1, 2]

        file.rewrite(['{"n":2}'])
        file.append([{"n": 3}])
        assert (rows(path), path.stat().st_mode & 0o777) == ([2, 3], 0o600)
    assert [each.name for each in tmp_path.iterdir()] == ["out.jsonl"]


def test_a_replacement_leaves_the_old_file_until_the_new_one_is_on_the_disk(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text('{"n":1}\n')
    path.chmod(0o640)
    (tmp_path / ".out.jsonl.new").write_text("a killed process left it")

    def broken_off():
        with Replacement(path) as file:
            file.add(['{"n":2}'])
            assert rows(path) == [1]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken_off()
    assert rows(path) == [1]

    link = tmp_path / "link.jsonl"
    link.symlink_to(path)
    with Replacement(link) as file:
        file.add(['{"n":2}'])
    assert (rows(path), path.stat().st_mode & 0o777, link.is_symlink()) == ([2], 0o640, True)

    with Replacement(path):
        assert rows(path) == [2]
    assert not path.exists()
    assert [each.name for each in tmp_path.iterdir()] == ["link.jsonl"]


class Nobody:
    """Hears what becomes of lines, and does nothing."""

    def bad(self, error, key, code): ...
    def is_answered(self, line): ...
    def known(self, is_success): ...
    def say(self, text): ...


@pytest.mark.parametrize("fails", ["fsync", "replace", "queue", "rest"])
async def test_what_was_left_before_is_there_until_what_is_left_now_is_written(
    tmp_path, monkeypatch, fails
):
    files = Files(
        tmp_path / "p.jsonl", *(tmp_path / f"p.{n}.jsonl" for n in ("results", "errors", "parked"))
    )
    files.input.write_text("{}\n")
    files.parked.write_text('{"custom_id":"old"}\n')

    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    async with Scheduler(budgets=Budget("default", "$0"), providers=Simulated()) as s:
        await s.enqueue([Request.chat("sim-small", "Hi", key="new", job="j", max_tokens=5)])
        with open_source(files.input) as source:
            feeding = Feeding(s, source, LineOptions(), Nobody())

            async def write():
                return await write_left(s, "j", files, feeding, set(), None, print)

            with monkeypatch.context() as patch:
                where = {"fsync": os, "replace": Path, "queue": s.store, "rest": feeding}[fails]
                patch.setattr(where, fails, fail)
                with pytest.raises(OSError, match="No space left"):
                    await write()
            assert files.parked.read_text() == '{"custom_id":"old"}\n'

            assert await write() == 1
    (line,) = files.parked.read_text().splitlines()
    assert json.loads(line)["custom_id"] == "new"
    assert {each.name for each in tmp_path.iterdir()} == {"p.jsonl", "p.parked.jsonl"}


# One writer


HOLD = """
    import sys
    from pathlib import Path
    from scheduler.batch.lock import OutputLock
    with OutputLock([Path(word) for word in sys.argv[1:]]):
        print("held", flush=True)
        sys.stdin.read()
"""


def holder(*paths):
    words = [sys.executable, "-c", textwrap.dedent(HOLD), *map(str, paths)]
    process = warm.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def end(process):
    process.kill()
    process.communicate()


def test_an_output_that_another_process_writes_is_refused_by_its_name_and_pid(tmp_path):
    path = tmp_path / "out.jsonl"
    process = holder(path, tmp_path / "errors.jsonl")
    try:
        for taken in ([path], [tmp_path / "errors.jsonl"], [tmp_path / "new.jsonl", path]):
            with pytest.raises(OutputInUse, match=f"process {process.pid} "), OutputLock(taken):
                pass
        assert not path.exists()
        with OutputLock([tmp_path / "new.jsonl"]):
            pass
    finally:
        end(process)
    with OutputLock([path]):  # what a killed process held, nobody holds
        pass
    assert [each.name for each in tmp_path.iterdir()] == [".errors.jsonl.lock"]


def test_a_lock_holds_through_links_and_through_the_replacement_of_the_file(tmp_path):
    path = tmp_path / "out.jsonl"
    path.touch()
    (tmp_path / "link.jsonl").symlink_to(path)
    (tmp_path / "here").symlink_to(tmp_path)
    with OutputLock([path]):
        replaced(path)
        for same in ("out.jsonl", "link.jsonl", "here/out.jsonl"):
            with pytest.raises(OutputInUse), OutputLock([tmp_path / same]):
                pass


def test_a_lock_that_cannot_be_taken_leaves_nothing_behind(tmp_path):
    with (
        pytest.raises(ConfigError, match=r"cannot write .*no/out\.jsonl: No such file"),
        OutputLock([tmp_path / "a.jsonl", tmp_path / "no" / "out.jsonl"]),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_where_nothing_can_be_made_the_file_itself_is_locked(tmp_path, monkeypatch):
    path = tmp_path / "out.jsonl"
    path.write_text('{"n":1}\n')
    real = OutputLock._locked

    def locked(each):  # tests may run as root, for whom no folder is read-only
        if each != path:
            raise PermissionError(13, "Permission denied")
        return real(each)

    monkeypatch.setattr(OutputLock, "_locked", staticmethod(locked))
    second = OutputLock([path])
    with OutputLock([path]), pytest.raises(OutputInUse, match="another process"), second:
        pass
    assert rows(path) == [1]


# What a file holds


def test_marks_are_a_set_that_grows():
    marks = Marks()
    assert all(marks.add(n, "x") for n in range(1000))
    assert not any(marks.add(n, "x") for n in range(1000))
    assert len(marks) == 1000
    assert marks.has(999, "x")
    assert not marks.has(1000, "x")


def test_a_line_answers_its_request_in_any_store_but_no_changed_prompt():
    held = Held()
    held.read(result_line(1, "a", Response({}), "d1"))

    assert held.has(1, "a", "d1")
    assert held.has(77, "a", "d1")
    assert held.answers("a", "d1")
    assert not held.answers("a", "d2")
    assert not held.has(1, "a", "d2")
    assert not held.answers("b", "d1")


def test_a_line_without_its_fingerprint_counts_by_its_name_unless_that_is_a_place():
    held = Held()
    held.read(result_line(1, "a", Response({})))
    held.read(result_line(2, "line-2", Response({})))

    assert held.has(1, "a", "d1")
    assert not held.has(3, "a", "d1")
    assert held.answers("a", "whatever")
    assert held.has(2, "line-2", "d")
    assert not held.answers("line-2", "d")


@pytest.mark.parametrize(
    "line", [{}, {"error": {"code": "x"}, "response": {}}, {"response": None}, {"response": 3}]
)
def test_what_is_no_answer_is_none(line):
    assert not is_answer(line)


# What is wrong now


def wrong(number, source="in.jsonl", message="bad"):
    place = (source, number)
    return error_line(None, f"line-{number}", {"code": "c", "message": message}, place=place)


def failure(number, key, digest="", message="no"):
    return error_line(number, key, {"code": "c", "message": message}, digest=digest)


def judged(path, *, found=(), failed=(), answered=(), read_to=None):
    """The file after another run: who is named in it."""
    with LineFile(path) as file:
        errors, held = ErrorFile(file, "in.jsonl"), Held()
        for line in answered:
            held.read(line)
        texts = [errors.bad_line(line) for line in found]
        errors.append([text for text in texts if text is not None] + list(failed))
        errors.tidy(held, read_to)
        return [json.loads(line)["custom_id"] for line in path.read_text().splitlines()]


def test_the_errors_are_those_of_now(tmp_path):
    path = tmp_path / "e.jsonl"
    both = [wrong(1), wrong(2)]
    assert judged(path, found=both) == ["line-1", "line-2"]
    assert judged(path, found=both) == ["line-1", "line-2"]  # not doubled
    assert judged(path, found=[wrong(2)]) == ["line-2"]  # repaired
    assert judged(path, found=[wrong(2, message="else")]) == ["line-2"]
    assert json.loads(path.read_text())["error"]["message"] == "else"
    assert judged(path) == []
    assert not path.exists()


def test_lines_that_were_not_read_again_and_other_inputs_keep_their_errors(tmp_path):
    path = tmp_path / "e.jsonl"
    judged(path, found=[wrong(1), wrong(9), wrong(1, source="other.jsonl")])
    assert judged(path, read_to=5) == ["line-9", "line-1"]
    assert judged(path, read_to=None) == ["line-1"]


def test_failures_stay_until_they_are_answered_and_stand_once(tmp_path):
    path = tmp_path / "e.jsonl"
    judged(path, failed=[failure(1, "a", "d1"), failure(2, "b"), failure(3, "c", "d3")])
    assert judged(path) == ["a", "b", "c"]
    assert judged(path, failed=[failure(1, "a", "d1", "again")]) == ["b", "c", "a"]
    assert "again" in path.read_text()
    answers = [result_line(9, "a", Response({}), "d1"), result_line(2, "b", Response({}))]
    assert judged(path, answered=answers) == ["c"]


# Valid JSON, whatever the answer


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (math.nan, None), (math.inf, None), (-math.inf, None), (1e308, 1e308),
        ("a\ud800b", "a�b"), ("\udfff", "�"), ("😀", "😀"), ("\\ud800", "\\ud800"),
        ({"\ud800": 1}, {"�": 1}), ([{"x": [math.nan, "ok"]}], [{"x": [None, "ok"]}]),
        ({1: 2}, {"1": 2}), ((1, 2), [1, 2]), (True, True), (b"x", "b'x'"),
    ],
)  # fmt: skip
def test_a_line_is_json_that_every_reader_takes(value, written):
    def refuse(name):
        raise AssertionError(name)

    text = line_text({"v": value})

    assert json.loads(text, parse_constant=refuse) == {"v": written}
    json.loads(text)["v"].__repr__().encode()  # no half characters


def test_an_integer_of_too_many_digits_becomes_null():
    assert line_text({"v": 10**5000}) == '{"v":null}'


def test_a_number_beyond_all_numbers_in_an_answer_becomes_null():
    body = json.loads('{"x": 1e999, "y": NaN, "z": -Infinity}')
    line = json.loads(line_text(result_line(1, "a", Response(body))))
    assert line["response"]["body"] == {"x": None, "y": None, "z": None}


def test_what_is_left_asks_for_the_model_that_was_asked_for():
    plain = Request.chat("m", "hi", key="a")
    assert input_line(plain)["body"]["model"] == "m"
    assert input_line(plain, "anthropic")["body"]["model"] == "anthropic:m"
    plain.instead_of = {"model": "first", "provider": "", "why": "w"}
    assert input_line(plain)["body"]["model"] == "first"


def test_where_the_system_keeps_no_locks_that_is_said_and_the_run_goes_on(tmp_path, monkeypatch):
    def locked(path):
        raise OSError(errno.ENOLCK, "No locks available")

    said = []
    monkeypatch.setattr(OutputLock, "_locked", staticmethod(locked))
    with OutputLock([tmp_path / "out.jsonl"], said.append):
        assert "cannot be locked (No locks available)" in said[0]
