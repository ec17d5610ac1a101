"""A table of scores that were made elsewhere → logits, as `report.logits_of` gives them for a model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from flaxsent.base import FlaxsentError, Text
from flaxsent.data.records import read
from flaxsent.data.writers import ESCAPES
from flaxsent.evaluation.report import Data
from flaxsent.models.config import ModelConfig
from flaxsent.postprocessing import as_logits


def read_scores(
    file: str | Path, data: Data, config: ModelConfig, *, text_columns: Sequence[str] = ("text",)
) -> Float[np.ndarray, "B C"]:
    """Logits of which the scores of a file come: probabilities of one label of several or each of them, or values.

    The file is such as `flaxsent classify --all-scores` writes: the same texts in the same order, in CSV, TSV, JSONL or
    Parquet, with a column of scores named after each label.

    Raises:
        FileNotFoundError: no such file.
        FlaxsentError: a column is missing, a text is another, or a score is no number or no probability.
    """
    rows: list[list[float]] = []
    with read(file, text_columns=text_columns, other_columns=config.labels) as source:
        for record in source.records:
            if record.error is not None:
                raise FlaxsentError(f"{file} row {record.number} {record.error}.")
            if len(rows) < len(data.texts) and not _is(data.texts[len(rows)], record.text):
                raise FlaxsentError(
                    f"{file} row {record.number} has another text than {data.file} row {data.records[len(rows)]}; "
                    "expected the same texts in the same order."
                )
            scores = [_number(record.columns.get(label)) for label in config.labels]
            if not _is_good(scores, config):
                told = ", ".join(str(record.columns.get(label)) for label in config.labels)
                expected = _EXPECTED[config.problem_type]
                raise FlaxsentError(f"{file} row {record.number} has the scores {told:.99}; expected {expected}.")
            rows.append(scores)
    if len(rows) != len(data.texts):
        raise FlaxsentError(f"{file} has {len(rows):,} rows, and {data.file} {len(data.texts):,}; expected as many.")
    return as_logits(np.array(rows, np.float64), problem_type=config.problem_type).astype(np.float32)


def _is(text: Text, found: Text | None) -> bool:
    """Whether it is the one found in a file, which may have it as .tsv files of other formats' texts do."""
    written = text.translate(ESCAPES) if isinstance(text, str) else tuple(one.translate(ESCAPES) for one in text)
    return found in (text, written)


_EXPECTED = {
    "single_label_classification": "probabilities with the sum 1; --model knows labels that no record has",
    "multi_label_classification": "probabilities",
    "regression": "a finite number",
}


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")


def _is_good(scores: list[float], config: ModelConfig) -> bool:
    if not np.isfinite(scores).all():
        return False
    if config.problem_type == "regression":
        return True
    # Written with a few digits, the sum of many labels is off 1.
    is_sum_good = config.problem_type == "multi_label_classification" or abs(sum(scores) - 1) <= 0.01
    return min(scores) >= 0 and max(scores) <= 1 + 1e-6 and is_sum_good
