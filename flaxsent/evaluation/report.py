"""A labelled file and a classifier → logits → `Report`: every figure of the model on the file.

`tables.py` and `pictures.py` show a report; `calibration.py` fits a temperature to the same logits.
"""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from flaxsent.base import FlaxsentError, Params, ProblemType, Text, Tokens
from flaxsent.classifier import Classifier
from flaxsent.data.annotations import read_annotations
from flaxsent.data.bad_rows import BadRows
from flaxsent.data.labels import set_aside, to_examples
from flaxsent.data.records import Reading, read
from flaxsent.engine import Engine, Stats
from flaxsent.evaluation import metrics
from flaxsent.models.config import ModelConfig
from flaxsent.postprocessing import as_logits, postprocess, probabilities

Targets = Int[np.ndarray, " B"] | Float[np.ndarray, "B C"]
"""The index of each text's label; for multi-label 1 for each label it has, else 0; for regression the values."""


class Data(NamedTuple):
    """The texts of a file with what the model should say of them."""

    file: str
    records: list[int]
    """The number of each text's record in the file."""
    texts: list[Text]
    targets: Targets


class Bucket(NamedTuple):
    """The texts of like length, in tokens with the special ones."""

    shortest: int
    longest: int | None
    """None: longer than what the model reads at once, so that they were cut, or read in windows."""
    num_texts: int
    figures: dict[str, int | float]


class Group(NamedTuple):
    """The texts with one value of a column."""

    value: str
    num_texts: int
    figures: dict[str, int | float]


class Report(NamedTuple):
    """Every figure of a model on a file; NaN where it has no meaning."""

    problem_type: ProblemType
    labels: tuple[str, ...]
    num_texts: int
    figures: dict[str, int | float]
    """accuracy, macro_f1, …, log_loss, calibration_error; or pearson, spearman, mean_squared_error. For multi-label
    also how many labels no text has: macro_average_precision leaves them out."""
    by_label: dict[str, dict[str, int | float]] | None = None
    """precision, recall, f1, num_texts of each, for multi-label average_precision too; None for regression."""
    bins: list[metrics.Bin] | None = None
    """Of the texts, or for multi-label of the decisions on each label: what the reliability diagram shows."""
    confusion: list[list[int]] | None = None
    """Rows: the label of the text; columns: the best one by the model. For one label of several."""
    by_length: list[Bucket] | None = None


def read_data(source: Any, config: ModelConfig, *, bad_rows: BadRows | None = None, **columns: Any) -> Data:
    """Reads a file or a table: texts, or pairs of two columns, with targets of the kind that the model has.

    `columns` are as of `data.annotations.read_annotations`.

    Raises:
        FileNotFoundError: no such file.
        MissingPackageError: Parquet or a table, and pyarrow is not installed.
        FlaxsentError: a column is missing; or a record is broken or its label is not one of the model's, and there are
            no `bad_rows`; or the model gives several values for regression.
    """
    if config.problem_type == "regression" and config.num_labels > 1:
        raise FlaxsentError(f"this model gives {config.num_labels} values for a text; expected one to correlate.")
    found_bad = BadRows() if bad_rows is None else bad_rows
    task = {"labels": config.labels, "problem_type": config.problem_type}
    annotations = set_aside(read_annotations(source, bad_rows=found_bad, **columns), **task, bad_rows=found_bad)
    if bad_rows is None:
        found_bad.check()
    texts, labels = to_examples(annotations, **task)
    match config.problem_type:
        case "single_label_classification":
            targets = np.array(labels, np.int64)
        case "multi_label_classification":
            targets = np.zeros((len(texts), config.num_labels), np.float32)
            for target_C, indices in zip(targets, labels, strict=True):
                target_C[list(indices)] = 1
        case "regression":
            targets = np.array(labels, np.float32)[:, None]
    return Data(annotations.file, annotations.numbers, texts, targets)


def logits_of(
    classifier: Classifier, data: Data, *, on_window: Callable[[Stats], None] | None = None
) -> Float[np.ndarray, "B C"]:
    """The logits of the texts, by the engine, which calls `on_window` with the figures of each window.

    Where probabilities are pooled of the windows of texts, they are logits that have these probabilities.

    Raises:
        FlaxsentError: those of a text are not finite; the message has its record.
    """
    windows, problem_type = classifier.windows, classifier.config.problem_type
    pools_probabilities = windows is not None and windows.pooling.endswith("probabilities")

    def probabilities_of(params: Params, tokens: Tokens, num_segments: int) -> Float[Array, "R S C"]:
        return probabilities(classifier.logits(params, tokens, num_segments), problem_type=problem_type)

    function = probabilities_of if pools_probabilities else classifier.logits
    with Engine(classifier, function=function, on_window=on_window) as engine:
        logits_BC = engine(data.texts)
    if pools_probabilities:
        logits_BC = as_logits(logits_BC, problem_type=problem_type)
    odd = np.flatnonzero(~np.isfinite(logits_BC).all(axis=1)).tolist()
    if odd:
        # NaN spreads to the other texts of its row: alone in a row, a text shows whether it is its own.
        with Engine(classifier, function=classifier.logits, layout="padded") as engine:
            alone = zip(odd, engine.stream(data.texts[index] for index in odd), strict=True)
            first = next((index for index, logits_C in alone if not np.isfinite(logits_C).all()), odd[0])
        raise FlaxsentError(
            f"the model gives logits that are NaN or infinite for the text of {data.file} row "
            f"{data.records[first]}; `flaxsent info` tells whether its weights are finite."
        )
    return logits_BC


class Lengths(NamedTuple):
    """Of texts before they are cut, special tokens included."""

    num_tokens: Int[np.ndarray, " B"]
    limit: int
    """What the model reads of a text."""


def lengths_of(classifier: Classifier, texts: Sequence[Text]) -> Lengths:
    """The lengths of texts, for `measure` to sort them by."""
    lengths: list[int] = []
    for start in range(0, len(texts), _ENCODED_TOGETHER):
        chunk = [*texts[start : start + _ENCODED_TOGETHER]]
        lengths += [len(encoding.ids) for encoding in classifier.tokenizer.backend.encode_batch(chunk)]
    return Lengths(np.array(lengths, np.int64), classifier.tokenizer.text_limit)


_ENCODED_TOGETHER = 1024


def scores_of(logits_BC: Float[np.ndarray, "B C"], config: ModelConfig) -> Float[np.ndarray, "B C"]:
    """What figures are of: the values of regression, elsewhere the probabilities that the model was trained to give."""
    if config.problem_type == "regression":
        return np.asarray(postprocess(logits_BC, config=config))
    return np.asarray(probabilities(logits_BC, problem_type=config.problem_type))


def measure(
    logits_BC: Float[np.ndarray, "B C"],
    targets: Targets,
    config: ModelConfig,
    *,
    lengths: Lengths | None = None,
    abstain_below: float | None = None,
) -> Report:
    """All figures of logits; by length too, where lengths are given.

    With `abstain_below` also how many texts have a best score of at least that (coverage), and the accuracy on them.

    Of regression these are of the scores that `classify` gives. Elsewhere they are of the probabilities that the model
    was trained to give, whatever `function_to_apply` makes of them.
    """
    scores_BC = scores_of(logits_BC, config)
    report = measure_scores(scores_BC, targets, config, abstain_below)
    if lengths is None:
        return report
    return report._replace(by_length=_by_length(scores_BC, targets, config, lengths, abstain_below))


def measure_scores(
    scores_BC: Float[np.ndarray, "B C"], targets: Targets, config: ModelConfig, abstain_below: float | None = None
) -> Report:
    """All figures of what `scores_of` gives."""
    match config.problem_type:
        case "single_label_classification":
            report = _one_label(scores_BC, targets, config)
            if abstain_below is not None:
                report.figures.update(metrics.answered(scores_BC, targets, abstain_below))
            return report
        case "multi_label_classification":
            return _several_labels(scores_BC, targets, config)
        case "regression":
            values_B, targets_B = scores_BC[:, 0].astype(np.float64), targets[:, 0].astype(np.float64)
            error = float(np.square(values_B - targets_B).mean())
            figures = {**metrics.correlations(values_B, targets_B), "mean_squared_error": error}
            return Report("regression", config.labels, len(targets), figures)


def _one_label(scores_BC: Float[np.ndarray, "B C"], labels_B: Int[np.ndarray, " B"], config: ModelConfig) -> Report:
    confusion_CC = metrics.confusion_matrix(scores_BC, labels_B)
    counts, bins = metrics.count_confused(confusion_CC), metrics.reliability(scores_BC, labels_B)
    is_there_C = counts.given + counts.support > 0
    return Report(
        config.problem_type,
        config.labels,
        len(labels_B),
        {
            "accuracy": float(counts.right.sum() / len(labels_B)),
            "macro_f1": float(counts.f1[is_there_C].mean()),  # as scikit-learn's f1_score
            "matthews": metrics.matthews(confusion_CC),
            "log_loss": metrics.log_loss(scores_BC, labels_B),
            "calibration_error": metrics.calibration_error(bins),
        },
        by_label=_by_label(
            config, precision=counts.precision, recall=counts.recall, f1=counts.f1, num_texts=counts.support
        ),
        bins=bins,
        confusion=confusion_CC.tolist(),
    )


def _several_labels(
    scores_BC: Float[np.ndarray, "B C"], targets_BC: Float[np.ndarray, "B C"], config: ModelConfig
) -> Report:
    thresholds_C = np.array(config.thresholds, np.float64)
    counts = metrics.count_labels(scores_BC, targets_BC, thresholds_C)
    decided = metrics.decisions(scores_BC, targets_BC)
    average_precision_C = np.array([*map(metrics.average_precision, scores_BC.T, targets_BC.T)])
    bins, has_text_C = metrics.reliability(*decided), counts.support > 0
    return Report(
        config.problem_type,
        config.labels,
        len(targets_BC),
        {
            "accuracy": float(((scores_BC > thresholds_C) == (targets_BC > 0)).all(axis=1).mean()),
            "micro_f1": counts.micro_f1,
            "macro_f1": float(counts.f1.mean()),
            "micro_average_precision": metrics.average_precision(scores_BC.reshape(-1), targets_BC.reshape(-1)),
            "macro_average_precision": float(average_precision_C[has_text_C].mean()) if has_text_C.any() else math.nan,
            "num_labels_without_texts": int(np.count_nonzero(~has_text_C)),
            "log_loss": metrics.log_loss(*decided),
            "calibration_error": metrics.calibration_error(bins),
        },
        by_label=_by_label(
            config,
            precision=counts.precision,
            recall=counts.recall,
            f1=counts.f1,
            average_precision=average_precision_C,
            **({} if config.label_thresholds is None else {"threshold": thresholds_C}),
            num_texts=counts.support,
        ),
        bins=bins,
    )


def _by_label(config: ModelConfig, **columns: Shaped[np.ndarray, " C"]) -> dict[str, dict[str, int | float]]:
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return {label: dict(zip(columns, row, strict=True)) for label, row in zip(config.labels, rows, strict=True)}


def _by_length(
    scores_BC: Float[np.ndarray, "B C"],
    targets: Targets,
    config: ModelConfig,
    lengths: Lengths,
    abstain_below: float | None,
) -> list[Bucket]:
    """Buckets that double, up to the limit; none that is empty."""
    ends = [*itertools.takewhile(lambda end: end < lengths.limit, (8 << n for n in range(32))), lengths.limit]
    which_B = np.digitize(lengths.num_tokens, ends, right=True)
    found = []
    for index in np.unique(which_B).tolist():
        alone = measure_scores(scores_BC[which_B == index], targets[which_B == index], config, abstain_below)
        shortest = 1 + ends[index - 1] if index else 1
        found.append(Bucket(shortest, ends[index] if index < len(ends) else None, alone.num_texts, alone.figures))
    return found


def values_of(data: Data, column: str, *, text_columns: Sequence[str], reading: Reading | None = None) -> list[str]:
    """The value of each text in another column of its file.

    Raises:
        FlaxsentError: the file has no such column, or is no longer what it was.
    """
    found = {}
    with read(data.file, text_columns=text_columns, other_columns=(column,), reading=reading) as source:
        for record in source.records:
            if record.error is None:
                value = record.columns.get(column)
                found[record.number] = "" if value is None else str(value)
    if missing := [number for number in data.records if number not in found]:
        raise FlaxsentError(f"{data.file} has no row {missing[0]} any more; it has changed meanwhile.")
    return [found[number] for number in data.records]


def by_value(
    scores_BC: Float[np.ndarray, "B C"],
    targets: Targets,
    config: ModelConfig,
    values: Sequence[str],
    *,
    abstain_below: float | None = None,
) -> list[Group]:
    """The figures of the texts of each value, the most frequent first; of at most `MOST_VALUES` values."""
    found, of_B = [], np.array(values, dtype=object)
    for value, num_texts in Counter(values).most_common(MOST_VALUES):
        is_in_B = of_B == value
        alone = measure_scores(scores_BC[is_in_B], targets[is_in_B], config, abstain_below)
        found.append(Group(value, num_texts, alone.figures))
    return found


MOST_VALUES = 50
"""Of a column, that are told one by one."""
