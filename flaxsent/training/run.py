"""What `flaxsent train` does: files in, a checkpoint folder out, with nothing lost when it is killed.

`plan` refuses what cannot work before a model is loaded; `run` reads, trains and writes. While a run lasts, its work is
in a hidden folder beside the output: facts of the job, the log, and checkpoints of all that a step changes (Orbax). At
the end the folder appears under the output's name, whole. A run that goes on gives the same parameters, bit for bit.
"""

import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float
from tqdm import tqdm

from flaxsent import models
from flaxsent.base import Backend, FlaxsentError, ProblemType, Text
from flaxsent.checkpoint import hub
from flaxsent.checkpoint.folder import load, save
from flaxsent.classifier import Classifier
from flaxsent.data import labels, records
from flaxsent.data.labels import Annotations, Examples, Task
from flaxsent.engine import Engine
from flaxsent.models.config import ModelConfig, read_config
from flaxsent.training.trainer import SCORES, Evaluation, Snapshot, StepEvent, Trainer, TrainOptions, mean_loss

logger = logging.getLogger(__name__)

INSTALL = 'pip install "flaxsent[train]"'
LOG, CURVES, FACTS = "log.jsonl", "curves.png", "training.json"
"""Files that stand beside the checkpoint's own in the output."""
TEACHER_SCORES = "teacher.npy"
"""A file of the work."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What the command line says besides how to train."""

    train: str
    dev: str | None = None
    output: str
    model: str | None = None
    """Hub id or folder; None is the embedded checkpoint."""
    teacher: str | None = None
    """Hub id or folder of a classifier whose scores are learnt too."""
    unlabelled: str | None = None
    """Texts of which only the teacher's scores are learnt."""
    text_columns: tuple[str, ...] = ("text",)
    """One, or two for pairs."""
    label_column: str = "label"
    label_separator: str | None = None
    """Between several labels of a text."""
    labels: tuple[str, ...] | None = None
    """In the order of the logits; by default the checkpoint's, if the file has no others, else the file's."""
    problem_type: ProblemType | None = None
    """By default what the labels look like: `labels.resolve`."""
    backend: Backend | None = None
    """By default native where the family is."""
    save_dtype: str = "float32"
    checkpoint_every: int = 500
    """Steps."""
    log_every: int = 20
    """Steps."""
    resume: bool = False
    overwrite: bool = False


@dataclasses.dataclass(frozen=True)
class _Data:
    """What the files hold, and for what kind of classifier."""

    train: Examples
    dev: Examples | None
    unlabelled: list[Text]
    labels: tuple[str, ...]
    problem_type: ProblemType
    is_new: bool
    """Whether the checkpoint's head is for other labels."""


def plan(options: RunOptions) -> Path | None:
    """The folder of the work; None where all is done. Writes nothing.

    Raises:
        ImportError: a package is not installed; the message has the command.
        FileExistsError: the output is there, or the work of a run that did not end.
        FileNotFoundError, PermissionError: there is no folder for the output, or it cannot be written in.
        FlaxsentError: an option that makes no sense.
    """
    _check(options)
    output = Path(options.output)
    _check_output(output)
    work = output.absolute().with_name(f".{output.absolute().name}.training")
    is_there = output.is_dir() and any(output.iterdir())
    if (work / FACTS).exists():
        if not options.resume:
            raise FileExistsError(
                f"{work} holds the work of a run that did not end; pass --resume to go on with it, or delete it."
            )
    elif is_there and not options.overwrite:
        if options.resume and (output / FACTS).exists():
            return None
        raise FileExistsError(f"{output} is there already; pass --overwrite to replace it.")
    return work


def _check(options: RunOptions) -> None:
    for package, module in {"orbax-checkpoint": "orbax", "matplotlib": "matplotlib"}.items():
        if importlib.util.find_spec(module) is None:
            raise ImportError(f"flaxsent train needs {package}, which is not installed: {INSTALL}")
    for name in ("checkpoint_every", "log_every"):
        if getattr(options, name) < 1:
            raise FlaxsentError(f"{name}={getattr(options, name)}; expected a number of steps.")
    if options.label_separator == "" or (options.labels is not None and len({*options.labels}) < len(options.labels)):
        raise FlaxsentError("expected labels that differ, and a separator that is not empty.")
    if options.unlabelled is not None and options.teacher is None:
        raise FlaxsentError("unlabelled texts need a teacher.")
    for file in (options.train, options.dev, options.unlabelled):
        if file is not None and not Path(file).is_file():
            raise FileNotFoundError(f"{file}: no such file.")


def _check_output(output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise FileExistsError(f"{output} is a file; expected the name of a folder.")
    if not output.absolute().parent.is_dir():
        raise FileNotFoundError(f"{output.absolute().parent} is no folder to write in; make it first.")
    if not os.access(output.absolute().parent, os.W_OK | os.X_OK):
        raise PermissionError(f"{output.absolute().parent} cannot be written in; choose another output.")


def run(
    options: RunOptions,
    train_options: TrainOptions,
    *,
    report: Callable[[str], None] = logger.info,
) -> Evaluation | None:
    """Trains, or goes on, and writes the output; gives the last evaluation, if there is a dev file.

    Raises: as `plan`, and
        FlaxsentError: a bad row, labels that do not fit, or the work that is to go on is another run's.
        OSError: a file cannot be written; what is done is kept.
    """
    if train_options.early_stopping and options.dev is None:
        raise FlaxsentError("early_stopping needs a dev file.")
    work = plan(options)
    if work is None:
        return report(f"{options.output} is there already; nothing to resume")
    data = _read(options)
    classifier = _load(options, data, seed=train_options.seed)
    facts = _facts(options, train_options, data, classifier)
    _compare(work, facts)
    teacher = None if options.teacher is None else _teacher_scores(options.teacher, data, classifier.config, work)
    trainer = Trainer(
        classifier, data.train, data.dev, options=train_options, unlabelled=data.unlabelled, teacher=teacher
    )
    _take(work, facts, teacher)
    with _Checkpoints(work, trainer) as checkpoints:
        snapshot = checkpoints.last() or trainer.start()
        log = _Log(work / LOG, trainer, done=int(snapshot.state.step), every=options.log_every, report=report)
        with log:
            for moment in trainer.moments(snapshot):
                snapshot = moment.snapshot
                log.add(moment)
                if moment.step % options.checkpoint_every == 0 or moment.is_epoch_end:
                    checkpoints.save(snapshot, moment.step)
    if _is_first():
        _finish(work, Path(options.output), trainer.result(snapshot), options, facts)
    _wait("the output")
    return _chosen(snapshot, train_options)


def _chosen(snapshot: Snapshot, train_options: TrainOptions) -> Evaluation | None:
    """The evaluation of the parameters that are written."""
    if not snapshot.evaluations:
        return None
    if not train_options.early_stopping:
        return snapshot.evaluations[-1]
    return max(snapshot.evaluations, key=lambda evaluation: (evaluation.score, -evaluation.step))


def _read(options: RunOptions) -> _Data:
    def annotations(file: str) -> Annotations:
        return labels.read_annotations(
            file,
            text_columns=options.text_columns,
            label_column=options.label_column,
            label_separator=options.label_separator,
        )

    train = annotations(options.train)
    dev = None if options.dev is None else annotations(options.dev)
    own = _own_config(options.model)
    task = labels.resolve(
        train,
        known=Task(own.labels, own.problem_type),
        labels=options.labels,
        problem_type=options.problem_type,
    )
    return _Data(
        train=labels.to_examples(train, labels=task.labels, problem_type=task.problem_type),
        dev=None if dev is None else labels.to_examples(dev, labels=task.labels, problem_type=task.problem_type),
        unlabelled=[] if options.unlabelled is None else records.read_texts(options.unlabelled, options.text_columns),
        labels=task.labels,
        problem_type=task.problem_type,
        is_new=task != (own.labels, own.problem_type),
    )


def _own_config(model: str | None) -> ModelConfig:
    folder = hub.find(model)
    return read_config((folder / "config.json").read_text(encoding="utf-8", errors="replace"))


def _load(options: RunOptions, data: _Data, *, seed: int) -> Classifier:
    config = _own_config(options.model)
    return load(
        options.model,
        backend=options.backend or ("native" if models.is_native(config) else "flax"),
        labels=data.labels,
        problem_type=data.problem_type,
        new_head=data.is_new,
        seed=seed,
    )


def _teacher_scores(model: str, data: _Data, config: ModelConfig, work: Path) -> Float[np.ndarray, "N C"]:
    """The teacher's scores of the texts, in the order of the student's labels; a run that goes on has them already."""
    if (work / FACTS).exists():
        return np.load(work / TEACHER_SCORES)
    own = _own_config(model)
    if {*own.labels} != {*config.labels} or own.problem_type != config.problem_type:
        raise FlaxsentError(
            f"the teacher {model} has the labels {', '.join(own.labels)} ({own.problem_type}); expected "
            f"{', '.join(config.labels)} ({config.problem_type})."
        )
    teacher = load(model, backend="native" if models.is_native(own) else "flax")
    texts = [*data.train.texts, *data.unlabelled]
    is_quiet = None if _is_first() else True
    with Engine(teacher) as engine:
        scores = tqdm(
            engine.stream(texts),
            "teacher",
            len(texts),
            disable=is_quiet,
            unit=" texts",
            dynamic_ncols=True,
            leave=False,
        )
        scores_NC = np.stack([*scores])
    return scores_NC[:, [own.labels.index(label) for label in config.labels]]


def _facts(options: RunOptions, train_options: TrainOptions, data: _Data, classifier: Classifier) -> dict[str, Any]:
    """All that the parameters depend on."""
    facts = {
        "options": dataclasses.asdict(train_options),
        "model": options.model,
        "weights": _digest(classifier.config.json, *jax.tree.leaves(classifier.params)),
        "backend": classifier.backend,
        "teacher": options.teacher,
        "train": _digest(*data.train),
        "dev": None if data.dev is None else _digest(*data.dev),
        "unlabelled": _digest(*data.unlabelled),
        "labels": data.labels,
        "problem_type": data.problem_type,
        "platform": jax.default_backend(),
        "devices": jax.device_count(),
        "versions": {name: importlib.metadata.version(name) for name in ("flaxsent", "jax", "jaxlib", "optax")},
    }
    return json.loads(json.dumps(facts))


def _digest(*contents: Any) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for content in contents:
        digest.update(np.asarray(content).tobytes() if isinstance(content, jax.Array) else repr(content).encode())
    return digest.hexdigest()


def _compare(work: Path, facts: Mapping[str, Any]) -> None:
    """Finds that the folder of the work, if there is one, is this run's."""
    if (work / FACTS).exists():
        then = json.loads((work / FACTS).read_bytes())
        for name, now in facts.items():
            if then.get(name) != now:
                raise FlaxsentError(
                    f"--resume would go on with another run, whose {name} were {_short(then.get(name), now)}, and not "
                    f"{_short(now, then.get(name))}; delete {work} to begin anew."
                )
    _wait("the facts were compared")


def _take(work: Path, facts: Mapping[str, Any], teacher: Float[np.ndarray, "N C"] | None) -> None:
    """Makes the folder of the work; it is one when it has the facts."""
    if _is_first() and not (work / FACTS).exists():
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        if teacher is not None:
            np.save(work / TEACHER_SCORES, teacher)
        _write(work / FACTS, json.dumps(facts, indent=1))
    _wait("the facts were written")


def _short(value: Any, other: Any) -> str:
    """A value as JSON; of an object, what the other one has not."""
    if isinstance(value, dict) and isinstance(other, dict):
        value = {name: one for name, one in value.items() if other.get(name) != one}
    return json.dumps(value)


def _write(file: Path, content: str) -> None:
    unfinished = file.with_name(f"{file.name}.tmp")
    unfinished.write_text(content, encoding="utf-8")
    os.replace(unfinished, file)


def _is_first() -> bool:
    """Whether this is the process that writes."""
    return jax.process_index() == 0


def _wait(name: str) -> None:
    """For the other processes, if there are any."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"flaxsent: {name}")


class _Checkpoints:
    """Snapshots in a folder, of which the last one is kept; a snapshot appears when it is whole."""

    def __init__(self, work: Path, trainer: Trainer) -> None:
        import orbax.checkpoint as ocp

        self._ocp, self._trainer = ocp, trainer
        options = ocp.CheckpointManagerOptions(
            max_to_keep=1,
            cleanup_tmp_directories=True,
            # A step takes over the memory of the state before it: nothing may read that while the run goes on.
            enable_async_checkpointing=False,
        )
        self._manager = ocp.CheckpointManager(work / "checkpoints", options=options)

    def save(self, snapshot: Snapshot, step: int) -> None:
        leaves = _numbered(_without_key(snapshot))
        evaluations = [evaluation._asdict() for evaluation in snapshot.evaluations]
        self._manager.save(
            step,
            args=self._ocp.args.Composite(
                arrays=self._ocp.args.StandardSave(leaves),
                evaluations=self._ocp.args.JsonSave({"evaluations": evaluations}),
            ),
        )

    def last(self) -> Snapshot | None:
        """Where a run stopped, if it did."""
        step = self._manager.latest_step()
        if step is None:
            return None
        start = self._trainer.start()
        like = _without_key(start)
        read: Any = self._manager.restore(
            step,
            args=self._ocp.args.Composite(
                arrays=self._ocp.args.StandardRestore(_numbered(like)), evaluations=self._ocp.args.JsonRestore()
            ),
        )
        leaves = [read.arrays[name] for name in _numbered(like)]
        snapshot: Snapshot = jax.tree.unflatten(jax.tree.structure(like), leaves)
        key = jax.random.wrap_key_data(snapshot.state.key, impl=jax.random.key_impl(start.state.key))
        evaluations = tuple(Evaluation(**evaluation) for evaluation in read.evaluations["evaluations"])
        return Snapshot(snapshot.state._replace(key=key), snapshot.best, evaluations)

    def __enter__(self) -> "_Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()


def _without_key(snapshot: Snapshot) -> Snapshot:
    """The arrays of a snapshot: keys are no arrays."""
    state = snapshot.state._replace(key=jax.random.key_data(snapshot.state.key))
    return Snapshot(state, snapshot.best)


def _numbered(snapshot: Snapshot) -> dict[str, Any]:
    return {f"{place:05d}": leaf for place, leaf in enumerate(jax.tree.leaves(snapshot))}


class _Log:
    """A line of JSON for some of the steps and each evaluation, and a progress bar where there is a terminal."""

    def __init__(self, file: Path, trainer: Trainer, *, done: int, every: int, report: Callable[[str], None]) -> None:
        """Opens the log; what it has of steps after `done` belongs to a run that was killed, and goes."""
        self._trainer, self._every, self._report = trainer, every, report
        self._losses: list[Any] = []
        self._num_texts, self._since, self._speed = 0, time.perf_counter(), 0.0
        self._file = None
        if _is_first():
            kept = [entry for entry in _entries(file) if entry["step"] <= done]
            _write(file, "".join(f"{json.dumps(entry)}\n" for entry in kept))
            self._file = file.open("a", encoding="utf-8")
        self._bar = tqdm(
            total=trainer.num_steps,
            initial=done,
            disable=None if _is_first() else True,
            file=sys.stderr,
            unit="step",
            dynamic_ncols=True,
            bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {elapsed}<{remaining}{postfix}",
        )

    def add(self, moment: StepEvent) -> None:
        self._losses.append(moment.report.loss)
        self._num_texts += moment.num_texts
        self._bar.update()
        if moment.step % self._every == 0 or moment.is_epoch_end:
            loss = mean_loss(self._losses, step=moment.step)  # waits for the device
            now = time.perf_counter()
            if moment.evaluation is None or not self._speed:  # else the time of the evaluation would be in it
                self._speed = self._num_texts / (now - self._since)
            speed = self._speed
            rate = float(np.asarray(self._trainer.learning_rate(moment.step - 1)))
            self._bar.set_postfix_str(f"loss {loss:.4f}, learning rate {rate:.2e}, {speed:,.0f} texts/s", refresh=False)
            self._write(
                {
                    "step": moment.step,
                    "epoch": moment.epoch,
                    "loss": loss,
                    "gradient_norm": float(moment.report.gradient_norm),
                    "learning_rate": rate,
                    "texts_per_second": round(speed, 1),
                }
            )
            self._losses, self._num_texts, self._since = [], 0, now
        if moment.evaluation is not None:
            name = SCORES[self._trainer.classifier.config.problem_type]
            _, loss, score = moment.evaluation
            self._write({"step": moment.step, "epoch": moment.epoch, "dev_loss": loss, "dev_score": score, "is": name})
            with tqdm.external_write_mode(file=sys.stderr):
                self._report(f"epoch {moment.epoch} dev {name} {score:.4f} loss {loss:.4f}")
            self._since = time.perf_counter()

    def _write(self, entry: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(f"{json.dumps(entry)}\n")
            self._file.flush()

    def __enter__(self) -> "_Log":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        if self._file is not None:
            self._file.close()


def _entries(log: Path) -> list[dict[str, Any]]:
    """The lines of a log; the last one may have been cut off."""
    entries = []
    for line in log.read_text(encoding="utf-8").splitlines() if log.exists() else []:
        try:
            entries.append(json.loads(line))
        except ValueError:
            break
    return entries


def draw_curves(entries: Sequence[Mapping[str, Any]], file: str | os.PathLike) -> None:
    """Draws the losses, the score on dev and the learning rate of a log over its steps."""
    from matplotlib.figure import Figure

    steps = [entry for entry in entries if "loss" in entry]
    evaluations = [entry for entry in entries if "dev_loss" in entry]
    figure = Figure(figsize=(12, 4), layout="constrained")
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


def _finish(work: Path, output: Path, classifier: Classifier, options: RunOptions, facts: Mapping[str, Any]) -> None:
    """Makes the output's content in the folder of the work, then puts it in its place."""
    finished, replaced = work / "finished", work / "replaced"
    shutil.rmtree(finished, ignore_errors=True)
    save(classifier, finished, dtype=jnp.dtype(options.save_dtype))
    shutil.copyfile(work / LOG, finished / LOG)
    draw_curves(_entries(work / LOG), finished / CURVES)
    _write(finished / FACTS, json.dumps(facts, indent=1))
    shutil.rmtree(replaced, ignore_errors=True)
    if output.exists():
        os.replace(output, replaced)
    os.replace(finished, output)
    (work / FACTS).unlink()
    shutil.rmtree(work, ignore_errors=True)
