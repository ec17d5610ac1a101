"""Lines, CSV, TSV and JSONL → records."""

import codecs
import csv
import itertools
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from flaxsent.base import FlaxsentError
from flaxsent.data.base import Layout, Record, text_error, text_of

_LONGEST = 1 << 24
"""Bytes of a line, and characters of a CSV field: a file without line ends must not fill the memory."""
_SAMPLE_RECORDS, _SAMPLE_BYTES = 1000, 1 << 22
"""How much of a JSONL file is read to know its columns, which other formats must know before they begin."""


class Lines:
    """The lines of a stream as text; bytes that are not UTF-8 become lone surrogates."""

    def __init__(self, stream: BinaryIO) -> None:
        self.position = 0
        """Bytes read so far."""
        self.num_taken = 0
        """Characters read since the last `take`."""
        self._stream = stream
        self._taken: list[str] = []
        self._is_cut = False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._stream.readline(_LONGEST + 1)
        if not line:
            raise StopIteration
        rest = line
        if len(line) > _LONGEST:
            self._is_cut = True
            while rest and not rest.endswith(b"\n"):
                rest = self._stream.readline(_LONGEST)
                self.position += len(rest)
        content = line.removeprefix(codecs.BOM_UTF8) if self.position == 0 else line
        self.position += len(line)
        self._taken.append(content.decode(errors="surrogateescape"))
        self.num_taken += len(self._taken[-1])
        return self._taken[-1]

    def take(self) -> tuple[str, str | None]:
        """All that was read since the last call, without its last line end, and what is wrong with it."""
        raw = "".join(self._taken).removesuffix("\n").removesuffix("\r")
        error = None
        if self._is_cut:
            error = f"has a line of more than {_LONGEST:,} bytes"
        elif not raw.isascii() and not _is_unicode(raw):
            error = "is not UTF-8 text"
        self._taken, self.num_taken, self._is_cut = [], 0, False
        return raw, error


def _is_unicode(text: str) -> bool:
    """Whether it has no lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def open_text(lines: Lines, form: str, text_columns: Sequence[str], *, name: str) -> tuple[Layout, Iterator[Record]]:
    """The layout of a file that is not Parquet, and its records.

    Raises:
        FlaxsentError: a CSV or TSV file whose header cannot be read.
    """
    match form:
        case "lines":
            return Layout(form, (text_columns[0],), None), _line_records(lines, text_columns[0])
        case "jsonl":
            return _open_jsonl(lines, text_columns)
        case _:
            return _open_csv(lines, form, text_columns, name=name)


def _line_records(lines: Lines, column: str) -> Iterator[Record]:
    for number, _ in enumerate(lines, start=1):
        raw, error = lines.take()
        yield Record(number, raw, {column: raw}, raw, len(raw), error)


def _open_csv(lines: Lines, form: str, text_columns: Sequence[str], *, name: str) -> tuple[Layout, Iterator[Record]]:
    table = _CsvTable(lines, form)
    try:
        columns = next(table, [])
    except csv.Error as err:
        raise FlaxsentError(f"{name} has no header that can be read: {err}.") from err
    _, error = lines.take()
    if error is not None:
        raise FlaxsentError(f"{name} has a header that {error}.")
    return Layout(form, tuple(columns), None), _csv_records(lines, table, columns, text_columns)


def _csv_records(
    lines: Lines, table: Iterator[list[str]], columns: Sequence[str], text_columns: Sequence[str]
) -> Iterator[Record]:
    for number in itertools.count(2):
        cells, error = None, None
        try:
            cells = next(table)
        except StopIteration:
            return
        except csv.Error as err:
            error = f"is not CSV: {err}"
        raw, fault = lines.take()
        if cells == []:
            continue
        if cells is not None and len(cells) != len(columns):
            error = f"has {len(cells)} columns; expected {len(columns)}"
        found = dict(zip(columns, cells or [], strict=False))
        texts = [found.get(column) or None for column in text_columns]
        yield _record(number, found, texts, text_columns, raw=raw, error=fault or error)


class _CsvTable:
    """The cells of CSV records.

    The csv module has one limit for a field in the whole process, less than a long document: it is raised while a
    record longer than it is parsed, and then put back.
    """

    def __init__(self, lines: Lines, form: str) -> None:
        delimiter, quoting = ("\t", csv.QUOTE_NONE) if form == "tsv" else (",", csv.QUOTE_MINIMAL)
        self._lines = lines
        self._limit_before: int | None = None
        # Strict: else a quotation mark that is not closed would take in the rest of the file.
        self._cells = csv.reader(self._fed(), delimiter=delimiter, quoting=quoting, strict=True)

    def __iter__(self) -> Iterator[list[str]]:
        return self

    def __next__(self) -> list[str]:
        try:
            return next(self._cells)
        finally:
            if self._limit_before is not None:
                csv.field_size_limit(self._limit_before)
                self._limit_before = None
                _LIMIT.release()

    def _fed(self) -> Iterator[str]:
        for line in self._lines:
            # Another reader may have raised the limit for a moment: what Python has by default counts then.
            if self._limit_before is None and self._lines.num_taken > min(csv.field_size_limit(), _CSV_DEFAULT):
                _LIMIT.acquire()
                self._limit_before = csv.field_size_limit()
                csv.field_size_limit(max(_LONGEST, self._limit_before))
            yield line


_LIMIT = threading.Lock()
"""Held while the csv module's limit is not what it was."""
_CSV_DEFAULT = 1 << 17


def _record(
    number: int,
    columns: Mapping[str, Any],
    texts: Sequence[object],
    text_columns: Sequence[str],
    *,
    raw: str,
    error: str | None,
) -> Record:
    error = text_error(texts, text_columns) if error is None else error
    return Record(number, text_of(texts) if error is None else "", columns, raw, len(raw), error)


def _open_jsonl(lines: Lines, text_columns: Sequence[str]) -> tuple[Layout, Iterator[Record]]:
    records = _jsonl_records(lines, text_columns)
    sample: list[Record] = []
    while len(sample) < _SAMPLE_RECORDS and lines.position < _SAMPLE_BYTES and (record := next(records, None)):
        sample.append(record)
    kinds: dict[str, set[str]] = {}
    for record in sample:
        for column, value in record.columns.items():
            kinds.setdefault(column, set()).add(_kind(value))
    if not kinds:  # no records, or all of them broken
        kinds = {column: {"string"} for column in text_columns}
    schema = {column: _common_kind(found - {"null"}) for column, found in kinds.items()}
    return Layout("jsonl", tuple(schema), schema), itertools.chain(sample, records)


def _jsonl_records(lines: Lines, text_columns: Sequence[str]) -> Iterator[Record]:
    for number, _ in enumerate(lines, start=1):
        raw, error = lines.take()
        raw = raw.strip()
        if not raw:
            continue
        found = {}
        if error is None:
            try:
                found = json.loads(raw)
                error = _json_error(found, raw)
            except (ValueError, RecursionError) as err:
                error = f"is not JSON: {err}"
        found = found if isinstance(found, dict) else {}
        yield _record(number, found, [*map(found.get, text_columns)], text_columns, raw=raw, error=error)


def _json_error(found: object, raw: str) -> str | None:
    if not isinstance(found, dict):
        return f"is JSON of type {type(found).__name__}; expected an object"
    if "\\u" in raw and not _is_unicode(json.dumps(found, ensure_ascii=False)):
        return "has a lone surrogate, which is not Unicode text"
    return None


def _kind(value: object) -> str:
    """The name of the Arrow type that holds a JSON value; lists and objects are kept as text."""
    return {bool: "bool", int: "int64", float: "double", type(None): "null"}.get(type(value), "string")


def _common_kind(kinds: set[str]) -> str:
    """The kind of a column that holds values of these kinds.

    >>> _common_kind({"int64", "double"}), _common_kind({"int64", "string"}), _common_kind(set())
    ('double', 'string', 'string')
    """
    if len(kinds) == 1:
        return next(iter(kinds))
    return "double" if kinds == {"int64", "double"} else "string"
