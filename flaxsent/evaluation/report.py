"""A classifier and a labelled file → its figures, as a table, JSON or a reliability diagram; and `fit_temperature`.

`read_data` gives texts and targets, `logits_of` computes, `measure` makes a `Report` of `metrics`' figures; `table`,
`to_json` and `plot` show it. Calibration fits one temperature to the same logits and stores it in the folder.
"""

import dataclasses
import importlib.util
import itertools
import math
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from flaxsent.base import FlaxsentError, ProblemType, Text
from flaxsent.classifier import Classifier
from flaxsent.data.labels import read_examples
from flaxsent.engine import Engine, Stats
from flaxsent.evaluation import metrics
from flaxsent.evaluation.metrics import LabelSums, MultiLabelSums
from flaxsent.models.config import ModelConfig
from flaxsent.postprocessing import postprocess

INSTALL = 'pip install "flaxsent[plot]"'

Targets = Int[np.ndarray, " B"] | Float[np.ndarray, "B C"]
"""The index of each text's label; for multi-label 1 for each label it has, else 0; for regression the values."""

_Sums = LabelSums | MultiLabelSums | None
"""None for regression."""


class Data(NamedTuple):
    """Texts with what the model should say of them."""

    texts: list[Text]
    targets: Targets


class Bucket(NamedTuple):
    """The texts of like length, in tokens with the special ones."""

    shortest: int
    longest: int | None
    """None: longer than what the model reads, so that their ends were cut."""
    num_texts: int
    figures: dict[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """Every figure of a model on a file; NaN where it has no meaning."""

    problem_type: ProblemType
    labels: tuple[str, ...]
    temperature: float
    num_texts: int
    figures: dict[str, float]
    """accuracy, macro_f1, …, log_loss, calibration_error; or pearson, spearman, mean_squared_error."""
    by_label: dict[str, dict[str, float]]
    """precision, recall, f1, num_texts of each, for multi-label average_precision too; empty for regression."""
    bins: LabelSums | None
    """Of the texts, or for multi-label of the decisions on each label: what the reliability diagram shows."""
    confusion: list[list[int]] | None
    """Rows: the label of the text; columns: the best one by the model. For one label of several."""
    by_length: list[Bucket] | None


def read_data(
    file: str | Path,
    config: ModelConfig,
    *,
    text_columns: Sequence[str] = ("text",),
    label_column: str = "label",
    label_separator: str | None = None,
) -> Data:
    """Reads texts, or pairs of two columns, with targets of the kind that the model has.

    Raises:
        FileNotFoundError: no such file.
        ImportError: a Parquet file, and pyarrow is not installed.
        FlaxsentError: a column is missing, or a row is broken or its label is not one of the model's;
            or the model is one of regression of several values at once.
    """
    check_measurable(config)
    texts, labels = read_examples(
        file,
        labels=config.labels,
        problem_type=config.problem_type,
        text_columns=text_columns,
        label_column=label_column,
        label_separator=label_separator,
    )
    match config.problem_type:
        case "single_label_classification":
            return Data(texts, np.array(labels, np.int64))
        case "multi_label_classification":
            targets = np.zeros((len(texts), config.num_labels), np.float32)
            for row, indices in zip(targets, labels, strict=True):
                row[list(indices)] = 1
            return Data(texts, targets)
        case "regression":
            return Data(texts, np.array(labels, np.float32)[:, None])


def check_measurable(config: ModelConfig) -> None:
    """Raises ValueError for what has no figures here: regression of several values at once."""
    if config.problem_type == "regression" and config.num_labels > 1:
        raise FlaxsentError(f"this model gives {config.num_labels} values for a text; expected one to correlate.")


def logits_of(
    classifier: Classifier, texts: Sequence[Text], *, on_scored: Callable[[int], object] | None = None
) -> Float[np.ndarray, "B C"]:
    """The logits of texts, by the engine; each text is read once. `on_scored` gets numbers of texts that are done.

    Raises:
        FlaxsentError: they are not all finite.
    """
    bare = dataclasses.replace(classifier, postprocess=lambda logits: logits.astype(np.float32))

    def tell(stats: Stats) -> None:
        if on_scored is not None:
            on_scored(stats.num_texts)

    with Engine(bare, on_window=tell) as engine:
        logits_BC = engine(texts)
    if not np.isfinite(logits_BC).all():
        raise FlaxsentError("the model gives logits that are NaN or infinite; `flaxsent info` tells which weights are.")
    return logits_BC


class Lengths(NamedTuple):
    """How many tokens each text has with the special ones, before any is cut."""

    num_tokens: Int[np.ndarray, " B"]
    limit: int
    """What the model reads of a text."""


def lengths_of(classifier: Classifier, texts: Sequence[Text]) -> Lengths:
    """The lengths of texts, for `measure` to sort them by."""
    lengths: list[int] = []
    for start in range(0, len(texts), _ENCODED_TOGETHER):
        chunk = [*texts[start : start + _ENCODED_TOGETHER]]
        lengths += [len(encoding) for encoding in classifier.tokenizer.backend.encode_batch(chunk)]
    return Lengths(np.array(lengths, np.int64), classifier.tokenizer.max_length)


_ENCODED_TOGETHER = 1024


def measure(
    logits_BC: Float[np.ndarray, "B C"], targets: Targets, config: ModelConfig, *, lengths: Lengths | None = None
) -> Report:
    """All figures of logits, at the temperature of `config`; by length too, where lengths are given."""
    scores_BC = np.asarray(postprocess(logits_BC, problem_type=config.problem_type, temperature=config.temperature))
    sums = _sums(scores_BC, targets, config.problem_type)
    return Report(
        problem_type=config.problem_type,
        labels=config.labels,
        temperature=config.temperature,
        num_texts=len(targets),
        figures=_figures(sums, scores_BC, targets),
        by_label={} if sums is None else _by_label(sums, scores_BC, targets, config.labels),
        bins=sums.decisions if isinstance(sums, MultiLabelSums) else sums,
        confusion=sums.confusion.tolist() if isinstance(sums, LabelSums) else None,
        by_length=None if lengths is None else _by_length(scores_BC, targets, config.problem_type, lengths),
    )


def _sums(scores_BC: Float[np.ndarray, "B C"], targets: Targets, problem_type: ProblemType) -> _Sums:
    match problem_type:
        case "single_label_classification":
            return metrics.label_sums(scores_BC, targets)
        case "multi_label_classification":
            return metrics.multi_label_sums(scores_BC, targets)
        case "regression":
            return None


def _figures(sums: _Sums, scores_BC: Float[np.ndarray, "B C"], targets: Targets) -> dict[str, float]:
    if isinstance(sums, LabelSums):
        return {
            "accuracy": sums.accuracy,
            "macro_f1": sums.macro_f1,
            "matthews": sums.matthews,
            "log_loss": sums.log_loss,
            "calibration_error": sums.calibration_error,
        }
    if isinstance(sums, MultiLabelSums):
        return {
            "accuracy": sums.accuracy,
            "micro_f1": sums.micro_f1,
            "macro_f1": sums.macro_f1,
            "micro_average_precision": metrics.average_precision(scores_BC.reshape(-1), targets.reshape(-1)),
            "macro_average_precision": float(_average_precisions(scores_BC, targets).mean()),
            "log_loss": sums.decisions.log_loss,
            "calibration_error": sums.decisions.calibration_error,
        }
    values, wanted = scores_BC[:, 0].astype(np.float64), targets[:, 0].astype(np.float64)
    return {
        "pearson": metrics.pearson(values, wanted),
        "spearman": metrics.spearman(values, wanted),
        "mean_squared_error": float(np.square(values - wanted).mean()),
    }


def _average_precisions(scores_BC: Float[np.ndarray, "B C"], targets: Targets) -> Float[np.ndarray, " C"]:
    return np.array([metrics.average_precision(*columns) for columns in zip(scores_BC.T, targets.T, strict=True)])


def _by_label(
    sums: LabelSums | MultiLabelSums, scores_BC: Float[np.ndarray, "B C"], targets: Targets, labels: Sequence[str]
) -> dict[str, dict[str, float]]:
    columns = {"precision": sums.precision, "recall": sums.recall, "f1": sums.f1}
    if isinstance(sums, MultiLabelSums):
        columns["average_precision"] = _average_precisions(scores_BC, targets)
    columns["num_texts"] = sums.support
    return {
        label: {name: values[index].item() for name, values in columns.items()} for index, label in enumerate(labels)
    }


def _by_length(
    scores_BC: Float[np.ndarray, "B C"], targets: Targets, problem_type: ProblemType, lengths: Lengths
) -> list[Bucket]:
    """Buckets that double, up to the limit; none that is empty."""
    ends = [*itertools.takewhile(lambda end: end < lengths.limit, (8 << n for n in range(32))), lengths.limit]
    which_B = np.digitize(lengths.num_tokens, ends, right=True)
    found = []
    for index in np.unique(which_B).tolist():
        scores, wanted = scores_BC[which_B == index], targets[which_B == index]
        figures = _figures(_sums(scores, wanted, problem_type), scores, wanted)
        shortest = 1 + ends[index - 1] if index else 1
        found.append(Bucket(shortest, ends[index] if index < len(ends) else None, len(wanted), figures))
    return found


def table(report: Report) -> str:
    """The figures, then those of each label, the confusion matrix, and those of each length."""
    name = report.problem_type.replace("_", " ")
    at = "" if report.problem_type == "regression" else f", at temperature {report.temperature:.4g}"
    width = max(map(len, report.figures))
    parts = [
        [f"{report.num_texts:,} texts, {name}{at}"],
        [f"{_spoken(figure):<{width}}  {_number(value)}" for figure, value in report.figures.items()],
    ]
    if report.by_label:
        figures = [*next(iter(report.by_label.values()))]
        rows = [[_label_cell(label), *map(_number, row.values())] for label, row in report.by_label.items()]
        parts.append(_columns([["label", *map(_spoken, figures)], *rows]))
    if report.confusion is not None:
        names = [_label_cell(label) for label in report.labels]
        if len(names) <= _WIDEST:
            rows = [[name, *map(_number, row)] for name, row in zip(names, report.confusion, strict=True)]
            parts.append(_columns([["label \\ best score", *names], *rows]))
        else:
            parts.append([f"The confusion matrix of {len(names)} labels is in --json."])
    if report.by_length is not None:
        rows = [
            [_span(bucket), *map(_number, (bucket.num_texts, *bucket.figures.values()))] for bucket in report.by_length
        ]
        parts.append(_columns([["tokens", "texts", *map(_spoken, report.figures)], *rows]))
    return "\n\n".join("\n".join(lines) for lines in parts)


def changes(before: Report, after: Report) -> str:
    """What another temperature does to the same scores, on one line."""
    figures = [("temperature", f"{before.temperature:.4g}", f"{after.temperature:.4g}")]
    figures += [
        (_spoken(name), _number(before.figures[name]), _number(after.figures[name]))
        for name in ("log_loss", "calibration_error")
    ]
    return ", ".join(f"{name} {old} → {new}" for name, old, new in figures)


_WIDEST = 20
"""More labels than this make no matrix that a terminal can show."""


def _span(bucket: Bucket) -> str:
    if bucket.longest is None:
        return f"{bucket.shortest} or more, cut"
    return f"{bucket.shortest} to {bucket.longest}"


def _spoken(figure: str) -> str:
    return {"num_texts": "texts"}.get(
        figure, figure.replace("_", " ").replace("f1", "F1").replace("matthews", "Matthews")
    )


def _number(value: float) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return "–" if math.isnan(value) else f"{value:.4f}"


def _label_cell(label: str) -> str:
    """On one line and not too wide, whatever a config calls it; control characters would move the cursor."""
    cell = "".join(char if char.isprintable() else " " for char in label)
    return cell if len(cell) <= 24 else cell[:23] + "…"


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]


def to_json(report: Report) -> dict[str, Any]:
    """The same as `table`, and the bins of the reliability diagram; null for what has no meaning."""
    found: dict[str, Any] = {
        "problem_type": report.problem_type,
        "num_texts": report.num_texts,
        "temperature": report.temperature,
        **report.figures,
    }
    if report.by_label:
        found |= {"by_label": report.by_label, "labels": report.labels, "confusion": report.confusion}
    if report.bins is not None:
        found["bins"] = [bin_._asdict() for bin_ in _bins(report.bins)]
    if report.by_length is not None:
        found["by_length"] = [
            {"shortest": bucket.shortest, "longest": bucket.longest, "num_texts": bucket.num_texts, **bucket.figures}
            for bucket in report.by_length
        ]
    return _without_nan(found)


class Bin(NamedTuple):
    """The texts, or decisions, whose best score is above `low`, at most `high`; means are NaN where there is none."""

    low: float
    high: float
    num_texts: int
    score: float
    """The mean of the best scores."""
    accuracy: float


def _bins(sums: LabelSums) -> list[Bin]:
    with np.errstate(invalid="ignore"):
        scores, accuracies = sums.score_in_bin / sums.num_in_bin, sums.num_right_in_bin / sums.num_in_bin
    edges = np.linspace(0, 1, len(scores) + 1).tolist()
    columns = (edges[:-1], edges[1:], sums.num_in_bin.tolist(), scores.tolist(), accuracies.tolist())
    return [Bin(*row) for row in zip(*columns, strict=True)]


def _without_nan(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {name: _without_nan(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def check_plot(file: str | os.PathLike, config: ModelConfig) -> None:
    """Refuses what `plot` could not do, before anything is computed.

    Raises:
        ImportError: matplotlib is not installed; the message has the command.
        FlaxsentError: the model is one of regression, or nothing is drawn in files of this name.
        FileNotFoundError: no folder to write in.
    """
    if config.problem_type == "regression":
        raise FlaxsentError("--plot draws the reliability of probabilities; the scores of this model are values.")
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError(f"the reliability diagram needs matplotlib, which is not installed: {INSTALL}")
    from matplotlib.figure import Figure

    path, forms = Path(file), Figure().canvas.get_supported_filetypes()
    if path.suffix[1:].lower() not in forms:
        raise FlaxsentError(f"--plot {file}: expected a file that ends in .{', .'.join(sorted(forms))}.")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"--plot {file}: there is no folder {path.parent}; make it first.")


def plot(reports: Sequence[Report], file: str | os.PathLike) -> None:
    """Draws reliability diagrams side by side: accuracy over best score, and below how many texts have such a score.

    Raises:
        OSError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(reports), 6), layout="constrained")
    panels = figure.subplots(2, len(reports), squeeze=False, sharex=True, height_ratios=(3, 1))
    for (upper, lower), report in zip(panels.T, reports, strict=True):
        assert report.bins is not None  # `check_plot` has refused it
        bins = [one for one in _bins(report.bins) if one.num_texts]
        style = {"width": 1 / metrics.NUM_BINS, "align": "edge", "edgecolor": "white"}
        starts = [one.low for one in bins]
        upper.bar(starts, [one.accuracy for one in bins], **style)
        upper.plot([0, 1], [0, 1], color="tab:gray", linestyle="--")
        upper.plot([one.score for one in bins], [one.accuracy for one in bins], "o", color="tab:orange")
        error = report.figures["calibration_error"]
        upper.set(
            title=f"temperature {report.temperature:.4g}, calibration error {error:.4f}",
            xlim=(0, 1),
            ylim=(0, 1),
            ylabel="accuracy",
        )
        lower.bar(starts, [one.num_texts for one in bins], **style)
        lower.set(xlabel="best score", ylabel="decisions" if report.confusion is None else "texts")
    figure.savefig(file)


def fit_temperature(logits_BC: Float[np.ndarray, "B C"], targets: Targets, problem_type: ProblemType) -> float:
    """The temperature at which the log loss is least (Guo et al. 2017, section 4.2), in float64.

    The log loss is convex in 1 / temperature, so it has one valley over the logarithm of the temperature, which a
    golden-section search (Kiefer 1953) closes in on.

    Raises:
        FlaxsentError: regression; or there is no such temperature, as all texts are right or the scores say nothing.
    """
    check_calibrates(problem_type)
    logits, labels_B = np.asarray(logits_BC, np.float64), targets
    if problem_type == "multi_label_classification":  # each label of each text is a decision between no and yes
        yes = logits.reshape(-1)
        logits, labels_B = np.stack([np.zeros_like(yes), yes], axis=1), targets.reshape(-1).astype(np.int64)
    # Relative to the logit of the right label, from here on.
    over_BC = logits - np.take_along_axis(logits, labels_B[:, None], axis=1)
    is_other_BC = np.arange(logits.shape[1]) != labels_B[:, None]
    if (over_BC[is_other_BC] < 0).all():
        raise FlaxsentError(
            f"the model has all {len(targets):,} texts right, so that the surest scores fit best; calibrate on texts "
            "of which it has some wrong."
        )
    if over_BC.mean() >= 0:
        raise FlaxsentError("the model's scores do not favour the right labels, so that no temperature fits them.")

    def log_loss(log_temperature: float) -> float:
        scaled_BC = over_BC / math.exp(log_temperature)
        most_B = scaled_BC.max(axis=1)
        return float((most_B + np.log(np.exp(scaled_BC - most_B[:, None]).sum(axis=1))).mean())

    low, high = map(math.log, (0.001, 1000.0))
    shorter = (math.sqrt(5) - 1) / 2
    inner = [high - shorter * (high - low), low + shorter * (high - low)]
    losses = [log_loss(point) for point in inner]
    while high - low > _PRECISION:
        if losses[0] < losses[1]:
            high, inner[1], losses[1] = inner[1], inner[0], losses[0]
            inner[0] = high - shorter * (high - low)
            losses[0] = log_loss(inner[0])
        else:
            low, inner[0], losses[0] = inner[0], inner[1], losses[1]
            inner[1] = low + shorter * (high - low)
            losses[1] = log_loss(inner[1])
    return math.exp((low + high) / 2)


_PRECISION = 1e-7
"""Of the logarithm of the temperature; closer together, losses differ by no more than float64 rounds."""


def check_calibrates(problem_type: ProblemType) -> None:
    """Raises ValueError for regression, whose values are no probabilities."""
    if problem_type == "regression":
        raise FlaxsentError("--calibrate fits a temperature of probabilities; the scores of this model are values.")


def check_writable(model: str | None) -> None:
    """Refuses a model that is in no folder of the user's, before it is loaded.

    Raises:
        FlaxsentError: the embedded checkpoint, or the name of one on the Hub.
        PermissionError: a folder that cannot be written in.
    """
    if model is None or not Path(model).is_dir():
        name = "the embedded model" if model is None else f"{model}, which is no folder"
        loaded = "" if model is None else repr(model)
        raise FlaxsentError(
            f"--calibrate writes into the config.json of the model and cannot for {name}; write a folder first, with "
            f"flaxsent.save(flaxsent.load({loaded}), FOLDER), and pass --model FOLDER."
        )
    if not os.access(model, os.W_OK | os.X_OK):
        raise PermissionError(f"{model} is a folder that cannot be written in; --calibrate needs to: copy it first.")


def store_temperature(folder: str | os.PathLike, temperature: float) -> None:
    """Writes the temperature into the config.json of a folder, which is there whole at any time.

    Raises:
        OSError: the folder cannot be written.
        FlaxsentError: it holds no config.json of a model with probabilities.
    """
    file = Path(folder, "config.json")
    edited = set_temperature(file.read_text(encoding="utf-8"), temperature)
    temporary = file.with_name(f".config.json.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as stream:
            stream.write(edited)
            stream.flush()
            os.fsync(stream.fileno())
        shutil.copymode(file, temporary)
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
