"""The whole flow on one page: `load` a checkpoint, then tokenize → forward → postprocess → decode."""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from flaxsent import checkpoint, encoders, flax_auto
from flaxsent.config import ModelConfig, read_config, to_json
from flaxsent.exported import Exported, is_exported, load_exported
from flaxsent.packing import check_padded, pad, select
from flaxsent.postprocess import check_top_k, decode, postprocess
from flaxsent.tokenization import TOKENIZER_FILES, Tokenizer, read_tokenizer
from flaxsent.types import Backend, Model, Params, Prediction, ProblemType, Texts, Tokens

Forward = Callable[..., Float[Array, "B C"]]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Classifier:
    """The three pure functions of a checkpoint with their `params`; it holds nothing else that changes."""

    tokenize: Callable[..., Tokens]
    """`tokenize(texts, length=None)`: NumPy arrays `[B, L]`, padded to the longest text or to `length`."""
    pad: Callable[..., Tokens]
    """`pad(encodings, length=None)`: what `tokenize` does after `tokenizer.encode`."""
    forward: Forward
    """`forward(params, tokens, key=None)`: logits f32 `[B, C]`; a `key` switches dropout on, for training."""
    forward_packed: Callable[..., Float[Array, "R S C"]]
    """`forward_packed(params, tokens, num_segments, key=None)`: logits of rows that hold up to `num_segments` texts
    each (`packing.pack`). NotImplementedError with the flax backend, whose modules read one text a row."""
    hidden_states: Callable[[Params, Tokens], Float[Array, "B L D"]]
    """AutoModel's `last_hidden_state`; what stands on padding has no meaning."""
    postprocess: Callable[[Float[Array, "B C"]], Float[Array, "B C"]]
    """Softmax, sigmoid or nothing, by `config.problem_type`, at `config.temperature`; float32."""
    params: Params
    config: ModelConfig
    tokenizer: Tokenizer
    backend: Backend

    @functools.cached_property
    def predict(self) -> Callable[[Params, Tokens], Float[Array, "B C"]]:
        """`jit` of `postprocess` after `forward`; compiled once per shape as long as this record lives."""
        return jax.jit(lambda params, tokens: self.postprocess(self.forward(params, tokens)))

    @property
    def packs(self) -> bool:
        """Whether `forward_packed` and `predict_packed` work."""
        return self.backend == "native"

    def predict_packed(self, params: Params, tokens: Tokens, num_segments: int) -> Float[Array, "R S C"]:
        """`postprocess` after `forward_packed`."""
        return self.postprocess(self.forward_packed(params, tokens, num_segments))


AnyClassifier = Classifier | Exported
"""What has texts scored: `classify` and `Engine` take either."""


def load(
    source: str | os.PathLike | None = None,
    *,
    backend: Backend | None = None,
    dtype: Any = jnp.float32,
    revision: str | None = None,
    labels: Sequence[str] | None = None,
    problem_type: ProblemType | None = None,
    new_head: bool = False,
    seed: int = 0,
    matmul_precision: str | None = "highest",
) -> Classifier:
    """Loads a checkpoint: a folder, a Hub id (at `revision`), or the embedded sentiment model.

    Args:
        source: None is the embedded checkpoint.
        backend: "flax" (transformers 4's FlaxAuto classes), "native" (flaxsent's own encoders), or None: flax where it
            is installed and has the family, else native.
        dtype: of the parameters and of the computation: float32, bfloat16 or float16.
        revision: branch, tag or commit on the Hub.
        labels: puts a new head with these labels on the encoder, to be trained.
        problem_type: with `labels`, what the head is for; by default one label of several, or regression if it has one.
        new_head: with `labels`, draws the layer of the logits even where the checkpoint's own has as many labels.
        seed: from which the new head is drawn.
        matmul_precision: `jax.default_matmul_precision` within the forward: "highest" makes float32 mean float32 on
            GPU and TPU too; None leaves it to JAX.

    Raises:
        FileNotFoundError, ConnectionError: no such checkpoint, or the Hub cannot be reached.
        ValueError: a file is damaged, hostile, or does not fit the config.
        NotImplementedError: backend="native" for a family that only flax has.
        ImportError: the backend or the file format needs a package that is not installed; the message has its command.
    """
    dtype = _float_dtype(dtype)
    folder = checkpoint.find(source, revision=revision, tokenizer_files=TOKENIZER_FILES)
    config = _read_config(folder, labels, problem_type)
    chosen = _choose_backend(backend, config)
    model = (_native if chosen == "native" else flax_auto.build)(config, dtype)
    drawn = None if labels is None else _draw_head(model, config, seed)
    params = checkpoint.read_params(
        folder,
        shapes=model.shapes,
        base=model.base,
        dtype=dtype,
        drawn=drawn,
    )
    if new_head and drawn is not None:
        params = _with_last_layer_of(drawn, params, config.num_labels)
    tokenizer = read_tokenizer(
        folder, family=config.family, max_positions=config.max_length, type_vocab_size=config.type_vocab_size
    )
    highest = max(tokenizer.backend.get_vocab().values(), default=0)
    if highest >= config.vocab_size:
        raise ValueError(f"{folder} has a tokenizer with ids up to {highest}, but {config.vocab_size} embeddings.")
    pad_rows = functools.partial(pad, first_position=config.first_position, pad_token_id=config.pad_token_id)

    def tokenize(texts: Texts, length: int | None = None) -> Tokens:
        return pad_rows(tokenizer.encode(texts, max_length=length), length=length)

    def forward(params: Params, tokens: Tokens, key: Key[Array, ""] | None = None) -> Float[Array, "B C"]:
        check_padded(tokens)
        with jax.default_matmul_precision(matmul_precision):
            return model.forward(params, tokens, key)

    def forward_packed(
        params: Params, tokens: Tokens, num_segments: int, key: Key[Array, ""] | None = None
    ) -> Float[Array, "R S C"]:
        with jax.default_matmul_precision(matmul_precision):
            return model.forward_packed(params, tokens, num_segments, key)

    def hidden_states(params: Params, tokens: Tokens) -> Float[Array, "B L D"]:
        check_padded(tokens)
        with jax.default_matmul_precision(matmul_precision):
            return model.hidden_states(params, tokens)

    return Classifier(
        tokenize=tokenize,
        pad=pad_rows,
        forward=forward,
        forward_packed=forward_packed,
        hidden_states=hidden_states,
        postprocess=functools.partial(postprocess, problem_type=config.problem_type, temperature=config.temperature),
        params=params,
        config=config,
        tokenizer=tokenizer,
        backend=chosen,
    )


def load_fastest(source: str | os.PathLike | None = None, **arguments: Any) -> Classifier:
    """`load`, natively where flaxsent has the family: faster than flax, and imports neither transformers nor torch."""
    try:
        return load(source, backend="native", **arguments)
    except NotImplementedError:
        return load(source, backend="flax", **arguments)


def open_model(source: str | os.PathLike | None = None) -> AnyClassifier:
    """An exported folder, or a checkpoint by `load_fastest`.

    Raises: as `load_exported` and `load` do.
    """
    return load_exported(source) if source is not None and is_exported(source) else load_fastest(source)


def classify(texts: Texts, classifier: AnyClassifier | None = None, *, top_k: int | None = 1) -> list[Prediction]:
    """Labels and scores of a list of texts or pairs, in their order; the embedded checkpoint if none is given.

    Texts of like length go together, in batches of a few fixed shapes, each compiled once.

    >>> classify(["I hate this so much!"])[0].label
    'NEGATIVE'
    """
    check_top_k(top_k)
    classifier = _embedded() if classifier is None else classifier
    encodings = classifier.tokenizer.encode(texts)
    num_texts = len(encodings.input_ids)
    probs = np.zeros((num_texts, classifier.config.num_labels), np.float32)
    order = sorted(range(num_texts), key=lambda index: len(encodings.input_ids[index]))
    for start in range(0, len(order), _BATCH_SIZE):
        batch = order[start : start + _BATCH_SIZE]
        num_rows = _round_up(len(batch), 1)
        filled = batch + batch[-1:] * (num_rows - len(batch))
        length = min(_round_up(len(encodings.input_ids[batch[-1]]), 16), classifier.tokenizer.max_length)
        tokens = classifier.pad(select(encodings, filled), length=length)
        probs[batch] = np.asarray(classifier.predict(classifier.params, tokens))[: len(batch)]
    return decode(probs, labels=classifier.config.labels, top_k=top_k)


def save(classifier: Classifier, folder: str | os.PathLike, *, dtype: Any = None) -> None:
    """Writes an ordinary Hugging Face folder: config.json, model.safetensors with PyTorch's names, the tokenizer.

    `dtype` is that of the stored weights, that of the params by default.

    Raises:
        OSError: the folder cannot be written.
    """
    stored = jax.tree.leaves(classifier.params)[0].dtype if dtype is None else _float_dtype(dtype)
    checkpoint.write(
        folder,
        tensors=checkpoint.to_tensors(jax.tree.map(lambda leaf: leaf.astype(stored), classifier.params))
        | flax_auto.computed_tensors(classifier.config),
        config_json=to_json(classifier.config, dtype=stored.name),
        tokenizer_files=classifier.tokenizer.files,
    )


_BATCH_SIZE = 32


@functools.cache
def _embedded() -> Classifier:
    return load(backend="native")


def _round_up(number: int, least: int) -> int:
    """The next power of two, `least` at least: few shapes to compile."""
    return max(least, 1 << (number - 1).bit_length())


def _float_dtype(dtype: Any) -> jnp.dtype:
    try:
        found = jnp.dtype(dtype)
    except TypeError as err:
        raise ValueError(f"dtype={dtype!r} is no dtype; pass float32, bfloat16 or float16.") from err
    if found not in (jnp.float32, jnp.bfloat16, jnp.float16):
        raise ValueError(f"dtype={found.name} is not one to compute in; pass float32, bfloat16 or float16.")
    return found


def _read_config(folder: Path, labels: Sequence[str] | None, problem_type: ProblemType | None) -> ModelConfig:
    try:
        text = (folder / "config.json").read_text(encoding="utf-8")
    except UnicodeDecodeError as err:
        raise ValueError(f"{folder / 'config.json'} is not UTF-8 text: {err}; fetch it again.") from err
    if labels is not None and (isinstance(labels, str) or not labels or len(set(labels)) < len(labels)):
        raise ValueError(f"labels={labels!r}: expected a list of one or more different labels.")
    config = read_config(text, labels=None if labels is None else tuple(labels))
    return config if labels is None or problem_type is None else dataclasses.replace(config, problem_type=problem_type)


def _choose_backend(backend: Backend | None, config: ModelConfig) -> Backend:
    if backend not in ("flax", "native", None):
        raise ValueError(f"backend={backend!r} is unknown; pass 'flax', 'native' or None.")
    is_native, is_flax = config.family in encoders.FAMILIES, config.family in flax_auto.FAMILIES
    if backend is None:
        backend = "flax" if is_flax and (flax_auto.is_installed() or not is_native) else "native"
    if backend == "flax":
        if not is_flax:
            raise ValueError(f"transformers has no Flax class for {config.family}; pass backend='native'.")
        flax_auto.check_installed(config.family)
    elif not is_native:
        raise NotImplementedError(f"flaxsent has no native encoder for {config.family}; pass backend='flax'.")
    return backend


def _native(config: ModelConfig, dtype: jnp.dtype) -> Model:
    """The one place where `vmap` puts the batch in front of a row."""

    def forward_packed(
        params: Params, tokens: Tokens, num_segments: int, key: Key[Array, ""] | None
    ) -> Float[Array, "R S C"]:
        row = functools.partial(encoders.forward, params, config=config, num_segments=num_segments)
        if key is None:
            return jax.vmap(row)(tokens)
        keys = jax.random.split(key, tokens.input_ids.shape[0])
        return jax.vmap(lambda tokens_T, row_key: row(tokens_T, key=row_key))(tokens, keys)

    def forward(params: Params, tokens: Tokens, key: Key[Array, ""] | None) -> Float[Array, "B C"]:
        return forward_packed(params, tokens, 1, key)[:, 0]

    def hidden_states(params: Params, tokens: Tokens) -> Float[Array, "B L D"]:
        return jax.vmap(lambda tokens_T: encoders.hidden_states(params, tokens_T, config=config))(tokens)

    shapes = encoders.shapes(config)
    return Model(
        forward=forward,
        forward_packed=forward_packed,
        hidden_states=hidden_states,
        shapes=shapes,
        base=next(iter(shapes)),
    )


def _draw_head(model: Model, config: ModelConfig, seed: int) -> Params:
    """New parameters for all that stands beside the encoder, and for its pooler, which encoders often come without."""
    shapes = {branch: shape for branch, shape in model.shapes.items() if branch != model.base}
    if "pooler" in model.shapes[model.base]:
        shapes[model.base] = {"pooler": model.shapes[model.base]["pooler"]}
    return encoders.layers.init_params(jax.random.key(seed), shapes, stddev=config.initializer_range)


def _with_last_layer_of(drawn: Params, params: Params, num_labels: int) -> Params:
    """The parameters, with what `drawn` has of the layer that gives the logits."""

    def merge(path: Any, leaf: Array) -> Array:
        node: Any = drawn
        for key in path:
            node = node.get(key.key, {})
        is_last = getattr(node, "shape", (0,))[-1] == num_labels
        return node.astype(leaf.dtype) if is_last else leaf

    return jax.tree_util.tree_map_with_path(merge, params)
