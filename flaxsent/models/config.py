"""A checkpoint's `config.json` → frozen `ModelConfig`; what is not trusted or not implemented is refused by name.

Nothing of a remote config reaches transformers without passing through `read_config`.
"""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from flaxsent.base import FlaxsentError, ProblemType, ScoreFunction
from flaxsent.models.albert import FAMILIES as ALBERT
from flaxsent.models.bart import FAMILIES as BART
from flaxsent.models.bert import FAMILIES as BERT
from flaxsent.models.deberta import FAMILIES as DEBERTA
from flaxsent.models.distilbert import FAMILIES as DISTILBERT
from flaxsent.models.family import BERT_KEYS, LARGEST, MOST_LAYERS, Family, ModelConfig, check_rate, check_size
from flaxsent.models.flax_only import FAMILIES as FLAX_ONLY
from flaxsent.models.modernbert import FAMILIES as MODERNBERT
from flaxsent.models.mpnet import FAMILIES as MPNET

PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")
_SCORE_FUNCTIONS = ("softmax", "sigmoid", "none")

_FAMILIES = (*ALBERT, *BART, *BERT, *DEBERTA, *DISTILBERT, *FLAX_ONLY, *MODERNBERT, *MPNET)

FAMILIES: dict[str, Family] = {
    family.model_type: family for family in sorted(_FAMILIES, key=lambda family: family.model_type)
}
"""By `model_type` of config.json; a new family is a file that is named above."""

# Keys by which a config can make transformers fetch or run code: remote modules, with the values that are harmless; and
# kernels from the Hub (CVE-2026-4372), whose names have a slash or a colon, unlike those of transformers' own ways to
# attend ("flash_attention_2", "paged|sdpa").
_CODE_KEYS = {"auto_map": (None, {}), "trust_remote_code": (None, False), "custom_pipelines": (None, {})}
_ATTENTION_KEYS = ("_attn_implementation", "_attn_implementation_internal", "attn_implementation")
# Keys that change the numbers, with the only values that are implemented.
_NUMBER_KEYS = {
    "is_decoder": (None, False),
    "add_cross_attention": (None, False),
    "pruned_heads": (None, {}),
    "quantization_config": (None,),
    "position_embedding_type": (None, "absolute"),
}

_TEMPERATURE_KEY = "flaxsent_temperature"
"""By which flaxsent 0.1 stored a temperature; since then it is in the last layer, which is divided by it."""

THRESHOLDS_KEY = "id2threshold"
"""The key of thresholds, in the form of `id2label`; PyTorch's configs keep it and know nothing of it."""


def read_config(text: str) -> ModelConfig:
    """Reads the text of a config.json.

    Raises:
        FlaxsentError: not JSON, an unknown family, a missing or impossible size, or a key that asks for remote code or
            for something that is not implemented; the message names the key.
    """
    raw = _parse(text)
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise FlaxsentError(
            f"config.json has model_type={model_type!r}, which flaxsent does not know; it knows {', '.join(FAMILIES)}."
        )
    family = FAMILIES[model_type]
    for key in (*_CODE_KEYS, *_ATTENTION_KEYS):
        if not _is_plain(key, raw.get(key)):
            raise FlaxsentError(
                f"config.json has {key}={raw[key]!r}, which asks for code from elsewhere; flaxsent runs none: "
                "remove the key if the weights are those of a plain checkpoint."
            )
    for key, allowed in _NUMBER_KEYS.items():
        if raw.get(key) not in allowed and key not in family.ignored_keys:
            raise FlaxsentError(
                f"config.json has {key}={raw[key]!r}, which is not implemented; expected {allowed[-1]!r}."
            )
    fields: dict[str, Any] = {}
    for field, (key, default) in {**BERT_KEYS, **family.keys}.items():
        given = None if key is None else raw.get(key)
        value = fields.get(default, default) if given is None else given
        fields[field] = value if key is None else _checked(field, key, value, default)
    if fields["hidden_size"] % fields["num_heads"]:
        raise FlaxsentError(
            f"config.json has hidden size {fields['hidden_size']}, which its {fields['num_heads']} heads do not divide."
        )
    first_position = fields["pad_token_id"] + 1 if family.positions_follow_padding else 0
    if fields["pad_token_id"] >= fields["vocab_size"] or first_position >= fields["num_positions"]:
        raise FlaxsentError(
            f"config.json has pad_token_id={fields['pad_token_id']}, which is beyond its {fields['vocab_size']} tokens "
            f"or {fields['num_positions']} positions; expected a smaller one."
        )
    return ModelConfig(
        family=model_type,
        **fields,
        first_position=first_position,
        labels=(names := _labels(raw, default_num=family.default_num_labels)),
        problem_type=_problem_type(raw, len(names)),
        function_to_apply=_function_to_apply(raw, len(names)),
        json=json.dumps(raw),
        label_thresholds=_label_thresholds(raw, len(names)),
    )


def to_json(config: ModelConfig, *, dtype: str, has_head: bool = True) -> str:
    """The config.json to save: what was read, with the labels, the class and the dtype that are saved.

    With it, transformers' pipeline gives the scores of `postprocess`, where it can be told to.
    """
    raw = json.loads(config.json)
    kind = "ForSequenceClassification" if has_head else "Model"
    raw["architectures"] = [f"{FAMILIES[config.family].class_name}{kind}"]
    raw["id2label"] = {str(index): label for index, label in enumerate(config.labels)}
    raw["label2id"] = {label: index for index, label in enumerate(config.labels)}
    raw["problem_type"] = config.problem_type
    raw["function_to_apply"] = config.function_to_apply
    raw["torch_dtype"] = dtype
    for key in ("num_labels", "dtype", "_name_or_path", _TEMPERATURE_KEY, THRESHOLDS_KEY):
        raw.pop(key, None)
    if config.label_thresholds is not None:
        raw[THRESHOLDS_KEY] = thresholds_json(config.label_thresholds)
    if (config.num_labels, config.problem_type, config.function_to_apply) == (1, "regression", "sigmoid"):
        raw["problem_type"] = raw["function_to_apply"] = None  # see `_function_to_apply`
    if raw["function_to_apply"] is None:
        del raw["function_to_apply"]
    return json.dumps(raw, indent=2, sort_keys=True) + "\n"


def _parse(text: str) -> dict[str, Any]:
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as err:
        raise FlaxsentError(f"config.json is not JSON: {err}; expected the config.json of a checkpoint.") from err
    if not isinstance(raw, dict):
        raise FlaxsentError(f"config.json holds a {type(raw).__name__}; expected an object with a model_type.")
    return raw


def _is_plain(key: str, value: Any) -> bool:
    """Whether a key asks for no code from elsewhere."""
    if key in _CODE_KEYS:
        return value in _CODE_KEYS[key]
    return value is None or (isinstance(value, str) and re.fullmatch(r"[\w|]+", value) is not None)


def _checked(field: str, key: str, value: Any, default: Any) -> Any:
    """The value of a key, refused by name if it cannot be that of its field."""
    if field == "activation":
        if not isinstance(value, str):
            raise FlaxsentError(f"config.json has {key}={value!r}; expected the name of an activation.")
        return value
    if field.endswith("_dropout"):
        return check_rate(key, value)
    if field in ("layer_norm_eps", "initializer_range"):
        if type(value) not in (int, float) or not 0 < value < 1:
            raise FlaxsentError(f"config.json has {key}={value!r}; expected a number in (0, 1).")
        return float(value)
    # A family that has token types by default adds their embeddings always.
    least = 0 if field == "pad_token_id" or (field == "type_vocab_size" and default == 0) else 1
    return check_size(key, value, least=least, most=MOST_LAYERS if field == "num_layers" else LARGEST)


def _labels(raw: Mapping[str, Any], *, default_num: int) -> tuple[str, ...]:
    """The labels in the order of the logits; `LABEL_0` … where the config names none."""
    id2label = raw.get("id2label")
    if id2label is None:
        num_labels = raw.get("num_labels", default_num)
        return tuple(f"LABEL_{index}" for index in range(check_size("num_labels", num_labels, least=1, most=LARGEST)))
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


def _function_to_apply(raw: Mapping[str, Any], num_labels: int) -> ScoreFunction | None:
    """`function_to_apply`; else the sigmoid for one label of no problem type.

    transformers' models train such a label as regression, but its pipeline knows nothing of that: rerankers are so.
    """
    function = raw.get("function_to_apply")
    if function is None:
        return "sigmoid" if num_labels == 1 and raw.get("problem_type") is None else None
    if function not in _SCORE_FUNCTIONS:
        raise FlaxsentError(
            f"config.json has function_to_apply={function!r}; expected one of {', '.join(_SCORE_FUNCTIONS)}."
        )
    return function


def _label_thresholds(raw: Mapping[str, Any], num_labels: int) -> tuple[float, ...] | None:
    found = raw.get(THRESHOLDS_KEY)
    if found is None or raw.get("problem_type") != "multi_label_classification":
        return None
    expected = [str(index) for index in range(num_labels)]
    if (
        not isinstance(found, dict)
        or sorted(found) != sorted(expected)
        or not all(type(one) in (int, float) and 0 < one < 1 for one in found.values())
    ):
        raise FlaxsentError(
            f"config.json has {THRESHOLDS_KEY}={found!r:.99}; expected a number between 0 and 1 for each of "
            f"0 to {num_labels - 1}."
        )
    return tuple(float(found[index]) for index in expected)


def thresholds_json(thresholds: Sequence[float]) -> dict[str, float]:
    """What `THRESHOLDS_KEY` holds."""
    return {str(index): threshold for index, threshold in enumerate(thresholds)}


def as_trained(config: ModelConfig) -> ModelConfig:
    """The config of a model that is trained for its problem type: its scores are then what it learns to give.

    transformers' models write the problem type into their config when they are given labels. Thresholds are of the
    scores that were.
    """
    is_said = config.get("function_to_apply") is not None
    function = config.function_to_apply if is_said else None
    return dataclasses.replace(config, function_to_apply=function, label_thresholds=None)


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
