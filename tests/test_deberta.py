"""DeBERTa-v2 and v3 against PyTorch: each key of config.json that changes the numbers, both ways."""

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
from flaxsent.models import deberta
from flaxsent.packing import pack, pad, unpack
from flaxsent.base import Encodings
from tests.conftest import texts_of_lengths
from tests.test_parity import PAIRS, SINGLES, TOLERANCE, pytorch, pytorch_stages

TWO = {"num_hidden_layers": 2}  # the first, where the convolution is, and one after it
CONV = TWO | {"conv_kernel_size": 3}
VARIANTS = {
    "v3": {},
    "v2": CONV | {"conv_act": "gelu"},
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
    "wide convolution": {"conv_kernel_size": 41, "conv_groups": 36},
}
each_variant = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())


def padded_and_packed_logits(classifier, texts, *, row_length):
    """The logits of texts one a row and several a row, in one batch."""
    encodings = classifier.tokenizer.encode(texts)
    packed, placement = pack(encodings, row_length=row_length)
    assert len(packed.input_ids) < len(texts), "some rows hold several texts"
    rows = jax.tree.map(lambda *rows: np.concatenate(rows), pad(encodings, length=row_length), packed)
    row = functools.partial(
        encoders.forward, classifier.params, config=classifier.config, num_segments=int(placement.segment.max()) + 1
    )
    logits = np.asarray(jax.jit(jax.vmap(row))(rows))
    return logits[: len(texts), 0], unpack(logits[len(texts) :], placement)


@pytest.mark.slow
@pytest.mark.torch
@each_variant
def test_logits_equal_pytorch_padded_and_packed(tiny_folder, changes):
    folder = tiny_folder("deberta-v2", **TWO | changes)
    classifier = flaxsent.load(folder)
    texts = SINGLES + PAIRS
    theirs = pytorch_stages(folder, classifier.tokenize(texts))["logits"]
    for ours in padded_and_packed_logits(classifier, texts, row_length=67):
        assert np.abs(ours - theirs).max() <= TOLERANCE
    assert 1 < np.abs(theirs).max() < 20


@pytest.mark.slow
def test_a_text_alone_equals_the_text_padded_and_packed(tiny_folder):
    classifier = flaxsent.load(tiny_folder("deberta-v2", **TWO, conv_kernel_size=7))
    texts = texts_of_lengths([0, 5, 38, 2, 0], seed=2)
    forward = jax.jit(classifier.forward)
    alone = np.concatenate([forward(classifier.params, classifier.tokenize([text])) for text in texts])
    for ours in padded_and_packed_logits(classifier, texts, row_length=60):
        assert np.abs(ours - alone).max() <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 0), ("float16", 0.03), ("bfloat16", 0.3)])
def test_padding_and_halves_give_numbers(tiny_folder, dtype, tolerance):
    """Rows: nothing but padding, one token alone, a long text."""
    folder = tiny_folder("deberta-v2", **CONV, share_att_key=False)
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


@pytest.mark.torch
def test_one_token_equals_pytorch(tiny_folder):
    import torch

    folder = tiny_folder("deberta-v2", **CONV)
    classifier = flaxsent.load(folder)
    tokens = classifier.pad(Encodings([[5]], [[0]], 0))
    with torch.no_grad():
        theirs = pytorch(folder)(torch.tensor([[5]])).logits.numpy()
    assert np.abs(jax.jit(classifier.forward)(classifier.params, tokens) - theirs).max() <= TOLERANCE


@pytest.mark.torch
def test_every_stage_equals_pytorch_with_all_options(tiny_folder):
    options = {"share_att_key": False, "embedding_size": 20, "position_biased_input": True, "type_vocab_size": 2}
    folder = tiny_folder("deberta-v2", **CONV, **options)
    classifier = flaxsent.load(folder)
    tokens = classifier.tokenize(PAIRS)
    row_states = functools.partial(deberta.all_hidden_states, classifier.params, config=classifier.config)
    states = jax.jit(jax.vmap(row_states))(tokens)
    theirs = pytorch_stages(folder, tokens)
    assert len(states) == len(theirs) - 1
    for index, state in enumerate(states):
        difference = np.abs(state - theirs[f"layer {index}"])[tokens.segment_ids > 0]
        assert difference.max() <= TOLERANCE, index


@pytest.mark.torch
@pytest.mark.parametrize(("num_buckets", "max_distance"), [(256, 512), (32, 512), (7, 40), (4, 33), (2, 9), (64, 4096)])
def test_buckets_equal_pytorch_at_every_distance(num_buckets, max_distance):
    import torch
    from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

    differences = torch.arange(-max_distance + 1, max_distance)
    theirs = make_log_bucket_position(differences, num_buckets, max_distance).long().numpy()
    ours = deberta._buckets(max_distance, num_buckets, max_distance)
    np.testing.assert_array_equal(np.concatenate([-ours[:0:-1], ours]), theirs)


@pytest.mark.torch
@pytest.mark.parametrize("changes", [VARIANTS["v3"], VARIANTS["grouped convolution"], VARIANTS["small embeddings"]])
def test_saved_folder_opens_in_pytorch_bit_for_bit(tiny_folder, tmp_path, changes):
    folder = tiny_folder("deberta-v2", **changes)
    flaxsent.save(flaxsent.load(folder), tmp_path)
    ours, theirs = pytorch(tmp_path).state_dict(), pytorch(folder).state_dict()  # `pytorch` refuses any left over
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in theirs)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["DebertaV2ForSequenceClassification"]


@pytest.mark.torch
def test_old_names_are_read_as_pytorch_reads_them(tiny_folder, tmp_path):
    """LayerNorm's gamma and beta, and an absolute position table that microsoft's checkpoints hold but do not use."""
    from transformers import AutoModelForSequenceClassification

    folder = tiny_folder("deberta-v2", **CONV)
    classifier = flaxsent.load(folder)
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in tensors.items()
    }
    assert len(old.keys() - tensors.keys()) == 14, "embeddings, distances, convolution and two a layer"
    old["deberta.embeddings.position_embeddings.weight"] = np.zeros((40, 36), np.float32)
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    safetensors.numpy.save_file(old, tmp_path / "model.safetensors", metadata={"format": "pt"})
    theirs, info = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert all(tensor.equal(theirs.state_dict()[name]) for name, tensor in pytorch(folder).state_dict().items())
    jax.tree.map(np.testing.assert_array_equal, flaxsent.load(tmp_path).params, classifier.params)


RATES = ("hidden_dropout_prob", "attention_probs_dropout_prob", "pooler_dropout", "cls_dropout")


@pytest.mark.slow
@pytest.mark.parametrize("rate", RATES)
def test_each_dropout_acts_by_itself_from_its_place_on(tiny_folder, rate):
    classifier = flaxsent.load(tiny_folder("deberta-v2", **CONV, **dict.fromkeys(RATES, 0) | {rate: 0.3}))
    row = jax.tree.map(lambda rows: rows[0], classifier.tokenize(texts_of_lengths([38])))

    @jax.jit
    def stages(key):
        states = deberta.all_hidden_states(classifier.params, row, config=classifier.config, key=key)
        logits = deberta.forward(classifier.params, row, config=classifier.config, num_segments=1, key=key)
        return [*states, logits]

    exact, first, again, other = (stages(key) for key in (None, *map(jax.random.key, (0, 0, 1))))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    place = {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 1}.get(rate, len(exact) - 1)
    for dropped in (exact, other):
        touched = [bool(np.abs(a - b).max() > 0.01) for a, b in zip(first, dropped, strict=True)]
        assert touched == [index >= place for index in range(len(exact))]


def test_default_dropout_of_the_head_is_that_of_the_encoder():
    base = {"model_type": "deberta-v2"} | parity.CONFIGS["deberta-v2"]
    rates = [{"hidden_dropout_prob": 0.25}, {"hidden_dropout_prob": 0.25, "cls_dropout": 0.0}, {"cls_dropout": None}]
    assert [read_config(json.dumps(base | rate)).classifier_dropout for rate in rates] == [0.25, 0.0, 0.1]
    assert read_config(json.dumps(base)).layer_norm_eps == 1e-7


REFUSED = [
    {"pos_att_type": ["c2p", "p2p"]},
    {"pos_att_type": "c2p,p2c"},
    {"pos_att_type": 3},
    {"pos_att_type": [["c2p"]]},
    {"norm_rel_ebd": "batch_norm"},
    {"norm_rel_ebd": True},
    {"relative_attention": "yes"},
    {"share_att_key": 1},
    {"position_biased_input": "false"},
    {"position_buckets": 1},
    {"position_buckets": "7"},
    {"position_buckets": 10**12},
    {"position_buckets": 20, "max_relative_positions": 11},
    {"max_relative_positions": 1.5},
    {"embedding_size": 0},
    {"pooler_hidden_size": 40},
    {"attention_head_size": 16},
    {"conv_kernel_size": 4},
    {"conv_kernel_size": -1},
    {"conv_groups": 5, "conv_kernel_size": 3},
    {"conv_act": "maxout"},
    {"pooler_hidden_act": ["gelu"]},
    {"pooler_dropout": 1},
    {"pooler_dropout": True},
]


@pytest.mark.parametrize("changes", REFUSED, ids=str)
def test_what_is_not_implemented_is_refused_by_name(changes):
    config = read_config(json.dumps({"model_type": "deberta-v2"} | parity.CONFIGS["deberta-v2"] | changes))
    with pytest.raises(ValueError, match=f"config.json has {next(iter(changes))}="):
        encoders.shapes(config)
