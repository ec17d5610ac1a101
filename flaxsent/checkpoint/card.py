"""The README.md of a checkpoint folder: a model card whose head the Hub reads, with figures where there are some."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flaxsent.models.config import ModelConfig

CARD = "README.md"

_MADE = "<!-- flaxsent wrote this card, and training writes it anew; delete this line to keep it as it is. -->"

_METRICS = {
    "accuracy": "accuracy",
    "macro_f1": "f1",
    "micro_f1": "f1",
    "matthews": "matthews_correlation",
    "pearson": "pearsonr",
    "spearman": "spearmanr",
    "mean_squared_error": "mse",
}
"""What the Hub calls a figure; others have their own names there."""


def model_card(
    config: ModelConfig,
    *,
    name: str,
    base_model: str | None = None,
    data: Mapping[str, str] | None = None,
    measured_on: str | None = None,
    figures: Mapping[str, float] | None = None,
    options: Mapping[str, Any] | None = None,
    is_adapter: bool = False,
) -> str:
    """A card in Markdown, with a head in YAML that `huggingface_hub.ModelCard` reads.

    Args:
        config: whose labels and problem type are told.
        name: the model's.
        base_model: the Hub id of what was trained further.
        data: which files were for what, with a line on each.
        measured_on: the name of the data that the figures are of.
        figures: by name, such as accuracy; they are the `model-index` of the head.
        options: those that training was given.
        is_adapter: whether the folder holds adapters in PEFT's format, and no whole checkpoint.
    """
    from huggingface_hub import EvalResult, ModelCardData

    found = {one: value for one, value in (figures or {}).items() if math.isfinite(value)}
    found = {} if measured_on is None else found
    results = [
        EvalResult(
            task_type="text-classification",
            dataset_type=re.sub(r"[^\w.-]+", "-", Path(str(measured_on)).stem) or "data",
            dataset_name=_line(str(measured_on)),
            metric_type=_METRICS.get(figure, figure),
            metric_name=_spoken(figure),
            metric_value=value,
        )
        for figure, value in found.items()
    ]
    head = ModelCardData(
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="text-classification",
        tags=["flaxsent", *(["lora"] if is_adapter else [])],
        base_model=base_model,
        model_name=_line(name) if results else None,
        eval_results=results or None,
    )
    labels = ", ".join(_code(label) for label in config.labels[:_MOST_TOLD])
    more = f" and {config.num_labels - _MOST_TOLD:,} more" if config.num_labels > _MOST_TOLD else ""
    what = {
        "single_label_classification": "Gives a text one of its labels",
        "multi_label_classification": "Gives a text each of its labels that fits, perhaps none",
        "regression": "Gives a text a value",
    }[config.problem_type]
    parts = [
        f"---\n{head.to_yaml()}\n---\n\n{_MADE}\n",
        f"# {_plain(name)}\n",
        f"{what}: {labels}{more}. Architecture: {_code(config.family)}.\n",
        _USE.format("PEFT" if is_adapter else "transformers", "AutoPeft" if is_adapter else "Auto"),
    ]
    if data:
        parts.append("## Data\n\n" + "".join(f"- {_plain(one)}: {_plain(told)}\n" for one, told in data.items()))
    if found:
        rows = "".join(f"| {_spoken(figure)} | {value:.4f} |\n" for figure, value in found.items())
        parts.append(f"## Figures\n\nOn {_code(str(measured_on))}:\n\n| figure | value |\n|---|---|\n{rows}")
    if options:
        rows = "".join(f"| {_code(one)} | {_code(json.dumps(value))} |\n" for one, value in options.items())
        parts.append(f"## Options\n\n| option | value |\n|---|---|\n{rows}")
    return "\n".join(parts)


_MOST_TOLD = 50
"""Labels that are told one by one."""

_USE = """```python
import flaxsent

classifier = flaxsent.load("FOLDER")  # or the Hub id
flaxsent.classify(["a text"], classifier)
```

{} reads it, too: `{}ModelForSequenceClassification.from_pretrained`.
"""


def is_kept(folder: Path) -> bool:
    """Whether a folder has a card that somebody has written or taken over."""
    file = folder / CARD
    return file.exists() and _MADE not in file.read_text(encoding="utf-8", errors="replace")


def _spoken(figure: str) -> str:
    return figure.replace("_", " ").replace("f1", "F1").replace("matthews", "Matthews correlation")


def _line(text: str) -> str:
    """On one line, without what YAML, Markdown's code or a terminal would take for more."""
    return "".join(char if char.isprintable() else " " for char in text).replace("`", "'")


def _plain(text: str) -> str:
    """Text that Markdown and HTML take for text."""
    return re.sub(r"([\\*_{}\[\]<>|#&~])", r"\\\1", _line(text))


def _code(text: str) -> str:
    """Text as code, in which a bar ends no cell of a table."""
    return f"`{_line(text).replace('|', chr(92) + '|')}`"
