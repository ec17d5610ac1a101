"""What the labels weigh: scikit-learn's formula, PyTorch's, files; what is refused; that packing changes nothing."""

import functools
import json

import jax
import numpy as np
import pytest

import flaxsent
from flaxsent.base import FlaxsentError
from flaxsent.data.labels import Examples
from flaxsent.models.config import read_config
from flaxsent.packing import StepShape
from flaxsent.training import batches, step
from flaxsent.training.class_weights import weights_of
from flaxsent.training.options import TrainOptions
from flaxsent.training.trainer import Trainer, forward_of_rows
from tests.conftest import texts_of_lengths
from tests.training.runs import ONE_LAYER, arguments_of, refused, run


def config(problem_type, labels=("a", "b", "c")):
    names = dict(enumerate(labels))
    return read_config(
        json.dumps(
            {"model_type": "bert", "architectures": ["BertForSequenceClassification"], "problem_type": problem_type}
            | {"vocab_size": 99, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
            | {"intermediate_size": 8, "max_position_embeddings": 9, "id2label": names}
        )
    )


def test_balanced_weights_of_one_label_are_scikit_learns():
    sklearn = pytest.importorskip("sklearn.utils.class_weight")
    labels = np.random.default_rng(0).choice(3, 500, p=[0.9, 0.08, 0.02]).astype(np.int32)
    expected = sklearn.compute_class_weight("balanced", classes=np.arange(3), y=labels)
    # Numbers of float32, of which scikit-learn's are the float64.
    np.testing.assert_allclose(weights_of("balanced", labels, config("single_label_classification")), expected, 1e-6)
    assert weights_of("balanced", labels, config("single_label_classification"))[labels].mean() == pytest.approx(1)


def test_balanced_weights_of_several_labels_are_texts_without_by_texts_with():
    hot = np.array([[1, 0, 1], [1, 1, 0], [1, 0, 0], [0, 0, 0]], np.float32)
    assert weights_of("balanced", hot, config("multi_label_classification")).tolist() == [np.float32(1 / 3), 3, 3]


def test_a_file_names_the_labels_that_do_not_weigh_1(tmp_path):
    (tmp_path / "weights.json").write_text('{"b": 2.5, "c": 4}')
    found = weights_of(str(tmp_path / "weights.json"), np.zeros(2, np.int32), config("single_label_classification"))
    assert found.tolist() == [1, 2.5, 4]
    assert weights_of({"a": 3}, np.zeros(2, np.int32), config("single_label_classification")).tolist() == [3, 1, 1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "weights.json is not JSON"),
        ("[" * 100_000, "weights.json is not JSON: maximum recursion depth exceeded"),
        ('{"POSITIVE": 1, "POSITIVE": 2}', "class_weights: the label POSITIVE comes 2 times; give it one weight"),
        ("[1, 2]", "weights.json holds no JSON object; expected {label: weight, ...}"),
        ('{"good": 1}', "class_weights: 'good' is no label; expected NEGATIVE, POSITIVE"),
        ('{"POSITIVE": "much"}', "class_weights: POSITIVE weighs 'much'; expected a positive number"),
        ('{"POSITIVE": 0}', "class_weights: POSITIVE weighs 0; expected a positive number"),
        ('{"POSITIVE": Infinity}', "class_weights: POSITIVE weighs inf; expected a positive number"),
        ('{"POSITIVE": true}', "class_weights: POSITIVE weighs True; expected a positive number"),
        (None, "weights.json: no such file; expected it or balanced"),
    ],
)
def test_a_bad_file_is_one_line_before_any_step(capsys, tmp_path, files, tiny_folder, content, message):
    if content is not None:
        (tmp_path / "weights.json").write_text(content)
    more = ("--class-weights", str(tmp_path / "weights.json"))
    assert message in refused_after(
        capsys, *arguments_of(tiny_folder("bert", **ONE_LAYER), files, tmp_path / "out", *more)
    )


def refused_after(capsys, *arguments) -> str:
    """What ends a run that may have said what it understood of the files."""
    code, out, err = run(capsys, *arguments)
    assert (code, err.count("\n")) == (2, 1), (code, out, err)
    assert "epoch" not in out
    return err


@pytest.mark.parametrize(
    ("problem_type", "labels", "message"),
    [
        ("single_label_classification", [0, 0, 1], "no text to learn from has the label c"),
        ("multi_label_classification", [(0,), (0, 1), (2, 1)], None),
        ("multi_label_classification", [(0,), (0,), (0, 2)], "no text to learn from has the label b"),
        ("multi_label_classification", [(0, 1), (0,), (0, 2)], "every text to learn from has the label a"),
        ("regression", [0.0, 1.0, 2.0], "class_weights are for labels; this is regression"),
    ],
)
def test_labels_that_cannot_be_balanced_are_told(tiny_folder, problem_type, labels, message):
    names = ["value"] if problem_type == "regression" else ["a", "b", "c"]
    classifier = flaxsent.load(
        tiny_folder("bert", **ONE_LAYER), backend="native", labels=names, problem_type=problem_type
    )
    data, options = Examples(["x", "y", "z"], labels), TrainOptions(class_weights="balanced")
    if message is None:
        Trainer(classifier, data, options=options)
        return
    with pytest.raises(FlaxsentError, match=message):
        Trainer(classifier, data, options=options)


def test_focal_loss_is_refused_for_values(tiny_folder):
    classifier = flaxsent.load(
        tiny_folder("bert", **ONE_LAYER), backend="native", labels=["value"], problem_type="regression"
    )
    with pytest.raises(FlaxsentError, match="focal_gamma is for labels; this is regression"):
        Trainer(classifier, Examples(["x"], [1.0]), options=TrainOptions(focal_gamma=2.0))


@pytest.mark.parametrize(
    ("problem_type", "labels"),
    [
        pytest.param("single_label_classification", [0, 2, 1, 1], marks=pytest.mark.slow),
        ("multi_label_classification", [(0, 2), (), (1,), (1, 2)]),
    ],
)
def test_packed_texts_have_the_weighted_focal_loss_of_texts_alone(tiny_folder, problem_type, labels):
    classifier = flaxsent.load(
        tiny_folder("bert", num_hidden_layers=1), backend="native", labels=["a", "b", "c"], problem_type=problem_type
    )
    data = Examples(texts_of_lengths([1, 7, 12, 30]), labels)
    trainer = Trainer(classifier, data, options=TrainOptions(class_weights="balanced", focal_gamma=1.5))
    arrays = batches.labels_as_arrays(data, classifier.config)
    corpus = batches.Corpus(classifier.tokenizer.encode(data.texts), arrays)
    weights = weights_of("balanced", arrays, classifier.config)

    def value_and_gradient(rows, shape):
        forward = forward_of_rows(classifier, trainer.options, shape.num_segments)
        loss = functools.partial(
            step.loss, forward=forward, problem_type=problem_type, class_weights=jax.numpy.asarray(weights)
        )
        loss = functools.partial(loss, focal_gamma=1.5)
        return jax.jit(jax.value_and_grad(loss))(classifier.params, corpus.batch(batches.Plan(shape, rows)), None)

    packed = value_and_gradient([[3, 0, 1], [2], []], StepShape(3, 64, 4))
    alone = [value_and_gradient([[text]], StepShape(1, 64, 1)) for text in range(4)]
    # The mean over the texts, in whatever batch: float32 sums in another order.
    assert float(packed[0]) == pytest.approx(np.mean([float(value) for value, _ in alone]), rel=1e-5)
    mean = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *[gradient for _, gradient in alone])
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5), packed[1], mean)
    whole = step.loss(
        classifier.params,
        corpus.batch(batches.Plan(StepShape(3, 64, 4), [[3, 0, 1], [2], []])),
        None,
        forward=forward_of_rows(classifier, trainer.options, 4),
        problem_type=problem_type,
    )
    assert abs(float(whole) - float(packed[0])) > 1e-3  # the options do something


@pytest.mark.slow
def test_rare_labels_are_found_once_they_are_balanced(tiny_folder):
    from tests.training.test_trainer import toy_data

    data = toy_data(400)
    rare = [index for index, label in enumerate(data.labels) if label != 2 or index % 20 == 0]
    data = Examples([data.texts[index] for index in rare], [data.labels[index] for index in rare])
    classifier = flaxsent.load(
        tiny_folder("bert", num_hidden_layers=1), backend="native", labels=["none", "good", "bad"]
    )
    test = toy_data(200, seed=1)
    found = []
    for weights in (None, "balanced"):
        options = TrainOptions(
            learning_rate=5e-4, batch_size=20, num_epochs=2, average_decay=0.9, class_weights=weights
        )
        trained = flaxsent.fit(classifier, data, options=options)
        given = [prediction.label for prediction in flaxsent.classify(test.texts, trained)]
        found.append(sum(label == "bad" for label in given))
    assert found[1] > found[0]


@pytest.mark.slow
def test_a_run_with_weights_goes_on_and_another_files_weights_are_another_run(
    capsys, monkeypatch, tmp_path, files, tiny_folder
):
    from tests.training.test_run import stop_at

    (tmp_path / "weights.json").write_text('{"POSITIVE": 3}')
    more = ("--class-weights", str(tmp_path / "weights.json"), "--focal-gamma", "1")
    whole, stopped = (
        arguments_of(tiny_folder("bert", **ONE_LAYER), files, tmp_path / name, *more) for name in ("whole", "stopped")
    )
    assert run(capsys, *whole)[0] == 0
    stop_at(monkeypatch, 3)
    assert run(capsys, *stopped)[0] == 130
    monkeypatch.undo()
    (tmp_path / "weights.json").write_text('{"POSITIVE": 4}')
    assert '{"class_weights": {"POSITIVE": 3}}, and now are {"class_weights": {"POSITIVE": 4}}' in refused(
        capsys, *stopped, "--resume"
    )
    (tmp_path / "weights.json").write_text('{"POSITIVE": 3}')
    assert run(capsys, *stopped, "--resume")[0] == 0
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "stopped")]
    assert weights[0] == weights[1]
