"""Few examples a label: the encoder learns from all pairs among texts, then the head is fitted, by one command."""

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxsent
from flaxsent.base import FlaxsentError, Text
from flaxsent.data.labels import Examples
from flaxsent.losses import pair_loss
from flaxsent.training import contrastive
from flaxsent.training import run as training
from flaxsent.training.loop import Log
from flaxsent.training.options import TrainOptions
from flaxsent.training.probe import with_features
from flaxsent.training.trainer import Trainer, forward_of_rows
from tests.conftest import texts_of_lengths
from tests.training.runs import ROWS, refused, run, without_speed

WORDS = ("good", "bad", "hate")
FEW = [f"{WORDS[i % 3]} {text} {WORDS[i % 3]}" for i, text in enumerate(texts_of_lengths([1, 7, 3, 5, 2, 9, 4, 6, 8]))]
LABELS = {
    "single_label_classification": [i % 3 for i in range(9)],
    "multi_label_classification": [(), *((i % 3, 3) if i % 3 == 0 else (i % 3,) for i in range(1, 9))],
}
SLOW = {"single_label_classification": pytest.mark.slow}
OPTIONS = TrainOptions(num_epochs=60, learning_rate=1e-3, average_decay=0.5)


@pytest.fixture
def tiny(tiny_folder):
    def load(problem_type="single_label_classification"):
        told = {"labels": [*WORDS, "more"], "problem_type": problem_type, "new_head": True}
        return flaxsent.load(tiny_folder("bert", num_hidden_layers=1), backend="native", **told)

    return load


def examples(problem_type="single_label_classification"):
    texts: list[Text] = [*FEW]
    return Examples(texts, LABELS[problem_type])


@pytest.mark.parametrize("problem_type", [pytest.param(one, marks=SLOW.get(one, ())) for one in LABELS])
def test_the_pairs_among_packed_texts_are_those_of_single_texts(tiny, problem_type):
    classifier, train = tiny(problem_type), examples(problem_type)
    trainer = Trainer(classifier, train, options=OPTIONS, objective=contrastive.loss)
    (plan,) = trainer._plan(0)
    batch = trainer._train.batch(plan)
    assert max(map(len, plan.rows)) > 1
    forward = forward_of_rows(classifier, OPTIONS, plan.shape.num_segments)
    loss = functools.partial(contrastive.loss, forward=forward, problem_type=problem_type)
    value, gradient = jax.jit(jax.value_and_grad(loss))(classifier.params, batch, None)

    def of_single(params):
        features = classifier.forward(with_features(params), classifier.tokenize(FEW))
        labels = jnp.asarray(trainer._train.labels)
        return pair_loss(features, labels, jnp.ones(len(FEW)), problem_type=problem_type)

    expected, theirs = jax.jit(jax.value_and_grad(of_single))(classifier.params)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(theirs))
    for ours, other in zip(jax.tree.leaves(gradient), jax.tree.leaves(theirs), strict=True):
        # Sums of float32 in another order, relative to the largest.
        np.testing.assert_allclose(ours, other, atol=1e-5 * largest)
    assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(gradient["classifier"])), "it has no part in it"


@pytest.mark.slow
@pytest.mark.parametrize("problem_type", LABELS)
def test_texts_with_a_label_in_common_come_together(tiny, problem_type):
    classifier, train, told = tiny(problem_type), examples(problem_type), []
    found = contrastive.fit(classifier, train, None, OPTIONS, report=told.append)
    assert found.evaluation is None
    assert told[0].startswith("step 1 of 60 loss ")
    assert told[-1] == "probe: 9 texts, 36 features; penalty 0.111111"

    def loss(params):
        features = classifier.forward(with_features(params), classifier.tokenize(FEW))
        labels = jnp.asarray(Trainer(classifier, train)._train.labels)
        return float(pair_loss(features, labels, jnp.ones(len(FEW)), problem_type=problem_type))

    assert loss(found.classifier.params) < 0.5 * loss(classifier.params)
    answers = flaxsent.classify(FEW, found.classifier)
    if problem_type == "single_label_classification":
        assert [answer.label for answer in answers] == [WORDS[i % 3] for i in range(9)]
    else:
        assert found.classifier.config.label_thresholds is None, "there is no dev to tune them on"


def arguments(model, files, output, *more):
    command = ("train", "--model", str(model), "--train", files[0], "--output", str(output), "--contrastive")
    return (*command, "--epochs", "3", "--learning-rate", "1e-3", *more)


@pytest.fixture
def sentence_encoder(tmp_path, tiny_folder):
    """A folder of sentence-transformers, whose texts are means."""
    shutil.copytree(tiny_folder("bert", num_hidden_layers=1), tmp_path / "model")
    (tmp_path / "model" / "1_Pooling").mkdir()
    (tmp_path / "model" / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    return tmp_path / "model"


@pytest.mark.slow
@pytest.mark.torch
def test_the_command_writes_a_folder_that_pytorch_opens(capsys, tmp_path, files, sentence_encoder):
    import torch
    from transformers import AutoModelForSequenceClassification

    output = tmp_path / "out"
    command = arguments(sentence_encoder, files, output)
    code, out, err = run(capsys, *command)
    assert (code, err) == (0, "")
    understood, probed = out.splitlines()
    assert understood.startswith(f"{files[0]}: 60 texts, 2 labels")
    assert probed == "probe: 60 texts, 36 features; penalty 0.0166667"
    assert (output / "curves.png").is_file()
    assert "contrastive" in (output / "README.md").read_text()
    classifier = flaxsent.load(output, backend="native")
    assert classifier.config.num_layers == flaxsent.load(sentence_encoder, backend="native").config.num_layers + 1
    texts, labels = zip(*ROWS, strict=True)
    right = [answer.label == label for answer, label in zip(flaxsent.classify(texts, classifier), labels, strict=True)]
    assert np.mean(right) > 0.9
    tokens = classifier.tokenize(texts)
    model = AutoModelForSequenceClassification.from_pretrained(output).eval()
    inputs = {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask}
    with torch.no_grad():
        expected = model(**{name: torch.from_numpy(np.asarray(ids)).long() for name, ids in inputs.items()}).logits
    # Logits of float32 through 4 layers, as those of other checkpoints.
    np.testing.assert_allclose(classifier.forward(classifier.params, tokens), expected.numpy(), atol=1e-4, rtol=1e-4)
    code, out, _ = run(capsys, *command, "--resume")
    assert (code, out) == (0, f"{output} is complete; nothing to resume\n")


@pytest.mark.slow
@pytest.mark.parametrize("is_after_the_steps", [False, True])
def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(
    capsys, monkeypatch, tmp_path, files, tiny_folder, is_after_the_steps
):
    def stop(*_, **__):
        raise KeyboardInterrupt

    more = ("--tokens-per-step", "256", "--checkpoint-every", "2")
    model = tiny_folder("bert", num_hidden_layers=1)
    whole, stopped = (arguments(model, files, tmp_path / name, *more) for name in ("whole", "stopped"))
    assert run(capsys, *whole)[0] == 0
    if is_after_the_steps:
        monkeypatch.setattr(contrastive, "fit_layer", stop)
    else:
        add = Log.add
        monkeypatch.setattr(Log, "add", lambda log, event: stop() if event.step == 5 else add(log, event))
    assert run(capsys, *stopped)[0] == 130
    monkeypatch.undo()
    other = (*(one for one in stopped if one != "--contrastive"), "--min-steps", "100")
    assert "its contrastive was true, and now is false" in refused(capsys, *other, "--resume")
    assert run(capsys, *stopped, "--resume")[0] == 0
    assert (tmp_path / "stopped" / "model.safetensors").read_bytes() == (
        tmp_path / "whole" / "model.safetensors"
    ).read_bytes()
    assert without_speed(tmp_path / "stopped" / "log.jsonl") == without_speed(tmp_path / "whole" / "log.jsonl")


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (("--probe",), "--contrastive fits the layer of the logits as --probe does; leave --probe out."),
        *(
            (more, f"{more[0]} does not go with --contrastive; leave one of the two out.")
            for more in [
                ("--folds", "3"),
                ("--seeds", "3"),
                ("--sweep", "seed=1,2"),
                ("--teacher", "x"),
                ("--lora-rank", "3"),
                ("--accumulation", "2"),
                ("--label-smoothing", "0.1"),
                ("--early-stopping", "2"),
            ]
        ),
    ],
)
def test_what_does_not_go_with_it_is_said_before_any_file_is_read(capsys, tmp_path, tiny_folder, more, line):
    assert (
        refused(capsys, *arguments(tiny_folder("bert", num_hidden_layers=1), ["none.csv"], tmp_path / "out", *more))
        == f"{line}\n"
    )


@pytest.mark.parametrize(
    ("labels", "line"),
    [
        (["a", "b"], "no two texts have a label in common; expected two examples or more of a label."),
        ([0.5, 0.25, 0.5], "texts have a label in common or none; this is regression, without labels."),
        ([["a"], ["a", "b"]], "all texts have the label a; expected texts without it, to tell apart."),
    ],
)
def test_examples_without_pairs_of_both_kinds_are_refused_before_any_step(
    capsys, monkeypatch, tmp_path, tiny_folder, labels, line
):
    monkeypatch.setattr(training, "make_steps", None)
    file = tmp_path / "few.jsonl"
    file.write_text("".join(f"{json.dumps({'text': f'good {i}', 'label': one})}\n" for i, one in enumerate(labels)))
    more = ("--labels", "a,b") if "regression" not in line else ()
    code, _, err = run(
        capsys, *arguments(tiny_folder("bert", num_hidden_layers=1), [str(file)], tmp_path / "out", *more)
    )
    assert (code, err) == (2, f"flaxsent: error: contrastive: {line}\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["few.jsonl"]


def test_labels_with_one_example_are_told(tiny):
    told = []
    contrastive.trainer_of(tiny(), Examples(["a", "b", "c", "d"], [0, 0, 1, 2]), report=told.append)
    assert told == ["labels with one example, which is like no other text, only unlike: 2 (bad, hate)"]


def test_a_family_that_cannot_be_probed_is_refused_before_any_step(tiny):
    padded = dataclasses.replace(tiny(), forward_packed=None)
    with pytest.raises(FlaxsentError, match="a probe needs flaxsent's own encoder"):
        contrastive.trainer_of(padded, examples())


def test_a_step_is_not_made_in_parts_between_which_there_are_pairs(tiny):
    with pytest.raises(FlaxsentError, match="--accumulation does not go with --contrastive"):
        contrastive.fit(tiny(), examples(), options=TrainOptions(accumulation=2))
