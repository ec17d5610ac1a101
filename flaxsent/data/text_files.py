"""Lines, CSV, TSV and JSONL → records."""

import csv
import itertools
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flaxsent.base import FlaxsentError
from flaxsent.data.base import Layout, Reading, Record, distinct, remedy, text_error, text_of
from flaxsent.data.streams import Lines, is_unicode

_SAMPLE_RECORDS, _SAMPLE_CHARACTERS = 1000, 1 << 22
"""How much of a JSONL file is read to know its columns, which other formats must know before they begin."""
_SAMPLE_LINES = 100
"""Of a .txt file, to see whether it is a table."""


def open_text(
    lines: Lines, form: str, text_columns: Sequence[str], *, name: str, reading: Reading, is_stream: bool = False
) -> tuple[Layout, Iterator[Record]]:
    """The layout of a file that is not Parquet, and its records.

    Args:
        lines: of the file.
        form: its format.
        text_columns: one name, or two for pairs.
        name: of the file, for messages.
        reading: how tables are read.
        is_stream: the lines may come slowly, so that none is read before it is asked for.

    Raises:
        FlaxsentError: a CSV or TSV file whose first line cannot be read.
    """
    match form:
        case "lines":
            records = _line_records(lines, text_columns[0])
            sample = [] if is_stream else _sample(records, lines, _SAMPLE_LINES)
            hint = _TABS if len(sample) > 1 and all("\t" in record.raw for record in sample) else None
            return Layout(form, (text_columns[0],), None, hint=hint), itertools.chain(sample, records)
        case "jsonl":
            return _open_jsonl(lines, text_columns)
        case _:
            return _open_csv(lines, form, text_columns, name=name, reading=reading)


_TABS = "every line of it has a tab: if it is a table, pass --format tsv"


def _line_records(lines: Lines, column: str) -> Iterator[Record]:
    for number, _ in enumerate(lines, start=1):
        raw, error = lines.take()
        yield Record(number, raw, {column: raw}, raw, len(raw), error)


def _sample(records: Iterator[Record], lines: Lines, most: int) -> list[Record]:
    """The first records, as long as they take little memory."""
    sample: list[Record] = []
    while len(sample) < most and lines.num_characters < _SAMPLE_CHARACTERS and (record := next(records, None)):
        sample.append(record)
    return sample


def _open_csv(
    lines: Lines, form: str, text_columns: Sequence[str], *, name: str, reading: Reading
) -> tuple[Layout, Iterator[Record]]:
    table = _CsvTable(lines, form, reading)
    told = "header" if reading.has_header else "first row"
    first: list[str] = []
    number = 0
    try:
        while not first and (number == 0 or not reading.has_header):  # empty lines are no rows
            first, number = next(table), number + 1
    except StopIteration:
        pass
    except csv.Error as err:
        raise FlaxsentError(f"{name} has no {told} that can be read: {err}.") from err
    raw, error = lines.take()
    if error is not None:
        raise FlaxsentError(f"{name} has a {told} that {error}{remedy(Record(1, raw=raw, error=error))}.")
    if reading.has_header:
        columns = distinct(first)
        records = _csv_records(lines, table, columns, text_columns, start=2)
        return Layout(form, columns, None, tuple(first) or None), records
    columns = tuple(str(index) for index in range(1, len(first) + 1))
    before = [_csv_record(number, first, raw.lstrip("\r\n"), None, columns, text_columns)] if first else []
    records = _csv_records(lines, table, columns, text_columns, start=number + 1)
    return Layout(form, columns, None, ()), itertools.chain(before, records)


def _csv_records(
    lines: Lines, table: Iterator[list[str]], columns: Sequence[str], text_columns: Sequence[str], *, start: int
) -> Iterator[Record]:
    for number in itertools.count(start):
        cells, error = [], None
        try:
            cells = next(table)
        except StopIteration:
            return
        except csv.Error as err:
            error = f"is not CSV: {err}"
        raw, fault = lines.take()
        if cells or error is not None:
            yield _csv_record(number, cells, raw, fault or error, columns, text_columns)


def _csv_record(
    number: int, cells: list[str], raw: str, error: str | None, columns: Sequence[str], text_columns: Sequence[str]
) -> Record:
    if error is None and len(cells) != len(columns):
        error = f"has {len(cells)} columns; expected {len(columns)}"
    found = dict(zip(columns, cells, strict=False))
    texts = [found.get(column) or None for column in text_columns]
    return _record(number, found, texts, text_columns, raw=raw, error=error)


class _CsvTable:
    """The cells of CSV records.

    The csv module has one limit for a field in the whole process, less than a long document: it is raised while a
    record longer than it is parsed, and then put back.
    """

    def __init__(self, lines: Lines, form: str, reading: Reading) -> None:
        delimiter, usual = ("\t", "none") if form == "tsv" else (",", "minimal")
        quoting = csv.QUOTE_NONE if (reading.quoting or usual) == "none" else csv.QUOTE_MINIMAL
        self._lines = lines
        self._limit_before: int | None = None
        # Strict: else a quotation mark that is not closed would take in the rest of the file.
        self._cells = csv.reader(self._fed(), delimiter=reading.delimiter or delimiter, quoting=quoting, strict=True)

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
                csv.field_size_limit(max(_LONGEST_FIELD, self._limit_before))
            yield line


_LIMIT = threading.Lock()
"""Held while the csv module's limit is not what it was."""
_CSV_DEFAULT, _LONGEST_FIELD = 1 << 17, 1 << 24
"""Characters of a field: as the csv module has it, and as it is raised."""


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
    sample = _sample(records, lines, _SAMPLE_RECORDS)
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
    if "\\u" in raw and not is_unicode(json.dumps(found, ensure_ascii=False)):
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
