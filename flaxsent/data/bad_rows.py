"""Rows that cannot be used: set aside in a JSONL file, or told all at once."""

import itertools
import json
from collections.abc import Iterable
from pathlib import Path

from flaxsent import files
from flaxsent.base import FlaxsentError
from flaxsent.data.base import Record, remedy


class BadRows:
    """Gathers the bad rows of one file or several: whole, where they are to be written, else their number."""

    def __init__(self, file: str | Path | None = None, *, inputs: Iterable[str | Path] = ()) -> None:
        """Writes nothing yet.

        Args:
            file: where bad rows are set aside; without it, they are an error.
            inputs: the files that are read.

        Raises:
            FlaxsentError: the file is one of the inputs.
        """
        if file is not None and Path(file).resolve() in {Path(name).resolve() for name in inputs}:
            raise FlaxsentError(f"{file} is an input, and would be overwritten; set bad rows aside in another file.")
        self.num_rows = 0
        self._file = file
        self._first: tuple[str, Record] | None = None
        self._names: set[str] = set()
        self._told: list[str] = []
        self._lines: list[bytes] = []

    def add(self, name: str, record: Record) -> None:
        """A record of a file, with its error."""
        self.num_rows += 1
        self._names.add(name)
        self._first = self._first or (name, record)
        if len(self._told) < _MOST_TOLD:
            self._told.append(f"{name} row {record.number}")
        if self._file is not None:
            self._lines.append(to_lines(name, [record]))

    def check(self, advice: str = "") -> None:
        """Raises FlaxsentError for bad rows without a file to set them aside in; `advice` ends the sentence."""
        if self._file is None and self._first is not None:
            raise self._error(advice)

    def write(self) -> None:
        """Writes the file, if there is one; of several processes that read the same files, one does.

        Raises:
            OSError: it cannot be written.
        """
        if self._file is not None:
            files.write(Path(self._file), b"".join(self._lines))

    def no_rows_error(self, name: str) -> FlaxsentError:
        """What to raise where a file has no rows that can be used."""
        if name not in self._names:
            return FlaxsentError(f"{name} has no rows; expected at least one.")
        return FlaxsentError(f"{name} has no row that can be used: {self._error('')}")

    def _error(self, advice: str) -> FlaxsentError:
        assert self._first is not None
        name, record = self._first
        others = ""
        if self.num_rows > 1:
            numbers = [
                f"{file} row{'s' * (len(rows) > 1)} {', '.join(rows)}"
                for file, group in itertools.groupby(self._told, key=lambda told: told.rpartition(" row ")[0])
                for rows in [[told.rpartition(" ")[2] for told in group]]
            ]
            more = ", …" if self.num_rows > len(self._told) else ""
            others = f"; {self.num_rows:,} rows are bad: {' and '.join(numbers)}{more}"
        return FlaxsentError(f"{name} row {record.number} {record.error}{remedy(record)}{others}{advice}.")


ADVICE = "; pass --bad-rows FILE to set such rows aside"
"""Of a command that can."""
_MOST_TOLD = 20
"""Rows whose numbers a message has."""


def to_lines(name: str, rows: Iterable[Record]) -> bytes:
    r"""JSONL of the bad rows of a file; bytes that are not UTF-8, in its name too, are written as `\xff`."""
    lines = []
    for row in rows:
        line = {"file": _written(name), "row": row.number, "reason": row.error}
        if row.raw:
            line["raw"] = _written(row.raw)
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    return "".join(lines).encode()


def _written(text: str) -> str:
    return text.encode(errors="surrogateescape").decode(errors="backslashreplace")
