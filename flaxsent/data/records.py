"""Records from files and back, as streams: lines, CSV, TSV, JSONL, Parquet.

`read` opens a file as records, each with its text and all its columns; a record that is broken says so, and the next one
comes. `writers.py` is the way back, and `labels.py` reads what `train` and `evaluate` take.
"""

import codecs
import contextlib
import csv
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from flaxsent.base import FlaxsentError, Text

FORMATS = {".txt": "lines", ".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".parquet": "parquet"}
"""By the suffix of the file."""

STDIN = "-"
"""The name under which standard input is read, as lines."""

INSTALL = 'pip install "flaxsent[data]"'


class Layout(NamedTuple):
    """What a file says of its rows before they are read."""

    format: str
    columns: tuple[str, ...]
    """Of JSONL, all that the first `_SAMPLE_ROWS` rows have."""
    schema: Any
    """Parquet: the file's. JSONL: the kind of each column in these first rows. None: all is text."""


class Record(NamedTuple):
    """A row of a file, or what is wrong with it."""

    number: int
    """Its place in the file, from 1; a header counts, and so does an empty line."""
    text: Text = ""
    """A pair where two columns were asked for."""
    record: Any = None
    """The columns: a dict, or where they stand in a Parquet batch."""
    raw: str = ""
    """As it stands in the file, without the line end; empty for Parquet."""
    size: int = 0
    """In memory, roughly, in bytes."""
    error: str | None = None


class Group(NamedTuple):
    """What a Parquet file says of one of its row groups."""

    num_rows: int
    num_bytes: int
    """Of the texts, unpacked."""


class Source(NamedTuple):
    """An open file."""

    layout: Layout
    records: Iterator[Record]
    position: Callable[[], int]
    """How many bytes of the file have been read."""
    groups: tuple[Group, ...] | None = None
    """Of a whole Parquet file: what can be read by itself."""


def read_texts(file: str | Path, text_columns: Sequence[str] = ("text",)) -> list[Text]:
    """Reads the texts of a file of lines, CSV, TSV, JSONL or Parquet.

    Raises:
        FileNotFoundError: no such file.
        ImportError: a Parquet file, and pyarrow is not installed.
        FlaxsentError: a column is missing, a row is broken, whose number the message has, or there is none.
    """
    texts = []
    with read(file, text_columns=text_columns) as source:
        for row in source.records:
            if row.error is not None:
                raise FlaxsentError(f"{file} row {row.number} {row.error}.")
            texts.append(row.text)
    if not texts:
        raise FlaxsentError(f"{file} has no rows; expected at least one.")
    return texts


@contextlib.contextmanager
def read(file: str | Path, *, text_columns: Sequence[str], groups: range | None = None) -> Iterator[Source]:
    """Opens a file, or standard input; its rows have the text of one column, or the pair of two.

    With `groups`, only these row groups of a Parquet file are read; rows keep their numbers.

    A line of a .txt file is a record of one column, which takes the name that is asked for. TSV is as GLUE has it: a
    quotation mark is a character like any other. Empty lines of CSV, TSV and JSONL are no rows.

    Raises:
        FileNotFoundError: no such file.
        ImportError: a Parquet file, and pyarrow is not installed; the message has the command.
        FlaxsentError: it is not a file of its format, or has not the columns that are asked for.
    """
    name = "standard input" if file == STDIN else str(file)
    form = "lines" if file == STDIN else format_of(file)
    with contextlib.ExitStack() as stack:
        if form == "parquet":
            yield stack.enter_context(_read_parquet(Path(file), text_columns, groups))
            return
        # Python cannot end while a thread waits in sys.stdin itself.
        opened = sys.stdin.fileno() if file == STDIN else file
        lines = _Lines(stack.enter_context(open(opened, "rb", closefd=file != STDIN)))
        match form:
            case "lines":
                columns, schema, rows = (text_columns[0],), None, _line_rows(lines, text_columns[0])
            case "jsonl":
                columns, schema, rows = _open_jsonl(lines, text_columns)
            case _:
                columns, schema, rows = _open_csv(lines, text_columns, name=name, is_tsv=form == "tsv")
        check_columns(name, columns, text_columns)
        yield Source(Layout(form, columns, schema), rows, lambda: lines.position)


def format_of(file: str | Path) -> str:
    """The format that a file's name says.

    Raises:
        FlaxsentError: none that is known.
    """
    form = FORMATS.get(Path(file).suffix.lower())
    if form is None:
        raise FlaxsentError(f"{file}: expected a file that ends in {', '.join(FORMATS)}.")
    return form


_LONGEST = 1 << 24
"""Bytes of a line, and characters of a CSV field: a file without line ends must not fill the memory."""
_SAMPLE_ROWS, _SAMPLE_BYTES = 1000, 1 << 22
"""The rows of JSONL that tell the columns, which other formats need to know before they begin."""
_BATCH_ROWS = 256
"""Rows that are read from Parquet at once."""


class _Lines:
    """The lines of a stream as text, one by one; bytes that are not UTF-8 are lone surrogates in it."""

    def __init__(self, stream: BinaryIO) -> None:
        self.position = 0
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
        return self._taken[-1]

    def take(self) -> tuple[str, str | None]:
        """All that was read since the last call, without its last line end, and what is wrong with it."""
        raw = "".join(self._taken).removesuffix("\n").removesuffix("\r")
        error = None
        if self._is_cut:
            error = f"has a line of more than {_LONGEST:,} bytes"
        elif not raw.isascii() and not _is_unicode(raw):
            error = "is not UTF-8 text"
        self._taken, self._is_cut = [], False
        return raw, error


def _is_unicode(text: str) -> bool:
    """Whether it has no lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_columns(name: str, columns: Sequence[str], text_columns: Sequence[str]) -> None:
    if len(set(columns)) < len(columns):
        twice = next(column for column in columns if columns.count(column) > 1)
        raise FlaxsentError(f"{name} has the column {twice!r} twice; expected different names.")
    if not set(text_columns) <= set(columns):
        raise FlaxsentError(
            f"{name} has the columns {', '.join(columns) or '(none)'}; expected {' and '.join(text_columns)}."
        )


def _line_rows(lines: _Lines, column: str) -> Iterator[Record]:
    for number, _ in enumerate(lines, start=1):
        raw, error = lines.take()
        yield Record(number, raw, {column: raw}, raw, len(raw), error)


def _open_csv(
    lines: _Lines, text_columns: Sequence[str], *, name: str, is_tsv: bool
) -> tuple[tuple[str, ...], None, Iterator[Record]]:
    # The csv module's own limit, of the whole process, is less than a long document.
    csv.field_size_limit(max(_LONGEST, csv.field_size_limit()))
    delimiter, quoting = ("\t", csv.QUOTE_NONE) if is_tsv else (",", csv.QUOTE_MINIMAL)
    # Not strict, a quotation mark that is not closed would take in the rest of the file.
    cells = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)
    try:
        columns = next(cells, [])
    except csv.Error as err:
        raise FlaxsentError(f"{name} has no header that can be read: {err}.") from err
    _, error = lines.take()
    if error is not None:
        raise FlaxsentError(f"{name} has a header that {error}.")
    return tuple(columns), None, _csv_rows(lines, cells, columns, text_columns)


def _csv_rows(
    lines: _Lines, rows: Iterator[list[str]], columns: Sequence[str], text_columns: Sequence[str]
) -> Iterator[Record]:
    for number in itertools.count(2):
        cells, error = None, None
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error as err:
            error = f"is not CSV: {err}"
        raw, fault = lines.take()
        if cells == []:
            continue
        if cells is not None and len(cells) != len(columns):
            error = f"has {len(cells)} columns; expected {len(columns)}"
        record = dict(zip(columns, cells or [], strict=False))
        yield _row(number, record, text_columns, raw=raw, error=fault or error)


def _row(number: int, record: Mapping[str, Any], text_columns: Sequence[str], *, raw: str, error: str | None) -> Record:
    if error is None:
        error = _text_error([record.get(column) for column in text_columns], text_columns)
    text = _text([record[column] for column in text_columns]) if error is None else ""
    return Record(number, text, record, raw, len(raw), error)


def _text_error(values: Sequence[object], text_columns: Sequence[str]) -> str | None:
    for column, value in zip(text_columns, values, strict=True):
        if value is None:
            return f"has no text in the column {column!r}"
        if not isinstance(value, str):
            return f"has a value of type {type(value).__name__} in the column {column!r}; expected text"
    return None


def _text(values: Sequence[str]) -> Text:
    return values[0] if len(values) == 1 else (values[0], values[1])


def _open_jsonl(lines: _Lines, text_columns: Sequence[str]) -> tuple[tuple[str, ...], dict[str, str], Iterator[Record]]:
    rows = _jsonl_rows(lines, text_columns)
    sample = []
    while len(sample) < _SAMPLE_ROWS and lines.position < _SAMPLE_BYTES and (row := next(rows, None)) is not None:
        sample.append(row)
    kinds: dict[str, set[str]] = {}
    for row in sample:
        for column, value in row.record.items():
            kinds.setdefault(column, set()).add(_kind(value))
    if not kinds:  # no rows, or none that is whole
        kinds = {column: {"string"} for column in text_columns}
    schema = {column: _common_kind(found - {"null"}) for column, found in kinds.items()}
    return tuple(schema), schema, itertools.chain(sample, rows)


def _jsonl_rows(lines: _Lines, text_columns: Sequence[str]) -> Iterator[Record]:
    for number, _ in enumerate(lines, start=1):
        raw, error = lines.take()
        raw = raw.strip()
        if not raw:
            continue
        record = {}
        if error is None:
            try:
                record = json.loads(raw)
                error = _record_error(record, raw)
            except (ValueError, RecursionError) as err:
                error = f"is not JSON: {err}"
        record = record if isinstance(record, dict) else {}
        yield _row(number, record, text_columns, raw=raw, error=error)


def _record_error(record: object, raw: str) -> str | None:
    if not isinstance(record, dict):
        return f"is JSON of type {type(record).__name__}; expected an object"
    if "\\u" in raw and not _is_unicode(json.dumps(record, ensure_ascii=False)):
        return "has a lone surrogate, which is not Unicode text"
    return None


def _kind(value: object) -> str:
    """The name of the Arrow type that holds a JSON value; what has none is kept as text."""
    return {bool: "bool", int: "int64", float: "double", type(None): "null"}.get(type(value), "string")


def _common_kind(kinds: set[str]) -> str:
    """The kind of a column that holds values of these.

    >>> _common_kind({"int64", "double"}), _common_kind({"int64", "string"}), _common_kind(set())
    ('double', 'string', 'string')
    """
    if len(kinds) == 1:
        return next(iter(kinds))
    return "double" if kinds == {"int64", "double"} else "string"


class _Cell(NamedTuple):
    """Where a record stands in a Parquet file."""

    batch: Any
    place: int


@contextlib.contextmanager
def _read_parquet(path: Path, text_columns: Sequence[str], chosen: range | None) -> Iterator[Source]:
    pa, pq = _pyarrow()
    with open(path, "rb") as stream:
        try:
            # Without a buffer, a column of a row group would be read whole.
            file = pq.ParquetFile(stream, buffer_size=1 << 20)
        except (pa.ArrowException, OSError) as err:
            raise FlaxsentError(f"{path} is not a Parquet file: {err}; fetch it again.") from err
        schema = file.schema_arrow
        check_columns(str(path), schema.names, text_columns)
        for column in text_columns:
            kind = schema.field(column).type
            if pa.types.is_dictionary(kind):
                kind = kind.value_type
            if kind not in (pa.string(), pa.large_string(), pa.string_view(), pa.null()):
                raise FlaxsentError(f"{path} has values of type {kind} in the column {column!r}; expected text.")
        groups = _groups(file.metadata, text_columns) if chosen is None else None
        chosen = range(file.num_row_groups) if chosen is None else chosen
        num_before = sum(file.metadata.row_group(index).num_rows for index in range(chosen.start))
        num_read = [num_before]
        size, num_rows = path.stat().st_size, max(file.metadata.num_rows, 1)
        yield Source(
            Layout("parquet", tuple(schema.names), schema),
            _parquet_rows(file, path, text_columns, chosen, num_read),
            lambda: size * (num_read[0] - num_before) // num_rows,
            groups,
        )


def _groups(metadata: Any, text_columns: Sequence[str]) -> tuple[Group, ...]:
    columns = [index for index in range(metadata.num_columns) if metadata.schema.column(index).path in text_columns]
    groups = (metadata.row_group(index) for index in range(metadata.num_row_groups))
    return tuple(
        Group(group.num_rows, sum(group.column(index).total_uncompressed_size for index in columns)) for group in groups
    )


def _parquet_rows(
    file: Any, path: Path, text_columns: Sequence[str], groups: range, num_read: list[int]
) -> Iterator[Record]:
    pa, _ = _pyarrow()
    try:
        for batch in file.iter_batches(batch_size=_BATCH_ROWS, row_groups=[*groups]):
            # As bytes: pyarrow takes strings from a file unchecked.
            columns = [batch.column(name).cast(pa.string()).cast(pa.binary()).to_pylist() for name in text_columns]
            size = batch.nbytes // max(batch.num_rows, 1)
            for index, parts in enumerate(zip(*columns, strict=True)):
                num_read[0] += 1
                values: list[Any] = []
                try:
                    values = [part if part is None else part.decode() for part in parts]
                    error = _text_error(values, text_columns)
                except UnicodeDecodeError:
                    error = "is not UTF-8 text"
                if error is None:
                    yield Record(num_read[0], _text(values), _Cell(batch, index), size=size)
                else:
                    yield Record(num_read[0], size=size, error=error)
    except (pa.ArrowException, OSError) as err:
        raise FlaxsentError(f"{path} is damaged after row {num_read[0]}: {err}; fetch it again.") from err


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as err:
        raise ImportError(f"Parquet files need pyarrow, which is not installed: {INSTALL}") from err
    return pyarrow, pyarrow.parquet
