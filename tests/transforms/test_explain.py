"""Attributions beside a plain loop in float64 by PyTorch, beside Captum, and in a row by itself."""

import dataclasses
import functools
import inspect

import jax
import numpy as np
import pytest

import flaxsent
from flaxsent import models
from flaxsent.engine import Engine
from flaxsent.packing import Step, StepShape, best_fit, lay_rows
from flaxsent.parity import pytorch
from flaxsent.results import by_text, take
from flaxsent.transforms import gradient_x_input, integrated_gradients, occlusion, zero_shot
from flaxsent.transforms.zero_shot import hypotheses
from tests.conftest import NATIVE, counted_compilations, texts_of_lengths

# float32 beside float64: gradients of random weights through three layers, for scores of size 1.
TOLERANCE = 1e-4

TEXTS = ["so good", "I hate this film so much!", "not bad", ("this film", "so bad, not good"), "x y 1"]
# These tests spend their time compiling: what they share is compiled once, in one shape, and little optimised.
SHAPE = StepShape(num_rows=16, row_length=64, num_segments=8)

METHODS = {
    "integrated gradients": functools.partial(integrated_gradients, steps=5),
    "integrated from zeros": functools.partial(integrated_gradients, steps=5, baseline="zeros"),
    "gradient × input": gradient_x_input,
    "occlusion": occlusion,
    "occlusion by pad": functools.partial(occlusion, baseline="pad"),
}


def methods(*slow):
    """All of them; those that are not named here are slow."""
    names = [name if name in slow else pytest.param(name, marks=pytest.mark.slow) for name in METHODS]
    return pytest.mark.parametrize("method", names)


@pytest.fixture(scope="module")
def loaded(tiny_folder):
    """`loaded(family)`: one classifier for all tests, so that they share what is compiled."""
    return functools.cache(lambda family: flaxsent.load(tiny_folder(family), backend="native"))


@functools.cache
def compiled(classifier, method, **options):
    function = METHODS[method](classifier, **options)
    return jax.jit(function, static_argnums=2)


def explained(classifier, method, texts, *, is_packed=True, **options):
    """By the texts, as the engine gives them."""
    encodings = classifier.tokenizer.encode(texts)
    places = SHAPE if is_packed else SHAPE._replace(num_segments=1)
    rows = best_fit(sorted(range(len(texts)), key=lambda text: -encodings.lengths[text]), encodings.lengths, places)
    assert len(rows) <= SHAPE.num_rows
    rows += [[]] * (SHAPE.num_rows - len(rows))
    tokens, order, placement = lay_rows(encodings, rows, row_length=SHAPE.row_length)
    found = compiled(classifier, method, **options)(classifier.params, tokens, SHAPE.num_segments)
    step = Step(SHAPE, tokens, order, placement)
    return jax.tree.map(lambda leaf: take(leaf, np.argsort(order)), by_text(step, jax.device_get(found)))


def replaced(classifier, ids, token):
    backend = classifier.tokenizer.backend
    special = {backend.token_to_id(name) for name in ("[CLS]", "[SEP]")}
    return np.array([one if one in special else backend.token_to_id(token) for one in ids])


# PyTorch, text by text

EMBEDDINGS = {
    "albert": ["albert.encoder.embedding_hidden_mapping_in"],
    "bart": ["model.encoder.layernorm_embedding", "model.decoder.layernorm_embedding"],
    "mbart": ["model.encoder.layernorm_embedding", "model.decoder.layernorm_embedding"],
    "deberta-v2": ["deberta.embeddings"],
    "electra": ["electra.embeddings_project"],
    "modernbert": ["model.embeddings"],
}
"""The modules whose outputs the first layer reads; in other families, `{base}.embeddings`."""


class Theirs:
    """A model in float64, of which a text's embeddings can be replaced."""

    def __init__(self, folder, classifier):
        self.classifier = classifier
        self.model = pytorch.model(folder, dtype="float64", attention="eager")
        family = classifier.config.family
        self.names = EMBEDDINGS.get(family, [f"{models.base(classifier.config)}.embeddings"])
        self.taken = inspect.signature(self.model.forward).parameters

    def __call__(self, text, ids=None, embedded=None):
        """The logits, and what the first layer reads."""
        import torch

        tokens, seen = self.classifier.tokenize([text]), []
        inputs = {"input_ids": tokens.input_ids if ids is None else ids[None], "attention_mask": tokens.attention_mask}
        inputs |= {"position_ids": tokens.position_ids, "token_type_ids": tokens.token_type_ids}

        def hook(module, arguments, output):
            seen.append(output if embedded is None else embedded[len(seen)])
            return seen[-1]

        hooks = [self.model.get_submodule(name).register_forward_hook(hook) for name in self.names]
        try:
            taken = {name: torch.tensor(value, dtype=int) for name, value in inputs.items() if name in self.taken}
            logits = self.model(**taken).logits[0]
        finally:
            for one in hooks:
                one.remove()
        return logits, seen

    def gradients(self, text, label, start, nodes, weights):
        """By a plain loop: the scores of the tokens by each of the embeddings, and the gap."""
        import torch

        with torch.no_grad():
            logits, end = self(text)
            from_logits, _ = self(text, embedded=start)
        total = [torch.zeros_like(one) for one in end]
        for node, weight in zip(nodes, weights, strict=True):
            there = [(a + node * (b - a)).requires_grad_() for a, b in zip(start, end, strict=True)]
            gradients = torch.autograd.grad(self(text, embedded=there)[0][label], there)
            total = [sum_ + weight * gradient for sum_, gradient in zip(total, gradients, strict=True)]
        scores = [((b - a) * g).sum(-1)[0].numpy() for a, b, g in zip(start, end, total, strict=True)]
        return scores, float(sum(map(np.sum, scores)) - (logits - from_logits)[label])


@pytest.mark.torch
@pytest.mark.parametrize(
    ("family", "method"),
    [
        ("bert", "integrated gradients"),
        *[
            pytest.param(family, method, marks=pytest.mark.slow)
            for family in NATIVE
            for method in ("integrated gradients", "gradient × input")
            if (family, method) != ("bert", "integrated gradients")
            if method == "integrated gradients" or family in ("albert", "bart", "bert", "deberta-v2", "modernbert")
        ],
    ],
)
def test_gradients_are_those_of_a_plain_loop_in_float64(loaded, tiny_folder, family, method):
    import torch

    classifier = loaded(family)
    theirs = Theirs(tiny_folder(family), classifier)
    nodes, weights = np.polynomial.legendre.leggauss(5)
    is_integrated = method == "integrated gradients"
    nodes, weights = ((nodes + 1) / 2, weights / 2) if is_integrated else ([1.0], [1.0])
    found = explained(classifier, method, TEXTS)
    for index, text in enumerate(TEXTS):
        ids = classifier.tokenize([text]).input_ids[0]
        with torch.no_grad():
            _, end = theirs(text)
            _, start = theirs(text, ids=replaced(classifier, ids, "[PAD]"))
        start = start if is_integrated else [torch.zeros_like(one) for one in end]
        (own, *later), gap = theirs.gradients(text, int(found.label[index]), start, nodes, weights)
        # A decoder reads each token one place later, and first of all the last one.
        expected = sum((np.roll(one, -1) for one in later), start=own)
        size = max(1, np.abs(expected).max())
        np.testing.assert_allclose(found.scores[index], expected, atol=TOLERANCE * size)
        assert abs(found.gap[index] - gap) <= TOLERANCE * size
        assert np.abs(expected).max() > 0.01


@pytest.mark.torch
@pytest.mark.parametrize("family", ["bert", pytest.param("distilbert", marks=pytest.mark.slow)])
def test_integrated_gradients_are_those_of_captum(loaded, tiny_folder, family):
    captum_attr = pytest.importorskip("captum.attr")
    import torch

    classifier = loaded(family)
    model = pytorch.model(tiny_folder(family), dtype="float64", attention="eager")
    layer = getattr(model, models.base(classifier.config)).embeddings
    gradients = captum_attr.LayerIntegratedGradients(lambda ids: model(input_ids=ids).logits, layer)
    texts = [text for text in TEXTS if isinstance(text, str)]
    found = explained(classifier, "integrated gradients", texts)
    for index, text in enumerate(texts):
        ids = classifier.tokenize([text]).input_ids[0]
        expected, delta = gradients.attribute(
            torch.tensor(ids[None], dtype=int),
            torch.tensor(replaced(classifier, ids, "[PAD]")[None]),
            target=int(found.label[index]),
            n_steps=5,
            return_convergence_delta=True,
        )
        expected = expected.sum(-1)[0].numpy(force=True)
        np.testing.assert_allclose(found.scores[index], expected, atol=TOLERANCE * max(1, np.abs(expected).max()))
        assert abs(found.gap[index] - float(delta)) <= TOLERANCE * max(1, np.abs(expected).max())


# labels given at run time

LABELS = ["film", "hate this film so much"]
SINGLE = ["so good", "the film so bad", "good film ! ! !", "so so so", "film " * 60]
"""The last is cut, by more for the second label than for the first."""


def pair_of(classifier, text, label):
    """A text with its hypothesis, by the model itself, and which of the tokens are the text's."""
    pair = (text, hypotheses(LABELS, "it is {}")[label])
    (spans,) = classifier.tokenizer.spans([pair])
    return pair, np.array([span is not None and span.part == 0 for span in spans])


@pytest.mark.torch
@pytest.mark.parametrize(
    ("family", "method", "multi_label"),
    [
        ("bert", "integrated gradients", True),
        *[
            pytest.param(family, method, False, marks=pytest.mark.slow)
            for family in ("bert", "roberta", "bart")
            for method in ("integrated gradients", "gradient × input")
        ],
    ],
)
def test_gradients_by_a_label_given_at_run_time_are_those_of_its_pair(loaded, tiny_folder, family, method, multi_label):
    """By the plain loop in float64; the hypothesis belongs to the baseline."""
    import torch

    model = loaded(family)
    classifier = zero_shot(model, LABELS, template="it is {}", entailment="LABEL_0", multi_label=multi_label)
    theirs, is_integrated = Theirs(tiny_folder(family), model), method == "integrated gradients"
    nodes, weights = np.polynomial.legendre.leggauss(5)
    nodes, weights = ((nodes + 1) / 2, weights / 2) if is_integrated else ([1.0], [1.0])
    found = explained(classifier, method, SINGLE)
    assert len({*found.label.tolist()}) == 2, "each text has its own"
    for index, text in enumerate(SINGLE):
        pair, is_text = pair_of(model, text, int(found.label[index]))
        ids = model.tokenize([pair]).input_ids[0]
        with torch.no_grad():
            _, end = theirs(pair)
            _, start = theirs(pair, ids=np.where(is_text, model.tokenizer.pad_token_id, ids))
        start = start if is_integrated else [torch.zeros_like(one) for one in end]
        of_columns = []
        for column in (0, 2) if multi_label else (0,):  # entailment, less contradiction
            (own, *later), gap = theirs.gradients(pair, column, start, nodes, weights)
            of_columns.append((sum((np.roll(one, -1) for one in later), start=own), gap))
        (expected, gap), *less = of_columns
        for scores, other in less:
            expected, gap = expected - scores, gap - other
        size, end_of_text = max(1, np.abs(expected).max()), int(np.flatnonzero(is_text)[-1]) + 1
        np.testing.assert_allclose(found.scores[index][:end_of_text], expected[:end_of_text], atol=TOLERANCE * size)
        assert abs(found.scores[index][end_of_text:].sum() - expected[end_of_text:].sum()) <= TOLERANCE * size
        assert abs(found.gap[index] - gap) <= TOLERANCE * size
        assert np.abs(expected).max() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "method", "token"), [("bert", "occlusion", "[MASK]"), ("roberta", "occlusion by pad", "[PAD]")]
)
def test_occlusion_by_a_label_given_at_run_time_hides_the_text_alone(loaded, family, method, token):
    model = loaded(family)
    classifier = zero_shot(model, LABELS, template="it is {}", entailment="LABEL_0")
    found = explained(classifier, method, SINGLE)
    hidden = model.tokenizer.backend.token_to_id(token)
    forward = jax.jit(model.forward)
    for index, text in enumerate(SINGLE):
        pair, is_text = pair_of(model, text, int(found.label[index]))
        tokens, places = model.tokenize([pair]), np.flatnonzero(is_text)
        rows = jax.tree.map(functools.partial(np.repeat, repeats=len(places) + 1, axis=0), tokens)
        rows.input_ids[1 + np.arange(len(places)), places] = hidden
        own, *others = np.asarray(forward(model.params, rows))[:, 0]
        expected = np.zeros(len(found.scores[index]))
        expected[places] = own - np.array(others)
        np.testing.assert_allclose(found.scores[index], expected, atol=2e-5)
        assert np.abs(expected).max() > 0.01


# a text by itself


@pytest.mark.parametrize("family", ["bert", pytest.param("bart", marks=pytest.mark.slow)])
@methods("integrated gradients", "occlusion")
def test_packed_rows_give_what_single_texts_give(loaded, family, method):
    texts = [*TEXTS, "", "so " * 60, *texts_of_lengths([1, 9, 3, 17, 2, 2, 30])]
    packed, single = (explained(loaded(family), method, texts, is_packed=is_packed) for is_packed in (True, False))
    for one, other in zip(jax.tree.leaves(packed), jax.tree.leaves(single), strict=True):
        for index in range(len(texts)):
            # The same sums in another order, for scores of size 10.
            np.testing.assert_allclose(one[index], other[index], atol=2e-5, rtol=1e-4)
    assert np.abs(np.concatenate(packed.scores)).max() > 0.1


@pytest.mark.parametrize(
    "method",
    [
        "integrated gradients",
        "occlusion",
        *(pytest.param(one, marks=pytest.mark.slow) for one in ("integrated from zeros", "occlusion by pad")),
    ],
)
def test_how_many_points_are_computed_together_has_no_influence(loaded, method):
    one, three = (
        explained(loaded("bert"), method, TEXTS, tokens_at_once=count * SHAPE.num_rows * SHAPE.row_length)
        for count in (1, 3)
    )
    for own, other in zip(one.scores, three.scores, strict=True):
        np.testing.assert_allclose(own, other, atol=2e-5, rtol=1e-4)  # as of packed rows


@pytest.mark.slow
@methods("occlusion")
def test_each_text_has_its_best_label_or_the_one_that_is_named(loaded, method):
    classifier, texts = loaded("bert"), texts_of_lengths([1, 2, 3, 5, 8] * 6)
    logits_BC = explained(classifier, method, texts).logits
    last = models.last_layer(classifier.params)  # without what all texts have in common, labels differ
    centred = {**last, "bias": last["bias"] - np.median(logits_BC, axis=0)}
    classifier = dataclasses.replace(classifier, params=models.with_last_layer(classifier.params, centred))
    best = explained(classifier, method, texts)
    label = int(best.label[0])
    named = explained(classifier, method, texts, label=classifier.config.labels[label])
    np.testing.assert_array_equal(best.label, best.logits.argmax(axis=-1))
    assert {*named.label.tolist()} == {label}
    is_same = best.label == label
    assert not is_same.all()
    for one, other, same in zip(best.scores, named.scores, is_same, strict=True):
        assert np.allclose(one, other, atol=2e-5) == same


@pytest.mark.parametrize("family", ["bert", pytest.param("bart", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("method", "token"), [("occlusion", "[MASK]"), pytest.param("occlusion by pad", "[PAD]", marks=pytest.mark.slow)]
)
def test_occlusion_is_the_fall_of_the_logit_without_each_token(loaded, family, method, token):
    classifier = loaded(family)
    found = explained(classifier, method, TEXTS)
    forward = jax.jit(classifier.forward)
    for index, text in enumerate(TEXTS):
        tokens, ids = classifier.tokenize([text], 40), classifier.tokenize([text]).input_ids[0]
        hidden, label, length = replaced(classifier, ids, token), int(found.label[index]), len(ids)
        texts = [ids, hidden, *(np.where(np.arange(length) == at, hidden, ids) for at in range(length))]
        rows = jax.tree.map(lambda leaf: np.repeat(leaf, 22, axis=0), tokens)  # one shape for all
        for row, one in enumerate(texts):
            rows.input_ids[row, :length] = one
        of_all, of_none, *of_each = np.asarray(forward(classifier.params, rows))[: len(texts), label].tolist()
        np.testing.assert_allclose(found.scores[index], of_all - np.array(of_each), atol=2e-5)
        assert found.gap[index] == pytest.approx(found.scores[index].sum() - (of_all - of_none), abs=5e-5)
        assert np.abs(found.scores[index]).max() > 0.01


@pytest.mark.slow
def test_more_steps_make_the_gap_smaller(loaded):
    gaps = [
        np.abs(explained(loaded("bert"), "integrated gradients", TEXTS, steps=steps).gap).max() for steps in (1, 4, 50)
    ]
    assert gaps[0] > 10 * gaps[1] > 0
    assert gaps[2] <= TOLERANCE


@pytest.mark.slow
@pytest.mark.flax_auto
def test_occlusion_takes_any_family(tiny_folder):
    classifier = flaxsent.load(tiny_folder("roformer"))
    with Engine(classifier, function=occlusion(classifier), row_lengths=[40], tokens_per_step=40) as engine:
        found = engine(["so good"])
    assert np.abs(found.scores[0]).max() > 0.1


@pytest.mark.flax_auto
def test_gradients_say_which_families_they_take(tiny_folder):
    with pytest.raises(flaxsent.FlaxsentError, match="need flaxsent's own encoder, which roformer has not; use occl"):
        integrated_gradients(flaxsent.load(tiny_folder("roformer")))


@pytest.mark.slow
def test_occlusion_takes_an_exported_folder_and_gradients_refuse_it(loaded, tmp_path, symbolic_sizes):
    flaxsent.export(loaded("bert"), tmp_path / "export")
    exported = flaxsent.load(tmp_path / "export")
    ours, theirs = (explained(one, "occlusion", TEXTS) for one in (loaded("bert"), exported))
    for one, other in zip(ours.scores, theirs.scores, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)
    for classifier in (exported, zero_shot(exported, LABELS, entailment="LABEL_0")):
        with pytest.raises(flaxsent.FlaxsentError, match="which an exported folder has not; use occlusion"):
            gradient_x_input(classifier)


@pytest.mark.parametrize("kind", ["labels", pytest.param("labels given at run time", marks=pytest.mark.slow)])
@methods("integrated gradients", "occlusion")
def test_of_no_texts_there_are_no_scores(loaded, method, kind):
    classifier = loaded("bert")
    if kind != "labels":
        classifier = zero_shot(classifier, LABELS, entailment="LABEL_0")
    found = METHODS[method](classifier)(classifier.params, classifier.tokenize([]), 2)
    assert found.scores.shape == (0, 1)
    assert found.label.shape == found.gap.shape == (0, 2)
    assert found.logits.shape == (0, 2, classifier.config.num_labels)


@pytest.mark.slow
def test_params_in_bfloat16_give_scores_in_float32(loaded, tiny_folder):
    """Three layers that round each value to 8 bits."""
    half = flaxsent.load(tiny_folder("bert"), backend="native", dtype="bfloat16")
    expected, found = (explained(one, "integrated gradients", TEXTS, label="LABEL_0") for one in (loaded("bert"), half))
    assert found.scores[0].dtype == np.float32
    assert np.corrcoef(np.concatenate(expected.scores), np.concatenate(found.scores))[0, 1] > 0.99


@pytest.mark.slow
@methods("integrated gradients")
def test_nothing_compiles_after_warmup(loaded, method):
    classifier = loaded("bert")
    function = METHODS[method](classifier)
    with Engine(classifier, function=function, row_lengths=[64], tokens_per_step=128) as engine:
        engine.warmup()
        with counted_compilations() as compilations:
            found = engine([*TEXTS, *texts_of_lengths([30, 2, 11] * 5)])
        assert compilations == []
    for one, other in zip(found.scores, explained(classifier, method, TEXTS).scores, strict=False):
        np.testing.assert_allclose(one, other, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda clf: integrated_gradients(clf, label="HAPPY"),
            "there is no label 'HAPPY'; this checkpoint has LABEL_0, LABEL_1, LABEL_2.",
        ),
        (lambda clf: occlusion(clf, label=""), "there is no label ''"),
        (lambda clf: integrated_gradients(clf, steps=0), "steps=0: expected 1 or more"),
        (lambda clf: occlusion(clf, baseline="zeros"), "zeros are none; pass baseline='mask' or 'pad'"),
        (
            lambda clf: occlusion(dataclasses.replace(clf, config=dataclasses.replace(clf.config, vocab_size=3))),
            r"vocabulary has neither \[MASK\] nor <mask>; pass baseline='pad'",
        ),
    ],
)
def test_mistakes_are_told_before_anything_is_computed(loaded, make, message):
    with pytest.raises(flaxsent.FlaxsentError, match=message) as caught:
        make(loaded("bert"))
    assert "\n" not in str(caught.value)
