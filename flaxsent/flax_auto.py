"""The flax backend: `FlaxAutoModelForSequenceClassification` of transformers 4 as pure functions.

The Flax module is built from a config that `config.py` has vetted, never from the checkpoint's own file: transformers
before 5.3 can be made to run code by a hostile config.json (CVE-2026-4372). transformers 5 has no Flax classes.

Known faults of those classes (4.57) and what is done about them here:
    BART, mBART     under `jit` they add up the states of all EOS tokens: the last EOS is pooled here instead.
    ELECTRA         token_type_ids default to ones: always passed.
    BigBird         block-sparse attention picks its own random blocks: full attention, as PyTorch uses it for short
                    texts; longer ones are refused.
    DistilBERT      masks with 1e30, which float16 does not have: refused in float16.
    all             LayerNorm takes E[x²] − E[x]², which loses 1.5e-3 at a row mean of 30: each row is centred first.
    all             know eight activations: others are refused. Softmax stays in the half precision that is asked for.
"""

import contextlib
import importlib.metadata
import importlib.util
import inspect
import json
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from flaxsent.config import ModelConfig
from flaxsent.types import Model, Params, Tokens

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

INSTALL = 'pip install "flaxsent[flax-auto]"'


def is_installed() -> bool:
    """Whether transformers 4 and Flax are there; imports neither."""
    return importlib.util.find_spec("flax") is not None and importlib.metadata.version("transformers").startswith("4.")


def check_installed(family: str) -> None:
    """Raises ImportError with the command that installs the backend."""
    if not is_installed():
        raise ImportError(
            f"backend='flax' for {family} needs Flax and transformers 4.57 (here is transformers "
            f"{importlib.metadata.version('transformers')}): {INSTALL}"
        )


def build(config: ModelConfig, dtype: jnp.dtype) -> Model:
    """The Flax model of a family as pure functions over batches of padded texts.

    Raises:
        ValueError: the family gives wrong numbers in this dtype.
    """
    if config.family == "distilbert" and dtype == jnp.float16:
        raise ValueError("Flax DistilBERT gives NaN in float16; pass dtype=bfloat16, or backend='native'.")
    import flax.linen as nn
    from transformers import CONFIG_MAPPING, FlaxAutoModelForSequenceClassification
    from transformers.modeling_flax_utils import ACT2FN

    if config.activation not in ACT2FN:
        raise ValueError(
            f"config.json names the activation {config.activation!r}; the Flax classes have {', '.join(ACT2FN)}: pass "
            "backend='native'."
        )

    flax_config = CONFIG_MAPPING[config.family](**_vetted(config, CONFIG_MAPPING[config.family]))
    # _do_init=False keeps the parameters out of the object: it holds the module only.
    with _their_promotion():
        flax_model = FlaxAutoModelForSequenceClassification.from_config(flax_config, dtype=dtype, _do_init=False)
    module = flax_model.module

    with _their_promotion():
        abstract = jax.eval_shape(lambda: flax_model.init_weights(jax.random.key(0), (1, 1)))
    shapes = jax.tree.map(lambda leaf: leaf.shape, abstract)
    (base,) = (branch for branch in shapes if branch not in _HEADS)

    def apply(method: Callable[..., Any], params: Params, tokens: Tokens, key: Key[Array, ""] | None) -> Array:
        _check_length(flax_config, tokens.input_ids.shape[-1])
        inputs = _encoder_decoder_inputs if config.family in _ENCODER_DECODERS else _encoder_inputs
        rngs = {} if key is None else {"dropout": key}
        with _their_promotion(), nn.intercept_methods(_centre_layer_norms):
            return module.apply(
                {"params": params},
                **inputs(config, flax_config, jax.tree.map(jnp.asarray, tokens)),
                deterministic=key is None,
                rngs=rngs,
                method=method,
            )

    def last_hidden_state(module: Any, **inputs: Any) -> Float[Array, "B L D"]:
        return getattr(module, base)(**inputs)[0]

    def logits(module: Any, **inputs: Any) -> Float[Array, "B C"]:
        return module(**inputs).logits

    def logits_at_last_eos(module: Any, *, input_ids: Array, deterministic: bool, **inputs: Any) -> Float[Array, "B C"]:
        hidden_BLD = getattr(module, base)(input_ids=input_ids, deterministic=deterministic, **inputs)[0]
        is_eos_BL = input_ids == flax_config.eos_token_id
        last_B = input_ids.shape[-1] - 1 - jnp.argmax(is_eos_BL[:, ::-1], axis=-1)
        return module.classification_head(hidden_BLD[jnp.arange(last_B.shape[0]), last_B], deterministic=deterministic)

    method = logits_at_last_eos if config.family in _ENCODER_DECODERS else logits
    return Model(
        forward=lambda params, tokens, key: apply(method, params, tokens, key).astype(jnp.float32),
        forward_packed=_refuse_packed,
        hidden_states=lambda params, tokens: apply(last_hidden_state, params, tokens, None),
        shapes=shapes,
        base=base,
    )


def _refuse_packed(
    params: Params, tokens: Tokens, num_segments: int, key: Key[Array, ""] | None
) -> Float[Array, "R S C"]:
    raise NotImplementedError("a Flax module reads one text a row; load with backend='native' to pass packed rows.")


_ENCODER_DECODERS = ("bart", "mbart")
_HEADS = ("classifier", "pre_classifier", "classification_head")


@contextlib.contextmanager
def _their_promotion() -> Iterator[None]:
    """Lets the code of transformers mix dtypes and ranks, which it needs, where a user has made JAX strict."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def _centre_layer_norms(module_call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
    """LayerNorm takes away the mean anyway: of a row that has none, E[x²] − E[x]² is exact."""
    import flax.linen as nn

    if isinstance(context.module, nn.LayerNorm) and context.method_name == "__call__":
        x, *others = args
        x_f32 = x.astype(jnp.float32)
        args = (x_f32 - jnp.mean(x_f32, axis=-1, keepdims=True), *others)
    return module_call(*args, **kwargs)


def computed_tensors(config: ModelConfig) -> dict[str, Float[np.ndarray, "P H"]]:
    """Tensors that PyTorch's checkpoints hold and Flax computes: RoFormer's sinusoids (modeling_roformer.py)."""
    if config.family != "roformer":
        return {}
    head_size = config.hidden_size // config.num_heads
    frequencies = 10000.0 ** (-2 * np.arange((head_size + 1) // 2) / head_size)
    angles = np.arange(config.num_positions)[:, None] * frequencies
    table = np.concatenate([np.sin(angles), np.cos(angles)[:, : head_size // 2]], axis=-1)
    return {"roformer.encoder.embed_positions.weight": table.astype(np.float32)}


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
            raise ValueError(
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
        last_B1 = jnp.sum(tokens.attention_mask, axis=-1, keepdims=True) - 1
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
