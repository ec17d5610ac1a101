"""The layers that the families share, each written for one row of tokens; `vmap` adds the batch.

Matrix products accumulate in float32 whatever the dtype of the parameters; LayerNorm's statistics, the softmax and the
classification head are float32 throughout. A `key` of None means no dropout.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, Shaped

from flaxsent.base import FlaxsentError, Params, Tokens

OptionalKey = Key[Array, ""] | None

# Names of config.json (transformers' ACT2FN) that published encoders use. "gelu" is the exact one.
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_python": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_fast": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "mish": jax.nn.mish,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "linear": lambda x: x,
}


def dense(params: Params, x: Float[Array, "*rows inp"]) -> Float[Array, "*rows out"]:
    """`x @ kernel + bias` in the dtype of the kernel, accumulated in float32; a layer may have no bias."""
    kernel = params["kernel"]
    y = jnp.einsum("...d,df->...f", x.astype(kernel.dtype), kernel, preferred_element_type=jnp.float32)
    if "bias" in params:
        y = y + _along_last_axis(params["bias"], y.ndim)
    return y.astype(kernel.dtype)


def layer_norm(params: Params, x: Float[Array, "*rows D"], *, eps: float) -> Float[Array, "*rows D"]:
    """LayerNorm (Ba et al. 2016) by two passes: E[x²] − E[x]² loses 1.5e-3 at a row mean of 30; it may have no bias."""
    x_f32 = x.astype(jnp.float32)
    centred = x_f32 - jnp.mean(x_f32, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    y = centred * jax.lax.rsqrt(variance + eps)
    y = y * _along_last_axis(params["scale"], y.ndim)
    if "bias" in params:
        y = y + _along_last_axis(params["bias"], y.ndim)
    return y.astype(x.dtype)


def add_and_norm(
    params: Params, x: Float[Array, "*rows D"], y: Float[Array, "*rows D"], *, eps: float
) -> Float[Array, "*rows D"]:
    """`layer_norm` of the sum, which is taken in float32."""
    return layer_norm(params, x.astype(jnp.float32) + y.astype(jnp.float32), eps=eps).astype(x.dtype)


def _along_last_axis(vector: Float[Array, " D"], ndim: int) -> Float[Array, "*ones D"]:
    """In float32, with leading axes of 1, so that nothing depends on rank promotion (`jax_numpy_rank_promotion`)."""
    return vector.astype(jnp.float32).reshape((1,) * (ndim - 1) + vector.shape)


def embed(params: Params, ids_T: Int[Array, " T"]) -> Float[Array, "T D"]:
    return jnp.take(params["embedding"], ids_T, axis=0, mode="clip")


def embed_tokens(
    params: Params, tokens: Tokens, *, eps: float, dropout_rate: float, key: OptionalKey
) -> Float[Array, "T D"]:
    """BERT's embeddings: word, token type and position, normalised."""
    x_TD = (
        embed(params["word_embeddings"], jnp.asarray(tokens.input_ids))
        + embed(params["token_type_embeddings"], jnp.asarray(tokens.token_type_ids))
        + embed(params["position_embeddings"], jnp.asarray(tokens.position_ids))
    )
    return dropout(layer_norm(params["LayerNorm"], x_TD, eps=eps), dropout_rate, key)


def attention_mask(segment_ids_T: Int[Array, " T"]) -> Bool[Array, "T T"]:
    """Every token sees its own text only. Padding sees padding: a softmax over nothing would be NaN."""
    return segment_ids_T[:, None] == segment_ids_T[None, :]


def attend(
    q_QD: Float[Array, "Q D"],
    k_TD: Float[Array, "T D"],
    v_TD: Float[Array, "T D"],
    mask_QT: Bool[Array, "Q T"],
    *,
    num_heads: int,
    dropout_rate: float,
    key: OptionalKey,
    scale: float | None = None,
    bias_NQT: Float[Array, "N Q T"] | None = None,
) -> Float[Array, "Q D"]:
    """Scaled dot-product attention in `num_heads` heads (Vaswani et al. 2017); dropout on the probabilities.

    `scale` is 1/√H if not given; `bias_NQT` is added to the scores after scaling. Q is T, or fewer queries.
    """
    q_QNH, k_TNH, v_TNH = (x.reshape(x.shape[0], num_heads, -1) for x in (q_QD, k_TD, v_TD))
    scores_NQT = jnp.einsum("QNH,TNH->NQT", q_QNH, k_TNH, preferred_element_type=jnp.float32)
    scores_NQT = scores_NQT * (q_QNH.shape[-1] ** -0.5 if scale is None else scale)
    if bias_NQT is not None:
        scores_NQT = scores_NQT + bias_NQT
    scores_NQT = jnp.where(mask_QT[None], scores_NQT, jnp.finfo(jnp.float32).min)
    probs_NQT = dropout(jax.nn.softmax(scores_NQT, axis=-1), dropout_rate, key).astype(v_TNH.dtype)
    y_QNH = jnp.einsum("NQT,TNH->QNH", probs_NQT, v_TNH, preferred_element_type=jnp.float32)
    return y_QNH.reshape(q_QD.shape).astype(q_QD.dtype)


def dropout(x: Float[Array, "*shape"], rate: float, key: OptionalKey) -> Float[Array, "*shape"]:
    """Inverted dropout (Srivastava et al. 2014): the expectation stays the same."""
    if key is None or rate == 0:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / jnp.asarray(1 - rate, x.dtype), jnp.zeros((), x.dtype))


def split_key(key: OptionalKey, num: int) -> Sequence[OptionalKey]:
    """`num` keys, or `num` times None."""
    return [None] * num if key is None else list(jax.random.split(key, num))


def first_tokens(tokens: Tokens, *, num_segments: int) -> Int[Array, " S"]:
    """Where each text of a row begins ([CLS]).

    A row with fewer texts than `num_segments` has meaningless places at the end; `unpack` never reads their values.
    """
    segments_S1 = jnp.arange(1, num_segments + 1)[:, None]
    return jnp.argmax(jnp.asarray(tokens.segment_ids)[None, :] == segments_S1, axis=-1)


def take(x_TA: Shaped[Array, "T A"], at_Q: Int[Array, " Q"] | None) -> Shaped[Array, "Q A"]:
    """Some tokens of a row; all of them if `at_Q` is None."""
    return x_TA if at_Q is None else x_TA[at_Q]


def in_float32(params: Params) -> PyTree[Float[Array, "..."]]:
    """The parameters of a head, which computes in float32."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)


def dense_shapes(inputs: int, outputs: int, *, has_bias: bool = True) -> dict[str, tuple[int, ...]]:
    return {"kernel": (inputs, outputs)} | ({"bias": (outputs,)} if has_bias else {})


def layer_norm_shapes(size: int, *, has_bias: bool = True) -> dict[str, tuple[int, ...]]:
    return {"scale": (size,)} | ({"bias": (size,)} if has_bias else {})


def init_params(key: Key[Array, ""], shapes: Mapping[str, Any], *, stddev: float) -> dict[str, Any]:
    """Draws parameters for a tree of shapes: kernels and embeddings normal, biases 0, scales 1, as BERT starts."""
    leaves, treedef = jax.tree_util.tree_flatten_with_path(shapes, is_leaf=lambda node: isinstance(node, tuple))
    drawn = []
    for leaf_key, (path, shape) in zip(jax.random.split(key, len(leaves)), leaves, strict=True):
        match path[-1].key:
            case "kernel" | "embedding":
                drawn.append(stddev * jax.random.normal(leaf_key, shape))
            case "scale":
                drawn.append(jnp.ones(shape))
            case "bias":
                drawn.append(jnp.zeros(shape))
            case name:
                raise FlaxsentError(f"no initialiser for a parameter called {name!r}; expected kernel, embedding …")
    return jax.tree.unflatten(treedef, drawn)
