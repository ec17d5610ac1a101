"""BART and mBART against PyTorch and their Flax classes: each key of config.json that changes the numbers."""

import functools
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import flaxsent
from flaxsent import models as encoders
from flaxsent.models import flax_auto
from flaxsent.parity import compare as parity
from flaxsent.models.config import read_config
from flaxsent.models import bart
from flaxsent.packing import pack, pad, unpack
from flaxsent.base import Encodings
from tests.conftest import texts_of_lengths
from tests.test_parity import PAIRS, SINGLES, TOLERANCE, pytorch, pytorch_stages

FAMILIES = ("bart", "mbart")
EOS, LANGUAGE = 3, 4  # [SEP] and [MASK] of the letter tokenizer
VARIANTS = {
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
each_family = pytest.mark.parametrize("family", FAMILIES)
each_variant = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
# What transformers says of its Flax classes.
quietly = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")


def read(family, **changes):
    return read_config(json.dumps({"model_type": family} | parity.CONFIGS[family] | changes))


def padded_and_packed_logits(classifier, encodings, *, row_length):
    """The logits of texts one a row and several a row, in one batch."""
    packed, placement = pack(encodings, row_length=row_length)
    assert len(packed.input_ids) < len(encodings.input_ids), "some rows hold several texts"
    rows = jax.tree.map(lambda *rows: np.concatenate(rows), pad(encodings, length=row_length), packed)
    row = functools.partial(
        encoders.forward, classifier.params, config=classifier.config, num_segments=int(placement.segment.max()) + 1
    )
    logits = np.asarray(jax.jit(jax.vmap(row))(rows))
    count = len(encodings.input_ids)
    return logits[:count, 0], unpack(logits[count:], placement)


def pytorch_logits(folder, encodings):
    """One text at a time, without padding."""
    import torch

    model = pytorch(folder)
    with torch.no_grad():
        return np.concatenate([model(torch.tensor([ids])).logits for ids in encodings.input_ids])


@pytest.mark.torch
@each_family
@each_variant
def test_logits_equal_pytorch_padded_and_packed(tiny_folder, family, changes):
    folder = tiny_folder(family, **changes)
    classifier = flaxsent.load(folder, backend="native")
    encodings = classifier.tokenizer.encode(SINGLES + PAIRS)
    theirs = pytorch_logits(folder, encodings)
    for ours in padded_and_packed_logits(classifier, encodings, row_length=67):
        assert np.abs(ours - theirs).max() <= TOLERANCE
    assert 0.5 < np.abs(theirs).max() < 20, "a random model of another size than trained ones"


@pytest.mark.slow
@pytest.mark.torch
@each_family
def test_a_language_behind_the_last_eos_starts_mbarts_decoder_and_is_not_pooled(tiny_folder, family):
    """So real mBART texts end: EOS, language."""
    folder = tiny_folder(family)
    classifier = flaxsent.load(folder, backend="native")
    plain = classifier.tokenizer.encode(PAIRS[:1])
    rows = [[*plain.input_ids[0], language] for language in (LANGUAGE, LANGUAGE + 1)]
    encodings = Encodings(rows + rows, [[0] * len(row) for row in rows + rows], 0)
    tokens = classifier.pad(encodings)
    theirs = pytorch_stages(folder, tokens)
    row_states = functools.partial(bart.all_hidden_states, classifier.params, config=classifier.config)
    states = jax.jit(jax.vmap(row_states))(tokens)
    for index, state in enumerate(states):
        assert np.abs(state - theirs[f"layer {index}"]).max() <= TOLERANCE, index
    for ours in padded_and_packed_logits(classifier, encodings, row_length=2 * len(rows[0])):
        assert np.abs(ours - theirs["logits"]).max() <= TOLERANCE
    starts_alike = bool((np.asarray(states[0])[0, 0] == np.asarray(states[0])[1, 0]).all())
    assert starts_alike == (family == "bart")


@pytest.mark.torch
@each_family
def test_one_token_equals_pytorch(tiny_folder, family):
    folder = tiny_folder(family)
    classifier = flaxsent.load(folder, backend="native")
    encodings = Encodings([[EOS]], [[0]], 0)
    logits = jax.jit(classifier.forward)(classifier.params, classifier.pad(encodings))
    assert np.abs(logits - pytorch_logits(folder, encodings)).max() <= TOLERANCE


@pytest.mark.slow
@each_family
def test_a_text_alone_equals_the_text_padded_and_packed(tiny_folder, family):
    classifier = flaxsent.load(tiny_folder(family), backend="native")
    texts = texts_of_lengths([0, 5, 38, 0], seed=2)
    forward = jax.jit(classifier.forward)
    alone = np.concatenate([forward(classifier.params, classifier.tokenize([text])) for text in texts])
    for ours in padded_and_packed_logits(classifier, classifier.tokenizer.encode(texts), row_length=60):
        assert np.abs(ours - alone).max() <= TOLERANCE


@pytest.mark.slow
@each_family
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 0), ("float16", 0.03), ("bfloat16", 0.3)])
def test_padding_and_halves_give_numbers(tiny_folder, family, dtype, tolerance):
    """Rows: nothing but padding, one token alone that is no EOS, a long text."""
    folder = tiny_folder(family)
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


def test_float16_does_not_overflow_where_mbart_adds_up(tiny_folder):
    classifier = flaxsent.load(tiny_folder("mbart"), backend="native", dtype="float16")
    params = jax.tree.map(lambda leaf: leaf, dict(classifier.params))
    for stack in ("encoder", "decoder"):
        for layer in params["model"][stack]["layers"].values():
            layer["fc2"]["bias"] = jnp.full_like(layer["fc2"]["bias"], 60000).at[::2].multiply(-1)
    tokens = classifier.tokenize(PAIRS)
    assert np.isfinite(jax.jit(classifier.hidden_states)(params, tokens)).all()
    assert np.isfinite(jax.jit(classifier.forward)(params, tokens)).all()


@quietly
@pytest.mark.flax_auto
@each_family
def test_the_same_parameters_feed_both_backends(family):
    for changes in (VARIANTS["as it is"], VARIANTS["deep encoder"]):
        config = read(family, id2label={"0": "a", "1": "b", "2": "c"}, **changes)
        assert encoders.shapes(config) == flax_auto.build(config, jnp.dtype("float32")).shapes


@pytest.mark.slow
@quietly
@pytest.mark.flax_auto
@each_family
def test_flax_equals_native_for_pairs_under_jit(tiny_folder, family):
    native, flax = (flaxsent.load(tiny_folder(family), backend=backend) for backend in ("native", "flax"))
    tokens = native.tokenize(PAIRS)
    ours, theirs = (jax.jit(each.forward)(native.params, tokens) for each in (native, flax))
    assert np.abs(ours - theirs).max() <= TOLERANCE


@pytest.mark.torch
@each_family
def test_saved_folder_opens_in_pytorch_bit_for_bit(tiny_folder, tmp_path, family):
    folder = tiny_folder(family)
    flaxsent.save(flaxsent.load(folder, backend="native"), tmp_path)
    ours, theirs = pytorch(tmp_path).state_dict(), pytorch(folder).state_dict()  # `pytorch` refuses any left over
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in theirs)
    class_name = {"bart": "Bart", "mbart": "MBart"}[family] + "ForSequenceClassification"
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [class_name]


@pytest.mark.parametrize("kept", ["model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"])
def test_the_shared_table_is_found_under_any_of_its_names(tiny_folder, tmp_path, kept):
    folder = tiny_folder("bart")
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    tensors[kept] = tensors.pop("model.shared.weight")
    tensors["model.encoder.version"] = np.ones(1, np.float32)  # old fairseq checkpoints
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    ours, theirs = (flaxsent.load(each, backend="native").params for each in (tmp_path, folder))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


RATES = ("dropout", "attention_dropout", "activation_dropout", "classifier_dropout")


def all_stages(classifier, text):
    """A function of a key: the decoder's states, then the logits."""
    row = jax.tree.map(lambda rows: rows[0], classifier.tokenize([text]))

    def stages(key):
        states = bart.all_hidden_states(classifier.params, row, config=classifier.config, key=key)
        logits = bart.forward(classifier.params, row, config=classifier.config, num_segments=1, key=key)
        return [*states, logits]

    return stages


@pytest.mark.slow
@pytest.mark.parametrize("rate", RATES)
def test_each_dropout_acts_by_itself_from_its_place_on(tiny_folder, rate):
    folder = tiny_folder("bart", **dict.fromkeys(RATES, 0) | {rate: 0.3})
    stages = jax.jit(all_stages(flaxsent.load(folder, backend="native"), texts_of_lengths([38])[0]))
    exact, first, again, other = (stages(key) for key in (None, *map(jax.random.key, (0, 0, 1))))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    place = {"dropout": 0, "classifier_dropout": len(exact) - 1}.get(rate, 1)
    for dropped in (exact, other):
        touched = [bool(np.abs(a - b).max() > 0.01) for a, b in zip(first, dropped, strict=True)]
        assert touched == [index >= place for index in range(len(exact))]


@pytest.mark.slow
@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_layerdrop_leaves_out_layers_of_its_stack_in_training(tiny_folder, stack):
    rates = dict.fromkeys(RATES, 0) | {f"{stack}_layerdrop": 0.25}
    stages = all_stages(flaxsent.load(tiny_folder("bart", **rates), backend="native"), "not so good")
    exact = np.asarray(jax.jit(stages)(None)[-1])
    *states, logits = jax.jit(jax.vmap(stages))(jax.random.split(jax.random.key(0), 200))
    difference = np.abs(np.asarray(logits) - exact).max(axis=(1, 2))
    is_left_out = [
        (np.asarray(before) == np.asarray(after)).all(axis=(1, 2)) for before, after in itertools.pairwise(states)
    ]
    if stack == "decoder":
        assert all(0.15 < np.mean(left_out) < 0.35 for left_out in is_left_out)
    else:
        assert not np.any(is_left_out)
    kept = difference <= TOLERANCE
    num_layers = {"encoder": 2, "decoder": 3}[stack]
    assert abs(np.mean(kept) - 0.75**num_layers) < 0.14, "four standard deviations of 200 draws"
    assert difference[~kept].min() > 0.001


@pytest.mark.torch
@each_family
def test_defaults_are_those_of_transformers(family):
    from transformers import CONFIG_MAPPING

    theirs = CONFIG_MAPPING[family]()
    needed = ("d_model", "vocab_size", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim")
    raw = {key: getattr(theirs, key) for key in (*needed, "max_position_embeddings")}
    config = read_config(json.dumps({"model_type": family} | raw))
    options = bart._options(config)
    assert config.num_labels == theirs.num_labels
    assert config.pad_token_id == theirs.pad_token_id
    rates = (theirs.dropout, theirs.attention_dropout, theirs.activation_dropout, theirs.classifier_dropout)
    ours = (config.hidden_dropout, config.attention_dropout, options.activation_dropout, config.classifier_dropout)
    assert ours == rates
    for stack in ("encoder", "decoder"):
        sizes = [getattr(theirs, f"{stack}_{key}") for key in ("layers", "attention_heads", "ffn_dim", "layerdrop")]
        assert list(getattr(options, stack)) == sizes
    assert options.eos_token_id == theirs.eos_token_id
    assert options.embedding_scale == 1
    if family == "bart":
        assert options.decoder_start_token_id == theirs.decoder_start_token_id


REFUSED = [
    {"tie_word_embeddings": False},
    {"tie_word_embeddings": 1},
    {"scale_embedding": "yes"},
    {"decoder_layers": 0},
    {"decoder_layers": 257},
    {"decoder_attention_heads": 5},
    {"decoder_attention_heads": 0},
    {"decoder_ffn_dim": 44.0},
    {"encoder_layerdrop": 1},
    {"decoder_layerdrop": -0.1},
    {"activation_dropout": True},
    {"eos_token_id": [3]},
    {"eos_token_id": 61},
    {"decoder_start_token_id": -1},
]


@each_family
@pytest.mark.parametrize("changes", REFUSED, ids=str)
def test_what_is_not_implemented_is_refused_by_name(family, changes):
    with pytest.raises(ValueError, match=f"config.json has {next(iter(changes))}="):
        encoders.shapes(read(family, **changes))
