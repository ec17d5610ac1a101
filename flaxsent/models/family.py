"""What a family's file says of its family, `Family`, and what all files read of one checkpoint, `ModelConfig`."""

import dataclasses
import json
import math
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Float, PyTree

from flaxsent.base import FlaxsentError, ProblemType, ScoreFunction

# Far beyond any published encoder: a hostile size must not cost memory or minutes before the weights, which it does not
# fit, are read.
MOST_LAYERS, LARGEST = 256, 10_000_000

# ModelConfig field -> key of config.json, and the default; None: no default, the key must be there.
BERT_KEYS: dict[str, tuple[str | None, Any]] = {
    "vocab_size": ("vocab_size", None),
    "hidden_size": ("hidden_size", None),
    "num_layers": ("num_hidden_layers", None),
    "num_heads": ("num_attention_heads", None),
    "intermediate_size": ("intermediate_size", None),
    "activation": ("hidden_act", "gelu"),
    "layer_norm_eps": ("layer_norm_eps", 1e-12),
    "num_positions": ("max_position_embeddings", None),
    "type_vocab_size": ("type_vocab_size", 2),
    "pad_token_id": ("pad_token_id", 0),
    "hidden_dropout": ("hidden_dropout_prob", 0.1),
    "attention_dropout": ("attention_probs_dropout_prob", 0.1),
    "classifier_dropout": ("classifier_dropout", "hidden_dropout"),
    "initializer_range": ("initializer_range", 0.02),
}
"""Those of BERT, which most families share; a default may be the name of another field."""

_TINY = {
    "vocab_size": 61,
    "hidden_size": 36,
    "num_layers": 3,
    "num_heads": 3,
    "intermediate_size": 50,
    "num_positions": 40,
}
"""Awkward sizes for tests."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What `forward`, `tokenize` and `postprocess` need to know of a checkpoint; hashable, so static under `jit`."""

    family: str
    """`model_type` of config.json."""
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    activation: str
    layer_norm_eps: float
    num_positions: int
    """Rows of the position table: RoBERTa families lose the first `first_position` of them."""
    first_position: int
    type_vocab_size: int
    pad_token_id: int
    hidden_dropout: float
    attention_dropout: float
    classifier_dropout: float
    initializer_range: float
    """Standard deviation of newly drawn parameters."""
    labels: tuple[str, ...]
    problem_type: ProblemType
    """What the logits are trained for."""
    function_to_apply: ScoreFunction | None
    """What makes scores of them; None: what suits the problem type."""
    json: str
    """The config.json that was read, for `save` and for the keys that only one family has."""
    label_thresholds: tuple[float, ...] | None = None
    """Of several labels at once, the probability above which a text is given each; None: 0.5 for all."""

    @property
    def num_labels(self) -> int:
        return len(self.labels)

    @property
    def score_function(self) -> ScoreFunction:
        """What makes scores of logits: that of transformers' `TextClassificationPipeline`."""
        if self.function_to_apply is not None:
            return self.function_to_apply
        match self.problem_type:
            case "regression":
                return "none"
            case "multi_label_classification":
                return "sigmoid"
            case "single_label_classification":
                return "sigmoid" if self.num_labels == 1 else "softmax"

    @property
    def thresholds(self) -> tuple[float, ...] | None:
        """`label_thresholds`, or 0.5 for each; None where a text is given one label, or a value."""
        if self.problem_type != "multi_label_classification":
            return None
        return (0.5,) * self.num_labels if self.label_thresholds is None else self.label_thresholds

    @property
    def score_thresholds(self) -> tuple[float, ...] | None:
        """`thresholds` for what `score_function` makes of logits; None, too, where that makes labels compete."""
        if self.thresholds is None or self.score_function == "softmax":
            return None
        if self.score_function == "sigmoid":
            return self.thresholds
        return tuple(math.log(one / (1 - one)) for one in self.thresholds)

    @property
    def is_classifier(self) -> bool:
        """Whether the checkpoint has a head of its own, by its `architectures`; True where they are not named."""
        architectures = self.get("architectures")
        return not isinstance(architectures, list) or any("ForSequenceClassification" in str(a) for a in architectures)

    def get(self, key: str, default: Any = None) -> Any:
        """A key of config.json that only one family has; `default` where it is missing or null, as in transformers."""
        value = json.loads(self.json).get(key)
        return default if value is None else value

    def get_size(self, key: str, default: int, *, least: int = 1, most: int | None = None) -> int:
        """A key that only one family has, refused by name if it is no integer between `least` and `most`."""
        return check_size(key, self.get(key, default), least=least, most=LARGEST if most is None else most)

    def get_rate(self, key: str, default: float) -> float:
        """A key that only one family has, refused by name if it is no rate of dropout."""
        return check_rate(key, self.get(key, default))

    def get_flag(self, key: str, default: bool) -> bool:
        """A key that only one family has, refused by name if it is neither true nor false."""
        value = self.get(key, default)
        if type(value) is not bool:
            raise FlaxsentError(f"config.json has {key}={value!r}; expected true or false.")
        return value

    def get_choice(self, key: str, default: str, choices: Iterable[str]) -> str:
        """A key that only one family has, refused by name if it is none of `choices`."""
        value = self.get(key, default)
        if not isinstance(value, str) or value not in choices:
            raise FlaxsentError(f"config.json has {key}={value!r}; expected one of {', '.join(choices)}.")
        return value

    @property
    def max_length(self) -> int:
        """The longest text in tokens, special tokens included, that the position table can take."""
        return self.num_positions - self.first_position


def is_not_native(*_: Any, config: ModelConfig, **__: Any) -> Any:
    """Stands for what a family does not have."""
    raise FlaxsentError(f"flaxsent has no native encoder for {config.family}; load it with backend='flax'.")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Family:
    """All that is said of a family of checkpoints.

    `embed`, `encode` and `head` are for one row of tokens; a family without them is computed by transformers alone.
    """

    model_type: str
    class_name: str
    """Of its classes in transformers: `{class_name}ForSequenceClassification`."""
    base: str
    """The branch of the params that holds the encoder; the other branches are the head."""
    keys: Mapping[str, tuple[str | None, Any]] = dataclasses.field(default_factory=dict)
    """The keys of config.json where they are not BERT's, by the field of `ModelConfig`: key and default, or None and
    a constant."""
    ignored_keys: Collection[str] = ()
    """Keys of config.json that change the numbers of other families."""
    positions_follow_padding: bool = False
    """Whether the first position is `pad_token_id + 1` (transformers' create_position_ids_from_input_ids)."""
    limits_positions: Callable[[ModelConfig], bool] = lambda config: True
    """Whether there is a table of positions; False where any number of them, or of distances, can be computed."""
    default_num_labels: int = 2
    shapes: Callable[[ModelConfig], dict[str, Any]]
    """The shape of every parameter."""
    embed: Callable[..., PyTree[Float[Array, "T D"]]] = is_not_native
    """`embed(params[base], tokens, *, config, key)`: what the first layer reads."""
    encode: Callable[..., list[Float[Array, "_ D"]]] = is_not_native
    """`encode(params[base], embedded, tokens, *, config, num_segments, key)`: the first layer's input and the output of
    every layer, the last one's `[S D]`, what the head reads of each text; or `[T D]` if `num_segments` is None."""
    encoder_states: Callable[..., list[Float[Array, "T D"]]] | None = None
    """`encoder_states(params[base], embedded, tokens, *, config, key)`, where `encode` gives those of a decoder."""
    head: Callable[..., Float[Array, "S C"]] = is_not_native
    """`head(params, x_SD, *, config, key)`: logits in float32."""
    words: tuple[str, ...] = ("embeddings", "word_embeddings", "embedding")
    """Below `base`, where the table of words is."""
    ids_besides: Callable[[ModelConfig], Collection[int]] = lambda config: (config.pad_token_id,)
    """What is looked up there besides the ids of texts."""
    last_layer: tuple[str, ...] = ("classifier",)
    """Where in the params the layer of the logits is."""
    stacks: Callable[[ModelConfig], Mapping[str, Sequence[Hashable]]] = lambda config: {}
    """Below `base`, the branches of numbered layers that may be stacked, and each layer's kind: layers of one kind
    differ in their params only."""
    computed_tensors: Callable[[ModelConfig], dict[str, Float[np.ndarray, "..."]]] = lambda config: {}
    """Tensors that PyTorch's checkpoints hold and Flax computes, by their PyTorch names."""
    tiny: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What config.json of a tiny checkpoint has besides the sizes, or instead of them."""

    @property
    def is_native(self) -> bool:
        return self.head is not is_not_native

    @property
    def tiny_config(self) -> dict[str, Any]:
        """config.json of a tiny checkpoint, at awkward sizes; it takes texts of 40 tokens."""
        keys = {**BERT_KEYS, **self.keys}
        sizes = {str(keys[field][0]): size for field, size in _TINY.items()}
        return {"model_type": self.model_type, **sizes, **self.tiny}


def check_size(key: str, value: Any, *, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise FlaxsentError(f"config.json has {key}={value!r}; expected an integer from {least} to {most}.")
    return value


def check_rate(key: str, value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value < 1:
        raise FlaxsentError(f"config.json has {key}={value!r}; expected a rate in [0, 1).")
    return float(value)
