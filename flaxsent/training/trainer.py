"""A run of training: `Trainer` makes its steps one by one, `fit` makes them all.

`run.py` is what the command line does with it: files, a log and checkpoints.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from flaxsent import placement
from flaxsent.base import AnyArray, FlaxsentError, Params, Text, Tokens
from flaxsent.classifier import Classifier, check_is_of_one_model, tell_truncated
from flaxsent.data.labels import Examples, read_examples
from flaxsent.files import require
from flaxsent.models import check_floats, last_layer
from flaxsent.models.config import as_trained
from flaxsent.packing import StepShape
from flaxsent.placement import device_of
from flaxsent.postprocessing import postprocess
from flaxsent.sharding import check_heads
from flaxsent.training import choosing, class_weights, distributed
from flaxsent.training.batches import Batch, Corpus, Plan, labels_as_arrays, plan_epoch, step_shapes
from flaxsent.training.choosing import METRICS, Evaluation, metric_of, told_ends
from flaxsent.training.optimizer import is_frozen, make_optimizer, make_schedule
from flaxsent.training.options import NUM_EPOCHS, Metric, TrainOptions
from flaxsent.training.prior import at_prior
from flaxsent.training.step import (
    Forward,
    Objective,
    StepReport,
    TrainState,
    dev_logits,
    loss,
    mean_loss,
    train_step,
    with_frozen,
)
from flaxsent.training.vocabulary import Vocabulary, vocabulary_of
from flaxsent.transforms import lora

if TYPE_CHECKING:
    import optax
else:
    optax = require("optax", needed_by="training", extra="train")

logger = logging.getLogger(__name__)


class Snapshot(NamedTuple):
    """All that a run needs to go on as if it had never stopped."""

    state: TrainState
    best: Params | None
    """The average of the best evaluation so far, where the best one is kept."""
    evaluations: tuple[Evaluation, ...] = ()


class StepEvent(NamedTuple):
    """What a run tells after each step; its arrays are gone once the next step is asked for."""

    snapshot: Snapshot
    step: int
    """From 1."""
    epoch: int
    """From 1."""
    report: StepReport
    num_texts: int
    is_epoch_end: bool
    """Of epochs that are many because the texts are few, not all ends are told, but ten."""
    evaluation: Evaluation | None


class Trainer:
    """The data laid out and the functions compiled; the state of the run is outside, in `Snapshot`.

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
        shapes: tuple[StepShape, ...] | None = None,
        objective: Objective | None = None,
    ) -> None:
        """Encodes the texts and plans the steps; compiles nothing yet.

        Args:
            classifier: where the run starts from; it stays as it is.
            train: the texts to learn from.
            dev: the texts to score after each epoch, or every few steps.
            options: how to train.
            unlabelled: more texts, to learn the teacher's scores of.
            teacher: scores of the texts of `train`, then of `unlabelled`, by another classifier with the same labels.
            shapes: of the steps; by default they fit the options, the texts and the number of devices. A run that was
                begun on other devices goes on with its own: then as many devices are used as share its rows evenly.
            objective: what the steps make less, as `contrastive.loss`; by default the loss of the labels.

        Raises:
            FlaxsentError: labels that do not fit the classifier, or options that do not fit it or the data.
        """
        self.options = options = TrainOptions() if options is None else options
        if classifier.backend == "exported":
            raise FlaxsentError("an exported folder cannot be trained; load the checkpoint that it was exported from.")
        check_is_of_one_model(classifier)
        check_floats(classifier.params)
        if options.lora_rank:
            names = ("rank", "alpha", "targets", "dropout")
            adapters = {name: getattr(options, f"lora_{name}") for name in names}
            classifier = lora.adapt(classifier, **adapters, seed=options.seed)
        self.classifier, config = classifier, classifier.config
        choosing.check(options, config.problem_type, has_dev=dev is not None)
        self.metric: Metric = metric_of(config.problem_type, options.metric)
        self.keeps_best = bool(options.early_stopping or options.metric)
        if unlabelled and teacher is None:
            raise FlaxsentError("unlabelled texts need the scores of a teacher.")
        expected = (len(train.texts) + len(unlabelled), config.num_labels)
        if teacher is not None and teacher.shape != expected:
            raise FlaxsentError(f"teacher has the shape {teacher.shape}; expected {expected}.")
        everywhere = placement.over(distributed.devices(), options.sharding)
        check_heads(config, everywhere.sharding)
        self.max_length = min(options.max_length, classifier.tokenizer.max_length)
        self._train = self._corpus(train, unlabelled, teacher)
        self._dev = None if dev is None else self._corpus(dev)
        corpora = [self._train] if self._dev is None else [self._train, self._dev]
        self.num_truncated = sum(corpus.encodings.num_truncated for corpus in corpora)
        self.num_texts = sum(len(corpus.encodings.input_ids) for corpus in corpora)
        self.is_packed = classifier.packs
        self.shapes = shapes or step_shapes(
            self._train.encodings.lengths,
            longest=max(max(corpus.encodings.lengths) for corpus in corpora),
            is_packed=self.is_packed,
            batch_size=options.batch_size,
            tokens_per_step=options.tokens_per_step,
            multiple_of=everywhere.num_groups * options.accumulation,
            shortest=placement.shortest_row(everywhere.devices),
        )
        self._placement = distributed.sharing(everywhere, self.shapes, options)
        self.steps_by_epoch: list[int] = []
        while self._is_too_short():
            self.steps_by_epoch.append(len(self._plan(len(self.steps_by_epoch))))
        self.num_steps = sum(self.steps_by_epoch)
        most = None if options.num_epochs is not None else _MOST_TOLD_ENDS
        self._ends = told_ends(self.steps_by_epoch, most=most)
        told = options.class_weights
        self.weights_C = None if told is None else class_weights.weights_of(told, self._train.labels, config)
        self.vocabulary = vocabulary_of(classifier, corpora)
        self.start_params = self.vocabulary.cut(classifier.params)
        if options.head_bias == "prior" and not last_layer(is_frozen(classifier.params, options.freeze)).get("bias"):
            self.start_params = at_prior(self.start_params, self._train.labels, config, weights_C=self.weights_C)
        self.learning_rate = make_schedule(options, self.num_steps)
        self._optimizer = make_optimizer(options, self.num_steps, classifier.params)
        num_segments = self.shapes[0].num_segments
        sizes = {"vocabulary": self.vocabulary, "call": self._placement.call}
        forward = forward_of_rows(classifier, options, num_segments, **sizes)
        step = step_of(classifier, options, self._optimizer, forward, self.weights_C, objective)
        state = jax.eval_shape(self._begin, self.start_params)
        replicated, (of_state, of_params) = self._placement.replicated, map(self._placement.of, (state, state.params))
        self.step = jax.jit(step, donate_argnums=0, out_shardings=(of_state, replicated))
        self.logits = jax.jit(functools.partial(dev_logits, forward=forward), out_shardings=replicated)
        self._start = jax.jit(self._begin, out_shardings=of_state)
        self._copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=of_params)

    def start(self) -> Snapshot:
        """Before the first step."""
        params = placement.put(self.start_params, self._placement)
        state = self._start(params)
        return Snapshot(state, self._copy(state.params) if self.keeps_best else None)

    def _begin(self, params: Params) -> TrainState:
        return first_state(params, self._optimizer, key_of(self.options.seed))

    def events(self, snapshot: Snapshot) -> Iterator[StepEvent]:
        """Makes the steps that follow, one by one; a snapshot is used up once the next step is asked for."""
        state, best, evaluations = snapshot
        done = int(state.step)
        for epoch, num_steps in enumerate(self.steps_by_epoch):
            if done >= num_steps:
                done -= num_steps
                continue
            for index, plan in enumerate(self._plan(epoch)[done:], start=done):
                if self._is_over(evaluations):
                    return
                state, report = self.step(state, self._put_batch(self._train, plan))
                step = sum(self.steps_by_epoch[:epoch]) + index + 1
                is_end, evaluation = step in self._ends, None
                if self._dev is not None and self._is_evaluated(step):
                    evaluations, best = self.with_evaluation(evaluations, best, state.average, step=step)
                    evaluation = evaluations[-1]
                num_texts = sum(map(len, plan.rows))
                yield StepEvent(
                    Snapshot(state, best, evaluations), step, epoch + 1, report, num_texts, is_end, evaluation
                )
            done = 0

    def with_evaluation(
        self, evaluations: tuple[Evaluation, ...], best: Params | None, average: Params, *, step: int
    ) -> tuple[tuple[Evaluation, ...], Params | None]:
        """One more evaluation, of this average, and the average of the best one, where that is kept."""
        evaluations = (*evaluations, self.evaluate(average, step=step))
        is_kept = self.keeps_best and choosing.best(evaluations, self.metric) == len(evaluations) - 1
        return evaluations, self._copy(average) if is_kept else best

    def evaluate(self, params: Params, *, step: int = 0) -> Evaluation:
        """Loss and score on dev, of the params of a snapshot or of a classifier."""
        if self._dev is None:
            raise FlaxsentError("there is no dev to evaluate on; pass it to Trainer.")
        lengths, config = self._dev.encodings.lengths, self.classifier.config
        plans = plan_epoch(lengths, self.shapes, is_packed=self.is_packed, seed=0, epoch=0)
        found = [self.logits(params, self._put_batch(self._dev, plan)) for plan in plans]
        logits_BC = np.zeros((len(lengths), config.num_labels), np.float32)
        for plan, logits_RSC in zip(plans, found, strict=True):
            for texts, logits_SC in zip(plan.rows, np.asarray(logits_RSC), strict=True):
                logits_BC[texts] = logits_SC[: len(texts)]
        return choosing.evaluate(logits_BC, self._dev.labels, config, metric=self.metric, step=step)

    def result(self, snapshot: Snapshot) -> Classifier:
        """The classifier with the average of the last step, or of the best evaluation where that is kept.

        Of several labels at once, it has the thresholds of that evaluation.
        """
        params = snapshot.state.average if snapshot.best is None else snapshot.best
        own = self.classifier.params
        first = jax.tree.leaves(own)[0]
        frozen = is_frozen(own, self.options.freeze)

        def copy(leaf: AnyArray, before: Array, is_held: bool) -> Array:
            return before if is_held else jnp.asarray(np.array(leaf), first.dtype)

        with jax.default_device(device_of(first)):
            copied = jax.tree.map(copy, self.vocabulary.whole(params, own), own, frozen)
        config = as_trained(self.classifier.config)
        scores = functools.partial(postprocess, config=config)
        result = dataclasses.replace(self.classifier, params=copied, config=config, postprocess=scores)
        return choosing.as_evaluated(result, self._of_result(snapshot))

    def chosen(self, snapshot: Snapshot, report: Callable[[str], None]) -> Evaluation | None:
        """The evaluation of the parameters that `result` gives, after telling its warning."""
        chosen = self._of_result(snapshot)
        if chosen is not None and chosen.warning:
            report(chosen.warning)
        return chosen

    def _of_result(self, snapshot: Snapshot) -> Evaluation | None:
        if not snapshot.evaluations:
            return None
        return snapshot.evaluations[-1 if snapshot.best is None else choosing.best(snapshot.evaluations, self.metric)]

    def _corpus(
        self, data: Examples, unlabelled: Sequence[Text] = (), teacher: Float[np.ndarray, "N C"] | None = None
    ) -> Corpus:
        labels = labels_as_arrays(data, self.classifier.config)
        encodings = self.classifier.tokenizer.encode([*data.texts, *unlabelled], max_length=self.max_length)
        return Corpus(encodings, labels, teacher)

    def _plan(self, epoch: int) -> list[Plan]:
        lengths = self._train.encodings.lengths
        return plan_epoch(lengths, self.shapes, is_packed=self.is_packed, seed=self.options.seed, epoch=epoch)

    def _put_batch(self, corpus: Corpus, plan: Plan) -> Batch:
        """Each process makes its own rows."""
        num_rows = plan.shape.num_rows // jax.process_count()
        batch = corpus.batch(plan, slice(jax.process_index() * num_rows, (jax.process_index() + 1) * num_rows))
        return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(self._placement.by_row, leaf), batch)

    @property
    def is_lengthened(self) -> bool:
        """Whether there are more epochs, as the texts are few."""
        return self.options.num_epochs is None and len(self.steps_by_epoch) > NUM_EPOCHS

    def _is_too_short(self) -> bool:
        """Whether an epoch more is to be made."""
        num_epochs, options = len(self.steps_by_epoch), self.options
        if options.num_epochs is not None:
            return num_epochs < options.num_epochs
        return num_epochs < NUM_EPOCHS or sum(self.steps_by_epoch) < options.min_steps

    def _is_evaluated(self, step: int) -> bool:
        every = self.options.evaluate_every
        return step in self._ends if every is None else step % every == 0 or step == self.num_steps

    def _is_over(self, evaluations: tuple[Evaluation, ...]) -> bool:
        patience = self.options.early_stopping
        return bool(patience) and len(evaluations) - 1 - choosing.best(evaluations, self.metric) >= patience


_MOST_TOLD_ENDS = 10
"""Of epochs that are many because the texts are few."""


def key_of(seed: int) -> Key[Array, ""]:
    """Of one generator whatever `jax_default_prng_impl` is: a seed gives one run, alone and in a sweep."""
    return jax.random.key(seed, impl="threefry2x32")


def first_state(params: Params, optimizer: optax.GradientTransformation, key: Key[Array, ""]) -> TrainState:
    """Before the first step; the params in float32, whatever they were."""
    params, average = (jax.tree.map(lambda leaf: jnp.copy(leaf.astype(jnp.float32)), params) for _ in range(2))
    with jax.numpy_dtype_promotion("standard"):
        opt_state = optimizer.init(params)
    return TrainState(params, average, opt_state, jnp.zeros((), jnp.int32), key)


def step_of(
    classifier: Classifier,
    options: TrainOptions,
    optimizer: optax.GradientTransformation,
    forward: Forward,
    weights_C: Float[np.ndarray, " C"] | None = None,
    objective: Objective | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, StepReport]]:
    """A step of the run that the options describe; `weights_C` are their class weights."""
    of_labels = functools.partial(
        loss,
        label_smoothing=options.label_smoothing,
        teacher_weight=options.teacher_weight,
        teacher_temperature=options.teacher_temperature,
        class_weights=None if weights_C is None else jnp.asarray(weights_C),
        focal_gamma=options.focal_gamma,
    )
    trained = functools.partial(objective or of_labels, forward=forward, problem_type=classifier.config.problem_type)
    return functools.partial(
        train_step,
        loss=with_frozen(trained, is_frozen(classifier.params, options.freeze)),
        optimizer=optimizer,
        average_decay=options.average_decay,
        accumulation=options.accumulation,
    )


def forward_of_rows(
    classifier: Classifier,
    options: TrainOptions,
    num_segments: int,
    *,
    vocabulary: Vocabulary | None = None,
    call: Callable[..., Any] = lambda function, *arguments: function(*arguments),
) -> Forward:
    """The forward on rows `[R, T]`, logits `[R, S, C]`, computed in the dtype of the options; `call` calls it.

    Its params have the table of words that `vocabulary` cuts, or the whole one.
    """
    vocabulary = Vocabulary() if vocabulary is None else vocabulary
    own = jax.tree.leaves(classifier.params)[0].dtype
    dtype = own if options.dtype is None else jnp.dtype(options.dtype)
    # A Flax module computes in the dtype that it was built for, whatever that of the parameters.
    built_for = {} if classifier.backend == "native" or dtype == own else {"dtype": dtype}

    def forward(params: Params, tokens: Tokens, key: Key[Array, ""] | None) -> Float[Array, "R S C"]:
        cast = vocabulary.with_row_of_id(jax.tree.map(lambda leaf: leaf.astype(dtype), params))
        if classifier.forward_packed is None:
            return call(functools.partial(classifier.forward, **built_for), cast, tokens, key)[:, None]
        return call(classifier.forward_packed, cast, tokens, num_segments, key)

    return forward


def fit(
    classifier: Classifier,
    train: Any,
    dev: Any = None,
    *,
    options: TrainOptions | None = None,
    unlabelled: Sequence[Text] = (),
    teacher: Float[np.ndarray, "N C"] | None = None,
    report: Callable[[str], None] = logger.info,
    on_epoch: Callable[[Classifier], None] | None = None,
    **columns: Any,
) -> Classifier:
    """Fine-tunes a classifier and returns it with the moving average of its parameters.

    Of several labels at once, it has the thresholds that are best on dev (`postprocessing.tune_thresholds`).

    `train` and `dev` are `Examples`, or tables or files, of which `columns` says what `read_annotations` is to read:
    `text_columns`, `label_column`, `label_columns`, ….

    With `teacher`, it learns another classifier's scores too: of the texts of `train`, then of those of `unlabelled`.
    `report` gets a line of text now and then, `on_epoch` the classifier as it is after each epoch.

    Raises:
        FlaxsentError: as `Trainer` and `data.labels.read_examples`, or the loss is not finite any more.
    """
    task = {"labels": classifier.config.labels, "problem_type": classifier.config.problem_type}
    train, dev = (
        one if one is None or isinstance(one, Examples) else read_examples(one, **task, **columns)
        for one in (train, dev)
    )
    trainer = Trainer(classifier, train, dev, options=options, unlabelled=unlabelled, teacher=teacher)
    tell_truncated(trainer.num_truncated, trainer.num_texts, trainer.max_length)
    snapshot, losses = trainer.start(), []
    for event in trainer.events(snapshot):
        snapshot = event.snapshot
        losses.append(event.report.loss)
        if event.is_epoch_end or event.step % _REPORT_STEPS == 0:
            value = mean_loss(losses, step=event.step)
            report(f"epoch {event.epoch} step {event.step} of {trainer.num_steps} loss {value:.4f}")
            losses = []
        if event.evaluation is not None:
            report(f"epoch {event.epoch} dev {METRICS[trainer.metric].told} {event.evaluation.score:.4f}")
        if event.is_epoch_end and on_epoch is not None:
            on_epoch(trainer.result(snapshot._replace(best=None)))
    trainer.chosen(snapshot, report)
    return trainer.result(snapshot)


_REPORT_STEPS = 200
