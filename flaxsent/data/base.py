"""The words of this package: a file has a `Layout` and gives `Record`s."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flaxsent.base import FlaxsentError, Text

FORMATS = {".txt": "lines", ".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".parquet": "parquet"}
"""The format of a file, by its suffix."""

SUFFIXES = {form: suffix for suffix, form in FORMATS.items()}

STDIN = "-"
"""The name under which standard input is read, as lines."""


class Layout(NamedTuple):
    """What is known of a file before its records are read."""

    format: str
    columns: tuple[str, ...]
    """For JSONL, the keys that the first records have."""
    schema: Any
    """Parquet: the file's Arrow schema. JSONL: the kind of value in each column. None: every cell is text."""


class Record(NamedTuple):
    """A row of a table, a line of a .txt file, or what is wrong with it."""

    number: int
    """Counts from 1, as an editor or a spreadsheet does: the header and empty lines count too."""
    text: Text = ""
    """A pair where two columns were asked for."""
    columns: Any = None
    """`columns.get(name)` gives a cell: a dict, or `parquet.Cells`."""
    raw: str = ""
    """The record as it stands in the file, without its line end; empty for Parquet."""
    size: int = 0
    """Bytes of memory, roughly."""
    error: str | None = None


class Group(NamedTuple):
    """A row group of a Parquet file."""

    num_rows: int
    num_bytes: int
    """Size of the texts, uncompressed."""


class Source(NamedTuple):
    """An open file."""

    layout: Layout
    records: Iterator[Record]
    position: Callable[[], int]
    """How many bytes of the file have been read so far."""
    groups: tuple[Group, ...] | None = None
    """The row groups of a Parquet file that is read whole; each can be read by itself."""


def format_of(file: str | Path) -> str:
    """The format that the suffix of a file says.

    Raises:
        FlaxsentError: the suffix is unknown.
    """
    form = FORMATS.get(Path(file).suffix.lower())
    if form is None:
        raise FlaxsentError(f"{file}: expected a file that ends in {', '.join(FORMATS)}.")
    return form


def check_columns(file: str, columns: Sequence[str], wanted: Sequence[str]) -> None:
    """Checks that a file has the columns that are asked for.

    Raises:
        FlaxsentError: one is missing, or the file has two columns of one name.
    """
    if len(set(columns)) < len(columns):
        twice = next(column for column in columns if columns.count(column) > 1)
        raise FlaxsentError(f"{file} has the column {twice!r} twice; expected different names.")
    if not set(wanted) <= set(columns):
        raise FlaxsentError(
            f"{file} has the columns {', '.join(columns) or '(none)'}; expected {' and '.join(wanted)}."
        )


def text_error(values: Sequence[object], text_columns: Sequence[str]) -> str | None:
    """What is wrong with the cells that should be the text of a record."""
    for column, value in zip(text_columns, values, strict=True):
        if value is None:
            return f"has no text in the column {column!r}"
        if not isinstance(value, str):
            return f"has a value of type {type(value).__name__} in the column {column!r}; expected text"
    return None


def text_of(values: Sequence[Any]) -> Text:
    """One cell, or a pair of two."""
    return values[0] if len(values) == 1 else (values[0], values[1])
