"""The model card of a run: its data, its options, and its figures on dev."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flaxsent.checkpoint.card import CARD, is_kept, model_card
from flaxsent.data.labels import Examples, describe
from flaxsent.models.config import ModelConfig
from flaxsent.training import patterns
from flaxsent.training.choosing import METRICS, Evaluation, metric_of
from flaxsent.training.options import RunOptions, TrainOptions

_LOSSES = {"regression": "mean_squared_error"}


def write_card(
    folder: Path,
    config: ModelConfig,
    options: RunOptions,
    train_options: TrainOptions,
    *,
    files: Sequence[str],
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
    names = patterns.listed([_name(file) for file in files])
    data |= {"training": f"{names}, {describe(train, config.labels, problem_type)}"}
    figures: dict[str, float] = {}
    dev_name = f"{options.dev_fraction or 0:.0%} of the training data" if options.dev is None else _name(options.dev)
    if dev is not None:
        data["dev"] = f"{dev_name}, {describe(dev, config.labels, problem_type)}"
    if evaluation is not None:
        loss = _LOSSES.get(problem_type, "loss")
        metric = METRICS[metric_of(problem_type, train_options.metric)]
        figures = {metric.name: evaluation.score, loss: evaluation.loss}
    card = model_card(
        config,
        name=output.absolute().name,
        base_model=options.model if is_on_hub else None,
        data=data,
        measured_on=dev_name if figures else None,
        figures=figures,
        options=dataclasses.asdict(train_options) | ({"contrastive": True} if options.contrastive else {}),
        is_adapter=bool(train_options.lora_rank),
    )
    (folder / CARD).write_text(card, encoding="utf-8")


def _name(file: Any) -> str:
    """Without the folders of the machine that trained."""
    return Path(str(file)).name
