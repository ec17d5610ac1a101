"""Every native family against PyTorch and against itself: each key of config.json that changes the numbers."""

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxsent
from flaxsent import models
from flaxsent.base import Encodings, FlaxsentError, Tokens
from flaxsent.models import bart, deberta, modernbert
from flaxsent.models.activations import ACTIVATIONS
from flaxsent.models.config import read_config
from flaxsent.packing import pack, pad
from flaxsent.parity.random_checkpoints import letter_tokenizer
from tests.conftest import NATIVE, others_slow, texts_of_lengths
from tests.models.reference import (
    PAIRS,
    SINGLES,
    TOLERANCE,
    all_states,
    padded_and_packed_logits,
    pytorch,
    pytorch_logits,
    pytorch_stages,
    stages_of_row,
    with_padding_inside,
)

pytestmark = pytest.mark.each_of_all
FULL, SLIDING = "full_attention", "sliding_attention"
INNER = {"num_hidden_layers": 4, "num_hidden_groups": 2, "inner_group_num": 2}
MEAN = {"classifier_pooling": "mean"}
_BART = {
    "as it is": {},
    "scaled": {"scale_embedding": True},
    "not scaled": {"scale_embedding": False},
    "deep encoder": {
        "encoder_layers": 3,
        "decoder_layers": 1,
        "encoder_attention_heads": 6,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 20,
        "decoder_ffn_dim": 70,
    },
    "relu": {"activation_function": "relu", "decoder_start_token_id": 0},
    "gelu_new": {"activation_function": "gelu_new", "decoder_start_token_id": 60},
    "padding like EOS": {"pad_token_id": 3, "eos_token_id": 2},
    "EOS is the first token": {"eos_token_id": 2},
}
_ACTIVATIONS = ("gelu", "gelu_new", "relu", "silu", "quick_gelu", "mish", "tanh", "relu6")
VARIANTS = {
    "albert": {
        "one group": {},
        "a group a layer": {"num_hidden_groups": 3},
        "groups of two sizes": {"num_hidden_groups": 2},
        "five layers in three groups": {"num_hidden_layers": 5, "num_hidden_groups": 3},
        "two inner layers": INNER,
        "embeddings as wide as layers": {"embedding_size": 36, "type_vocab_size": 1},
        "another epsilon and activation": {"layer_norm_eps": 0.01, "hidden_act": "relu"},
        "one layer, 36 heads": {"num_hidden_layers": 1, "num_attention_heads": 36, "hidden_act": "gelu"},
    },
    "bart": _BART,
    "bert": {activation: {"hidden_act": activation} for activation in _ACTIVATIONS},
    "camembert": {"as it is": {}},
    "deberta-v2": {
        "v3": {},
        "v2": {"conv_kernel_size": 3, "conv_act": "gelu"},
        "types": {"type_vocab_size": 2, "position_biased_input": True},
        "no c2p": {"pos_att_type": "p2c"},
        "no p2c": {"pos_att_type": ["c2p"]},
        "neither": {"pos_att_type": None, "share_att_key": False},
        "own projections": {"pos_att_type": "C2P | p2c", "share_att_key": False},
        "own projection c2p": {"pos_att_type": ["c2p"], "share_att_key": False, "position_buckets": -1},
        "own projection p2c": {"pos_att_type": "p2c", "share_att_key": False, "position_buckets": 8},
        "no buckets, 11 distances": {"position_buckets": -1, "max_relative_positions": 11},
        "buckets to 11": {"max_relative_positions": 11, "hidden_act": "gelu_new", "pooler_hidden_act": "tanh"},
        "buckets beyond the positions": {"position_buckets": 96, "type_vocab_size": 1},
        "2 buckets, plain": {"position_buckets": 2, "norm_rel_ebd": "none"},
        "absolute": {"relative_attention": False, "position_biased_input": True},
        "absolute, own projections": {"relative_attention": False, "share_att_key": False, "norm_rel_ebd": "none"},
        "small embeddings": {"embedding_size": 20, "position_biased_input": True, "type_vocab_size": 2},
        "grouped convolution": {"conv_kernel_size": 5, "conv_groups": 4, "layer_norm_eps": 0.01},
        "convolution of one": {"conv_kernel_size": 1, "conv_act": "relu"},
        "convolution in the last layer": {"num_hidden_layers": 1, "conv_kernel_size": 3},
        "wide convolution": {"conv_kernel_size": 41, "conv_groups": 36},
        "all at once": {
            "conv_kernel_size": 3,
            "share_att_key": False,
            "embedding_size": 20,
            "position_biased_input": True,
            "type_vocab_size": 2,
        },
    },
    "distilbert": {"as it is": {}, "another activation": {"activation": "relu"}},
    "electra": {"as it is": {}, "embeddings as wide as layers": {"embedding_size": 36}},
    "mbart": _BART,
    "modernbert": {
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
    },
    "mpnet": {
        "plain": {},
        "more buckets than are used": {"relative_attention_num_buckets": 40},
        "another epsilon and activation": {"layer_norm_eps": 0.01, "hidden_act": "relu"},
        "one layer, 18 heads": {"num_hidden_layers": 1, "num_attention_heads": 18},
        "keys that mean nothing here": {"type_vocab_size": 2, "classifier_dropout": 0.5},
    },
    "roberta": {"as it is": {}},
    "xlm-roberta": {"as it is": {}},
}
BASE = {
    "deberta-v2": {"num_hidden_layers": 2},  # the one where the convolution is, and one after it
    "mpnet": {"num_hidden_layers": 2, "max_position_embeddings": 302},  # the last bucket begins at a distance of 91
}
"""What all variants of a family have."""
LONG_TEXTS = [*texts_of_lengths([0, 298, 146, 146, 7]), ("good", "so bad"), *texts_of_lengths([1, 40], seed=1)]

# What is added to a family's tiny config where every option that may change a shape or an index is to be on.
RICH = {
    "albert": INNER,
    "deberta-v2": {"num_hidden_layers": 2, "conv_kernel_size": 3, "share_att_key": False},
    "modernbert": MEAN,
}

# Those that differ in their layers; the others are made of BERT's or BART's, and every family is compared with PyTorch.
UNLIKE = ("albert", "bart", "bert", "deberta-v2", "mbart", "modernbert", "mpnet")

each_family = pytest.mark.parametrize("family", NATIVE)


def of_each(table, *, slow_from=None):
    """A test for each entry of a table of the families; those of a family are slow from one on."""
    cases = [
        pytest.param(family, entry, id=f"{family}-{entry}", marks=[pytest.mark.slow] if index in later else [])
        for family, entries in table.items()
        for later in [() if slow_from is None else range(slow_from, len(entries))]
        for index, entry in enumerate(entries)
    ]
    return pytest.mark.parametrize(("family", "entry"), cases)


def read(family, **changes):
    return read_config(json.dumps(models.FAMILIES[family].tiny_config | changes))


def test_every_native_family_is_tested():
    assert [*VARIANTS] == NATIVE


@pytest.mark.torch
@pytest.mark.parametrize("texts", [SINGLES, PAIRS], ids=["single", "pair"])
@each_family
def test_every_stage_equals_pytorch(tiny_folder, family, texts):
    changes = VARIANTS[family].get("all at once", {})
    folder = tiny_folder(family, **changes)
    classifier = flaxsent.load(folder, backend="native")
    encodings = classifier.tokenizer.encode(texts)
    states = jax.jit(jax.vmap(functools.partial(all_states, classifier.params, config=classifier.config)))(
        pad(encodings)
    )
    for text, theirs in enumerate(pytorch_stages(folder, encodings)):
        assert len(theirs) == len(states) + 1
        for index, (ours, state) in enumerate(zip(states, theirs[:-1], strict=True)):
            assert np.abs(ours[text, : len(state)] - state).max() <= TOLERANCE, f"layer {index}"


@pytest.mark.torch
@of_each(VARIANTS, slow_from=1)
def test_logits_equal_pytorch_padded_and_packed(tiny_folder, family, entry):
    folder = tiny_folder(family, **BASE.get(family, {}) | VARIANTS[family][entry])
    classifier = flaxsent.load(folder, backend="native")
    encodings = classifier.tokenizer.encode(LONG_TEXTS if family == "mpnet" else SINGLES + PAIRS)
    theirs = pytorch_logits(folder, encodings)
    assert 0.5 < np.abs(theirs).max() < 20, "a random model of another size than trained ones"
    for ours in padded_and_packed_logits(classifier, encodings, row_length=300 if family == "mpnet" else 67):
        assert np.abs(ours - theirs).max() <= TOLERANCE


@pytest.mark.torch
@each_family
def test_one_token_equals_pytorch(tiny_folder, family):
    folder = tiny_folder(family, **RICH.get(family, {}))
    classifier = flaxsent.load(folder, backend="native")
    first, eos = classifier.config.first_position, 3  # BART wants an EOS
    encodings = Encodings([[eos]], [[0]], first_position=first)
    logits = jax.jit(classifier.forward)(classifier.params, pad(encodings))
    assert np.abs(logits - pytorch_logits(folder, encodings)).max() <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("family", [*UNLIKE, "modernbert, cls"])
def test_a_text_alone_equals_the_text_padded_and_packed(tiny_folder, family):
    """Texts are longer than ModernBERT's windows, and short ones lie within a window of their neighbours in the row."""
    family, *without = family.split(", ")
    classifier = flaxsent.load(tiny_folder(family, **({} if without else RICH.get(family, {}))), backend="native")
    texts = texts_of_lengths([0, 5, 38, 5, 0], seed=2)
    forward = jax.jit(classifier.forward)
    alone = np.concatenate([forward(classifier.params, classifier.tokenize([text])) for text in texts])
    for ours in padded_and_packed_logits(classifier, classifier.tokenizer.encode(texts), row_length=60):
        assert np.abs(ours - alone).max() <= TOLERANCE


def packed_row(classifier, lengths=(0, 5, 20), row_length=40):
    """One row of several texts, padded at its end, and how many texts it has room for: one more."""
    tokens, _ = pack(classifier.tokenizer.encode(texts_of_lengths(lengths)), row_length=row_length)
    return jax.tree.map(lambda rows: rows[0], tokens), len(lengths) + 1


@pytest.mark.parametrize("family", [*NATIVE, "modernbert, mean"])
def test_forward_is_head_of_encode_of_embed(tiny_folder, family):
    """What `encode` gives for the texts is what it gives for their tokens: the last layer is cut short, not changed."""
    family, *mean = family.split(", ")
    classifier = flaxsent.load(tiny_folder(family, **(MEAN if mean else {})), backend="native")
    params, config = classifier.params, classifier.config
    row, num_segments = packed_row(classifier)

    @jax.jit
    def stages(params, row):
        embedded = models.embed(params, row, config=config)
        states = models.encode(params, embedded, row, config=config)
        read_by_head = models.encode(params, embedded, row, config=config, num_segments=num_segments)[-1]
        return (
            states[-1],
            read_by_head,
            models.head(params, read_by_head, config=config),
            models.embeddings(params, row, config=config, num_segments=num_segments),
            models.hidden_states(params, row, config=config),
            models.forward(params, row, config=config, num_segments=num_segments),
        )

    last, read_by_head, logits, embeddings, hidden, forward = stages(params, row)
    assert logits.shape == (num_segments, config.num_labels)
    np.testing.assert_array_equal(logits[:-1], forward[:-1])
    np.testing.assert_array_equal(embeddings[:-1], read_by_head[:-1])
    np.testing.assert_array_equal(hidden, last)
    assert embeddings.dtype == np.float32
    for segment in range(num_segments - 1):
        places = np.flatnonzero(row.segment_ids == segment + 1)
        at = [places[-1]] if "bart" in family else places if mean else [places[0]]
        assert np.abs(np.asarray(last)[at].mean(axis=0) - read_by_head[segment]).max() <= TOLERANCE


@pytest.mark.parametrize("family", others_slow(["bert"], ["bart", "deberta-v2", "modernbert"]))
def test_gradient_at_the_embeddings_is_that_of_differences(tiny_folder, family):
    """Central differences of 2e-2 in float32 are right to a hundredth where the third derivative is of size 1."""
    classifier = flaxsent.load(tiny_folder(family, **MEAN if family == "modernbert" else {}), backend="native")
    params, config = classifier.params, classifier.config
    row, num_segments = packed_row(classifier)

    def score(embedded):
        last = models.encode(params, embedded, row, config=config, num_segments=num_segments)[-1]
        return models.head(params, last, config=config)[1, 0]

    embedded = models.embed(params, row, config=config)
    gradient, score = jax.jit(jax.grad(score))(embedded), jax.jit(score)
    is_own = row.segment_ids == 2
    for leaf in map(np.asarray, jax.tree.leaves(gradient)):
        assert np.isfinite(leaf).all()
        assert np.abs(leaf[is_own]).max() > 1e-3
        assert not np.any(leaf[~is_own]), "a text does not see its neighbours in the row"
    directions = jax.tree.map(lambda leaf: leaf / jnp.linalg.norm(leaf), gradient)
    moved = [jax.tree.map(lambda x, d, step=step: x + step * d, embedded, directions) for step in (0.02, -0.02)]
    slope = (score(moved[0]) - score(moved[1])) / 0.04
    expected = sum(float(jnp.vdot(*pair)) for pair in zip(*map(jax.tree.leaves, (gradient, directions)), strict=True))
    assert slope == pytest.approx(expected, rel=0.01)


@pytest.mark.slow
@each_family
def test_padding_and_halves_give_numbers(tiny_folder, family):
    """Rows: nothing but padding, one token alone, a long text.

    float16 has 11 bits, bfloat16 8: of a logit of 10, the last is 0.01 and 0.06, and several roundings add up.
    """
    folder = tiny_folder(family, **RICH.get(family, {}))
    exact = None
    for dtype, tolerance in (("float32", None), ("float16", 0.03), ("bfloat16", 0.3)):
        classifier = flaxsent.load(folder, backend="native", dtype=dtype)
        first = classifier.config.first_position
        tokens = pad(Encodings([[], [5], list(range(40))], [[], [0], [0] * 40], first_position=first))
        both = jax.jit(
            lambda params, of=classifier, tokens=tokens: (of.hidden_states(params, tokens), of.forward(params, tokens))
        )
        hidden, logits = both(classifier.params)
        assert np.isfinite(np.asarray(hidden, np.float32)).all()
        assert np.isfinite(logits).all()
        assert hidden.dtype == dtype
        assert logits.dtype == np.float32
        if tolerance is None:
            exact = logits
        else:
            assert np.abs(logits - exact)[1:].max() <= tolerance


@pytest.mark.slow
@pytest.mark.parametrize("family", UNLIKE)
def test_gradients_are_numbers_with_padding_and_missing_texts(tiny_folder, family):
    classifier = flaxsent.load(tiny_folder(family, **RICH.get(family, {})), backend="native")
    tokens = pad(Encodings([[], [5, 6]], [[], [0, 0]], first_position=classifier.config.first_position), length=9)
    row = functools.partial(models.forward, config=classifier.config, num_segments=3)

    @jax.jit
    @jax.grad
    def gradients(params):
        return (jax.vmap(row, in_axes=(None, 0))(params, tokens) ** 2).sum()

    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients(classifier.params)))


BIASES = dict.fromkeys(("attention_bias", "mlp_bias", "norm_bias", "classifier_bias"), True)
SAVED = {family: [{}] for family in NATIVE} | {
    "albert": [{}, INNER],
    "deberta-v2": [{}, *(VARIANTS["deberta-v2"][name] for name in ("grouped convolution", "small embeddings"))],
    "modernbert": [{}, BIASES],
}


@pytest.mark.torch
@of_each(SAVED, slow_from=1)
def test_saved_folder_opens_in_pytorch_bit_for_bit(tiny_folder, tmp_path, family, entry):
    folder = tiny_folder(family, **entry)
    classifier = flaxsent.load(folder, backend="native")
    flaxsent.save(classifier, tmp_path)
    ours, theirs = pytorch(tmp_path).state_dict(), pytorch(folder).state_dict()  # `pytorch` refuses any left over
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in theirs)
    architectures = json.loads((tmp_path / "config.json").read_text())["architectures"]
    assert architectures == [type(pytorch(folder)).__name__]
    again = flaxsent.load(tmp_path, backend="native")
    jax.tree.map(np.testing.assert_array_equal, again.params, classifier.params)


# The first stage that each rate changes: 0 is the embeddings, -1 the logits.
_BERT_RATES = {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 1, "classifier_dropout": -1}
_BART_RATES = {"dropout": 0, "attention_dropout": 1, "activation_dropout": 1, "classifier_dropout": -1}
RATES = dict.fromkeys(NATIVE, _BERT_RATES) | {
    "albert": {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 1, "classifier_dropout_prob": -1},
    "bart": _BART_RATES,
    "deberta-v2": {
        "hidden_dropout_prob": 0,
        "attention_probs_dropout_prob": 1,
        "pooler_dropout": -1,
        "cls_dropout": -1,
    },
    "distilbert": {"dropout": 0, "attention_dropout": 1, "seq_classif_dropout": -1},
    "mbart": _BART_RATES,
    "modernbert": {"embedding_dropout": 0, "attention_dropout": 1, "mlp_dropout": 1, "classifier_dropout": -1},
    "mpnet": {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 1},
}


@pytest.mark.slow
@of_each({family: rates for family, rates in RATES.items() if family not in ("camembert", "xlm-roberta")})
def test_each_dropout_acts_by_itself_from_its_place_on(tiny_folder, family, entry):
    changes = RICH.get(family, {}) | dict.fromkeys(RATES[family], 0) | {entry: 0.3}
    classifier = flaxsent.load(tiny_folder(family, **changes), backend="native")
    stages = jax.jit(stages_of_row(classifier, texts_of_lengths([38])[0]))
    exact, first, again, other = (stages(key) for key in (None, *map(jax.random.key, (0, 0, 1))))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    place = range(len(exact))[RATES[family][entry]]
    for dropped in (exact, other):
        touched = [bool(np.abs(a - b).max() > 0.01) for a, b in zip(first, dropped, strict=True)]
        assert touched == [index >= place for index in range(len(exact))]


OPTIONS = {"bart": bart._options, "mbart": bart._options, "deberta-v2": deberta._options}
OPTIONS["modernbert"] = modernbert._options


@pytest.mark.parametrize("family", models.FAMILIES)
def test_defaults_are_those_of_transformers(family):
    """A config with nothing but its sizes means the same as all that transformers writes by default."""
    from transformers import CONFIG_MAPPING

    theirs = CONFIG_MAPPING[family]().to_dict()
    sizes = models.FAMILIES[family].tiny_config.keys() - models.FAMILIES[family].tiny.keys()
    needed = sizes | {"model_type", "max_position_embeddings"} | {key for key in theirs if key.endswith("_layers")}
    ours, whole = (read_config(json.dumps(raw)) for raw in ({key: theirs[key] for key in needed}, theirs))
    assert dataclasses.replace(ours, json="") == dataclasses.replace(whole, json="")
    assert models.shapes(ours) == models.shapes(whole)
    assert models.base(ours) in models.shapes(ours)
    options = OPTIONS.get(family, lambda config: None)
    assert options(ours) == options(whole)


@pytest.mark.parametrize("family", models.FAMILIES)
def test_the_last_layer_is_that_of_the_family(family):
    """Logits divided by two, as calibration divides them: by the params alone, whatever the family."""
    shapes = models.shapes(read(family))
    leaves, treedef = jax.tree.flatten(shapes, is_leaf=lambda node: isinstance(node, tuple))
    params = treedef.unflatten([np.ones(shape, np.float32) for shape in leaves])
    last = models.last_layer(params)
    assert last["bias"].shape == (2,) or (family == "bart" and last["bias"].shape == (3,))
    halved = models.divide_logits(params, 2.0)
    changed = jax.tree.map(lambda before, after: bool((before != after).any()), params, halved)
    assert sum(jax.tree.leaves(changed)) == 2
    node = changed
    for name in models.FAMILIES[family].last_layer:
        node = node[name]
    assert node == {"kernel": True, "bias": True}


_BART_REFUSED = {
    "tie_word_embeddings": [False, 1],
    "scale_embedding": ["yes"],
    "decoder_layers": [0, 257],
    "decoder_attention_heads": [5, 0],
    "decoder_ffn_dim": [44.0],
    "encoder_layerdrop": [1],
    "decoder_layerdrop": [-0.1],
    "activation_dropout": [True],
    "eos_token_id": [[3], 61],
    "decoder_start_token_id": [-1],
}
_REFUSED = {
    "albert": {
        "embedding_size": [0, "20"],
        "num_hidden_groups": [0, 1.0, 10**9],
        "inner_group_num": [0, 86],  # times 3 layers: more than 256
    },
    "bart": _BART_REFUSED,
    "deberta-v2": {
        "pos_att_type": [["c2p", "p2p"], "c2p,p2c", 3, [["c2p"]]],
        "norm_rel_ebd": ["batch_norm", True],
        "relative_attention": ["yes"],
        "share_att_key": [1],
        "position_biased_input": ["false"],
        "position_buckets": [1, "7", 10**12],
        "max_relative_positions": [1.5],
        "embedding_size": [0],
        "pooler_hidden_size": [40],
        "attention_head_size": [16],
        "conv_kernel_size": [4, -1],
        "conv_act": ["maxout"],
        "pooler_hidden_act": [["gelu"]],
        "pooler_dropout": [1, True],
    },
    "electra": {"embedding_size": [0, "128", 10**12]},
    "mbart": _BART_REFUSED,
    "modernbert": {
        "rope_scaling": [{"rope_type": "linear", "factor": 2.0}, {"rope_type": "default", "rope_theta": 3.0}, "linear"],
        "rope_parameters": [
            {FULL: {"rope_type": "yarn", "rope_theta": 3.0, "factor": 2.0}},
            {FULL: {"rope_theta": 3.0, "partial_rotary_factor": 0.5}},
            {"rope_type": "default", "rope_theta": 3.0},
            {"chunked_attention": {"rope_theta": 3.0}},
            {FULL: None},
            [3.0],
        ],
        "global_rope_theta": [None, 0, "1e4"],
        "local_rope_theta": [-1.0, 1e-40, 1e400, True],
        "layer_types": [[FULL] * 3, [FULL, FULL, FULL, "linear_attention"], [FULL, FULL, FULL, [FULL]], FULL],
        "global_attn_every_n_layers": [0],
        "local_attention": [0, 8.0],
        "sliding_window": [8],
        "head_dim": [6],
        "partial_rotary_factor": [0.5],
        "attention_bias": [1],
        "mlp_bias": ["no"],
        "norm_bias": [0.0],
        "classifier_bias": [[]],
        "classifier_pooling": ["max"],
        "classifier_activation": ["maxout"],
        "mlp_dropout": [1],
        "embedding_dropout": [1.5],
        "attention_dropout": [1.5],
        "classifier_dropout": [1.5],
        "norm_eps": [1.5],
    },
    "mpnet": {"pad_token_id": [0], "relative_attention_num_buckets": [16, 32.0, "32"]},
}
_REFUSED_TOGETHER = {
    "deberta-v2": [
        {"position_buckets": 20, "max_relative_positions": 11},
        {"conv_groups": 5, "conv_kernel_size": 3},
    ],
    "modernbert": [
        {"global_rope_theta": 50.0, "rope_parameters": {FULL: {"rope_theta": 3.0}}},
        {"layer_types": [FULL] * 4, "global_attn_every_n_layers": 3},
    ],
}
REFUSED = {
    family: [{key: value} for key, values in keys.items() for value in values] + _REFUSED_TOGETHER.get(family, [])
    for family, keys in _REFUSED.items()
}


@of_each(REFUSED)
def test_what_is_not_implemented_is_refused_by_name(family, entry):
    with pytest.raises(FlaxsentError, match=rf"^config\.json has {next(iter(entry))}="):
        models.shapes(read(family, **entry))


def tokens_of(config, **ids):
    """A row of two tokens."""
    first = config.first_position
    plain = {"input_ids": [5, 6], "token_type_ids": [0, 0], "position_ids": [first, first + 1], "segment_ids": [1, 1]}
    return Tokens(**{name: np.array([row], np.int32) for name, row in (plain | ids).items()})


BEYOND = {
    "input_ids": ([5, 61], "input_ids are 5 to 61; expected 0 to 60"),
    "token_type_ids": ([0, 2], "token_type_ids are 0 to 2; expected 0 to 1"),
    "position_ids": ([0, 40], "a text has 41 tokens; this checkpoint takes 40"),
}


@pytest.mark.parametrize("name", BEYOND)
def test_ids_that_the_tables_do_not_have_are_refused_and_give_no_number_under_jit(tiny_folder, name):
    classifier = flaxsent.load(tiny_folder("bert"), backend="native")
    config, params = classifier.config, classifier.params
    ids, message = BEYOND[name]
    tokens = tokens_of(config, **{name: ids})
    for function in (classifier.forward, classifier.hidden_states):
        with pytest.raises(FlaxsentError, match=message):
            function(params, tokens)
    assert np.isnan(jax.jit(classifier.forward)(params, tokens)).all()
    negative = tokens_of(config, **{name: [0, -1]})
    with pytest.raises(FlaxsentError, match=f"{name} are -1 to 0; expected 0 to"):
        classifier.forward(params, negative)
    assert np.isnan(jax.jit(classifier.forward)(params, negative)).all()
    assert np.isfinite(jax.jit(classifier.forward)(params, tokens_of(config))).all()


@pytest.mark.torch
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_is_that_of_pytorch(name):
    import torch
    from transformers.activations import ACT2FN

    x = np.linspace(-15, 15, 1001, dtype=np.float32)
    # float32 of values up to 225, in relu2
    np.testing.assert_allclose(
        ACTIVATIONS[name](jnp.asarray(x)), ACT2FN[name](torch.tensor(x)).numpy(), rtol=1e-6, atol=1e-6
    )


def test_the_activations_are_all_those_without_parameters_that_transformers_has():
    activations = pytest.importorskip("transformers.activations", reason="needs PyTorch", exc_type=ImportError)
    in_version_5_alone, with_parameters = {"hardswish", "sqrtsoftplus"}, {"prelu", "xielu"}
    assert {*activations.ACT2FN} - ACTIVATIONS.keys() <= in_version_5_alone | with_parameters


@pytest.mark.torch
@pytest.mark.parametrize(
    "family",
    [
        family if family in ("bert", "roberta", "mpnet", "mbart") else pytest.param(family, marks=pytest.mark.slow)
        for family in NATIVE
    ],
)
def test_padding_ids_inside_a_text_are_counted_as_by_pytorch(tiny_folder, family):
    """Where [UNK] has the id of padding: RoBERTa families do not count it in positions, mBART not in lengths."""
    changes = BASE.get(family, {})
    folder = tiny_folder(family, **changes)
    classifier = flaxsent.load(folder, backend="native")
    encodings = with_padding_inside(classifier.tokenizer.encode([*SINGLES, *PAIRS]))
    theirs = pytorch_logits(folder, encodings)
    for ours in padded_and_packed_logits(classifier, encodings, row_length=44):
        np.testing.assert_allclose(ours, theirs, atol=TOLERANCE)


@pytest.mark.torch
@pytest.mark.parametrize("family", ["roberta", "xlm-roberta", "camembert", "mpnet"])
def test_the_engine_numbers_unknown_pieces_as_pytorch_where_their_id_is_that_of_padding(tiny_folder, tmp_path, family):
    folder = shutil.copytree(tiny_folder(family), tmp_path / "model")
    (folder / "vocab.txt").unlink()
    tokenizer = letter_tokenizer(61, pad_token_id=0)  # [UNK] is 1, as padding is in config.json
    tokenizer.save(str(folder / "tokenizer.json"))
    classifier = flaxsent.load(folder, backend="native")
    texts = ["the 이 film 的 not", "的", ("so 的 good", "的"), "so good", "bad " * 60]
    encodings = classifier.tokenizer.encode(texts)
    assert [ids.count(1) for ids in encodings.input_ids] == [2, 1, 2, 0, 0]
    with flaxsent.Engine(classifier, function=classifier.logits) as engine:
        ours = engine(texts)
    np.testing.assert_allclose(ours, pytorch_logits(folder, encodings), atol=TOLERANCE)


@each_family
def test_only_tables_that_a_family_has_can_be_exceeded(family):
    config = read(family)
    far = [config.num_positions, config.num_positions + 1]
    has_none = family in ("modernbert", "deberta-v2")  # rotary; distances by their logarithm, without positions
    for ids, is_good in ({"position_ids": far}, has_none), ({"token_type_ids": [0, 1]}, config.type_vocab_size != 1):
        if is_good:
            models.check(config, tokens_of(config, **ids))
        else:
            with pytest.raises(FlaxsentError):
                models.check(config, tokens_of(config, **ids))


def test_a_family_without_native_encoder_says_which_backend_has_it():
    config = read("roformer")
    with pytest.raises(FlaxsentError, match="no native encoder for roformer; load it with backend='flax'"):
        models.check(config, tokens_of(config))
