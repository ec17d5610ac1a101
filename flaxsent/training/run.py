"""What `flaxsent train` does: files in, a checkpoint folder out, with nothing lost when it is killed.

What cannot work is refused before the first step. On as many devices as before, a run that goes on comes to the same
parameters, bit for bit; on others, sums over the rows have another order, and differ in their last bits.
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from tqdm import tqdm

from flaxsent.base import FlaxsentError, Params, Tokens
from flaxsent.checkpoint import adapters, hub
from flaxsent.checkpoint.folder import load, save, save_adapter
from flaxsent.classifier import Classifier
from flaxsent.data.labels import Task, describe, keeps_head
from flaxsent.engine import Engine
from flaxsent.files import require, write
from flaxsent.models.config import ModelConfig
from flaxsent.packing import StepShape
from flaxsent.placement import on_host
from flaxsent.postprocessing import probabilities
from flaxsent.training import choosing, class_weights, contrastive, distributed, folds, patterns
from flaxsent.training import probe as probing
from flaxsent.training import sweep as sweeps
from flaxsent.training.card import write_card
from flaxsent.training.choosing import Evaluation
from flaxsent.training.log import draw_curves, read_log
from flaxsent.training.loop import make_steps
from flaxsent.training.options import RunOptions, TrainOptions
from flaxsent.training.reading import Data, own_config, read_data
from flaxsent.training.trainer import Snapshot, Trainer
from flaxsent.training.work import CURVES, LOG, SWEEP, SWEEP_CURVES, VALIDATION, Facts, Work, difference, plan
from flaxsent.transforms import mean_layer

logger = logging.getLogger(__name__)


def run(
    options: RunOptions, train_options: TrainOptions, *, report: Callable[[str], None] = logger.info
) -> Evaluation | None:
    """Trains, or goes on, and writes the output; returns the evaluation of what is written, if there is a dev file.

    Raises:
        FlaxsentError: a bad row, labels that do not fit, or the run that is to go on is another one.
        FileExistsError: the output is in the way, or the work of a run that is not complete.
        OSError: a file is not there or cannot be written; what is done is kept.
        MissingPackageError: Orbax or matplotlib is not installed.
    """
    _check(options, train_options)
    if isinstance(train_options.class_weights, str):  # what the file says is a fact of the run, not its name
        read = class_weights.read(train_options.class_weights)
        train_options = dataclasses.replace(train_options, class_weights=read)
    if options.sweep or options.seeds > 1:
        return _sweep(options, train_options, report=report)
    work = plan(options)
    data = read_data(options, report, seed=train_options.seed)
    choosing.metric_of(data.task.problem_type, train_options.metric)
    with on_host(train_options.sharding):
        classifier, has_new_head = _load(options, data, seed=train_options.seed)
    teacher = None if options.teacher is None else _load_teacher(options.teacher, classifier)
    facts = _facts(options, train_options, data, classifier, teacher)
    begun = work.begun
    if _is_complete(work, begun, facts, options):
        work.clear()
        return report(f"{options.output} is complete; nothing to resume")
    work.check_output()
    distributed.wait("the facts were compared")
    _tell_data(data, options, has_new_head, report)
    if options.probe:
        classifier, evaluation = probing.probe(classifier, data.train, data.dev, train_options, report=report)
        if train_options.num_epochs is None:
            measured = evaluation if data.dev is not None else None
            work.finish(facts, lambda folder: _save(classifier, folder, options, train_options, data, measured))
            return measured
    scores_NC = None
    if teacher is not None:
        scores_NC = work.teacher if begun is not None else _scores(teacher, data, classifier.config)
    shapes = None if begun is None else tuple(StepShape(*shape) for shape in begun["shapes"])
    trainer = _trainer(classifier, data, options, train_options, teacher=scores_NC, shapes=shapes, report=report)
    _tell(trainer, report)
    facts = facts | {"shapes": trainer.shapes} if begun is None else begun
    work.begin(facts, scores_NC)
    steps = functools.partial(make_steps, options=options, report=report)
    validated = None
    if data.folds is not None:
        parts, folder = data.folds, work.folder / VALIDATION
        told = {"options": train_options, "shapes": trainer.shapes, "steps": steps, "report": report}
        validated = folds.validate(classifier, data.train, parts, folder, **told)
    snapshot = steps(trainer, work.folder)
    result, chosen = _result(trainer, snapshot, data, options, train_options, report=report)

    def write_into(folder: Path) -> None:
        _save(result, folder, options, train_options, data, chosen)
        shutil.copyfile(work.folder / LOG, folder / LOG)
        draw_curves(read_log(work.folder / LOG), folder / CURVES)
        if validated is not None:
            names = {"labels": data.task.labels, "text_columns": options.text_columns}
            folds.write_into(folder, validated, data.train.texts, **names)

    work.finish(facts, write_into)
    return chosen


def _trainer(
    classifier: Classifier,
    data: Data,
    options: RunOptions,
    train_options: TrainOptions,
    *,
    teacher: Float[np.ndarray, "N C"] | None,
    shapes: tuple[StepShape, ...] | None,
    report: Callable[[str], None],
) -> Trainer:
    if options.contrastive:
        return contrastive.trainer_of(classifier, data.train, train_options, shapes=shapes, report=report)
    return Trainer(
        *(classifier, data.train, data.dev),
        options=dataclasses.replace(train_options, metric=None) if options.folds else train_options,
        unlabelled=data.unlabelled,
        teacher=teacher,
        shapes=shapes,
    )


def _result(
    trainer: Trainer,
    snapshot: Snapshot,
    data: Data,
    options: RunOptions,
    train_options: TrainOptions,
    *,
    report: Callable[[str], None],
) -> probing.Probed:
    """What the steps end with, and its evaluation."""
    result = trainer.result(snapshot)
    if options.contrastive:
        return contrastive.fit_layer(result, data.train, data.dev, train_options, report=report)
    chosen = trainer.chosen(snapshot, report)
    return probing.Probed(result, chosen)


def _tell_data(data: Data, options: RunOptions, has_new_head: bool, report: Callable[[str], None]) -> None:
    head = "a new head" if has_new_head else "the checkpoint's head"
    report(f"{patterns.listed(data.files)}: {describe(data.train, *data.task)}, on {head}")
    if options.dev_fraction is not None and data.dev is not None:
        report(f"dev: {describe(data.dev, *data.task)}")


def _tell(trainer: Trainer, report: Callable[[str], None]) -> None:
    if trainer.num_truncated:
        report(f"{trainer.num_truncated:,} of {trainer.num_texts:,} texts are cut to {trainer.max_length} tokens")
    if trainer.is_lengthened:
        least, num_epochs = trainer.options.min_steps, len(trainer.steps_by_epoch)
        report(f"the texts are few: {num_epochs} epochs make {trainer.num_steps} steps, at least --min-steps {least}")


def _sweep(options: RunOptions, train_options: TrainOptions, *, report: Callable[[str], None]) -> Evaluation:
    """Trains the runs of a sweep in one program, and writes the best one with the table and the curves of all.

    Raises: as `run`.
    """
    values = sweeps.parse(options.sweep)
    runs_options = sweeps.grid(train_options, values, num_seeds=options.seeds)
    names = [*values, *(["seed"] if options.seeds > 1 else [])]
    for given, name in (
        (options.resume, "--resume"),
        (options.teacher, "--teacher"),
        (options.folds, "--folds"),
        (train_options.evaluate_every, "--evaluate-every"),
    ):
        if given:
            raise FlaxsentError(f"{name} is of one run; leave it out of a sweep.")
    if options.dev is None and options.dev_fraction is None:
        raise FlaxsentError("a sweep needs a dev file, to choose by.")
    work = plan(options)
    data = read_data(options, report, seed=train_options.seed)
    choosing.metric_of(data.task.problem_type, train_options.metric)
    first, has_new_head = _load(options, data, seed=train_options.seed)
    head = "a new head" if has_new_head else "the checkpoint's head"
    report(f"{patterns.listed(data.files)}: {describe(data.train, *data.task)}, on {head}, {len(runs_options)} runs")

    def start(seed: int) -> Classifier:
        is_first = seed == train_options.seed or not has_new_head
        return first if is_first else _load(options, data, seed=seed)[0]

    found = sweeps.sweep(start, data.train, data.dev, runs_options, report=report)
    chosen = found[sweeps.best(found)]

    def write_into(folder: Path) -> None:
        _save(chosen.classifier, folder, options, chosen.options, data, chosen.evaluation)
        write(folder / SWEEP, sweeps.to_json(found, names=names))
        write(folder / SWEEP_CURVES, sweeps.to_csv(found, names=names))

    told = {"sweep": values, "seeds": options.seeds}
    work.finish(_facts(options, chosen.options, data, first, None) | told, write_into)
    for line in sweeps.table(found, names=names):
        report(line)
    return chosen.evaluation


def _save(
    classifier: Classifier,
    folder: Path,
    options: RunOptions,
    train_options: TrainOptions,
    data: Data,
    evaluation: Evaluation | None,
) -> None:
    """The whole checkpoint, or adapters on the one that was given, and a model card."""
    dtype, config = jnp.dtype(options.save_dtype), classifier.config
    told = {"files": data.files, "train": data.train, "dev": data.dev, "evaluation": evaluation}
    write_card(*(folder, config, options, train_options), **told)
    if not train_options.lora_rank:
        return save(classifier, folder, dtype=dtype, card=False)
    is_folder = options.model is None or Path(options.model).is_dir()
    base = str(hub.find(options.model).resolve()) if is_folder else options.model
    save_adapter(classifier, folder, base=base, dropout=train_options.lora_dropout, dtype=dtype)


def _check(options: RunOptions, train_options: TrainOptions) -> None:
    if options.contrastive:
        contrastive.check(options, train_options)
    elif options.probe:
        probing.check(options, train_options)
    has_dev = options.dev is not None or options.dev_fraction is not None
    for name in ("early_stopping", "evaluate_every", *([] if options.folds else ["metric"])):
        if getattr(train_options, name) and not has_dev:
            raise FlaxsentError(f"{name} needs a dev file, or dev_fraction.")
    for file in (*patterns.files_of(options.train), options.dev, options.unlabelled):
        if file is not None and not Path(file).is_file():
            raise FileNotFoundError(f"{file}: no such file.")
    if train_options.lora_rank and options.model is not None and adapters.is_adapter(options.model):
        raise FlaxsentError(
            f"--lora-rank: {options.model} is an adapter, on which no other can stand; save what load gives of it, and "
            "train that."
        )
    if options.bad_rows is not None and Path(options.bad_rows).exists() and not (options.overwrite or options.resume):
        raise FileExistsError(f"{options.bad_rows} exists already; pass --overwrite to replace it.")
    for module in ("orbax.checkpoint", "matplotlib"):
        require(module, needed_by="flaxsent train", extra="train")


def _is_complete(work: Work, begun: Facts | None, facts: Facts, options: RunOptions) -> bool:
    """Whether the output is this run's.

    Raises:
        FlaxsentError: what is to go on is another run's; the message says in what they differ.
    """
    if not options.resume:
        return False
    if begun is not None:
        if differs := difference(begun, facts):
            raise FlaxsentError(f"--resume: {work.folder} is of another run: {differs}; delete it to begin anew.")
        return False
    if work.complete is None:
        return False
    # What has been made is not made anew because the machine or the packages are others.
    lasting = {name: fact for name, fact in facts.items() if name not in ("platform", "versions")}
    differs = difference(work.complete, lasting)
    if differs and not options.overwrite:
        raise FlaxsentError(f"--resume: {options.output} is of another run: {differs}; pass --overwrite to replace it.")
    return not differs


def _load(options: RunOptions, data: Data, *, seed: int) -> tuple[Classifier, bool]:
    """The classifier to train, and whether its head is drawn."""

    def with_head(is_new: bool) -> Classifier:
        return load(
            options.model,
            backend=options.backend,
            labels=data.task.labels,
            problem_type=data.task.problem_type,
            new_head=is_new,
            seed=seed,
            special_tokens_in_text=options.special_tokens_in_text,
        )

    own = own_config(options.model)
    is_new = not (own.is_classifier and keeps_head(Task(own.labels, own.problem_type), data.task))
    try:
        classifier = with_head(is_new)
    except FlaxsentError:
        if is_new or own.get("architectures") is not None:
            raise
        # A config.json that does not name the class of the model may be that of an encoder without a head.
        classifier, is_new = with_head(True), True
    if (
        (options.probe or options.contrastive)
        and is_new
        and mean_layer.has_mean_layer(own)
        and hub.pools_mean(options.model)
    ):
        classifier = mean_layer.with_mean_layer(classifier)
    return classifier, is_new


def _load_teacher(model: str, student: Classifier) -> Classifier:
    teacher = load(model, special_tokens_in_text=student.tokenizer.special_tokens_in_text)
    own, config = teacher.config, student.config
    if {*own.labels} != {*config.labels} or own.problem_type != config.problem_type:
        raise FlaxsentError(
            f"the teacher {model} has the labels {', '.join(own.labels)} ({own.problem_type}); expected "
            f"{', '.join(config.labels)} ({config.problem_type})."
        )
    return teacher


def _scores(teacher: Classifier, data: Data, config: ModelConfig) -> Float[np.ndarray, "N C"]:
    """The teacher's probabilities of the texts, or its values, in the order of the student's labels."""

    def function(params: Params, tokens: Tokens, num_segments: int) -> Float[Array, "R S C"]:
        return probabilities(teacher.logits(params, tokens, num_segments), problem_type=config.problem_type)

    texts = [*data.train.texts, *data.unlabelled]
    with Engine(teacher, function=function) as engine:
        scores = tqdm(
            engine.stream(texts),
            "teacher",
            len(texts),
            disable=None if distributed.is_first() else True,
            unit=" texts",
            dynamic_ncols=True,
            leave=False,
        )
        scores_NC = np.stack([*scores])
    return scores_NC[:, [teacher.config.labels.index(label) for label in config.labels]]


def _facts(
    options: RunOptions, train_options: TrainOptions, data: Data, classifier: Classifier, teacher: Classifier | None
) -> Facts:
    """All that the parameters depend on, but devices and sharding, which only change how they are rounded."""
    options_of_run = dataclasses.asdict(train_options)
    del options_of_run["sharding"]
    facts = {
        "options": options_of_run,
        "save_dtype": options.save_dtype,
        "special_tokens_in_text": options.special_tokens_in_text,
        "model": _identity(options.model, classifier),
        "teacher": None if teacher is None else _identity(options.teacher, teacher),
        "train": {"name": data.files, "digest": _digest(*data.train)},
        "dev": None if data.dev is None else {"name": options.dev, "digest": _digest(*data.dev)},
        "unlabelled": {"name": options.unlabelled, "digest": _digest(*data.unlabelled)},
        "folds": options.folds,
        "probe": options.probe,
        "contrastive": options.contrastive,
        "labels": data.task.labels,
        "problem_type": data.task.problem_type,
        "platform": jax.default_backend(),
        "versions": {name: importlib.metadata.version(name) for name in ("flaxsent", "jax", "jaxlib", "optax")},
    }
    return json.loads(json.dumps(facts))


def _identity(name: str | None, classifier: Classifier) -> Facts:
    contents = (classifier.config.json, classifier.tokenizer.files, *jax.tree.leaves(classifier.params))
    return {"name": name, "digest": _digest(*contents)}


def _digest(*contents: Any) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for content in contents:
        digest.update(np.asarray(content).tobytes() if isinstance(content, jax.Array) else repr(content).encode())
    return digest.hexdigest()
