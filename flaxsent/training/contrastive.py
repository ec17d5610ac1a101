"""Few examples of each label, learned as SetFit does (Tunstall et al. 2022): first the encoder, from pairs of texts.

The encoder is trained until texts with a label in common have features in one direction, and others at right angles.
Then the layer of the logits is fitted to the features, as in `probe.py`. Sixteen texts are 120 pairs.

SetFit draws its pairs one by one, as many of one kind as of the other, and computes two texts for each. Here a step
computes each text of a batch once and takes all pairs among them, with as much weight on one kind as on the other. In
the mean over batches it is the same loss, but that SetFit also pairs each text with itself, where only dropout differs.
"""

import dataclasses
import logging
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from flaxsent.base import FlaxsentError, Params, ProblemType
from flaxsent.classifier import Classifier
from flaxsent.data.labels import Examples
from flaxsent.losses import pair_loss
from flaxsent.models.config import ModelConfig, as_trained
from flaxsent.packing import StepShape
from flaxsent.training import probe
from flaxsent.training.batches import Batch, labels_as_arrays
from flaxsent.training.class_weights import count_by_label
from flaxsent.training.options import ON_PAIRS, RunOptions, TrainOptions
from flaxsent.training.probe import Probed
from flaxsent.training.step import Forward, mean_loss
from flaxsent.training.trainer import Trainer

logger = logging.getLogger(__name__)


def loss(
    params: Params,
    batch: Batch,
    key: Key[Array, ""] | None,
    *,
    forward: Forward,
    problem_type: ProblemType = "single_label_classification",
) -> Float[Array, ""]:
    """`losses.pair_loss` of the texts of a batch: an objective for `Trainer`, as `step.loss` is.

    The embedding of a text is what the layer of the logits reads of it; that layer itself gets no gradient.
    """
    features = forward(probe.with_features(params), batch.tokens, key).astype(jnp.float32)
    labels, weights = jnp.asarray(batch.labels), jnp.asarray(batch.weights)
    of_texts = (one.reshape(-1, *one.shape[weights.ndim :]) for one in (features, labels, weights))
    return pair_loss(*of_texts, problem_type=problem_type)


_NO_USE = (
    "early_stopping",
    "evaluate_every",
    "accumulation",
    "label_smoothing",
    "head_bias",
    "focal_gamma",
    "lora_rank",
)
"""Options of training that are of the labels' loss, or that ask for what steps on pairs do not have."""


def check(options: RunOptions, train_options: TrainOptions) -> None:
    """Raises FlaxsentError for options that do not go with --contrastive."""
    if options.probe:
        raise FlaxsentError("--contrastive fits the layer of the logits as --probe does; leave --probe out.")
    for name in ("sweep", "seeds", "folds", "teacher"):
        _check_default(options, name)
    _check_steps(train_options)


def _check_steps(options: TrainOptions) -> None:
    for name in _NO_USE:
        _check_default(options, name)


def _check_default(options: RunOptions | TrainOptions, name: str) -> None:
    if getattr(options, name) != type(options).__dataclass_fields__[name].default:
        raise FlaxsentError(f"--{name.replace('_', '-')} does not go with --contrastive; leave one of the two out.")


def trainer_of(
    classifier: Classifier,
    train: Examples,
    options: TrainOptions | None = None,
    *,
    shapes: tuple[StepShape, ...] | None = None,
    report: Callable[[str], None] = logger.info,
) -> Trainer:
    """What makes the steps on pairs; without options, those of `ON_PAIRS`.

    Raises:
        FlaxsentError: there are no pairs of both kinds, or as `Trainer` and `probe.probe`.
    """
    options = TrainOptions(**ON_PAIRS) if options is None else options
    _check_steps(options)
    probe.check_can_probe(classifier)
    _check_pairs(train, as_trained(classifier.config), report)
    own = dataclasses.replace(options, metric=None)  # which is of the layer that is fitted afterwards
    return Trainer(classifier, train, options=own, objective=loss, shapes=shapes)


def _check_pairs(train: Examples, config: ModelConfig, report: Callable[[str], None]) -> None:
    if config.problem_type == "regression":
        raise FlaxsentError("contrastive: texts have a label in common or none; this is regression, without labels.")
    targets = labels_as_arrays(train, config)
    count_C = count_by_label(targets, config)
    single = [label for label, count in zip(config.labels, count_C, strict=True) if count == 1]
    if count_C.max() < 2:
        raise FlaxsentError(
            "contrastive: no two texts have a label in common; expected two examples or more of a label."
        )
    if count_C.max() == len(train.texts):
        label = config.labels[int(count_C.argmax())]
        raise FlaxsentError(f"contrastive: all texts have the label {label}; expected texts without it, to tell apart.")
    if single:
        names = ", ".join(single[:3]) + (", …" if len(single) > 3 else "")
        report(f"labels with one example, which is like no other text, only unlike: {len(single)} ({names})")


def fit(
    classifier: Classifier,
    train: Examples,
    dev: Examples | None = None,
    options: TrainOptions | None = None,
    *,
    report: Callable[[str], None] = logger.info,
) -> Probed:
    """The classifier with its encoder trained on pairs, and its layer of the logits fitted to what that makes of texts.

    Raises:
        FlaxsentError: as `trainer_of`, or the loss is not finite any more.
    """
    trainer = trainer_of(classifier, train, options, report=report)
    snapshot, losses = trainer.start(), []
    for event in trainer.events(snapshot):
        snapshot = event.snapshot
        losses.append(event.report.loss)
        if event.is_epoch_end:
            report(f"step {event.step} of {trainer.num_steps} loss {mean_loss(losses, step=event.step):.4f}")
            losses = []
    return fit_layer(trainer.result(snapshot), train, dev, options, report=report)


def fit_layer(
    classifier: Classifier,
    train: Examples,
    dev: Examples | None = None,
    options: TrainOptions | None = None,
    *,
    report: Callable[[str], None] = logger.info,
) -> Probed:
    """The second part alone: the penalty is dev's choice, else that of scikit-learn's C = 1, which SetFit takes."""
    return probe.probe(classifier, train, dev, options, penalty=1 / len(train.texts), report=report)
