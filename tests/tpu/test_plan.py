"""The steps that TPUs would run, compiled by their own compiler: they fit, and do not grow again.

The bounds are today's figures and a little more. Whoever makes a step smaller tightens them.
"""

import json
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest

import flaxsent
from flaxsent import placement
from flaxsent.base import FlaxsentError
from flaxsent.bench import hlo, train_work, work
from flaxsent.bench.chips import topology
from flaxsent.bench.plan import cycles, matrix_use, plan
from flaxsent.bench.work import Work
from flaxsent.packing import StepShape

pytestmark = [pytest.mark.tpu, pytest.mark.compiled_as_for_users]

BASE = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072, "max_position_embeddings": 512}
"""The sizes of a base model; of its layers as many as make one in the middle, as the last one is computed for the
classified tokens alone."""
MODELS = {
    "bert": BASE | {"num_hidden_layers": 2},
    "distilbert": {"dim": 384, "n_heads": 12, "hidden_dim": 1536, "n_layers": 4, "max_position_embeddings": 512},
    "deberta-v2": BASE | {"num_hidden_layers": 2, "position_buckets": 256},
    "modernbert": BASE | {"num_hidden_layers": 3, "intermediate_size": 1152, "max_position_embeddings": 8192},
}
TOKENS = 8192
"""In a step, on a chip."""


class Bounds(NamedTuple):
    """The most that a step may take, in millions."""

    temporaries: float
    """Bytes."""
    scores: float
    """Bytes of attention's scores that go to memory."""
    memory: float
    """Bytes that are read from and written to memory."""
    cycles: float


def of_step(step, chips) -> Bounds:
    figures = step.figures
    numbers = step.temporaries, figures.scores_bytes, figures.memory_bytes, cycles(step, chips.chip)
    return Bounds(*(number / 1e6 for number in numbers))


BOUNDS = {
    ("bert", 128): Bounds(temporaries=4.5, scores=0, memory=33, cycles=1.78),
    ("bert", 512): Bounds(temporaries=4.5, scores=0, memory=33, cycles=2.06),
    # Three of four layers are one kernel.
    ("distilbert", 128): Bounds(temporaries=2.5, scores=0, memory=16, cycles=1.36),
    # What its distances add to the scores does go to memory.
    ("deberta-v2", 128): Bounds(temporaries=286, scores=212, memory=1880, cycles=7.95),
    ("deberta-v2", 512): Bounds(temporaries=1105, scores=1060, memory=14_000, cycles=37),
    ("modernbert", 8192): Bounds(temporaries=219, scores=0, memory=1530, cycles=13.6),
}


@pytest.fixture(scope="module")
def classifier_of(tiny_folder):
    return lambda family: flaxsent.load(tiny_folder(family, **MODELS[family]), backend="native", dtype="bfloat16")


@pytest.mark.parametrize(("family", "row_length"), BOUNDS)
def test_the_engines_step_keeps_its_bounds(classifier_of, family, row_length):
    chips = topology("v5e:1x1")
    planned = work.inference(classifier_of(family), chips.devices, row_lengths=[row_length], tokens_per_step=TOKENS)
    (step,) = plan(planned, chips, finds_largest=False).steps
    found = of_step(step, chips)
    assert all(one <= most for one, most in zip(found, BOUNDS[family, row_length], strict=True)), found
    assert step.shape == step.asked
    assert 0 < matrix_use(step, chips.chip) < 1
    assert step.figures.uncounted_loops == 0


def test_chips_with_little_room_have_no_kernel_of_stacked_layers(classifier_of):
    for name, has_kernel in (("v4:1x1x1", False), ("v5e:1x1", True), ("v5e:2x2", True)):
        chips = topology(name)
        planned = work.inference(classifier_of("distilbert"), chips.devices, row_lengths=[128], tokens_per_step=TOKENS)
        (step,) = plan(planned, chips, finds_largest=False).steps
        assert ("post_norm_layers_narrow" in step.figures.kernels) == has_kernel, name
        assert step.shape == step.asked


TRAINING = Bounds(temporaries=15.3, scores=0, memory=274, cycles=1.3)


def test_a_training_step_on_sixteen_chips_keeps_its_bounds(tiny_folder):
    chips = topology("v5e:4x4")
    classifier = flaxsent.load(tiny_folder("bert", **BASE, num_hidden_layers=1), backend="native")
    planned = train_work.training(classifier, chips.devices, row_lengths=[128], tokens_per_step=1024, dtype="bfloat16")
    (step,) = plan(planned, chips, finds_largest=False).steps
    found = of_step(step, chips)
    assert all(one <= most for one, most in zip(found, TRAINING, strict=True)), found
    assert step.shape == StepShape(16 * 8, 128, 16)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(classifier.params))
    # In float32 parameters, their average and two moments on each chip; in bfloat16 gradients between the chips.
    assert step.params == pytest.approx(4 * 4 * parameters, rel=0.05)
    assert step.figures.collectives["all-reduce"] == pytest.approx(2 * parameters, rel=0.05)


@pytest.mark.usefixtures("symbolic_sizes")
def test_an_exported_folder_is_planned_too(tiny_folder, tmp_path):
    classifier = flaxsent.load(tiny_folder("bert"), backend="native")
    flaxsent.export(classifier, tmp_path / "exported")
    chips = topology("v6e:2x2")
    own, carried = (
        plan(
            work.inference(one, chips.devices, row_lengths=[128], tokens_per_step=1024), chips, finds_largest=False
        ).steps[0]
        for one in (classifier, flaxsent.load(tmp_path / "exported"))
    )
    assert carried.shape == carried.asked == own.shape
    assert carried.products is None
    assert carried.params == pytest.approx(own.params, rel=0.1)  # stacked layers are padded less
    # Its functions take rows of any length, so no kernel stands in them.
    assert carried.figures.cycles > 0


def test_a_scan_takes_the_cycles_of_its_layers_one_by_one():
    def scanned(w_LDD, x_RD):
        # Two at a time: else what is carried is copied each time, which takes longer than the product.
        return jax.lax.scan(lambda x, w: (jnp.maximum(x @ w, 0), None), x_RD, w_LDD, unroll=2)[0]

    def one_by_one(w_LDD, x_RD):
        for w_DD in w_LDD:
            x_RD = jnp.maximum(x_RD @ w_DD, 0)
        return x_RD

    placed = placement.over(topology("v5e:1x1").devices)
    arguments = (jax.ShapeDtypeStruct((6, 1024, 1024), jnp.bfloat16), jax.ShapeDtypeStruct((8192, 1024), jnp.bfloat16))
    texts = [
        jax.jit(function, in_shardings=(placed.replicated, placed.by_row)).lower(*arguments).compile().as_text()
        for function in (scanned, one_by_one)
    ]
    runs, uncounted = hlo.executions(hlo.parse(texts[0]))
    assert (max(runs.values()), uncounted) == (3, 0)
    loop, line = (hlo.figures(text, row_length=1).cycles for text in texts)
    assert loop == pytest.approx(line, rel=0.03)  # products in a loop are tiled a little otherwise


def test_a_step_that_no_chip_holds_is_refused():
    chips = topology("v5e:1x1")
    placed = placement.over(chips.devices)

    def squares(x_RT):
        steps = jnp.arange(2**17, dtype=jnp.float32)
        x = jnp.sin(jnp.outer(steps, steps) * x_RT[0, 0])  # 69 GB
        return (x @ x @ x).sum()

    def lower(shape):
        rows = jax.ShapeDtypeStruct((shape.num_rows, shape.row_length), jnp.float32)
        return jax.jit(squares, in_shardings=placed.by_row).lower(rows)

    huge = Work("inference", "float32", (StepShape(2, 128, 16),), 1, 1, lower, lambda shape: None)
    with pytest.raises(
        FlaxsentError, match=r"^1 row of 128 tokens, the fewest, do not fit: Ran out of memory .*15\.75G"
    ):
        plan(huge, chips)


def test_a_mesh_that_no_hosts_make_is_refused():
    with pytest.raises(FlaxsentError, match=r"'v5e:3x3': libtpu refuses it: INVALID_ARGUMENT: .*not divisible"):
        topology("v5e:3x3")


@pytest.mark.parametrize(
    ("name", "chips_per_host"), [("v4:2x2x1", 4), ("v5p:2x2x2", 4), ("v6e:4x4", 4), ("v5e:1x1", 1)]
)
def test_a_chip_is_a_device(name, chips_per_host):
    found = topology(name)
    sizes = name.partition(":")[2].split("x")
    assert len(found.devices) == int(sizes[0]) * int(sizes[1]) * int((*sizes, 1)[2])
    assert found.chips_per_host == chips_per_host


def test_two_commands_at_once_print_their_plans_and_nothing_else(tiny_folder):
    command = [sys.executable, "-m", "flaxsent", "plan", str(tiny_folder("bert")), "--topology", "v5e:1x1"]
    command += ["--row-lengths", "128", "--tokens-per-step", "256", "--tokens-per-text", "20", "--no-largest", "--json"]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in running:
        out, err = process.communicate()
        assert process.returncode == 0, err
        assert err == "flaxsent: compiling 2 rows of 128 tokens\n"
        assert json.loads(out)["steps"][0]["shape"]["num_rows"] == 2
