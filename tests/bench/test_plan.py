"""Plans: the arithmetic, the search for the largest step, and the whole flow, with the CPU in the place of a chip."""

import json
import math

import jax
import numpy as np
import pytest

import flaxsent
from flaxsent.base import FlaxsentError
from flaxsent.bench import chips, hlo, host, train_work, work
from flaxsent.bench.chips import CHIPS, Topology
from flaxsent.bench.host import Corpus, Host, Spread
from flaxsent.bench.plan import Plan, Step, compiled, cycles, matrix_use, outlook, plan, table, texts_per_step, to_json
from flaxsent.bench.products import Products
from flaxsent.bench.work import Work
from flaxsent.cli import main
from flaxsent.packing import StepShape

V5E = CHIPS["v5e"]
HOST = Host(tokens_per_text=25.0, bytes_per_text=140.0, tokenized_per_second=2e4, handled_per_second=1e5, memory=10**9)
CORPUS = Corpus(documents=1e9, hours=10.0, cores_per_host=100, num_groups=1000)
FIGURES = hlo.Figures(
    cycles=10**6,
    kernels={},
    silent_kernels=0,
    memory_bytes=10**8,
    scores_bytes=10**7,
    collectives={},
    uncounted_loops=0,
)
SHAPE = StepShape(8, 128, 16)
STEP = Step(
    asked=SHAPE,
    shape=SHAPE,
    params=10**8,
    temporaries=10**7,
    code=10**7,
    seconds_to_compile=1.0,
    products=Products(2**36, 2**36),
    figures=FIGURES,
)
PLAN = Plan("v5e:2x2", V5E, 4, 4, "inference", "bfloat16", [STEP], None)


def test_the_share_of_the_peak_is_products_over_cycles():
    assert matrix_use(STEP, V5E) == 2**36 / (10**6 * 131_072)
    assert matrix_use(STEP._replace(products=None), V5E) is None


@pytest.mark.parametrize(
    ("kernels", "expected"),
    [
        ({"attend": hlo.Kernels(numbers=1024 * 500)}, V5E.kernel_cycles.attend * 500),
        ({"attend": hlo.Kernels(operations=131_072 * 300)}, 300),
        ({"attend": hlo.Kernels(bytes=819 * 10**6)}, V5E.clock * 1e-3),
        (
            {"attend": hlo.Kernels(1024 * 500, 131_072 * 300, 8), "layer_norm": hlo.Kernels(numbers=2048)},
            V5E.kernel_cycles.attend * 500 + 300 + V5E.kernel_cycles.layer_norm * 2,
        ),
        ({"somebody_elses": hlo.Kernels(numbers=1024)}, max(V5E.kernel_cycles)),
    ],
)
def test_kernels_take_what_they_compute_or_their_bytes_do(kernels, expected):
    assert cycles(STEP._replace(figures=FIGURES._replace(kernels=kernels)), V5E) == pytest.approx(10**6 + expected)


@pytest.mark.parametrize(
    ("shape", "tokens", "texts"), [(SHAPE, 32.0, 32), (SHAPE, 4.0, 128), (StepShape(8, 128, 1), 32.0, 8)]
)
def test_texts_fill_packed_rows_and_have_padded_ones_to_themselves(shape, tokens, texts):
    assert texts_per_step(shape, tokens) == texts


def test_a_host_has_the_texts_of_its_chips():
    found = outlook(PLAN, HOST, CORPUS)
    # 8 rows of 128 tokens in 10^6 cycles, on 4 chips that are one host
    assert found.limits["chips, by the compiler's estimate"] == pytest.approx(8 * 128 / 25 / (10**6 / V5E.clock))
    assert found.limits["matrix units, if full"] == pytest.approx(8 * 128 / 25 / (2**36 / 197e12))
    assert found.limits["memory of the chips, if full"] == pytest.approx(8 * 128 / 25 / (1e8 / 819e9))
    assert found.job.texts_per_second == min(found.limits.values())
    assert found.job.num_devices == 4 * found.job.num_hosts


@pytest.mark.parametrize(
    ("slower", "figures", "bound"),
    [
        ({}, {}, "matrix"),
        ({}, {"memory_bytes": 10**9}, "memory"),
        ({"tokenized_per_second": 10.0}, {}, "host"),
        ({"handled_per_second": 10.0}, {"memory_bytes": 10**9}, "host"),
    ],
)
def test_what_is_full_first_bounds_it(slower, figures, bound):
    steps = [STEP._replace(figures=FIGURES._replace(**figures))]
    assert outlook(PLAN._replace(steps=steps), HOST._replace(**slower), CORPUS).bound == bound


def test_training_is_not_bound_by_its_host():
    found = outlook(PLAN._replace(work="training"), HOST._replace(tokenized_per_second=1.0), CORPUS)
    assert found.bound == "matrix"


def test_texts_are_computed_in_the_shortest_rows_that_take_them():
    long = STEP._replace(shape=StepShape(2, 512, 64))
    both = PLAN._replace(steps=[STEP, long])
    assert outlook(both, HOST, CORPUS).step == STEP
    assert outlook(both, HOST._replace(tokens_per_text=200.0), CORPUS).step == long
    with pytest.raises(FlaxsentError, match="tokens_per_text=600 is more than the longest row"):
        outlook(both, HOST._replace(tokens_per_text=600.0), CORPUS)


# the search

OOM = (
    "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
    "temporaries (26.62G) exceeds available HBM (15.75G). HLO module: jit_step.\nSee https://openxla.org for more."
)


def limited(most_tokens: float, asked: StepShape = SHAPE, multiple_of: int = 1) -> tuple[Work, list[int]]:
    """A step that is compiled here, and refused as the compiler for TPUs does if it has more tokens; and its trials."""
    tried = []

    def lower(shape):
        tried.append(shape.num_rows * shape.row_length)
        if tried[-1] > most_tokens:
            raise jax.errors.JaxRuntimeError(OOM)
        return jax.jit(lambda x: x + 1).lower(np.ones((shape.num_rows, shape.row_length), np.float32))

    return Work("inference", "float32", (asked,), 1, multiple_of, lower, lambda shape: None), tried


HERE = Topology("v5e:1x1", V5E, jax.local_devices()[:1])


@pytest.mark.parametrize(("most", "rows", "is_end"), [(1024, 8, True), (5000, 32, True), (math.inf, 8192, False)])
def test_the_largest_step_is_found_by_few_trials(most, rows, is_end):
    planned, tried = limited(most)
    found = plan(planned, HERE)
    assert found.steps[0].shape == SHAPE
    assert found.largest == (SHAPE._replace(num_rows=rows), is_end)
    assert len(tried) <= 12
    assert len(set(tried)) == len(tried)


def test_a_step_that_does_not_fit_is_halved_and_both_are_told():
    planned, _ = limited(300)
    found = plan(planned, HERE)
    assert found.steps[0].asked == SHAPE
    assert found.steps[0].shape == found.largest.shape == SHAPE._replace(num_rows=2)
    told = table(found, HOST, CORPUS, outlook(found, HOST, CORPUS))
    assert "2 rows a chip, 256 tokens: fits; 8 rows a chip, 1,024 tokens do not" in told


def test_a_model_that_no_such_chip_holds_is_one_line():
    planned, tried = limited(0, multiple_of=2)
    with pytest.raises(FlaxsentError) as told:
        plan(planned, HERE)
    assert str(told.value) == (
        "2 rows of 128 tokens, the fewest, do not fit: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (26.62G) exceeds available HBM (15.75G); choose a chip with more memory, shorter rows or a "
        "smaller dtype."
    )
    assert tried == [1024, 512, 256]


def test_chips_that_cannot_share_the_rows_are_refused():
    planned, _ = limited(math.inf, multiple_of=3)
    with pytest.raises(FlaxsentError, match="num_rows=8 cannot be shared evenly by 3 chips; expected a multiple of 3"):
        compiled(planned, SHAPE)


@pytest.mark.parametrize("told", ["INTERNAL: a fault", "RESOURCE_EXHAUSTED: a fault: Ran out of memory in vmem"])
def test_another_error_of_the_compiler_is_not_taken_for_a_full_chip(told):
    def lower(shape):
        raise jax.errors.JaxRuntimeError(told)

    with pytest.raises(jax.errors.JaxRuntimeError, match="a fault"):
        plan(limited(0)[0]._replace(lower=lower), HERE)


# the whole flow


@pytest.mark.compiled_as_for_users
@pytest.mark.parametrize("family", ["bert", "bart"])
def test_the_engines_step_is_planned(tiny_folder, family):
    classifier = flaxsent.load(tiny_folder(family), backend="native")
    planned = work.inference(classifier, HERE.devices, row_lengths=[128, 64], tokens_per_step=256)
    assert planned.shapes == (StepShape(4, 64, 8), StepShape(2, 128, 16))
    found = plan(planned, HERE, finds_largest=False)
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(classifier.params))
    for step in found.steps:
        assert step.params == pytest.approx(held, rel=0.1)
        assert step.temporaries > 0
        assert step.products.passes == 6 * step.products.operations > 0


@pytest.mark.compiled_as_for_users
def test_the_trainers_step_is_planned(tiny_folder):
    classifier = flaxsent.load(tiny_folder("bert", num_hidden_layers=1), backend="native")
    planned = train_work.training(classifier, HERE.devices, tokens_per_step=256, dtype="bfloat16")
    assert planned.shapes == (StepShape(4, 64, 8),)
    (step,) = plan(planned, HERE, finds_largest=False).steps
    inferred = plan(work.inference(classifier, HERE.devices, tokens_per_step=256), HERE, finds_largest=False).steps[0]
    # Parameters, their average and two moments; and backwards takes twice what forwards does.
    assert step.params == pytest.approx(4 * inferred.params, rel=0.1)
    assert step.products.operations == 3 * inferred.products.operations


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"tokens_per_step": 0}, "tokens_per_step=0: expected a positive number"),
        ({"row_lengths": []}, r"row_lengths=\[\]: expected positive numbers"),
        ({"row_lengths": [128, -1]}, r"row_lengths=\[128, -1\]: expected positive numbers"),
    ],
)
@pytest.mark.parametrize("of", [work.inference, train_work.training])
def test_numbers_that_are_none_are_refused(tiny_folder, asked, told, of):
    classifier = flaxsent.load(tiny_folder("bert"), backend="native")
    with pytest.raises(FlaxsentError, match=told):
        of(classifier, HERE.devices, **asked)


@pytest.mark.parametrize("more", [[], pytest.param(["--train"], marks=pytest.mark.slow)])
def test_the_command_prints_it(tiny_folder, capsys, monkeypatch, more):
    monkeypatch.setattr(chips, "topology", lambda name: HERE)
    # Both take seconds, and have tests of their own.
    monkeypatch.setattr(host, "simulate", lambda number, groups: Spread(1.0, 1.1, 0.1))
    monkeypatch.setattr(host, "measure", lambda classifier, shapes, *, tokens_per_text: HOST)
    asked = ["plan", str(tiny_folder("bert")), "--topology", "v5e:1x1", "--tokens-per-text", "20", "--no-largest"]
    rows = ["--row-lengths", "128", "--tokens-per-step", "256", "--documents", "1e6", "--hours", "2"]
    assert main([*asked, *rows, *more]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("compiled for       v5e:1x1: 1 v5e chip, 1 a host; ")
    assert "2 rows a chip, 256 tokens: fits" in out
    assert "1,000,000 texts within 2 hours" in out
    assert err == "flaxsent: compiling 2 rows of 128 tokens\n"
    assert main([*asked, *rows, *more, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["steps"][0]["shape"]["num_rows"] == 2
    assert found["work"] == ("training" if more else "inference")
    assert found["job"]["num_hosts"] >= 1


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "many"])
def test_figures_that_are_none_are_refused(capsys, value):
    with pytest.raises(SystemExit) as ended:
        main(["plan", "--topology", "v5e:1x1", "--documents", value])
    assert ended.value.code == 2
    assert "--documents" in capsys.readouterr().err


def test_every_figure_is_plain():
    assert json.loads(json.dumps(to_json(PLAN, HOST, CORPUS, outlook(PLAN, HOST, CORPUS))))["steps"][0]["cycles"] == 1e6
