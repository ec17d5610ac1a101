"""The kernels for TPUs equal what XLA computes elsewhere, interpreted on the CPU; a TPU gets them and others do not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxsent.models import attention, attention_tpu, layers, norm_tpu
from tests.models.reference import TOLERANCE

# rows, tokens, hidden size, heads: heads of 32 and 64 share lanes, some of 12 fill none, one of 128 fills all
CASES = [
    ((4, 128, 384, 12), {}),
    ((6, 128, 256, 4), {"bias": "one"}),
    ((3, 256, 36, 3), {"bias": "each", "is_causal": True}),
    ((2, 128, 256, 2), {"is_causal": True}),
    ((2, 512, 128, 2), {"bias": "each", "reach": 64}),
    ((1, 1024, 256, 4), {}),
    ((1, 1024, 256, 4), {"reach": 64}),
    ((2, 1024, 128, 2), {"reach": 200, "is_causal": True, "bias": "one"}),
]


def operands_of(R, T, D, N, bias):
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.standard_normal((R, T, D)) * size, jnp.float32) for size in (2, 2, 1))
    # Texts end to end, with padding (0) after them
    segment_ids = np.sort(rng.integers(1, 5, (R, T)), axis=-1) * (np.arange(T) < T - 5)
    biases = {None: [], "one": [(1, N, T, T)], "each": [(R, N, T, T)]}[bias]
    shapes = [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in biases]
    return [q, k, v, jnp.asarray(segment_ids, jnp.int32), *shapes]


@pytest.mark.parametrize(("sizes", "kind"), CASES, ids=str)
def test_the_kernel_equals_the_scores(sizes, kind):
    R, T, D, N = sizes
    operands = operands_of(*sizes, kind.get("bias"))
    static = {"num_heads": N, "reach": kind.get("reach"), "is_causal": kind.get("is_causal", False), "scale": 0.3}
    blocks = attention_tpu.blocks_of(R, T, D, D // N, 4)
    highest = jax.lax.Precision.HIGHEST
    ours = attention_tpu.attend(*operands, blocks=blocks, precision=highest, interpret=True, **static)
    theirs = attention._rows_by_scores(*operands, precision="highest", **static)
    assert np.abs(ours - theirs).max() <= TOLERANCE


@pytest.mark.parametrize("T", [40, 130])
def test_rows_that_are_no_multiple_of_the_lanes_have_no_kernel(T):
    assert attention_tpu.blocks_of(4, T, 384, 32, 4) is None


def test_rows_of_8192_have_blocks_that_fit_the_chip():
    for itemsize in (2, 4):
        assert attention_tpu.blocks_of(1, 8192, 768, 64, itemsize).queries == 128
    assert attention_tpu.blocks_of(1, 65536, 768, 64, 2) is None


@pytest.mark.parametrize("num_terms", [1, 2])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_norm_equals_that_of_xla(num_terms, has_bias, dtype):
    rng = np.random.default_rng(0)
    draw = functools.partial(rng.normal, 30, 3)  # a mean far from 0 loses digits in one pass
    terms = [jnp.asarray(draw((3, 48, 256)), dtype) for _ in range(num_terms)]
    scale, *bias = (jnp.asarray(draw(256), dtype) for _ in range(1 + has_bias))
    ours = norm_tpu.norm(terms, scale, bias[0] if bias else None, eps=1e-12, interpret=True)
    theirs = layers._norm_by_xla(*terms, scale, *bias, num_terms=num_terms, eps=1e-12)
    # Results are up to 150, where float32 has steps of 1.5e-5 and bfloat16 of 1; sums are taken in another order.
    tolerance = 1e-4 if dtype == jnp.float32 else 1
    assert np.abs(ours.astype(jnp.float32) - theirs.astype(jnp.float32)).max() <= tolerance


def lowered_for(platform, function, *arguments):
    return jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()


def attend(q, k, v, segment_ids):
    row = functools.partial(attention.attend, num_heads=4, dropout_rate=0.0, key=None)
    return jax.vmap(row)(q, k, v, segment_ids)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_a_tpu_gets_the_kernel_and_others_the_scores(platform):
    text = lowered_for(platform, attend, *operands_of(2, 128, 256, 4, None))
    assert ("tpu_custom_call" in text) == (platform == "tpu")
    assert ("tensor<2x4x128x128xf32>" in text) == (platform != "tpu"), "the scores"


def test_a_gradient_on_a_tpu_is_that_of_the_scores():
    operands = operands_of(2, 128, 256, 4, None)
    gradient = jax.grad(lambda q, *others: attend(q, *others).sum())
    assert "tpu_custom_call" not in lowered_for("tpu", gradient, *operands)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float32])
def test_what_the_kernel_has_not_is_left_to_xla(dtype):
    q, k, v, segment_ids = operands_of(2, 128, 256, 4, None)
    with jax.default_matmul_precision("high"):
        text = lowered_for("tpu", attend, *(x.astype(dtype) for x in (q, k, v)), segment_ids)
    assert "tpu_custom_call" not in text


@pytest.mark.parametrize("axes", [(0, None, 0, None), (None, 0, None, 0)], ids=str)
def test_operands_that_a_batch_shares_are_those_of_each(axes):
    operands = [x[:1] if axis is None else x for x, axis in zip(operands_of(3, 40, 36, 3, None), axes, strict=True)]
    row = functools.partial(attention.attend, num_heads=3, dropout_rate=0.0, key=None)
    single = [x[0] if axis is None else x for x, axis in zip(operands, axes, strict=True)]
    ours = jax.vmap(row, axes)(*single)
    theirs = jax.vmap(row)(*[jnp.broadcast_to(x, (3, *x.shape[1:])) for x in operands])
    assert np.abs(ours - theirs).max() <= TOLERANCE


def test_biases_of_nested_batches_are_those_of_each():
    q, k, v, segment_ids, bias = operands_of(4, 40, 36, 3, "each")
    by_two = [x.reshape(2, 2, *x.shape[1:]) for x in (q, k, v, segment_ids)]

    def row(bias, *operands):
        return attention.attend(*operands, num_heads=3, dropout_rate=0.0, key=None, bias_NQT=bias)

    # The bias differs along the outer axis only
    ours = jax.vmap(jax.vmap(row, (None, 0, 0, 0, 0)))(bias[:2], *by_two)
    theirs = jax.vmap(row)(bias[np.array([0, 0, 1, 1])], q, k, v, segment_ids)
    assert np.abs(ours.reshape(theirs.shape) - theirs).max() <= TOLERANCE
