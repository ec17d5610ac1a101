"""What is told of a run while it lasts: lines of log.jsonl, a progress bar, and the curves drawn from the log."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from flaxsent.files import require, write
from flaxsent.training import distributed
from flaxsent.training.choosing import METRICS
from flaxsent.training.step import mean_loss
from flaxsent.training.trainer import StepEvent, Trainer


class Log:
    """A line of JSON for every few steps and each evaluation, and a progress bar where there is a terminal."""

    def __init__(
        self, file: Path, trainer: Trainer, *, done: int, every: Sequence[int], report: Callable[[str], None]
    ) -> None:
        """Opens the log; lines about steps after `done` are dropped: these steps are made again.

        Each of `every` so many steps there is a line. One is the number of steps between checkpoints: a line is about
        the steps since the line before, of which a run that goes on must have made all.
        """
        self._path, self._trainer, self._every, self._report = file, trainer, every, report
        self._losses: list[Any] = []
        self._num_texts, self._since, self._speed = 0, time.perf_counter(), 0.0
        self._file = None
        if distributed.is_first():
            kept = [entry for entry in read_log(file) if entry["step"] <= done]
            write(file, "".join(f"{json.dumps(entry)}\n" for entry in kept).encode())
            self._file = file.open("ab")
        self._bar = tqdm(
            total=trainer.num_steps,
            initial=done,
            disable=None if distributed.is_first() else True,
            file=sys.stderr,
            unit="step",
            dynamic_ncols=True,
            bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {elapsed}<{remaining}{postfix}",
        )

    def add(self, event: StepEvent) -> None:
        """Takes note of a step.

        Raises:
            FlaxsentError: the loss is not finite any more.
            OSError: the log cannot be written.
        """
        self._losses.append(event.report.loss)
        self._num_texts += event.num_texts
        self._bar.update()
        if event.is_epoch_end or any(event.step % every == 0 for every in self._every):
            loss = mean_loss(self._losses, step=event.step)  # waits for the device
            now = time.perf_counter()
            if event.evaluation is None or not self._speed:  # else the time of the evaluation would be in it
                self._speed = self._num_texts / (now - self._since)
            rate = float(np.asarray(self._trainer.learning_rate(event.step - 1)))
            told = f"loss {loss:.4f}, learning rate {rate:.2e}, {self._speed:,.0f} texts/s"
            self._bar.set_postfix_str(told, refresh=False)
            self._write(
                {
                    "step": event.step,
                    "epoch": event.epoch,
                    "loss": loss,
                    "gradient_norm": float(event.report.gradient_norm),
                    "learning_rate": rate,
                    "texts_per_second": round(self._speed, 1),
                }
            )
            self._losses, self._num_texts, self._since = [], 0, now
        if event.evaluation is not None:
            name, loss, score = METRICS[self._trainer.metric].told, event.evaluation.loss, event.evaluation.score
            self._write({"step": event.step, "epoch": event.epoch, "dev_loss": loss, "dev_score": score, "is": name})
            with tqdm.external_write_mode(file=sys.stderr):
                at = "" if event.is_epoch_end else f" step {event.step}"
                self._report(f"epoch {event.epoch}{at} dev {name} {score:.4f} loss {loss:.4f}")
            self._num_texts, self._since = 0, time.perf_counter()

    def _write(self, entry: dict[str, Any]) -> None:
        if self._file is None:
            return
        try:
            self._file.write(f"{json.dumps(entry)}\n".encode())
            self._file.flush()
        except OSError as err:
            raise OSError(err.errno, err.strerror, str(self._path)) from err

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        if self._file is not None:
            with contextlib.suppress(OSError):  # of a line that could not be written, as was told then
                self._file.close()


def read_log(file: Path) -> list[dict[str, Any]]:
    """The lines of a log; the last one may have been cut off."""
    entries = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        try:
            entries.append(json.loads(line))
        except ValueError:
            break
    return entries


def draw_curves(entries: Sequence[Mapping[str, Any]], file: str | os.PathLike) -> None:
    """Draws the losses, the score on dev and the learning rate of a log over its steps."""
    figure = require("matplotlib.figure", needed_by="drawing curves", extra="train").Figure(
        figsize=(12, 4), layout="constrained"
    )
    steps = [entry for entry in entries if "loss" in entry]
    evaluations = [entry for entry in entries if "dev_loss" in entry]
    losses, scores, rates = figure.subplots(1, 3)

    def draw(panel: Any, of: Sequence[Mapping[str, Any]], name: str, label: str, marker: str = "") -> None:
        panel.plot([entry["step"] for entry in of], [entry[name] for entry in of], marker=marker, label=label)

    draw(losses, steps, "loss", "train")
    if evaluations:
        draw(losses, evaluations, "dev_loss", "dev", "o")
        draw(scores, evaluations, "dev_score", "dev", "o")
    draw(rates, steps, "learning_rate", "learning rate")
    losses.set(title="loss", xlabel="step")
    losses.legend()
    scores.set(title=evaluations[0]["is"] if evaluations else "no dev", xlabel="step")
    rates.set(title="learning rate", xlabel="step")
    figure.savefig(file)
