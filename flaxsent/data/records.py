"""A file or a table → a stream of `Record`s, each with its text and its columns.

A file holds lines, CSV, TSV, JSONL or Parquet; a table is an object in memory (`tables.py`). A broken record says what
is wrong with it, and the next one comes. `text_files.py` and `parquet.py` know the formats.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

from flaxsent.base import FlaxsentError, Text, Texts
from flaxsent.data.bad_rows import BadRows
from flaxsent.data.base import (
    FORMATS,
    STDIN,
    SUFFIXES,
    Group,
    Layout,
    Reading,
    Record,
    Source,
    check_columns,
    compression_of,
    format_of,
)
from flaxsent.data.parquet import ParquetReader, open_parquet
from flaxsent.data.streams import open_lines
from flaxsent.data.tables import is_table, open_table
from flaxsent.data.text_files import open_text

__all__ = [
    "FORMATS", "STDIN", "SUFFIXES", "Group", "Layout", "ParquetReader", "Reading", "Record", "Source", "check_columns",
    "compression_of", "format_of", "name_of", "open_parquet", "read", "read_texts", "texts_of",
]  # fmt: skip


def name_of(source: Any) -> str:
    """A file, standard input or a table in a message."""
    return "the table" if is_table(source) else "standard input" if source == STDIN else str(source)


def read_texts(
    source: Any,
    text_columns: Sequence[str] = ("text",),
    *,
    reading: Reading | None = None,
    bad_rows: BadRows | None = None,
) -> list[Text]:
    """Reads all the texts of a file or a table.

    Raises: as `read`, and
        FlaxsentError: a record is broken (the message has its number) and there are no `bad_rows`; or there is none.
    """
    texts = []
    found = BadRows() if bad_rows is None else bad_rows
    with read(source, text_columns=text_columns, reading=reading) as opened:
        for record in opened.records:
            if record.error is None:
                texts.append(record.text)
            else:
                found.add(name_of(source), record)
    if bad_rows is None:
        found.check()
    if not texts:
        raise found.no_rows_error(name_of(source))
    return texts


def texts_of(source: Any, text_columns: Sequence[str] = ("text",)) -> Texts:
    """The texts of a table one by one, or pairs of two columns; what is no table stays as it is.

    Raises: as `read_texts`, when it comes to it.
    """
    return _texts(source, text_columns) if is_table(source) else source


def _texts(table: Any, text_columns: Sequence[str]) -> Iterator[Text]:
    with read(table, text_columns=text_columns) as opened:
        for record in opened.records:
            if record.error is not None:
                raise FlaxsentError(f"{name_of(table)} row {record.number} {record.error}.")
            yield record.text


@contextlib.contextmanager
def read(
    source: Any,
    *,
    text_columns: Sequence[str],
    other_columns: Sequence[str] = (),
    groups: range | None = None,
    reading: Reading | None = None,
) -> Iterator[Source]:
    """Opens a file, standard input or a table; the text of a record is one column, or a pair of two.

    A line of a .txt file is a record with one column, whose name is the one asked for. In a TSV, as GLUE has it, a
    quotation mark is a character like any other. An empty line of a .txt file is an empty text; in CSV, TSV and JSONL
    it is no record. An empty cell of a CSV or TSV is a missing text, as null is in JSONL and Parquet.

    Args:
        source: a file, whose suffix says the format, and a second one (.gz, .bz2, .zst) the compression; or a table of
            pandas, polars, pyarrow or `datasets`.
        text_columns: one name, or two for pairs.
        other_columns: what else must be there; of a table, others are not read.
        groups: the row groups of a Parquet file to read; records keep their numbers. For many ranges of one file,
            `open_parquet` opens it once.
        reading: how a file is read, where that is not as its suffix says.

    Raises:
        FileNotFoundError: no such file.
        MissingPackageError: Parquet, a table or .zst, and pyarrow is not installed; the message has the command.
        TypeError: the source is neither a file nor a table, or names of columns are one str.
        FlaxsentError: the file is not of its format, or lacks a column that is asked for.
    """
    for columns in (text_columns, other_columns):
        if isinstance(columns, str):
            raise TypeError(f"expected the names of columns, got one str: {columns!r}; pass ({columns!r},).")
    wanted = (*text_columns, *other_columns)
    if is_table(source):
        yield open_table(source, text_columns, other_columns)
        return
    if not isinstance(source, str | os.PathLike):
        raise TypeError(f"expected a file or a table, got one of type {type(source).__name__}.")
    file = str(os.fspath(source))
    reading = Reading() if reading is None else reading
    form = reading.format_of(file)
    if form == "parquet":
        if file == STDIN:
            raise FlaxsentError("standard input cannot be read as Parquet, whose end says what is in it; give a file.")
        with open_parquet(file, text_columns) as reader:
            check_columns(file, reader.layout, wanted)
            yield reader.source(groups)
        return
    with open_lines(file, reading) as (lines, opened):
        name = name_of(file)
        is_stream = file == STDIN
        layout, records = open_text(lines, form, text_columns, name=name, reading=reading, is_stream=is_stream)
        check_columns(name, layout, wanted)
        yield Source(layout, records, lambda: opened.position)
