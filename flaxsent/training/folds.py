"""Cross-validation: a run for each fold on all texts but its own, scored on these; `run.py` writes what comes of it."""

import dataclasses
import io
import json
import shutil
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from flaxsent.base import FlaxsentError, Text
from flaxsent.classifier import Classifier
from flaxsent.data.labels import Examples
from flaxsent.engine import Engine
from flaxsent.files import write
from flaxsent.packing import StepShape
from flaxsent.postprocessing import probabilities
from flaxsent.training import choosing, distributed
from flaxsent.training.batches import labels_as_arrays
from flaxsent.training.choosing import METRICS, Evaluation
from flaxsent.training.class_weights import weights_of
from flaxsent.training.options import Metric, TrainOptions
from flaxsent.training.splits import select
from flaxsent.training.trainer import Snapshot, Trainer
from flaxsent.training.work import FOLDS, OUT_OF_FOLD


class Validated(NamedTuple):
    """What cross-validation says of the options and the texts."""

    metric: Metric
    by_fold: list[Evaluation]
    scores: Float[np.ndarray, "B C"]
    """Of each text, by the run that has not seen it."""

    @property
    def mean(self) -> float:
        return statistics.mean(one.score for one in self.by_fold)

    @property
    def spread(self) -> float:
        """The standard deviation of the folds' figures, by n − 1."""
        return statistics.stdev(one.score for one in self.by_fold)


def validate(
    classifier: Classifier,
    data: Examples,
    fold_N: Int[np.ndarray, " N"],
    folder: Path,
    *,
    options: TrainOptions,
    shapes: tuple[StepShape, ...],
    steps: Callable[[Trainer, Path], Snapshot],
    report: Callable[[str], None],
) -> Validated:
    """`steps(trainer, folder)` makes the steps of a run; the folds that `folder` has the logits of are not run again.

    Raises: as `steps`.
    """
    config, num_folds = classifier.config, int(fold_N.max()) + 1
    labels = labels_as_arrays(data, config)
    metric = choosing.metric_of(config.problem_type, options.metric)
    weights = options.class_weights
    if weights is not None:  # the same in all folds, of which one may lack a label
        weights = dict(zip(config.labels, weights_of(weights, labels, config).tolist(), strict=True))
    options = dataclasses.replace(options, metric=None, class_weights=weights)
    logits_BC, by_fold = np.zeros((len(fold_N), config.num_labels), np.float32), []
    for fold in range(num_folds):
        file, own = folder / f"{fold + 1}.npy", np.flatnonzero(fold_N == fold)
        if not file.exists():
            trainer = Trainer(classifier, select(data, np.flatnonzero(fold_N != fold)), options=options, shapes=shapes)
            (folder / str(fold + 1)).mkdir(parents=True, exist_ok=True)
            trained = trainer.result(steps(trainer, folder / str(fold + 1)))
            with Engine(trained, function=trained.logits) as engine:
                _keep(engine(select(data, own).texts), file)
            distributed.wait(f"fold {fold + 1} was written")
        logits_BC[own] = np.load(file)
        by_fold.append(choosing.evaluate(logits_BC[own], labels[own], config, metric=metric, tunes_thresholds=False))
        report(f"fold {fold + 1} {METRICS[metric].told} {by_fold[-1].score:.4f} loss {by_fold[-1].loss:.4f}")
    scores_BC = np.asarray(probabilities(logits_BC, problem_type=config.problem_type))
    found = Validated(metric, by_fold, scores_BC)
    report(f"{num_folds} folds: {METRICS[metric].told} {found.mean:.4f} ± {found.spread:.4f}")
    return found


def _keep(logits_BC: Float[np.ndarray, "B C"], file: Path) -> None:
    """With its logits, the checkpoints of a fold are not needed any more."""
    if distributed.is_first():
        content = io.BytesIO()
        np.save(content, logits_BC)
        write(file, content.getvalue())
        shutil.rmtree(file.with_suffix(""))


def check_names(labels: Sequence[str], text_columns: Sequence[str]) -> None:
    """Raises FlaxsentError where a label would have the column of the texts in the file of scores."""
    if same := {*labels} & {*text_columns}:
        raise FlaxsentError(f"folds: {OUT_OF_FOLD} has a column of texts and one a label; rename {same.pop()!r}.")


def write_into(
    folder: Path, found: Validated, texts: Sequence[Text], *, labels: Sequence[str], text_columns: Sequence[str]
) -> None:
    """Writes the figures, and the scores as `evaluate --scores` reads them."""
    by_fold = [{"score": one.score, "loss": one.loss} for one in found.by_fold]
    told = {"metric": found.metric, "mean": found.mean, "spread": found.spread, "by_fold": by_fold}
    write(folder / FOLDS, f"{json.dumps(told, indent=1)}\n".encode())
    lines = []
    for text, scores in zip(texts, found.scores, strict=True):
        cells: dict[str, Any] = dict(zip(text_columns, (text,) if isinstance(text, str) else text, strict=True))
        cells |= dict(zip(labels, [float(str(score)) for score in scores], strict=True))
        lines.append(f"{json.dumps(cells, ensure_ascii=False)}\n")
    write(folder / OUT_OF_FOLD, "".join(lines).encode())
