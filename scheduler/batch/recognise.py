"""What is a file, by its beginning? Pure. What cannot be read is named, with how to convert it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePath

from scheduler.errors import ConfigError
from scheduler.guards.plain import shell_word

HEAD_BYTES = 65_536
"""How much of a file is looked at, at most."""


class Layout(StrEnum):
    """How records stand in a file."""

    LINES = "lines"
    """A JSON object a line; a broken one is that line's affair."""
    VALUES = "values"
    """Objects that span lines, or are in an array."""
    WRAPPED = "wrapped"
    """An object with an array of them as its first member: ``{"requests": [...]}``."""


_PANDAS = "python3 -c 'import pandas; pandas.{reader}({file}).to_json({out}, orient=\"records\", lines=True)'"
_CSV = (
    "python3 -c 'import csv, json, sys; [print(json.dumps(row)) for row in "
    "csv.DictReader(sys.stdin{how})]' < {file} > {out}"
)
_TEXT = (
    'python3 -c \'import json, sys; [print(json.dumps({{"prompt": line.rstrip("\\n")}})) '
    "for line in sys.stdin]' < {file} > {out}"
)
_LITERALS = (
    "python3 -c 'import ast, json, sys; [print(json.dumps(ast.literal_eval(line))) "
    "for line in sys.stdin]' < {file} > {out}"
)
_QUOTED = "jq -c '{{prompt: .}}' {file} > {out}"


@dataclass(frozen=True, slots=True)
class _Kind:
    """Something that is not read: what it is called, and the command that makes JSON lines of it."""

    name: str
    command: str = ""


_MAGIC: Sequence[tuple[bytes, _Kind]] = (
    (b"PAR1", _Kind("a Parquet file", _PANDAS.replace("{reader}", "read_parquet"))),
    (b"ARROW1", _Kind("an Arrow file", _PANDAS.replace("{reader}", "read_feather"))),
    (b"FEA1", _Kind("a Feather file", _PANDAS.replace("{reader}", "read_feather"))),
    (b"ORC", _Kind("an ORC file", _PANDAS.replace("{reader}", "read_orc"))),
    (b"\x89HDF", _Kind("an HDF5 file", _PANDAS.replace("{reader}", "read_hdf"))),
    (b"Obj\x01", _Kind("an Avro file")),
    (b"SQLite format 3\0", _Kind("a SQLite database", "sqlite3 -json {file} 'SELECT …' > {out}")),
    (b"\x28\xb5\x2f\xfd", _Kind("compressed by zstd", "zstd -dc {file} > {out}")),
    (b"\x04\x22\x4d\x18", _Kind("compressed by lz4", "lz4 -dc {file} > {out}")),
    (b"7z\xbc\xaf\x27\x1c", _Kind("a 7-Zip archive", "7z x -so {file} > {out}")),
    (b"Rar!", _Kind("a RAR archive", "unrar p -inul {file} > {out}")),
    (b"%PDF", _Kind("a PDF")),
    (b"\xd0\xcf\x11\xe0", _Kind("an old Excel or Word file")),
    (b"\x80\x04", _Kind("a Python pickle")),
    (b"\x93NUMPY", _Kind("a NumPy file")),
    (b"\x7fELF", _Kind("a program")),
)  # fmt: skip
_WORKBOOK = _Kind("not text but an Excel workbook", _PANDAS.replace("{reader}", "read_excel"))
_ZIP = _Kind("not text but a ZIP archive", "unzip -p {file} > {out}")
_TAR = _Kind("not text but a tar archive", "tar -xOf {file} > {out}")

_WRAPPER = re.compile(
    r'\{\s*"(?:requests|data|rows|items|records|examples|prompts|batch)"\s*:\s*\[\s*[{\]]'
)
_ENCODINGS = (
    (b"\xff\xfe\0\0", "utf-32-le"), (b"\0\0\xfe\xff", "utf-32-be"),
    (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"), (b"\xef\xbb\xbf", "utf-8"),
)  # fmt: skip
_LINES_TO_SEE = 4  # "{", a name, "[" and "{" may each stand on a line of their own
BOMS = {encoding: mark for mark, encoding in _ENCODINGS}


def encoding_of(head: bytes) -> str:
    """How a file's text is encoded, by its byte order mark, or by the zeros of its first signs."""
    for mark, encoding in _ENCODINGS:
        if head.startswith(mark):
            return encoding
    guess = json.detect_encoding(head[:4])
    is_json = head[:4].decode(guess, "ignore").startswith(("{", "["))
    return guess if is_json and guess.startswith("utf-") else "utf-8"


def refuse_binary(head: bytes, name: str) -> None:
    """Refuse what is known by its first bytes. Raises `ConfigError`."""
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            raise _not_read(_Kind(f"not text but {kind.name}", kind.command), name)
    if head.startswith(b"PK\3\4"):
        is_workbook = b"[Content_Types].xml" in head or name.lower().endswith((".xlsx", ".xlsm"))
        raise _not_read(_WORKBOOK if is_workbook else _ZIP, name)
    if head[257:262] == b"ustar":
        raise _not_read(_TAR, name)


def is_settled(head: bytes) -> bool:
    """Whether more of a file would not change what `layout_of` says."""
    first, found, rest = head.lstrip().partition(b"\n")
    if not found:
        return False
    if first.startswith(b"["):
        return bool(rest.strip())
    if not first.startswith(b"{"):
        return False
    if _is_json(first.decode("utf-8", "replace")):
        return True
    # An object that spans lines, or a broken line: a pipe may bring the next lines bit by bit.
    is_wrapped = _WRAPPER.match(head.decode("utf-8", "replace").lstrip()) is not None
    return is_wrapped or rest.lstrip().count(b"\n") >= _LINES_TO_SEE


def layout_of(head: bytes, name: str) -> Layout:
    """How the records stand in a file of text that begins so.

    Raises:
        ConfigError: It holds no JSON objects; says what it is instead.
    """
    text = head.decode("utf-8", "replace").lstrip("\ufeff \t\r\n\x1e")
    if text.startswith("{'") and not _has_objects(text):
        raise _not_read(_Kind("in Python's own notation, not JSON", _LITERALS), name)
    if text.startswith(("{", "[")):
        return _layout_of_json(text)
    if _has_objects(text):
        return Layout.LINES  # its first lines are broken, and will be told
    raise _not_read(_kind_of_text(text, name), name)


def _layout_of_json(text: str) -> Layout:
    first, _, rest = text.partition("\n")
    begins_again = rest.lstrip().startswith(("{", "["))
    if _is_json(first):
        # What is whole on a line is a line's, unless it is an array of its own.
        if begins_again:
            return Layout.LINES
        if first.startswith("{"):
            return Layout.WRAPPED if _WRAPPER.match(first) else Layout.LINES
        return Layout.VALUES
    if _WRAPPER.match(text):
        return Layout.WRAPPED
    if text.startswith("["):
        return Layout.VALUES
    decoder, next_at = json.JSONDecoder(), len(text) - len(rest.lstrip())
    try:
        _, end = decoder.raw_decode(text)
    except json.JSONDecodeError as exc:
        # Whoever goes on reading beyond the line is within a value that spans lines.
        return Layout.VALUES if exc.pos > next_at else Layout.LINES
    except (ValueError, RecursionError):
        return Layout.LINES
    if end > len(first):
        return Layout.VALUES
    return Layout.VALUES if first[end:].lstrip().startswith((",", "{")) else Layout.LINES


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except json.JSONDecodeError:
        return False
    except (ValueError, RecursionError):
        return True  # whole, and wrong in another way
    return True


def _has_objects(text: str) -> bool:
    """Whether one of the lines is a JSON object."""
    return any(line.startswith("{") and _is_json(line) for line in text.splitlines())


def _kind_of_text(text: str, name: str) -> _Kind:
    if "\0" in text or text.count("\ufffd") > len(text) // 10:
        return _Kind("not text: it holds NUL bytes or other binary data")
    whole = [line for line in text.splitlines()[:-1] or [text] if line.strip()]
    if all(line.lstrip().startswith('"') and _is_json(line) for line in whole):
        return _Kind("a JSON text a line, not objects", _QUOTED)
    if text.startswith("<"):
        return _Kind("HTML or XML")
    suffix = PurePath(name).suffix.lower()
    first, second = (*whole, "", "")[:2]
    for separator, what, how in (("\t", "TSV", ', delimiter="\\t"'), (",", "CSV", ""),
                                 (";", "CSV", ', delimiter=";"'), ("|", "CSV", ', delimiter="|"')):  # fmt: skip
        is_even = separator in first and (not second or separator in second)
        if (is_even and " " not in first.partition(separator)[0].strip()) or (
            suffix == f".{what.lower()}" and separator in first
        ):
            return _Kind(what, _CSV.replace("{how}", how))
    if suffix == ".csv":
        return _Kind("CSV", _CSV.replace("{how}", ""))
    return _Kind("plain text", _TEXT)


def _not_read(kind: _Kind, name: str) -> ConfigError:
    problem = f"{name} is {kind.name}, which is not read; nothing was sent"
    is_named = not name.startswith(("<", "/dev/", "/proc/"))
    file = shell_word(name) if is_named else "FILE"
    made_of = f"{PurePath(name).stem}.jsonl"
    made_of = f"{name}.jsonl" if made_of == name else made_of
    out = shell_word(made_of) if is_named else "FILE.jsonl"
    if "pandas" in kind.command:
        file, out = repr(name if is_named else "FILE"), repr(out.strip("'"))
        file, out = file.replace("'", '"'), out.replace("'", '"')
    made = kind.command.replace("{{", "{").replace("}}", "}").replace("{file}", file)
    made = made.replace("{out}", out)
    advice = f"Make JSON lines of it: {made}" if made else "Give it as JSON, one object a line"
    return ConfigError("input", f"{problem}. {advice}")
