"""Every family of FlaxAuto against PyTorch, its known faults among them; and what is said where transformers is 5."""

import functools
import json
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import flaxsent
from flaxsent import models
from flaxsent.base import FlaxsentError
from flaxsent.checkpoint.weights import SAFETENSORS
from flaxsent.files import MissingPackageError
from flaxsent.models import flax_auto
from flaxsent.models.config import read_config
from flaxsent.packing import pack, pad
from flaxsent.transforms import lora
from flaxsent.transforms.quantize import quantize
from tests.conftest import others_slow, texts_of_lengths
from tests.models.reference import PAIRS, TOLERANCE, pytorch, pytorch_logits, pytorch_stages, with_padding_inside

FAMILIES = sorted(flax_auto.FAMILIES)
SINGLES = texts_of_lengths([0, 1, 7, 30])
VARIANTS = {
    "albert, inner layers": {"num_hidden_layers": 4, "num_hidden_groups": 2, "inner_group_num": 2},
    "albert, embeddings as wide as layers": {"embedding_size": 36, "type_vocab_size": 1},
    "bart, deep encoder": {"encoder_layers": 3, "decoder_layers": 1, "encoder_ffn_dim": 20, "decoder_ffn_dim": 70},
    "electra, embeddings as wide as layers": {"embedding_size": 36},
}
# What Flax and NumPy say of transformers' Flax classes.
quietly = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")


def read(tiny_folder, variant):
    folder = tiny_folder(variant.split(", ")[0], **VARIANTS.get(variant, {}))
    return read_config((folder / "config.json").read_text())


@quietly
@pytest.mark.flax_auto
def test_what_is_said_here_of_transformers_is_so():
    import transformers
    from transformers.modeling_flax_utils import ACT2FN

    assert set(flax_auto._ACTIVATIONS) == ACT2FN.keys()
    theirs = transformers.FLAX_MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.keys()
    assert {config.model_type for config in theirs} == set(flax_auto.FAMILIES)
    assert set(flax_auto.FAMILIES) <= models.FAMILIES.keys()


@quietly
@pytest.mark.flax_auto
@pytest.mark.parametrize("variant", [*FAMILIES, *VARIANTS])
def test_the_flax_module_has_parameters_of_the_same_names_and_shapes(tiny_folder, variant):
    config = read(tiny_folder, variant)
    module = flax_auto._module(config, jnp.dtype("float32"))
    inputs = flax_auto._encoder_decoder_inputs if variant.startswith(("bart", "mbart")) else flax_auto._encoder_inputs
    tokens = flaxsent.load(tiny_folder(config.family), backend="flax").tokenize(["so good"])
    arguments = inputs(config, module.config, jax.tree.map(jnp.asarray, tokens))
    with flax_auto._their_promotion():
        drawn = jax.eval_shape(lambda: module.init(jax.random.key(0), **arguments))["params"]
    assert jax.tree.map(lambda leaf: leaf.shape, drawn) == models.shapes(config)


def in_a_fresh_process(folder, code):
    code = f"import sys, flaxsent\nclassifier = flaxsent.load({str(folder)!r}, backend='flax')\n{code}"
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}  # XLA's lines of other machines' compile caches
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)


@pytest.mark.slow
@pytest.mark.flax_auto
def test_load_imports_nothing_and_the_first_call_says_nothing(tiny_folder):
    """transformers 4 tells all who build a Flax class that these are deprecated."""
    done = in_a_fresh_process(
        tiny_folder("bert"),
        "print({'flax', 'transformers', 'torch'} & sys.modules.keys())\n"
        "classifier.forward(classifier.params, classifier.tokenize(['so good']))\n"
        "print(sorted({'flax', 'transformers'} & sys.modules.keys()))",
    )
    assert done.stdout == "set()\n['flax', 'transformers']\n"
    assert done.stderr == ""


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.flax_auto
@quietly
@pytest.mark.parametrize("family", FAMILIES)
def test_flax_family_equals_pytorch_padded_and_under_jit(tiny_folder, family):
    folder = tiny_folder(family)
    classifier = flaxsent.load(folder, backend="flax")
    for texts in (SINGLES, PAIRS):  # [SEP] is BART's EOS: two a pair
        encodings, tokens = classifier.tokenizer.encode(texts), classifier.tokenize(texts)
        theirs = pytorch_stages(folder, encodings)
        logits = np.stack([stages[-1] for stages in theirs])
        assert 0.5 < np.abs(logits).max() < 20, "a random model of another size than trained ones"
        for forward in (classifier.forward, jax.jit(classifier.forward)):
            assert np.abs(forward(classifier.params, tokens) - logits).max() <= TOLERANCE
        hidden = np.asarray(classifier.hidden_states(classifier.params, tokens))
        for ours, (*_, last, _) in zip(hidden, theirs, strict=True):
            assert np.abs(ours[: len(last)] - last).max() <= TOLERANCE


@pytest.mark.slow
@quietly
@pytest.mark.flax_auto
@pytest.mark.parametrize(
    "variant", [*(name for name in FAMILIES if models.FAMILIES[name].is_native), "albert, inner layers"]
)
def test_flax_equals_native_for_pairs_under_jit(tiny_folder, variant):
    folder = tiny_folder(variant.split(", ")[0], **VARIANTS.get(variant, {}))
    native, flax = (flaxsent.load(folder, backend=backend) for backend in ("native", "flax"))
    tokens = native.tokenize(PAIRS)
    ours, theirs = (jax.jit(each.forward)(native.params, tokens) for each in (native, flax))
    assert np.abs(ours - theirs).max() <= TOLERANCE


@quietly
@pytest.mark.flax_auto
@pytest.mark.parametrize("family", [name for name in FAMILIES if not models.FAMILIES[name].is_native])
def test_embeddings_are_the_first_tokens_where_only_flax_has_the_family(tiny_folder, family):
    classifier = flaxsent.load(tiny_folder(family), backend="flax", dtype=jnp.float16)
    tokens = classifier.tokenize(SINGLES)
    found = classifier.embeddings(classifier.params, tokens, 1)
    hidden = classifier.hidden_states(classifier.params, tokens)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found[:, 0], hidden[:, 0].astype(jnp.float32))
    with pytest.raises(FlaxsentError, match=f"{family} takes one text a row; pass num_segments=1, not 2"):
        classifier.embeddings(classifier.params, tokens, 2)


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.flax_auto
@quietly
@pytest.mark.parametrize("family", FAMILIES)
def test_flax_family_saves_what_pytorch_opens(tiny_folder, tmp_path, family):
    import torch

    folder = tiny_folder(family)
    flaxsent.save(flaxsent.load(folder, backend="flax"), tmp_path)
    saved = dict(pytorch(tmp_path).named_parameters())
    for name, theirs in pytorch(folder).named_parameters():
        assert torch.equal(theirs, saved[name]), name


@pytest.mark.torch
def test_roformers_sinusoids_are_those_of_pytorch(tiny_folder):
    from transformers.models.roformer.modeling_roformer import RoFormerSinusoidalPositionalEmbedding

    config = read(tiny_folder, "roformer")
    (ours,) = models.computed_tensors(config).values()
    theirs = RoFormerSinusoidalPositionalEmbedding(config.num_positions, config.hidden_size // config.num_heads)
    made = theirs.create_weight() if hasattr(theirs, "create_weight") else theirs._init_weight()  # transformers 5, 4
    weight = theirs.weight if made is None else made
    np.testing.assert_allclose(ours, weight.detach().numpy(), atol=1e-6)  # PyTorch's are float32 throughout


@quietly
@pytest.mark.flax_auto
def test_big_bird_refuses_the_lengths_at_which_pytorch_attends_in_random_blocks(tiny_folder):
    classifier = flaxsent.load(tiny_folder("big_bird", num_random_blocks=2), backend="flax")
    tokens = classifier.tokenize(["good " * 40], length=37)
    with pytest.raises(FlaxsentError, match="random blocks beyond 36 tokens"):
        classifier.forward(classifier.params, tokens)


@pytest.mark.torch
@pytest.mark.flax_auto
@quietly
@pytest.mark.parametrize("family", ["roberta", "roberta-prelayernorm", "mbart", "bart", "big_bird"])
def test_padding_ids_inside_a_text_are_counted_as_by_pytorch(tiny_folder, family):
    folder = tiny_folder(family)
    classifier = flaxsent.load(folder, backend="flax")
    encodings = with_padding_inside(classifier.tokenizer.encode(SINGLES))
    ours = classifier.forward(classifier.params, pad(encodings))
    np.testing.assert_allclose(ours, pytorch_logits(folder, encodings), atol=TOLERANCE)


@pytest.mark.flax_auto
def test_rows_of_several_texts_and_ids_without_embeddings_are_refused(tiny_folder):
    classifier = flaxsent.load(tiny_folder("bert"), backend="flax")
    packed, _ = pack(classifier.tokenizer.encode(["so", "good"]), row_length=16)
    with pytest.raises(FlaxsentError, match="more than one text"):
        classifier.forward(classifier.params, packed)
    tokens = classifier.tokenize(["so"])
    with pytest.raises(FlaxsentError, match="input_ids are 61 to 61; expected 0 to 60"):
        classifier.forward(classifier.params, tokens._replace(input_ids=np.full_like(tokens.input_ids, 61)))


@pytest.mark.skipif(not flax_auto.is_installed(), reason="needs Flax")
@pytest.mark.parametrize(
    ("family", "changes", "dtype"),
    [
        ("mpnet", {}, "float32"),
        ("bert", {"hidden_act": "mish"}, "float32"),
        ("distilbert", {}, "float16"),
        ("distilbert", {"sinusoidal_pos_embds": True}, "float32"),
    ],
)
def test_what_transformers_classes_do_not_have_flaxsents_own_computes(tiny_folder, family, changes, dtype):
    folder = tiny_folder(family, **changes)
    flax, native = (flaxsent.load(folder, backend=backend, dtype=dtype) for backend in ("flax", "native"))
    tokens = native.tokenize(SINGLES)
    assert not flax_auto.uses_theirs(native.config, jnp.dtype(dtype))
    ours, theirs = (jax.jit(each.forward)(native.params, tokens) for each in (flax, native))
    # float16 has 11 bits, and XLA rounds where it does not fuse.
    np.testing.assert_allclose(ours, theirs, atol=TOLERANCE if dtype == "float32" else 2e-2)


@pytest.mark.slow
@quietly
@pytest.mark.flax_auto
@pytest.mark.parametrize("family", ["bart", "mbart"])
def test_padding_with_the_id_of_eos_is_not_pooled(tiny_folder, family):
    classifier = flaxsent.load(tiny_folder(family), backend="flax")
    tokens = classifier.tokenize(SINGLES)
    eos = classifier.config.get("eos_token_id")
    padded = tokens._replace(input_ids=np.where(tokens.attention_mask, tokens.input_ids, eos))
    ours, theirs = (np.asarray(classifier.forward(classifier.params, one)) for one in (padded, tokens))
    np.testing.assert_allclose(ours, theirs, atol=TOLERANCE)


def in_int8(classifier, *, mode):
    return quantize(classifier.params, mode=mode)


def with_adapters(classifier):
    params = lora.add(classifier.params, config=classifier.config, key=jax.random.key(0))
    rng = np.random.default_rng(0)  # lora_b is 0 in new ones
    return jax.tree.map_with_path(
        lambda path, leaf: rng.normal(size=leaf.shape).astype(np.float32) if path[-1].key == "lora_b" else leaf, params
    )


CHANGED = {
    "int8": functools.partial(in_int8, mode="weights"),
    "int8, dynamic": functools.partial(in_int8, mode="dynamic"),
    "adapters": with_adapters,
}


@quietly
@pytest.mark.skipif(not flax_auto.is_installed(), reason="needs Flax")
@pytest.mark.parametrize("changed", CHANGED)
@pytest.mark.parametrize("family", others_slow(["bert"], ["bert", "bart", "roberta", "albert"]))
def test_params_that_transformers_classes_cannot_read_flaxsents_own_computes(tiny_folder, family, changed):
    classifier, native = (flaxsent.load(tiny_folder(family), backend=backend) for backend in ("flax", "native"))
    params, tokens = CHANGED[changed](native), native.tokenize(SINGLES)
    for name in ("forward", "hidden_states"):
        plain, expected = (np.asarray(getattr(native, name)(tree, tokens)) for tree in (native.params, params))
        assert np.abs(expected - plain).max() > 1e-3
        # Of rows in int8 a sum in another order can move an integer by one; there are 60 and more of them.
        atol = 1e-2 if changed == "int8, dynamic" else TOLERANCE
        np.testing.assert_allclose(getattr(classifier, name)(params, tokens), expected, atol=atol)


@quietly
@pytest.mark.flax_auto
def test_where_there_is_no_encoder_of_flaxsents_own_such_params_are_refused(tiny_folder):
    classifier = flaxsent.load(tiny_folder("big_bird"))
    with pytest.raises(FlaxsentError, match="big_bird has no encoder of flaxsent's own, which params in int8"):
        classifier.forward(quantize(classifier.params), classifier.tokenize(["so good"]))


def test_an_activation_that_no_class_has_is_refused_by_name(tmp_path):
    config = models.FAMILIES["big_bird"].tiny_config | {"hidden_act": "mish"}
    with pytest.raises(FlaxsentError, match="'mish'; the Flax classes have gelu, relu"):
        flax_auto.check(read_config(json.dumps(config)), jnp.dtype("float32"))


@pytest.mark.skipif(flax_auto.has_theirs(), reason="transformers 4 with Flax is here")
def test_where_transformers_is_5_the_command_that_installs_4_is_said(tmp_path):
    config = models.FAMILIES["big_bird"].tiny_config
    with pytest.raises(MissingPackageError, match=r'pip install "flaxsent\[flax-auto\]"'):
        flax_auto.check(read_config(json.dumps(config)), jnp.dtype("float32"))


@pytest.mark.torch
@pytest.mark.flax_auto
@quietly
def test_rows_far_from_zero_are_normalized_as_in_pytorch(tiny_folder, tmp_path):
    """The embeddings of a checkpoint, moved by 64: LayerNorm takes the mean away, if it does not lose it first."""
    shutil.copytree(tiny_folder("bert"), tmp_path, dirs_exist_ok=True)
    tensors = safetensors.numpy.load_file(tmp_path / SAFETENSORS)
    tensors["bert.embeddings.word_embeddings.weight"] += np.float32(64)
    safetensors.numpy.save_file(tensors, tmp_path / SAFETENSORS, metadata={"format": "pt"})
    classifier = flaxsent.load(tmp_path, backend="flax")
    tokens = classifier.tokenize(SINGLES)
    theirs = np.stack([stages[-1] for stages in pytorch_stages(tmp_path, classifier.tokenizer.encode(SINGLES))])
    assert np.abs(classifier.forward(classifier.params, tokens) - theirs).max() <= TOLERANCE
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flax_auto, "_centre_layer_norms", lambda call, args, kwargs, context: call(*args, **kwargs))
        uncentred = classifier.forward(classifier.params, tokens)
    assert np.abs(uncentred - theirs).max() > 2 * TOLERANCE, "the fault is there to be worked around"


def test_roberta_positions_start_behind_the_padding_index(tiny_folder):
    classifier = flaxsent.load(tiny_folder("roberta"), backend="native")
    assert classifier.tokenize(["good"]).position_ids.tolist() == [[2, 3, 4]]
    assert classifier.config.max_length == 40
