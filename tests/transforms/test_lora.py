"""`transforms.lora`: what adapters compute, what is trained, and what is refused."""

import contextlib
import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxsent
from flaxsent import models
from flaxsent.base import FlaxsentError
from flaxsent.checkpoint.folder import save_adapter
from flaxsent.classifier import forward_packed
from flaxsent.data.labels import Examples
from flaxsent.engine import Engine
from flaxsent.evaluation.explanations import explain
from flaxsent.models.adapters import attach, has_adapters, is_trained, merge, part_of
from flaxsent.models.layers import AdapterDropout, dense
from flaxsent.models.stacking import stack
from flaxsent.training.trainer import Trainer
from flaxsent.transforms import gradient_x_input, lora, occlusion, windows, zero_shot
from flaxsent.transforms.by_segment import by_segment
from flaxsent.transforms.quantize import quantize
from tests.checkpoint.test_adapters import trained
from tests.conftest import NATIVE, counted_compilations, others_slow, texts_of_lengths
from tests.models.reference import TOLERANCE

TEXTS = texts_of_lengths([0, 1, 7, 30, 3, 3])


@pytest.fixture
def adapted(tiny_folder):
    def make(family="bert", seed=0, **options):
        classifier = flaxsent.load(tiny_folder(family), backend="native")
        return trained(lora.adapt(classifier, **options), seed)

    return make


def logits(classifier, params=None):
    params = classifier.params if params is None else params
    return np.asarray(jax.jit(classifier.forward)(params, classifier.tokenize(TEXTS)))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_layer_adds_what_its_adapter_says(dtype):
    rng = np.random.default_rng(0)
    x, kernel, a, b = (rng.normal(size=size) for size in ((7, 40), (40, 9), (40, 3), (3, 9)))
    layer = {"kernel": jnp.asarray(kernel, dtype), "lora_a": jnp.asarray(a, dtype), "lora_b": jnp.asarray(b, dtype)}
    layer |= {"lora_scale": jnp.asarray(0.5, dtype)}
    expected = x @ kernel + 0.5 * x @ a @ b
    # float32 sums of 40 products of size 1; bfloat16 rounds x, both kernels and the sum, of size 20, to 2 ** -8
    np.testing.assert_allclose(
        np.asarray(dense(layer, jnp.asarray(x, dtype)), np.float64),
        expected,
        atol=1e-4 if dtype == jnp.float32 else 0.5,
    )


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "albert", "bart", "modernbert"])
def test_merged_or_apart_the_logits_are_the_same(adapted, tiny_folder, family):
    classifier = adapted(family, targets=["all-linear"], rank=3, alpha=5.0)
    base = flaxsent.load(tiny_folder(family), backend="native")
    apart, merged = logits(classifier), logits(classifier, merge(classifier.params))
    assert np.abs(apart - logits(base)).max() > 0.1
    np.testing.assert_allclose(merged, apart, atol=TOLERANCE)
    part = part_of(classifier.params, config=classifier.config)
    np.testing.assert_array_equal(logits(classifier, attach(base.params, part)), apart)
    np.testing.assert_array_equal(logits(base, merge(base.params, part)), merged)
    stacked = stack(classifier.params, config=classifier.config)
    np.testing.assert_allclose(logits(classifier, stacked), apart, atol=TOLERANCE)
    np.testing.assert_allclose(logits(classifier, merge(stacked)), merged, atol=TOLERANCE)


def test_a_new_adapter_changes_nothing(tiny_folder):
    base = flaxsent.load(tiny_folder("bert"), backend="native")
    classifier = lora.adapt(base)
    np.testing.assert_array_equal(logits(classifier), logits(base))
    moved = [
        leaf
        for leaf, is_moved in zip(
            *map(jax.tree.leaves, (classifier.params, is_trained(classifier.params))), strict=True
        )
        if is_moved
    ]
    assert len(moved) == 3 * 2 * 2 + 4  # of three layers' queries and values, the pooler, the classifier
    layer = classifier.params["bert"]["encoder"]["layer"]["2"]["attention"]["self"]
    assert float(jnp.abs(layer["query"]["lora_a"]).max()) <= 1 / 6  # Kaiming's bound for 36 inputs
    assert not np.array_equal(layer["query"]["lora_a"], layer["value"]["lora_a"])


def test_adapters_stand_on_int8(adapted):
    classifier = adapted()
    small = quantize(classifier.params)
    assert has_adapters(small)
    assert models.is_int8(small)
    assert 0 < np.abs(logits(classifier, small) - logits(classifier)).max() < 0.2  # int8's own rounding
    with pytest.raises(FlaxsentError, match="this kernel is int8: merge, then quantize"):
        merge(small)


@pytest.mark.parametrize(
    ("changed", "options", "message"),
    [
        (quantize, {}, "params in int8 have no gradient"),
        (dict, {"rank": 0}, "rank=0; expected 1 or more"),
        (dict, {"rank": -2}, "rank=-2; expected 1 or more"),
    ],
)
def test_what_cannot_have_new_adapters_is_refused(tiny_folder, changed, options, message):
    classifier = flaxsent.load(tiny_folder("bert"), backend="native")
    with pytest.raises(FlaxsentError, match=message):
        lora.add(changed(classifier.params), config=classifier.config, key=jax.random.key(0), **options)


def test_targets_are_ends_of_names(tiny_folder):
    classifier = flaxsent.load(tiny_folder("bert"), backend="native")

    def found(*targets):
        return [*lora.targeted(classifier.params, config=classifier.config, targets=targets)]

    assert found("layer.1.output.dense") == ["bert.encoder.layer.1.output.dense"]
    assert len(found("query", "value")) == 6
    assert len(found("dense")) == 9  # none of the pooler, which is trained whole
    assert len(found("all-linear")) == 18
    for name in ("uery", "no_such", "LayerNorm", "word_embeddings", "classifier", "pooler.dense"):
        with pytest.raises(
            FlaxsentError, match=f"target '{name}' matches no layer .*; expected all-linear, or ends of"
        ):
            found("query", name)


@pytest.mark.parametrize("family", NATIVE)
def test_every_family_has_queries_and_values(tiny_folder, family):
    classifier = flaxsent.load(tiny_folder(family), backend="native")
    assert len(lora.targeted(classifier.params, config=classifier.config)) >= 2


@pytest.mark.slow
def test_dropout_is_of_each_row_and_adapter_and_right_on_average(adapted):
    classifier = adapted(dropout=0.5)
    plain = adapted()
    tokens = classifier.tokenize(["so good"] * 3)
    key = jax.random.key(0)
    rates = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "classifier_dropout": 0.0}
    config = dataclasses.replace(classifier.config, **rates)
    packed = lora.with_dropout(functools.partial(forward_packed, config=config), 0.5)
    drawn = np.asarray(jax.jit(packed, static_argnums=2)(classifier.params, tokens, 1, key))
    assert not np.allclose(drawn[0], drawn[1])
    without, expected = (jax.jit(one, static_argnums=2) for one in (packed, plain.forward_packed))
    np.testing.assert_array_equal(without(classifier.params, tokens, 1), expected(plain.params, tokens, 1))
    x, layer = (
        jnp.ones((1, 2000)),
        {"kernel": jnp.zeros((2000, 1)), "lora_a": jnp.ones((2000, 1)), "lora_b": jnp.ones((1, 1))},
    )
    layer |= {"lora_scale": jnp.ones(()), "lora_dropout": AdapterDropout(key, 0.25)}
    # The mean of 2,000 draws of 0 or 4 / 3: five standard deviations of 0.577 / sqrt(2000)
    assert abs(float(dense(layer, x)[0, 0]) / 2000 - 1) < 5 * 0.013


def test_what_has_adapters_gets_no_more(adapted):
    classifier = adapted()
    with pytest.raises(FlaxsentError, match="have adapters already: merge them"):
        lora.adapt(classifier)


def test_a_family_without_an_encoder_of_its_own_is_refused():
    config = models.config.read_config(json.dumps({"model_type": "big_bird", **SIZES}))
    with pytest.raises(FlaxsentError, match="no native encoder for big_bird"):
        lora.add({"bert": {}}, config=config, key=jax.random.key(0))


SIZES = {
    "vocab_size": 61,
    "hidden_size": 36,
    "num_hidden_layers": 1,
    "num_attention_heads": 3,
    "intermediate_size": 50,
    "max_position_embeddings": 40,
}


@pytest.fixture
def routed(tiny_folder, adapted):
    def make(family, targets=None):
        base = flaxsent.load(tiny_folder(family), backend="native")
        own = {
            "a": adapted(family, seed=1, rank=2, targets=targets),
            "b": adapted(family, seed=2, rank=3, alpha=5.0, targets=targets),
            "c": adapted(family, seed=3, targets=["all-linear"] if targets is None else targets),
        }
        parts = {name: part_of(one.params, config=one.config) for name, one in own.items()}
        return base, own, by_segment(base, parts)

    return make


@pytest.mark.parametrize("family", others_slow(["bert"], ["albert", "bart", "modernbert"]))
def test_adapters_in_one_row_give_what_each_gives_alone(routed, family):
    _, own, several = routed(family)
    texts = texts_of_lengths([1, 7, 30, 3, 3, 12] * 3)
    named = [("abc"[index % 3], text) for index, text in enumerate(texts)]
    alone = {name: np.asarray(Engine(one, function=one.logits)(texts)) for name, one in own.items()}
    expected = np.stack([alone[name][index] for index, (name, _) in enumerate(named)])
    assert np.abs(alone["a"] - alone["b"]).max() > 0.1
    with Engine(several, function=several.logits, row_lengths=[128]) as engine:
        engine.warmup()
        with counted_compilations() as compiled:
            found = engine(named)
            engine(named[::-1])
        assert not compiled
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)
    scores = several.predict(several.params, several.tokenize(named[:4]))
    np.testing.assert_allclose(scores, several.postprocess(jnp.asarray(expected[:4])), atol=TOLERANCE)


def test_as_many_texts_as_tokens_in_a_row(routed):
    _, _, several = routed("bert")
    tokens = several.tokenize([("b", "so good")])
    length = tokens.input_ids.shape[1]
    for count in (1, length):
        found = np.asarray(jax.jit(several.logits, static_argnums=2)(several.params, tokens, count))[0, 0]
        if count == 1:
            expected = found
        np.testing.assert_allclose(found, expected, atol=TOLERANCE)


def test_each_window_has_the_adapter_of_its_text(routed):
    base, _, several = routed("bert")
    texts = texts_of_lengths([3, 90, 60])
    several = windows(several, stride=5)
    found = several.tokenizer.encode_windows([*zip("cab", texts, strict=True)], several.windows)
    expected = base.tokenizer.encode_windows(texts, several.windows)
    assert found.encodings.input_ids == expected.encodings.input_ids
    assert found.texts.tolist() == expected.texts.tolist() == [0, 1, 1, 1, 2, 2]
    which = [2, 0, 0, 0, 1, 1]
    assert [{*types} for types in found.encodings.token_type_ids] == [{one} for one in which]


def test_words_are_explained_by_the_adapter_that_the_text_names(routed):
    _, own, several = routed("bert")
    one, expected = (
        next(explain([text], Engine(classifier, function=occlusion(classifier), row_lengths=[64])))
        for classifier, text in ((several, ("b", "so good, so bad")), (own["b"], "so good, so bad"))
    )
    assert [word.text for word in one.words] == [word.text for word in expected.words]
    assert {word.span.part for word in one.words} == {1}
    scores = [[word.score for word in each.words] for each in (one, expected)]
    np.testing.assert_allclose(*scores, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda clf, folder: clf.predict(clf.params, clf.tokenize([("a", "x")])), None),
        (lambda clf, folder: clf.forward(clf.params, clf.tokenize([("a", "x")]), jax.random.key(0)), "no dropout"),
        (lambda clf, folder: clf.logits(clf.params, clf.tokenize([("a", "x")]), 1, jax.random.key(0)), "no dropout"),
        (lambda clf, folder: Trainer(clf, Examples([("a", "x")], [0])), "neither trained nor saved"),
        (lambda clf, folder: flaxsent.export(clf, folder / "out"), "neither trained nor saved"),
        (lambda clf, folder: flaxsent.save(clf, folder / "out"), "neither trained nor saved"),
        (lambda clf, folder: save_adapter(clf, folder / "out"), "neither trained nor saved"),
    ],
)
def test_several_adapters_compute_and_are_neither_drawn_from_nor_trained_nor_written(routed, tmp_path, call, message):
    _, _, several = routed("bert")
    with contextlib.nullcontext() if message is None else pytest.raises(FlaxsentError, match=message):
        call(several, tmp_path)
    assert not any(tmp_path.iterdir())


def test_what_cannot_stand_in_a_row_is_refused(routed, tiny_folder, adapted):
    base, own, several = routed("bert")
    with pytest.raises(FlaxsentError, match=r"text 1 names no adapter; expected \(name, text\) with one of a, b, c"):
        flaxsent.classify([("a", "x"), ("d", "x")], several)
    part = part_of(own["a"].params, config=base.config)
    asked = {"labels": ["good", "bad"], "entailment": "LABEL_0"}
    with pytest.raises(FlaxsentError, match="expected one or more"):
        by_segment(base, {})
    with pytest.raises(FlaxsentError, match="labels of its own"):
        by_segment(zero_shot(base, **asked), {"a": part})
    with pytest.raises(FlaxsentError, match="several adapters in a row name no hypothesis"):
        zero_shot(several, **asked)
    with pytest.raises(FlaxsentError, match="which a classifier of several adapters has not; use occlusion"):
        gradient_x_input(several)
    with pytest.raises(FlaxsentError, match=r"the adapter 'x' changes bert\.embeddings\.LayerNorm by more"):
        by_segment(base, {"x": {"bert": {"embeddings": {"LayerNorm": base.params["bert"]["embeddings"]["LayerNorm"]}}}})
    wide = lora.adapt(flaxsent.load(tiny_folder("bert"), backend="native", labels=["x", "y"]))
    with pytest.raises(FlaxsentError, match="the adapter 'x' has 2 labels; expected 3"):
        by_segment(base, {"a": part, "x": part_of(wide.params, config=wide.config)})
    deberta = flaxsent.load(tiny_folder("deberta-v2"), backend="native")
    with pytest.raises(FlaxsentError, match="query_proj by more than what each token reads there"):
        by_segment(deberta, {"x": part_of(adapted("deberta-v2").params, config=deberta.config)})
