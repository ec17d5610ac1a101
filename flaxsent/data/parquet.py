"""Parquet → records, from any range of row groups, with the numbers that they have in the whole file."""

import contextlib
import functools
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flaxsent import files
from flaxsent.base import FlaxsentError
from flaxsent.data.base import NOT_UTF8, Group, Layout, Record, Source, check_columns, distinct, text_error, text_of

_BATCH_SIZE = 256
"""Records that are read at once."""


class Cells(NamedTuple):
    """The cells of a Parquet record, by where they are in a batch: most of them never become Python values."""

    batch: Any
    offset: int

    def get(self, column: str) -> Any:
        """A cell as a Python value.

        Raises:
            UnicodeDecodeError: text that is not UTF-8.
            ValueError: Python has no such value, as a time with nanoseconds.
        """
        pa, _ = pyarrow()
        # By its place: names that nobody asks for may be there twice.
        scalar = self.batch.column(self.batch.schema.names.index(column))[self.offset]
        if pa.types.is_float32(scalar.type) and scalar.is_valid:
            return float(scalar.cast(pa.string()).as_py())  # 0.1, not 0.10000000149011612
        return scalar.as_py()


def gather(records: Iterable[Record], schema: Any) -> Any:
    """Parquet records as one table with the schema of their layout."""
    pa, _ = pyarrow()
    batches = []
    for _, group in itertools.groupby((record.columns for record in records), key=lambda cells: id(cells.batch)):
        cells = [*group]
        batch = cells[0].batch if cells[0].batch.schema.equals(schema) else cells[0].batch.cast(schema)
        batches.append(batch.take(pa.array([cell.offset for cell in cells])))
    return pa.Table.from_batches(batches, schema)


class ParquetReader:
    """An open Parquet file; `open_parquet` gives one."""

    def __init__(self, path: Path, file: Any, footer: "_Footer", text_columns: Sequence[str]) -> None:
        self.layout = layout_of(file.schema_arrow)
        self._path, self._file, self._footer, self._text_columns = path, file, footer, text_columns

    @functools.cached_property
    def groups(self) -> tuple[Group, ...]:
        """The row groups, in order."""
        metadata = self._footer.metadata
        columns = [
            index for index in range(metadata.num_columns) if metadata.schema.column(index).path in self._text_columns
        ]
        groups = (metadata.row_group(index) for index in range(metadata.num_row_groups))
        return tuple(
            Group(group.num_rows, sum(group.column(index).total_uncompressed_size for index in columns))
            for group in groups
        )

    def records(self, groups: range | None = None) -> Iterator[Record]:
        """The records of a range of row groups, or of the whole file.

        Raises:
            FlaxsentError: the file is damaged.
        """
        return self.source(groups).records

    def source(self, groups: range | None = None) -> Source:
        """The same, with how far the reading is."""
        chosen = range(self._footer.metadata.num_row_groups) if groups is None else groups
        first = self._footer.num_before[chosen.start]
        num_read = [first]
        num_rows = max(self._footer.metadata.num_rows, 1)
        return Source(
            self.layout,
            self._read(chosen, num_read),
            lambda: self._footer.size * (num_read[0] - first) // num_rows,
            self.groups if groups is None else None,
        )

    def _read(self, groups: range, num_read: list[int]) -> Iterator[Record]:
        pa, _ = pyarrow()
        try:
            batches = self._file.iter_batches(batch_size=_BATCH_SIZE, row_groups=[*groups])
            yield from records_of(batches, self._text_columns, num_read)
        except (pa.ArrowException, OSError) as err:
            raise FlaxsentError(f"{self._path} is damaged after row {num_read[0]}: {err}; fetch it again.") from err


def layout_of(schema: Any) -> Layout:
    pa, _ = pyarrow()
    plain = pa.schema([field.with_type(with_leaves(field.type, _without_views)) for field in schema], schema.metadata)
    return Layout("parquet", distinct(schema.names), plain, tuple(schema.names) or None)


def _without_views(kind: Any) -> Any:
    """The type that holds the same values and no views, of which pyarrow cannot take some."""
    pa, _ = pyarrow()
    return {pa.string_view(): pa.large_string(), pa.binary_view(): pa.large_binary()}.get(kind, kind)


def with_leaves(kind: Any, change: Callable[[Any], Any]) -> Any:
    """The type with other types in the place of those in it that hold no others."""
    pa, _ = pyarrow()
    if not kind.num_fields:
        return change(kind)
    fields = [kind.field(index) for index in range(kind.num_fields)]
    fields = [field.with_type(with_leaves(field.type, change)) for field in fields]
    if pa.types.is_struct(kind):
        return pa.struct(fields)
    if pa.types.is_map(kind):
        return pa.map_(*fields[0].type, kind.keys_sorted)
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(fields[0], kind.list_size)
    if pa.types.is_large_list(kind):
        return pa.large_list(fields[0])
    return pa.list_(fields[0]) if pa.types.is_list(kind) else kind


def records_of(batches: Iterable[Any], names: Sequence[str], num_read: list[int]) -> Iterator[Record]:
    """The records of Arrow's batches, with the texts of these columns; `num_read` moves along."""
    pa, _ = pyarrow()
    for batch in batches:
        # As bytes: pyarrow takes strings from a file unchecked.
        columns = [batch.column(batch.schema.names.index(name)) for name in names]
        columns = [column.cast(pa.string()).cast(pa.binary()).to_pylist() for column in columns]
        size = batch.nbytes // max(batch.num_rows, 1)
        for offset, parts in enumerate(zip(*columns, strict=True)):
            num_read[0] += 1
            values: list[Any] = []
            try:
                values = [part if part is None else part.decode() for part in parts]
                error = text_error(values, names)
            except UnicodeDecodeError:
                error = NOT_UTF8
            if error is None:
                yield Record(num_read[0], text_of(values), Cells(batch, offset), size=size)
            else:
                yield Record(num_read[0], size=size, error=error)


def check_texts(file: str, schema: Any, text_columns: Sequence[str]) -> None:
    """Raises FlaxsentError where a column of texts, which is there, has values of another type."""
    pa, _ = pyarrow()
    for column in text_columns:
        kind = schema.field(schema.names.index(column)).type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        if kind not in (pa.string(), pa.large_string(), pa.string_view(), pa.null()):
            raise FlaxsentError(f"{file} has values of type {kind} in the column {column!r}; expected text.")


def class_names(layout: Layout, column: str) -> tuple[str, ...] | None:
    """The names of the classes that a column holds the numbers of, where the `datasets` library has written them."""
    metadata = getattr(layout.schema, "metadata", None) or {}
    try:
        feature = json.loads(metadata[b"huggingface"])["info"]["features"][column]
        while "names" not in feature:  # of a list of classes
            feature = feature[0] if isinstance(feature, list) else feature["feature"]
        names = feature["names"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        return None
    is_good = isinstance(names, list) and names and all(isinstance(name, str) for name in names)
    return tuple(names) if is_good else None


@contextlib.contextmanager
def open_parquet(file: str | Path, text_columns: Sequence[str]) -> Iterator[ParquetReader]:
    """Opens a Parquet file once, for reading any of its row groups.

    Raises:
        FileNotFoundError: no such file.
        MissingPackageError: pyarrow is not installed; the message has the command.
        FlaxsentError: it is not a Parquet file, or lacks a column of text that is asked for.
    """
    pa, pq = pyarrow()
    path = Path(file)
    with open(path, "rb") as stream:
        try:
            status = os.fstat(stream.fileno())
            footer = _footer(path.resolve(), status.st_mtime_ns, status.st_size)
            # Without a buffer, a column of a row group would be read whole.
            opened = pq.ParquetFile(stream, metadata=footer.metadata, buffer_size=1 << 20)
        except (pa.ArrowException, OSError) as err:
            raise FlaxsentError(f"{path} is not a Parquet file: {err}; fetch it again.") from err
        check_columns(str(path), layout_of(opened.schema_arrow), text_columns)
        check_texts(str(path), opened.schema_arrow, text_columns)
        yield ParquetReader(path, opened, footer, text_columns)


class _Footer(NamedTuple):
    """What a Parquet file says of itself at its end."""

    metadata: Any
    size: int
    num_before: tuple[int, ...]
    """How many records are before each row group, and in the whole file."""


@functools.lru_cache(maxsize=1)
def _footer(path: Path, mtime_ns: int, size: int) -> _Footer:
    """Kept for whoever reads one file in many pieces: the footer is as long as the file has row groups."""
    _, pq = pyarrow()
    metadata = pq.read_metadata(path)
    counts = (metadata.row_group(index).num_rows for index in range(metadata.num_row_groups))
    return _Footer(metadata, size, (0, *itertools.accumulate(counts)))


def pyarrow() -> tuple[Any, Any]:
    """The modules pyarrow and pyarrow.parquet.

    Raises:
        MissingPackageError: it is not installed; the message has the command.
    """
    parquet = files.require("pyarrow.parquet", needed_by="a Parquet file", extra="data")
    return files.require("pyarrow", needed_by="a Parquet file", extra="data"), parquet
