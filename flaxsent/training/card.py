"""The model card of a run: its data, its options, and its figures on dev."""

import dataclasses
from pathlib import Path
from typing import Any

from flaxsent.checkpoint.card import CARD, is_kept, model_card
from flaxsent.data.labels import Examples, describe
from flaxsent.models.config import ModelConfig
from flaxsent.training.options import RunOptions, TrainOptions
from flaxsent.training.trainer import Evaluation

_SCORES = {
    "single_label_classification": "accuracy",
    "multi_label_classification": "micro_f1",
    "regression": "r_squared",
}
"""What `Evaluation.score` is."""
_LOSSES = {"regression": "mean_squared_error"}


def write_card(
    folder: Path,
    config: ModelConfig,
    options: RunOptions,
    train_options: TrainOptions,
    *,
    train: Examples,
    dev: Examples | None,
    evaluation: Evaluation | None,
) -> None:
    """Writes the card of a run into its unfinished output, unless the output has one that somebody took over."""
    output = Path(options.output)
    if is_kept(output):
        (folder / CARD).write_bytes((output / CARD).read_bytes())
        return
    problem_type = config.problem_type
    is_on_hub = options.model is not None and not Path(options.model).exists()
    start = "the embedded checkpoint of flaxsent" if options.model is None else _name(options.model)
    data = {"start": str(options.model) if is_on_hub else start}
    data |= {"training": f"{_name(options.train)}, {describe(train, config.labels, problem_type)}"}
    figures: dict[str, float] = {}
    if dev is not None:
        data["dev"] = f"{_name(options.dev)}, {describe(dev, config.labels, problem_type)}"
    if evaluation is not None:
        loss = _LOSSES.get(problem_type, "loss")
        figures = {_SCORES[problem_type]: evaluation.score, loss: evaluation.loss}
    card = model_card(
        config,
        name=output.absolute().name,
        base_model=options.model if is_on_hub else None,
        data=data,
        measured_on=_name(options.dev) if figures else None,
        figures=figures,
        options=dataclasses.asdict(train_options),
    )
    (folder / CARD).write_text(card, encoding="utf-8")


def _name(file: Any) -> str:
    """Without the folders of the machine that trained."""
    return Path(str(file)).name
