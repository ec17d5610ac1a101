"""Tables in memory → records: of pandas, polars, pyarrow and what else gives Arrow streams, and of `datasets`.

They come through the Arrow PyCapsule interface (`__arrow_c_stream__`), so none of these packages is imported.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from flaxsent import files
from flaxsent.base import FlaxsentError
from flaxsent.data.base import Layout, Source, check_columns
from flaxsent.data.parquet import check_texts, layout_of, records_of

_BATCH_SIZE = 256
"""Records that are made at once."""


def is_table(source: Any) -> bool:
    """Whether it is a table, or several by name, as `datasets` has splits; a column of one is none."""
    if isinstance(source, Mapping):
        return any(map(is_table, source.values()))
    if _is_dataset(source):
        return True
    has_names = any(hasattr(source, name) for name in ("columns", "column_names", "schema"))
    return hasattr(source, "__arrow_c_stream__") and (has_names or not hasattr(source, "__iter__"))


def _is_dataset(source: Any) -> bool:
    """Of `datasets`, in memory, on the disk or streamed."""
    return all(hasattr(source, name) for name in ("with_format", "select_columns", "iter"))


def elements(column: Any) -> Iterable[Any]:
    """The values of a column, or of a list, as Python has them: Arrow's own are no str.

    Raises:
        TypeError: a table, whose elements are its columns.
    """
    if is_table(column):
        raise TypeError(
            "expected texts, got a table; pass its column, table['text'], or to classify and fit the names of columns."
        )
    if not hasattr(column, "to_pylist"):
        return column
    return itertools.chain.from_iterable(
        chunk[start : start + _BATCH_SIZE].to_pylist()
        for chunk in getattr(column, "chunks", [column])
        for start in range(0, len(chunk), _BATCH_SIZE)
    )


def open_table(table: Any, text_columns: Sequence[str], other_columns: Sequence[str]) -> Source:
    """The records of a table; rows count from 1.

    Raises:
        MissingPackageError: pyarrow is not installed; the message has the command.
        FlaxsentError: a column is missing or there twice, or its values are of no one kind.
    """
    if isinstance(table, Mapping):
        names = ", ".join(map(str, table))
        raise FlaxsentError(f"expected one table, got several: {names}; pass one of them, data[{next(iter(table))!r}].")
    wanted = (*text_columns, *other_columns)
    schema, batches = _dataset(table, wanted) if _is_dataset(table) else _stream(table, wanted)
    layout = layout_of(schema)
    check_columns("the table", layout, wanted)
    check_texts("the table", schema, text_columns)
    num_read = [0]
    return Source(layout, records_of(batches, text_columns, num_read), lambda: 0)


def _pyarrow() -> Any:
    return files.require("pyarrow", needed_by="a table", extra="data")


def _dataset(dataset: Any, wanted: Sequence[str]) -> tuple[Any, Iterator[Any]]:
    pa = _pyarrow()
    _check_names(dataset.column_names, wanted)
    tables = iter(dataset.select_columns([*dict.fromkeys(wanted)]).with_format("arrow").iter(batch_size=_BATCH_SIZE))
    first = next(tables, None)
    if first is None:
        return pa.schema([(name, pa.null()) for name in dict.fromkeys(wanted)]), iter(())

    def batches() -> Iterator[Any]:
        yield from first.to_batches()
        for one in tables:
            yield from one.to_batches()

    return first.schema, batches()


def _stream(table: Any, wanted: Sequence[str]) -> tuple[Any, Iterator[Any]]:
    pa = _pyarrow()
    if hasattr(table, "iloc"):  # pandas refuses a whole table where any column has values of several kinds
        names = [*map(str, table.columns)]
        _check_names(names, wanted)
        table = table.iloc[:, [names.index(column) for column in dict.fromkeys(wanted)]]
    try:
        reader = pa.RecordBatchReader.from_stream(table)
    except (pa.ArrowException, TypeError, ValueError) as err:  # pyarrow's and pandas' own
        raise FlaxsentError(
            f"the table cannot be read: {err}; expected columns that hold values of one kind, such as "
            "table[column].astype(str)."
        ) from err
    return reader.schema, _sliced(reader)


def _sliced(reader: Iterable[Any]) -> Iterator[Any]:
    """Batches of a few records: those of a table in memory may be as long as it is."""
    for batch in reader:
        for start in range(0, batch.num_rows, _BATCH_SIZE):
            yield batch.slice(start, _BATCH_SIZE)


def _check_names(names: Sequence[str] | None, wanted: Sequence[str]) -> None:
    if names is not None:  # a stream may not know them before it begins
        check_columns("the table", Layout("parquet", tuple(names), None), wanted)
