"""The words of this package: a file has a `Layout` and gives `Record`s."""

import codecs
import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from flaxsent.base import FlaxsentError, Text

FORMATS = {".txt": "lines", ".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".parquet": "parquet"}
"""The format of a file, by its suffix."""

SUFFIXES = {form: suffix for suffix, form in FORMATS.items()}

COMPRESSIONS = {".gz": "gzip", ".zst": "Zstandard", ".bz2": "bzip2"}
"""What a second suffix says: reviews.csv.gz."""

STDIN = "-"
"""The name under which standard input is read, as lines unless a format is given."""

NOT_UTF8 = "is not UTF-8 text"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """How a file is read, where its suffix and what is usual do not say it right.

    Raises:
        FlaxsentError: a value that no file can be read by.
    """

    format: str | None = None
    """One of the values of `FORMATS`; by default the suffix says it."""
    delimiter: str | None = None
    """Of CSV and TSV: one character."""
    quoting: Literal["minimal", "none"] | None = None
    """By the names of the csv module: "minimal" reads quoted cells, and is usual in CSV; with "none" a quotation mark
    is a character like any other, as usual in TSV."""
    encoding: str | None = None
    """A name that Python knows; UTF-8 by default."""
    has_header: bool = True
    """Whether the first line of a CSV or TSV names the columns; else their names are their numbers, "1", "2", …"""

    def __post_init__(self) -> None:
        if self.format not in (None, *SUFFIXES):
            raise FlaxsentError(f"format={self.format!r}; expected one of {', '.join(SUFFIXES)}.")
        if self.quoting not in (None, "minimal", "none"):
            raise FlaxsentError(f"quoting={self.quoting!r}; expected minimal or none.")
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in '\r\n"'):
            raise FlaxsentError(f"delimiter={self.delimiter!r}; expected one character, which ends no line.")
        if self.encoding is not None and not _is_encoding(self.encoding):
            raise FlaxsentError(
                f"encoding={self.encoding!r} is none that Python knows; expected such as cp1252, utf-16 or gb18030."
            )

    def format_of(self, file: str | Path) -> str:
        """The format of an input, which may be compressed.

        Raises:
            FlaxsentError: neither this nor the suffix says it, or the format has nothing of what is said here.
        """
        path = Path(file)
        plain = path.with_suffix("") if compression_of(path) is not None else path
        form = self.format or ("lines" if file == STDIN else FORMATS.get(plain.suffix.lower()))
        if form is None:
            raise FlaxsentError(
                f"{file}: expected a file that ends in {', '.join(FORMATS)}, or in one of these and "
                f"{', '.join(COMPRESSIONS)}; or pass --format."
            )
        if form == "parquet" and plain is not path:
            raise FlaxsentError(f"{file}: Parquet is compressed within; decompress it first.")
        of_tables = {
            "--delimiter": self.delimiter is not None,
            "--quoting": self.quoting is not None,
            "--no-header": not self.has_header,
        }
        if form not in ("csv", "tsv") and (said := [name for name, is_said in of_tables.items() if is_said]):
            raise FlaxsentError(f"{file} is read as {form}, and {said[0]} is for CSV and TSV only; see --format.")
        if form == "parquet" and self.encoding is not None:
            raise FlaxsentError(f"{file} is read as parquet, and --encoding is for text only; see --format.")
        return form

    @property
    def codec(self) -> str:
        """The name of the encoding as Python has it."""
        return codecs.lookup(self.encoding or "utf-8").name


def _is_encoding(name: str) -> bool:
    """Whether Python can decode text by it: rot13 makes text of text."""
    with contextlib.suppress(LookupError, ValueError):
        return bool(getattr(codecs.lookup(name), "_is_text_encoding", True))
    return False


class Layout(NamedTuple):
    """What is known of a file before its records are read."""

    format: str
    columns: tuple[str, ...]
    """Names that differ. For JSONL, the keys that the first records have."""
    schema: Any
    """Parquet: the file's Arrow schema. JSONL: the kind of value in each column. None: every cell is text."""
    header: tuple[str, ...] | None = None
    """The names as they stand in the file, where two may be the same; () if a table has no header, None in formats
    that need none."""
    hint: str | None = None
    """What the file seems to be, if that is not what it is read as."""


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
    """The format that the suffix of an output says.

    Raises:
        FlaxsentError: the suffix is unknown.
    """
    form = FORMATS.get(Path(file).suffix.lower())
    if form is None:
        raise FlaxsentError(f"{file}: expected a file that ends in {', '.join(FORMATS)}.")
    return form


def compression_of(file: str | Path) -> str | None:
    """What a file is compressed by, as its suffix says."""
    return COMPRESSIONS.get(Path(file).suffix.lower())


def distinct(names: Sequence[str]) -> tuple[str, ...]:
    """Names that differ, made of names that may be the same.

    >>> distinct(["id", "", "id", "", "id.1"])
    ('id', '', 'id.2', '.1', 'id.1')
    """
    found: dict[str, None] = {}
    counts: dict[str, int] = {}
    given = {*names}
    for name in names:
        unique = name
        while unique in found or (unique != name and unique in given):
            counts[name] = counts.get(name, 0) + 1
            unique = f"{name}.{counts[name]}"
        found[unique] = None
    return tuple(found)


def check_columns(file: str, layout: Layout, wanted: Sequence[str]) -> None:
    """Checks that a file has the columns that are asked for, once each.

    Raises:
        FlaxsentError: one is missing, or is there twice.
    """
    names = layout.header or layout.columns
    for column in wanted:
        if names.count(column) > 1:
            raise FlaxsentError(f"{file} has the column {column!r} twice; expected different names.")
    if missing := [column for column in dict.fromkeys(wanted) if column not in names]:
        told = f"has the columns {_listed(names)}" if layout.header != () else _numbered(names)
        raise FlaxsentError(f"{file} {told}; expected {' and '.join(missing)}{_hint(layout, names)}.")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names if len(names) <= _MOST_NAMES else [*names[:_MOST_NAMES], "…"]) or "(none)"


_MOST_NAMES = 40
"""That a message lists."""


def _numbered(names: Sequence[str]) -> str:
    return f"has no header, and the columns 1 to {len(names)}" if names else "has no rows"


def _hint(layout: Layout, names: Sequence[str]) -> str:
    """What may be wrong with how a file was read that lacks a column."""
    if layout.hint is not None:
        return f"; {layout.hint}"
    if layout.format in ("csv", "tsv") and len(names) == 1 and layout.header:
        for delimiter in ("\t", ";", "|", ","):
            if delimiter in names[0]:
                advice = {"\t": "--format tsv", ",": "--format csv"}.get(delimiter, f"--delimiter {delimiter!r}")
                return f"; it has {'tabs' if delimiter == chr(9) else repr(delimiter)} in its header: pass {advice}"
    return ""


def remedy(record: Record) -> str:
    """What to do about a broken record, where that is known: as the end of a sentence, or nothing."""
    if record.error is None or NOT_UTF8 not in record.error or not record.raw:
        return ""
    content = record.raw.encode(errors="surrogateescape")
    # Western texts have few letters that ASCII has not; Cyrillic and East Asian texts have few that it has.
    is_western = 3 * len(re.findall(rb"[\x80-\xff]", content)) < len(re.findall(rb"[A-Za-z]", content))
    names = ("cp1252", "latin-1") if is_western else ("gb18030", "cp949", "cp932", "cp1251", "latin-1")
    fitting = [name for name in names if _is_in(content, name)]
    return f"; if the file has another encoding, pass it, such as --encoding {' or '.join(fitting[:3])}"


def _is_in(content: bytes, encoding: str) -> bool:
    try:
        content.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


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
