"""Labelled files and tables → `Annotations`: texts with their labels, as text; `labels.py` has the rules."""

import ast
import contextlib
import decimal
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from flaxsent.base import FlaxsentError, Text
from flaxsent.data.bad_rows import BadRows
from flaxsent.data.base import NOT_UTF8, Reading, Record
from flaxsent.data.parquet import class_names
from flaxsent.data.records import name_of, read


class Annotations(NamedTuple):
    """A labelled file, before it is decided what its labels mean."""

    file: str
    column: str
    """The label column."""
    texts: list[Text]
    labels: list[str | tuple[str, ...]]
    """The text of each cell; a tuple is a list of labels."""
    numbers: list[int]
    """The number of each record in the file, for messages."""
    names: tuple[str, ...] = ()
    """The labels that the file itself names, in their order."""
    is_wide: bool = False
    """There is a column for each of the names, and a label is a vector with an entry for each."""


def read_annotations(
    source: Any,
    *,
    text_columns: Sequence[str] = ("text",),
    label_column: str = "label",
    label_columns: Sequence[str] | None = None,
    label_separator: str | None = None,
    reading: Reading | None = None,
    bad_rows: BadRows | None = None,
) -> Annotations:
    """Reads the texts, or pairs of two columns, and the labels of a CSV, TSV, JSONL or Parquet file, or of a table.

    Args:
        source: as of `records.read`.
        text_columns: one name, or two for pairs.
        label_column: the column of the labels.
        label_columns: instead of it, a column for each of several labels, which holds 0 and 1, or true and false.
        label_separator: what separates the labels in a cell.
        reading: how a file is read, where that is not as its suffix says.
        bad_rows: takes records that are broken or have no label; without it, they are an error.

    Raises: as `records.read`, and
        FlaxsentError: a record is bad (the message has its number), or there are none; or the separator is empty.
    """
    name, found_bad = name_of(source), BadRows() if bad_rows is None else bad_rows
    if label_separator == "":
        raise FlaxsentError("label_separator is empty; expected a character or more.")
    if label_columns is not None and not isinstance(label_columns, str):
        _check_label_columns(label_columns, text_columns, label_separator)
    wanted = (label_column,) if label_columns is None else label_columns
    with read(source, text_columns=text_columns, other_columns=wanted, reading=reading) as opened:
        names = class_names(opened.layout, label_column) or () if label_columns is None else tuple(label_columns)
        found = Annotations(name, ", ".join(wanted), [], [], [], names, label_columns is not None)
        for record in opened.records:
            label, error = (), record.error
            if error is None:
                label, error = _label_of(record, found, label_column, label_separator)
            if error is not None:
                found_bad.add(name, record._replace(error=error))
                continue
            found.texts.append(record.text)
            found.labels.append(label)
            found.numbers.append(record.number)
    if bad_rows is None:
        found_bad.check()
    if not found.texts:
        raise found_bad.no_rows_error(name)
    return found


def _check_label_columns(
    label_columns: Sequence[str], text_columns: Sequence[str], label_separator: str | None
) -> None:
    told = f"the label columns {listed(label_columns) or '(none)'}"
    if not label_columns or len({key_of(name) for name in label_columns}) < len(label_columns):
        raise FlaxsentError(f"{told}: expected one or more, whose names differ.")
    if both := [name for name in label_columns if name in text_columns]:
        raise FlaxsentError(f"{told}: {both[0]!r} is the column of the texts, too.")
    if label_separator is not None:
        raise FlaxsentError(f"{told} have one label each; a label separator is for one column of several.")


def _label_of(
    record: Record, annotations: Annotations, column: str, separator: str | None
) -> tuple[str | tuple[str, ...], str | None]:
    """The label of a record, and what is wrong with it."""
    if not annotations.is_wide:
        label, error = _read_label(record, column, separator)
        return (label, error) if error or not annotations.names else _named(label, annotations.names)
    bits = []
    for name in annotations.names:
        label, error = _read_label(record, name, None)
        bit = {"0": "0", "false": "0", "1": "1", "true": "1"}.get(label) if isinstance(label, str) else None
        if error is None and bit is None:
            error = f"has {shown(label)} in the label column {name!r}; expected 0 or 1, or true or false"
        if error is not None:
            return "", error
        bits.append(bit)
    return tuple(bits), None


def _named(label: str | tuple[str, ...], names: Sequence[str]) -> tuple[str | tuple[str, ...], str | None]:
    """Numbers of classes as their names; -1 is no class."""
    numbers, found = label if isinstance(label, tuple) else (label,), []
    for number in numbers:
        if number == "-1":
            return "", "has no label, but -1"
        if not number.isdecimal() or int(number) >= len(names):
            return "", f"has the class {shown(number)}; expected 0 to {len(names) - 1}"
        found.append(names[int(number)])
    return tuple(found) if isinstance(label, tuple) else found[0], None


def _read_label(record: Record, column: str, separator: str | None) -> tuple[str | tuple[str, ...], str | None]:
    """What a record has in a label column, and what is wrong with it."""
    try:
        value = record.columns.get(column)
    except UnicodeDecodeError:
        return "", f"{NOT_UTF8} in the column {column!r}"
    except ValueError as err:  # Arrow's times have values that Python's have not
        return "", f"has a label that cannot be read: {err}"
    if isinstance(value, str):
        value = _parse_list(value.strip())
    cells = value if isinstance(value, list) else [value]
    if not all(one is None or isinstance(one, str | int | float | decimal.Decimal) for one in cells):
        return "", f"has the label {shown(value)}; expected names or numbers"
    if separator is not None and not isinstance(value, list) and as_name(value) is not None:
        value = cells = str(value).split(separator)
    names = []
    for cell in cells:
        if (name := as_name(cell)) is None:
            return "", f"has no label in the column {column!r}" + (f", but {cell!r}" if cell else "")
        names.append(name)
    return tuple(names) if isinstance(value, list) else names[0], None


def _parse_list(text: str) -> str | list[Any]:
    """The list that a text spells as JSON or, as pandas writes it, as Python; else the text."""
    for parse in (json.loads, ast.literal_eval) if text.startswith("[") and text.endswith("]") else ():
        with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            if isinstance(found := parse(text), list):  # [1], [2] is a tuple of Python
                return found
    return text


def as_name(value: object) -> str | None:
    """A cell, or an entry of a list, as text; None where a label is missing.

    >>> [as_name(value) for value in (True, "TRUE", 1, 1.0, "1.0", 2.5, "007", None, float("nan"), "NaN", " ")]
    ['true', 'true', '1', '1', '1', '2.5', '007', None, None, None, None]
    """
    text = str(value).strip()
    folded = text.casefold()
    if value is None or folded in ("", "nan", "null"):
        return None
    if folded in ("true", "false"):
        return folded
    whole = re.fullmatch(r"(-?(?:0|[1-9]\d{0,99}))(?:\.0*)?", text, re.ASCII)
    return str(int(whole[1])) if whole else text


def key_of(label: str) -> str:
    """A label as a file writes it."""
    return as_name(label) or label


def shown(label: object) -> str:
    shown = repr([*label] if isinstance(label, tuple) else label)
    return shown if len(shown) <= 40 else f"{shown[:39]}…"


def listed(names: Iterable[str]) -> str:
    listed = [*names]
    return ", ".join(listed if len(listed) <= 20 else [*listed[:20], "…"])
