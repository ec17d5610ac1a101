"""Fine-tuning: the losses and their gradients against PyTorch, and that a run learns, repeats and keeps its input."""

import collections
import dataclasses
import functools
import json
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flaxsent
from flaxsent import packing
from flaxsent.base import FlaxsentError
from flaxsent.checkpoint.weights import to_tensors
from flaxsent.data.labels import Examples
from flaxsent.training import batches, optimizer, step
from flaxsent.training import trainer as training
from flaxsent.training.batches import Batch
from flaxsent.training.options import TrainOptions
from flaxsent.training.trainer import Trainer, forward_of_rows
from flaxsent.transforms.quantize import quantize
from tests.conftest import NATIVE, accuracy, others_slow, texts_of_lengths

TEXTS = texts_of_lengths([1, 7, 12, 30])
ONE_LABEL = [0, 2, 1, 1]
LABELS = {
    "single_label_classification": ONE_LABEL,
    "multi_label_classification": [(0, 2), (), (1,), (0, 1, 2)],
    "regression": [0.5, -2.0, 1.25, 3.0],
}


def load(folder, *, problem_type="single_label_classification", backend="native", **arguments):
    if problem_type == "single_label_classification":
        return flaxsent.load(folder, backend=backend, **arguments)
    labels = ["a", "b", "c"] if problem_type == "multi_label_classification" else ["value"]
    return flaxsent.load(folder, backend=backend, labels=labels, problem_type=problem_type, **arguments)


def a_batch(classifier, labels, *, is_packed):
    """All texts in packed rows, or padded, with the function that gives the mean loss of such a batch."""
    if not is_packed:
        classifier = dataclasses.replace(classifier, forward_packed=None)
    data = Examples(TEXTS, labels)
    arrays = batches.labels_as_arrays(data, classifier.config)
    corpus = batches.Corpus(classifier.tokenizer.encode(TEXTS), arrays)
    (plan, *_) = batches.plan_epoch(
        corpus.encodings.lengths,
        [packing.StepShape(8, 64, 5 if is_packed else 1)],
        is_packed=is_packed,
        seed=0,
        epoch=0,
    )
    forward = forward_of_rows(classifier, TrainOptions(), plan.shape.num_segments)
    return corpus.batch(plan), functools.partial(
        step.loss, forward=forward, problem_type=classifier.config.problem_type
    )


def pytorch_gradients(folder, labels, *, problem_type):
    """The loss and the gradient of every parameter, of transformers' own loss."""
    import torch
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager").eval()
    tokens = flaxsent.load(folder).tokenize(TEXTS)
    target = torch.tensor(labels)
    if problem_type == "multi_label_classification":
        target = target.float()
    out = model(
        input_ids=torch.tensor(tokens.input_ids), attention_mask=torch.tensor(tokens.attention_mask), labels=target
    )
    out.loss.backward()
    return out.loss.item(), {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}


def gradient_of(loss):
    return jax.jit(jax.value_and_grad(loss))


def check_gradients(ours, theirs):
    for name, gradient in theirs.items():
        # Relative to the largest entry: float32 sums over a few hundred terms in another order. The gradient of the
        # keys' biases is 0 in exact arithmetic, so it has no scale of its own.
        scale = max(np.abs(gradient).max(), 1e-2)
        assert np.abs(ours[name] - gradient).max() <= 1e-4 * scale, name


@pytest.mark.torch
@pytest.mark.parametrize(
    ("family", "is_packed"),
    others_slow([("bert", False), ("bert", True)], [(family, True) for family in NATIVE]),
)
def test_loss_and_gradient_without_dropout_equal_pytorch(tiny_folder, family, is_packed):
    classifier = load(tiny_folder(family))
    batch, loss = a_batch(classifier, ONE_LABEL, is_packed=is_packed)
    value, gradient = gradient_of(loss)(classifier.params, batch, None)
    their_value, theirs = pytorch_gradients(tiny_folder(family), ONE_LABEL, problem_type="single")
    assert abs(float(value) - their_value) <= 1e-5
    check_gradients(to_tensors(gradient), theirs)


@pytest.mark.torch
@pytest.mark.flax_auto
def test_flax_gradient_without_dropout_equals_pytorch(tiny_folder):
    folder = tiny_folder("roberta-prelayernorm")  # which does not pack
    classifier = load(folder, backend="flax")
    batch, loss = a_batch(classifier, ONE_LABEL, is_packed=False)
    value, gradient = gradient_of(loss)(classifier.params, batch, None)
    their_value, theirs = pytorch_gradients(folder, ONE_LABEL, problem_type="single")
    assert abs(float(value) - their_value) <= 1e-5
    check_gradients(to_tensors(gradient), theirs)


@pytest.mark.torch
@pytest.mark.parametrize("problem_type", ["multi_label_classification", "regression"])
def test_other_losses_equal_pytorch(tiny_folder, tmp_path, problem_type):
    classifier = load(tiny_folder("bert"), problem_type=problem_type)
    flaxsent.save(classifier, tmp_path)
    labels = LABELS[problem_type]
    batch, loss = a_batch(classifier, labels, is_packed=True)
    value, gradient = gradient_of(loss)(classifier.params, batch, None)
    arrays = batches.labels_as_arrays(Examples(TEXTS, labels), classifier.config)
    their_value, theirs = pytorch_gradients(tmp_path, arrays.tolist(), problem_type=problem_type)
    assert abs(float(value) - their_value) <= 1e-5 * abs(their_value)
    check_gradients(to_tensors(gradient), theirs)


@pytest.mark.torch
def test_label_smoothing_equals_pytorch():
    import torch

    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(6, 3)).astype(np.float32), np.array([0, 2, 1, 1, 0, 2], np.int32)
    batch = Batch(None, labels, np.ones(6, np.float32))
    ours = step.loss({}, batch, None, forward=lambda *_: jnp.asarray(logits), label_smoothing=0.2)
    theirs = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(labels).long(), label_smoothing=0.2)
    assert abs(float(ours) - theirs.item()) <= 1e-6  # a few float32 roundings


@pytest.mark.parametrize("problem_type", LABELS)
def test_a_student_that_is_its_teacher_has_nothing_to_learn_of_it(problem_type):
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(5, 1 if problem_type == "regression" else 3)), "float32")
    scores = {
        "single_label_classification": jax.nn.softmax(logits, axis=-1),
        "multi_label_classification": jax.nn.sigmoid(logits),
        "regression": logits,
    }[problem_type]
    labels = {"regression": logits[:, 0]}.get(problem_type, scores)
    labels = jnp.zeros(5, jnp.int32) if problem_type == "single_label_classification" else labels
    batch = Batch(None, labels, jnp.ones(5), scores)
    at = functools.partial(
        step.loss,
        problem_type=problem_type,
        teacher_weight=1.0,
        teacher_temperature=3.0,
        forward=lambda params, *_: params["logits"],
    )
    moved = logits + jnp.linspace(0.0, 9.0, logits.size).reshape(logits.shape)
    gradient, other = (jax.grad(at)({"logits": at_logits}, batch, None)["logits"] for at_logits in (logits, moved))
    assert jnp.abs(gradient).max() <= 1e-6  # rounding of scores in float32
    assert jnp.abs(other).max() >= 1e-2


@pytest.mark.parametrize("problem_type", LABELS)
def test_of_a_text_without_a_label_only_the_teacher_counts(tiny_folder, problem_type):
    classifier = load(tiny_folder("bert", **SMALL), problem_type=problem_type)
    num_labels = classifier.config.num_labels
    scores = np.random.default_rng(1).uniform(0.1, 0.9, (len(TEXTS), num_labels)).astype(np.float32)
    losses = []
    for labels in (LABELS[problem_type][:2], LABELS[problem_type][1::-1]):
        trainer = Trainer(
            classifier,
            Examples(TEXTS[:2], labels),
            options=TrainOptions(batch_size=64),
            unlabelled=TEXTS[2:],
            teacher=scores,
        )
        (plan,) = trainer._plan(0)
        batch = trainer._train.batch(plan)
        assert jnp.sum(batch.weights) == len(TEXTS)
        assert jnp.sum(batch.is_labelled) == 2
        logits = jnp.asarray(np.random.default_rng(2).normal(size=batch.teacher.shape), jnp.float32)
        given = {"forward": lambda *_: logits, "problem_type": problem_type}  # noqa: B023
        alone = batch._replace(weights=batch.weights * batch.is_labelled)
        rest = batch._replace(weights=batch.weights * (1 - batch.is_labelled), labels=np.zeros_like(batch.labels))
        whole, with_labels = (step.loss({}, one, None, teacher_weight=0.3, **given) for one in (batch, alone))
        without = step.loss({}, rest, None, teacher_weight=1.0, **given)
        expected = (2 * with_labels + (len(TEXTS) - 2) * without) / len(TEXTS)
        assert abs(float(whole) - float(expected)) <= 1e-5 * abs(float(expected))  # float32 sums in another order
        losses.append(float(whole))
    assert losses[0] != losses[1]  # the labels that there are do count


def test_int8_is_refused(tiny_folder):
    classifier = flaxsent.load(tiny_folder("bert"), backend="native")
    small = dataclasses.replace(classifier, params=quantize(classifier.params))
    for options in (TrainOptions(), TrainOptions(lora_rank=2)):
        with pytest.raises(FlaxsentError, match="params in int8 have no gradient"):
            Trainer(small, Examples(["so good", "so bad"], [1, 0]), options=options)


def test_unlabelled_texts_need_a_teacher(tiny_folder):
    with pytest.raises(FlaxsentError, match="unlabelled texts need the scores of a teacher"):
        Trainer(load(tiny_folder("bert", **SMALL)), toy_data(5), unlabelled=["no label"])


def test_texts_that_are_not_there_count_for_nothing():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4)), jnp.float32)
    labels, weights = jnp.asarray([[0, 1, 2], [3, 0, 0]]), jnp.asarray([[1.0, 1, 1], [1, 0, 0]])
    filled = step.loss({}, Batch(None, labels, weights), None, forward=lambda *_: logits)
    four = Batch(None, labels.reshape(6)[:4], jnp.ones(4))
    alone = step.loss({}, four, None, forward=lambda *_: logits.reshape(6, 4)[:4])
    assert abs(float(filled) - float(alone)) <= 1e-6  # a few float32 roundings


@pytest.mark.parametrize("family", others_slow(["bert"], ["modernbert", "bart"]))
def test_dropout_of_packed_rows_differs_by_key_and_keeps_the_mean(tiny_folder, family):
    rates = {"bart": "dropout", "distilbert": "dropout", "modernbert": "classifier_dropout"}
    classifier = load(tiny_folder(family, **{rates.get(family, "hidden_dropout_prob"): 0.2}))
    batch, loss = a_batch(classifier, ONE_LABEL, is_packed=True)
    at = jax.jit(lambda key: loss(classifier.params, batch, key))
    keys = [jax.random.key(seed) for seed in range(2)]
    first, second, again = float(at(keys[0])), float(at(keys[1])), float(at(keys[0]))
    assert first == again != second


def toy_data(num: int, seed: int = 0) -> Examples:
    """A text is labelled by the word it has: good, bad or neither."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, num).tolist()
    fillers = texts_of_lengths(rng.integers(1, 4, num).tolist())
    words = ("so", "good good", "bad bad")
    clean = [" ".join(word for word in text.split() if word not in ("good", "bad")) for text in fillers]
    return Examples([f"{words[label]} {text}" for label, text in zip(labels, clean, strict=True)], labels)


SMALL = {"num_hidden_layers": 1}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
NAMES = ["none", "good", "bad"]


def test_fit_learns_repeats_itself_and_leaves_its_input_alone(tiny_folder):
    classifier = load(tiny_folder("bert", **SMALL), labels=NAMES, new_head=False)
    before = jax.tree.map(np.array, classifier.params)
    data, told = toy_data(300), []
    options = TrainOptions(learning_rate=1e-3, batch_size=20, num_epochs=3, average_decay=0.9)
    trained = flaxsent.fit(classifier, data, data, options=options, report=told.append)
    assert accuracy(trained, toy_data(100)) > 0.9 > accuracy(classifier, toy_data(100))
    assert told[-1].startswith("epoch 3 dev accuracy")
    jax.tree.map(np.testing.assert_array_equal, before, classifier.params)
    again = flaxsent.fit(classifier, data, options=options)
    jax.tree.map(np.testing.assert_array_equal, trained.params, again.params)


@pytest.mark.slow
@pytest.mark.flax_auto
def test_fit_learns_with_the_flax_backend(tiny_folder):
    classifier = load(tiny_folder("roformer", **SMALL), labels=NAMES, backend="flax", seed=1)
    options = TrainOptions(learning_rate=1e-3, batch_size=20, num_epochs=5, average_decay=0.9)
    trained = flaxsent.fit(classifier, toy_data(300), options=options)
    assert accuracy(trained, toy_data(100)) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("problem_type", ["multi_label_classification", "regression"])
def test_fit_learns_several_labels_and_values(tiny_folder, problem_type):
    data = toy_data(300)
    several, values = [(), (1,), (0, 2)], [0.0, 1.0, -1.0]
    labels = [(several if problem_type.startswith("multi") else values)[label] for label in data.labels]
    data, told = Examples(data.texts, labels), []
    classifier = load(tiny_folder("bert", **SMALL), problem_type=problem_type, seed=1)
    options = TrainOptions(learning_rate=2e-3, batch_size=20, num_epochs=6, average_decay=0.9)
    flaxsent.fit(classifier, data, data, options=options, report=told.append)
    name = "micro F1" if problem_type.startswith("multi") else "R2"
    assert told[-1].startswith(f"epoch 6 dev {name} ")
    assert float(told[-1].split()[-1]) > 0.9


def steps(classifier, data, options, num, **arguments):
    """The trainer and its state after some steps, with their losses."""
    trainer = Trainer(classifier, data, options=options, **arguments)
    events, losses, event = trainer.events(trainer.start()), [], None
    for _ in range(num):
        event = next(events)
        losses.append(float(event.report.loss))
    return trainer, event.snapshot.state, losses


@pytest.fixture
def traces(monkeypatch):
    """How often the functions of a step are traced: once each time that one is compiled."""
    counts = collections.Counter()

    def counted(name, function):
        def call(*args, **kwargs):
            counts[name] += 1
            return function(*args, **kwargs)

        return call

    for name in ("loss", "dev_logits"):
        monkeypatch.setattr(training, name, counted(name, getattr(step, name)))
    return counts


@pytest.mark.slow
def test_steps_of_packed_rows_compile_once(tiny_folder, traces):
    data = Examples(texts_of_lengths(np.random.default_rng(0).integers(1, 60, 200).tolist()), [0, 1] * 100)
    options = TrainOptions(batch_size=16, num_epochs=2)
    trainer = Trainer(load(tiny_folder("bert", **SMALL)), data, data, options=options)
    assert len([*trainer.events(trainer.start())]) == trainer.num_steps > 10
    assert traces == {"loss": 1, "dev_logits": 1}


@pytest.mark.slow
@pytest.mark.flax_auto
def test_padded_steps_compile_once_a_length(tiny_folder, traces):
    data = Examples(texts_of_lengths(np.random.default_rng(0).integers(1, 60, 100).tolist()), [0, 1] * 50)
    options = TrainOptions(batch_size=16, num_epochs=2, max_length=24)
    trainer = Trainer(load(tiny_folder("roformer", **SMALL), backend="flax"), data, options=options)
    assert len([*trainer.events(trainer.start())]) == trainer.num_steps
    assert traces["loss"] <= len(trainer.shapes) == 4  # 8, 12, 16, 24 tokens


def test_many_short_texts_beside_few_long_ones_fill_their_rows():
    lengths = np.random.default_rng(0).choice([4, 500], 5000, p=[0.95, 0.05]).tolist()
    shapes = batches.step_shapes(
        lengths, longest=500, is_packed=True, batch_size=32, tokens_per_step=None, multiple_of=1
    )
    plans = batches.plan_epoch(lengths, shapes, is_packed=True, seed=0, epoch=0)
    # Room for twice the texts of mean length would leave a fifth empty.
    assert sum(lengths) / sum(plan.shape.num_rows * plan.shape.row_length for plan in plans) > 0.95


@pytest.mark.parametrize(
    ("lengths", "row_length"), [([20, 10, 30], 64), ([40], 128), ([33, 45, 60], 96), ([30, 30, 70], 96), ([200], 256)]
)
def test_packed_rows_are_as_short_as_they_can_be_filled(lengths, row_length):
    lengths = np.random.default_rng(0).choice(lengths, 2000).tolist()
    told = {"longest": max(lengths), "is_packed": True, "batch_size": 32, "tokens_per_step": None, "multiple_of": 1}
    (shape,) = batches.step_shapes(lengths, shortest=64, **told)
    assert shape.row_length == row_length
    (shape,) = batches.step_shapes(lengths, **told)
    assert shape.row_length == max(row_length, packing.PACKED_ROW)


@pytest.mark.parametrize("is_packed", [True, False])
def test_an_epoch_has_each_text_once_in_full_rows(is_packed):
    lengths = np.random.default_rng(0).integers(3, 60, 2000).tolist()
    shapes = batches.step_shapes(
        lengths, longest=59, is_packed=is_packed, batch_size=32, tokens_per_step=None, multiple_of=1
    )
    plans = batches.plan_epoch(lengths, shapes, is_packed=is_packed, seed=3, epoch=1)
    assert sorted(text for plan in plans for row in plan.rows for text in row) == list(range(2000))
    assert all(len(plan.rows) == plan.shape.num_rows for plan in plans)
    places = sum(plan.shape.num_rows * plan.shape.row_length for plan in plans)
    # Packed in random order, what stays empty is what the shortest text does not fit in; padded, a quarter at most.
    assert sum(lengths) / places > (0.95 if is_packed else 0.75)
    again = batches.plan_epoch(lengths, shapes, is_packed=is_packed, seed=3, epoch=1)
    other = batches.plan_epoch(lengths, shapes, is_packed=is_packed, seed=3, epoch=2)
    assert again == plans != other
    if is_packed:  # no step is a small one, whose texts would count for more
        counts = [sum(map(len, plan.rows)) for plan in plans]
        assert min(counts) > 0.6 * np.mean(counts)


@pytest.mark.slow
def test_accumulation_leaves_the_step_as_it_is(tiny_folder):
    classifier = load(tiny_folder("bert", **SMALL, **NO_DROPOUT))
    data = toy_data(120)
    options = TrainOptions(tokens_per_step=8 * 128, learning_rate=1e-3, warmup=0.0)
    _, whole, losses = steps(classifier, data, options, 1)
    _, parts, in_parts = steps(classifier, data, dataclasses.replace(options, accumulation=4), 1)
    assert np.abs(np.subtract(losses, in_parts)).max() <= 1e-6
    for one, other in zip(jax.tree.leaves(whole.opt_state), jax.tree.leaves(parts.opt_state), strict=True):
        # Adam's moments are those of the gradient: its float32 sum over the texts has another order.
        np.testing.assert_allclose(one, other, atol=1e-6 * max(np.abs(one).max(), 1e-2))


@pytest.mark.slow
def test_bfloat16_computes_near_float32_and_keeps_float32_parameters(tiny_folder):
    classifier = load(tiny_folder("bert", **SMALL, **NO_DROPOUT))
    options = TrainOptions(learning_rate=1e-4)
    _, _, losses = steps(classifier, toy_data(120), options, 2)
    _, state, halves = steps(classifier, toy_data(120), dataclasses.replace(options, dtype="bfloat16"), 2)
    assert {leaf.dtype for leaf in jax.tree.leaves((state.params, state.average))} == {jnp.dtype("float32")}
    difference = np.abs(np.subtract(losses, halves)).max()
    assert 0 < difference <= 2e-2  # bfloat16 has 8 bits


@pytest.mark.flax_auto
def test_flax_computes_in_bfloat16_from_float32_parameters(tiny_folder):
    classifier = load(tiny_folder("roformer", **SMALL), backend="flax")
    options = TrainOptions(learning_rate=1e-4, dtype="bfloat16")
    trainer = Trainer(classifier, toy_data(30), options=options)
    assert not trainer.is_packed
    batch = trainer._put_batch(trainer._train, trainer._plan(0)[0])
    assert "bf16[" in str(jax.make_jaxpr(trainer.step)(trainer.start().state, batch))


@pytest.mark.slow
def test_frozen_parameters_stay_and_the_others_move(tiny_folder):
    classifier = load(tiny_folder("bert", **SMALL))
    options = TrainOptions(learning_rate=1e-3, warmup=0.0, freeze=("bert.embeddings.*", "*.query.*"))
    _, state, _ = steps(classifier, toy_data(60), options, 1)
    start = Trainer(classifier, toy_data(60), options=options).start_params
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.params):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        before = functools.reduce(lambda node, key: node[key.key], path, start)
        is_frozen = name.startswith("bert.embeddings.") or ".query." in name
        assert (leaf == before).all() == is_frozen, name


@pytest.mark.slow
def test_what_lies_below_all_that_is_trained_is_not_run_back(tiny_folder):
    classifier = load(tiny_folder("bert", **SMALL))

    def operations(*freeze):
        trainer = Trainer(classifier, toy_data(60), options=TrainOptions(freeze=freeze))
        batch = trainer._put_batch(trainer._train, trainer._plan(0)[0])
        return trainer.step.lower(trainer.start().state, batch).compile().cost_analysis()["flops"]

    # A step is a run forward and two as long back; only the head is run back here.
    assert operations("bert.embeddings.*", "bert.encoder.*") <= 0.5 * operations()


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        (("bert.embedings.*",), "no parameter matches 'bert.embedings.*'; they have names such as"),
        (("*",), "nothing to train"),
    ],
)
def test_patterns_that_freeze_nothing_or_all_are_refused(tiny_folder, freeze, message):
    with pytest.raises(FlaxsentError, match=re.escape(message)):
        Trainer(load(tiny_folder("bert", **SMALL)), toy_data(5), options=TrainOptions(freeze=freeze))


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("bert", {"bert.embeddings": 4, "bert.encoder.layer.0": 3, "bert.encoder.layer.2": 1, "bert.pooler": 0}),
        ("distilbert", {"distilbert.transformer.layer.0": 3, "pre_classifier": 0, "classifier": 0}),
        ("albert", {"albert.embeddings": 2, "albert.encoder.albert_layer_groups": 1, "albert.pooler": 0}),
        ("deberta-v2", {"deberta.encoder.rel_embeddings": 4, "deberta.encoder.LayerNorm": 0, "pooler": 0}),
        ("modernbert", {"model.embeddings": 5, "model.layers.3": 1, "model.final_norm": 0, "head": 0}),
        (
            "bart",
            {"model.shared": 6, "model.encoder.layers.0": 5, "model.decoder.layers.0": 3, "model.decoder.layers.2": 1},
        ),
    ],
)
def test_depths_count_layers_below_the_head(tiny_folder, family, expected):
    depths = optimizer.depths_below_top(load(tiny_folder(family)).params)
    for name, depth in expected.items():
        branch = functools.reduce(lambda node, key: node[key], name.split("."), depths)
        assert {*jax.tree.leaves(branch)} == {depth}, name


def test_layer_decay_scales_the_whole_update():
    params = {"embeddings": {"embedding": jnp.ones(2)}, "layer": {"0": {"kernel": jnp.ones(2)}}, "head": jnp.ones(2)}
    params["head"] = {"kernel": params["head"]}
    options = TrainOptions(learning_rate=0.1, warmup=0.0, weight_decay=0.5, layer_decay=0.5, max_grad_norm=0.0)
    with jax.numpy_dtype_promotion("standard"):
        adamw = optimizer.make_optimizer(options, 10, params)
        updates, _ = adamw.update(params, adamw.init(params), params)
    sizes = [float(-updates[name][leaf][0]) for name, leaf in (("head", "kernel"), ("embeddings", "embedding"))]
    np.testing.assert_allclose(sizes, [0.15, 0.0375], rtol=1e-5)  # Adam's first step is 1, decay adds 0.5


@pytest.mark.parametrize("size", [1e-20, 0.5, 3.0, 1e15])
def test_long_gradients_are_cut_as_optax_does_it(size):
    gradient = {"kernel": size * jax.random.normal(jax.random.key(0), (7, 5)), "bias": jnp.zeros(5)}
    with jax.numpy_dtype_promotion("standard"):
        expected, _ = optax.clip_by_global_norm(2.0).update(gradient, optax.EmptyState())
    found = optimizer.clipped(gradient, 2.0)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=3e-7)  # two roundings instead of two others


@pytest.mark.parametrize(("schedule", "at_three_quarters"), [("linear", 0.05), ("cosine", 0.05)])
def test_schedule_rises_and_falls_and_decay_spares_biases_and_norms(schedule, at_three_quarters):
    params = {"dense": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, "LayerNorm": {"scale": jnp.ones(2)}}
    options = TrainOptions(learning_rate=0.1, warmup=0.5, weight_decay=0.5, schedule=schedule)
    sizes = []
    with jax.numpy_dtype_promotion("standard"):
        adamw = optimizer.make_optimizer(options, 4, params)
        state = adamw.init(params)
        for _ in range(4):
            updates, state = adamw.update(jax.tree.map(jnp.zeros_like, params), state, params)
            sizes.append(-float(updates["dense"]["kernel"][0, 0]))
            assert float(jnp.abs(updates["dense"]["bias"]).max()) == 0
            assert float(jnp.abs(updates["LayerNorm"]["scale"]).max()) == 0
    # learning rate times weight decay; half way down, both curves are at the half
    np.testing.assert_allclose(sizes, [0, 0.025, 0.05, at_three_quarters / 2], rtol=1e-5)


def test_cosine_falls_slowly_at_first():
    options = TrainOptions(learning_rate=1.0, warmup=0.0, schedule="cosine")
    with jax.numpy_dtype_promotion("standard"):
        schedule = optimizer.make_schedule(options, 100)
        np.testing.assert_allclose([schedule(at) for at in (0, 25, 50, 100)], [1, 0.853553, 0.5, 0], atol=1e-5)


@pytest.mark.slow
def test_early_stopping_ends_the_run_with_the_best_epoch(tiny_folder, monkeypatch):
    classifier = load(tiny_folder("bert", **SMALL), labels=NAMES, seed=1)
    options = TrainOptions(num_epochs=6, early_stopping=2, batch_size=20, learning_rate=1e-3)
    scores = iter([0.1, 0.5, 0.4, 0.5, 0.9, 0.9])
    evaluate = Trainer.evaluate
    monkeypatch.setattr(Trainer, "evaluate", lambda *args, **kw: evaluate(*args, **kw)._replace(score=next(scores)))
    after, data = [], toy_data(60)
    best = flaxsent.fit(classifier, data, data, options=options, on_epoch=after.append)
    assert len(after) == 4
    jax.tree.map(np.testing.assert_array_equal, best.params, after[1].params)


def test_a_loss_that_is_no_number_ends_the_run(tiny_folder):
    with pytest.raises(FlaxsentError, match=r"the loss is nan at step \d+; try a lower learning_rate"):
        flaxsent.fit(
            load(tiny_folder("bert", **SMALL)), toy_data(60), options=TrainOptions(learning_rate=1e30, warmup=0.0)
        )


@pytest.mark.parametrize(
    ("problem_type", "labels", "message"),
    [
        ("single_label_classification", [0, 3], "the label of text 1 is 3; expected an index from 0 to 2"),
        ("single_label_classification", [], "2 texts with 0 labels"),
        ("multi_label_classification", [(0,), 1], "the label of text 1 is 1; expected a tuple of indices from 0 to 2"),
        ("regression", [0.5, float("nan")], "the label of text 1 is nan; expected a finite number"),
    ],
)
def test_labels_that_do_not_fit_are_refused_before_the_first_step(tiny_folder, problem_type, labels, message):
    with pytest.raises(FlaxsentError, match=message):
        Trainer(load(tiny_folder("bert", **SMALL), problem_type=problem_type), Examples(["a", "b"], labels))


@pytest.mark.slow
def test_rows_spread_over_eight_devices_give_the_losses_of_one(tiny_folder):
    """In a process of its own: the number of devices is set before JAX starts. Dropout is on."""
    code = (
        "import json, sys, jax, flaxsent\n"
        "from tests.training.test_trainer import steps, toy_data, TrainOptions\n"
        "classifier = flaxsent.load(sys.argv[1], backend='native')\n"
        "options = TrainOptions(tokens_per_step=16 * 128, accumulation=2, learning_rate=1e-3)\n"
        "_, state, losses = steps(classifier, toy_data(600), options, 4)\n"
        "leaf = state.params['classifier']['kernel']\n"
        "print(json.dumps([len(leaf.sharding.device_set), losses, leaf.tolist()]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tiny_folder("bert", **SMALL)],
        env={"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "PATH": "", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    num_devices, losses, kernel = json.loads(done.stdout.splitlines()[-1])
    assert (num_devices, jax.device_count()) == (8, 1)
    classifier = load(tiny_folder("bert", **SMALL))
    options = TrainOptions(tokens_per_step=16 * 128, accumulation=2, learning_rate=1e-3)
    _, state, expected = steps(classifier, toy_data(600), options, 4)
    # Sums over the rows in another order; Adam makes steps of size 1e-3 of gradients near 0, so parameters differ more.
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    np.testing.assert_allclose(kernel, state.params["classifier"]["kernel"], atol=1e-4)


def test_fit_comes_without_optax_at_import_and_says_what_to_install():
    code = (
        "import sys\n"
        "import flaxsent\n"
        "assert 'optax' not in sys.modules and 'flaxsent.training' not in sys.modules\n"
        "sys.modules['optax'] = None\n"
        "flaxsent.fit\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.endswith('training needs optax, which is not installed: pip install "flaxsent[train]"\n')
