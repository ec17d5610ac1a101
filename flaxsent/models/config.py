"""A checkpoint's `config.json` → frozen `ModelConfig`; what is not trusted or not implemented is refused by name.

Comes after `types.py`; every model function reads its sizes from here. Nothing of a remote config reaches
`transformers` without passing through `read_config`.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any

from flaxsent.base import FlaxsentError, ProblemType

PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")

# ModelConfig field -> key of config.json and transformers' default; None: no default, the key must be there.
_BERT_KEYS: dict[str, tuple[str, Any]] = {
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
    "classifier_dropout": ("classifier_dropout", "hidden_dropout_prob"),
    "initializer_range": ("initializer_range", 0.02),
}
_DISTILBERT_KEYS = _BERT_KEYS | {
    "hidden_size": ("dim", None),
    "num_layers": ("n_layers", None),
    "num_heads": ("n_heads", None),
    "intermediate_size": ("hidden_dim", None),
    "activation": ("activation", "gelu"),
    "type_vocab_size": ("type_vocab_size", 0),
    "hidden_dropout": ("dropout", 0.1),
    "attention_dropout": ("attention_dropout", 0.1),
    "classifier_dropout": ("seq_classif_dropout", 0.2),
}
_BART_KEYS = _BERT_KEYS | {
    "hidden_size": ("d_model", None),
    "num_layers": ("encoder_layers", None),
    "num_heads": ("encoder_attention_heads", None),
    "intermediate_size": ("encoder_ffn_dim", None),
    "activation": ("activation_function", "gelu"),
    "layer_norm_eps": ("layer_norm_eps", 1e-5),
    "type_vocab_size": ("type_vocab_size", 0),
    "pad_token_id": ("pad_token_id", 1),
    "hidden_dropout": ("dropout", 0.1),
    "attention_dropout": ("attention_dropout", 0.0),
    "classifier_dropout": ("classifier_dropout", 0.0),
    "initializer_range": ("init_std", 0.02),
}
_ROBERTA_KEYS = _BERT_KEYS | {"pad_token_id": ("pad_token_id", 1)}
_KEYS = {
    "albert": _BERT_KEYS
    | {
        "activation": ("hidden_act", "gelu_new"),
        "hidden_dropout": ("hidden_dropout_prob", 0.0),
        "attention_dropout": ("attention_probs_dropout_prob", 0.0),
        "classifier_dropout": ("classifier_dropout_prob", 0.1),
    },
    "bart": _BART_KEYS,
    "bert": _BERT_KEYS,
    "big_bird": _BERT_KEYS | {"activation": ("hidden_act", "gelu_new")},
    "camembert": _ROBERTA_KEYS,
    "deberta-v2": _BERT_KEYS
    | {
        "layer_norm_eps": ("layer_norm_eps", 1e-7),
        "type_vocab_size": ("type_vocab_size", 0),
        "classifier_dropout": ("cls_dropout", "hidden_dropout_prob"),
    },
    "distilbert": _DISTILBERT_KEYS,
    "electra": _BERT_KEYS,
    "mbart": _BART_KEYS,
    "modernbert": _BERT_KEYS
    | {
        "activation": ("hidden_activation", "gelu"),
        "layer_norm_eps": ("norm_eps", 1e-5),
        "type_vocab_size": ("type_vocab_size", 0),
        "pad_token_id": ("pad_token_id", 50283),
        "hidden_dropout": ("embedding_dropout", 0.0),
        "attention_dropout": ("attention_dropout", 0.0),
        "classifier_dropout": ("classifier_dropout", 0.0),
    },
    "mpnet": _ROBERTA_KEYS
    | {
        "type_vocab_size": ("type_vocab_size", 0),
        "classifier_dropout": ("hidden_dropout_prob", 0.1),
    },
    "roberta": _ROBERTA_KEYS,
    "roberta-prelayernorm": _ROBERTA_KEYS,
    "roformer": _BERT_KEYS,
    "xlm-roberta": _ROBERTA_KEYS,
}
_CLASS_NAMES = {
    "albert": "Albert",
    "bart": "Bart",
    "bert": "Bert",
    "big_bird": "BigBird",
    "camembert": "Camembert",
    "deberta-v2": "DebertaV2",
    "distilbert": "DistilBert",
    "electra": "Electra",
    "mbart": "MBart",
    "modernbert": "ModernBert",
    "mpnet": "MPNet",
    "roberta": "Roberta",
    "roberta-prelayernorm": "RobertaPreLayerNorm",
    "roformer": "RoFormer",
    "xlm-roberta": "XLMRoberta",
}
# Their position table starts at padding_idx + 1 (transformers' create_position_ids_from_input_ids).
_POSITIONS_AFTER_PADDING = ("camembert", "mpnet", "roberta", "roberta-prelayernorm", "xlm-roberta")

# Families whose LayerNorms do not ask the config.
_FIXED_EPS = {"bart": 1e-5, "distilbert": 1e-12, "mbart": 1e-5}

# Keys by which a config can make transformers fetch or run code (auto_map: remote modules; the attention keys: kernels
# from the Hub, CVE-2026-4372), with the values that are harmless.
_CODE_KEYS = {
    "auto_map": (None, {}),
    "trust_remote_code": (None, False),
    "_attn_implementation": (None, "eager", "sdpa"),
    "_attn_implementation_internal": (None, "eager", "sdpa"),
    "attn_implementation": (None, "eager", "sdpa"),
    "custom_pipelines": (None, {}),
}
# Keys that change the numbers, with the only values that are implemented.
_NUMBER_KEYS = {
    "is_decoder": (None, False),
    "add_cross_attention": (None, False),
    "pruned_heads": (None, {}),
    "quantization_config": (None,),
    "position_embedding_type": (None, "absolute"),
}
# Families that do not read one of these keys: mmBERT's and Ettin's configs say "sans_pos" there, and are right.
_NOT_READ = {("modernbert", "position_embedding_type")}


_TEMPERATURE_KEY = "flaxsent_temperature"
"""By which flaxsent 0.1 stored a temperature; since then it is in the last layer, which is divided by it."""


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
    json: str
    """The config.json that was read, for `save` and for the keys that only one family has."""

    @property
    def num_labels(self) -> int:
        return len(self.labels)

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
        value, most = self.get(key, default), _LARGEST if most is None else most
        if type(value) is not int or not least <= value <= most:
            raise FlaxsentError(f"config.json has {key}={value!r}; expected an integer from {least} to {most}.")
        return value

    def get_rate(self, key: str, default: float) -> float:
        """A key that only one family has, refused by name if it is no rate of dropout."""
        value = self.get(key, default)
        if type(value) not in (int, float) or not 0 <= value < 1:
            raise FlaxsentError(f"config.json has {key}={value!r}; expected a rate in [0, 1).")
        return float(value)

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


def read_config(text: str) -> ModelConfig:
    """Reads the text of a config.json.

    Raises:
        FlaxsentError: not JSON, an unknown family, a missing or impossible size, or a key that asks for remote code or
            for something that is not implemented; the message names the key.
    """
    raw = _parse(text)
    family = raw.get("model_type")
    if not isinstance(family, str) or family not in _KEYS:
        raise FlaxsentError(
            f"config.json has model_type={family!r}, which flaxsent does not know; it knows {', '.join(_KEYS)}."
        )
    for key, allowed in _CODE_KEYS.items():
        if raw.get(key) not in allowed:
            raise FlaxsentError(
                f"config.json has {key}={raw[key]!r}, which asks for code from elsewhere; flaxsent runs none: "
                "remove the key if the weights are those of a plain checkpoint."
            )
    for key, allowed in _NUMBER_KEYS.items():
        if raw.get(key) not in allowed and (family, key) not in _NOT_READ:
            raise FlaxsentError(
                f"config.json has {key}={raw[key]!r}, which is not implemented; expected {allowed[-1]!r}."
            )
    fields = {field: _value(raw, key, default) for field, (key, default) in _KEYS[family].items()}
    if fields["hidden_size"] % fields["num_heads"]:
        raise FlaxsentError(
            f"config.json has hidden size {fields['hidden_size']}, which its {fields['num_heads']} heads do not divide."
        )
    fields["layer_norm_eps"] = _FIXED_EPS.get(family, fields["layer_norm_eps"])
    first_position = fields["pad_token_id"] + 1 if family in _POSITIONS_AFTER_PADDING else 0
    if fields["pad_token_id"] >= fields["vocab_size"] or first_position >= fields["num_positions"]:
        raise FlaxsentError(
            f"config.json has pad_token_id={fields['pad_token_id']}, which is beyond its {fields['vocab_size']} tokens "
            f"or {fields['num_positions']} positions; expected a smaller one."
        )
    return ModelConfig(
        family=family,
        **fields,
        first_position=first_position,
        labels=(names := _labels(raw)),
        problem_type=_problem_type(raw, len(names)),
        json=json.dumps(raw),
    )


def to_json(config: ModelConfig, *, dtype: str) -> str:
    """The config.json to save: what was read, with the labels, the class and the dtype that are saved."""
    raw = json.loads(config.json)
    raw["architectures"] = [f"{_CLASS_NAMES[config.family]}ForSequenceClassification"]
    raw["id2label"] = {str(index): label for index, label in enumerate(config.labels)}
    raw["label2id"] = {label: index for index, label in enumerate(config.labels)}
    raw["problem_type"] = config.problem_type
    raw["torch_dtype"] = dtype
    for key in ("num_labels", "dtype", "_name_or_path", _TEMPERATURE_KEY):
        raw.pop(key, None)
    return json.dumps(raw, indent=2, sort_keys=True) + "\n"


def _parse(text: str) -> dict[str, Any]:
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as err:
        raise FlaxsentError(f"config.json is not JSON: {err}; expected the config.json of a checkpoint.") from err
    if not isinstance(raw, dict):
        raise FlaxsentError(f"config.json holds a {type(raw).__name__}; expected an object with a model_type.")
    return raw


def _value(raw: Mapping[str, Any], key: str, default: Any) -> Any:
    """The value of `key`, checked: sizes are positive integers, rates lie in [0, 1), the activation is a name."""
    value = raw.get(key)
    if value is None and isinstance(default, str) and default in _RATES:
        value, key = raw.get(default, 0.1), default  # transformers: classifier_dropout=None means hidden_dropout_prob
    elif value is None:
        value = default
    if key in ("hidden_act", "hidden_activation", "activation", "activation_function"):
        expected, is_good = "the name of an activation", isinstance(value, str)
    elif key in _RATES:
        expected, is_good = "a rate in [0, 1)", isinstance(value, int | float) and 0 <= value < 1
    elif key in ("layer_norm_eps", "norm_eps", "initializer_range", "init_std"):
        expected, is_good = "a number in (0, 1)", isinstance(value, int | float) and 0 < value < 1
    else:
        # A family that has token types by default adds their embeddings always.
        least = 0 if key == "pad_token_id" or (key == "type_vocab_size" and default == 0) else 1
        most = MOST_LAYERS if key in ("num_hidden_layers", "n_layers", "encoder_layers") else _LARGEST
        expected, is_good = f"an integer from {least} to {most}", type(value) is int and least <= value <= most
    if not is_good:
        raise FlaxsentError(f"config.json has {key}={value!r}; expected {expected}.")
    return float(value) if expected.startswith(("a rate", "a number")) else value


# Far beyond any published encoder: a hostile size must not cost memory or minutes before the weights, which it does not
# fit, are read.
MOST_LAYERS, _LARGEST = 256, 10_000_000

_RATES = (
    "attention_dropout",
    "attention_probs_dropout_prob",
    "classifier_dropout",
    "classifier_dropout_prob",
    "cls_dropout",
    "dropout",
    "embedding_dropout",
    "hidden_dropout_prob",
    "seq_classif_dropout",
)


def _labels(raw: Mapping[str, Any]) -> tuple[str, ...]:
    """The labels in the order of the logits; `LABEL_0` … where the config names none: two of them, BART three."""
    id2label = raw.get("id2label")
    if id2label is None:
        num_labels = raw.get("num_labels", 3 if raw["model_type"] == "bart" else 2)
        if type(num_labels) is not int or not 1 <= num_labels <= _LARGEST:
            raise FlaxsentError(f"config.json has num_labels={num_labels!r}; expected an integer from 1 to {_LARGEST}.")
        return tuple(f"LABEL_{index}" for index in range(num_labels))
    try:
        by_index = {int(index): str(label) for index, label in id2label.items()}
    except (AttributeError, ValueError) as err:
        raise FlaxsentError(f"config.json has id2label={id2label!r}; expected an object from index to label.") from err
    if not all(isinstance(label, str | int | float) for label in id2label.values()):
        raise FlaxsentError(f"config.json has id2label={id2label!r}; expected labels that are text.")
    if sorted(by_index) != list(range(len(id2label))) or not by_index:
        raise FlaxsentError(f"config.json has id2label keys {[*id2label]}; expected 0 to one less than their number.")
    return tuple(by_index[index] for index in range(len(by_index)))


def _problem_type(raw: Mapping[str, Any], num_labels: int) -> ProblemType:
    """`problem_type`, else what transformers' `*ForSequenceClassification.forward` takes for so many labels."""
    problem_type = raw.get("problem_type")
    if problem_type is None:
        return "regression" if num_labels == 1 else "single_label_classification"
    if problem_type not in PROBLEM_TYPES:
        raise FlaxsentError(
            f"config.json has problem_type={problem_type!r}; expected one of {', '.join(PROBLEM_TYPES)}."
        )
    return problem_type


def old_temperature(config: ModelConfig) -> float:
    """What a folder that flaxsent 0.1 calibrated has its logits divided by; 1 elsewhere.

    Raises:
        FlaxsentError: it is no temperature, or one for regression.
    """
    value = config.get(_TEMPERATURE_KEY, 1.0)
    is_regression = config.problem_type == "regression"
    if type(value) not in (int, float) or not 0.001 <= value <= 1000 or (is_regression and value != 1):
        expected = "none, as regression has no probabilities" if is_regression else "a number from 0.001 to 1000"
        raise FlaxsentError(f"config.json has {_TEMPERATURE_KEY}={value!r}; expected {expected}.")
    return float(value)
