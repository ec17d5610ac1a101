"""Scores of every kind of head: those of transformers' `pipeline("text-classification")`, kept on every way."""

import importlib.metadata
import itertools
import json

import jax.numpy as jnp
import numpy as np
import pytest

import flaxsent
from flaxsent.data.labels import Examples
from flaxsent.evaluation import report
from flaxsent.models.config import read_config, to_json
from flaxsent.training.options import TrainOptions
from flaxsent.training.trainer import fit
from tests.models.reference import TOLERANCE

PROBLEM_TYPES = (None, "single_label_classification", "multi_label_classification", "regression")
FUNCTIONS = (None, "sigmoid", "softmax", "none")
TEXTS = ["the film", "not bad at all, though the second half drags", "I hate this so much!"]
BERT = {
    "model_type": "bert",
    "vocab_size": 61,
    "hidden_size": 36,
    "num_hidden_layers": 1,
    "num_attention_heads": 3,
    "intermediate_size": 50,
    "max_position_embeddings": 40,
}


def labels(number):
    return {str(index): f"label {index}" for index in range(number)}


def config(number, problem_type, function):
    raw = BERT | {"id2label": labels(number), "problem_type": problem_type, "function_to_apply": function}
    return read_config(json.dumps({key: value for key, value in raw.items() if value is not None}))


def transformers_is_4():
    return importlib.metadata.version("transformers").startswith("4.")


def their_scores(folder, function):
    """By label, of the pipeline; `function` is passed, as it does not read it in the config (see below)."""
    from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast, pipeline

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), pad_token="[PAD]")
    model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager")
    pipe = pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")
    # The tiny tokenizer cuts texts at 5 tokens and pads them, by settings of its own.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    arguments = {} if function is None else {"function_to_apply": function}
    return [{found["label"]: found["score"] for found in pipe(text, top_k=None, **arguments)} for text in TEXTS]


@pytest.mark.torch
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("problem_type", PROBLEM_TYPES)
@pytest.mark.parametrize("number", [1, 2, 3])
def test_scores_are_those_of_the_pipeline(tiny_folder, tmp_path, number, problem_type, function):
    said = {"problem_type": problem_type, "function_to_apply": function}
    said = {"num_hidden_layers": 1, "id2label": labels(number)} | {key: one for key, one in said.items() if one}
    folder = tiny_folder("bert", **said)
    classifier = flaxsent.load(folder, backend="native")
    if (number, problem_type) == (1, "single_label_classification") and not transformers_is_4():
        del said["problem_type"]  # transformers 5 refuses these, which transformers 4 takes as if nothing were said
        expected = their_scores(tiny_folder("bert", **said), function)
    else:
        expected = their_scores(folder, function)
    for ours, theirs in zip(flaxsent.classify(TEXTS, classifier, top_k=None), expected, strict=True):
        np.testing.assert_allclose([theirs[label] for label in ours.labels], ours.scores, atol=TOLERANCE)
    flaxsent.save(classifier, tmp_path / "saved")
    if function is None and said.get("problem_type") == problem_type:  # what is saved has the same scores there, too
        assert their_scores(tmp_path / "saved", None) == expected


@pytest.mark.torch
def test_the_pipeline_does_not_read_the_function_in_the_config(tiny_folder):
    """It looks there only for a model of no labels. flaxsent obeys it: whoever wrote it meant it."""
    folders = [tiny_folder("bert", num_hidden_layers=1, **said) for said in ({}, {"function_to_apply": "none"})]
    assert their_scores(folders[0], None) == their_scores(folders[1], None)


@pytest.mark.parametrize(
    ("number", "problem_type", "function"), [*itertools.product([1, 2, 3], PROBLEM_TYPES, FUNCTIONS)]
)
def test_saving_keeps_the_scores_and_the_loss(number, problem_type, function):
    before = config(number, problem_type, function)
    after = read_config(to_json(before, dtype="float32"))
    assert (after.problem_type, after.score_function) == (before.problem_type, before.score_function)
    assert to_json(after, dtype="float32") == to_json(before, dtype="float32")


@pytest.mark.parametrize("function", ["SIGMOID", "default", 3, ["sigmoid"], ""])
def test_a_function_that_is_none_is_refused(function):
    with pytest.raises(flaxsent.FlaxsentError, match=r"has function_to_apply=.*; expected one of softmax, "):
        read_config(json.dumps(BERT | {"function_to_apply": function}))


def test_what_sentence_transformers_writes_for_itself_is_ignored(tiny_folder):
    """As by transformers: its cross-encoders give logits there, and a sigmoid in the pipeline."""
    own = {
        "sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity",
        "sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity", "version": "4.0.1"},
    }
    classifier = flaxsent.load(tiny_folder("bert", id2label=labels(1), **own), backend="native")
    assert classifier.config.score_function == "sigmoid"


@pytest.mark.parametrize(
    ("arguments", "problem_type", "function"),
    [
        ({}, "regression", "sigmoid"),
        ({"labels": ["label 0"]}, "regression", "sigmoid"),
        ({"problem_type": "regression"}, "regression", "none"),
        ({"problem_type": "single_label_classification"}, "single_label_classification", "sigmoid"),
        ({"labels": ["other"]}, "regression", "none"),
        ({"labels": ["a", "b"]}, "single_label_classification", "softmax"),
    ],
)
def test_a_problem_type_that_is_asked_for_decides_the_scores_of_a_reranker(
    tiny_folder, arguments, problem_type, function
):
    read = flaxsent.load(tiny_folder("bert", id2label=labels(1)), backend="native", **arguments).config
    assert (read.problem_type, read.score_function) == (problem_type, function)


@pytest.mark.parametrize(
    ("arguments", "function"),
    [
        ({}, "none"),
        ({"problem_type": "multi_label_classification"}, "none"),
        ({"labels": ["label 0", "label 1", "label 2"]}, "none"),
        ({"labels": ["a", "b", "c"]}, "softmax"),
        ({"labels": ["a", "b", "c"], "problem_type": "multi_label_classification"}, "sigmoid"),
    ],
)
def test_a_function_of_the_config_holds_for_its_own_labels(tiny_folder, tmp_path, arguments, function):
    folder = tiny_folder("bert", id2label=labels(3), function_to_apply="none")
    classifier = flaxsent.load(folder, backend="native", **arguments)
    assert classifier.config.score_function == function
    flaxsent.save(classifier, tmp_path / "saved")
    assert flaxsent.load(tmp_path / "saved", backend="native").config.score_function == function


def test_training_settles_that_a_reranker_is_regression(tiny_folder, tmp_path):
    """As in transformers, whose models write the problem type into their config when they are given labels."""
    folder = tiny_folder("bert", num_hidden_layers=1, id2label=labels(1))
    texts = ["the film"] * 8
    trained = fit(
        flaxsent.load(folder, backend="native"),
        Examples(texts, [3.0] * 8),
        options=TrainOptions(num_epochs=30, batch_size=8, learning_rate=1e-2),
    )
    (prediction,) = flaxsent.classify(texts[:1], trained)
    assert 2 < prediction.score < 4  # of a sigmoid it would be less than 1
    flaxsent.save(trained, tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["problem_type"] == "regression"


def test_figures_are_of_probabilities_whatever_the_scores_are():
    logits = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    for problem_type, targets in [
        ("single_label_classification", np.arange(20) % 3),
        ("multi_label_classification", (logits > 0.3).astype(np.float32)),
    ]:
        plain, other = (config(3, problem_type, function) for function in (None, "none"))
        assert report.measure(logits, targets, plain).figures == report.measure(logits, targets, other).figures


def test_figures_of_a_reranker_are_of_its_scores():
    logits = np.asarray([[-9.0], [0.0], [5.0], [12.0]], np.float32)
    targets = np.asarray([[0.0], [0.5], [1.0], [1.0]], np.float32)
    assert report.measure(logits, targets, config(1, None, None)).figures["mean_squared_error"] < 1e-4
    assert report.measure(logits, targets, config(1, "regression", None)).figures["mean_squared_error"] > 1


def test_exported_scores_are_the_same(tiny_folder, tmp_path, symbolic_sizes):
    folder = tiny_folder("bert", num_hidden_layers=1, id2label=labels(1))
    classifier = flaxsent.load(folder, backend="native")
    flaxsent.export(classifier, tmp_path / "exported")
    again = flaxsent.load(tmp_path / "exported")
    assert again.config.score_function == "sigmoid"
    logits = jnp.asarray([[2.0]])
    np.testing.assert_array_equal(again.postprocess(logits), classifier.postprocess(logits))
