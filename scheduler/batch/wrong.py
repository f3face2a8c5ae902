"""The errors file of a batch: what is wrong now, not what ever was.

While a run lasts it is only appended to. At its end what is wrong no more is left out, by putting
a new file in place of the old one at once, so that a crash loses no error.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from scheduler.batch.files import LineFile
from scheduler.batch.held import Held, Marks, names_of
from scheduler.batch.results import line_text


class ErrorFile:
    """Errors of lines, which are found again whenever they are read, and of requests, which stay.

    Args:
        file: Where they are written.
        source: The input whose lines are judged anew; what other inputs left there stays.
    """

    def __init__(self, file: LineFile, source: str) -> None:
        self.file, self._source = file, source
        self._found = Marks()  # lines that are wrong in this run
        self.read()

    def read(self) -> None:
        """Learn what the file holds."""
        self.held, self._before = Held(), Marks()
        for text, line in self.file.lines():
            if line.get("id") is None:
                self._before.add(text)
            else:
                self.held.read(line)

    def bad_line(self, line: Mapping[str, Any]) -> str | None:
        """The text to write for a line that is wrong; None: it stands there."""
        text = line_text(line)
        self._found.add(text)
        return text if self._before.add(text) else None

    def append(self, lines: Iterable[Mapping[str, Any] | str]) -> None:
        """Write errors. Raises as `LineFile.append`."""
        self.file.append(lines)

    def tidy(self, answered: Held, read_to: int | None) -> None:
        """Leave out what is wrong no more.

        Args:
            answered: Requests that have an answer after all.
            read_to: The last line of the input that was read; None: all were.

        Raises:
            OSError: It could not be written anew, and is as it was.
        """
        last: dict[object, int] = {}
        drops = False
        for number, (text, line) in enumerate(self.file.lines()):
            drops = drops or not self._stands(text, line, answered, read_to)
            request = _request_of(line)
            if request is not None:
                drops = drops or request in last
                last[request] = number
        if drops:
            self.file.rewrite(self._standing(answered, read_to, last))

    def _standing(
        self, answered: Held, read_to: int | None, last: Mapping[object, int]
    ) -> Iterator[str]:
        for number, (text, line) in enumerate(self.file.lines()):
            if last.get(_request_of(line), number) != number:
                continue  # it failed again since
            if self._stands(text, line, answered, read_to):
                yield text

    def _stands(
        self, text: str, line: Mapping[str, Any], answered: Held, read_to: int | None
    ) -> bool:
        if line.get("id") is not None:
            return not answered.covers(line)
        if self._found.has(text):
            return True
        place = line.get("scheduler")
        source = place.get("input") if isinstance(place, Mapping) else None
        number = place.get("line") if isinstance(place, Mapping) else None
        if source is not None and source != self._source:
            return True
        return read_to is not None and not (isinstance(number, int) and number <= read_to)


def _request_of(line: Mapping[str, Any]) -> object | None:
    """What names the request that failed; None: the line was none."""
    name, key, digest = names_of(line)
    return None if name is None else hash((key, digest or name))
