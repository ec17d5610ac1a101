"""The files of a run → what it learns from and is scored on: `RunOptions` in, `Data` out."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from flaxsent.base import FlaxsentError, Text
from flaxsent.checkpoint import adapters, exported, hub
from flaxsent.checkpoint.folder import config_of
from flaxsent.data.annotations import Annotations, listed, read_annotations
from flaxsent.data.bad_rows import ADVICE, BadRows
from flaxsent.data.labels import Examples, Task, keeps_head, resolve, set_aside, to_examples
from flaxsent.data.records import read_texts
from flaxsent.models.config import ModelConfig
from flaxsent.training import distributed, folds, patterns, splits
from flaxsent.training.options import RunOptions

logger = logging.getLogger(__name__)


class Data(NamedTuple):
    """What the files hold, and for what kind of classifier."""

    files: list[str]
    """Those that are learned from."""
    train: Examples
    dev: Examples | None
    unlabelled: list[Text]
    task: Task
    """The labels and the problem type."""
    folds: Int[np.ndarray, " N"] | None = None
    """Of each text that is learned from, where there are folds."""


def read_data(options: RunOptions, report: Callable[[str], None] = logger.info, *, seed: int) -> Data:
    """The files, and what their labels mean: `data.labels` has the rule."""

    def annotations(file: str) -> Annotations:
        return read_annotations(
            file,
            text_columns=options.text_columns,
            label_column=options.label_column,
            label_columns=options.label_columns,
            label_separator=options.label_separator,
            reading=options.reading,
            bad_rows=bad_rows,
        )

    def examples(found: Annotations) -> Examples:
        return to_examples(set_aside(found, **task._asdict(), bad_rows=bad_rows), **task._asdict())

    files = patterns.files_of(options.train)
    inputs = [file for file in (*files, options.dev, options.unlabelled) if file is not None]
    bad_rows = BadRows(options.bad_rows, inputs=inputs)
    found = [annotations(file) for file in files]
    dev = None if options.dev is None else annotations(options.dev)
    own = own_config(options.model)
    known = Task(own.labels, own.problem_type) if own.is_classifier else None
    try:
        task = resolve(_together(found), known=known, labels=options.labels, problem_type=options.problem_type)
    except FlaxsentError:
        bad_rows.check(ADVICE)  # which may be why
        raise
    unlabelled = []
    if options.unlabelled is not None:
        unlabelled = read_texts(options.unlabelled, options.text_columns, reading=options.reading, bad_rows=bad_rows)
    read = [examples(one) for one in found]
    train = Examples([text for one in read for text in one.texts], [label for one in read for label in one.labels])
    data = Data(files, train, None if dev is None else examples(dev), unlabelled, task)
    bad_rows.check(ADVICE)
    if known is None or not keeps_head(known, task):
        _check_each_has_texts(train, task, options)
    if distributed.is_first():
        bad_rows.write()
    if bad_rows.num_rows:
        report(f"{bad_rows.num_rows:,} rows were set aside in {options.bad_rows}")
    return _in_parts(data, options, seed=seed)


def _in_parts(data: Data, options: RunOptions, *, seed: int) -> Data:
    """With the part for dev, or the folds, that are asked for."""
    kind, train = data.task.problem_type, data.train
    if options.dev_fraction is not None:
        train, dev = (
            splits.select(train, indices)
            for indices in splits.split(train, options.dev_fraction, problem_type=kind, seed=seed)
        )
        return data._replace(train=train, dev=dev)
    if options.folds is not None:
        folds.check_names(data.task.labels, options.text_columns)
        return data._replace(folds=splits.folds(train, options.folds, problem_type=kind, seed=seed))
    return data


def _check_each_has_texts(train: Examples, task: Task, options: RunOptions) -> None:
    """Refuses a label that the user names and no text has: nothing could be learned of it."""
    flag = "--labels" if options.labels is not None else "--label-columns" if options.label_columns else None
    if flag is None or task.problem_type == "regression":
        return
    each = train.labels if task.problem_type == "multi_label_classification" else [(label,) for label in train.labels]
    found = set().union(*each)
    missing = [label for index, label in enumerate(task.labels) if index not in found]
    if missing:
        raise FlaxsentError(
            f"{flag}: no text to learn from has the label {listed(missing)}; leave that out, or give texts of it."
        )


def _together(parts: Sequence[Annotations]) -> Annotations:
    """Files as one, to decide what the labels of all of them mean."""
    first = parts[0]
    if len(parts) == 1:
        return first
    texts, labels, numbers = (
        [one for part in parts for one in getattr(part, name)] for name in ("texts", "labels", "numbers")
    )
    if other := next((part for part in parts if (part.names, part.is_wide) != (first.names, first.is_wide)), None):
        raise FlaxsentError(f"{other.file} names other labels than {first.file}; expected the same, in one order.")
    name = patterns.listed([part.file for part in parts])
    return first._replace(file=name, texts=texts, labels=labels, numbers=numbers)


def own_config(model: str | None) -> ModelConfig:
    if model is not None and exported.is_exported(model):
        raise FlaxsentError(f"{model} was exported and cannot be trained; pass the checkpoint itself.")
    own = config_of(hub.find(model))
    if model is None or not adapters.is_adapter(model):
        return own
    return adapters.with_head(own, adapters.read(Path(model), config=own))
