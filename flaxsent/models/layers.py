"""The layers that the families share, each written for one row of tokens; `vmap` adds the batch.

Matrix products accumulate in float32 whatever the dtype of the parameters; LayerNorm's statistics, the softmax and the
classification head are float32 throughout. A `key` of None means no dropout.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.interpreters import batching
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Int8, Key, PyTree, Shaped

from flaxsent.base import AnyArray, FlaxsentError, Params, Tokens
from flaxsent.models.dropout import OptionalKey, dropout, split_key
from flaxsent.models.family import ModelConfig
from flaxsent.models.platforms import primitive


@jax.named_scope("dense")
def dense(params: Params, x: Float[Array, "*rows inp"]) -> Float[Array, "*rows out"]:
    """`x @ kernel + bias` in the dtype of the kernel, accumulated in float32; a layer may have no bias.

    A kernel of int8 (`transforms.quantize`) has a scale for each output and computes in the dtype of `x`: with
    `kernel_scale` the kernel is multiplied by it; with `product_scale` each row of `x` is made int8 too, by a scale of
    its own, and the product, which is exact in int32, is multiplied by both.

    A layer may have an adapter (`models.adapters`), whose product is added.
    """
    y = _without_adapter(params, x)
    return (y.astype(jnp.float32) + _low_rank(params, x)).astype(y.dtype) if "lora_a" in params else y


def _without_adapter(params: Params, x: Float[Array, "*rows inp"]) -> Float[Array, "*rows out"]:
    kernel, dtype = params["kernel"], dtype_of(params, x)
    if "product_scale" in params:
        y = _product_of_integers(x, kernel, params["product_scale"])
    else:
        if "kernel_scale" in params:
            kernel = (kernel.astype(jnp.float32) * params["kernel_scale"][None, :]).astype(dtype)
        bias = [params["bias"]] if "bias" in params else []
        if dtype == jnp.float32:
            return _dense_by_xla(x.astype(dtype), kernel, *bias)
        return dense_p.bind(x.astype(dtype), kernel, *bias)
    if "bias" in params:
        y = y + _along_last_axis(params["bias"], y.ndim)
    return y.astype(dtype)


@jax.custom_jvp
def _product_of_integers(
    x: Float[Array, "*rows inp"], kernel: Shaped[Array, "inp out"], scale: Float[Array, " out"]
) -> Float[Array, "*rows out"]:
    """The integers of the kernel are float32 where a head's params are cast to that.

    Its gradient is that of the product of `x` as it is: rounding has none of its own (Bengio et al. 2013).
    """
    x_int8, scale_of_row = to_int8(x, axis=-1)
    y = jnp.einsum("...d,df->...f", x_int8, kernel, preferred_element_type=jnp.int32).astype(jnp.float32)
    return y * scale_of_row * _along_last_axis(scale, y.ndim)


@_product_of_integers.defjvp
def _differentiate(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
    (x, kernel, scale), (dx, *_) = primals, tangents
    whole = kernel.astype(jnp.float32) * scale.astype(jnp.float32)[None, :]
    return _product_of_integers(x, kernel, scale), jnp.einsum("...d,df->...f", dx.astype(jnp.float32), whole)


def _dense_by_xla(
    x: Float[Array, "*rows inp"], kernel: Float[Array, "inp out"], *bias: Float[Array, " out"]
) -> Float[Array, "*rows out"]:
    # Products of 16 bits are exact in float32; asked for more, a TPU writes the feed-forward's middle to memory.
    precision = None if x.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    y = jnp.einsum("...d,df->...f", x, kernel, precision=precision, preferred_element_type=jnp.float32)
    return functools.reduce(jnp.add, [y, *(_along_last_axis(one, y.ndim) for one in bias)]).astype(x.dtype)


def _dense_on_gpu(
    x: Float[Array, "*rows inp"], kernel: Float[Array, "inp out"], *bias: Float[Array, " out"]
) -> Float[Array, "*rows out"]:
    # The sums are float32 inside cuBLAS, which adds the bias and rounds; XLA lets it where all is of one dtype.
    y = jnp.einsum("...d,df->...f", x, kernel, precision=jax.lax.Precision.DEFAULT, preferred_element_type=x.dtype)
    return functools.reduce(
        jnp.add, [y, *(one.astype(y.dtype).reshape((1,) * (y.ndim - 1) + one.shape) for one in bias)]
    )


def _batch_dense(operands: Sequence[Any], axes: Sequence[int | None]) -> tuple[Array, int]:
    if any(axis is not None for axis in axes[1:]):  # of several sets of params
        return jax.vmap(_dense_by_xla, axes)(*operands), 0
    return dense_p.bind(jnp.moveaxis(operands[0], axes[0] or 0, 0), *operands[1:]), 0


dense_p = primitive(
    "dense",
    _dense_by_xla,
    result_of=lambda x, kernel, *_: x.update(shape=(*x.shape[:-1], kernel.shape[-1])),
    on_gpu=_dense_on_gpu,
)
"""`dense` in 16 bits: inputs `[*rows, inp]`, kernel `[inp, out]`, and a bias `[out]` or none."""
batching.primitive_batchers[dense_p] = _batch_dense


def dtype_of(params: Params, x: AnyArray) -> jnp.dtype:
    """What `dense` computes `x` in."""
    dtype = params["kernel"].dtype
    return x.dtype if dtype == jnp.int8 else dtype


def _low_rank(params: Params, x: Float[Array, "*rows inp"]) -> Float[Array, "*rows out"]:
    """`scale * (x @ a) @ b` in float32 (LoRA, Hu et al. 2021), in the dtype of a and b.

    Of several adapters side by side, `scale` is 0 at those that are not a row's, by how many rows there are.
    """
    a, b, scale = params["lora_a"], params["lora_b"], params["lora_scale"]
    x = x.astype(a.dtype)
    if "lora_dropout" in params:
        x = dropout(x, params["lora_dropout"].rate, params["lora_dropout"].key)
    product = functools.partial(
        jnp.einsum,
        precision=None if a.dtype == jnp.float32 else jax.lax.Precision.DEFAULT,
        preferred_element_type=jnp.float32,
    )
    scale = scale[str(len(x))] if isinstance(scale, Mapping) else scale
    x_R = product("...d,dr->...r", x, a) * scale.astype(jnp.float32)
    return product("...r,rf->...f", x_R.astype(b.dtype), b)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["key"], meta_fields=["rate"])
@dataclasses.dataclass(frozen=True)
class AdapterDropout:
    """Beside the adapter of a layer while it is trained: what draws the dropout of what the adapter reads."""

    key: Key[Array, "*layers"]
    rate: float


def to_int8(x: Float[Array, "*shape"], *, axis: int) -> tuple[Int8[Array, "*shape"], Float[Array, "*ones"]]:
    """Integers from -127 to 127, and the float32 scales along `axis` that give `x` back: symmetric, to the nearest."""
    x_f32 = x.astype(jnp.float32)
    largest = jnp.max(jnp.abs(x_f32), axis=axis, keepdims=True)
    scale = jnp.where(largest > 0, largest / 127, jnp.ones((), jnp.float32))
    return jnp.round(x_f32 / scale).astype(jnp.int8), scale


@jax.named_scope("layer_norm")
def layer_norm(
    params: Params, x: Float[Array, "*rows D"], *, eps: float, dtype: DTypeLike | None = None
) -> Float[Array, "*rows D"]:
    """LayerNorm (Ba et al. 2016) by two passes: E[x²] − E[x]² loses 1.5e-3 at a row mean of 30; it may have no bias."""
    return _norm(params, x, eps=eps, dtype=dtype)


@jax.named_scope("layer_norm")
def add_and_norm(
    params: Params, x: Float[Array, "*rows D"], y: Float[Array, "*rows D"], *, eps: float
) -> Float[Array, "*rows D"]:
    """`layer_norm` of the sum, which is taken in float32."""
    return _norm(params, x, y, eps=eps)


def _norm(
    params: Params, *terms: Float[Array, "*rows D"], eps: float, dtype: DTypeLike | None = None
) -> Float[Array, "*rows D"]:
    """In the dtype of the first term, if no other is asked for."""
    names = [name for name in ("scale", "bias") if name in params]
    operands = [*map(jnp.asarray, terms), *[jnp.asarray(params[name]) for name in names]]
    return norm_p.bind(*operands, num_terms=len(terms), eps=eps, dtype=jnp.dtype(dtype or operands[0].dtype))


def _norm_by_xla(
    *operands: Float[Array, "..."], num_terms: int, eps: float, dtype: jnp.dtype
) -> Float[Array, "*rows D"]:
    terms, params = operands[:num_terms], operands[num_terms:]
    x_f32 = functools.reduce(jnp.add, [term.astype(jnp.float32) for term in terms])
    centred = x_f32 - jnp.mean(x_f32, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    scale, *bias = (_along_last_axis(param, x_f32.ndim) for param in params)
    y = centred * jax.lax.rsqrt(variance + eps) * scale
    return (y + bias[0] if bias else y).astype(dtype)


def _norm_on_tpu(*operands: Float[Array, "..."], num_terms: int, **kind: Any) -> Float[Array, "*rows D"]:
    from flaxsent.models.norm_tpu import block_of, norm  # Pallas takes a tenth of a second to import

    if block_of(operands[0].shape) is None:
        return _norm_by_xla(*operands, num_terms=num_terms, **kind)
    scale, *bias = operands[num_terms:]
    return norm([*operands[:num_terms]], scale, bias[0] if bias else None, **kind)


def _norm_on_gpu(*operands: Float[Array, "..."], num_terms: int, **kind: Any) -> Float[Array, "*rows D"]:
    from flaxsent.models.norm_gpu import block_of, norm

    # In float32 XLA's takes as long, and may be exported, which a kernel of Triton's may not.
    if block_of(operands[0].shape) is None or kind["dtype"] == jnp.float32:
        return _norm_by_xla(*operands, num_terms=num_terms, **kind)
    scale, *bias = operands[num_terms:]
    return norm([*operands[:num_terms]], scale, bias[0] if bias else None, **kind)


def _batch_norm(
    operands: Sequence[Any], axes: Sequence[int | None], *, num_terms: int, **kind: Any
) -> tuple[Array, int]:
    if any(axis is not None for axis in axes[num_terms:]):  # of several sets of params
        return jax.vmap(functools.partial(_norm_by_xla, num_terms=num_terms, **kind), axes)(*operands), 0
    size = next(x.shape[axis] for x, axis in zip(operands, axes, strict=True) if axis is not None)
    terms = [
        jnp.broadcast_to(x[None], (size, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)
        for x, axis in zip(operands[:num_terms], axes, strict=False)
    ]
    return norm_p.bind(*terms, *operands[num_terms:], num_terms=num_terms, **kind), 0


norm_p = primitive(
    "layer_norm",
    _norm_by_xla,
    result_of=lambda first, *_, dtype, **__: first.update(dtype=dtype),
    on_tpu=_norm_on_tpu,
    on_gpu=_norm_on_gpu,
)
batching.primitive_batchers[norm_p] = _batch_norm


def _along_last_axis(vector: Float[Array, " D"], ndim: int) -> Float[Array, "*ones D"]:
    """In float32, with leading axes of 1, so that nothing depends on rank promotion (`jax_numpy_rank_promotion`)."""
    return vector.astype(jnp.float32).reshape((1,) * (ndim - 1) + vector.shape)


def look_up(params: Params, ids_T: Int[AnyArray, " T"]) -> Float[Array, "T D"]:
    """NaN for an id that the table does not have, rather than a number that looks right.

    A table of int8 (`transforms.quantize`) has a scale for each row, whose dtype is that of what is looked up. A table
    that is cut to some of its rows (`training.vocabulary`) has the row of each id, or -1.
    """
    at = {"mode": "fill", "wrap_negative_indices": False}
    if "row_of_id" in params:
        ids_T = params["row_of_id"].at[ids_T].get(fill_value=-1, **at)
    if "embedding_scale" not in params:
        return params["embedding"].at[ids_T].get(fill_value=jnp.nan, **at)
    scale_T = params["embedding_scale"].at[ids_T].get(fill_value=jnp.nan, **at)
    return params["embedding"].at[ids_T].get(fill_value=0, **at).astype(scale_T.dtype) * scale_T[:, None]


def first_tokens(tokens: Tokens, num_segments: int | None) -> Int[Array, " S"] | None:
    """Where each text of a row begins ([CLS]); None, for all tokens, if `num_segments` is.

    A row with fewer texts than `num_segments` has meaningless places at the end; `unpack` never reads their values.
    """
    return None if num_segments is None else jnp.argmax(is_of_text(tokens, num_segments), axis=-1)


def is_of_text(tokens: Tokens, num_segments: int) -> Bool[Array, "S T"]:
    """Which tokens of a row are those of each text."""
    return jnp.asarray(tokens.segment_ids)[None, :] == jnp.arange(1, num_segments + 1)[:, None]


Layer = Callable[..., Float[Array, "_ D"]]
"""`layer(params, x_TD, *, at_Q, key)`: its output at the tokens `at_Q`, or at all."""

STATE = "state"
"""The name of a layer's output for `jax.checkpoint`: a gradient may keep these and compute the rest again."""


def run(
    layer_of: Callable[[int], Layer],
    layers: Params,
    x_TD: Float[Array, "T D"],
    *,
    at_Q: Int[Array, " Q"] | None,
    key: OptionalKey,
    run_stacked: Callable[..., Float[Array, "T D"]] | None = None,
) -> list[Float[Array, "_ D"]]:
    """The input and the output of every layer; that of the last is computed at `at_Q` only.

    Each layer has its params by its number, or those of a range are stacked (`stacking.py`) and run as one, by `scan`
    if nothing else is given; only their last output is given then.
    """
    ranges = sorted(((range_of(name), name) for name in layers), key=lambda found: found[0].start)
    keys = split_key(key, sum(len(numbers) for numbers, _ in ranges))
    states = [x_TD]
    for numbers, name in ranges:
        if name.isdecimal():
            is_last = numbers == ranges[-1][0]
            x_QD = layer_of(numbers[0])(layers[name], states[-1], at_Q=at_Q if is_last else None, key=keys[numbers[0]])
            states.append(checkpoint_name(x_QD, STATE))
        else:
            states.append((run_stacked or scan)(layer_of, layers[name], states[-1], numbers=numbers, keys=keys))
    return states


def scan(
    layer_of: Callable[[int], Layer],
    stacked: Params,
    x_TD: Float[Array, "T D"],
    *,
    numbers: range,
    keys: Sequence[OptionalKey],
) -> Float[Array, "T D"]:
    """The output of the last of stacked layers, whose kinds recur after as many as `stacked` has."""
    period, fetch = len(stacked), FETCH.get() or (lambda params: params)
    has_keys = keys[numbers.start] is not None
    keys_GP = jnp.stack(cast(list[Array], keys[numbers.start : numbers.stop])).reshape(-1, period) if has_keys else None

    def body(x_TD: Array, group: tuple[Params, Array | None]) -> tuple[Array, None]:
        params, keys_P = group
        for index, layer_params in enumerate(in_order(fetch(params))):
            layer_key = None if keys_P is None else keys_P[index]
            layer = layer_of(numbers.start + index)
            x_TD = checkpoint_name(layer(layer_params, x_TD, at_Q=None, key=layer_key), STATE)
        return x_TD, None

    return jax.lax.scan(body, x_TD, (stacked, keys_GP))[0]


FETCH: ContextVar[Callable[[Params], Params] | None] = ContextVar("fetch", default=None)
"""What is done to the params of stacked layers, one after the other, before these compute: while a function is traced
for devices that hold a part of each (`placement.Placement.call`), the other parts are fetched."""


def range_of(name: str) -> range:
    """Of layers: "3" is one, "1-6" are six.

    >>> range_of("1-6")
    range(1, 7)
    """
    first, _, last = name.partition("-")
    return range(int(first), int(last or first) + 1)


def in_order(layers: Params) -> list[Params]:
    """By their numbers: as names, "10" comes before "2"."""
    return [layers[str(index)] for index in range(len(layers))]


def take(x_TA: Shaped[Array, "T *A"], at_Q: Int[Array, " Q"] | None) -> Shaped[Array, "_ *A"]:
    """Some tokens of a row; all of them if `at_Q` is None."""
    return x_TA if at_Q is None else x_TA[at_Q]


def two_layers(
    first: Params,
    last: Params,
    x_SD: Float[Array, "S D"],
    *,
    activation: Callable[[Array], Array],
    rates: tuple[float, float],
    key: OptionalKey,
) -> Float[Array, "S C"]:
    """A head in float32: dropout, a layer with an activation, dropout, the layer that gives the logits."""
    input_key, pooled_key = split_key(key, 2)
    x_SD = dropout(x_SD.astype(jnp.float32), rates[0], input_key)
    pooled_SD = activation(dense(in_float32(first), x_SD))
    return dense(in_float32(last), dropout(pooled_SD, rates[1], pooled_key))


def dense_head(
    params: Params,
    x_SD: Float[Array, "S D"],
    *,
    config: ModelConfig,
    key: OptionalKey,
    branch: str = "classifier",
    activation: Callable[[Array], Array] = jnp.tanh,
) -> Float[Array, "S C"]:
    """RoBERTa's head, which others have too."""
    head, rate = params[branch], config.classifier_dropout
    return two_layers(head["dense"], head["out_proj"], x_SD, activation=activation, rates=(rate, rate), key=key)


def dense_head_shapes(config: ModelConfig) -> dict[str, Any]:
    D = config.hidden_size
    return {"dense": dense_shapes(D, D), "out_proj": dense_shapes(D, config.num_labels)}


def in_float32(params: Params) -> PyTree[Float[Array, "..."]]:
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)


def dense_shapes(inputs: int, outputs: int, *, has_bias: bool = True) -> dict[str, tuple[int, ...]]:
    return {"kernel": (inputs, outputs)} | ({"bias": (outputs,)} if has_bias else {})


def numbered(count: int, layer: Any) -> dict[str, Any]:
    """The shapes of layers that are all alike, by their numbers."""
    return {str(index): layer for index in range(count)}


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
