"""The flax backend: `FlaxAutoModelForSequenceClassification` of transformers 4 as pure functions.

The Flax module is built from keys of config.json that are vetted here, never from the checkpoint's own file:
transformers before 5.3 can be made to run code by a hostile config.json (CVE-2026-4372). transformers 5 has no Flax
classes. Neither transformers nor Flax is imported before a function is called.

Known faults of those classes (4.57), and what is done about them here:
    BART, mBART     Under `jit` they add up the states of all EOS tokens. The last EOS is pooled here instead.
    ELECTRA         token_type_ids default to ones. They are always passed.
    BigBird         Block-sparse attention picks random blocks of its own. Attention is full, as PyTorch's is for short
                    texts, and longer texts are refused.
    DistilBERT      It masks with 1e30, which float16 does not have. float16 is refused.
    all             LayerNorm takes E[x²] − E[x]², which loses 1.5e-3 at a row mean of 30. Each row is centred first.
    all             They have eight activations. Others are refused.
    all             In half precision the softmax is computed in half precision too. That stays as it is.
"""

import contextlib
import functools
import importlib.metadata
import importlib.util
import inspect
import json
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from flaxsent import models
from flaxsent.base import FlaxsentError, Params, Tokens
from flaxsent.files import MissingPackageError, quietly
from flaxsent.models.config import ModelConfig
from flaxsent.packing import check_padded

FAMILIES = (
    "albert",
    "bart",
    "bert",
    "big_bird",
    "distilbert",
    "electra",
    "mbart",
    "roberta",
    "roberta-prelayernorm",
    "roformer",
    "xlm-roberta",
)
"""transformers 4.57's FLAX_MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES."""

_ACTIVATIONS = ("gelu", "relu", "silu", "swish", "gelu_new", "gelu_pytorch_tanh", "tanh", "quick_gelu")
"""transformers 4.57's modeling_flax_utils.ACT2FN."""

_ENCODER_DECODERS = ("bart", "mbart")


def is_installed() -> bool:
    """Whether transformers 4 and Flax are there; imports neither."""
    found = importlib.util.find_spec("flax"), importlib.util.find_spec("transformers")
    return None not in found and importlib.metadata.version("transformers").startswith("4.")


def has(config: ModelConfig, dtype: jnp.dtype) -> bool:
    """Whether transformers 4 has a Flax class that computes what this config says, in this dtype."""
    return _lack(config, dtype) is None


def _lack(config: ModelConfig, dtype: jnp.dtype) -> str | None:
    """What the Flax classes do not compute of it, if anything."""
    if config.family not in FAMILIES:
        return f"transformers has no Flax class for {config.family}"
    if config.activation not in _ACTIVATIONS:
        return (
            f"config.json names the activation {config.activation!r}; the Flax classes have {', '.join(_ACTIVATIONS)}"
        )
    if config.family == "distilbert" and dtype == jnp.float16:
        return "Flax DistilBERT gives NaN in float16"
    return None


def check(config: ModelConfig, dtype: jnp.dtype) -> None:
    """Refuses what the Flax classes do not compute, before they are imported.

    Raises:
        MissingPackageError: Flax or transformers 4 is not installed; the message has the command.
        FlaxsentError: no class for the family, no such activation, or wrong numbers in this dtype.
    """
    if (lack := _lack(config, dtype)) is not None:
        what_to_do = "pass backend='native'" if models.is_native(config) else "flaxsent cannot compute this model"
        raise FlaxsentError(f"{lack}; {what_to_do}.")
    if not is_installed():
        raise MissingPackageError(
            f"backend='flax' for {config.family} needs Flax and transformers 4.57, which are not installed together: "
            'pip install "flaxsent[flax-auto]"'
        )


def forward(
    params: Params,
    tokens: Tokens,
    key: Key[Array, ""] | None = None,
    *,
    config: ModelConfig,
    dtype: Any,
    matmul_precision: str | None = "highest",
) -> Float[Array, "B C"]:
    """Logits in float32 of padded rows, by `FlaxAutoModelForSequenceClassification`, which computes in `dtype`.

    The class is imported at the first call. A `key` switches dropout on.

    Raises:
        FlaxsentError: as `check`; or a row is longer than BigBird attends to in full; or, where the tokens are NumPy's,
            a row holds several texts, or an id that the tables do not have.
    """
    method = _logits_at_last_eos if config.family in _ENCODER_DECODERS else _logits
    return _apply(method, params, tokens, key, config, dtype, matmul_precision).astype(jnp.float32)


def hidden_states(
    params: Params, tokens: Tokens, *, config: ModelConfig, dtype: Any, matmul_precision: str | None = "highest"
) -> Float[Array, "B L D"]:
    """AutoModel's `last_hidden_state` of padded rows.

    Raises: as `forward`.
    """
    return _apply(_last_hidden_state, params, tokens, None, config, dtype, matmul_precision)


def embeddings(
    params: Params, tokens: Tokens, num_segments: int, *, config: ModelConfig, dtype: Any, **precision: Any
) -> Float[Array, "R S D"]:
    """What the head reads, for the families that only these classes compute: the first token's vector.

    Raises:
        FlaxsentError: `num_segments` is more than 1; and as `forward`.
    """
    if num_segments > 1:
        raise FlaxsentError(f"{config.family} takes one text a row; pass num_segments=1, not {num_segments}.")
    return hidden_states(params, tokens, config=config, dtype=dtype, **precision)[:, :1].astype(jnp.float32)


@functools.lru_cache
def _module(config: ModelConfig, dtype: jnp.dtype) -> Any:
    """The Flax module, without parameters; its `config` is transformers'.

    Raises: as `check`.
    """
    check(config, dtype)
    from transformers import CONFIG_MAPPING  # which sets up the loggers that `quietly` silences

    with quietly("transformers"), _their_promotion():
        from transformers import FlaxAutoModelForSequenceClassification

        flax_config = CONFIG_MAPPING[config.family](**_vetted(config, CONFIG_MAPPING[config.family]))
        # _do_init=False: it draws no parameters.
        return FlaxAutoModelForSequenceClassification.from_config(flax_config, dtype=dtype, _do_init=False).module


def _apply(
    method: Callable[..., Any],
    params: Params,
    tokens: Tokens,
    key: Key[Array, ""] | None,
    config: ModelConfig,
    dtype: Any,
    matmul_precision: str | None,
) -> Array:
    check_padded(tokens)
    models.check_ids(config, tokens)
    module = _module(config, jnp.dtype(dtype))
    import flax.linen as nn

    _check_length(module.config, tokens.input_ids.shape[-1])
    inputs = _encoder_decoder_inputs if config.family in _ENCODER_DECODERS else _encoder_inputs
    precision = contextlib.nullcontext() if matmul_precision is None else jax.default_matmul_precision(matmul_precision)
    with precision, _their_promotion(), nn.intercept_methods(_centre_layer_norms):
        return module.apply(
            {"params": params},
            models.base(config),
            **inputs(config, module.config, jax.tree.map(jnp.asarray, tokens)),
            deterministic=key is None,
            rngs={} if key is None else {"dropout": key},
            method=method,
        )


def _last_hidden_state(module: Any, base: str, **inputs: Any) -> Float[Array, "B L D"]:
    return getattr(module, base)(**inputs)[0]


def _logits(module: Any, base: str, **inputs: Any) -> Float[Array, "B C"]:
    return module(**inputs).logits


def _logits_at_last_eos(
    module: Any, base: str, *, input_ids: Array, deterministic: bool, **inputs: Any
) -> Float[Array, "B C"]:
    hidden_BLD = _last_hidden_state(module, base, input_ids=input_ids, deterministic=deterministic, **inputs)
    is_eos_BL = input_ids == module.config.eos_token_id
    last_B = input_ids.shape[-1] - 1 - jnp.argmax(is_eos_BL[:, ::-1], axis=-1)
    return module.classification_head(hidden_BLD[jnp.arange(last_B.shape[0]), last_B], deterministic=deterministic)


@contextlib.contextmanager
def _their_promotion() -> Iterator[None]:
    """Lets transformers mix dtypes and ranks, as its code does, where a user has made JAX strict."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def _centre_layer_norms(module_call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
    """LayerNorm takes the mean away in any case; where a row's mean is 0, E[x²] − E[x]² is exact."""
    import flax.linen as nn

    if isinstance(context.module, nn.LayerNorm) and context.method_name == "__call__":
        x, *others = args
        x_f32 = x.astype(jnp.float32)
        args = (x_f32 - jnp.mean(x_f32, axis=-1, keepdims=True), *others)
    return module_call(*args, **kwargs)


def _vetted(config: ModelConfig, config_class: Any) -> dict[str, Any]:
    """The keys of config.json that the family's config class names itself; none of them can name code."""
    raw = json.loads(config.json)
    named = inspect.signature(config_class.__init__).parameters.keys() - {"self", "kwargs"}
    kept = {name: raw[name] for name in named if name in raw}
    if config.family == "big_bird":
        kept["attention_type"] = "original_full"
    return kept | {"id2label": dict(enumerate(config.labels)), "problem_type": config.problem_type}


def _check_length(flax_config: Any, length: int) -> None:
    if flax_config.model_type == "big_bird":
        # PyTorch's BigBirdModel.forward attends in full up to this length, and in random blocks beyond it.
        longest = (5 + 2 * flax_config.num_random_blocks) * flax_config.block_size
        if length > longest:
            raise FlaxsentError(
                f"BigBird attends in random blocks beyond {longest} tokens, which cannot be reproduced; these rows "
                f"have {length}: tokenize with a length of at most {longest}."
            )


def _encoder_inputs(config: ModelConfig, flax_config: Any, tokens: Tokens) -> dict[str, Any]:
    """What the module of an encoder family takes."""
    inputs = {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask}
    if config.family != "distilbert":
        inputs |= {"token_type_ids": tokens.token_type_ids, "head_mask": None}
        if config.family != "roformer":
            inputs["position_ids"] = tokens.position_ids
    if config.family == "albert":
        del inputs["head_mask"]
    return inputs


def _encoder_decoder_inputs(config: ModelConfig, flax_config: Any, tokens: Tokens) -> dict[str, Any]:
    """The decoder reads the same text one token later: `shift_tokens_right` of modeling_bart.py, modeling_mbart.py."""
    if config.family == "mbart":  # its decoder starts with the last token of the text, the language
        is_counted_BL = (tokens.segment_ids > 0) & (tokens.input_ids != flax_config.pad_token_id)
        last_B1 = jnp.maximum(jnp.sum(is_counted_BL, axis=-1, keepdims=True), 1) - 1
        start_B1 = jnp.take_along_axis(tokens.input_ids, last_B1, axis=-1)
    else:
        start_B1 = jnp.full_like(tokens.input_ids[:, :1], flax_config.decoder_start_token_id)
    positions_BL = jnp.broadcast_to(jnp.arange(tokens.input_ids.shape[-1]), tokens.input_ids.shape)
    return {
        "input_ids": tokens.input_ids,
        "attention_mask": tokens.attention_mask,
        "decoder_input_ids": jnp.concatenate([start_B1, tokens.input_ids[:, :-1]], axis=-1),
        "decoder_attention_mask": jnp.ones_like(tokens.input_ids),
        "position_ids": positions_BL,
        "decoder_position_ids": positions_BL,
    }
