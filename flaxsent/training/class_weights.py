"""What the labels weigh in the loss: "balanced", a file or a mapping → a weight for each label; see `losses.py`."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from flaxsent.base import FlaxsentError
from flaxsent.models.config import ModelConfig

BALANCED = "balanced"


def read(told: str) -> str | dict[str, Any]:
    """What `--class-weights` says: "balanced", or a file with a JSON object of labels and their weights.

    Raises:
        FileNotFoundError: no such file.
        FlaxsentError: it holds something else.
    """
    if told == BALANCED:
        return told
    if not Path(told).is_file():
        raise FileNotFoundError(f"class_weights: {told}: no such file; expected it or {BALANCED}.")
    try:
        weights = json.loads(Path(told).read_bytes(), object_pairs_hook=_once_each)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as err:
        raise FlaxsentError(f"class_weights: {told} is not JSON: {err}.") from err
    if not isinstance(weights, dict):
        raise FlaxsentError(f"class_weights: {told} holds no JSON object; expected {{label: weight, ...}}.")
    return weights


def _once_each(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object of which no key comes twice: `json` would keep the last one and tell nobody."""
    weights = dict(pairs)
    if len(weights) < len(pairs):
        (label, count), *_ = Counter(label for label, _ in pairs).most_common(1)
        raise FlaxsentError(f"class_weights: the label {label} comes {count} times; give it one weight.")
    return weights


def weights_of(
    told: str | Mapping[str, Any], targets: Shaped[np.ndarray, "*N_or_C"], config: ModelConfig
) -> Float[np.ndarray, " C"]:
    """A weight for each label, by a mapping, a file (`read`) or, if "balanced", the targets (`labels_as_arrays`).

    Balanced, each label weighs as much as any other: n / (C · n of the label), which is scikit-learn's formula, and for
    several labels a text the texts without the label by those with it, which is PyTorch's for `pos_weight`. A mapping
    gives the weights that are not 1.

    Raises:
        FlaxsentError: regression has no labels; a label is unknown; a weight is no positive number; or no text, or
            every text, has a label that is to be balanced.
    """
    if config.problem_type == "regression":
        raise FlaxsentError("class_weights are for labels; this is regression.")
    if isinstance(told, str):
        told = read(told)
    if isinstance(told, str):
        return _balanced(targets, config)
    if unknown := [label for label in told if label not in config.labels]:
        known = ", ".join(config.labels[:20])
        raise FlaxsentError(f"class_weights: {unknown[0]!r} is no label; expected {known}.")
    for label, weight in told.items():
        is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not is_number or not math.isfinite(weight) or weight <= 0:
            raise FlaxsentError(f"class_weights: {label} weighs {weight!r}; expected a positive number.")
    return np.array([told.get(label, 1.0) for label in config.labels], np.float32)


def count_by_label(targets: Shaped[np.ndarray, "*N_or_C"], config: ModelConfig) -> Float[np.ndarray, " C"]:
    """How many of the texts have each label."""
    if config.problem_type == "multi_label_classification":
        return targets.sum(axis=0, dtype=np.float64)
    return np.bincount(targets, minlength=config.num_labels).astype(np.float64)


def _balanced(targets: Shaped[np.ndarray, "*N_or_C"], config: ModelConfig) -> Float[np.ndarray, " C"]:
    counts_C, is_several = count_by_label(targets, config), config.problem_type == "multi_label_classification"
    for which, is_odd_C in (("no", counts_C == 0), ("every", (counts_C == len(targets)) & is_several)):
        if is_odd_C.any():
            label = config.labels[int(is_odd_C.argmax())]
            raise FlaxsentError(
                f"class_weights={BALANCED}: {which} text to learn from has the label {label}; give weights in a file."
            )
    rest_C = len(targets) - counts_C if is_several else np.full(len(counts_C), len(targets) / len(counts_C))
    return (rest_C / counts_C).astype(np.float32)
