"""Records with more columns → parts, and parts → a file: the way back from `records.py`.

JSONL and Parquet are written whatever the input is; .txt, .csv and .tsv where the input is one of these three.
"""

import base64
import csv
import io
import json
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np

from flaxsent.base import FlaxsentError
from flaxsent.data.base import FORMATS, SUFFIXES, Layout, Record
from flaxsent.data.parquet import gather, pyarrow, with_leaves

ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})
r"""How cells are written in .txt and .tsv: `cell.translate(ESCAPES)` has no tab and no line end, and can be undone."""

_ESCAPES_OF_LINES = {ord(end): ESCAPES[ord(end)] for end in "\t\n\r"}
"""Where the input is such a file, too: its backslashes stay as they are."""


class TextWriter:
    """Writes lines, CSV, TSV or JSONL: a part is some of the records, and a file is a header and the parts.

    A .txt file is a TSV without a header, so that line n is record n; a table that had no header gets none.
    """

    def __init__(self, form: str, layout: Layout, added: Sequence[str]) -> None:
        self._format, self._layout, self._added = form, layout, added
        self._escapes = _ESCAPES_OF_LINES if layout.format in ("lines", "tsv") else ESCAPES
        has_header = form in ("csv", "tsv") and layout.header != ()
        self._header = self._table([[*(layout.header or layout.columns), *added]]) if has_header else b""

    def error(self, record: Record) -> str | None:
        """Why a record cannot be written with the others."""
        if self._layout.format != "jsonl":
            return None
        taken = [column for column in self._added if column in record.columns]
        return f"has a column {taken[0]!r} already" if taken else None

    def encode(self, records: Sequence[Record], added: Mapping[str, Any]) -> bytes:
        """A part: the records, with a column of as many values for each of the names in `added`.

        Raises:
            ValueError: a number in `added` is not finite.
            FlaxsentError: a text of Parquet that is to be JSON is not UTF-8.
        """
        _check_finite(added)
        values = zip(*map(_shortest, added.values()), strict=True)
        if self._format != "jsonl":
            names = self._layout.columns
            cells = zip(records, values, strict=True)
            return self._table([[*map(record.columns.get, names), *map(_text, new)] for record, new in cells])
        lines = []
        for old, new in zip(self._json_records(records), values, strict=True):
            ending = json.dumps(dict(zip(added, new, strict=True)), ensure_ascii=False, allow_nan=False)
            lines.append(f"{old[:-1].rstrip()}, {ending[1:]}\n")
        return "".join(lines).encode()

    def join(self, parts: Iterable[Path], stream: BinaryIO) -> None:
        """Writes the file that the parts make."""
        stream.write(self._header)
        for part in parts:
            with open(part, "rb") as content:
                shutil.copyfileobj(content, stream)

    def _json_records(self, records: Sequence[Record]) -> Iterable[str]:
        match self._layout.format:
            case "jsonl":  # stays as it is, to the byte
                return [record.raw for record in records]
            case "parquet":
                table = _plain_table(gather(records, self._layout.schema))
                try:
                    return map(_json, table.rename_columns([*self._layout.columns]).to_pylist())
                except UnicodeDecodeError as err:
                    raise FlaxsentError(
                        f"a column of the Parquet file has text that is not UTF-8 ({err.object[:20]!r}), and JSON has "
                        "no other; name an output that ends in .parquet, which keeps it."
                    ) from err
            case _:
                return [_json(record.columns) for record in records]

    def _table(self, rows: Iterable[Sequence[str]]) -> bytes:
        if self._format != "csv":
            return "".join("\t".join(cell.translate(self._escapes) for cell in row) + "\n" for row in rows).encode()
        stream = io.StringIO(newline="")
        # Only with \r\n as line end does the csv module of Python 3.11 quote a cell with a \r.
        writer = csv.writer(_UnixLines(stream), lineterminator="\r\n")
        writer.writerows(rows)
        return stream.getvalue().encode()


class _UnixLines(NamedTuple):
    stream: io.StringIO

    def write(self, row: str) -> int:
        return self.stream.write(row.removesuffix("\r\n") + "\n")


def _plain_table(table: Any) -> Any:
    """With text for what Python has not: nanoseconds, and float32, whose shortest digits are the text's."""
    pa, _ = pyarrow()

    def as_text(kind: Any) -> Any:
        is_text = pa.types.is_temporal(kind) or pa.types.is_decimal(kind) or pa.types.is_float32(kind)
        return pa.string() if is_text else kind

    def as_number(kind: Any) -> Any:
        return pa.float64() if pa.types.is_float32(kind) else as_text(kind)

    for index, field in enumerate(table.schema):
        text, plain = (with_leaves(field.type, change) for change in (as_text, as_number))
        if plain != field.type:
            table = table.set_column(index, field.name, table.column(index).cast(text).cast(plain))
    return table


def _check_finite(added: Mapping[str, Any]) -> None:
    for name, values in added.items():
        if isinstance(values, np.ndarray) and not np.isfinite(values).all():
            raise ValueError(
                f"the column {name!r} has a number that is not finite; whoever computes it must refuse it."
            )


def _shortest(values: Any) -> Iterable[Any]:
    """Numbers, or lists of them, with as few digits as tell them apart in float32.

    >>> _shortest(np.array([0.1], np.float32)), [*_shortest(np.array([[0.1, 0.2]], np.float32))]
    ([0.1], [[0.1, 0.2]])
    """
    if isinstance(values, np.ndarray) and values.ndim == 2:
        return map(_shortest, values)  # one by one: as text, a number takes 128 bytes
    return values.astype(str).astype(np.float64).tolist() if isinstance(values, np.ndarray) else list(values)


def _json(value: object) -> str:
    """An input's value as JSON: base64 for bytes, null for NaN and infinity, and text for what else JSON has not."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain)
    except ValueError:
        return json.dumps(_without_nan(value), ensure_ascii=False, allow_nan=False, default=_plain)


def _plain(value: object) -> str:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


def _without_nan(value: Any) -> Any:
    match value:
        case dict():
            return {key: _without_nan(one) for key, one in value.items()}
        case list() | tuple():
            return [_without_nan(one) for one in value]
        case float() if not math.isfinite(value):
            return None
    return value


def _text(value: object) -> str:
    """An added value as a cell of text: JSON for a list, nothing for None."""
    return "" if value is None else json.dumps(value, ensure_ascii=False) if isinstance(value, list) else str(value)


Kind = Literal["text", "texts", "number", "numbers", "integer"]
"""What an added column holds; of the plural ones each cell is a list, in text formats as JSON."""


class ParquetWriter:
    """Writes Parquet: a part is a file of its own, and becomes a row group of the file.

    The columns of a Parquet input keep their types, and those of a CSV, TSV or .txt are text. A JSONL column has the
    type of its values in the first records; where these differ, or are lists or objects, it holds JSON text.
    """

    def __init__(self, layout: Layout, added: Sequence[str], row_column: str | None, kinds: Mapping[str, Kind]) -> None:
        pa, self._parquet = pyarrow()
        self._layout = layout
        if layout.format == "parquet":
            self._input = layout.schema
        else:
            own = layout.schema or dict.fromkeys(layout.columns, "string")
            self._input = pa.schema({column: pa.type_for_alias(kind) for column, kind in own.items()})
        types = {"text": pa.string(), "number": pa.float32(), "integer": pa.int64()}
        types |= {"texts": pa.list_(types["text"]), "numbers": pa.list_(types["number"])}
        self._added = [pa.field(name, types[kinds.get(name, "number")]) for name in added]
        if row_column is not None:
            self._added.append(pa.field(row_column, pa.int64()))
        self._schema = pa.schema([*self._input, *self._added], self._input.metadata)

    def error(self, record: Record) -> str | None:
        """Why a record cannot be written with the others."""
        if self._layout.format != "jsonl":
            return None
        for column, kind in self._layout.schema.items():
            value = record.columns.get(column)
            if value is not None and not _fits(value, kind):
                return f"has {_cell(value)[:40]} in the column {column!r}, which holds {kind} in the first rows"
        unknown = [column for column in record.columns if column not in self._layout.columns]
        return f"has a column {unknown[0]!r}, which none of the first rows has" if unknown else None

    def encode(self, records: Sequence[Record], added: Mapping[str, Any]) -> bytes:
        """A part: the records, with a column of as many values for each of the names in `added`.

        Raises:
            ValueError: a number in `added` is not finite.
        """
        pa, _ = pyarrow()
        _check_finite(added)
        if self._layout.format == "parquet":
            columns = gather(records, self._input).columns
        else:
            columns = [_array([record.columns.get(field.name) for record in records], field) for field in self._input]
        # Of a table of numbers, Arrow takes the rows one by one.
        new = [
            [*values] if isinstance(values, np.ndarray) and values.ndim == 2 else values for values in added.values()
        ]
        arrays = [pa.array(values, field.type) for values, field in zip(new, self._added, strict=True)]
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


def _fits(value: object, kind: str) -> bool:
    match kind:
        case "bool":
            return type(value) is bool
        case "int64":
            return type(value) is int and -(2**63) <= value < 2**63
        case "double":
            return type(value) is float or (type(value) is int and abs(value) <= 2**53)
    return True


def _array(values: list[Any], field: Any) -> Any:
    pa, _ = pyarrow()
    if field.type == pa.string():
        values = [value if value is None else _cell(value) for value in values]
    return pa.array(values, field.type)


def _cell(value: object) -> str:
    return value if isinstance(value, str) else _json(value)


Writer = TextWriter | ParquetWriter

_TEXT_FORMATS = ("lines", "csv", "tsv")
"""Every cell is text in them, so that each can hold what another has."""


def open_writer(
    form: str,
    layout: Layout,
    added: Sequence[str],
    *,
    row_column: str | None = None,
    lists: Sequence[str] = (),
    kinds: Mapping[str, Kind] | None = None,
) -> Writer:
    """What writes the records of a file in a format.

    Args:
        form: the format of the output, as `format_of` gives it.
        layout: the input's.
        added: names of the columns that are added.
        row_column: name of one more added column, of whole numbers.
        lists: which of the added columns hold vectors: lists of numbers that no text format should hold.
        kinds: what the added columns hold; where it is not said, the first one text, and the others numbers.

    Raises:
        MissingPackageError: Parquet, and pyarrow is not installed; the message has the command.
        FlaxsentError: the input, or a list, cannot be written in this format.
    """
    allowed = [one for one in FORMATS.values() if one in ("jsonl", "parquet") or layout.format in _TEXT_FORMATS]
    if form not in allowed:
        raise FlaxsentError(
            f"a {SUFFIXES[layout.format]} input cannot be written as {SUFFIXES[form]}; name an output that ends in "
            f"{' or '.join(SUFFIXES[one] for one in allowed)}."
        )
    if lists and form in _TEXT_FORMATS:
        raise FlaxsentError(
            f"{SUFFIXES[form]} has no lists, such as the column {lists[0]!r} holds; name an output that ends in "
            ".jsonl or .parquet."
        )
    if form == "parquet":
        default: dict[str, Kind] = {}
        for name in added:
            default[name] = "numbers" if name in lists else "text" if name == added[0] else "number"
        default.update(kinds or {})
        return ParquetWriter(layout, added, row_column, default)
    return TextWriter(form, layout, added if row_column is None else (*added, row_column))
