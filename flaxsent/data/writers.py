"""Records with more columns → parts, and parts → files: the way back from `records.py`."""

import base64
import csv
import io
import itertools
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from flaxsent.data.records import Layout, Record, _pyarrow


class TextWriter:
    r"""Writes lines, CSV, TSV or JSONL: the parts are the rows, and a file is a header and the parts.

    Where a cell has another type than text, it is written as JSON is. In .txt and .tsv files, tabs and line ends of
    cells are written as `\t`, `\n` and `\r`; a .txt file is a TSV without a header, so line n is row n.
    """

    def __init__(self, form: str, layout: Layout, added: Sequence[str]) -> None:
        self._format, self._layout, self._added = form, layout, added
        has_header = form in ("csv", "tsv")
        self._header = self._table([[*layout.columns, *added]]) if has_header else b""

    def error(self, row: Record) -> str | None:
        """Why the row cannot stand in such a file with the others."""
        if self._layout.format != "jsonl":
            return None
        if self._format != "jsonl":
            return _unknown_column(row, self._layout)
        taken = [column for column in self._added if column in row.record]
        return f"has a column {taken[0]!r} already" if taken else None

    def encode(self, rows: Sequence[Record], added: Mapping[str, Any]) -> bytes:
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

    def _records(self, rows: Sequence[Record]) -> list[dict[str, Any]]:
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


def _unknown_column(row: Record, layout: Layout) -> str | None:
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

    def error(self, row: Record) -> str | None:
        """Why the row cannot stand in such a file with the others."""
        if self._layout.format != "jsonl":
            return None
        for column, kind in self._layout.schema.items():
            value = row.record.get(column)
            if value is not None and not _fits(value, kind):
                return f"has {_cell(value)[:40]} in the column {column!r}, which holds {kind} in the first rows"
        return _unknown_column(row, self._layout)

    def encode(self, rows: Sequence[Record], added: Mapping[str, Any]) -> bytes:
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


def _gather(rows: Iterable[Record], schema: Any) -> Any:
    """The records of Parquet rows as one table."""
    pa, _ = _pyarrow()
    batches = []
    for _, group in itertools.groupby((row.record for row in rows), key=lambda cell: id(cell.batch)):
        cells = [*group]
        batches.append(cells[0].batch.take(pa.array([cell.place for cell in cells])))
    return pa.Table.from_batches(batches, schema)
