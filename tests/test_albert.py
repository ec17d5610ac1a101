"""ALBERT against PyTorch and its Flax class: each key of config.json that changes the numbers."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxsent
from flaxsent import models as encoders
from flaxsent.models import flax_auto
from flaxsent.parity import compare as parity
from flaxsent.models.config import read_config
from flaxsent.models import albert
from flaxsent.packing import pad
from flaxsent.base import Encodings
from tests.conftest import texts_of_lengths
from tests.test_deberta import padded_and_packed_logits
from tests.test_parity import PAIRS, SINGLES, TOLERANCE, pytorch, pytorch_stages

INNER = {"num_hidden_layers": 4, "num_hidden_groups": 2, "inner_group_num": 2}
VARIANTS = {
    "one group": {},
    "a group a layer": {"num_hidden_groups": 3},
    "groups of two sizes": {"num_hidden_groups": 2},
    "five layers in three groups": {"num_hidden_layers": 5, "num_hidden_groups": 3},
    "two inner layers": INNER,
    "embeddings as wide as layers": {"embedding_size": 36, "type_vocab_size": 1},
    "another epsilon and activation": {"layer_norm_eps": 0.01, "hidden_act": "relu"},
    "one layer, 36 heads": {"num_hidden_layers": 1, "num_attention_heads": 36, "hidden_act": "gelu"},
}
each_variant = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
# What transformers says of its Flax classes.
quietly = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")


def read(**changes):
    return read_config(json.dumps({"model_type": "albert"} | parity.CONFIGS["albert"] | changes))


@pytest.mark.slow
@pytest.mark.torch
@each_variant
def test_logits_equal_pytorch_padded_and_packed(tiny_folder, changes):
    folder = tiny_folder("albert", **changes)
    classifier = flaxsent.load(folder, backend="native")
    texts = SINGLES + PAIRS
    theirs = pytorch_stages(folder, classifier.tokenize(texts))["logits"]
    for ours in padded_and_packed_logits(classifier, texts, row_length=67):
        assert np.abs(ours - theirs).max() <= TOLERANCE
    assert 0.5 < np.abs(theirs).max() < 20, "a random model of another size than trained ones"


@pytest.mark.slow
def test_a_text_alone_equals_the_text_padded_and_packed(tiny_folder):
    classifier = flaxsent.load(tiny_folder("albert", **INNER), backend="native")
    texts = texts_of_lengths([0, 5, 38, 0], seed=2)
    forward = jax.jit(classifier.forward)
    alone = np.concatenate([forward(classifier.params, classifier.tokenize([text])) for text in texts])
    for ours in padded_and_packed_logits(classifier, texts, row_length=60):
        assert np.abs(ours - alone).max() <= TOLERANCE


@pytest.mark.slow
@pytest.mark.torch
def test_one_token_equals_pytorch(tiny_folder):
    import torch

    folder = tiny_folder("albert", **INNER)
    classifier = flaxsent.load(folder, backend="native")
    tokens = classifier.pad(Encodings([[5]], [[0]], 0))
    with torch.no_grad():
        theirs = pytorch(folder)(torch.tensor([[5]])).logits.numpy()
    assert np.abs(jax.jit(classifier.forward)(classifier.params, tokens) - theirs).max() <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 0), ("float16", 0.03), ("bfloat16", 0.3)])
def test_padding_and_halves_give_numbers(tiny_folder, dtype, tolerance):
    """Rows: nothing but padding, one token alone, a long text."""
    folder = tiny_folder("albert", **INNER)
    tokens = pad(Encodings([[], [5], list(range(40))], [[], [0], [0] * 40], 0))

    @jax.jit
    def both(params):
        return classifier.hidden_states(params, tokens), classifier.forward(params, tokens)

    classifier = flaxsent.load(folder, backend="native")
    _, exact = both(classifier.params)
    hidden, logits = both(flaxsent.load(folder, backend="native", dtype=dtype).params)
    assert np.isfinite(np.asarray(hidden, np.float32)).all()
    assert np.isfinite(logits).all()
    assert hidden.dtype == dtype
    assert logits.dtype == np.float32
    assert np.abs(logits - exact)[1:].max() <= tolerance


@quietly
@pytest.mark.flax_auto
@pytest.mark.parametrize("name", ["one group", "two inner layers", "embeddings as wide as layers"])
def test_the_same_parameters_feed_both_backends(name):
    config = read(**VARIANTS[name])
    assert encoders.shapes(config) == flax_auto.build(config, jnp.dtype("float32")).shapes


@quietly
@pytest.mark.flax_auto
def test_flax_equals_native_for_pairs_under_jit(tiny_folder):
    native, flax = (flaxsent.load(tiny_folder("albert", **INNER), backend=backend) for backend in ("native", "flax"))
    tokens = native.tokenize(PAIRS)
    ours, theirs = (jax.jit(each.forward)(native.params, tokens) for each in (native, flax))
    assert np.abs(ours - theirs).max() <= TOLERANCE


@pytest.mark.torch
@pytest.mark.parametrize("changes", [{}, INNER], ids=["one group", "two inner layers"])
def test_saved_folder_opens_in_pytorch_bit_for_bit(tiny_folder, tmp_path, changes):
    folder = tiny_folder("albert", **changes)
    flaxsent.save(flaxsent.load(folder, backend="native"), tmp_path)
    ours, theirs = pytorch(tmp_path).state_dict(), pytorch(folder).state_dict()  # `pytorch` refuses any left over
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in theirs)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["AlbertForSequenceClassification"]


RATES = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout_prob")


@pytest.mark.slow
@pytest.mark.parametrize("rate", RATES)
def test_each_dropout_acts_by_itself_from_its_place_on(tiny_folder, rate):
    classifier = flaxsent.load(tiny_folder("albert", **dict.fromkeys(RATES, 0) | {rate: 0.3}), backend="native")
    row = jax.tree.map(lambda rows: rows[0], classifier.tokenize(texts_of_lengths([38])))

    @jax.jit
    def stages(key):
        states = albert.all_hidden_states(classifier.params, row, config=classifier.config, key=key)
        logits = albert.forward(classifier.params, row, config=classifier.config, num_segments=1, key=key)
        return [*states, logits]

    exact, first, again, other = (stages(key) for key in (None, *map(jax.random.key, (0, 0, 1))))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    place = RATES.index(rate) if rate != "classifier_dropout_prob" else len(exact) - 1
    for dropped in (exact, other):
        touched = [bool(np.abs(a - b).max() > 0.01) for a, b in zip(first, dropped, strict=True)]
        assert touched == [index >= place for index in range(len(exact))]


@pytest.mark.torch
def test_defaults_are_those_of_transformers():
    from transformers import AlbertConfig

    theirs = AlbertConfig()
    needed = {key: value for key, value in parity.CONFIGS["albert"].items() if key != "embedding_size"}
    config = read_config(json.dumps({"model_type": "albert"} | needed))
    assert config.activation == theirs.hidden_act
    rates = (theirs.hidden_dropout_prob, theirs.attention_probs_dropout_prob, theirs.classifier_dropout_prob)
    assert (config.hidden_dropout, config.attention_dropout, config.classifier_dropout) == rates
    kernel = albert.shapes(config)["albert"]["encoder"]["embedding_hidden_mapping_in"]["kernel"]
    assert kernel == (theirs.embedding_size, 36)
    groups = albert.shapes(config)["albert"]["encoder"]["albert_layer_groups"]
    assert len(groups) == theirs.num_hidden_groups
    assert len(groups["0"]["albert_layers"]) == theirs.inner_group_num


REFUSED = [
    {"embedding_size": 0},
    {"embedding_size": "20"},
    {"num_hidden_groups": 0},
    {"num_hidden_groups": 1.0},
    {"num_hidden_groups": 10**9},
    {"inner_group_num": 0},
    {"inner_group_num": 86},  # times 3 layers: more than 256
]


@pytest.mark.parametrize("changes", REFUSED, ids=str)
def test_what_is_not_implemented_is_refused_by_name(changes):
    with pytest.raises(ValueError, match=f"config.json has {next(iter(changes))}="):
        encoders.shapes(read(**changes))


def test_more_groups_than_layers_leave_some_unused(tiny_folder):
    """As PyTorch counts: the first layer takes group 0, the second group 1 (of 3)."""
    classifier = flaxsent.load(tiny_folder("albert", num_hidden_layers=2, num_hidden_groups=3), backend="native")
    row = functools.partial(encoders.forward, config=classifier.config, num_segments=1)
    tokens = jax.tree.map(lambda rows: rows[0], classifier.tokenize(["so good"]))
    grads = jax.jit(jax.grad(lambda params: row(params, tokens).sum()))(classifier.params)
    groups = grads["albert"]["encoder"]["albert_layer_groups"]
    used = [bool(max(np.abs(leaf).max() for leaf in jax.tree.leaves(groups[index])) > 0) for index in "012"]
    assert used == [True, True, False]
