"""Scores and targets → a table with what the model should have said of each text and what it said."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from flaxsent.base import FlaxsentError
from flaxsent.data.base import Layout, Record, format_of
from flaxsent.data.writers import Kind, open_writer
from flaxsent.evaluation.report import Data
from flaxsent.files import appearing
from flaxsent.models.config import ModelConfig
from flaxsent.postprocessing import decode


def check(file: str | Path, config: ModelConfig, *, text_columns: Sequence[str], inputs: Sequence[str]) -> None:
    """Refuses what `write` could not do, before anything is computed.

    Raises:
        FileNotFoundError: there is no such folder.
        FlaxsentError: the file is an input, its format is unknown, or two of its columns would have one name.
    """
    path = Path(file)
    if format_of(file) == "lines":
        raise FlaxsentError(f"--predictions {file}: a .txt has no columns; expected .csv, .tsv, .jsonl or .parquet.")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"--predictions {file}: there is no folder {path.parent}; make it first.")
    if path.resolve() in {Path(one).resolve() for one in inputs}:
        raise FlaxsentError(f"--predictions {file} is an input, and would be overwritten; choose another name.")
    own = ("row", "label", "predicted", "score")
    names = [*text_columns, *own, *(() if config.problem_type == "regression" else config.labels)]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise FlaxsentError(f"--predictions {file} would have the column {twice!r} twice; rename the label or column.")


def write(
    file: str | Path,
    data: Data,
    scores_BC: Float[np.ndarray, "B C"],
    config: ModelConfig,
    *,
    text_columns: Sequence[str],
) -> None:
    """Writes the row in the data, the text, its `label`, the one `predicted`, its `score`, and a score for each label.

    Several labels of a text are lists: JSON in text formats. The file can be given to `evaluate --scores`.

    Raises:
        OSError: the file cannot be written.
    """
    layout = Layout("csv", tuple(text_columns), None)
    kinds = _kinds(config)
    writer = open_writer(format_of(file), layout, tuple(kinds), kinds=kinds)
    pairs = [text if isinstance(text, tuple) else (text,) for text in data.texts]
    records = [Record(0, columns=dict(zip(text_columns, pair, strict=True))) for pair in pairs]
    columns = dict(zip(kinds, _columns(data, scores_BC, config), strict=True))
    with appearing(Path(file)) as stream:
        if format_of(file) == "parquet":
            stream.write(writer.encode(records, columns))
        else:
            writer.join([], stream)
            stream.write(writer.encode(records, columns))


def _kinds(config: ModelConfig) -> dict[str, Kind]:
    if config.problem_type == "regression":
        return {"row": "integer", "label": "number", "predicted": "number"}
    is_several = config.problem_type == "multi_label_classification"
    named: Kind = "texts" if is_several else "text"
    found: dict[str, Kind] = {"row": "integer", "label": named, "predicted": named}
    found["score"] = "numbers" if is_several else "number"
    for label in config.labels:
        found[label] = "number"
    return found


def _columns(data: Data, scores_BC: Float[np.ndarray, "B C"], config: ModelConfig) -> list[Any]:
    match config.problem_type:
        case "regression":
            return [data.records, data.targets[:, 0], scores_BC[:, 0]]
        case "multi_label_classification":
            own = [[config.labels[index] for index in np.flatnonzero(target_C)] for target_C in data.targets]
            found = decode(scores_BC, labels=config.labels, thresholds=config.thresholds)
            scores = [np.array(one.scores, np.float32).astype(str).astype(np.float64).tolist() for one in found]
            named = [[*one.labels] for one in found]
        case "single_label_classification":
            own = [config.labels[index] for index in data.targets]
            named = [config.labels[index] for index in scores_BC.argmax(axis=1)]
            scores = scores_BC.max(axis=1)
    return [data.records, own, named, scores, *scores_BC.T]
