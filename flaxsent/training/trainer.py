"""Fine-tuning as pure functions: `loss` and `train_step`, and `Trainer` and `fit`, which loop over them.

`training_data.py` makes the batches, `optimization.py` the optimizer; `training_run.py` is the command line's job, with
its log and its checkpoints.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Key, Shaped

try:
    import optax
except ImportError as err:
    raise ImportError('training needs optax, which is not installed: pip install "flaxsent[train]"') from err

from flaxsent.base import FlaxsentError, Params, ProblemType, Text, Tokens
from flaxsent.classifier import Classifier
from flaxsent.data.labels import Examples
from flaxsent.models import flax_auto
from flaxsent.postprocessing import postprocess
from flaxsent.training.batches import Batch, Corpus, Plan, labels_as_arrays, plan_epoch, step_shapes
from flaxsent.training.optimizer import TrainOptions, is_frozen, make_optimizer, make_schedule

logger = logging.getLogger(__name__)

Forward = Callable[[Params, Tokens, Key[Array, ""] | None], Float[Array, "*texts C"]]
Loss = Callable[[Params, Batch, Key[Array, ""] | None], Float[Array, ""]]


class TrainState(NamedTuple):
    """All that a step changes; a pytree."""

    params: Params
    """In float32."""
    average: Params
    """Exponential moving average of `params`."""
    opt_state: optax.OptState
    step: Int[Array, ""]
    key: Key[Array, ""]


class StepReport(NamedTuple):
    """What a step tells: on the device until it is asked for."""

    loss: Float[Array, ""]
    """Before the update."""
    gradient_norm: Float[Array, ""]
    """Before it is cut."""


def loss(
    params: Params,
    batch: Batch,
    key: Key[Array, ""] | None,
    *,
    forward: Forward,
    problem_type: ProblemType = "single_label_classification",
    label_smoothing: float = 0.0,
    teacher_weight: float = 0.0,
    teacher_temperature: float = 1.0,
) -> Float[Array, ""]:
    """Mean over the texts of a batch, with dropout drawn from `key`; None is no dropout.

    Cross entropy for one label of several, binary cross entropy for several, squared error for regression: the losses
    of transformers' `*ForSequenceClassification.forward`. With a teacher, mixed with the distance to its scores, which
    is all that counts for a text without a label.
    """
    logits = forward(params, batch.tokens, key).astype(jnp.float32)
    weights = jnp.asarray(batch.weights)
    each = _losses(logits, jnp.asarray(batch.labels), problem_type, label_smoothing)
    if batch.teacher is not None:
        distances = _distances(logits, jnp.asarray(batch.teacher), problem_type, teacher_temperature)
        own = (1 - teacher_weight) * (1.0 if batch.is_labelled is None else jnp.asarray(batch.is_labelled))
        each = own * each + (1 - own) * distances
    return jnp.sum(each * weights) / jnp.maximum(jnp.sum(weights), 1)


def _losses(
    logits: Float[Array, "*texts C"],
    labels: Shaped[Array, "*texts_or_C"],
    problem_type: ProblemType,
    label_smoothing: float = 0.0,
) -> Float[Array, "*texts"]:
    match problem_type:
        case "single_label_classification":
            targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), label_smoothing)
            return optax.softmax_cross_entropy(logits, targets)
        case "multi_label_classification":
            return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, labels), axis=-1)
        case "regression":
            return jnp.square(logits[..., 0] - labels)


def _distances(
    logits: Float[Array, "*texts C"], scores: Float[Array, "*texts C"], problem_type: ProblemType, temperature: float
) -> Float[Array, "*texts"]:
    """Cross entropy with the teacher's scores, both at a temperature, times its square: as large as without."""
    if problem_type == "regression":
        return jnp.mean(jnp.square(logits - scores), axis=-1)
    least = jnp.finfo(jnp.float32).tiny
    if problem_type == "single_label_classification":
        targets = jax.nn.softmax(jnp.log(jnp.maximum(scores, least)) / temperature, axis=-1)
        return temperature**2 * optax.softmax_cross_entropy(logits / temperature, targets)
    odds = jnp.log(jnp.maximum(scores, least)) - jnp.log(jnp.maximum(1 - scores, least))
    targets = jax.nn.sigmoid(odds / temperature)
    return temperature**2 * jnp.mean(optax.sigmoid_binary_cross_entropy(logits / temperature, targets), axis=-1)


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    average_decay: float,
    accumulation: int = 1,
) -> tuple[TrainState, StepReport]:
    """One update. With `accumulation` the rows are taken in so many parts, of which each text counts alike."""
    key, dropout_key = jax.random.split(state.key)
    value, gradient = _gradient(state.params, batch, dropout_key, loss=loss, accumulation=accumulation)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes Python's floats with its integer counters
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = cast(Params, optax.apply_updates(state.params, updates))
    # The average forgets its start: over the first steps it is a plain mean.
    num_steps = state.step.astype(jnp.float32)
    decay = jnp.minimum(average_decay, (1 + num_steps) / (10 + num_steps))
    average = cast(Params, optax.incremental_update(params, state.average, 1 - decay))
    report = StepReport(value, optax.tree.norm(gradient))
    return TrainState(params, average, opt_state, state.step + 1, key), report


def _gradient(
    params: Params, batch: Batch, key: Key[Array, ""], *, loss: Loss, accumulation: int
) -> tuple[Float[Array, ""], Params]:
    if accumulation == 1:
        return jax.value_and_grad(loss)(params, batch, key)
    # Every so-many-th row makes a part, so that each part is spread over the devices as the whole is.
    parts = jax.tree.map(lambda leaf: jnp.moveaxis(jnp.reshape(leaf, (-1, accumulation, *leaf.shape[1:])), 1, 0), batch)
    total = jnp.maximum(jnp.sum(parts.weights), 1)

    def add(sums: tuple[Array, Params], part: tuple[Batch, Array]) -> tuple[tuple[Array, Params], None]:
        share = jnp.sum(part[0].weights) / total
        value, gradient = jax.value_and_grad(loss)(params, *part)
        return jax.tree.map(lambda total, one: total + share * one, sums, (value, gradient)), None

    zeros = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
    return jax.lax.scan(add, zeros, (parts, jax.random.split(key, accumulation)))[0]


def _with_frozen(loss: Loss, frozen: Params) -> Loss:
    """Without the gradients of frozen parameters, which cost nothing then: what lies below them is not run back."""

    def partly(params: Params, batch: Batch, key: Key[Array, ""] | None) -> Float[Array, ""]:
        held = jax.tree.map(lambda leaf, is_held: jax.lax.stop_gradient(leaf) if is_held else leaf, params, frozen)
        return loss(held, batch, key)

    return partly


class Evaluation(NamedTuple):
    """How the averaged parameters do on dev."""

    step: int
    loss: float
    score: float
    """Accuracy, micro-averaged F1, or R², by problem type: more is better."""


SCORES: dict[ProblemType, str] = {
    "single_label_classification": "accuracy",
    "multi_label_classification": "micro F1",
    "regression": "R2",
}


class Snapshot(NamedTuple):
    """All from which a run goes on as if it had never stopped."""

    state: TrainState
    best: Params | None
    """Of the best epoch, where a run may end early."""
    evaluations: tuple[Evaluation, ...] = ()


class StepEvent(NamedTuple):
    """What a run tells after each step; its arrays are gone when the next step is asked for."""

    snapshot: Snapshot
    step: int
    """From 1."""
    epoch: int
    """From 1."""
    report: StepReport
    num_texts: int
    is_epoch_end: bool
    evaluation: Evaluation | None


class Trainer:
    """A run: the data laid out, the functions compiled; the state is outside, in `Snapshot`.

    The rows of a step are spread over all devices of all processes; every process must make the same calls.
    """

    def __init__(
        self,
        classifier: Classifier,
        train: Examples,
        dev: Examples | None = None,
        *,
        options: TrainOptions | None = None,
        unlabelled: Sequence[Text] = (),
        teacher: Float[np.ndarray, "N C"] | None = None,
    ) -> None:
        """Encodes the texts and plans the steps; compiles nothing yet.

        Args:
            classifier: where the run starts from; it stays as it is.
            train: the texts to learn from.
            dev: the texts to evaluate on after each epoch.
            options: how.
            unlabelled: more texts to learn the teacher's scores of.
            teacher: scores of the texts of `train`, then of `unlabelled`, by another classifier with the same labels.

        Raises:
            ValueError: labels that do not fit the classifier, or options that do not fit it or the data.
        """
        self.options = options = TrainOptions() if options is None else options
        self.classifier, config = classifier, classifier.config
        if options.early_stopping and dev is None:
            raise FlaxsentError("early_stopping needs dev.")
        if options.label_smoothing and config.problem_type != "single_label_classification":
            raise FlaxsentError(f"label_smoothing is for one label of several; this is {config.problem_type}.")
        if unlabelled and teacher is None:
            raise FlaxsentError("unlabelled texts need the scores of a teacher.")
        expected = (len(train.texts) + len(unlabelled), config.num_labels)
        if teacher is not None and teacher.shape != expected:
            raise FlaxsentError(f"teacher has the shape {teacher.shape}; expected {expected}.")
        self._train = self._corpus(train, unlabelled, teacher)
        self._dev = None if dev is None else self._corpus(dev)
        devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
        mesh = Mesh(np.asarray(devices), ("rows",))
        self._by_row, self._replicated = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("rows",), ()))
        self.is_packed = classifier.backend == "native"
        self.shapes = step_shapes(
            self._train.lengths,
            longest=max([*self._train.lengths, *(self._dev.lengths if self._dev else [])]),
            is_packed=self.is_packed,
            batch_size=options.batch_size,
            tokens_per_step=options.tokens_per_step,
            multiple_of=len(devices) * options.accumulation,
        )
        self.steps_by_epoch = [len(self._plan(epoch)) for epoch in range(options.num_epochs)]
        self.num_steps = sum(self.steps_by_epoch)
        self.learning_rate = make_schedule(options, self.num_steps)
        self._optimizer = make_optimizer(options, self.num_steps, classifier.params)
        task = {
            "forward": _forward(classifier, options, self.shapes[0].num_segments),
            "problem_type": config.problem_type,
        }
        trained = functools.partial(
            loss,
            **task,
            label_smoothing=options.label_smoothing,
            teacher_weight=options.teacher_weight,
            teacher_temperature=options.teacher_temperature,
        )
        step = functools.partial(
            train_step,
            loss=_with_frozen(trained, is_frozen(classifier.params, options.freeze)),
            optimizer=self._optimizer,
            average_decay=options.average_decay,
            accumulation=options.accumulation,
        )
        self.step = jax.jit(step, donate_argnums=0, out_shardings=self._replicated)
        self.sums = jax.jit(functools.partial(_sums, **task), out_shardings=self._replicated)
        self._copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=self._replicated)

    def start(self) -> Snapshot:
        """Before the first step."""
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), self.classifier.params)
        with jax.numpy_dtype_promotion("standard"):
            opt_state = self._optimizer.init(params)
        # rbg draws dropout masks several times faster on a CPU, but every device draws those of all rows.
        impl = "unsafe_rbg" if jax.default_backend() == "cpu" else "threefry2x32"
        key = jax.random.key(self.options.seed, impl=impl)
        state = TrainState(params, params, opt_state, jnp.zeros((), jnp.int32), key)
        return Snapshot(self.put(state), self.put(params) if self.options.early_stopping else None)

    def put(self, tree: Any) -> Any:
        """A pytree on all devices, in memory of its own, which steps may take over."""

        def put_leaf(leaf: Any) -> Any:
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                data = put_leaf(jax.random.key_data(leaf))
                return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
            host = np.array(leaf)
            return jax.make_array_from_process_local_data(self._replicated, host, host.shape)

        return self._copy(jax.tree.map(put_leaf, tree))

    def moments(self, snapshot: Snapshot) -> Iterator[StepEvent]:
        """The steps that follow, one by one; a snapshot is used up when the next one is asked for."""
        state, best, evaluations = snapshot
        done = int(state.step)
        for epoch, num_steps in enumerate(self.steps_by_epoch):
            if self._is_over(evaluations):
                return
            if done >= num_steps:
                done -= num_steps
                continue
            for index, plan in enumerate(self._plan(epoch)[done:], start=done):
                state, report = self.step(state, self._put_batch(self._train, plan))
                step = sum(self.steps_by_epoch[:epoch]) + index + 1
                is_end, evaluation = index + 1 == num_steps, None
                if is_end and self._dev is not None:
                    evaluation = self.evaluate(state.average, step=step)
                    if best is not None and not any(e.score >= evaluation.score for e in evaluations):
                        best = self._copy(state.average)
                    evaluations = (*evaluations, evaluation)
                num_texts = sum(map(len, plan.rows))
                yield StepEvent(
                    Snapshot(state, best, evaluations), step, epoch + 1, report, num_texts, is_end, evaluation
                )
            done = 0

    def evaluate(self, params: Params, *, step: int = 0) -> Evaluation:
        """Loss and score on dev."""
        if self._dev is None:
            raise FlaxsentError("there is no dev to evaluate on; pass it to Trainer.")
        plans = plan_epoch(self._dev.lengths, self.shapes, is_packed=self.is_packed, seed=0, epoch=0)
        sums = [self.sums(params, self._put_batch(self._dev, plan)) for plan in plans]
        total = {name: sum(float(one[name]) for one in sums) for name in sums[0]}
        match self.classifier.config.problem_type:
            case "single_label_classification":
                score = total["right"] / total["texts"]
            case "multi_label_classification":
                score = 2 * total["right"] / max(total["predicted"] + total["labelled"], 1)
            case "regression":
                spread = float(np.sum(np.square(self._dev.labels - np.mean(self._dev.labels, dtype=np.float64))))
                score = 1 - total["loss"] / max(spread, 1e-12)
        return Evaluation(step, total["loss"] / total["texts"], score)

    def result(self, snapshot: Snapshot) -> Classifier:
        """The classifier that a run has come to: the best epoch's average if it may end early, else the last one."""
        params = snapshot.state.average if snapshot.best is None else snapshot.best
        dtype = jax.tree.leaves(self.classifier.params)[0].dtype
        copied = jax.tree.map(lambda leaf: jnp.asarray(np.array(leaf.addressable_data(0)), dtype), params)
        # A temperature was fitted to other parameters.
        return dataclasses.replace(
            self.classifier,
            params=copied,
            config=(config := dataclasses.replace(self.classifier.config, temperature=1.0)),
            postprocess=functools.partial(postprocess, problem_type=config.problem_type),
        )

    def _corpus(
        self, data: Examples, unlabelled: Sequence[Text] = (), teacher: Float[np.ndarray, "N C"] | None = None
    ) -> Corpus:
        labels = labels_as_arrays(data, self.classifier.config)
        tokenizer = self.classifier.tokenizer
        encodings = tokenizer.encode(
            [*data.texts, *unlabelled], max_length=min(self.options.max_length, tokenizer.max_length)
        )
        return Corpus(encodings=encodings, labels=labels, teacher=teacher, config=self.classifier.config)

    def _plan(self, epoch: int) -> list[Plan]:
        return plan_epoch(
            self._train.lengths, self.shapes, is_packed=self.is_packed, seed=self.options.seed, epoch=epoch
        )

    def _put_batch(self, corpus: Corpus, plan: Plan) -> Batch:
        """Each process makes its own rows."""
        num_rows = plan.shape.num_rows // jax.process_count()
        batch = corpus.batch(plan, slice(jax.process_index() * num_rows, (jax.process_index() + 1) * num_rows))
        return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(self._by_row, leaf), batch)

    def _is_over(self, evaluations: tuple[Evaluation, ...]) -> bool:
        scores = [evaluation.score for evaluation in evaluations]
        patience = self.options.early_stopping
        return bool(patience and scores) and len(scores) - 1 - int(np.argmax(scores)) >= patience


def _forward(classifier: Classifier, options: TrainOptions, num_segments: int) -> Forward:
    """The forward on rows `[R, T]`, logits `[R, S, C]`, computed in the dtype of the options."""
    own = jax.tree.leaves(classifier.params)[0].dtype
    dtype = own if options.dtype is None else jnp.dtype(options.dtype)
    padded = classifier.forward
    if classifier.backend == "flax" and dtype != own:  # a Flax module computes in the dtype that it was built for
        padded = flax_auto.build(classifier.config, dtype).forward

    def forward(params: Params, tokens: Tokens, key: Key[Array, ""] | None) -> Float[Array, "R S C"]:
        cast = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
        if classifier.backend == "flax":
            return padded(cast, tokens, key)[:, None]
        return classifier.forward_packed(cast, tokens, num_segments, key)

    return forward


def _sums(params: Params, batch: Batch, *, forward: Forward, problem_type: ProblemType) -> dict[str, Float[Array, ""]]:
    """What adds up over the batches of dev, for its loss and its score."""
    logits = forward(params, batch.tokens, None).astype(jnp.float32)
    labels, weights = jnp.asarray(batch.labels), jnp.asarray(batch.weights)
    sums = {"texts": jnp.sum(weights), "loss": jnp.sum(_losses(logits, labels, problem_type) * weights)}
    if problem_type == "single_label_classification":
        sums["right"] = jnp.sum(weights, where=jnp.argmax(logits, axis=-1) == labels)
    elif problem_type == "multi_label_classification":
        chosen = jnp.where(logits > 0, weights[..., None], jnp.zeros(()))
        sums |= {"right": jnp.sum(chosen * labels), "predicted": jnp.sum(chosen), "labelled": jnp.sum(labels)}
    return sums


def fit(
    classifier: Classifier,
    train: Examples,
    dev: Examples | None = None,
    *,
    options: TrainOptions | None = None,
    unlabelled: Sequence[Text] = (),
    teacher: Float[np.ndarray, "N C"] | None = None,
    report: Callable[[str], None] = logger.info,
    on_epoch: Callable[[Classifier], None] | None = None,
) -> Classifier:
    """Fine-tunes a classifier and returns it with the moving average of its parameters.

    With `teacher`, it learns another classifier's scores too: of the texts of `train`, then of those of `unlabelled`.
    `report` gets a line of text now and then, `on_epoch` the classifier as it is after each epoch.

    Raises:
        FlaxsentError: as `Trainer` does, or the loss is no number any more.
    """
    trainer = Trainer(classifier, train, dev, options=options, unlabelled=unlabelled, teacher=teacher)
    snapshot, losses = trainer.start(), []
    for moment in trainer.moments(snapshot):
        snapshot = moment.snapshot
        losses.append(moment.report.loss)
        if moment.is_epoch_end or moment.step % _REPORT_STEPS == 0:
            value = mean_loss(losses, step=moment.step)
            report(f"epoch {moment.epoch} step {moment.step} of {trainer.num_steps} loss {value:.4f}")
            losses = []
        if moment.evaluation is not None:
            score = SCORES[classifier.config.problem_type]
            report(f"epoch {moment.epoch} dev {score} {moment.evaluation.score:.4f}")
        if moment.is_epoch_end and on_epoch is not None:
            on_epoch(trainer.result(snapshot._replace(best=None)))
    return trainer.result(snapshot)


_REPORT_STEPS = 200


def mean_loss(losses: Sequence[Float[Array, ""]], *, step: int) -> float:
    """The mean of the last steps' losses, fetched from the device.

    Raises:
        FlaxsentError: it is no number any more; the parameters are lost then.
    """
    value = float(np.mean(jax.device_get(list(losses))))
    if not np.isfinite(value):
        raise FlaxsentError(f"the loss is {value} at step {step}; try a lower learning_rate, or a longer warmup.")
    return value
