"""Reports as pictures: reliability diagrams, by matplotlib."""

import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from flaxsent.base import FlaxsentError
from flaxsent.evaluation.metrics import NUM_BINS
from flaxsent.evaluation.report import Report
from flaxsent.files import appearing, require
from flaxsent.models.config import ModelConfig


def check_plot(file: str | os.PathLike, config: ModelConfig) -> None:
    """Refuses what `plot` could not do, before anything is computed.

    Raises:
        MissingPackageError: matplotlib is not installed.
        FlaxsentError: the model is one of regression, or matplotlib does not write files with such a name.
        FileNotFoundError: the folder to write in does not exist.
    """
    if config.problem_type == "regression":
        raise FlaxsentError("--plot draws how reliable probabilities are; this model gives values, not probabilities.")
    path, formats = Path(file), _matplotlib().Figure().canvas.get_supported_filetypes()
    if path.suffix[1:].lower() not in formats:
        raise FlaxsentError(f"--plot {file}: expected a file name that ends in .{', .'.join(sorted(formats))}.")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"--plot {file}: there is no folder {path.parent}; make it first.")


def plot(reports: Mapping[str, Report], file: str | os.PathLike) -> None:
    """Draws reliability diagrams side by side, by their titles.

    Each shows the accuracy over the best score, and below it how many texts have such a score.

    Raises:
        OSError: the file cannot be written.
    """
    figure = _matplotlib().Figure(figsize=(5 * len(reports), 6), layout="constrained")
    panels = figure.subplots(2, len(reports), squeeze=False, sharex=True, height_ratios=(3, 1))
    for (upper, lower), (title, report) in zip(panels.T, reports.items(), strict=True):
        assert report.bins is not None  # `check_plot` has refused regression
        bins = [one for one in report.bins if one.num_texts]
        style = {"width": 1 / NUM_BINS, "align": "edge", "edgecolor": "white"}
        starts = [one.low for one in bins]
        upper.bar(starts, [one.accuracy for one in bins], **style)
        upper.plot([0, 1], [0, 1], color="tab:gray", linestyle="--")
        upper.plot([one.score for one in bins], [one.accuracy for one in bins], "o", color="tab:orange")
        error = report.figures["calibration_error"]
        upper.set(title=f"{title}: calibration error {error:.4f}", xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
        lower.bar(starts, [one.num_texts for one in bins], **style)
        lower.set(xlabel="best score", ylabel="decisions" if report.confusion is None else "texts")
    with appearing(Path(file)) as stream:
        figure.savefig(stream, format=Path(file).suffix[1:].lower())


def _matplotlib() -> ModuleType:
    return require("matplotlib.figure", needed_by="the reliability diagram", extra="plot")
