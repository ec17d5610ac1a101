"""Params cut over devices: the same numbers, less memory on each device, and only the exchanges that it takes.

Eight devices are those of one CPU, in a process of its own (`tests/eight_devices.py`).
"""

import collections
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import flaxsent
from flaxsent import models, sharding
from flaxsent.base import FlaxsentError
from flaxsent.data.labels import Examples
from flaxsent.models.config import FAMILIES
from flaxsent.models.family import BERT_KEYS
from flaxsent.sharding import spec_of
from flaxsent.training.options import TrainOptions
from flaxsent.training.trainer import Trainer
from flaxsent.transforms.quantize import quantize
from tests.conftest import NATIVE, config_of

KINDS = ("bert", "deberta-v2", "modernbert", "bart")
HOWS = ("fsdp", "tensor=4", "fsdp,tensor=4")
TOLERANCE = 1e-5
"""Logits of 1 to 10 in float32, whose sums over some dozens of terms are taken in another order: a few of its last
digits, 1e-6, which the layers after add up."""


def even(family: str, **more) -> dict:
    """Changes of a tiny config to sizes that four and eight devices share evenly."""
    keys = {**BERT_KEYS, **FAMILIES[family].keys}
    sizes = {"hidden_size": 64, "num_heads": 4, "intermediate_size": 128, "vocab_size": 256, "num_layers": 2}
    of_decoder = {"decoder_ffn_dim": 96, "decoder_layers": 2} if family.endswith("bart") else {}
    return {str(keys[field][0]): size for field, size in sizes.items()} | of_decoder | more


def on_eight_devices(*calls):
    """What functions of `tests.eight_devices` give, each told by its name and its arguments."""
    command = [sys.executable, "-m", "tests.eight_devices", json.dumps(calls, default=str)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


# rules


def named_specs(shapes, **sizes) -> dict[str, P]:
    leaves = jax.tree_util.tree_leaves_with_path(shapes, is_leaf=lambda node: isinstance(node, tuple))
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    return {name: spec_of(name, shape, **sizes) for name, (_, shape) in zip(names, leaves, strict=True)}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_kernels_of_all_layers_and_the_words_are_cut_and_nothing_else_is(tmp_path, family):
    config = config_of(tmp_path, family, **even(family, vocab_size=64))
    shapes = models.shapes(config)
    specs, by_parts = (named_specs(shapes, **sizes) for sizes in ({"num_model": 4}, {"num_model": 4, "num_rows": 2}))
    is_word = {name for name in specs if "word" in name or "tok_emb" in name or "shared" in name}
    is_layer = {name for name in specs if any(part.isdigit() for part in name.split("/"))}
    kernels = {name for name in is_layer if name.endswith("/kernel")}
    assert len(is_word) == 1
    assert len(kernels) >= 4
    for name, spec in specs.items():
        if name in kernels | is_word:
            assert sorted(map(str, spec)) == ["None", "model"], name
            assert sorted(map(str, by_parts[name])) == ["model", "rows"], name
        elif name.endswith("/bias") and name.replace("bias", "kernel") in kernels:
            is_of_outputs = specs[name.replace("bias", "kernel")] == P(None, "model")
            assert spec == by_parts[name] == (P("model") if is_of_outputs else P(None)), name
        elif "relative_attention_bias" in name:
            assert spec == by_parts[name] == P(None, "model")  # of each head
        else:
            assert set(spec) <= {None}, name
            assert spec == by_parts[name]


def test_axes_before_those_of_a_layer_are_left_whole():
    for name, matrix in {
        "self/query/kernel": P(None, None, "model"),
        "output/dense/kernel": P(None, "model", None),
    }.items():
        assert spec_of(f"bert/encoder/layer/attention/{name}", (12, 64, 64), num_model=4) == matrix
    assert spec_of("bert/encoder/layer/attention/self/query/bias", (12, 64), num_model=4) == P(None, "model")
    assert spec_of("bert/encoder/layer/intermediate/dense/kernel", (24, 64, 256), num_rows=8) == P(None, None, "rows")


def test_words_that_do_not_divide_are_cut_along_their_vectors():
    name = "bert/embeddings/word_embeddings"
    assert spec_of(f"{name}/embedding", (30522, 768), num_model=4) == P(None, "model")
    assert spec_of(f"{name}/embedding_scale", (30522,), num_model=4) == P(None)
    assert spec_of(f"{name}/embedding", (30522, 768), num_model=2, num_rows=4) == P("model", "rows")


def test_scales_of_int8_follow_their_kernels(tiny_folder):
    params = flaxsent.load(tiny_folder("bert", **even("bert")), backend="native").params
    for mode, scale in {"weights": "kernel_scale", "dynamic": "product_scale"}.items():
        small = jax.tree.map(lambda leaf: leaf.shape, quantize(params, mode=mode))
        specs = named_specs(small, num_model=4)
        layer = "bert/encoder/layer/0"
        assert (
            specs[f"{layer}/attention/self/key/{scale}"] == specs[f"{layer}/intermediate/dense/{scale}"] == P("model")
        )
        assert specs[f"{layer}/output/dense/{scale}"] == P(None)
        assert specs["bert/embeddings/word_embeddings/embedding_scale"] == P("model")


@pytest.mark.parametrize("how", ["rows", "tensor", "tensor=0", "tensor=-1", "tensor=4,fsdp", "fsdp,", "fsdptensor=2"])
def test_another_word_is_refused(embedded, how):
    message = f"sharding='{how}'; expected data, fsdp, tensor=N or fsdp,tensor=N"
    for call in (lambda: flaxsent.Engine(embedded, sharding=how), lambda: TrainOptions(sharding=how)):
        with pytest.raises(FlaxsentError, match=message):
            call()


def test_what_devices_cannot_share_is_refused(tiny_folder):
    classifier = flaxsent.load(tiny_folder("bert"), backend="native")
    with pytest.raises(FlaxsentError, match="tensor=2: expected a divisor of the number of devices, which is 1"):
        flaxsent.Engine(classifier, sharding="tensor=2")
    with pytest.raises(FlaxsentError, match="tensor=2: expected a divisor of the number of devices, which is 1"):
        Trainer(classifier, Examples(["a"], [0]), options=TrainOptions(sharding="tensor=2"))
    with pytest.raises(FlaxsentError, match="tensor=2: expected a divisor of the number of heads, which is 3"):
        flaxsent.Engine(classifier, sharding="tensor=2", devices=[None] * 4)
    bart = models.config.read_config(json.dumps(FAMILIES["bart"].tiny_config | {"encoder_attention_heads": 6}))
    with pytest.raises(FlaxsentError, match="tensor=3: expected a divisor of the number of heads, which is 4"):
        sharding.check_heads(bart, sharding.parse("tensor=3"))
    message = r"tensor=3: expected a divisor of 50, which bert/encoder/layer/0/intermediate/dense/bias \(50,\) is cut"
    with pytest.raises(FlaxsentError, match=message):
        named_specs(models.shapes(classifier.config), num_model=3)


# scores


def check_fetched(one):
    """Each matrix that is cut is fetched once, those of stacked layers one by one, and no states are for that."""
    gathered = [types for name, types in one["collectives"] if name == "all-gather"]
    shapes = [[1, *shape[1:]] if len(shape) > 2 else shape for shape in one["fetched"]]
    assert sorted(gathered) == sorted(f"f32{json.dumps(shape, separators=(',', ':'))}" for shape in shapes)


def check_scores(family, found):
    for how, one in found.items():
        assert one["difference"] <= TOLERANCE, how
        # Of all bytes, beside 1/8 and 1/4: what is not cut, positions and the head, weighs more in a tiny model.
        shares = [held / one["whole"] for held in one["bytes"]]
        assert min(shares) == max(shares) <= (0.3 if "fsdp" in how else 0.4), how
        names = collections.Counter(name for name, _ in one["collectives"])
        check_fetched(one)
        num_sums = 2 * 2 + 2 * 3 if family.endswith("bart") else 2 * 2  # Megatron's two of a layer; a decoder has three
        assert names["all-reduce"] == (num_sums + 1 if "tensor" in how else 0), how  # and one for the words
        # ModernBERT's queries, keys and values, and the two halves of its feed-forward, are one kernel each, whose
        # parts do not end where those of the devices do.
        permuted = {"collective-permute"} if family == "modernbert" else set()
        assert names.keys() <= {"all-gather", "all-reduce"} | permuted, how


def stacked(tiny_folder, family, num_layers):
    return ("scores", tiny_folder(family, **even(family, num_hidden_layers=num_layers)), HOWS[::2], "stacked")


@pytest.fixture(scope="module")
def found(tiny_folder):
    """In one process: it takes some seconds to begin."""
    scores = ("scores", tiny_folder("bert", **even("bert")), HOWS)
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    folder = tiny_folder("bert", **even("bert", num_hidden_layers=1, **no_dropout))
    results = on_eight_devices(scores, stacked(tiny_folder, "bert", 4), ("training", folder, ["data", HOWS[-1]], 1))
    return dict(zip(["scores", "stacked", "training"], results, strict=True))


@pytest.mark.compiled_as_for_users
def test_scores_are_those_of_one_device_with_less_memory_and_megatrons_two_sums_a_layer(found):
    check_scores("bert", found["scores"])


@pytest.mark.compiled_as_for_users
@pytest.mark.slow
def test_so_they_are_in_every_family(tiny_folder):
    """In one process, which takes longer to begin than a family takes."""
    scores = [("scores", tiny_folder(family, **even(family)), HOWS) for family in NATIVE]
    for family, found in zip(NATIVE, on_eight_devices(*scores), strict=True):
        check_scores(family, found)
        assert {name for name, _ in found["fsdp"]["collectives"]} == {"all-gather"}, family


@pytest.mark.compiled_as_for_users
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["weights", "dynamic"])
def test_int8_is_cut_likewise(tiny_folder, mode):
    (found,) = on_eight_devices(("scores", tiny_folder("bert", **even("bert")), HOWS, mode))
    for how, one in found.items():
        assert one["difference"] <= TOLERANCE, how
        names = collections.Counter(name for name, _ in one["collectives"])
        # As in float32, and one for the scales of the words. Where rows meet int8 kernels as integers, devices agree on
        # the largest number of each row, twice a layer.
        num_sums = {"weights": 6, "dynamic": 10}[mode]
        assert names["all-reduce"] == (num_sums if "tensor" in how else 0), how


def check_stacked(found):
    for how, one in found.items():
        assert one["difference"] <= TOLERANCE, how
        check_fetched(one)


@pytest.mark.compiled_as_for_users
def test_layers_in_a_loop_are_fetched_one_by_one(found):
    check_stacked(found["stacked"])


@pytest.mark.compiled_as_for_users
@pytest.mark.slow
def test_so_are_layers_of_several_kinds(tiny_folder):
    check_stacked(*on_eight_devices(stacked(tiny_folder, "modernbert", 7)))


# training


def check_training(found):
    whole = found["data"]
    for how, one in found.items():
        # Sums over the rows in another order; Adam makes steps of size 1e-3 of gradients near 0, so parameters differ
        # more.
        np.testing.assert_allclose(one["losses"], whole["losses"], rtol=1e-5)
        for leaf, expected in zip(one["params"], whole["params"], strict=True):
            np.testing.assert_allclose(leaf, expected, atol=5e-4)
        of_params, of_average, of_moments = one["bytes"]
        assert of_params == of_average == [held // 2 for held in of_moments]
        shares = [held / most for held, most in zip(of_params, whole["bytes"][0], strict=True)]
        assert min(shares) == max(shares) <= {"data": 1, "tensor=4": 0.45}.get(how, 0.35), how


@pytest.mark.compiled_as_for_users
def test_training_cuts_params_averages_and_moments_and_comes_to_the_same(found):
    check_training(found["training"])


@pytest.mark.slow
@pytest.mark.parametrize("family", KINDS)
def test_training_is_the_same_under_each_sharding(tiny_folder, family):
    """With dropout, and each step in two parts."""
    layers = {"encoder_layers": 1, "decoder_layers": 1} if family == "bart" else {"num_hidden_layers": 1}
    folder = tiny_folder(family, **even(family) | layers)
    hows = HOWS if family == "bert" else HOWS[-1:]  # the last is both of the others at once
    (found,) = on_eight_devices(("training", folder, ["data", *hows], 2))
    check_training(found)


@pytest.mark.compiled_as_for_users
@pytest.mark.slow
def test_a_gradient_fetches_each_matrix_again_rather_than_keep_it(tiny_folder):
    ((num_cut, table, gathered),) = on_eight_devices(("fetches", tiny_folder("bert", **even("bert"))))
    words = [types for types in gathered if types == f"f32[{table[0]},{table[1]}]"]
    # The gradient of a table does not read it.
    assert (len(words), len(gathered)) == (1, 2 * (num_cut - 1) + 1)


def test_several_processes_share_the_rows_only(tiny_folder, monkeypatch):
    classifier = flaxsent.load(tiny_folder("bert"), backend="native")
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(FlaxsentError, match="sharding='fsdp': 2 processes share the rows only; expected data"):
        Trainer(classifier, Examples(["a"], [0]), options=TrainOptions(sharding="fsdp"))
