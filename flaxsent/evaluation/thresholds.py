"""Logits and targets → a threshold for each of several labels, stored with the labels in a checkpoint folder."""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from flaxsent import files
from flaxsent.base import FlaxsentError, ProblemType
from flaxsent.models.config import THRESHOLDS_KEY, ModelConfig, thresholds_json
from flaxsent.postprocessing import probabilities, tune_thresholds


def check(problem_type: ProblemType) -> None:
    """Raises FlaxsentError for a model that does not give several labels at once."""
    if problem_type != "multi_label_classification":
        raise FlaxsentError(
            "--tune-thresholds is for a model that gives a text several labels; this one gives it one label or value."
        )


def tuned(
    logits_BC: Float[np.ndarray, "B C"], targets_BC: Float[np.ndarray, "B C"], config: ModelConfig
) -> ModelConfig:
    """The config with the thresholds of `tune_thresholds` for these texts."""
    probs = probabilities(logits_BC, problem_type=config.problem_type)
    return dataclasses.replace(config, label_thresholds=tune_thresholds(probs, targets_BC))


def store(folder: str | os.PathLike, thresholds: Sequence[float]) -> Path:
    """Writes thresholds into the config.json of a folder, of which all else stays; gives the file.

    Raises:
        OSError: it cannot be written; it is as it was then.
    """
    file = Path(folder, "config.json")
    raw = json.loads(file.read_text(encoding="utf-8")) | {THRESHOLDS_KEY: thresholds_json(thresholds)}
    files.write(file, (json.dumps(raw, indent=2, sort_keys=True) + "\n").encode())
    return file
