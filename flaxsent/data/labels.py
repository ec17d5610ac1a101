"""Labelled files and tables → `Examples`, by one rule in every format: what `train`, `evaluate` and `fit` read.

`read_annotations` makes text of the cells of a label column, `resolve` decides on the labels and the problem type,
`set_aside` takes out rows that do not go with these, `to_examples` makes indices or values of the labels, and
`describe` says in one line what was understood.

1. A cell becomes text (`annotations.as_name`). true and false, however they are capitalised, are `true` and `false`. A
   whole number has no fraction: 1, 1.0 and "1.0" are `1`. Other numbers and texts stay as they are: `2.5`, `007`,
   `[other]`. An empty cell, null and NaN are a missing label, which is an error.
2. A JSON list in any format is several labels (so is a Python list, which pandas writes into a CSV); each becomes text
   in the same way. With a separator, a cell is the labels between separators. `[]` is none of them.
3. The problem type, if it is not given (`resolve`): multi-label if there is a list in the column; regression if all
   cells are numbers and one of them is not whole; otherwise one label per text.
4. The labels, if they are not given (`resolve`): those of the model if the file names no others; otherwise the file's,
   sorted as numbers if all are whole numbers, else as text. So a file of 0 and 1 has these as its labels, and keeps the
   model's layer of as many (`keeps_head`); so does one that has only some of the numbers, with the last.
5. A column holds names of labels or their indices, never both (`_indices`). Indices count only where no label's name is
   a number: a model with the labels 1 to 4 has no label `0`.
6. Lists of one length that hold only 0 and 1, or true and false, are vectors with an entry for each label, if there are
   as many labels (`to_examples`). If the labels are not given, nor the model's as many, vectors have the labels `0`,
   `1`, … (`resolve`). In any other list, a label that comes twice is an error.
7. Several label columns, one a label, hold 0 and 1, or true and false: their names are the labels (`_of_columns`).
   Where the names are numbers of columns, labels that are given, or the model's, name them in their order.
8. Where the file itself names the classes (`ClassLabel` of the `datasets` library), its numbers are those names. They
   are the model's labels whatever their capitals, and else, if there are as many, the model's in this order.
"""

import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from flaxsent.base import FlaxsentError, ProblemType, Text
from flaxsent.data.annotations import Annotations, key_of, listed, read_annotations, shown
from flaxsent.data.bad_rows import BadRows
from flaxsent.data.base import Record

logger = logging.getLogger(__name__)


class Examples(NamedTuple):
    """Texts with what is to be learnt of each."""

    texts: list[Text]
    labels: list[Any]
    """The index of the label; for multi-label a tuple of indices; for regression the value."""


class Task(NamedTuple):
    """What a classifier is for."""

    labels: tuple[str, ...]
    problem_type: ProblemType


def read_examples(source: Any, *, labels: Sequence[str], problem_type: ProblemType, **columns: Any) -> Examples:
    """Reads a labelled file or table for a model whose labels are known; `columns` as of `read_annotations`.

    Raises: as `read_annotations` and `to_examples`.
    """
    return to_examples(read_annotations(source, **columns), labels=labels, problem_type=problem_type)


def resolve(
    annotations: Annotations,
    *,
    known: Task | None = None,
    labels: Sequence[str] | None = None,
    problem_type: ProblemType | None = None,
) -> Task:
    """Decides what a file's labels mean: rules 3, 4 and 6 above.

    >>> resolve(Annotations("x.csv", "label", ["a", "b"], ["10", "9"], [2, 3]))
    Task(labels=('9', '10'), problem_type='single_label_classification')

    Args:
        annotations: the labelled file.
        known: the task of a model that is to be trained further.
        labels: the labels, if the user says which.
        problem_type: the problem type, if the user says which.

    Raises:
        FlaxsentError: the labels do not go with the problem type.
    """
    problem_type = problem_type or _problem_type(annotations)
    if labels is None:
        labels = _labels(annotations, problem_type, known if known and known.problem_type == problem_type else None)
    if problem_type == "single_label_classification" and len(labels) < 2:
        raise FlaxsentError(f"{annotations.file} has only the label {', '.join(labels)}; expected two or more.")
    if problem_type == "multi_label_classification" and not labels:
        raise FlaxsentError(f"{annotations.file} has only empty lists of labels; expected a label in one of them.")
    if annotations.is_wide:
        if problem_type != "multi_label_classification":
            raise FlaxsentError(f"a column for each label is for multi_label_classification; got {problem_type}.")
        _of_columns(annotations, labels)
    if problem_type == "regression" and len(labels) != 1:
        raise FlaxsentError(f"regression has one label, the name of the value; {', '.join(labels)} are {len(labels)}.")
    return Task(tuple(labels), problem_type)


def keeps_head(known: Task, task: Task) -> bool:
    """Whether a model's layer of logits serves for a task: its labels are the model's, or as many, by their numbers.

    >>> keeps_head(Task(("NEGATIVE", "POSITIVE"), "regression"), Task(("0", "1"), "regression"))
    True
    """
    if len(known.labels) != len(task.labels) or known.problem_type != task.problem_type:
        return False
    is_same = [*map(str.casefold, known.labels)] == [*map(str.casefold, task.labels)]
    return is_same or (task.labels == _numbers(len(task.labels)) and not any(map(_is_number, known.labels)))


def _numbers(num: int) -> tuple[str, ...]:
    return tuple(map(str, range(num)))


def set_aside(
    annotations: Annotations, *, labels: Sequence[str], problem_type: ProblemType, bad_rows: BadRows
) -> Annotations:
    """Without the rows whose labels are unknown or do not go with the problem type: these go to the bad ones.

    Raises:
        FlaxsentError: the columns are not these labels, or no row is left.
    """
    kept = annotations._replace(texts=[], labels=[], numbers=[])
    targets = _targets(annotations, labels, problem_type)
    rows = zip(annotations.texts, annotations.labels, annotations.numbers, strict=True)
    for (text, label, number), (_, error) in zip(rows, targets, strict=True):
        if error is None:
            kept.texts.append(text)
            kept.labels.append(label)
            kept.numbers.append(number)
        else:
            bad_rows.add(annotations.file, Record(number, error=error))
    if not kept.texts:
        raise bad_rows.no_rows_error(annotations.file)
    return kept


def to_examples(annotations: Annotations, *, labels: Sequence[str], problem_type: ProblemType) -> Examples:
    """Makes indices of labels, or values for regression: rules 5 to 8 above.

    Raises:
        FlaxsentError: a label is unknown or does not go with the problem type; the message has its row.
    """
    found = []
    for number, (target, error) in zip(annotations.numbers, _targets(annotations, labels, problem_type), strict=True):
        if error is not None:
            raise FlaxsentError(f"{annotations.file} row {number} {error}.")
        found.append(target)
    return Examples(annotations.texts, found)


def _targets(
    annotations: Annotations, labels: Sequence[str], problem_type: ProblemType
) -> Iterator[tuple[Any, str | None]]:
    """The index, indices or value of each label, or what is wrong with it."""
    is_several = problem_type == "multi_label_classification"
    if annotations.is_wide:
        order = _of_columns(annotations, labels)
        for label in annotations.labels:
            bits = [label[column] == "1" for column in order]
            error = None if is_several else f"has several labels; expected one, for {problem_type}"
            yield tuple(index for index, is_set in enumerate(bits) if is_set), error
        return
    is_vectors = is_several and _vector_length(annotations) == len(labels)
    index_of = {}
    if problem_type != "regression" and not is_vectors:
        index_of = _indices(labels, _names(annotations), annotations.names)
    for label in annotations.labels:
        yield _target(label, labels, problem_type, index_of, is_vectors=is_vectors)


def _target(
    label: str | tuple[str, ...],
    labels: Sequence[str],
    problem_type: ProblemType,
    index_of: Mapping[str, int],
    *,
    is_vectors: bool,
) -> tuple[Any, str | None]:
    is_several, told = problem_type == "multi_label_classification", f"has the label {shown(label)}"
    names = label if isinstance(label, tuple) else (label,)
    if problem_type == "regression":
        value = None if isinstance(label, tuple) else _number(label)
        is_good = value is not None and abs(value) <= _LARGEST
        return value, None if is_good else f"{told}; expected a finite number of float32"
    if isinstance(label, tuple) != is_several:
        return None, f"{told}; expected {'a list of labels' if is_several else 'one label'}"
    if is_vectors:
        return tuple(index for index, entry in enumerate(names) if entry in ("1", "true")), None
    if unknown := [name for name in names if name not in index_of]:
        also = "" if any(map(_is_number, labels)) else f" (or their indices, 0 to {len(labels) - 1}, in every row)"
        return None, f"{told}: {unknown[0]!r} is unknown; expected {listed(labels)}{also}"
    if len({*names}) < len(names):
        return (
            None,
            f"{told}, which has a label twice; expected each once, or {len(labels)} zeros and ones in every row",
        )
    indices = sorted(index_of[name] for name in names)
    return tuple(indices) if is_several else indices[0], None


def _of_columns(annotations: Annotations, labels: Sequence[str]) -> list[int]:
    """Which of the label columns is that of each label."""
    names = annotations.names
    column_of = {key_of(name): column for column, name in enumerate(names)}
    if {key_of(label) for label in labels} == column_of.keys() and len(labels) == len(names):
        return [column_of[key_of(label)] for label in labels]
    if len(labels) == len(names) and all(name.isdecimal() for name in names):
        return [*range(len(names))]
    raise FlaxsentError(
        f"{annotations.file} has the label columns {listed(names)}; expected one for each of the labels "
        f"{listed(labels)}, named like it."
    )


def describe(examples: Examples, labels: Sequence[str], problem_type: ProblemType) -> str:
    """What was understood of a file, in one line.

    >>> describe(Examples(["a", "b", "c"], [0, 1, 1]), ("neg", "pos"), "single_label_classification")
    '3 texts, 2 labels: neg 1, pos 2; one label per text'
    """
    start = f"{len(examples.texts):,} texts"
    if problem_type == "regression":
        return f"{start}, values from {min(examples.labels):g} to {max(examples.labels):g}; regression"
    several = examples.labels if problem_type == "multi_label_classification" else [(one,) for one in examples.labels]
    counts = Counter(index for indices in several for index in indices)
    told = [f"{_printable(label)} {counts[index]:,}" for index, label in enumerate(labels)]
    if len(told) > _MOST_TOLD:
        least, *_, most = sorted(range(len(labels)), key=lambda index: counts[index])
        told = [f"from {told[least]} to {told[most]}"]
    kind = "one label per text"
    if problem_type == "multi_label_classification":
        kind = f"{counts.total() / max(len(several), 1):.2g} labels per text on average"
    return f"{start}, {len(labels)} label{'s' * (len(labels) > 1)}: {', '.join(told)}; {kind}"


_MOST_TOLD = 10
"""Labels that are told one by one."""


def _number(name: str) -> float | None:
    """The number that a name spells."""
    spelt = re.fullmatch(r"[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|inf|infinity)", name, re.ASCII | re.IGNORECASE)
    return float(name) if spelt else None


def _is_number(name: str) -> bool:
    return _number(name) is not None


def _is_whole(name: str) -> bool:
    return re.fullmatch(r"[+-]?\d{1,100}", name, re.ASCII) is not None


def _names(annotations: Annotations) -> set[str]:
    """All that the label column has, those in lists too."""
    labels = {*annotations.labels}
    return {name for label in labels for name in (label if isinstance(label, tuple) else (label,))}


def _problem_type(annotations: Annotations) -> ProblemType:
    if any(isinstance(label, tuple) for label in annotations.labels):
        return "multi_label_classification"
    if annotations.names:
        return "single_label_classification"
    names = _names(annotations)
    is_values = all(map(_is_number, names)) and not all(map(_is_whole, names))
    return "regression" if is_values else "single_label_classification"


def _labels(annotations: Annotations, problem_type: ProblemType, known: Task | None) -> tuple[str, ...]:
    """Those of the model, `known` if it is of this problem type, if the file has no others; otherwise the file's."""
    if problem_type == "regression":
        return (annotations.column,) if known is None else known.labels
    if annotations.names:
        is_known = known is not None and {*map(key_of, known.labels)} == {*map(key_of, annotations.names)}
        return known.labels if known is not None and is_known else annotations.names
    length = _vector_length(annotations) or 0
    if problem_type == "multi_label_classification" and length > 1:
        return known.labels if known and len(known.labels) == length else _numbers(length)
    names = _names(annotations)
    if known is not None and names <= {*map(key_of, known.labels)}:
        return known.labels
    is_whole = all(map(_is_whole, names))
    if known is not None and not any(map(_is_number, known.labels)):
        indices = _numbers(len(known.labels))
        if names <= {*indices} and indices[-1] in names:
            return indices
    return tuple(sorted(names, key=lambda name: (int(name), name) if is_whole else name))


def _vector_length(annotations: Annotations) -> int | None:
    """The one length of the column's lists, if they hold nothing but 0 and 1, or true and false."""
    lengths = {len(label) if isinstance(label, tuple) else -1 for label in annotations.labels}
    is_bits = any(_names(annotations) <= bits for bits in ({"0", "1"}, {"false", "true"}))
    return lengths.pop() if is_bits and len(lengths) == 1 else None


def _indices(labels: Sequence[str], names: set[str], classes: Sequence[str] = ()) -> Mapping[str, int]:
    """The index of each label by the names that the file uses: the labels', or else the indices themselves.

    `classes` are the names that the file gives to its numbers.
    """
    index_of = {key_of(label): index for index, label in enumerate(labels)}
    if len(index_of) < len(labels):
        raise FlaxsentError(f"of the labels {listed(labels)}, a file cannot tell two apart; rename one.")
    if classes and not names <= index_of.keys():
        return _of_classes(classes, labels) or index_of
    if names <= index_of.keys() or any(map(_is_number, labels)) or not all(map(_is_whole, names)):
        return index_of
    return {str(index): index for index in range(len(labels))}


def _of_classes(classes: Sequence[str], labels: Sequence[str]) -> Mapping[str, int] | None:
    """The index of each class of a file among labels that are written differently."""
    folded = {label.casefold(): index for index, label in enumerate(labels)}
    if len(folded) == len(labels) and {name.casefold() for name in classes} <= folded.keys():
        return {name: folded[name.casefold()] for name in classes}
    if len(classes) != len(labels):
        return None
    logger.warning("the classes %s are taken for the labels %s, in this order", listed(classes), listed(labels))
    return {name: index for index, name in enumerate(classes)}


_LARGEST = float(np.finfo(np.float32).max)


def _printable(label: str) -> str:
    return label if label.isprintable() else repr(label)
