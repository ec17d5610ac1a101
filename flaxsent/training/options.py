"""What `fit` and `flaxsent train` can be told: each option once, with its default, its range and its help.

The command line is made from these fields, so a new one is an option of `flaxsent train` at once.
"""

import dataclasses
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from flaxsent.base import FlaxsentError, ProblemType
from flaxsent.data.base import Reading
from flaxsent.sharding import SHARDING, parse

Metric = Literal["accuracy", "macro-f1", "micro-f1", "mcc", "log-loss", "spearman", "r2"]

NUM_EPOCHS = 3
"""Of texts that are not few."""
ON_PAIRS = {"learning_rate": 2e-5, "min_steps": 100}
"""What --contrastive takes where nothing else is given. The learning rate is SetFit's; higher ones cost accuracy where
the encoder is good already. A step on 64 texts is one on 2,016 pairs, so that few do."""


class Range(NamedTuple):
    """The numbers that an option takes."""

    kind: type[int] | type[float]
    expected: str
    contains: Callable[[Any], bool]


_COUNT = Range(int, "a whole number of 1 or more", lambda value: value >= 1)
_SEVERAL = Range(int, "a whole number of 2 or more", lambda value: value >= 2)
_INDEX = Range(int, "a whole number of 0 or more", lambda value: 0 <= value < 2**32)
_SHARE = Range(float, "a number in [0, 1]", lambda value: 0 <= value <= 1)
_SHARE_BELOW_1 = Range(float, "a number in [0, 1)", lambda value: 0 <= value < 1)
_SHARE_ABOVE_0 = Range(float, "a number in (0, 1]", lambda value: 0 < value <= 1)
_SHARE_BETWEEN = Range(float, "a number in (0, 1)", lambda value: 0 < value < 1)
_POSITIVE = Range(float, "a positive number", lambda value: 0 < value < float("inf"))
_AT_LEAST_0 = Range(float, "a number of 0 or more", lambda value: 0 <= value < float("inf"))


def option(
    help: str,
    default: Any = dataclasses.MISSING,
    *,
    range: Range | None = None,
    metavar: str | None = None,
    flag: str | None = None,
    split: str | None = None,
) -> Any:
    """A field that is an option: `--name` unless `flag` says otherwise; `split` is what stands between its values."""
    metadata = {"help": help, "range": range, "metavar": metavar, "flag": flag, "split": split}
    return dataclasses.field(default=default, metadata=metadata)


def choices(field: dataclasses.Field) -> tuple[str, ...]:
    """The values that the type of a field allows, if it names them."""
    literals = [one for one in (field.type, *typing.get_args(field.type)) if typing.get_origin(one) is Literal]
    return typing.get_args(literals[0]) if literals else ()


def _check(options: Any) -> None:
    for field in dataclasses.fields(options):
        value, expected = getattr(options, field.name), None
        limits: Range | None = field.metadata["range"]
        if value is None and field.default is None:
            continue
        if limits is not None:
            kinds = int if limits.kind is int else (int, float)
            is_number = isinstance(value, kinds) and not isinstance(value, bool)
            expected = None if is_number and limits.contains(value) else limits.expected
        elif choices(field):
            expected = None if value in choices(field) else f"one of {', '.join(choices(field))}"
        elif typing.get_origin(field.type) is tuple or tuple[str, ...] in typing.get_args(field.type):
            expected = None if isinstance(value, tuple) else "a tuple"
        elif field.type is str and not value:
            expected = "a name"
        if expected is not None:
            raise FlaxsentError(f"{field.name}={value!r}; expected {expected}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How `fit` trains; the defaults fine-tune a small encoder on some ten thousand sentences.

    Raises:
        FlaxsentError: a value out of its range, by name.
    """

    learning_rate: float = option("peak of the learning rate", 1e-4, range=_POSITIVE)
    schedule: Literal["linear", "cosine"] = option("how the learning rate falls to 0 after its peak", "linear")
    warmup: float = option("share of the steps in which the learning rate rises", 0.06, range=_SHARE_BELOW_1)
    num_epochs: int | None = option(
        f"passes over the texts; by default {NUM_EPOCHS}, or as many more as make --min-steps",
        None,
        range=_COUNT,
        flag="--epochs",
    )
    min_steps: int = option("steps to make at least, where --epochs is not given", 300, range=_INDEX)
    batch_size: int = option("texts in a step: on average where rows are packed", 64, range=_COUNT)
    tokens_per_step: int | None = option("tokens and padding in a step, instead of --batch-size", None, range=_COUNT)
    accumulation: int = option("parts to compute a step in, which saves memory", 1, range=_COUNT)
    max_length: int = option("tokens after which a text is cut", 128, range=_COUNT)
    dtype: Literal["float32", "bfloat16", "float16"] | None = option(
        "what to compute in, by default as the checkpoint is loaded, which is float32 for flaxsent train; parameters, "
        "gradients and the optimizer are float32 always",
        None,
    )
    weight_decay: float = option("of kernels and embeddings; biases and LayerNorms have none", 0.01, range=_AT_LEAST_0)
    layer_decay: float = option(
        "factor of the learning rate from each layer to the one below it", 1.0, range=_SHARE_ABOVE_0
    )
    max_grad_norm: float = option("longer gradients are cut to this norm; 0 cuts none", 1.0, range=_AT_LEAST_0)
    average_decay: float = option(
        "of the moving average of the parameters, which is what is scored and saved; 0 takes no average",
        0.999,
        range=_SHARE_BELOW_1,
    )
    label_smoothing: float = option("share of the target that is spread over all labels", 0.0, range=_SHARE_BELOW_1)
    head_bias: Literal["prior", "zero"] = option(
        "where the biases of a new head start: so that it says of any text how the labels are spread, or at 0", "prior"
    )
    class_weights: str | Mapping[str, Any] | None = option(
        "what labels weigh in the loss: balanced, each as much as any other; or a JSON file, {label: weight}, of those "
        "that do not weigh 1",
        None,
        metavar="balanced|FILE",
    )
    focal_gamma: float = option(
        "focal loss (Lin et al. 2017): the higher, the less counts what is learned already; 0 is cross entropy",
        0.0,
        range=_AT_LEAST_0,
    )
    early_stopping: int = option(
        "stop after this many evaluations without a better score on dev, and keep the best one; 0 never stops early",
        0,
        range=_INDEX,
    )
    evaluate_every: int | None = option("steps; by default dev is scored after each epoch", None, range=_COUNT)
    metric: Metric | None = option(  # noqa: RUF009
        "figure on dev by which the best evaluation is known, which is kept then; by default accuracy, micro-f1 or r2 "
        "by what the labels are for, and the last one is kept unless --early-stopping is given",
        None,
    )
    freeze: tuple[str, ...] = option("patterns of parameters to keep as they are, such as 'bert.embeddings.*'", ())
    lora_rank: int = option(
        "train adapters of this rank (LoRA) and the head, and nothing else; the output is a folder in PEFT's format, "
        "which names the checkpoint it stands on; 0 trains the checkpoint itself",
        0,
        range=_INDEX,
    )
    lora_alpha: float = option("what adapters add is multiplied by this over their rank", 16.0, range=_POSITIVE)
    lora_targets: tuple[str, ...] | None = option(
        "ends of the names of layers that get adapters, as in PEFT, or all-linear; by default queries and values",
        None,
        metavar="A,B,...",
        split=",",
    )
    lora_dropout: float = option("of what the adapters read", 0.0, range=_SHARE_BELOW_1)
    teacher_weight: float = option("share of the loss that is the distance to the teacher's scores", 0.5, range=_SHARE)
    teacher_temperature: float = option("what the logits of both are divided by for that", 2.0, range=_POSITIVE)
    seed: int = option("of the order of the texts, dropout and a new head", 0, range=_INDEX)
    sharding: str = option(SHARDING, "data", metavar="HOW")

    def __post_init__(self) -> None:
        _check(self)
        parse(self.sharding)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What `flaxsent train` reads and writes.

    Raises:
        FlaxsentError: a value out of its range, by name, or options that do not go together.
    """

    model: str | None = option(
        "Hub id or folder of the checkpoint to start from; by default the embedded model", None, metavar="ID_OR_FOLDER"
    )
    train: tuple[str, ...] = option(
        "labelled texts to learn from: files, or patterns of their names such as 'parts/*.csv'", metavar="FILE"
    )
    dev: str | None = option("labelled texts to score after each epoch", None, metavar="FILE")
    dev_fraction: float | None = option(
        "share of the texts of --train to keep for dev, where there is no --dev: as many of each label, by the seed",
        None,
        range=_SHARE_BETWEEN,
    )
    folds: int | None = option(
        "cross-validation before the run: so many runs, each on all but one part of the texts and scored on that; the "
        "figures go to folds.json, the scores to out-of-fold.jsonl, for evaluate --scores",
        None,
        range=_SEVERAL,
    )
    output: str = option("folder to write; it appears when the run is complete", metavar="FOLDER")
    text_column: str = option("column of the texts", "text", metavar="NAME")
    second_column: str | None = option("column of the second texts, if the texts are pairs", None, metavar="NAME")
    label_column: str = option("column of the labels", "label", metavar="NAME")
    label_columns: tuple[str, ...] | None = option(
        "instead of --label-column, a column for each label, which holds 0 and 1, or true and false",
        None,
        metavar="A,B,...",
        split=",",
    )
    label_separator: str | None = option(
        "what separates several labels of a text; by default they are a JSON list", None, metavar="TEXT"
    )
    reading: Reading = option("how files are read, where their suffixes do not say it right", Reading())  # noqa: RUF009
    bad_rows: str | None = option(
        "write rows that are broken, or have no text or label, to this JSONL file; without it, they end the run",
        None,
        metavar="FILE",
    )
    labels: tuple[str, ...] | None = option(
        "names in the order of the logits; by default the checkpoint's if the file has no others, else the file's",
        None,
        metavar="A,B,...",
        split=",",
    )
    problem_type: ProblemType | None = option(  # noqa: RUF009
        "what the labels are for; by default what they look like: lists, decimal numbers, or one label of several", None
    )
    teacher: str | None = option(
        "Hub id or folder of a classifier with the same labels, whose scores are learned too",
        None,
        metavar="ID_OR_FOLDER",
    )
    unlabelled: str | None = option("texts without labels, to learn the teacher's scores of", None, metavar="FILE")
    special_tokens_in_text: Literal["special", "literal"] = option(
        "what [SEP], </s> or a marker is that a text spells: that token, as for transformers, or its letters", "special"
    )
    backend: Literal["native", "flax"] | None = option(
        "refuse a checkpoint that this backend cannot compute; packed rows are computed natively in any case", None
    )
    save_dtype: Literal["float32", "bfloat16", "float16"] = option("of the weights that are written", "float32")
    checkpoint_every: int = option("steps; there is a checkpoint after each epoch, too", 500, range=_COUNT)
    log_every: int = option("steps; there is a line after each epoch and with each checkpoint, too", 20, range=_COUNT)
    probe: bool = option(
        "fit the layer of the logits alone, in seconds, to what the encoder makes of the texts: L-BFGS, with the L2 "
        "penalty that is best on dev, or in a cross-validation; with --epochs, training goes on from there",
        False,
    )
    contrastive: bool = option(
        "for few examples a label, as SetFit does it: train the encoder on pairs of texts, which come together if they "
        "have a label in common and apart if not, then fit the layer of the logits as --probe does; the options of "
        "training are of the pairs, by default "
        + " ".join(f"--{name.replace('_', '-')} {value:g}" for name, value in ON_PAIRS.items()),
        False,
    )
    sweep: tuple[str, ...] = option(
        "train one run for each combination of these values, such as learning_rate=1e-5,3e-5 weight_decay=0,0.01, all "
        "in one program, and write the best on --dev; it fills an accelerator, and saves a CPU little",
        (),
        metavar="NAME=X,Y",
    )
    seeds: int = option("train each of these runs with so many seeds, from --seed on", 1, range=_COUNT)
    resume: bool = option("go on with this run if it was begun; do nothing if it is complete", False)
    overwrite: bool = option("replace an output that flaxsent train wrote", False)

    def __post_init__(self) -> None:
        _check(self)
        if self.label_columns is not None and self.label_column != "label":
            raise FlaxsentError("label_column and label_columns: expected one of the two.")
        if self.labels is not None and len({*self.labels}) < len(self.labels):
            raise FlaxsentError(f"labels={','.join(self.labels)}: expected labels that differ.")
        if not self.train:
            raise FlaxsentError("train is empty; expected a file or more.")
        if self.dev is not None and self.dev_fraction is not None:
            raise FlaxsentError("dev_fraction is for where there is no dev file; pass one of the two.")
        for name in ("dev", "dev_fraction", "teacher"):
            if self.folds is not None and getattr(self, name) is not None:
                raise FlaxsentError(f"folds are scored on the texts to learn from; they do not go with {name}.")
        if self.unlabelled is not None and self.teacher is None:
            raise FlaxsentError("unlabelled texts need a teacher: pass --teacher.")

    @property
    def text_columns(self) -> tuple[str, ...]:
        """One, or two for pairs."""
        return (self.text_column,) if self.second_column is None else (self.text_column, self.second_column)
