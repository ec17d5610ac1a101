"""The kernels for TPUs and GPUs equal what XLA computes elsewhere, interpreted on the CPU; each gets its own."""

import contextlib
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxsent import models
from flaxsent.base import Tokens
from flaxsent.models import (
    activations,
    attention,
    attention_gpu,
    attention_tpu,
    feed_forward,
    feed_forward_tpu,
    layers,
    norm_gpu,
    norm_tpu,
    post_norm,
    post_norm_tpu,
)
from flaxsent.models.config import read_config
from flaxsent.models.stacking import stack
from flaxsent.parity.random_checkpoints import CONFIGS, random_params
from tests.conftest import others_slow
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


ON_A_GPU = [
    *(((R, T, D, N), kind) for (R, T, D, N), kind in CASES if attention_gpu.fits(T, D // N)),
    ((3, 192, 96, 3), {"bias": "each", "is_causal": True}),
    ((2, 64, 64, 1), {}),
]


@pytest.mark.parametrize(("sizes", "kind"), ON_A_GPU, ids=str)
def test_the_kernel_of_a_gpu_equals_the_scores(sizes, kind):
    operands = operands_of(*sizes, kind.get("bias"))
    static = {"num_heads": sizes[3], "reach": kind.get("reach"), "is_causal": kind.get("is_causal", False)}
    ours = attention_gpu.attend(*operands, scale=0.3, interpret=True, **static)
    theirs = attention._rows_by_scores(*operands, precision="highest", scale=0.3, **static)
    assert np.abs(ours - theirs).max() <= TOLERANCE


def test_a_row_of_padding_alone_has_numbers_on_a_gpu():
    q, k, v, segment_ids = operands_of(2, 128, 64, 2, None)
    static = {"num_heads": 2, "reach": None, "is_causal": False, "scale": 0.3}
    ours = attention_gpu.attend(q, k, v, segment_ids * 0, interpret=True, **static)
    assert np.isfinite(ours).all()


@pytest.mark.parametrize(("T", "head_size"), [(40, 64), (96, 64), (128, 12), (128, 256)])
def test_rows_and_heads_that_triton_does_not_take_have_no_kernel(T, head_size):
    assert not attention_gpu.fits(T, head_size)


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
@pytest.mark.parametrize(("kernels", "size"), [(norm_tpu, 256), (norm_gpu, 256), (norm_gpu, 192)], ids=str)
def test_the_norm_equals_that_of_xla(kernels, size, num_terms, has_bias, dtype):
    rng = np.random.default_rng(0)
    draw = functools.partial(rng.normal, 30, 3)  # a mean far from 0 loses digits in one pass
    terms = [jnp.asarray(draw((4, 48, size)), dtype) for _ in range(num_terms)]
    scale, *bias = (jnp.asarray(draw(size), dtype) for _ in range(1 + has_bias))
    static = {"eps": 1e-12, "dtype": jnp.dtype(dtype)}
    ours = kernels.norm(terms, scale, bias[0] if bias else None, interpret=True, **static)
    theirs = layers._norm_by_xla(*terms, scale, *bias, num_terms=num_terms, **static)
    # Results are up to 150, where float32 has steps of 1.5e-5 and bfloat16 of 1; sums are taken in another order, and
    # rsqrt may be one or two steps off.
    tolerance = 2e-4 if dtype == jnp.float32 else 1
    assert np.abs(ours.astype(jnp.float32) - theirs.astype(jnp.float32)).max() <= tolerance


def feed_forward_of(dtype, *batch):
    """Params of D = 128 and F = 256, and inputs."""
    rng = np.random.default_rng(0)
    up, down = (
        {
            "kernel": jnp.asarray(rng.normal(0, 0.1, shape), dtype),
            "bias": jnp.asarray(rng.normal(0, 1, shape[1]), dtype),
        }
        for shape in ((128, 256), (256, 128))
    )
    return up, down, jnp.asarray(rng.normal(0, 1, (*batch, 128)), dtype)


@pytest.mark.parametrize("activation", feed_forward.IN_KERNEL)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_feed_forward_equals_its_two_layers(activation, dtype):
    up, down, x = feed_forward_of(dtype, 3, 256)
    params = (up["kernel"], up["bias"], down["kernel"], down["bias"])
    in_kernel = feed_forward.IN_KERNEL[activation]
    ours = feed_forward_tpu.feed_forward(x, *params, activation=in_kernel, interpret=True)
    exact = layers.in_float32({"up": up, "down": down, "x": x})
    theirs = layers.dense(exact["down"], activations.ACTIVATIONS[activation](layers.dense(exact["up"], exact["x"])))
    # Results are up to 9: steps of 1e-6 in float32, of 0.06 in bfloat16. The tanh that stands for the exact gelu is off
    # by up to 3e-5, of 256 numbers that a kernel of ±0.1 adds up: 3e-5 · 0.1 · 256 = 8e-4 if all were of one sign.
    is_fitted = in_kernel is activations.gelu_by_tanh
    tolerance = 0.032 if dtype == jnp.bfloat16 else 2e-4 if is_fitted else 1e-5
    assert np.abs(ours.astype(jnp.float32) - theirs).max() <= tolerance


def stacked_layers(dtype, *, num_heads, hidden_act="gelu_new", D=256, F=384, L=3):
    """The static parts of layers, and the leaves of their params, as large as trained ones."""
    sizes = {"hidden_size": D, "intermediate_size": F, "num_attention_heads": num_heads, "num_hidden_layers": L}
    config = read_config(json.dumps(CONFIGS["bert"] | sizes | {"hidden_act": hidden_act}))
    params = random_params(models.shapes(config))["bert"]["encoder"]["layer"]
    leaves = jax.tree.leaves(jax.tree.map(lambda *layers: jnp.stack(layers), *(params[str(at)] for at in range(L))))
    static = {"parts": post_norm.Parts(), "config": config, "scale": None}
    return static, [leaf.astype(dtype) for leaf in leaves]


@pytest.mark.parametrize(
    ("R", "T", "num_heads", "rows"),
    others_slow([(6, 128, 4, 6), (3, 512, 4, 1)], [(10, 128, 8, 5), (11, 128, 2, 1), (4, 256, 4, 4)]),
)
def test_stacked_layers_in_one_kernel_equal_their_scan(monkeypatch, R, T, num_heads, rows):
    (static, leaves), (x, *_, ids) = stacked_layers(jnp.float32, num_heads=num_heads), operands_of(R, T, 256, 2, None)
    run_layers = post_norm_tpu.run_layers
    monkeypatch.setattr(post_norm_tpu, "run_layers", functools.partial(run_layers, interpret=True))
    assert post_norm_tpu.rows_of(x.shape, 384, num_heads, 4) == rows
    ours = jax.jit(functools.partial(post_norm._on_tpu, **static))(x, ids, *leaves)
    theirs = jax.jit(functools.partial(post_norm._by_scan, **static))(x, ids, *leaves)
    assert np.abs(theirs).max() > 3
    # Results are up to 5; each of three layers adds sums of 384 numbers in another order.
    assert np.abs(ours - theirs).max() <= 2e-5


def test_stacked_layers_in_one_kernel_round_no_more_than_their_scan(monkeypatch):
    monkeypatch.setattr(post_norm_tpu, "run_layers", functools.partial(post_norm_tpu.run_layers, interpret=True))
    (static, leaves), (x, *_, ids) = stacked_layers(jnp.bfloat16, num_heads=4), operands_of(4, 128, 256, 4, None)
    of_16_bits = [x.astype(jnp.bfloat16), ids, *leaves]
    exact = jax.jit(functools.partial(post_norm._by_scan, **static))(
        *(one.astype(jnp.float32) if one.dtype == jnp.bfloat16 else one for one in of_16_bits)
    )
    ours, theirs = (
        np.abs(jax.jit(functools.partial(by, **static))(*of_16_bits).astype(jnp.float32) - exact).mean()
        for by in (post_norm._on_tpu, post_norm._by_scan)
    )
    assert ours <= 1.05 * theirs  # the kernel rounds once where the scan rounds twice: before each sum


@pytest.mark.parametrize(
    ("shape", "middle", "num_heads", "rows"),
    [
        ((64, 128, 384), 1536, 12, 8),
        ((16, 512, 768), 3072, 12, 1),
        ((64, 128, 1024), 4096, 16, 4),
        ((8, 1024, 768), 3072, 12, None),  # long rows
        ((64, 40, 768), 3072, 12, None),
        ((64, 128, 312), 1200, 12, None),  # no whole lanes
        ((1024, 128, 768), 3072, 12, None),  # states of 200 MB
        ((64, 128, 2048), 8192, 16, None),  # params of 100 MB a layer
    ],
)
def test_stacked_layers_have_blocks_that_fit_the_chip(shape, middle, num_heads, rows):
    assert post_norm_tpu.rows_of(shape, middle, num_heads, 2) == rows


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")
def test_the_engines_stacked_layers_are_one_kernel_on_a_tpu():
    kernels = {"tpu": 1, "cpu": 0, "cuda": 0}
    for changes, of_platform in (
        ({}, kernels),
        ({"is_gradient": True}, dict.fromkeys(kernels, 0)),
        ({"dtype": jnp.float32}, dict.fromkeys(kernels, 0)),
        ({"T": 40}, dict.fromkeys(kernels, 0)),
    ):
        for platform, count in of_platform.items():
            text = lowered_encoder(platform, **changes)
            assert text.count("post_norm_layers") == count, (platform, changes)


def lowered_encoder(platform, *, dtype=jnp.bfloat16, T=128, is_gradient=False):
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 2, "num_hidden_layers": 4}
    config = read_config(json.dumps(CONFIGS["bert"] | sizes))
    params = stack(jax.tree.map(lambda leaf: leaf.astype(dtype), random_params(models.shapes(config))), config=config)

    def states(params, x_RTD, ids_RT):
        def row(x_TD, ids_T):
            tokens = Tokens(ids_T, ids_T, ids_T, ids_T)
            return models.FAMILIES["bert"].encode(
                params["bert"], x_TD, tokens, config=config, num_segments=None, key=None
            )[-1]

        return jax.vmap(row)(x_RTD, ids_RT)

    function = jax.grad(lambda *given: states(*given).astype(jnp.float32).sum()) if is_gradient else states
    shapes = params, jnp.ones((4, T, 128), dtype), jnp.ones((4, T), jnp.int32)
    with an_h100() if platform == "cuda" else contextlib.nullcontext():
        return lowered_feed_forward(platform, function, *shapes)


@pytest.mark.parametrize(
    ("shape", "middle", "block"),
    [
        ((64, 128, 768), 3072, 1024),
        ((64, 128, 2048), 8192, None),  # kernels of 67 MB
        ((40, 128, 384), 1536, 1024),
        ((3, 256, 384), 1536, 256),
        ((64, 384), 1536, None),  # too few tokens
        ((8, 128, 312), 1200, None),  # no whole lanes
    ],
)
def test_a_feed_forward_has_blocks_that_fit_the_chip(shape, middle, block):
    assert feed_forward_tpu.block_of(shape, middle, 2) == block


def an_h100():
    """Newer versions of JAX lower Triton's kernels for one kind of GPU, which is told so where there is none."""
    from jax.experimental.pallas import triton

    if not hasattr(triton, "GpuInfo"):
        return contextlib.nullcontext()
    kind = jax.sharding.AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=None, platform="gpu")
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1,), ("x",), abstract_device=kind))


def lowered_for(platform, function, *arguments):
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arguments]
    with an_h100() if platform == "cuda" else contextlib.nullcontext():
        return jax.jit(function).trace(*shapes).lower(lowering_platforms=(platform,)).as_text()


def attend(q, k, v, segment_ids):
    row = functools.partial(attention.attend, num_heads=4, dropout_rate=0.0, key=None)
    return jax.vmap(row)(q, k, v, segment_ids)


KERNELS = {"tpu": "tpu_custom_call", "cuda": "xla.gpu.triton"}
DTYPES = {"cpu": jnp.float32, "tpu": jnp.float32, "cuda": jnp.bfloat16}


# JAX 0.12 says so of every kernel by Triton; one by Mosaic GPU has to be timed on a GPU first.
@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")
@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_each_platform_gets_its_own_kernel_or_the_scores(platform):
    operands = [*(x.astype(DTYPES[platform]) for x in operands_of(2, 128, 256, 4, None)[:3])]
    text = lowered_for(platform, attend, *operands, operands_of(2, 128, 256, 4, None)[3])
    assert {name for name, kernel in KERNELS.items() if kernel in text} == {platform} - {"cpu"}
    assert ("tensor<2x4x128x128xf32>" in text) == (platform == "cpu"), "the scores"


def test_float32_on_a_gpu_is_by_the_scores():
    assert KERNELS["cuda"] not in lowered_for("cuda", attend, *operands_of(2, 128, 256, 4, None))


def test_a_gpu_rounds_a_product_before_its_bias_and_others_after_it():
    params = {"kernel": jnp.ones((32, 64), jnp.bfloat16), "bias": jnp.ones(64, jnp.bfloat16)}
    product = "(tensor<4x8x32xbf16>, tensor<32x64xbf16>) -> tensor<4x8x64x"
    function = jax.vmap(lambda x: activations.gelu(layers.dense(params, x)))
    for platform in ("cpu", "cuda", "tpu"):
        text = lowered_for(platform, function, jnp.ones((4, 8, 32), jnp.bfloat16))
        assert product + ("bf16>" if platform == "cuda" else "f32>") in text


def of_layers(**changes):
    """A feed-forward of batches of rows, the layers given."""
    return jax.vmap(
        lambda up, down, x: feed_forward.feed_forward(up | changes, down, x, activation="gelu"), (None, None, 0)
    )


def lowered_feed_forward(platform, function, *arguments):
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments)
    return jax.jit(function).trace(*shapes).lower(lowering_platforms=(platform,)).as_text()


def test_a_feed_forward_in_bfloat16_on_a_tpu_is_one_kernel():
    operands = feed_forward_of(jnp.bfloat16, 4, 64)
    assert lowered_feed_forward("tpu", of_layers(), *operands).count("tpu_custom_call") == 1
    for platform in ("cpu", "cuda"):
        text = lowered_feed_forward(platform, of_layers(), *operands)
        assert "custom_call" not in text
        assert text.count("dot_general") == 2


@pytest.mark.parametrize(
    ("function", "operands"),
    [
        (of_layers(), feed_forward_of(jnp.float32, 4, 64)),
        (of_layers(), feed_forward_of(jnp.float16, 4, 64)),
        (of_layers(), feed_forward_of(jnp.bfloat16, 4, 48)),
        (of_layers(kernel_scale=jnp.ones(256)), feed_forward_of(jnp.bfloat16, 4, 64)),
        (
            jax.grad(lambda *operands: of_layers()(*operands).sum().astype(jnp.float32)),
            feed_forward_of(jnp.bfloat16, 4, 64),
        ),
        (
            jax.vmap(of_layers(), (0, 0, None)),
            jax.tree.map(lambda x: jnp.stack([x, x]), feed_forward_of(jnp.bfloat16, 64)),
        ),
    ],
    ids=["float32", "float16", "48 tokens", "more than a kernel and a bias", "a gradient", "several sets of params"],
)
def test_a_feed_forward_of_another_kind_is_left_to_xla(function, operands):
    assert "custom_call" not in lowered_feed_forward("tpu", function, *operands)


def test_a_gradient_of_a_feed_forward_is_that_of_its_layers():
    operands = feed_forward_of(jnp.bfloat16, 2, 8)

    def by_layers(up, down, x):
        return layers.dense(down, activations.ACTIVATIONS["gelu"](layers.dense(up, x)))

    ours, theirs = (
        jax.grad(lambda *operands, one=one: one(*operands).astype(jnp.float32).sum(), (0, 1, 2))(*operands)
        for one in (of_layers(), by_layers)
    )
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


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
