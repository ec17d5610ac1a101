"""The Flax classes: PyTorch's numbers and transformers' Flax classes', by the calls that people know; and nnx."""

import dataclasses
import functools
import logging
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxsent
from flaxsent import models
from flaxsent.base import FlaxsentError
from flaxsent.checkpoint import weights
from flaxsent.models import flax_auto
from flaxsent.models.family import BERT_KEYS
from tests.conftest import HAS_FLAX, NATIVE, others_slow, texts_of_lengths
from tests.models.reference import PAIRS, TOLERANCE, pytorch

if not HAS_FLAX:
    pytest.skip("needs Flax", allow_module_level=True)

import optax
from flax import nnx, serialization

from flaxsent.flax import FlaxAutoModel, FlaxAutoModelForSequenceClassification, SequenceClassifier

TEXTS = [*texts_of_lengths([7, 1, 12]), *PAIRS[:1]]
ENCODER_DECODERS = ("bart", "mbart")
BOTH = [name for name in NATIVE if name in flax_auto.FAMILIES]
# What Flax and NumPy say of transformers' Flax classes.
quietly = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")


def load_and_tokenize(folder, texts=TEXTS):
    """The model, and what transformers' tokenizers give: no positions."""
    tokens = flaxsent.load(folder, backend="native").tokenize(texts)
    inputs = {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask}
    return FlaxAutoModelForSequenceClassification.from_pretrained(folder), inputs | {
        "token_type_ids": tokens.token_type_ids
    }


@functools.partial(jax.jit, static_argnums=(0, 3))
def jitted(model, params, arrays, flags):
    return model(**arrays, params=params, **dict(flags))


def run(model, inputs, **flags):
    """Under jit, which compiles less than all operations by themselves."""
    return jitted(model, model.params, inputs, tuple(flags.items()))


def shallow(tiny_folder, family, **changes):
    """A folder of a model of one layer, ModernBERT's of one of either kind: what compiles soon."""
    key, _ = {**BERT_KEYS, **models.FAMILIES[family].keys}["num_layers"]
    decoder = {"decoder_layers": 1} if family in ENCODER_DECODERS else {}
    return tiny_folder(family, **{key: 2 if family == "modernbert" else 1}, **decoder, **changes)


def difference(ours, theirs, mask=True):
    return np.abs(np.where(mask, np.asarray(ours) - np.asarray(theirs), 0)).max()


def compare(ours, theirs, mask_BL):
    """All outputs of one name; states and probabilities where there are tokens, as both sides fill padding anyhow."""
    assert difference(ours["logits"], theirs["logits"]) <= TOLERANCE
    pairs_B1LL = (mask_BL[:, :, None] & mask_BL[:, None, :])[:, None]
    names = [name for name in ours if name.endswith(("hidden_states", "attentions"))]
    assert len(names) >= 2
    for name in names:
        mask = pairs_B1LL if name.endswith("attentions") else mask_BL[..., None]
        states = [*zip(ours[name], theirs[name], strict=True)]
        for our, their in states if name.endswith("attentions") else states[:-1]:
            assert difference(our, their, mask) <= TOLERANCE, name


@pytest.mark.torch
@pytest.mark.parametrize("family", others_slow(["bert", "bart", "deberta-v2"], NATIVE))
def test_outputs_are_those_of_pytorch(tiny_folder, family):
    """The last state of all is compared in `tests/models`: ModernBERT's differs between transformers 4 and 5."""
    import inspect

    import torch

    # BART's takes texts of equal numbers of EOS.
    folder = shallow(tiny_folder, family)
    model, inputs = load_and_tokenize(folder, TEXTS[: 3 if family in ENCODER_DECODERS else 4])
    reference = pytorch(folder)
    known = inspect.signature(reference.forward).parameters
    tensors = {name: torch.tensor(array).long() for name, array in inputs.items() if name in known}
    everything = {"output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        theirs = reference(**tensors, **everything)
    compare(run(model, inputs, **everything), theirs, inputs["attention_mask"] > 0)


@quietly
@pytest.mark.flax_auto
@pytest.mark.parametrize("family", others_slow(["bert", "roberta"], BOTH))
def test_outputs_are_those_of_transformers_flax_class(tiny_folder, family):
    """BART's sees equal numbers of EOS only, and its decoder sees padding: texts of one length, no pairs."""
    import transformers

    folder = shallow(tiny_folder, family)
    model, inputs = load_and_tokenize(folder, texts_of_lengths([9, 9, 9]))
    if family in (*ENCODER_DECODERS, "distilbert"):
        del inputs["token_type_ids"]
    everything = {"output_hidden_states": True, "output_attentions": True}
    with flax_auto._their_promotion():
        reference = transformers.FlaxAutoModelForSequenceClassification.from_pretrained(folder)
        theirs = run(reference, inputs, **everything)
        as_tuple = jax.eval_shape(lambda: reference(**inputs, **everything, return_dict=False))
    ours = run(model, inputs, **everything)
    compare(ours, theirs, inputs["attention_mask"] > 0)
    if family != "distilbert":  # theirs gives attentions before hidden states, in a tuple alone
        our_tuple = jax.eval_shape(lambda: model(**inputs, **everything, return_dict=False))
        assert jax.tree.map(jnp.shape, our_tuple) == jax.tree.map(jnp.shape, as_tuple)
    assert [*ours.keys()] == [*theirs.keys()]
    assert jax.tree.map(jnp.shape, dict(model.params)) == jax.tree.map(jnp.shape, dict(reference.params))


@pytest.mark.torch
@pytest.mark.parametrize("family", ["bert", "albert", "bart", "deberta-v2"])
def test_the_encoder_alone_is_pytorchs(tiny_folder, tmp_path, family):
    """Read from a classifier's folder, saved, and opened by PyTorch's AutoModel."""
    import torch
    from transformers import AutoModel

    folder = shallow(tiny_folder, family)
    _, inputs = load_and_tokenize(folder)
    model = FlaxAutoModel.from_pretrained(folder)
    model.save_pretrained(tmp_path)
    reference, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True, attn_implementation="eager")
    assert not info["missing_keys"]
    with torch.no_grad():
        theirs = reference.eval()(
            **{name: torch.tensor(inputs[name]).long() for name in [*inputs][: 2 if family == "bart" else 3]}
        )
    ours, mask_BL = run(model, inputs), inputs["attention_mask"] > 0
    assert difference(ours.last_hidden_state, theirs.last_hidden_state, mask_BL[..., None]) <= TOLERANCE
    assert (ours.pooler_output is not None) == (family in ("bert", "albert"))
    if ours.pooler_output is not None:
        assert difference(ours.pooler_output, theirs.pooler_output) <= TOLERANCE
    again = FlaxAutoModel.from_pretrained(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, model.params, again.params)


@pytest.mark.torch
@pytest.mark.parametrize("family", ["roberta", "mbart", "modernbert"])
def test_what_is_saved_opens_in_pytorch_and_in_load(tiny_folder, tmp_path, family):
    import torch

    shutil.copytree(tiny_folder(family), tmp_path, dirs_exist_ok=True)
    model, _ = load_and_tokenize(tmp_path)
    model.config.id2label = {index: f"kind {index}" for index in range(3)}
    model.save_pretrained(tmp_path, params=jax.tree.map(lambda leaf: 0.9 * leaf, model.params))
    saved = dict(pytorch(tmp_path).named_parameters())
    for name, theirs in pytorch(tiny_folder(family)).named_parameters():
        torch.testing.assert_close(0.9 * theirs, saved[name])
    classifier = flaxsent.load(tmp_path, backend="native")  # whose tokenizer has stayed
    assert classifier.config.labels == ("kind 0", "kind 1", "kind 2")
    jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(0.9 * ours, theirs), model.params, classifier.params)


def test_weights_are_read_from_msgpack(tiny_folder, tmp_path):
    model, _ = load_and_tokenize(tiny_folder("bert"))
    shutil.copy(tiny_folder("bert") / "config.json", tmp_path)
    (tmp_path / weights.MSGPACK).write_bytes(serialization.to_bytes(model.params))
    again = FlaxAutoModelForSequenceClassification.from_pretrained(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)


@pytest.mark.torch
def test_weights_are_read_from_a_pickle(tiny_folder, tmp_path):
    import torch

    model, _ = load_and_tokenize(tiny_folder("bert"))
    shutil.copy(tiny_folder("bert") / "config.json", tmp_path)
    torch.save(pytorch(tiny_folder("bert")).state_dict(), tmp_path / weights.PICKLE)
    again = FlaxAutoModelForSequenceClassification.from_pretrained(tmp_path, from_pt=True)
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)


def test_the_module_composes_under_jit_grad_and_vmap(tiny_folder):
    model, inputs = load_and_tokenize(shallow(tiny_folder, "bert"))
    arrays = jax.tree.map(jnp.asarray, inputs)

    def loss(params, arrays):
        logits = model.module.apply({"params": params}, **arrays).logits
        return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.array([0, 1, 2, 0])).mean()

    value, gradient = jax.jit(jax.value_and_grad(loss))(model.params, arrays)
    logits = run(model, inputs).logits
    np.testing.assert_allclose(
        value, -jax.nn.log_softmax(logits)[jnp.arange(4), jnp.array([0, 1, 2, 0])].mean(), rtol=1e-5
    )
    assert all(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient["classifier"]))
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf[::-1]]), arrays)
    found = jax.jit(jax.vmap(lambda arrays: model(**arrays).logits))(stacked)
    np.testing.assert_allclose(found[1], logits[::-1], atol=TOLERANCE)
    model.enable_gradient_checkpointing()
    # The same sums in the same order, though not always fused alike.
    again = jax.jit(jax.grad(loss))(model.params, arrays)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), gradient, again)


def test_dropout_is_drawn_from_the_rng_in_training(tiny_folder):
    model, inputs = load_and_tokenize(shallow(tiny_folder, "bert"))
    first, again, old, other = (
        run(model, inputs | {"dropout_rng": key}, train=True).logits
        for key in (jax.random.key(1), jax.random.key(1), jax.random.PRNGKey(1), jax.random.key(2))
    )
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, old)
    assert difference(first, other) > 1e-2
    logits = run(model, inputs).logits
    assert difference(first, logits) > 1e-2
    np.testing.assert_array_equal(run(model, inputs | {"dropout_rng": jax.random.key(1)}).logits, logits)
    with pytest.raises(FlaxsentError, match="pass dropout_rng="):
        model(**inputs, train=True)


@pytest.mark.parametrize("family", ["bert", "mbart"])
def test_dtype_is_that_of_the_computation_and_not_of_the_params(tiny_folder, family):
    folder = shallow(tiny_folder, family)
    exact, inputs = load_and_tokenize(folder)
    model = FlaxAutoModelForSequenceClassification.from_pretrained(folder, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(model.params)} == {jnp.dtype(jnp.float32)}
    found = run(model, inputs, output_hidden_states=True)
    states = found["decoder_hidden_states" if family == "mbart" else "hidden_states"]
    assert {state.dtype for state in states} == {jnp.dtype(jnp.bfloat16)}
    native = flaxsent.load(folder, backend="native", dtype=jnp.bfloat16)
    tokens = native.tokenize(TEXTS)
    # bfloat16 has 8 bits; XLA rounds where it does not fuse.
    assert difference(found.logits, jax.jit(native.forward)(native.params, tokens)) < 0.05
    assert 1e-4 < difference(found.logits, run(exact, inputs).logits) < 0.1


def test_left_padded_rows_give_the_logits_of_right_padded_ones(tiny_folder):
    """The first token of the text is read, wherever it stands; transformers reads the first of the row."""
    model, inputs = load_and_tokenize(shallow(tiny_folder, "bert"), ["so good", "so good and bad"])
    positions = np.broadcast_to(np.arange(inputs["input_ids"].shape[1]), inputs["input_ids"].shape)
    shift = (1 - inputs["attention_mask"]).sum(axis=-1)
    moved = {
        name: np.stack([np.roll(row, by) for row, by in zip(array, shift, strict=True)])
        for name, array in (inputs | {"position_ids": positions}).items()
    }
    np.testing.assert_allclose(run(model, moved).logits, run(model, inputs).logits, atol=TOLERANCE)


@pytest.mark.slow
def test_attentions_of_rows_in_blocks_are_whole_and_refused_with_dropout(tiny_folder):
    model, _ = load_and_tokenize(shallow(tiny_folder, "modernbert", attention_dropout=0.1))
    ids = np.full((1, 130), 7)
    *_, local = model(ids, output_attentions=True).attentions
    distance = np.abs(np.arange(130)[:, None] - np.arange(130))
    np.testing.assert_allclose(local.sum(axis=-1), 1, atol=1e-6)
    assert (local[..., distance > 4] == 0).all(), "of a window"
    with pytest.raises(FlaxsentError, match="rows of 130 tokens are attended in blocks"):
        model(ids, output_attentions=True, train=True, dropout_rng=jax.random.key(0))


# params


def test_without_init_the_model_holds_no_params(tiny_folder):
    model, params = FlaxAutoModelForSequenceClassification.from_pretrained(tiny_folder("bert"), _do_init=False)
    with pytest.raises(FlaxsentError, match="holds no params"):
        _ = model.params
    with pytest.raises(FlaxsentError, match="holds no params"):
        model.params = params
    assert jax.eval_shape(lambda: model(np.array([[2, 7, 3]]), params=params)).logits.shape == (1, 3)
    kept = {"bert": params["bert"]}
    filled = model.init_weights(jax.random.key(0), (1, 1), params=kept)
    assert filled["bert"]["embeddings"] is not None
    assert jax.tree.map(jnp.shape, filled) == jax.tree.map(jnp.shape, params)


def test_a_number_of_labels_that_is_not_the_checkpoints_is_refused_or_drawn(tiny_folder, caplog):
    read = FlaxAutoModelForSequenceClassification.from_pretrained
    with pytest.raises(FlaxsentError, match=r"classifier.weight: expected \(5, 36\), got \(3, 36\)"):
        read(tiny_folder("bert"), num_labels=5)
    with caplog.at_level(logging.WARNING, "flaxsent"):
        model = read(tiny_folder("bert"), num_labels=5, ignore_mismatched_sizes=True)
    assert "the shapes did not match: classifier.bias, classifier.kernel" in caplog.text
    assert model(np.array([[2, 7, 3]])).logits.shape == (1, 5)
    assert model.config.num_labels == 5
    assert read(tiny_folder("bert"), id2label={0: "a", 1: "b", 2: "c"}).config.id2label[2] == "c"


def test_a_head_is_drawn_for_an_encoder_and_half_an_encoder_is_none(tiny_folder, tmp_path, caplog):
    encoder = FlaxAutoModel.from_pretrained(tiny_folder("bert"))
    encoder.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING, "flaxsent"):
        model = FlaxAutoModelForSequenceClassification.from_pretrained(tmp_path, seed=1)
    assert "newly drawn, and to be trained, because it does not have them: classifier.bias" in caplog.text
    jax.tree.map(np.testing.assert_array_equal, model.params["bert"], encoder.params)
    assert jnp.abs(model.params["classifier"]["kernel"]).max() > 0
    half = {name: node for name, node in encoder.params.items() if name != "embeddings"}
    encoder.save_pretrained(tmp_path, params=half)
    with pytest.raises(FlaxsentError, match=r"- bert\.embeddings\.word_embeddings\.weight"):
        FlaxAutoModelForSequenceClassification.from_pretrained(tmp_path)


def test_configs_of_transformers_make_models(tiny_folder):
    from transformers import CONFIG_MAPPING

    sizes = {"vocab_size": 61, "hidden_size": 36, "num_hidden_layers": 1, "num_attention_heads": 3}
    config = CONFIG_MAPPING["bert"](**sizes, intermediate_size=50, num_labels=4)
    model = FlaxAutoModelForSequenceClassification.from_config(config, seed=3)
    assert model.config is config
    assert model(np.array([[2, 7, 3]])).logits.shape == (1, 4)
    config = FlaxAutoModel.from_pretrained(tiny_folder("roberta")).config
    again = FlaxAutoModelForSequenceClassification.from_pretrained(tiny_folder("roberta"), config=config)
    ids = np.array([[2, 7, 3, 1]])
    expected = FlaxAutoModelForSequenceClassification.from_pretrained(tiny_folder("roberta"))(ids).logits
    np.testing.assert_array_equal(again(ids).logits, expected)


def test_mistakes_are_told_in_one_line(tiny_folder, tmp_path):
    read = FlaxAutoModelForSequenceClassification.from_pretrained
    folder = tiny_folder("bert")
    model = read(folder, token=None, cache_dir=None, trust_remote_code=False)
    ids = np.array([[2, 7, 3]])
    for call, message in [
        (lambda: read(folder, token="secret"), "token is read from the environment; set HF_TOKEN"),
        (lambda: read(folder, num_lables=3), "num_lables: neither an argument of from_pretrained nor a key of bert's"),
        (lambda: read(folder, config=model.config, num_labels=3), "config is given, and so are its keys num_labels"),
        (lambda: read(tiny_folder("big_bird")), "no native encoder for big_bird"),
        (lambda: model(ids[0]), r"input_ids have shape \(3,\); expected texts by tokens"),
        (lambda: model(ids + 60), "input_ids are 62 to 67; expected 0 to 60"),
        (lambda: model(ids, head_mask=np.ones((3, 3))), "masks no heads"),
        (lambda: model.save_pretrained(tmp_path, push_to_hub=True), "call huggingface_hub.upload_folder"),
        (lambda: setattr(model, "params", {"bert": model.params["bert"]}), "params lack classifier.bias"),
    ]:
        with pytest.raises(FlaxsentError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert [*tmp_path.iterdir()] == []


# nnx


def test_a_training_step_of_nnx_is_flaxsents_own(tiny_folder):
    """With dropout from the same key, by the same optimizer; both under jit."""
    from functools import partial

    from flaxsent.training import step
    from flaxsent.training.batches import Batch

    folder = shallow(tiny_folder, "roberta")
    classifier = flaxsent.load(folder, backend="native", matmul_precision=None)
    optimizer, key = optax.sgd(0.1), jax.random.key(7)
    labels = np.array([0, 1, 2, 0])
    batch = Batch(tokens=classifier.tokenize(TEXTS), labels=labels, weights=np.ones(4, np.float32))
    state = step.TrainState(
        classifier.params, classifier.params, optimizer.init(classifier.params), jnp.zeros((), jnp.int32), key
    )
    loss = partial(step.loss, forward=classifier.forward)
    own, report = jax.jit(partial(step.train_step, loss=loss, optimizer=optimizer, average_decay=0.9))(state, batch)

    model = SequenceClassifier(classifier.params, config=classifier.config)
    nnx_optimizer = nnx.Optimizer(model, optimizer, wrt=nnx.Param)

    @nnx.jit
    def train_step(model, nnx_optimizer, tokens, labels, key):
        def loss(model):
            logits = model(tokens.input_ids, tokens.attention_mask, tokens.token_type_ids, rngs=key)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        value, gradient = nnx.value_and_grad(loss)(model)
        nnx_optimizer.update(model, gradient)
        return value

    dropout_key = jax.random.split(key)[1]  # as `step.train_step` does
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # nnx and optax mix them
        value = train_step(model, nnx_optimizer, batch.tokens, labels, dropout_key)
    np.testing.assert_allclose(value, report.loss, rtol=1e-6)
    moved = jax.tree.map(lambda new, old: jnp.abs(new - old).max(), own.params, classifier.params)
    assert max(map(float, jax.tree.leaves(moved))) > 1e-2
    # Gradients of size 1, summed in another order where XLA fuses otherwise.
    close = partial(np.testing.assert_allclose, atol=1e-5)
    jax.tree.map(lambda ours, theirs: close(theirs, ours), own.params, model.pure_params())


def test_nnx_splits_merges_and_shards_by_rules(tiny_folder):
    classifier = flaxsent.load(shallow(tiny_folder, "bert"), backend="native")
    tokens = classifier.tokenize(TEXTS)
    inputs = (tokens.input_ids, tokens.attention_mask, tokens.token_type_ids)

    def rule(path, shape):
        return ("model", None) if path[-1] == "embedding" else None

    mesh = jax.make_mesh((1,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        model = nnx.jit(lambda params: SequenceClassifier(params, config=classifier.config, partition=rule))(
            classifier.params
        )
        graphdef, state = nnx.split(model)
        specs = nnx.get_partition_spec(state)
        logits = nnx.jit(lambda model: model(*inputs))(nnx.merge(graphdef, state))
    is_spec = lambda node: isinstance(node, jax.sharding.PartitionSpec)  # noqa: E731
    found = jax.tree.leaves(specs["params"]["bert"]["embeddings"], is_leaf=is_spec)
    assert found.count(jax.sharding.PartitionSpec("model", None)) == 3
    np.testing.assert_allclose(logits, jax.jit(classifier.forward)(classifier.params, tokens), atol=TOLERANCE)
    jax.tree.map(np.testing.assert_array_equal, model.pure_params(), classifier.params)
    dropped = nnx.jit(lambda model, rngs: model(*inputs, rngs=rngs))(model, nnx.Rngs(dropout=1))
    assert difference(dropped, logits) > 1e-2
    assert dataclasses.replace(classifier, params=model.pure_params()).params.keys() == classifier.params.keys()


# load


@pytest.mark.parametrize("family", ["bert", pytest.param("bart", marks=pytest.mark.slow)])
def test_forward_is_this_class_where_transformers_has_none(tiny_folder, monkeypatch, family):
    monkeypatch.setattr(flax_auto, "has_theirs", lambda: False)
    folder = shallow(tiny_folder, family)
    classifier, native = (flaxsent.load(folder, backend=backend) for backend in (None, "native"))
    assert classifier.backend == "flax"
    tokens, key = native.tokenize(TEXTS), jax.random.key(0)
    logits = jax.jit(native.forward)(native.params, tokens)
    np.testing.assert_allclose(jax.jit(classifier.forward)(native.params, tokens), logits, atol=TOLERANCE)
    hidden = jax.jit(classifier.hidden_states)(native.params, tokens)
    np.testing.assert_allclose(hidden, jax.jit(native.hidden_states)(native.params, tokens), atol=TOLERANCE)
    assert difference(jax.jit(classifier.forward)(native.params, tokens, key), logits) > 1e-2


def test_neither_transformers_nor_torch_is_imported_for_a_first_answer(tiny_folder):
    code = (
        "import sys, numpy; from flaxsent.flax import FlaxAutoModelForSequenceClassification as F; "
        f"F.from_pretrained({str(tiny_folder('bert'))!r})(numpy.array([[2, 7, 3]])); "
        "print({'transformers', 'torch'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
