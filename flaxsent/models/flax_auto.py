"""The flax backend: a `FlaxAutoModelForSequenceClassification` as pure functions.

It is transformers 4's where that is installed and has the family, else flaxsent's own (`linen.py`): transformers 5 has
no Flax classes. Neither transformers nor Flax is imported before a function is called.

transformers' module and config are built from keys of config.json that are vetted here, never from the checkpoint's own
file: transformers before 5.3 can be made to run code by a hostile config.json (CVE-2026-4372).

Known faults of transformers' classes (4.57), and what is done about them here:
    BART, mBART     Under `jit` they add up the states of all EOS tokens. The last EOS is pooled here instead.
    ELECTRA         token_type_ids default to ones. They are always passed.
    BigBird         Block-sparse attention picks random blocks of its own. Attention is full, as PyTorch's is for short
                    texts, and longer texts are refused.
    BART, mBART     Where padding has the id of EOS, they pool the last place of a padded row. Padding is left out.
    DistilBERT      It masks with 1e30, which float16 does not have, and with `sinusoidal_pos_embds` it computes the
                    positions and does not read the checkpoint's. Both are left to flaxsent's own.
    all             LayerNorm takes E[x²] − E[x]², which loses 1.5e-3 at a row mean of 30. Each row is centred first.
    all             They have eight activations. Others are left to flaxsent's own.
    all             In half precision the softmax is computed in half precision too. That stays as it is.
    all             They read a kernel of int8 as it is, without its scales, and no adapters beside it. Such params are
                    left to flaxsent's own.
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
from flaxsent.models.adapters import has_adapters
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
    """Whether Flax is there; does not import it."""
    return importlib.util.find_spec("flax") is not None


def has_theirs() -> bool:
    """Whether transformers 4 and Flax are there; imports neither."""
    has_transformers = importlib.util.find_spec("transformers") is not None
    return is_installed() and has_transformers and importlib.metadata.version("transformers").startswith("4.")


def has(config: ModelConfig, dtype: jnp.dtype) -> bool:
    """Whether what is installed has a Flax class that computes what this config says in this dtype."""
    return uses_theirs(config, dtype) or (is_installed() and models.is_native(config))


def uses_theirs(config: ModelConfig, dtype: jnp.dtype) -> bool:
    """Whether it is transformers' class that computes it."""
    fits = config.family in FAMILIES and config.activation in _ACTIVATIONS
    if config.family == "distilbert":
        fits &= dtype != jnp.float16 and not config.get("sinusoidal_pos_embds")
    return fits and has_theirs()


def check(config: ModelConfig, dtype: jnp.dtype) -> None:
    """Refuses what no Flax class that is installed computes, before one is imported.

    Raises:
        MissingPackageError: Flax is not installed, or transformers 4 for a family that only its classes have; the
            message has the command.
        FlaxsentError: no class has such an activation.
    """
    if has(config, dtype):
        return
    if not models.is_native(config) and config.activation not in _ACTIVATIONS:
        raise FlaxsentError(
            f"config.json names the activation {config.activation!r}; the Flax classes have {', '.join(_ACTIVATIONS)}; "
            "flaxsent cannot compute this model."
        )
    what, extra = ("Flax", "flax") if models.is_native(config) else ("Flax with transformers 4.57", "flax-auto")
    raise MissingPackageError(
        f"backend='flax' for {config.family} needs {what}, which is not installed: pip install \"flaxsent[{extra}]\""
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
    """Logits in float32 of padded rows, by a `FlaxAutoModelForSequenceClassification`, which computes in `dtype`.

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
    """The Flax module of transformers, without parameters; its `config` is theirs, too."""
    flax_config = their_config(config)  # which sets up the loggers that `quietly` silences
    with quietly("transformers"), _their_promotion():
        from transformers import FlaxAutoModelForSequenceClassification

        # _do_init=False: it draws no parameters.
        return FlaxAutoModelForSequenceClassification.from_config(flax_config, dtype=dtype, _do_init=False).module


def their_config(config: ModelConfig) -> Any:
    """The config of the family in transformers, of vetted keys."""
    from transformers import CONFIG_MAPPING

    config_class = CONFIG_MAPPING[config.family]
    return config_class(**_vetted(config, config_class))


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
    check(config, jnp.dtype(dtype))
    is_plain = not (models.is_int8(params) or has_adapters(params))
    if not (is_plain or models.is_native(config)):
        raise FlaxsentError(
            f"{config.family} has no encoder of flaxsent's own, which params in int8 and adapters need."
        )
    precision = contextlib.nullcontext() if matmul_precision is None else jax.default_matmul_precision(matmul_precision)
    if not (is_plain and uses_theirs(config, jnp.dtype(dtype))):
        with precision:
            return _apply_own(method, params, tokens, key, config, dtype)
    module = _module(config, jnp.dtype(dtype))
    import flax.linen as nn

    _check_length(module.config, tokens.input_ids.shape[-1])
    inputs = _encoder_decoder_inputs if config.family in _ENCODER_DECODERS else _encoder_inputs
    with precision, _their_promotion(), nn.intercept_methods(_centre_layer_norms):
        return module.apply(
            {"params": params},
            models.base(config),
            **inputs(config, module.config, jax.tree.map(jnp.asarray, tokens)),
            deterministic=key is None,
            rngs={} if key is None else {"dropout": key},
            method=method,
        )


def _apply_own(
    method: Callable[..., Any],
    params: Params,
    tokens: Tokens,
    key: Key[Array, ""] | None,
    config: ModelConfig,
    dtype: Any,
) -> Array:
    from flaxsent.models import linen

    has_head = method is not _last_hidden_state
    found: Any = linen.Encoder(config=config, dtype=dtype, has_head=has_head).apply(
        {"params": params if has_head else params[models.base(config)]},
        *(tokens.input_ids, tokens.attention_mask, tokens.token_type_ids, tokens.position_ids),
        deterministic=key is None,
        rngs={} if key is None else {"dropout": key},
    )
    return found.logits if has_head else found.last_hidden_state


def _last_hidden_state(module: Any, base: str, **inputs: Any) -> Float[Array, "B L D"]:
    return getattr(module, base)(**inputs)[0]


def _logits(module: Any, base: str, **inputs: Any) -> Float[Array, "B C"]:
    return module(**inputs).logits


def _logits_at_last_eos(
    module: Any, base: str, *, input_ids: Array, attention_mask: Array, deterministic: bool, **inputs: Any
) -> Float[Array, "B C"]:
    inputs |= {"input_ids": input_ids, "attention_mask": attention_mask, "deterministic": deterministic}
    hidden_BLD = _last_hidden_state(module, base, **inputs)
    is_eos_BL = (input_ids == module.config.eos_token_id) & (attention_mask > 0)
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
    """The keys of config.json that the family's config class names, and `_COMMON`; none of them can name code."""
    raw = json.loads(config.json)
    named = inspect.signature(config_class.__init__).parameters.keys() - {"self", "kwargs"}
    kept = {name: raw[name] for name in (*named, *_COMMON) if name in raw}
    if config.family == "big_bird":
        kept["attention_type"] = "original_full"
    id2label = dict(enumerate(config.labels))
    label2id = {label: index for index, label in id2label.items()}
    return kept | {"id2label": id2label, "label2id": label2id, "problem_type": config.problem_type}


_COMMON = (
    "architectures",
    "output_hidden_states",
    "return_dict",
    "bos_token_id",
    "eos_token_id",
    "decoder_start_token_id",
)
"""Keys of every family, which transformers 4's classes do not name."""


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
