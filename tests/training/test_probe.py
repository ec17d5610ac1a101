"""A linear probe: scikit-learn's coefficients, folded into the head of an ordinary checkpoint, by one command."""

import json
import shutil

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge

import flaxsent
from flaxsent.base import FlaxsentError, Text
from flaxsent.checkpoint import hub
from flaxsent.data.labels import Examples
from flaxsent.engine import Engine
from flaxsent.training import choosing
from flaxsent.training.batches import labels_as_arrays
from flaxsent.training.options import TrainOptions
from flaxsent.training.probe import PENALTIES, _choose, fit_layer, probe
from tests.conftest import others_slow, texts_of_lengths
from tests.training.runs import ROWS, refused, run

RNG = np.random.default_rng(0)
FEATURES = RNG.standard_normal((200, 13)).astype(np.float32)
HIDDEN = FEATURES @ RNG.standard_normal((13, 3)) + RNG.standard_normal((200, 3)) - [0, 1, 2]
# The gradient is 1e-5 at the end, or as near to 0 as float32 lets it come, some 1e-5; the objective curves by no less
# than the penalty: with one of 0.1, coefficients of some 1 are that of the reference to 1e-4 or better.
EXACTLY = {"rtol": 0, "atol": 1e-3}


@pytest.mark.parametrize("penalty", [1.0, 0.1])
@pytest.mark.parametrize("weights", [None, (0.5, 2.0, 5.0)])
def test_one_label_of_several_has_the_coefficients_of_scikit_learn(penalty, weights):
    targets = HIDDEN.argmax(axis=1).astype(np.int32)
    weights_C = None if weights is None else np.array(weights, np.float32)
    found = fit_layer(
        *(FEATURES, targets),
        problem_type="single_label_classification",
        penalty=penalty,
        start_C=np.zeros(3),
        class_weights=weights_C,
    )
    told = None if weights is None else dict(enumerate(weights))
    reference = LogisticRegression(C=1 / (penalty * 200), class_weight=told, tol=1e-8, max_iter=10_000)
    reference.fit(FEATURES.astype(np.float64), targets)
    np.testing.assert_allclose(found.kernel, reference.coef_.T, **EXACTLY)
    # A constant added to all logits is nothing.
    np.testing.assert_allclose(found.bias - found.bias.mean(), reference.intercept_, **EXACTLY)


@pytest.mark.parametrize("weights", [None, (0.5, 2.0, 5.0)])
def test_several_labels_are_as_many_logistic_regressions(weights):
    targets = (HIDDEN > 0).astype(np.float32)
    weights_C = None if weights is None else np.array(weights, np.float32)
    found = fit_layer(
        *(FEATURES, targets),
        problem_type="multi_label_classification",
        penalty=0.1,
        start_C=np.zeros(3),
        class_weights=weights_C,
    )
    for label in range(3):
        told = None if weights is None else {0: 1.0, 1: weights[label]}
        reference = LogisticRegression(C=1 / (0.1 * 200), class_weight=told, tol=1e-8, max_iter=10_000)
        reference.fit(FEATURES.astype(np.float64), targets[:, label])
        np.testing.assert_allclose(found.kernel[:, label], reference.coef_[0], **EXACTLY)
        np.testing.assert_allclose(found.bias[label : label + 1], reference.intercept_, **EXACTLY)


def test_values_have_the_coefficients_of_ridge_of_the_texts_that_have_a_weight():
    targets, weights_N = HIDDEN[:, 0].astype(np.float32), (np.arange(200) % 5 > 0).astype(np.float32)
    told = {"problem_type": "regression", "penalty": 0.1, "start_C": np.zeros(1)}
    found = fit_layer(FEATURES, targets, **told, weights_N=weights_N)
    seen = weights_N > 0
    reference = Ridge(alpha=0.1 * seen.sum() / 2).fit(FEATURES[seen].astype(np.float64), targets[seen])
    np.testing.assert_allclose(found.kernel[:, 0], reference.coef_, **EXACTLY)
    np.testing.assert_allclose(found.bias, reference.intercept_, **EXACTLY)


LABELS = {
    "single_label_classification": lambda good, bad: int(good > bad),
    "multi_label_classification": lambda good, bad: tuple(n for n, is_so in enumerate((good, bad)) if is_so),
    "regression": lambda good, bad: 100.0 + 30 * good - 20 * bad,
}


def examples(problem_type, num_texts, seed):
    texts: list[Text] = [*texts_of_lengths(np.random.default_rng(seed).integers(1, 12, num_texts).tolist(), seed)]
    rule = LABELS[problem_type]
    return Examples(texts, [rule(str(text).count("good"), str(text).count("bad")) for text in texts])


@pytest.fixture
def tiny(tiny_folder):
    def load(problem_type, family="bert"):
        labels = ["value"] if problem_type == "regression" else ["good", "bad"]
        told = {"labels": labels, "problem_type": problem_type, "new_head": True}
        return flaxsent.load(tiny_folder(family), backend="native", **told)

    return load


@pytest.mark.parametrize("has_dev", [True, False])
@pytest.mark.parametrize(
    "problem_type", [pytest.param(name, marks=pytest.mark.slow if name == "regression" else ()) for name in LABELS]
)
def test_what_was_measured_is_what_the_checkpoint_gives(tiny, problem_type, has_dev):
    train, classifier = examples(problem_type, 90, 1), tiny(problem_type)
    dev = examples(problem_type, 40, 2) if has_dev else None
    told = []
    found = probe(classifier, train, dev, report=told.append)
    assert told[0].startswith("probe: 90 texts, 36 features; penalty ")
    assert float(told[0].split()[6].rstrip(",")) in PENALTIES
    config = found.classifier.config
    with Engine(found.classifier, function=found.classifier.logits) as engine:
        logits = engine((dev or train).texts)
    targets = labels_as_arrays(dev or train, config)
    metric = choosing.metric_of(config.problem_type, None)
    measured = choosing.evaluate(logits, targets, config, metric=metric)
    if has_dev:
        # Float32, with a kernel that was divided by the spread of features.
        assert measured.loss == pytest.approx(found.evaluation.loss, rel=1e-3)
    else:
        assert measured.loss < found.evaluation.loss, "what a text was fitted to, it was not in its fold"
    prior = choosing.evaluate(np.zeros_like(logits) + 100 * (config.num_labels == 1), targets, config, metric=metric)
    assert measured.loss < prior.loss
    assert (config.label_thresholds is not None) == (problem_type == "multi_label_classification")


def test_smaller_penalties_are_tried_until_they_are_worse():
    losses, seen = iter([5.0, 6.0, 4.0, 3.0, 3.5, 3.2, 0.0]), []

    def unseen(penalty):
        seen.append(penalty)
        return np.array([[penalty]])

    penalty, logits = _choose(unseen, lambda _: next(losses))
    assert penalty == logits == PENALTIES[3]
    assert seen == [*PENALTIES[:6]]


def test_class_weights_move_what_is_answered(tiny):
    kind = "single_label_classification"
    train, classifier = examples(kind, 90, 1), tiny(kind)
    shares = []
    for weights in (None, {"bad": 30.0}):
        found = probe(classifier, train, None, TrainOptions(class_weights=weights), penalty=0.1).classifier
        shares.append(np.mean([answer.label == "bad" for answer in flaxsent.classify(train.texts, found)]))
    assert shares[0] < shares[1]


@pytest.mark.parametrize("family", others_slow(["roberta"], ["distilbert", "modernbert"]))
def test_other_heads_have_a_layer_to_fit_too(tiny, family):
    kind = "single_label_classification"
    train = examples(kind, 60, 1)
    classifier = tiny(kind, family)
    found = probe(classifier, train, train)
    assert found.evaluation.loss < np.log(2)
    before = flaxsent.classify(train.texts, classifier)
    assert before != flaxsent.classify(train.texts, found.classifier)


def arguments(model, files, output, *more):
    return ("train", "--model", str(model), "--train", files[0], "--output", str(output), "--probe", *more)


def test_the_command_writes_a_folder_and_does_nothing_again(capsys, tmp_path, files, tiny_folder):
    model, output = tmp_path / "model", tmp_path / "out"
    shutil.copytree(tiny_folder("bert"), model)
    (model / "1_Pooling").mkdir()
    (model / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    command = arguments(model, files, output, "--dev", files[1], "--labels", "POSITIVE,NEGATIVE")
    code, out, err = run(capsys, *command)
    assert (code, err) == (0, "")
    assert [line.split(":")[0] for line in out.splitlines()] == [files[0], "probe"]
    assert not {"log.jsonl", "curves.png"} & {path.name for path in output.iterdir()}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dev.tsv", "model", "out", "train.tsv"]
    classifier = flaxsent.load(output, backend="native")
    assert classifier.config.num_layers == flaxsent.load(model, backend="native").config.num_layers + 1
    texts, labels = zip(*ROWS, strict=True)
    right = [answer.label == label for answer, label in zip(flaxsent.classify(texts, classifier), labels, strict=True)]
    assert np.mean(right) > 0.9
    code, out, _ = run(capsys, *command, "--resume")
    assert (code, out) == (0, f"{output} is complete; nothing to resume\n")


@pytest.mark.slow
def test_training_goes_on_from_the_probe(capsys, tmp_path, files, tiny_folder):
    command = arguments(tiny_folder("bert"), files, tmp_path / "out", "--dev", files[1], "--epochs", "1")
    code, out, err = run(capsys, *command, "--learning-rate", "1e-9")
    assert (code, err) == (0, "")
    assert out.splitlines()[1].startswith("probe: ")
    assert out.splitlines()[-1].startswith("epoch 1 dev accuracy 1.0")
    assert (tmp_path / "out" / "curves.png").is_file()


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (("--folds", "3"), "--folds does not go with --probe; leave one of the two out."),
        (("--seeds", "3"), "--seeds does not go with --probe; leave one of the two out."),
        (("--sweep", "seed=1,2"), "--sweep does not go with --probe; leave one of the two out."),
        (("--teacher", "x"), "--teacher does not go with --probe; leave one of the two out."),
        (("--lora-rank", "3"), "--lora-rank does not go with --probe; leave one of the two out."),
        (
            ("--learning-rate", "1"),
            "--learning-rate is for steps; --probe alone makes none: leave it out, or pass --epochs, too.",
        ),
    ],
)
def test_what_does_not_go_with_it_is_said_before_any_file_is_read(capsys, tmp_path, tiny_folder, more, line):
    command = arguments(tiny_folder("bert"), ["none.csv"], tmp_path / "out", *more)
    assert refused(capsys, *command) == f"{line}\n"


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ('{"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": false, "word_embedding_dimension": 36}', True),
        ('{"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": true}', False),
        ('{"pooling_mode_cls_token": true}', False),
        ("[1]", False),
        ("{", False),
        ("[" * 100_000, False),
        (None, False),
    ],
)
def test_a_folder_of_sentence_transformers_says_what_a_text_is(tmp_path, told, expected):
    (tmp_path / "config.json").write_text("{}")
    if told is not None:
        (tmp_path / "1_Pooling").mkdir()
        (tmp_path / "1_Pooling" / "config.json").write_text(told)
    assert hub.pools_mean(tmp_path) is expected


def test_a_probe_without_dev_needs_texts_to_leave_out(tiny):
    for texts in (["a"], ["a"] * 6):
        with pytest.raises(FlaxsentError, match="a probe without dev needs 2 different texts or more"):
            probe(tiny("single_label_classification"), Examples(texts, [0] * len(texts)))
    few = Examples(["a", "b"] * 3, [0, 1] * 3)
    assert probe(tiny("single_label_classification"), few).classifier.config.labels
