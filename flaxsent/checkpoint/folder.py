"""`load`: folder, Hub id, exported folder or nothing → `Classifier`; and `save`, the way back."""

import dataclasses
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

from flaxsent import models
from flaxsent.base import Backend, FlaxsentError, Params, ProblemType
from flaxsent.checkpoint import adapters, exported, hub, weights
from flaxsent.checkpoint.card import CARD, model_card
from flaxsent.checkpoint.tokenizer import TOKENIZER_FILES, read_tokenizer
from flaxsent.classifier import (
    Classifier,
    check_is_of_one_model,
    embeddings,
    forward,
    forward_packed,
    hidden_states,
    tokenize,
)
from flaxsent.files import replacing
from flaxsent.models import flax_auto
from flaxsent.models.adapters import has_adapters, merge
from flaxsent.models.config import PROBLEM_TYPES, ModelConfig, as_trained, old_temperature, read_config, to_json
from flaxsent.postprocessing import postprocess


def load(
    source: str | os.PathLike | None = None,
    *,
    adapter: str | os.PathLike | None = None,
    backend: Backend | None = None,
    dtype: Any = None,
    revision: str | None = None,
    labels: Sequence[str] | None = None,
    problem_type: ProblemType | None = None,
    new_head: bool | None = None,
    seed: int = 0,
    matmul_precision: str | None = "highest",
    special_tokens_in_text: Literal["special", "literal"] = "special",
) -> Classifier:
    """Loads a checkpoint: a folder, a Hub id (at `revision`), an exported folder, or the embedded sentiment model.

    Args:
        source: None is the embedded checkpoint. Of an exported folder, all but the last of what follows is settled. A
            folder with an adapter in PEFT's format is read as that adapter, on the base that it names.
        adapter: a folder or Hub id of a LoRA adapter, which is folded into the params; its head replaces the own one.
        backend: of `forward`: "flax" (a FlaxAutoModelForSequenceClassification: transformers 4's, or where that is not
            installed or lacks the family flaxsent's own), "native" (the encoders without Flax), or None: flax where it
            is installed, else native. `forward_packed` is native always.
        dtype: of the parameters and of the computation: float32 (the default), bfloat16 or float16.
        revision: branch, tag or commit on the Hub.
        labels: those of the classifier, in the order of the logits; the checkpoint's own by default.
        problem_type: what the logits are for; the checkpoint's own by default, with new labels one label of several, or
            regression if there is one. It decides the scores, too, unless config.json names a `function_to_apply` for
            these labels.
        new_head: whether to draw the layer of the logits, to be trained. By default it is drawn for labels that are not
            the checkpoint's own, and for an encoder that has none. False keeps it under other names. A model that is to
            be trained must be whole: where this is given or a head is drawn, a file with more layers than its config
            says is refused.
        seed: from which the new head is drawn.
        matmul_precision: `jax.default_matmul_precision` within the forward: "highest" makes float32 mean float32 on
            GPU and TPU too; None leaves it to JAX.
        special_tokens_in_text: what a special token that a text spells ("[SEP]", "</s>", a marker such as "[E1]") is:
            "special", that token, as transformers reads it; or "literal", its letters, for texts that you do not trust.

    Raises:
        FileNotFoundError, ConnectionError: no such checkpoint, or the Hub cannot be reached.
        FlaxsentError: a file is damaged, hostile, or does not fit the config; or an argument does not fit it.
        MissingPackageError: the backend or the file format needs a package that is not installed.
    """
    if source is not None and exported.is_exported(source):
        settled = {"backend": backend, "dtype": dtype, "labels": labels, "problem_type": problem_type}
        if given := [name for name, value in settled.items() if value is not None]:
            raise FlaxsentError(f"{source} was exported, which settled {' and '.join(given)}; export the model anew.")
        return exported.read(Path(source), special_tokens_in_text=special_tokens_in_text)
    if adapter is None and source is not None and adapters.is_adapter(source):
        adapter, (source, of_base) = source, adapters.base_of(Path(source))
        revision = revision or of_base
    dtype = float_dtype(jnp.float32 if dtype is None else dtype)
    folder = hub.find(source, revision=revision)
    own, found = config_of(folder), None
    if adapter is not None:
        adapter = hub.find_adapter(adapter)
        found = adapters.read(adapter, config=own)
        own = adapters.with_head(own, found)
    config = _with_labels(own, labels, problem_type)
    chosen = _choose_backend(backend, config, dtype)
    is_new = (config.labels != own.labels or not own.is_classifier) and labels is not None
    draws_head = is_new if new_head is None else new_head
    if new_head is False and config.num_labels != own.num_labels:
        raise FlaxsentError(f"new_head=False keeps the layer of {own.num_labels} labels; got {config.num_labels}.")
    is_whole = draws_head or new_head is not None
    key = jax.random.key(seed) if draws_head else None
    if found is None:
        params = _read_params(folder, config, dtype, key=key, is_whole=is_whole)
    else:
        params = _read_params(folder, own, jnp.dtype(jnp.float32), key=key, is_whole=is_whole, others=found.params)
        adapters.check_base(Path(str(adapter)), found, params, config=own, base=source)
        params = merge(params, found.params)
        if key is not None:
            params = models.with_last_layer(params, models.last_layer(_drawn_head(config, key)))
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    has_own_head = not draws_head and (found is None or not found.has_head)
    if has_own_head and (temperature := old_temperature(own)) != 1:
        params = models.divide_logits(params, temperature)
    tokenizer = read_tokenizer(folder, config, special_tokens_in_text=special_tokens_in_text)
    natively = functools.partial(functools.partial, config=config, matmul_precision=matmul_precision)
    by_flax = functools.partial(natively, dtype=dtype)
    packs = models.is_native(config)
    return Classifier(
        tokenize=functools.partial(tokenize, tokenizer=tokenizer),
        forward=natively(forward) if chosen == "native" else by_flax(flax_auto.forward),
        forward_packed=natively(forward_packed) if packs else None,
        hidden_states=natively(hidden_states) if chosen == "native" else by_flax(flax_auto.hidden_states),
        embeddings=natively(embeddings) if packs else by_flax(flax_auto.embeddings),
        postprocess=functools.partial(postprocess, config=config),
        params=params,
        config=config,
        tokenizer=tokenizer,
        backend=chosen,
    )


def save(classifier: Classifier, folder: str | os.PathLike, *, dtype: Any = None, card: bool = True) -> None:
    """Writes an ordinary Hugging Face folder: config.json, model.safetensors with PyTorch's names, the tokenizer.

    It appears when it is whole, with a model card, README.md, unless `card` is False. Of a folder that is there, the
    files of a checkpoint are replaced, all at once; others stay, a card too. `dtype` is that of the stored weights, by
    default that of the params.

    Raises:
        FlaxsentError: the params are int8 or have adapters, or it is `transforms.zero_shot`'s or `by_segment`'s.
        OSError: the folder cannot be written; what was there still is.
    """
    check_is_of_one_model(classifier)
    if models.is_int8(classifier.params):
        raise FlaxsentError(
            "a checkpoint folder holds floats, and these params are int8: export them, or save the floats."
        )
    if has_adapters(classifier.params):
        raise FlaxsentError(
            "a checkpoint folder holds no adapters, and these params do: merge them, or write them by save_adapter."
        )
    stored = jax.tree.leaves(classifier.params)[0].dtype if dtype is None else float_dtype(dtype)
    tensors = weights.to_tensors(jax.tree.map(lambda leaf: leaf.astype(stored), classifier.params))
    tensors |= models.computed_tensors(classifier.config)
    with replacing(Path(folder), owned=own_files(Path(folder))) as unfinished:
        weights.write_tensors(tensors, unfinished / weights.SAFETENSORS, metadata={"format": "pt"})
        (unfinished / "config.json").write_text(to_json(classifier.config, dtype=stored.name), encoding="utf-8")
        for name, content in classifier.tokenizer.files.items():
            (unfinished / name).write_bytes(content)
        if card and not (Path(folder) / CARD).exists():
            (unfinished / CARD).write_text(model_card(classifier.config, name="Text classifier"), encoding="utf-8")


def save_adapter(
    classifier: Classifier,
    folder: str | os.PathLike,
    *,
    base: str | None = None,
    dropout: float = 0.0,
    dtype: Any = None,
) -> None:
    """Writes the adapters and the head of a classifier as PEFT does, with the tokenizer beside them.

    PEFT, and `load` of the folder, read the rest from `base`, a folder or a Hub id. `dropout` is told to whoever trains
    it further.

    Raises:
        FlaxsentError: the params have no adapters, or several in a row (`transforms.by_segment`).
        OSError: the folder cannot be written; what was there still is.
    """
    check_is_of_one_model(classifier)
    if not has_adapters(classifier.params):
        raise FlaxsentError("these params have no adapters; expected those of a classifier trained with lora_rank.")
    stored = jnp.dtype(jnp.float32) if dtype is None else float_dtype(dtype)
    with replacing(Path(folder), owned=own_files(Path(folder))) as unfinished:
        adapters.write(
            *(classifier.params, unfinished), config=classifier.config, base=base, dropout=dropout, dtype=stored
        )
        for name, content in classifier.tokenizer.files.items():
            (unfinished / name).write_bytes(content)


OWN_FILES = ("config.json", adapters.CONFIG, adapters.WEIGHTS, adapters.PICKLE, *weights.WEIGHT_FILES, *TOKENIZER_FILES)
"""Names of files that `save` writes, or that would contradict what it writes; shards of weights are so, too."""


def own_files(folder: Path, *, with_tokenizer: bool = True) -> list[str]:
    """The names in a folder, or none if there is none, that a checkpoint has."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    owned = [name for name in OWN_FILES if with_tokenizer or name not in TOKENIZER_FILES]
    return [name for name in names if name in owned or weights.SHARD.fullmatch(name)]


def float_dtype(dtype: Any) -> jnp.dtype:
    """One of the dtypes to compute in.

    Raises:
        FlaxsentError: it is none.
    """
    try:
        found = jnp.dtype(dtype)
    except TypeError as err:
        raise FlaxsentError(f"dtype={dtype!r} is no dtype; pass float32, bfloat16 or float16.") from err
    if found not in (jnp.float32, jnp.bfloat16, jnp.float16):
        raise FlaxsentError(f"dtype={found.name} is not one to compute in; pass float32, bfloat16 or float16.")
    return found


def config_of(folder: Path) -> ModelConfig:
    """The config of a checkpoint folder (`hub.find`), without its weights.

    Raises:
        FlaxsentError: it is damaged, hostile, or of a family that flaxsent does not know.
    """
    try:
        return read_config((folder / "config.json").read_text(encoding="utf-8"))
    except UnicodeDecodeError as err:
        raise FlaxsentError(f"{folder / 'config.json'} is not UTF-8 text: {err}; fetch it again.") from err


def _with_labels(own: ModelConfig, labels: Sequence[str] | None, problem_type: ProblemType | None) -> ModelConfig:
    if labels is not None and (isinstance(labels, str) or not labels or len(set(labels)) < len(labels)):
        raise FlaxsentError(f"labels={labels!r}: expected a list of one or more different labels.")
    if problem_type not in (None, *PROBLEM_TYPES):
        raise FlaxsentError(f"problem_type={problem_type!r}: expected one of {', '.join(PROBLEM_TYPES)}.")
    names = own.labels if labels is None else tuple(labels)
    kept = own if problem_type is None else as_trained(own)
    is_same = names == own.labels
    function = kept.function_to_apply if is_same else None
    thresholds = kept.label_thresholds if is_same else None
    if problem_type is None:
        by_number = "regression" if len(names) == 1 else "single_label_classification"
        problem_type = own.problem_type if is_same else by_number
    return dataclasses.replace(
        own, labels=names, problem_type=problem_type, function_to_apply=function, label_thresholds=thresholds
    )


def _choose_backend(backend: Backend | None, config: ModelConfig, dtype: jnp.dtype) -> Backend:
    if backend not in ("flax", "native", None):
        raise FlaxsentError(f"backend={backend!r} is unknown; pass 'flax', 'native' or None.")
    is_native = models.is_native(config)
    if backend is None:
        backend = "flax" if flax_auto.has(config, dtype) or not is_native else "native"
    if backend == "flax":
        flax_auto.check(config, dtype)
    elif not is_native:
        raise FlaxsentError(f"flaxsent has no native encoder for {config.family}; pass backend='flax'.")
    return backend


def _read_params(
    folder: Path,
    config: ModelConfig,
    dtype: jnp.dtype,
    *,
    key: Any | None,
    is_whole: bool,
    others: Params | None = None,
) -> Params:
    """The params of a folder; with a `key`, the last layer is drawn, and what the folder lacks of the layers below it.

    Encoders often come without a pooler, too. What the folder has not of an adapter's `others` is theirs.
    """
    shapes, base = models.shapes(config), models.base(config)
    read = functools.partial(weights.read_params, folder, shapes=shapes, base=base, dtype=dtype, is_whole=is_whole)
    theirs = {} if others is None else dict(weights.flatten(others))
    if key is None:
        return read(drawn=None if others is None else others)
    drawn = _drawn_head(config, key)
    params = read(drawn=weights.unflatten(dict(weights.flatten(drawn)) | theirs))
    return models.with_last_layer(params, {name: leaf.astype(dtype) for name, leaf in models.last_layer(drawn).items()})


def _drawn_head(config: ModelConfig, key: Any) -> Params:
    shapes, base = models.shapes(config), models.base(config)
    head = {branch: shape for branch, shape in shapes.items() if branch != base}
    if "pooler" in shapes[base]:
        head[base] = {"pooler": shapes[base]["pooler"]}
    return models.init_params(key, head, stddev=config.initializer_range)
