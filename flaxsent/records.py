"""Records from files and back, as streams: lines, CSV, TSV, JSONL, Parquet.

`read` opens a file as rows, each with its text and all its columns; a row that is broken says so, and the next one
comes. `open_writer` is the way back: rows with more columns become parts, and `join` makes one file of the parts.
`read_labelled` is what `train` and `evaluate` read: texts with their labels.
"""

import base64
import codecs
import contextlib
import csv
import io
import itertools
import json
import math
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from flaxsent.types import ProblemType, Text

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


class Row(NamedTuple):
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
    rows: Iterator[Row]
    position: Callable[[], int]
    """How many bytes of the file have been read."""
    groups: tuple[Group, ...] | None = None
    """Of a whole Parquet file: what can be read by itself."""


class LabelledTexts(NamedTuple):
    """Texts with what is to be learnt of each."""

    texts: list[Text]
    labels: list[Any]
    """The index of the label; for multi-label a tuple of indices; for regression the value."""


class Annotations(NamedTuple):
    """The rows of a labelled file, before labels have become numbers."""

    file: str
    texts: list[Text]
    labels: list[Any]
    """As they stand there: text, a number, or a list of such."""
    rows: list[int]
    """The number of each row, the header of a CSV being row 1."""


def read_labelled(
    file: str | Path,
    *,
    label2id: Mapping[str, int],
    problem_type: ProblemType = "single_label_classification",
    text_columns: Sequence[str] = ("text",),
    label_column: str = "label",
    label_separator: str | None = None,
) -> LabelledTexts:
    """Reads a labelled file; a label is a name of `label2id` or an index.

    Raises: as `read_annotations` and `to_labelled`.
    """
    annotations = read_annotations(
        file, text_columns=text_columns, label_column=label_column, label_separator=label_separator
    )
    return to_labelled(annotations, label2id=label2id, problem_type=problem_type)


def read_annotations(
    file: str | Path,
    *,
    text_columns: Sequence[str] = ("text",),
    label_column: str = "label",
    label_separator: str | None = None,
) -> Annotations:
    """Reads a CSV, TSV, JSONL or Parquet file of texts, or pairs of two columns, with their labels.

    A label is a name or a number. Several labels of a text are a list, in text columns a JSON list or, with
    `label_separator`, what stands between separators; `[]` is none of them.

    Raises:
        FileNotFoundError: no such file.
        ImportError: a Parquet file, and pyarrow is not installed.
        ValueError: a column is missing, or a row is broken or has no label; the message has its number.
    """
    data = Annotations(str(file), [], [], [])
    with read(file, text_columns=text_columns) as source:
        _check_columns(str(file), source.layout.columns, (label_column,))
        for row in source.rows:
            error, label = row.error, None
            if error is None:
                error, label = _read_label(row, label_column, label_separator)
            if error is not None:
                raise ValueError(f"{file} row {row.number} {error}.")
            data.texts.append(row.text)
            data.labels.append(label)
            data.rows.append(row.number)
    if not data.texts:
        raise ValueError(f"{file} has no rows; expected at least one.")
    return data


def read_texts(file: str | Path, text_columns: Sequence[str] = ("text",)) -> list[Text]:
    """Reads the texts of a file of lines, CSV, TSV, JSONL or Parquet.

    Raises:
        FileNotFoundError: no such file.
        ImportError: a Parquet file, and pyarrow is not installed.
        ValueError: a column is missing, a row is broken, whose number the message has, or there is none.
    """
    texts = []
    with read(file, text_columns=text_columns) as source:
        for row in source.rows:
            if row.error is not None:
                raise ValueError(f"{file} row {row.number} {row.error}.")
            texts.append(row.text)
    if not texts:
        raise ValueError(f"{file} has no rows; expected at least one.")
    return texts


def problem_type_of(data: Annotations) -> ProblemType:
    """What the labels look like: lists are multi-label, numbers of which one is no integer are regression.

    >>> problem_type_of(Annotations("x.csv", ["a", "b"], ["1", "2.5"], [2, 3]))
    'regression'
    """
    if any(isinstance(label, list) for label in data.labels):
        return "multi_label_classification"
    numbers = [_number(label) for label in data.labels]
    if None not in numbers and not all(_is_integer(label) for label in data.labels):
        return "regression"
    return "single_label_classification"


def label_set(data: Annotations) -> tuple[str, ...]:
    """The different labels of a file, in the order of numbers if all are integers, else of names.

    >>> label_set(Annotations("x.jsonl", ["a", "b", "c"], [["sad"], [], ["joy", "sad"]], [1, 2, 3]))
    ('joy', 'sad')
    """
    names = {_name(label) for several in data.labels for label in (several if isinstance(several, list) else [several])}
    return tuple(sorted(names, key=int) if all(map(_is_integer, names)) else sorted(names))


def to_labelled(data: Annotations, *, label2id: Mapping[str, int], problem_type: ProblemType) -> LabelledTexts:
    """Makes numbers of labels: a label is a name of `label2id` or an index of it; for regression, a number.

    Raises:
        ValueError: a label is unknown, or not of the problem type; the message has the row.
    """
    indices = {str(index): index for index in label2id.values()} | dict(label2id)
    is_several, labels = problem_type == "multi_label_classification", []
    for number, label in zip(data.rows, data.labels, strict=True):
        at = f"{data.file} row {number} has the label {_shown(label)}"
        if problem_type == "regression":
            if (value := _number(label)) is None:
                raise ValueError(f"{at}; expected a finite number.")
            labels.append(value)
            continue
        if isinstance(label, list) != is_several:
            raise ValueError(f"{at}; expected {'a list of labels' if is_several else 'one label'}.")
        names = [_name(one) for one in (label if is_several else [label])]
        if unknown := [name for name in names if name not in indices]:
            raise ValueError(f"{at}: {unknown[0]!r} is unknown; expected {_listed(label2id)}.")
        labels.append(tuple(sorted({indices[name] for name in names})) if is_several else indices[names[0]])
    return LabelledTexts(data.texts, labels)


def _read_label(row: Row, column: str, separator: str | None) -> tuple[str | None, Any]:
    """What is wrong with the label of a row, and the label."""
    if isinstance(row.record, _Cell):
        try:
            label = row.record.batch.column(column)[row.record.place].as_py()
        except UnicodeDecodeError:
            return f"is not UTF-8 text in the column {column!r}", None
    else:
        label = row.record.get(column)
    if isinstance(label, str):
        label = label.strip()
        if label.startswith("["):
            try:
                label = json.loads(label)
            except (ValueError, RecursionError):
                return f"has the label {_shown(label)}; expected a JSON list", None
        elif separator is not None and label:
            label = [one.strip() for one in label.split(separator)]
    labels = label if isinstance(label, list) else [label]
    if any(one is None or one == "" for one in labels):
        return f"has no label in the column {column!r}", None
    if not all(isinstance(one, str | int | float) for one in labels):
        return f"has the label {_shown(label)}; expected names or numbers", None
    return None, label


def _name(label: object) -> str:
    """The name of a label that may be a number: 1.0, as pandas writes integers beside gaps, is 1."""
    return str(int(label)) if isinstance(label, float) and label.is_integer() else str(label)


def _number(label: Any) -> float | None:
    try:
        value = float(label)
    except (TypeError, ValueError, OverflowError):
        return None
    return value if math.isfinite(value) else None


def _is_integer(label: object) -> bool:
    return re.fullmatch(r"[+-]?\d{1,18}", _name(label), re.ASCII) is not None


def _shown(label: object) -> str:
    shown = repr(label)
    return shown if len(shown) <= 40 else f"{shown[:39]}…"


def _listed(names: Iterable[str]) -> str:
    listed = [*names]
    return ", ".join(listed if len(listed) <= 20 else [*listed[:20], "…"])


@contextlib.contextmanager
def read(file: str | Path, *, text_columns: Sequence[str], groups: range | None = None) -> Iterator[Source]:
    """Opens a file, or standard input; its rows have the text of one column, or the pair of two.

    With `groups`, only these row groups of a Parquet file are read; rows keep their numbers.

    A line of a .txt file is a record of one column, which takes the name that is asked for. TSV is as GLUE has it: a
    quotation mark is a character like any other. Empty lines of CSV, TSV and JSONL are no rows.

    Raises:
        FileNotFoundError: no such file.
        ImportError: a Parquet file, and pyarrow is not installed; the message has the command.
        ValueError: it is not a file of its format, or has not the columns that are asked for.
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
        _check_columns(name, columns, text_columns)
        yield Source(Layout(form, columns, schema), rows, lambda: lines.position)


def format_of(file: str | Path) -> str:
    """The format that a file's name says.

    Raises:
        ValueError: none that is known.
    """
    form = FORMATS.get(Path(file).suffix.lower())
    if form is None:
        raise ValueError(f"{file}: expected a file that ends in {', '.join(FORMATS)}.")
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


def _check_columns(name: str, columns: Sequence[str], text_columns: Sequence[str]) -> None:
    if len(set(columns)) < len(columns):
        twice = next(column for column in columns if columns.count(column) > 1)
        raise ValueError(f"{name} has the column {twice!r} twice; expected different names.")
    if not set(text_columns) <= set(columns):
        raise ValueError(
            f"{name} has the columns {', '.join(columns) or '(none)'}; expected {' and '.join(text_columns)}."
        )


def _line_rows(lines: _Lines, column: str) -> Iterator[Row]:
    for number, _ in enumerate(lines, start=1):
        raw, error = lines.take()
        yield Row(number, raw, {column: raw}, raw, len(raw), error)


def _open_csv(
    lines: _Lines, text_columns: Sequence[str], *, name: str, is_tsv: bool
) -> tuple[tuple[str, ...], None, Iterator[Row]]:
    # The csv module's own limit, of the whole process, is less than a long document.
    csv.field_size_limit(max(_LONGEST, csv.field_size_limit()))
    delimiter, quoting = ("\t", csv.QUOTE_NONE) if is_tsv else (",", csv.QUOTE_MINIMAL)
    # Not strict, a quotation mark that is not closed would take in the rest of the file.
    cells = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)
    try:
        columns = next(cells, [])
    except csv.Error as err:
        raise ValueError(f"{name} has no header that can be read: {err}.") from err
    _, error = lines.take()
    if error is not None:
        raise ValueError(f"{name} has a header that {error}.")
    return tuple(columns), None, _csv_rows(lines, cells, columns, text_columns)


def _csv_rows(
    lines: _Lines, rows: Iterator[list[str]], columns: Sequence[str], text_columns: Sequence[str]
) -> Iterator[Row]:
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


def _row(number: int, record: Mapping[str, Any], text_columns: Sequence[str], *, raw: str, error: str | None) -> Row:
    if error is None:
        error = _text_error([record.get(column) for column in text_columns], text_columns)
    text = _text([record[column] for column in text_columns]) if error is None else ""
    return Row(number, text, record, raw, len(raw), error)


def _text_error(values: Sequence[object], text_columns: Sequence[str]) -> str | None:
    for column, value in zip(text_columns, values, strict=True):
        if value is None:
            return f"has no text in the column {column!r}"
        if not isinstance(value, str):
            return f"has a value of type {type(value).__name__} in the column {column!r}; expected text"
    return None


def _text(values: Sequence[str]) -> Text:
    return values[0] if len(values) == 1 else (values[0], values[1])


def _open_jsonl(lines: _Lines, text_columns: Sequence[str]) -> tuple[tuple[str, ...], dict[str, str], Iterator[Row]]:
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


def _jsonl_rows(lines: _Lines, text_columns: Sequence[str]) -> Iterator[Row]:
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
            raise ValueError(f"{path} is not a Parquet file: {err}; fetch it again.") from err
        schema = file.schema_arrow
        _check_columns(str(path), schema.names, text_columns)
        for column in text_columns:
            kind = schema.field(column).type
            if pa.types.is_dictionary(kind):
                kind = kind.value_type
            if kind not in (pa.string(), pa.large_string(), pa.string_view(), pa.null()):
                raise ValueError(f"{path} has values of type {kind} in the column {column!r}; expected text.")
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
) -> Iterator[Row]:
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
                    yield Row(num_read[0], _text(values), _Cell(batch, index), size=size)
                else:
                    yield Row(num_read[0], size=size, error=error)
    except (pa.ArrowException, OSError) as err:
        raise ValueError(f"{path} is damaged after row {num_read[0]}: {err}; fetch it again.") from err


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as err:
        raise ImportError(f"Parquet files need pyarrow, which is not installed: {INSTALL}") from err
    return pyarrow, pyarrow.parquet


class TextWriter:
    r"""Writes lines, CSV, TSV or JSONL: the parts are the rows, and a file is a header and the parts.

    Where a cell has another type than text, it is written as JSON is. In .txt and .tsv files, tabs and line ends of
    cells are written as `\t`, `\n` and `\r`; a .txt file is a TSV without a header, so line n is row n.
    """

    def __init__(self, form: str, layout: Layout, added: Sequence[str]) -> None:
        self._format, self._layout, self._added = form, layout, added
        has_header = form in ("csv", "tsv")
        self._header = self._table([[*layout.columns, *added]]) if has_header else b""

    def error(self, row: Row) -> str | None:
        """Why the row cannot stand in such a file with the others."""
        if self._layout.format != "jsonl":
            return None
        if self._format != "jsonl":
            return _unknown_column(row, self._layout)
        taken = [column for column in self._added if column in row.record]
        return f"has a column {taken[0]!r} already" if taken else None

    def encode(self, rows: Sequence[Row], added: Mapping[str, Any]) -> bytes:
        """A part: the rows, with a column of as many values for each of the names in `added`."""
        columns = {name: _shortest(values) for name, values in added.items()}
        records = (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
        both = zip(rows, self._records(rows), records, strict=True)
        if self._format != "jsonl":
            names = (*self._layout.columns, *self._added)
            return self._table([[_cell((old | new).get(name)) for name in names] for _, old, new in both])
        lines = []
        for row, old, new in both:
            if self._layout.format == "jsonl":  # what stands there stays as it is, to the byte
                lines.append(f"{row.raw[:-1].rstrip()}, {_json(new)[1:]}\n")
            else:
                lines.append(f"{_json(old | new)}\n")
        return "".join(lines).encode()

    def join(self, parts: Iterable[Path], stream: BinaryIO) -> None:
        """Writes the file that the parts make."""
        stream.write(self._header)
        for part in parts:
            with open(part, "rb") as content:
                shutil.copyfileobj(content, stream)

    def _records(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        if self._layout.format != "parquet":
            return [row.record for row in rows]
        pa, _ = _pyarrow()
        table = _gather(rows, self._layout.schema)
        for index, field in enumerate(table.schema):
            # Python has no nanoseconds; Arrow's own text has them.
            if pa.types.is_temporal(field.type) or pa.types.is_decimal(field.type):
                table = table.set_column(index, field.name, table.column(index).cast(pa.string()))
            if pa.types.is_float32(field.type):  # as few digits as `_shortest` gives
                table = table.set_column(index, field.name, table.column(index).cast(pa.string()).cast(pa.float64()))
        return table.to_pylist()

    def _table(self, rows: Iterable[Sequence[str]]) -> bytes:
        if self._format != "csv":
            return "".join("\t".join(cell.translate(_ESCAPES) for cell in row) + "\n" for row in rows).encode()
        stream = io.StringIO(newline="")
        # Only with \r\n as line end does the csv module of Python 3.11 quote a cell with a \r.
        writer = csv.writer(_UnixLines(stream), lineterminator="\r\n")
        writer.writerows(rows)
        return stream.getvalue().encode()


_ESCAPES = str.maketrans({"\t": "\\t", "\n": "\\n", "\r": "\\r"})


class _UnixLines(NamedTuple):
    stream: io.StringIO

    def write(self, row: str) -> int:
        return self.stream.write(row.removesuffix("\r\n") + "\n")


def _shortest(values: Any) -> list[Any]:
    """Numbers with as few digits as tell them apart in float32.

    >>> _shortest(np.array([0.1], np.float32))
    [0.1]
    """
    return values.astype(str).astype(np.float64).tolist() if isinstance(values, np.ndarray) else list(values)


def _cell(value: object) -> str:
    return value if isinstance(value, str) else "" if value is None else _json(value)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=_plain)


def _plain(value: object) -> str:
    """What stands in JSON for a value that JSON has not: base64 for bytes, else its text."""
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


def _unknown_column(row: Row, layout: Layout) -> str | None:
    unknown = [column for column in row.record if column not in layout.columns]
    return f"has a column {unknown[0]!r}, which none of the first rows has" if unknown else None


class ParquetWriter:
    """Writes Parquet: a part is a file of its own, and becomes a row group of the file.

    Columns of Parquet keep their types and those of CSV and lines are text. A column of JSONL has the type that its
    values have in the first rows; where they have several, or are lists or objects, they are kept as JSON text.
    """

    def __init__(self, layout: Layout, added: Sequence[str], row_column: str | None) -> None:
        pa, self._parquet = _pyarrow()
        self._layout = layout
        if layout.format == "parquet":
            self._input = layout.schema
        else:
            kinds = layout.schema or dict.fromkeys(layout.columns, "string")
            self._input = pa.schema({column: pa.type_for_alias(kind) for column, kind in kinds.items()})
        self._schema = self._input
        for index, name in enumerate(added):
            self._schema = self._schema.append(pa.field(name, pa.float32() if index else pa.string()))
        if row_column is not None:
            self._schema = self._schema.append(pa.field(row_column, pa.int64()))

    def error(self, row: Row) -> str | None:
        """Why the row cannot stand in such a file with the others."""
        if self._layout.format != "jsonl":
            return None
        for column, kind in self._layout.schema.items():
            value = row.record.get(column)
            if value is not None and not _fits(value, kind):
                return f"has {_cell(value)[:40]} in the column {column!r}, which holds {kind} in the first rows"
        return _unknown_column(row, self._layout)

    def encode(self, rows: Sequence[Row], added: Mapping[str, Any]) -> bytes:
        """A part: the rows, with a column of as many values for each of the names in `added`."""
        pa, _ = _pyarrow()
        if self._layout.format == "parquet":
            columns = _gather(rows, self._input).columns
        else:
            columns = [_array(pa, [row.record.get(field.name) for row in rows], field.type) for field in self._input]
        arrays = [
            pa.array(values, field.type) for values, field in zip(added.values(), self._added_fields(), strict=True)
        ]
        stream = io.BytesIO()
        self._parquet.write_table(pa.table([*columns, *arrays], schema=self._schema), stream)
        return stream.getvalue()

    def join(self, parts: Iterable[Path], stream: BinaryIO) -> None:
        """Writes the file that the parts make."""
        with self._parquet.ParquetWriter(stream, self._schema) as writer:
            for part in parts:
                table = self._parquet.ParquetFile(part).read()
                if table.num_rows:
                    writer.write_table(table)

    def _added_fields(self) -> list[Any]:
        return [*self._schema][len(self._input) :]


Writer = TextWriter | ParquetWriter


def open_writer(form: str, layout: Layout, added: Sequence[str], *, row_column: str | None = None) -> Writer:
    """What writes the rows of a file in a format, with the names of the columns that are added: a text, then numbers.

    `row_column` is one more, of whole numbers.

    Raises:
        ImportError: Parquet, and pyarrow is not installed; the message has the command.
    """
    if form == "parquet":
        return ParquetWriter(layout, added, row_column)
    return TextWriter(form, layout, added if row_column is None else (*added, row_column))


def _fits(value: object, kind: str) -> bool:
    match kind:
        case "bool":
            return type(value) is bool
        case "int64":
            return type(value) is int and -(2**63) <= value < 2**63
        case "double":
            return type(value) is float or (type(value) is int and abs(value) <= 2**53)
    return True


def _array(pa: Any, values: list[Any], kind: Any) -> Any:
    if kind == pa.string():
        values = [value if value is None else _cell(value) for value in values]
    return pa.array(values, kind)


def _gather(rows: Iterable[Row], schema: Any) -> Any:
    """The records of Parquet rows as one table."""
    pa, _ = _pyarrow()
    batches = []
    for _, group in itertools.groupby((row.record for row in rows), key=lambda cell: id(cell.batch)):
        cells = [*group]
        batches.append(cells[0].batch.take(pa.array([cell.place for cell in cells])))
    return pa.Table.from_batches(batches, schema)
