"""ModernBERT against PyTorch: each key of config.json that changes the numbers, as transformers 4 and 5 spell it."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
import safetensors.numpy

import flaxsent
from flaxsent import models as encoders
from flaxsent.parity import compare as parity
from flaxsent.models.config import read_config
from flaxsent.models import modernbert
from flaxsent.packing import pad
from flaxsent.base import Encodings
from tests.conftest import texts_of_lengths
from tests.test_deberta import padded_and_packed_logits
from tests.test_parity import PAIRS, SINGLES, TOLERANCE, largest_difference, pytorch, pytorch_stages

MEAN = {"classifier_pooling": "mean"}
VARIANTS = {
    "cls": {},
    "mean": MEAN,
    "biases of attention and head": {"attention_bias": True, "classifier_bias": True},
    "biases of feed-forward and norms": MEAN | {"mlp_bias": True, "norm_bias": True},
    "every other layer global": {"global_attn_every_n_layers": 2, "local_attention": 5},
    "all layers global": MEAN | {"global_attn_every_n_layers": 1},
    "a token sees itself": {"global_attn_every_n_layers": 9, "local_attention": 1},
    "windows wider than texts": {"local_attention": 128},
    "thetas": {"global_rope_theta": 50.0, "local_rope_theta": 3},
    "another epsilon and activations": {
        "norm_eps": 0.1,
        "hidden_activation": "silu",
        "classifier_activation": "relu",
    },
    "one layer, 18 heads": {"num_hidden_layers": 1, "num_attention_heads": 18},
    "keys that mean nothing here": {
        "position_embedding_type": "sans_pos",  # in mmBERT's and Ettin's
        "layer_norm_eps": 0.1,  # in ModernBERT's
        "rope_theta": 7.0,
        "deterministic_flash_attn": True,
        "decoder_bias": False,
        "sparse_prediction": True,
    },
}
each_variant = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())


def read(**changes):
    return read_config(json.dumps({"model_type": "modernbert"} | parity.CONFIGS["modernbert"] | changes))


@pytest.mark.slow
@pytest.mark.torch
@each_variant
def test_logits_equal_pytorch_padded_and_packed(tiny_folder, changes):
    folder = tiny_folder("modernbert", **changes)
    classifier = flaxsent.load(folder)
    texts = SINGLES + PAIRS
    theirs = pytorch_stages(folder, classifier.tokenize(texts))["logits"]
    for ours in padded_and_packed_logits(classifier, texts, row_length=67):
        assert np.abs(ours - theirs).max() <= TOLERANCE
    assert 0.5 < np.abs(theirs).max() < 20, "a random model of another size than trained ones"


def rope(full_attention, sliding_attention):
    thetas = {"full_attention": full_attention, "sliding_attention": sliding_attention}
    return {"rope_parameters": {kind: {"rope_theta": theta, "rope_type": "default"} for kind, theta in thetas.items()}}


FULL, SLIDING = "full_attention", "sliding_attention"
OF_4 = {"global_rope_theta": 50, "local_rope_theta": 3.0, "global_attn_every_n_layers": 2}
OF_5 = rope(50.0, 3) | {"layer_types": [FULL, SLIDING, FULL, SLIDING]}
SPELLINGS = {
    "of transformers 5": (OF_4, OF_5),
    "of both": (OF_4, OF_4 | OF_5),
    "defaults": ({}, rope(160_000.0, 10_000.0) | {"layer_types": [FULL, SLIDING, SLIDING, FULL], "sliding_window": 4}),
    "one theta by its default": ({"local_rope_theta": 3}, {"rope_parameters": {SLIDING: {"rope_theta": 3}}}),
    "null for the same": ({"local_rope_theta": 160_000.0}, {"local_rope_theta": None}),
    "null for the same, given": (
        {"global_rope_theta": 50, "local_rope_theta": 50},
        {"global_rope_theta": 50, "local_rope_theta": None},
    ),
    "no scaling": ({}, {"rope_scaling": {"rope_type": "default"}, "partial_rotary_factor": 1.0, "head_dim": 12}),
}


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize(("plain", "other"), SPELLINGS.values(), ids=SPELLINGS.keys())
def test_both_spellings_give_pytorchs_logits(tiny_folder, plain, other):
    folder = tiny_folder("modernbert", **plain)
    classifier = flaxsent.load(tiny_folder("modernbert", **other))
    tokens = classifier.tokenize(SINGLES)
    theirs = pytorch_stages(folder, tokens)["logits"]
    assert np.abs(jax.jit(classifier.forward)(classifier.params, tokens) - theirs).max() <= TOLERANCE


@pytest.mark.parametrize("changes", [*VARIANTS.values(), OF_4, {"local_rope_theta": 50.0}], ids=str)
def test_config_that_transformers_saves_means_the_same(changes):
    """In the spelling of whichever transformers is installed."""
    from transformers import ModernBertConfig

    saved = read_config(ModernBertConfig(**parity.CONFIGS["modernbert"] | changes).to_json_string())
    assert modernbert._options(saved) == modernbert._options(read(**changes))
    assert dataclasses.replace(saved, json="") == dataclasses.replace(read(**changes), json="")


def test_defaults_are_those_of_transformers():
    from transformers import ModernBertConfig

    theirs = ModernBertConfig().to_dict()
    needed = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    least = {key: theirs[key] for key in (*needed, "max_position_embeddings", "model_type")}
    ours, whole = read_config(json.dumps(least)), read_config(json.dumps(theirs))
    assert modernbert._options(ours) == modernbert._options(whole)
    assert dataclasses.replace(ours, json="") == dataclasses.replace(whole, json="")


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, MEAN], ids=["cls", "mean"])
def test_a_text_alone_equals_the_text_padded_and_packed(tiny_folder, changes):
    """Texts are longer than the windows, and short ones lie within a window of their neighbours in the row."""
    classifier = flaxsent.load(tiny_folder("modernbert", **changes))
    texts = texts_of_lengths([0, 5, 38, 0], seed=2)
    forward = jax.jit(classifier.forward)
    alone = np.concatenate([forward(classifier.params, classifier.tokenize([text])) for text in texts])
    for ours in padded_and_packed_logits(classifier, texts, row_length=60):
        assert np.abs(ours - alone).max() <= TOLERANCE


@pytest.mark.torch
def test_one_token_equals_pytorch(tiny_folder):
    import torch

    folder = tiny_folder("modernbert", **MEAN)
    classifier = flaxsent.load(folder)
    tokens = classifier.pad(Encodings([[5]], [[0]], 0))
    with torch.no_grad():
        theirs = pytorch(folder)(torch.tensor([[5]])).logits.numpy()
    assert np.abs(jax.jit(classifier.forward)(classifier.params, tokens) - theirs).max() <= TOLERANCE


@pytest.mark.torch
def test_a_thousand_tokens_equal_pytorch_at_every_stage(tiny_folder):
    """Windows of a real size, and angles of a thousand radians, where float32 has few digits after the point left."""
    folder = tiny_folder("modernbert", max_position_embeddings=1000, local_attention=128)
    classifier = flaxsent.load(folder)
    tokens = classifier.tokenize(texts_of_lengths([998, 700]))
    assert tokens.input_ids.shape == (2, 1000)
    row_states = functools.partial(modernbert.all_hidden_states, classifier.params, config=classifier.config)
    ours = jax.jit(jax.vmap(row_states))(tokens)
    theirs = pytorch_stages(folder, tokens)
    assert len(ours) == len(theirs) - 1
    for index, state in enumerate(ours):
        stage = f"layer {index}"
        assert largest_difference(state, theirs[stage], tokens, stage) <= TOLERANCE, stage


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 0), ("float16", 0.03), ("bfloat16", 0.3)])
def test_padding_and_halves_give_numbers(tiny_folder, dtype, tolerance):
    """Rows: nothing but padding, one token alone, a long text."""
    folder = tiny_folder("modernbert", **MEAN)
    tokens = pad(Encodings([[], [5], list(range(40))], [[], [0], [0] * 40], 0))

    @jax.jit
    def both(params):
        return classifier.hidden_states(params, tokens), classifier.forward(params, tokens)

    classifier = flaxsent.load(folder)
    _, exact = both(classifier.params)
    hidden, logits = both(flaxsent.load(folder, dtype=dtype).params)
    assert np.isfinite(np.asarray(hidden, np.float32)).all()
    assert np.isfinite(logits).all()
    assert hidden.dtype == dtype
    assert logits.dtype == np.float32
    assert np.abs(logits - exact)[1:].max() <= tolerance


@pytest.mark.slow
def test_gradients_are_numbers_with_padding_and_missing_texts(tiny_folder):
    classifier = flaxsent.load(tiny_folder("modernbert", **MEAN))
    tokens = pad(Encodings([[], [5, 6]], [[], [0, 0]], 0), length=9)
    row = functools.partial(encoders.forward, config=classifier.config, num_segments=3)

    @jax.jit
    @jax.grad
    def gradients(params):
        return (jax.vmap(row, in_axes=(None, 0))(params, tokens) ** 2).sum()

    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients(classifier.params)))


BIASES = dict.fromkeys(("attention_bias", "mlp_bias", "norm_bias", "classifier_bias"), True)


@pytest.mark.torch
@pytest.mark.parametrize("changes", [{}, BIASES], ids=["no biases", "all biases"])
def test_saved_folder_opens_in_pytorch_bit_for_bit(tiny_folder, tmp_path, changes):
    folder = tiny_folder("modernbert", **changes)
    flaxsent.save(flaxsent.load(folder), tmp_path)
    ours, theirs = pytorch(tmp_path).state_dict(), pytorch(folder).state_dict()  # `pytorch` refuses any left over
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in theirs)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [
        "ModernBertForSequenceClassification"
    ]


def test_a_masked_language_model_keeps_its_head_and_gets_a_classifier(tiny_folder, tmp_path):
    """As in PyTorch: `head.dense` and `head.norm` are pretrained, the classifier is drawn."""
    folder = tiny_folder("modernbert")
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("classifier")}
    tensors["decoder.bias"] = np.zeros(61, np.float32)
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    given, drawn = flaxsent.load(folder).params, flaxsent.load(tmp_path, labels=["a", "b"]).params
    jax.tree.map(np.testing.assert_array_equal, [drawn["model"], drawn["head"]], [given["model"], given["head"]])
    assert drawn["classifier"]["kernel"].shape == (36, 2)


RATES = {"embedding_dropout": 0, "attention_dropout": 1, "mlp_dropout": 1, "classifier_dropout": 5}


@pytest.mark.slow
@pytest.mark.parametrize("rate", RATES)
def test_each_dropout_acts_by_itself_from_its_place_on(tiny_folder, rate):
    classifier = flaxsent.load(tiny_folder("modernbert", **{rate: 0.3}))
    row = jax.tree.map(lambda rows: rows[0], classifier.tokenize(texts_of_lengths([38])))

    @jax.jit
    def stages(key):
        states = modernbert.all_hidden_states(classifier.params, row, config=classifier.config, key=key)
        logits = modernbert.forward(classifier.params, row, config=classifier.config, num_segments=1, key=key)
        return [*states, logits]

    exact, first, again, other = (stages(key) for key in (None, *map(jax.random.key, (0, 0, 1))))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    for dropped in (exact, other):
        touched = [bool(np.abs(a - b).max() > 0.01) for a, b in zip(first, dropped, strict=True)]
        assert touched == [index >= RATES[rate] for index in range(6)]


REFUSED = [
    {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    {"rope_scaling": {"rope_type": "default", "rope_theta": 3.0}},
    {"rope_scaling": "linear"},
    {"rope_parameters": {FULL: {"rope_type": "yarn", "rope_theta": 3.0, "factor": 2.0}}},
    {"rope_parameters": {FULL: {"rope_theta": 3.0, "partial_rotary_factor": 0.5}}},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 3.0}},
    {"rope_parameters": {"chunked_attention": {"rope_theta": 3.0}}},
    {"rope_parameters": {FULL: None}},
    {"rope_parameters": [3.0]},
    {"global_rope_theta": None},
    {"global_rope_theta": 0},
    {"global_rope_theta": "1e4"},
    {"global_rope_theta": 50.0, "rope_parameters": {FULL: {"rope_theta": 3.0}}},
    {"local_rope_theta": -1.0},
    {"local_rope_theta": 1e-40},
    {"local_rope_theta": 1e400},
    {"local_rope_theta": True},
    {"layer_types": [FULL] * 3},
    {"layer_types": [FULL, FULL, FULL, "linear_attention"]},
    {"layer_types": [FULL, FULL, FULL, [FULL]]},
    {"layer_types": FULL},
    {"layer_types": [FULL] * 4, "global_attn_every_n_layers": 3},
    {"global_attn_every_n_layers": 0},
    {"local_attention": 0},
    {"local_attention": 8.0},
    {"sliding_window": 8},
    {"head_dim": 6},
    {"partial_rotary_factor": 0.5},
    {"attention_bias": 1},
    {"mlp_bias": "no"},
    {"norm_bias": 0.0},
    {"classifier_bias": []},
    {"classifier_pooling": "max"},
    {"classifier_activation": "maxout"},
    {"mlp_dropout": 1},
]


@pytest.mark.parametrize("changes", REFUSED, ids=str)
def test_what_is_not_implemented_is_refused_by_name(changes):
    with pytest.raises(ValueError, match=f"config.json has {next(iter(changes))}="):
        encoders.shapes(read(**changes))


def test_heads_of_odd_size_are_refused():
    with pytest.raises(ValueError, match=r"config\.json has heads of size 9; expected an even one"):
        encoders.shapes(read(num_attention_heads=4))


@pytest.mark.parametrize("key", ["embedding_dropout", "attention_dropout", "classifier_dropout", "norm_eps"])
def test_impossible_rates_are_refused_by_name(key):
    with pytest.raises(ValueError, match=rf"config\.json has {key}=1\.5; expected a"):
        read(**{key: 1.5})
