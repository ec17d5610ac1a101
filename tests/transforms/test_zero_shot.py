"""Labels named at run time: the scores of transformers' zero-shot pipeline, in the engine and out of it."""

import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxsent
from flaxsent.base import FlaxsentError
from flaxsent.checkpoint.folder import config_of
from flaxsent.data.labels import Examples
from flaxsent.packing import pack, pad
from flaxsent.tokenization import POOLINGS
from flaxsent.training.trainer import Trainer
from flaxsent.transforms import members_of, windows, zero_shot
from flaxsent.transforms.zero_shot import _Premises, _read, _with_hypotheses, hypotheses
from tests.conftest import counted_compilations, others_slow, texts_of_lengths
from tests.transforms.test_windows import pooled_by_hand

LABELS = ["good", "so bad at the", "film"]
"""Hypotheses of different lengths: what is cut of a long text differs."""
NLI = {"0": "contradiction", "1": "neutral", "2": "ENTAILMENT"}
TEXTS = ["I hate this so much!", "not bad at all ?", "x" * 60, *texts_of_lengths(range(20, 38))]
"""The tiny checkpoints take 40 tokens: some of the texts are cut for none of the labels, some for one, some for all."""


@pytest.fixture(scope="module")
def nli(tiny_folder):
    """`nli(family, **changes)`: the folder of a tiny NLI checkpoint."""

    def make(family="bert", names=NLI, **changes):
        ids = {name: int(index) for index, name in names.items()}
        folder = tiny_folder(family, id2label=names, label2id=ids, **changes)
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": 40}))
        return folder

    return make


def pipeline_scores(folder, texts, labels, **options):
    """Those of transformers, `[B, L]`, in the order of the labels."""
    torch = pytest.importorskip("torch")
    import transformers

    config = config_of(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    if config.type_vocab_size < 2:
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    task: Any = "zero-shot-classification"
    pipeline: Any = transformers.pipeline(task, model=model, tokenizer=tokenizer, device="cpu")
    with torch.no_grad():
        found = pipeline(texts, candidate_labels=labels, **options)
    by_label = [dict(zip(one["labels"], one["scores"], strict=True)) for one in found]
    return np.array([[scores[label] for label in labels] for scores in by_label])


def scores(texts, classifier):
    """In the order of the labels."""
    found = flaxsent.classify(texts, classifier, top_k=None)
    by_label = [dict(zip(*one, strict=True)) for one in found]
    return np.array([[one[label] for label in classifier.config.labels] for one in by_label])


SLOW = ("bart", "roberta", "deberta-v2", "modernbert", "mpnet", "distilbert", "albert")


@pytest.mark.torch
@pytest.mark.parametrize("multi_label", others_slow([False], [True]))
@pytest.mark.parametrize("family", others_slow(["bert"], SLOW))
def test_scores_are_those_of_transformers(nli, family, multi_label):
    folder = nli(family)
    classifier = zero_shot(
        flaxsent.load(folder, backend="native"), LABELS, multi_label=multi_label, template="It is {}."
    )
    options = {"multi_label": multi_label, "hypothesis_template": "It is {}."}
    expected = pipeline_scores(folder, TEXTS, LABELS, **options)
    assert np.ptp(expected, axis=0).min() > 0.01
    # The tolerance; logits of two libraries in float32 differ by about 1e-5 at 1 to 10.
    np.testing.assert_allclose(scores(TEXTS, classifier), expected, atol=1e-5)
    with flaxsent.Engine(classifier) as engine:
        np.testing.assert_allclose(engine(TEXTS), expected, atol=1e-5)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("names", "labels", "changes"),
    [
        pytest.param(NLI, ["film"], {}, id="one label is scored against contradiction"),
        pytest.param(
            {"0": "entailment", "1": "not_entailment"},
            LABELS,
            {},
            id="entailment first, of two",
            marks=pytest.mark.slow,
        ),
        pytest.param(NLI, LABELS, {"truncation_side": "left"}, id="cut at the left", marks=pytest.mark.slow),
    ],
)
def test_quirks_are_those_of_transformers(nli, names, labels, changes):
    folder = nli("bert", names, num_hidden_layers=1 if changes else 2)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | changes))
    classifier = zero_shot(flaxsent.load(folder, backend="native"), labels, multi_label=len(names) == 2)
    assert classifier.tokenizer.cut_side == changes.get("truncation_side", "right")
    expected = pipeline_scores(folder, TEXTS, labels, multi_label=len(names) == 2)
    np.testing.assert_allclose(scores(TEXTS, classifier), expected, atol=1e-5)


def test_rows_are_the_pairs_that_the_tokenizer_makes(nli):
    """To the id, type and position, packed; of texts of which none is cut."""
    texts, spoken = ["so good", "", "not bad at all", "a film"], hypotheses(LABELS, "It {}")
    for family in ("bert", "roberta", "bart", "modernbert"):
        tokenizer = flaxsent.load(nli(family), backend="native").tokenizer
        premises, behind = _read(tokenizer, spoken)
        rows, placement = pack(premises.encode(texts), row_length=64)
        assert len(rows.input_ids) < len(texts)
        write = jax.vmap(functools.partial(_with_hypotheses, behind=behind, tokenizer=premises))
        labels_RS = np.zeros((len(rows.input_ids), len(texts)), np.int32)
        labels_RS[placement] = [0, 1, 2, 1]
        found, places = write(jax.tree.map(jnp.asarray, rows), jnp.asarray(labels_RS))
        for text, row, segment in zip(texts, *placement, strict=True):
            pair = pad(tokenizer.encode([(text, spoken[labels_RS[row, segment]])]))
            is_there = np.asarray(found.segment_ids[row]) == segment + 1
            for name in ("input_ids", "token_type_ids", "position_ids"):
                expected = getattr(pair, name)[0]
                np.testing.assert_array_equal(np.asarray(getattr(found, name)[row])[is_there], expected)
            np.testing.assert_array_equal(np.asarray(places[row])[is_there], np.flatnonzero(is_there))


def test_the_engine_compiles_each_shape_once(nli):
    classifier = zero_shot(flaxsent.load(nli(), backend="native"), LABELS)
    with flaxsent.Engine(classifier, tokens_per_step=256) as engine:
        engine.warmup()
        with counted_compilations() as compilations:
            found = [engine(texts) for texts in (TEXTS, TEXTS[:1], TEXTS * 5)]
    assert compilations == []
    np.testing.assert_array_equal(found[2], np.tile(found[0], (5, 1)))
    padded = classifier.predict(classifier.params, classifier.tokenize(TEXTS))
    # Probabilities in float32, of rows of other lengths.
    np.testing.assert_allclose(padded, found[0], atol=1e-6)


def test_texts_that_are_cut_are_counted(nli, caplog):
    """Also those that are cut for the longest hypothesis only."""
    classifier = zero_shot(flaxsent.load(nli(), backend="native"), LABELS)
    lengths = [len(ids) for ids in classifier.tokenizer.encode([*texts_of_lengths(range(10, 38))]).input_ids]
    assert max(lengths) == 40
    assert isinstance(classifier.tokenizer, _Premises)
    shortest, longest = classifier.tokenizer.room
    assert shortest < longest
    texts = texts_of_lengths([40 - 1 - longest, 40 - 1 - longest + 1, 40 - 1 - shortest, 40 - 1 - shortest + 1])
    flaxsent.classify(texts, classifier)
    assert caplog.messages == ["3 of 4 texts were truncated to 40 tokens"]


@pytest.mark.slow
def test_it_is_a_function_of_params(nli):
    """vmap over stacked params and grad go through it."""
    classifier = zero_shot(flaxsent.load(nli(), backend="native"), LABELS)
    tokens = classifier.tokenize(["so good", "not bad"])
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), dict(classifier.params))
    both = jax.jit(jax.vmap(lambda params: classifier.scores(params, tokens, 1)))(stacked)
    assert both.shape == (2, 2, 1, 3)
    # Probabilities in float32, compiled apart.
    np.testing.assert_allclose(both[0, :, 0], classifier.predict(classifier.params, tokens), atol=1e-6)
    gradient = jax.jit(jax.grad(lambda params: classifier.forward(params, tokens)[0, 1]))(dict(classifier.params))
    assert float(jnp.abs(gradient["classifier"]["kernel"][:, 2]).max()) > 0
    assert float(jnp.abs(gradient["classifier"]["kernel"][:, 1]).max()) == 0


@pytest.mark.parametrize(
    ("labels", "options", "told"),
    [
        ([], {}, "labels=[]: expected a list of one or more labels"),
        ("sports,politics", {}, "expected a list"),
        (["a", "a"], {}, "all different"),
        (["a", " "], {}, "none empty"),
        (LABELS, {"template": "This is it."}, "does not name the label"),
        (LABELS, {"template": "{} {}"}, "one {} for the label"),
        (LABELS, {"template": "{label}"}, "one {} for the label"),
        (LABELS, {"template": "{0.nothing}"}, "one {} for the label"),
        (LABELS, {"template": "{"}, "one {} for the label"),
        (LABELS, {"template": "It is " + "good " * 40 + "{}"}, "leaves none for a text"),
        (LABELS, {"template": "It is " + "good " * 29 + "{}"}, "leaves none for a text"),
        (LABELS, {"entailment": "yes"}, "none of the checkpoint's labels, contradiction, neutral, ENTAILMENT"),
    ],
)
def test_mistakes_are_one_line(nli, labels, options, told):
    with pytest.raises(FlaxsentError) as caught:
        zero_shot(flaxsent.load(nli(), backend="native"), labels, **options)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_that_is_no_nli_model_is_refused(tiny_folder, embedded):
    for classifier in (embedded, flaxsent.load(tiny_folder("bert", id2label={"0": "entailment"}), backend="native")):
        with pytest.raises(FlaxsentError, match="expected an NLI model"):
            zero_shot(classifier, LABELS)


def test_pairs_vectors_and_what_is_made_of_own_labels_are_refused(nli, tmp_path):
    classifier = zero_shot(flaxsent.load(nli(), backend="native"), LABELS)
    examples = Examples(["so good", "bad"], [0, 1])
    for action, told in {
        lambda: flaxsent.classify([("a", "b")], classifier): "expected texts, and no pairs",
        lambda: flaxsent.Engine(classifier, function=classifier.embeddings)(["a"]): "another vector with each",
        lambda: classifier.hidden_states(classifier.params, classifier.tokenize(["a"])): "another vector with each",
        lambda: zero_shot(classifier, LABELS): "given already",
        lambda: flaxsent.save(classifier, tmp_path / "saved"): "neither trained nor saved",
        lambda: flaxsent.export(classifier, tmp_path / "exported"): "neither trained nor saved",
        lambda: Trainer(classifier, examples): "neither trained nor saved",
        lambda: classifier.tokenizer.encode(["a"], max_length=12): "leaves none for a text",
    }.items():
        with pytest.raises(FlaxsentError, match=told):
            action()
    assert [*tmp_path.iterdir()] == []


@pytest.mark.slow
def test_an_exported_checkpoint_takes_labels_too(nli, tmp_path, symbolic_sizes):
    classifier = flaxsent.load(nli(), backend="native")
    flaxsent.export(classifier, tmp_path / "exported", platforms=["cpu"])
    read_back = zero_shot(flaxsent.load(tmp_path / "exported"), LABELS)
    # The same operations, compiled apart.
    np.testing.assert_allclose(scores(TEXTS, read_back), scores(TEXTS, zero_shot(classifier, LABELS)), atol=1e-6)


def test_an_ensemble_of_it_is_each_member_by_itself(nli):
    classifiers = [zero_shot(flaxsent.load(nli(seed=seed), backend="native"), LABELS) for seed in (0, 1)]
    joined, members = members_of(classifiers)
    with flaxsent.Engine(joined, function=members) as engine:
        found = engine(TEXTS)
    for index, classifier in enumerate(classifiers):
        # Probabilities in float32, of rows of other lengths.
        np.testing.assert_allclose(found[:, index], scores(TEXTS, classifier), atol=1e-6)


# Windows.


def logits_of_windows(folder, texts, labels, stride):
    """By PyTorch, from AutoTokenizer's windows: of each text, entailment and contradiction `[W, L]`, and their tokens.

    Beside a shorter hypothesis, a window is as long as beside the longest.
    """
    torch = pytest.importorskip("torch")
    import transformers

    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    lengths = [len(ids) for ids in transformers.AutoTokenizer.from_pretrained(folder)(labels).input_ids]
    found = []
    for text in texts:
        of_labels = []
        for label, length in zip(labels, lengths, strict=True):
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder)  # keeps the truncation of its last call
            inputs = tokenizer(
                text,
                label,
                truncation="only_first",
                max_length=40 - max(lengths) + length,
                stride=stride,
                return_overflowing_tokens=True,
                padding=True,
                return_tensors="pt",
            )
            num_text_w = [inputs.sequence_ids(index).count(0) for index in range(len(inputs["input_ids"]))]
            taken = {"input_ids", "attention_mask", *(["token_type_ids"] if model.config.type_vocab_size > 1 else [])}
            with torch.no_grad():
                logits_wC = model(**{name: value for name, value in inputs.items() if name in taken}).logits.numpy()
            of_labels.append(logits_wC[:, [2, 0]])
        found.append((np.stack(of_labels, axis=1), num_text_w))
    return found


@pytest.mark.torch
@pytest.mark.parametrize(
    ("family", "multi_label"),
    [
        ("bert", False),
        pytest.param("bert", True, marks=pytest.mark.slow),
        pytest.param("roberta", False, marks=pytest.mark.slow),
    ],
)
def test_each_window_is_paired_with_each_hypothesis(nli, family, multi_label):
    folder, texts = nli(family), ["so good", *texts_of_lengths([24, 25, 60, 110])]
    plain = flaxsent.load(folder, backend="native")
    make = functools.partial(zero_shot, labels=LABELS, template="{}", multi_label=multi_label)
    theirs = logits_of_windows(folder, texts, LABELS, stride=5)
    counts = [len(num_w) for _, num_w in theirs]
    assert counts[0] == 1 < counts[3] < counts[4]
    for pooling in POOLINGS:
        classifier = make(windows(plain, stride=5, pooling=pooling))
        expected = []
        for logits_wL2, num_w in theirs:
            z_wL = logits_wL2[..., 0] - logits_wL2[..., 1] if multi_label else logits_wL2[..., 0]
            expected.append(pooled_by_hand(z_wL, num_w, pooling, "sigmoid" if multi_label else "softmax"))
        assert np.bincount(classifier.tokenizer.encode_windows(texts, classifier.windows).texts).tolist() == counts
        with flaxsent.Engine(classifier, row_lengths=[64], tokens_per_step=256) as engine:
            found = engine(texts)
        np.testing.assert_allclose(found, expected, atol=1e-5)  # of two libraries, as above
    # The last pooling, the other way round.
    np.testing.assert_allclose(scores(texts, windows(make(plain), stride=5, pooling=pooling)), expected, atol=1e-5)


def test_windows_leave_the_hypothesis_whole_and_are_told(nli, caplog):
    classifier = zero_shot(flaxsent.load(nli(), backend="native"), LABELS)
    tokenizer = windows(classifier, stride=3).tokenizer
    assert isinstance(tokenizer, _Premises)
    longest = tokenizer.room[1]
    texts = texts_of_lengths([40 - 1 - longest, 40 - 1 - longest + 1])
    flaxsent.classify(texts, windows(classifier, stride=3))
    limit = 40 - longest + 1
    assert caplog.messages == [f"1 of 2 texts of more than {limit} tokens were read in 2 windows"]
    in_windows = windows(flaxsent.load(nli(), backend="native"), stride=limit - 3)
    for make in (lambda: windows(classifier, stride=limit - 3), lambda: zero_shot(in_windows, LABELS)):
        with pytest.raises(
            FlaxsentError, match=f"stride={limit - 3}: windows of this checkpoint have {limit - 3} tokens"
        ):
            make()
