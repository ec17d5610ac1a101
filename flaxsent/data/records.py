"""A file → a stream of `Record`s, each with its text and its columns: lines, CSV, TSV, JSONL or Parquet.

A broken record says what is wrong with it, and the next one comes. `text_files.py` and `parquet.py` know the formats.
"""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from flaxsent.base import FlaxsentError, Text
from flaxsent.data.base import (
    FORMATS,
    STDIN,
    SUFFIXES,
    Group,
    Layout,
    Record,
    Source,
    check_columns,
    format_of,
)
from flaxsent.data.parquet import ParquetReader, open_parquet
from flaxsent.data.text_files import Lines, open_text

__all__ = [
    "FORMATS", "STDIN", "SUFFIXES", "Group", "Layout", "ParquetReader", "Record", "Source", "check_columns",
    "format_of", "open_parquet", "read", "read_texts",
]  # fmt: skip


def read_texts(file: str | Path, text_columns: Sequence[str] = ("text",)) -> list[Text]:
    """Reads all the texts of a file.

    Raises: as `read`, and
        FlaxsentError: a record is broken (the message has its number), or there is none.
    """
    texts = []
    with read(file, text_columns=text_columns) as source:
        for record in source.records:
            if record.error is not None:
                raise FlaxsentError(f"{file} row {record.number} {record.error}.")
            texts.append(record.text)
    if not texts:
        raise FlaxsentError(f"{file} has no rows; expected at least one.")
    return texts


@contextlib.contextmanager
def read(file: str | Path, *, text_columns: Sequence[str], groups: range | None = None) -> Iterator[Source]:
    """Opens a file, or standard input; the text of a record is one column, or a pair of two.

    A line of a .txt file is a record with one column, whose name is the one asked for. In a TSV, as GLUE has it, a
    quotation mark is a character like any other. An empty line of a .txt file is an empty text; in CSV, TSV and JSONL
    it is no record. An empty cell of a CSV or TSV is a missing text, as null is in JSONL and Parquet.

    Args:
        file: its suffix says the format.
        text_columns: one name, or two for pairs.
        groups: the row groups of a Parquet file to read; records keep their numbers. For many ranges of one file,
            `open_parquet` opens it once.

    Raises:
        FileNotFoundError: no such file.
        MissingPackageError: a Parquet file, and pyarrow is not installed; the message has the command.
        FlaxsentError: the file is not of its format, or lacks a column that is asked for.
    """
    form = "lines" if file == STDIN else format_of(file)
    if form == "parquet":
        with open_parquet(file, text_columns) as reader:
            yield reader.source(groups)
        return
    # Python cannot exit while a thread waits in sys.stdin itself.
    opened = sys.stdin.fileno() if file == STDIN else file
    with open(opened, "rb", closefd=file != STDIN) as stream:
        lines = Lines(stream)
        name = "standard input" if file == STDIN else str(file)
        layout, records = open_text(lines, form, text_columns, name=name)
        check_columns(name, layout.columns, text_columns)
        yield Source(layout, records, lambda: lines.position)
