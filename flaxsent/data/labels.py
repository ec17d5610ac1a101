"""Labelled files → `Examples`: texts with what is to be learnt of each. What `train` and `evaluate` read."""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flaxsent.base import FlaxsentError, ProblemType, Text
from flaxsent.data.records import Record, _Cell, check_columns, read


class Examples(NamedTuple):
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
) -> Examples:
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
        FlaxsentError: a column is missing, or a row is broken or has no label; the message has its number.
    """
    data = Annotations(str(file), [], [], [])
    with read(file, text_columns=text_columns) as source:
        check_columns(str(file), source.layout.columns, (label_column,))
        for row in source.records:
            error, label = row.error, None
            if error is None:
                error, label = _read_label(row, label_column, label_separator)
            if error is not None:
                raise FlaxsentError(f"{file} row {row.number} {error}.")
            data.texts.append(row.text)
            data.labels.append(label)
            data.rows.append(row.number)
    if not data.texts:
        raise FlaxsentError(f"{file} has no rows; expected at least one.")
    return data


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


def to_labelled(data: Annotations, *, label2id: Mapping[str, int], problem_type: ProblemType) -> Examples:
    """Makes numbers of labels: a label is a name of `label2id` or an index of it; for regression, a number.

    Raises:
        FlaxsentError: a label is unknown, or not of the problem type; the message has the row.
    """
    indices = {str(index): index for index in label2id.values()} | dict(label2id)
    is_several, labels = problem_type == "multi_label_classification", []
    for number, label in zip(data.rows, data.labels, strict=True):
        at = f"{data.file} row {number} has the label {_shown(label)}"
        if problem_type == "regression":
            if (value := _number(label)) is None:
                raise FlaxsentError(f"{at}; expected a finite number.")
            labels.append(value)
            continue
        if isinstance(label, list) != is_several:
            raise FlaxsentError(f"{at}; expected {'a list of labels' if is_several else 'one label'}.")
        names = [_name(one) for one in (label if is_several else [label])]
        if unknown := [name for name in names if name not in indices]:
            raise FlaxsentError(f"{at}: {unknown[0]!r} is unknown; expected {_listed(label2id)}.")
        labels.append(tuple(sorted({indices[name] for name in names})) if is_several else indices[names[0]])
    return Examples(data.texts, labels)


def _read_label(row: Record, column: str, separator: str | None) -> tuple[str | None, Any]:
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
