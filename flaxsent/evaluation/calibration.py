"""Logits and targets → one temperature, folded into the last layer of a checkpoint folder (Guo et al. 2017)."""

import dataclasses
import math
import os
from pathlib import Path

import numpy as np
from jaxtyping import Float

from flaxsent import models
from flaxsent.base import FlaxsentError, ProblemType
from flaxsent.checkpoint import adapters
from flaxsent.checkpoint.exported import is_exported
from flaxsent.checkpoint.folder import save
from flaxsent.checkpoint.tokenizer import TOKENIZER_FILES
from flaxsent.checkpoint.weights import SAFETENSORS, stored_dtype
from flaxsent.classifier import Classifier
from flaxsent.evaluation.report import Targets
from flaxsent.models.config import ModelConfig
from flaxsent.tokenization import Windows


def fit_temperature(logits_BC: Float[np.ndarray, "B C"], targets: Targets, problem_type: ProblemType) -> float:
    """The temperature, from 0.001 to 1000, at which the log loss is least (section 4.2), in float64.

    Raises:
        FlaxsentError: regression; or there is no such temperature, as all texts are right or the scores say nothing.
    """
    from scipy import optimize, special  # take a quarter of a second, which only --calibrate needs

    check_has_probabilities(problem_type)
    logits_BC, labels_B = np.asarray(logits_BC, np.float64), targets
    if problem_type == "multi_label_classification":  # the sigmoid of a logit is the softmax of 0 and the logit
        yes_N = logits_BC.reshape(-1)
        logits_BC, labels_B = np.stack([np.zeros_like(yes_N), yes_N], axis=1), targets.reshape(-1).astype(np.int64)
    # Relative to the logit of the right label, from here on.
    over_BC = logits_BC - np.take_along_axis(logits_BC, labels_B[:, None], axis=1)
    is_other_BC = np.arange(over_BC.shape[1]) != labels_B[:, None]
    if (over_BC[is_other_BC] < 0).all():
        raise FlaxsentError(
            f"the model has all {len(targets):,} texts right, so that the lowest temperature fits best; calibrate on "
            "texts of which it has some wrong."
        )
    if over_BC.mean() >= 0:
        raise FlaxsentError("the model's scores do not favour the right labels, so that no temperature fits them.")
    # Convex in 1 / temperature, the log loss has one valley over the logarithm of the temperature.
    found = optimize.minimize_scalar(
        lambda log: special.logsumexp(over_BC / math.exp(log), axis=1).mean(),
        bounds=(math.log(0.001), math.log(1000)),
        method="bounded",
        options={"xatol": 1e-9},
    )
    return math.exp(found.x)


def check_has_probabilities(problem_type: ProblemType) -> None:
    """Raises FlaxsentError for regression."""
    if problem_type == "regression":
        raise FlaxsentError("--calibrate fits a temperature to probabilities; this model gives values instead.")


def check_windows(windows: Windows | None) -> None:
    """Raises FlaxsentError for windows of which probabilities are pooled: a temperature divides logits."""
    if windows is not None and windows.pooling.endswith("probabilities"):
        raise FlaxsentError(
            f"--calibrate divides logits, and --pooling {windows.pooling} pools probabilities; pass mean_logits or "
            "max_logits."
        )


def check_folder(model: str | None, option: str = "--calibrate", what: str = "weights") -> None:
    """Refuses a model whose weights, or config.json, an option cannot write, before it is loaded.

    Raises:
        FlaxsentError: the embedded checkpoint, one on the Hub, an exported folder, an adapter, or the current folder.
        PermissionError: a folder that cannot be replaced.
    """
    if model is None or not Path(model).is_dir():
        name = "the embedded model" if model is None else f"{model}, which is no folder"
        loaded = "" if model is None else repr(model)
        raise FlaxsentError(
            f"{option} writes the {what} of a folder, and cannot for {name}; write a folder first, with "
            f"flaxsent.save(flaxsent.load({loaded}), FOLDER), and pass --model FOLDER."
        )
    if is_exported(model):
        raise FlaxsentError(
            f"{option} cannot write the {what} of {model}, which was exported; pass the checkpoint, then export it "
            "anew."
        )
    if adapters.is_adapter(model):
        raise FlaxsentError(
            f"{option} writes the {what} of a whole checkpoint, and {model} is an adapter; write a whole one first, "
            f"with flaxsent.save(flaxsent.load({model!r}), FOLDER), and pass --model FOLDER."
        )
    folder = Path(model).resolve()
    if what != "weights":
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(f"{option} writes into the folder {model}, which you may not; copy it first.")
        return
    if Path.cwd().is_relative_to(folder):
        raise FlaxsentError(f"{option} replaces the folder {folder}, which is the current one; run it from another.")
    if not all(os.access(path, os.W_OK | os.X_OK) for path in (folder, folder.parent)):
        raise PermissionError(f"{option} replaces the folder {model}, which you may not write; copy it first.")


def calibrated_config(config: ModelConfig, temperature: float) -> ModelConfig:
    """The config of a model whose logits are divided: the thresholds of its labels move with the probabilities."""
    if config.label_thresholds is None:
        return config
    logits_C = np.log(config.label_thresholds) - np.log1p(-np.array(config.label_thresholds))
    # Beyond 34, float64 does not tell the probability from 1.
    moved = 1 / (1 + np.exp(-np.clip(logits_C / temperature, -34, 34)))
    return dataclasses.replace(config, label_thresholds=(*moved.tolist(),))


def calibrate(classifier: Classifier, folder: str | os.PathLike, temperature: float) -> Path:
    """Writes the folder of a classifier anew, whole or not at all, with logits divided by `temperature`.

    The weights keep their stored dtype, to which the last layer is rounded; gives the file in which they are. All
    other files stay, but for those with the weights as they were.

    Raises:
        OSError: the folder cannot be written; it is as it was then.
    """
    target = Path(folder)
    divided = dataclasses.replace(
        classifier,
        params=models.divide_logits(classifier.params, temperature),
        config=calibrated_config(classifier.config, temperature),
        # `save` would leave out the vocabulary that PyTorch's slow tokenizers read.
        tokenizer=dataclasses.replace(
            classifier.tokenizer,
            files={name: (target / name).read_bytes() for name in TOKENIZER_FILES if (target / name).is_file()},
        ),
    )
    save(divided, target, dtype=stored_dtype(target), card=False)
    return target / SAFETENSORS
