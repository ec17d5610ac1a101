"""Several runs of one shape in one program: their states stacked, their steps `vmap`ped, each as if it ran alone.

What may differ among them is numbers that change no shape, and the seed. On an accelerator a small model's steps leave
most of the chip idle, and K of them take little longer than one; a CPU is busy with one.
"""

import copy
import csv
import dataclasses
import io
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from flaxsent.base import FlaxsentError, Params
from flaxsent.classifier import Classifier
from flaxsent.data.labels import Examples
from flaxsent.training import choosing
from flaxsent.training.batches import Batch
from flaxsent.training.choosing import METRICS, Evaluation
from flaxsent.training.optimizer import make_optimizer
from flaxsent.training.options import TrainOptions
from flaxsent.training.step import TrainState
from flaxsent.training.trainer import Snapshot, Trainer, first_state, forward_of_rows, key_of, step_of

_NUMBERS = ("weight_decay", "layer_decay", "average_decay", "label_smoothing")
"""Options that a step computes with."""
SWEPT = ("learning_rate", "schedule", "warmup", *_NUMBERS, "lora_alpha", "seed")
"""Options in which the runs of a sweep may differ; of the first three, each run has a table of its learning rates."""


def grid(options: TrainOptions, values: Mapping[str, Sequence[Any]], *, num_seeds: int = 1) -> list[TrainOptions]:
    """The options of a run for each combination of values, and for each of so many seeds.

    Raises:
        FlaxsentError: an option that cannot be swept, none or repeated values, or a value out of its range.

    >>> [(run.learning_rate, run.seed) for run in grid(TrainOptions(), {"learning_rate": [1e-5, 1e-4]}, num_seeds=2)]
    [(1e-05, 0), (1e-05, 1), (0.0001, 0), (0.0001, 1)]
    """
    for name, given in values.items():
        if name not in SWEPT:
            raise FlaxsentError(f"sweep: {name!r} cannot be swept in one program; expected {', '.join(SWEPT)}.")
        if not given or len({*given}) < len(given):
            raise FlaxsentError(f"sweep: {name}={','.join(map(str, given))}; expected one or more values that differ.")
    if num_seeds > 1 and "seed" in values:
        raise FlaxsentError("sweep: seed is swept already; leave out seeds.")
    runs = [dict(zip(values, combination, strict=True)) for combination in itertools.product(*values.values())]
    seeds = range(options.seed, options.seed + num_seeds)
    return [dataclasses.replace(options, **({"seed": seed} | run)) for run in runs for seed in seeds]


def parse(texts: Sequence[str]) -> dict[str, list[Any]]:
    """What the command line says: `learning_rate=1e-5,3e-5`.

    Raises:
        FlaxsentError: it is not of this form, or a value is none of the option's kind.

    >>> parse(["learning_rate=1e-5,3e-5", "seed=1,2"])
    {'learning_rate': [1e-05, 3e-05], 'seed': [1, 2]}
    """
    ranges = {field.name: field.metadata["range"] for field in dataclasses.fields(TrainOptions)}
    values: dict[str, list[Any]] = {}
    for text in texts:
        name, separator, given = text.partition("=")
        name = name.strip().replace("-", "_")
        if not separator or name in values:
            raise FlaxsentError(f"sweep: {text!r}; expected NAME=X,Y once for each name, as learning_rate=1e-5,3e-5.")
        kind = str if ranges.get(name) is None else ranges[name].kind
        try:
            values[name] = [kind(value.strip()) for value in given.split(",")]
        except ValueError as err:
            raise FlaxsentError(f"sweep: {text!r}; expected numbers with commas between them.") from err
    return values


class Run(NamedTuple):
    """One of the runs of a sweep."""

    options: TrainOptions
    losses: list[float]
    """Of each step, before its update."""
    evaluations: tuple[Evaluation, ...]
    """After each epoch, or every few steps."""
    classifier: Classifier

    @property
    def evaluation(self) -> Evaluation:
        """That of the classifier: the best one where `metric` keeps it, else the last."""
        metric = self.options.metric
        return self.evaluations[-1 if metric is None else choosing.best(self.evaluations, metric)]


def sweep(
    start: Classifier | Callable[[int], Classifier],
    train: Examples,
    dev: Examples | None,
    options: Sequence[TrainOptions],
    *,
    report: Callable[[str], None] = lambda line: None,
) -> list[Run]:
    """Trains a run for each of the options (`grid`), all in one program; each gives what it gives alone.

    Args:
        start: the classifier to start from, or what gives it for a seed, where a new head is drawn from it.
        train: the texts to learn from.
        dev: the texts to score after each epoch, or every few steps.
        options: of the runs.
        report: gets a line of text after each epoch.

    Raises:
        FlaxsentError: the options differ in what cannot be swept, the family does not pack, or as `Trainer`; or the
            loss of all runs is not finite any more.
    """
    _check(options)
    starts = {seed: start(seed) if callable(start) else start for seed in {run.seed for run in options}}
    first = Trainer(starts[options[0].seed], train, dev, options=options[0])
    num_epochs = len(first.steps_by_epoch)
    trainers = [
        Trainer(starts[run.seed], train, dev, options=dataclasses.replace(run, num_epochs=num_epochs))
        for run in options
    ]
    if not first.is_packed:
        raise FlaxsentError(
            f"sweep: {first.classifier.config.family} takes one text a row; its steps have many shapes."
        )
    rates_KN = np.zeros((len(trainers), max(trainer.num_steps for trainer in trainers)), np.float32)
    for rates, trainer in zip(rates_KN, trainers, strict=True):
        steps = jnp.arange(trainer.num_steps)
        with jax.numpy_dtype_promotion("standard"):
            rates[: trainer.num_steps] = np.broadcast_to(trainer.learning_rate(steps), steps.shape)
    numbers = {name: np.array([getattr(run, name) for run in options], np.float32) for name in _NUMBERS}
    numbers = {name: values for name, values in numbers.items() if len({*values}) > 1}
    of_run = {"rates": rates_KN, **numbers}
    step = jax.jit(jax.vmap(_step_of(first)), donate_argnums=0)
    state = _start(trainers, {name: values[0] for name, values in numbers.items()})
    losses: list[list[float]] = [[] for _ in trainers]
    evaluations: list[tuple[Evaluation, ...]] = [() for _ in trainers]
    kept: list[Params | None] = [None for _ in trainers]
    for epoch in range(num_epochs):
        plans = [trainer._plan(epoch) for trainer in trainers]
        told = []
        for index in range(max(map(len, plans))):
            is_on_K = np.array([index < len(plan) for plan in plans])
            batches = [
                trainer._train.batch(plan[min(index, len(plan) - 1)])
                for trainer, plan in zip(trainers, plans, strict=True)
            ]
            batch = jax.tree.map(lambda *leaves: np.stack(leaves), *batches)
            state, loss_K = step(state, batch, of_run, is_on_K)
            told.append((loss_K, is_on_K))
            for run, trainer in enumerate(trainers):
                done = sum(trainer.steps_by_epoch[:epoch]) + index + 1
                if dev is not None and is_on_K[run] and trainer._is_evaluated(done):
                    average = jax.tree.map(lambda leaf, at=run: leaf[at], state.average)
                    evaluations[run], kept[run] = first.with_evaluation(evaluations[run], kept[run], average, step=done)
        for loss_K, is_on_K in jax.device_get(told):
            for run_losses, loss, is_on in zip(losses, loss_K, is_on_K, strict=True):
                run_losses += [float(loss)] if is_on else []
        if not np.isfinite([run[-1] for run in losses]).any():
            raise FlaxsentError("the losses of all runs are not finite; sweep lower values of learning_rate.")
        last = [found[-1] for found in evaluations if found]
        told = f", best on dev {last[choosing.best(last, first.metric)].score:.4f}" if last else ""
        report(f"epoch {epoch + 1} of {len(trainers)} runs{told}")
    return [
        Run(
            trainer.options,
            losses[index],
            evaluations[index],
            trainer.result(
                Snapshot(jax.tree.map(lambda leaf, at=index: leaf[at], state), kept[index], evaluations[index])
            ),
        )
        for index, trainer in enumerate(trainers)
    ]


def _check(options: Sequence[TrainOptions]) -> None:
    if not options:
        raise FlaxsentError("sweep: no options; expected those of one run or more.")
    if options[0].early_stopping or options[0].sharding != "data":
        raise FlaxsentError("sweep: all runs take as many steps, on one device: leave out early_stopping and sharding.")
    for field in dataclasses.fields(TrainOptions):
        values = [getattr(run, field.name) for run in options]
        if any(value != values[0] for value in values) and field.name not in SWEPT:
            raise FlaxsentError(
                f"sweep: the runs differ in {field.name}, which changes the program; expected {', '.join(SWEPT)}."
            )


def _start(trainers: Sequence[Trainer], numbers: Mapping[str, Any]) -> TrainState:
    """The states of all runs, stacked, before the first step."""
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(trainer.start_params for trainer in trainers))
    keys = jnp.stack([key_of(trainer.options.seed) for trainer in trainers])
    first = trainers[0]
    optimizer = make_optimizer(_with(first.options, numbers), first.num_steps, first.classifier.params)
    return jax.jit(jax.vmap(lambda params, key: first_state(params, optimizer, key)))(params, keys)


def _with(options: TrainOptions, numbers: Mapping[str, Any]) -> TrainOptions:
    """The options with arrays instead of numbers, which are not checked: no range contains an array."""
    own = copy.copy(options)
    for name, value in numbers.items():
        object.__setattr__(own, name, value)
    return own


def _step_of(trainer: Trainer) -> Callable[..., tuple[TrainState, Float[Array, ""]]]:
    """A step of one run, whose numbers are arguments."""
    classifier, options = trainer.classifier, trainer.options
    forward = forward_of_rows(classifier, options, trainer.shapes[0].num_segments, vocabulary=trainer.vocabulary)

    def step(
        state: TrainState, batch: Batch, of_run: Mapping[str, Array], is_on: Bool[Array, ""]
    ) -> tuple[TrainState, Float[Array, ""]]:
        numbers = dict(of_run)
        rates_N = jnp.asarray(numbers.pop("rates"))
        own = _with(options, numbers)
        optimizer = make_optimizer(
            own,
            trainer.num_steps,
            classifier.params,
            schedule=lambda count: rates_N[jnp.minimum(count, len(rates_N) - 1)],
        )
        after, told = step_of(classifier, own, optimizer, forward, trainer.weights_C)(state, batch)
        kept = jax.tree.map(lambda new, old: jnp.where(is_on, new, old), after, state)
        return kept, told.loss

    return step


def best(runs: Sequence[Run]) -> int:
    """The index of the run whose classifier has the best score on dev; of equal ones, the one with the least loss."""
    found = [run.evaluation for run in runs]
    metric = runs[0].options.metric
    sign = -1 if metric is not None and METRICS[metric].is_less_better else 1
    return max(range(len(runs)), key=lambda index: (sign * found[index].score, -found[index].loss))


def table(runs: Sequence[Run], *, names: Sequence[str]) -> list[str]:
    """Lines for people: the options that differ, the score and the losses of each run, the best one marked."""
    marked = best(runs)
    rows = [[*names, "dev", "dev loss", "train loss", ""]]
    for index, run in enumerate(runs):
        found, mean = run.evaluation, float(np.mean(run.losses[-10:]))
        values = [
            f"{value:g}" if isinstance(value := getattr(run.options, name), float) else str(value) for name in names
        ]
        rows.append(
            [*values, f"{found.score:.4f}", f"{found.loss:.4f}", f"{mean:.4f}", "best" if index == marked else ""]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def to_json(runs: Sequence[Run], *, names: Sequence[str]) -> bytes:
    """What differs among the runs, and their evaluations."""
    told = [
        {
            "options": {name: getattr(run.options, name) for name in names},
            "evaluations": [evaluation._asdict() for evaluation in run.evaluations],
            "is_best": index == best(runs),
        }
        for index, run in enumerate(runs)
    ]
    return f"{json.dumps(told, indent=1)}\n".encode()


def to_csv(runs: Sequence[Run], *, names: Sequence[str]) -> bytes:
    """The learning curves: a line for each step of each run, with the score on dev where there is one."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["run", *names, "step", "loss", "dev_loss", "dev_score"])
    for index, run in enumerate(runs):
        own = [index, *(getattr(run.options, name) for name in names)]
        at = {evaluation.step: (evaluation.loss, evaluation.score) for evaluation in run.evaluations}
        for number, loss in enumerate(run.losses, start=1):
            writer.writerow([*own, number, loss, *at.get(number, ("", ""))])
    return stream.getvalue().encode()
