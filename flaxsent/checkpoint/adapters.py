"""Folders in PEFT's format ↔ adapters (`models.adapters`): adapter_config.json and adapter_model.safetensors.

Modules have PyTorch's names, as everywhere in checkpoints, after "base_model.model."; the tensors say which of them
have an adapter, and of which rank. The files are hostile until checked: no pickle is opened, and the sizes that the
header of the tensors names must fit the base before one is read.
"""

import dataclasses
import hashlib
import json
import logging
import math
import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors

from flaxsent import models
from flaxsent.base import FlaxsentError, Params
from flaxsent.checkpoint import weights
from flaxsent.files import EMBEDDED
from flaxsent.models.adapters import head_paths, is_below, linear_layers, part_of
from flaxsent.models.config import FAMILIES, read_config, to_json
from flaxsent.models.family import ModelConfig

logger = logging.getLogger(__name__)

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"

_PREFIX = "base_model.model."
_BASE_DIGEST, _CONFIG = "flaxsent.base", "flaxsent.config"
"""In the metadata of the tensors: the digest of the encoder that the adapter was trained on, and the config.json with
the labels of the head. A file of that name would make a whole model of the folder to transformers 5."""

_READ_OR_TOLD_BY_TENSORS = frozenset(
    (
        "peft_type",
        "task_type",
        "base_model_name_or_path",
        "revision",
        "r",
        "lora_alpha",
        "rank_pattern",
        "alpha_pattern",
        "use_rslora",
        "use_dora",
        "init_lora_weights",
        "target_modules",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "modules_to_save",
        "bias",
    )
)
_OF_NO_MATTER = frozenset(
    (
        "auto_mapping",
        "peft_version",
        "inference_mode",
        "lora_dropout",
        "fan_in_fan_out",
        "megatron_core",
        "qalora_group_size",
        "eva_config",
        "lora_ga_config",
        "runtime_config",
    )
)
"""Keys that concern training, GPT-2's layers, or a method that another key switches on."""
_PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")
"""Values of init_lora_weights that leave the base as it is; PiSSA, OLoRA and others change it before the first step."""

_MODULE = re.compile(r"(?P<module>.+)\.(?P<kind>lora_A|lora_B|lora_magnitude_vector)(\.weight)?")


class Settings(NamedTuple):
    """What adapter_config.json says, checked."""

    base: str | None
    """A folder or a Hub id."""
    revision: str | None
    rank: int | None
    """None where the modules have several."""
    alpha: float
    alpha_by_ending: Mapping[str, float]
    """By the end of a module's name; the first that fits counts."""
    uses_rslora: bool

    def scale(self, module: str, rank: int) -> float:
        """What the product of a module's two matrices is multiplied by."""
        fitting = (alpha for end, alpha in self.alpha_by_ending.items() if f".{module}".endswith(f".{end}"))
        return next(fitting, self.alpha) / (math.sqrt(rank) if self.uses_rslora else rank)


def is_adapter(source: Any) -> bool:
    """Whether it is a folder that holds an adapter."""
    return (Path(source) / CONFIG).is_file()


def read_settings(folder: Path) -> Settings:
    """What the config of an adapter says.

    Raises:
        FileNotFoundError: there is none.
        FlaxsentError: it is damaged, of another method than LoRA, or asks for what is not implemented; by its key.
    """
    file = folder / CONFIG
    if not file.is_file():
        raise FileNotFoundError(f"{folder} has no {CONFIG}; expected a folder that PEFT or flaxsent train wrote.")
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as err:
        raise FlaxsentError(f"{file} is not JSON: {weights.first_line(err)}; fetch it again.") from err

    def check(key: str, is_good: bool, expected: str) -> None:
        if not is_good:
            raise FlaxsentError(f"{file} has {key}={raw.get(key)!r:.99}; expected {expected}.")

    if not isinstance(raw, dict):
        raise FlaxsentError(f"{file} holds a {type(raw).__name__}; expected an object with a peft_type.")
    check("peft_type", raw.get("peft_type") == "LORA", "LORA: other methods are not implemented")
    check("task_type", raw.get("task_type") in (None, "SEQ_CLS", "FEATURE_EXTRACTION"), "SEQ_CLS, a classifier's")
    start = "one that leaves the base as it is: let PEFT convert the adapter to plain LoRA when it saves"
    check("init_lora_weights", raw.get("init_lora_weights", True) in _PLAIN_STARTS, start)
    for key, value in raw.items():
        is_off = value is None or value is False or value in ("", [], {})
        check(key, is_off or key in _READ_OR_TOLD_BY_TENSORS | _OF_NO_MATTER, "none: it is not implemented")
    for key in ("base_model_name_or_path", "revision"):
        check(key, isinstance(raw.get(key), str | None), "a text")
    check("r", type(raw.get("r", 8)) is int and raw.get("r", 8) > 0, "a whole number of 1 or more")
    check("lora_alpha", _is_positive(raw.get("lora_alpha", 8)), "a positive number")
    patterns = raw.get("alpha_pattern") or {}
    is_table = isinstance(patterns, dict) and all(map(_is_positive, patterns.values()))
    endings = "positive numbers by the names of modules"
    check("alpha_pattern", is_table and all(re.fullmatch(r"\^?(\w|\\?\.)+", name) for name in patterns), endings)
    return Settings(
        base=raw.get("base_model_name_or_path") or None,
        revision=raw.get("revision") or None,
        rank=None if raw.get("rank_pattern") else raw.get("r", 8),
        alpha=raw.get("lora_alpha", 8),
        alpha_by_ending={re.sub(r"[\\^]", "", name): alpha for name, alpha in patterns.items()},
        uses_rslora=bool(raw.get("use_rslora")),
    )


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < 1e9


def base_of(folder: Path) -> tuple[str, str | None]:
    """What an adapter says that it stands on, a folder or a Hub id as PEFT reads it, and at which revision.

    Raises:
        FileNotFoundError: it names a folder that is not here.
        FlaxsentError: it names none; or as `read_settings`.
    """
    settings = read_settings(folder)
    remedy = f"pass it: load(base, adapter={str(folder)!r})."
    if settings.base is None:
        raise FlaxsentError(f"{folder} does not name its base; {remedy}")
    if re.match(r"[./~]|.*/.*/", settings.base) and not Path(settings.base).is_dir():
        if Path(settings.base).parts[-2:] == EMBEDDED.parts[-2:]:  # that of another installation
            return str(EMBEDDED), None
        raise FileNotFoundError(f"{folder} names the base {settings.base}, which is no folder here; {remedy}")
    return settings.base, settings.revision


class Found(NamedTuple):
    """An adapter that was read."""

    params: Params
    """Those of the adapter alone, in float32."""
    base_digest: str | None
    """Of the encoder that it was trained on (`digest_of`), where that is known."""
    config: str | None
    """A config.json with the labels of the head, where they are told."""

    @property
    def has_head(self) -> bool:
        return len(self.params) > 1


def read(folder: Path, *, config: ModelConfig) -> Found:
    """The adapter in a folder, for a base with this config; its head may have another number of labels.

    Raises:
        FileNotFoundError: there is none.
        FlaxsentError: a file is damaged, or a pickle; or the adapter is one of another base or method.
    """
    settings, file = read_settings(folder), folder / WEIGHTS
    if not file.is_file():
        if (folder / PICKLE).is_file():
            raise FlaxsentError(
                f"{folder / PICKLE} is a pickle, which can run code; save the adapter as {WEIGHTS} by PEFT's "
                "save_pretrained(..., safe_serialization=True)."
            )
        raise FileNotFoundError(f"{folder} has no {WEIGHTS}; expected a folder that PEFT or flaxsent train wrote.")
    try:
        with safetensors.safe_open(file, framework="np") as opened:
            names = list(opened.keys())
            slices = {name: opened.get_slice(name) for name in names}
            places = _places(file, {name: tuple(slices[name].get_shape()) for name in names}, settings, config)
            if odd := sorted(name for name in names if not re.fullmatch(r"F(16|32|64)|BF16", slices[name].get_dtype())):
                raise FlaxsentError(f"{file} has tensors that are no floats of 16 bits or more: {weights.some(odd)}.")
            leaves = {path: jnp.asarray(opened.get_tensor(name), jnp.float32) for name, path in places.items()}
            metadata = opened.metadata() or {}
    except safetensors.SafetensorError as err:
        raise FlaxsentError(
            f"{file} is not a whole safetensors file: {weights.first_line(err)}; fetch it again."
        ) from err
    is_turned = {path: path[-1] in ("kernel", "lora_a", "lora_b") for path in leaves}
    leaves = {path: leaf.T if is_turned[path] else leaf for path, leaf in leaves.items()}
    for path, leaf in [*leaves.items()]:
        if path[-1] == "lora_a":
            scale = settings.scale(".".join(path[:-1]), leaf.shape[-1])
            leaves[*path[:-1], "lora_scale"] = jnp.asarray(scale, jnp.float32)
    return Found(weights.unflatten(leaves), metadata.get(_BASE_DIGEST), metadata.get(_CONFIG))


def _places(
    file: Path, sizes: Mapping[str, tuple[int, ...]], settings: Settings, config: ModelConfig
) -> dict[str, tuple[str, ...]]:
    """Where in the params each tensor belongs.

    Raises:
        FlaxsentError: a tensor does not belong to the base, or has another size than there; all in one.
    """
    shapes, base = models.shapes(config), models.base(config)
    by_path = dict(weights.flatten(shapes))
    by_name = {name: path for path in by_path for name in weights.pytorch_names(path, base)}
    layers = linear_layers(shapes)
    layers |= {name.removeprefix(f"{base}."): path for name, path in layers.items()}
    last = FAMILIES[config.family].last_layer
    places, faults = {}, []

    def fits(path: tuple[str, ...], size: tuple[int, ...]) -> bool:
        expected = weights.pytorch_shape(path, by_path[path])
        return size == expected or (is_below(path, last) and len(size) == len(expected) and size[1:] == expected[1:])

    for name, size in sizes.items():
        short = name.removeprefix(_PREFIX)
        found = _MODULE.fullmatch(short)
        if found is None:
            if ".original_module." in short:  # the base's own bias of a head, with bias="all"
                continue
            path = by_name.get(re.sub(r"\.(base_layer|modules_to_save)\.", ".", short))
            is_good, expected = (
                path is not None and fits(path, size),
                path and weights.pytorch_shape(path, by_path[path]),
            )
        else:
            kind, layer = found["kind"], layers.get(found["module"])
            inputs, outputs = (0, 0) if layer is None else by_path[*layer, "kernel"]
            rank = settings.rank or size[0 if kind == "lora_A" else -1] if len(size) == 2 else 0
            rank = min(rank, max(inputs, outputs))
            expected = {"lora_A": (rank, inputs), "lora_B": (outputs, rank), "lora_magnitude_vector": (outputs,)}[kind]
            path = None if layer is None else (*layer, _ARRAY_OF[kind])
            is_good = path is not None and size == expected
        if path is None:
            faults.append(f"+ {name}")
        elif not is_good:
            faults.append(f"{name}: expected {expected}, got {size}")
        else:
            places[name] = path
    adapted = {kind: {path[:-1] for path in places.values() if path[-1] == kind} for kind in ("lora_a", "lora_b")}
    halves = [f"- {_PREFIX}{'.'.join(path)}.lora_A or lora_B" for path in sorted(adapted["lora_a"] ^ adapted["lora_b"])]
    if faults or halves:
        raise FlaxsentError(
            f"{file} is of another base (- missing, + unexpected): {weights.some(faults or halves, between='; ')}"
        )
    if not adapted["lora_a"]:
        raise FlaxsentError(f"{file} has no tensors of adapters; expected lora_A and lora_B of some modules.")
    return places


_ARRAY_OF = {"lora_A": "lora_a", "lora_B": "lora_b", "lora_magnitude_vector": "lora_magnitude"}


def with_head(own: ModelConfig, found: Found) -> ModelConfig:
    """The base's config with the labels of the adapter's head: those that it tells, else the base's if it has as many.

    Raises:
        FlaxsentError: what it tells is damaged, or has another number of labels than the head.
    """
    if not found.has_head:
        return own
    number = models.last_layer(found.params)["kernel"].shape[-1]
    names = tuple(f"LABEL_{index}" for index in range(number))
    told = dataclasses.replace(own, labels=names, function_to_apply=None, label_thresholds=None)
    told = dataclasses.replace(told, problem_type="regression" if number == 1 else "single_label_classification")
    if found.config is not None:
        told = read_config(found.config)
        if told.num_labels != number:
            raise FlaxsentError(f"the adapter tells of {told.num_labels} labels, and its head has {number}.")
    elif number == own.num_labels and own.is_classifier:
        told = own
    with_class = json.loads(own.json) | {
        "architectures": [f"{FAMILIES[own.family].class_name}ForSequenceClassification"]
    }
    return dataclasses.replace(
        own,
        labels=told.labels,
        problem_type=told.problem_type,
        function_to_apply=told.function_to_apply,
        label_thresholds=told.label_thresholds,
        json=json.dumps(with_class),
    )


def digest_of(params: Params, *, config: ModelConfig) -> str:
    """Of the encoder in float32, without a head or pooler: what an adapter stands on."""
    digest = hashlib.blake2b(digest_size=16)
    for path, leaf in sorted(weights.flatten(params[models.base(config)])):
        if path[0] != "pooler" and not path[-1].startswith("lora_"):
            digest.update(".".join(path).encode())
            digest.update(np.asarray(leaf, np.float32).tobytes())
    return digest.hexdigest()


def check_base(
    folder: Path, found: Found, params: Params, *, config: ModelConfig, base: str | os.PathLike | None
) -> None:
    """Refuses a base with other weights than those that the adapter was trained on, where these are known.

    Where only their name is, another one is logged: copies have other names.

    Raises:
        FlaxsentError: it is one.
    """
    named = read_settings(folder).base
    if found.base_digest not in (None, digest_of(params, config=config)):
        raise FlaxsentError(f"the adapter {folder} was trained on other weights than these; expected those of {named}.")
    if found.base_digest is None and None not in (named, base) and Path(str(named)).name != Path(str(base)).name:
        logger.warning("the adapter %s was trained on %s by its %s, and is read on %s", folder, named, CONFIG, base)


def write(
    params: Params,
    folder: Path,
    *,
    config: ModelConfig,
    base: str | None = None,
    dropout: float = 0.0,
    dtype: Any = None,
) -> None:
    """Writes the adapters of the params, and their head, as PEFT does; `base` is the name of what they stand on.

    Raises:
        OSError: the folder cannot be written.
    """
    layers = {path: name for name, path in linear_layers(params).items()}
    tensors, ranks, alphas, own = {}, {}, {}, part_of(params, config=config)
    for path, leaf in weights.flatten(own):
        kind = {"lora_a": "lora_A", "lora_b": "lora_B"}.get(path[-1])
        if kind is not None:
            tensors[f"{_PREFIX}{layers[path[:-1]]}.{kind}.weight"] = np.ascontiguousarray(np.asarray(leaf).T)
        elif path[-1] == "lora_scale":
            module = layers[path[:-1]]
            layer = _at(own, path[:-1])
            ranks[module] = layer["lora_a"].shape[-1]
            # Six digits: what float32 holds of a quotient
            alphas[module] = float(f"{float(leaf) * ranks[module]:.6g}")
    heads = {".".join(path): _at(own, path) for path in head_paths(params, config=config)}
    replaced = {path: leaf for path, leaf in weights.flatten(own) if not path[-1].startswith("lora_")}
    tensors |= {f"{_PREFIX}{name}": tensor for name, tensor in weights.to_tensors(weights.unflatten(replaced)).items()}
    if dtype is not None:
        tensors = {name: tensor.astype(dtype) for name, tensor in tensors.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    settings = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": _number(alpha),
        "lora_dropout": dropout,
        "rank_pattern": {module: one for module, one in ranks.items() if one != rank},
        "alpha_pattern": {module: _number(one) for module, one in alphas.items() if one != alpha},
        "target_modules": _endings([*ranks], [name for name in layers.values() if not _is_in(name, heads)]),
        "modules_to_save": sorted(heads),
        "bias": "none",
    }
    is_exact = all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    metadata = {"format": "pt", _CONFIG: to_json(config, dtype="float32")} | (
        {_BASE_DIGEST: digest_of(params, config=config)} if is_exact else {}
    )
    weights.write_tensors(tensors, folder / WEIGHTS, metadata=metadata)
    (folder / CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _at(tree: Params, path: tuple[str, ...]) -> Params:
    for name in path:
        tree = tree[name]
    return tree


def _number(value: float) -> float | int:
    return int(value) if value == int(value) else value


def _is_in(module: str, branches: Mapping[str, Any]) -> bool:
    return any(f"{module}.".startswith(f"{branch}.") for branch in branches)


def _endings(adapted: list[str], others: list[str]) -> list[str]:
    """The last names of the modules that have adapters, if they are those of no other; else their whole names."""
    last = sorted({name.rpartition(".")[2] for name in adapted})
    reached = {name for name in others if name.rpartition(".")[2] in last}
    return last if reached == {*adapted} else sorted(adapted)
