"""Choosing: figures of dev by scikit-learn and SciPy, the best evaluation, when dev is scored, dev parts and folds."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest

import flaxsent
from flaxsent import cli
from flaxsent.base import FlaxsentError
from flaxsent.data.labels import Examples
from flaxsent.evaluation.report import measure
from flaxsent.postprocessing import probabilities, tune_thresholds
from flaxsent.training import choosing, folds
from flaxsent.training.choosing import METRICS, Evaluation
from flaxsent.training.log import Log
from flaxsent.training.options import TrainOptions
from flaxsent.training.trainer import Trainer
from tests.training.runs import ONE_LAYER, ROWS, arguments_of, refused, run, without_speed, write_tsv
from tests.training.test_class_weights import config
from tests.training.test_run import stop_at
from tests.training.test_trainer import NAMES, SMALL, load, toy_data

_SEVERAL = "multi_label_classification"
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(scale=3, size=(200, 3)).astype(np.float32)
ONE = RNG.integers(0, 3, 200).astype(np.int32)
SEVERAL = RNG.integers(0, 2, (200, 3)).astype(np.float32)
VALUES = RNG.normal(size=200).astype(np.float32)


@pytest.mark.parametrize("tunes_thresholds", [True, False])
@pytest.mark.parametrize("metric", METRICS)
def test_the_figures_are_scikit_learns_and_scipys(metric, tunes_thresholds):
    sklearn, stats = pytest.importorskip("sklearn.metrics"), pytest.importorskip("scipy.stats")
    best, thresholds = LOGITS.argmax(1), (0.5,) * 3
    softmax = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
    sigmoid = 1 / (1 + np.exp(-LOGITS))
    if tunes_thresholds:
        average = "micro" if metric == "micro-f1" else "macro"
        thresholds = tune_thresholds(probabilities(LOGITS, problem_type=_SEVERAL), SEVERAL, average=average)
    given = sigmoid > thresholds
    expected = {
        "accuracy": (sklearn.accuracy_score(ONE, best), sklearn.accuracy_score(SEVERAL, given)),
        "macro-f1": tuple(sklearn.f1_score(*of, average="macro") for of in ((ONE, best), (SEVERAL, given))),
        "micro-f1": tuple(sklearn.f1_score(*of, average="micro") for of in ((ONE, best), (SEVERAL, given))),
        "mcc": (sklearn.matthews_corrcoef(ONE, best),),
        "log-loss": (
            sklearn.log_loss(ONE, softmax),
            sklearn.log_loss(SEVERAL.ravel(), np.stack([1 - sigmoid.ravel(), sigmoid.ravel()], 1)),
        ),
        "spearman": (stats.spearmanr(VALUES, LOGITS[:, 0]).statistic,),
        "r2": (sklearn.r2_score(VALUES, LOGITS[:, 0]),),
    }[metric]
    for problem_type, figure in zip(METRICS[metric].problem_types, expected, strict=True):
        labels = {"single": ONE, "multi_": SEVERAL, "regres": VALUES}[problem_type[:6]]
        logits = LOGITS[:, :1] if problem_type == "regression" else LOGITS
        names = ("value",) if problem_type == "regression" else ("a", "b", "c")
        own = config(problem_type, names)
        found = choosing.evaluate(logits, labels, own, metric=metric, tunes_thresholds=tunes_thresholds)
        assert found.score == pytest.approx(figure, rel=1e-5), problem_type  # scores are float32
        assert found.thresholds == (thresholds if tunes_thresholds and problem_type == _SEVERAL else None)


def test_of_losses_the_least_is_the_best_and_of_equals_the_first():
    evaluations = [Evaluation(step, 0.0, score) for step, score in enumerate([0.5, 0.3, 0.3, 0.6])]
    assert choosing.best(evaluations, "log-loss") == 1
    assert choosing.best(evaluations, "accuracy") == 3
    assert choosing.best([], "accuracy") == -1


def test_values_that_are_all_the_same_are_the_worst_by_correlation():
    found = choosing.evaluate(np.zeros((5, 1), np.float32), VALUES[:5], config("regression", ("v",)), metric="spearman")
    assert found.score == 0


@pytest.mark.parametrize(
    ("problem_type", "metric", "expected"),
    [
        ("regression", "accuracy", "this is regression; expected one of spearman, r2"),
        ("multi_label_classification", "mcc", "expected one of accuracy, macro-f1, micro-f1, log-loss"),
        ("single_label_classification", "spearman", "expected one of accuracy, macro-f1, micro-f1, mcc, log-loss"),
    ],
)
def test_a_metric_that_does_not_fit_is_refused(tiny_folder, problem_type, metric, expected):
    classifier = load(tiny_folder("bert", **SMALL), problem_type=problem_type)
    labels = {"regression": [0.0, 1.0], "multi_label_classification": [(0,), (1,)]}.get(problem_type, [0, 1])
    data = Examples(["a", "b"], labels)
    with pytest.raises(FlaxsentError, match=f"metric={metric}: .*{expected}"):
        Trainer(classifier, data, data, options=TrainOptions(metric=metric))


def test_answers_that_are_all_the_same_are_told():
    found = choosing.evaluate(
        np.array([[0, 9, 0]] * 3, np.float32), np.array([0, 1, 2], np.int32), config("single_label_classification"),
        metric="accuracy",
    )  # fmt: skip
    assert found.warning.startswith("of the 3 texts of dev all are given the label b: train longer")
    several = config("multi_label_classification")
    found = choosing.evaluate(
        np.full((3, 3), -1.0, np.float32), np.eye(3, dtype=np.float32), several, metric="accuracy"
    )
    assert found.warning.startswith("on the 3 texts of dev the highest score of any label is 0.27: train longer")
    for logits, labels, one in (
        (LOGITS, ONE, config("single_label_classification")),
        (LOGITS, SEVERAL, several),
        (np.zeros((2, 3), np.float32), np.array([0, 0], np.int32), config("single_label_classification")),
    ):
        assert choosing.evaluate(logits, labels, one, metric="accuracy").warning == ""


@pytest.mark.parametrize("metric", [None, "macro-f1"])
def test_a_result_with_several_labels_has_the_score_of_its_evaluation(tiny_folder, metric):
    """Each label is rare, so that after so few steps no score is above 0.5."""
    classifier = load(tiny_folder("bert", **SMALL), problem_type=_SEVERAL, seed=1)
    data = toy_data(64)
    data = Examples(data.texts, [(label,) if index % 4 == 0 else () for index, label in enumerate(data.labels)])
    options = TrainOptions(learning_rate=1e-4, batch_size=16, num_epochs=3, metric=metric)
    trainer = Trainer(classifier, data, data, options=options)
    *_, event = trainer.events(trainer.start())
    result, told = trainer.result(event.snapshot), trainer.chosen(event.snapshot, print)
    assert result.config.label_thresholds == told.thresholds is not None
    logits = np.asarray(result.forward(result.params, result.tokenize(data.texts)))
    labels = np.array([[index in own for index in range(3)] for own in data.labels], np.float32)
    figures = measure(logits, labels, result.config).figures
    assert told.score == pytest.approx(figures["macro_f1" if metric else "micro_f1"], rel=1e-6)
    at_a_half = dataclasses.replace(result.config, label_thresholds=None)
    assert measure(logits, labels, at_a_half).figures["micro_f1"] < told.score


def test_a_checkpoint_of_a_run_with_several_labels_has_the_figures_of_its_card(capsys, tmp_path, tiny_folder):
    """Of one that goes on, and of the best of a sweep."""
    rows = [("so good" if index % 4 == 0 else "so", "good|film" if index % 4 == 0 else "[]") for index in range(80)]
    files = [write_tsv(tmp_path / name, rows) for name in ("train.tsv", "dev.tsv")]
    more = ("--label-separator", "|", "--batch-size", "20", "--epochs", "3", "--metric", "micro-f1")
    command = arguments_of(tiny_folder("bert", **ONE_LAYER), files, tmp_path / "out", *more)
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 5)
        assert run(capsys, *command)[0] == 130
    for output, again in (("out", ("--resume",)), ("swept", ("--seeds", "2"))):
        command = arguments_of(tiny_folder("bert", **ONE_LAYER), files, tmp_path / output, *more, *again)
        code, out, err = run(capsys, *command)
        assert code == 0, (out, err)
        evaluate = f"evaluate --model {tmp_path / output} --data {files[1]} --label-separator | --json".split()
        figure = json.loads(run(capsys, *evaluate)[1])["micro_f1"]
        told = re.search(r"- type: f1\n +value: (\S+)\n", (tmp_path / output / "README.md").read_text())
        assert float(told[1]) == pytest.approx(figure, abs=1e-6)  # a count of answers in both
        assert figure > 0, "at 0.5 no text is given a label"


def test_dev_has_the_same_scores_in_whatever_rows(tiny_folder):
    classifier, data = load(tiny_folder("bert", **SMALL), labels=NAMES, new_head=False), toy_data(50)
    found = [
        Trainer(classifier, data, data, options=TrainOptions(tokens_per_step=tokens)).evaluate(classifier.params)
        for tokens in (128, 1024)
    ]
    assert found[0].score == found[1].score
    assert found[0].loss == pytest.approx(found[1].loss, rel=1e-5)  # float32 sums in other shapes
    expected = np.mean([
        prediction.label == NAMES[label]
        for prediction, label in zip(flaxsent.classify(data.texts, classifier), data.labels, strict=True)
    ])  # fmt: skip
    assert found[0].score == pytest.approx(expected)


def test_dev_is_scored_every_few_steps_and_the_best_is_kept(tiny_folder, monkeypatch):
    classifier, data = load(tiny_folder("bert", **SMALL), labels=NAMES, seed=1), toy_data(60)
    scores = iter([0.9, 0.2, 0.3, 0.8, 0.8, 0.8])
    evaluate = Trainer.evaluate
    monkeypatch.setattr(Trainer, "evaluate", lambda *args, **kw: evaluate(*args, **kw)._replace(score=next(scores)))
    options = TrainOptions(num_epochs=2, tokens_per_step=128, evaluate_every=2, metric="log-loss", learning_rate=1e-3)
    trainer = Trainer(classifier, data, data, options=options)
    averages, event = {}, None
    for event in trainer.events(trainer.start()):
        averages[event.step] = jax.tree.map(np.array, event.snapshot.state.average)
        assert (event.evaluation is not None) == (event.step % 2 == 0 or event.step == trainer.num_steps)
    assert trainer.num_steps == 6
    assert trainer.chosen(event.snapshot, print).step == 4
    expected = trainer.vocabulary.whole(averages[4], classifier.params)
    jax.tree.map(np.testing.assert_array_equal, trainer.result(event.snapshot).params, expected)


@pytest.mark.slow
def test_early_stopping_counts_evaluations_not_epochs(tiny_folder, monkeypatch):
    classifier, data = load(tiny_folder("bert", **SMALL), labels=NAMES, seed=1), toy_data(60)
    scores = iter([0.5, 0.4, 0.3])
    evaluate = Trainer.evaluate
    monkeypatch.setattr(Trainer, "evaluate", lambda *args, **kw: evaluate(*args, **kw)._replace(score=next(scores)))
    options = TrainOptions(num_epochs=9, tokens_per_step=128, evaluate_every=2, early_stopping=2)
    trainer = Trainer(classifier, data, data, options=options)
    assert [event.step for event in trainer.events(trainer.start())][-1] == 6


def test_few_texts_are_passed_over_until_there_are_enough_steps(tiny_folder):
    classifier, data = load(tiny_folder("bert", **SMALL), labels=NAMES), toy_data(60)
    few = Trainer(classifier, data, options=TrainOptions(tokens_per_step=128, min_steps=100))
    per_epoch = few.steps_by_epoch[0]
    assert few.is_lengthened
    assert 100 <= few.num_steps < 100 + 2 * per_epoch
    assert sum(step in few._ends for step in range(1, few.num_steps + 1)) <= 11  # ten, and the last
    enough = Trainer(classifier, data, options=TrainOptions(tokens_per_step=128, min_steps=3))
    assert not enough.is_lengthened
    assert len(enough.steps_by_epoch) == 3
    exact = Trainer(classifier, data, options=TrainOptions(tokens_per_step=128, min_steps=100, num_epochs=1))
    assert len(exact.steps_by_epoch) == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--early-stopping", "2"), "early_stopping needs a dev file, or dev_fraction"),
        (("--evaluate-every", "2"), "evaluate_every needs a dev file, or dev_fraction"),
        (("--metric", "mcc"), "metric needs a dev file, or dev_fraction"),
        (("--folds", "61"), "folds=61 are more than the 59 different texts"),
        (("--dev-fraction", "0.001"), "dev_fraction=0.001 of 60 texts leaves 60 to learn from and 0 for dev"),
        (("--train", "/nowhere/*.tsv"), "/nowhere/*.tsv: no such file"),
        (("--folds", "2", "--early-stopping", "1"), "early_stopping needs a dev file"),
        (("--folds", "2", "--metric", "spearman"), "metric=spearman: this is single_label_classification"),
    ],
)
def test_what_cannot_be_chosen_by_is_one_line_before_any_step(capsys, tmp_path, files, tiny_folder, more, message):
    arguments = (
        "train",
        "--model",
        str(tiny_folder("bert", **ONE_LAYER)),
        "--train",
        files[0],
        "--output",
        str(tmp_path / "out"),
    )
    code, out, err = run(capsys, *arguments, *more)
    assert (code, err.count("\n")) == (2, 1), err
    assert message in err
    assert " dev " not in out
    assert {path.name for path in tmp_path.iterdir()} == {"train.tsv", "dev.tsv"}


def test_several_files_and_patterns_are_one(capsys, tmp_path, files, tiny_folder, monkeypatch):
    parts = [write_tsv(tmp_path / f"part-{n}.tsv", ROWS[n::3]) for n in range(3)]
    monkeypatch.setattr(Trainer, "__init__", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    arguments = ("train", "--model", str(tiny_folder("bert", **ONE_LAYER)), "--output", str(tmp_path / "out"))
    for train in ((str(tmp_path / "part-*.tsv"),), (*parts, parts[0])):
        code, out, _ = run(capsys, *arguments, "--train", *train)
        assert code == 130
        start = f"{parts[0]} and 2 more: 60 texts, 2 labels: NEGATIVE 40, POSITIVE 20; one label per text"
        assert out.startswith(start), out
    write_tsv(tmp_path / "part-2.tsv", [("so", "POSITIVE"), ("so", "")])
    assert "part-2.tsv row 3 has no label" in refused(capsys, *arguments, "--train", str(tmp_path / "part-*.tsv"))


@pytest.mark.slow
def test_a_run_with_a_dev_part_goes_on_to_the_same_bytes(capsys, monkeypatch, tmp_path, files, tiny_folder):
    more = ("--dev-fraction", "0.2", "--metric", "macro-f1", "--evaluate-every", "2", "--early-stopping", "5")

    def arguments(name):
        given = arguments_of(tiny_folder("bert", **SMALL), files, tmp_path / name, *more)
        at = given.index("--dev")
        return [*given[:at], *given[at + 2 :]]

    code, out, _ = run(capsys, *arguments("whole"))
    assert code == 0
    assert out.splitlines()[0].startswith(f"{files[0]}: 48 texts, 2 labels: NEGATIVE 32, POSITIVE 16")
    assert out.splitlines()[1] == "dev: 12 texts, 2 labels: NEGATIVE 8, POSITIVE 4; one label per text"
    assert "step 2 dev macro F1" in out
    stop_at(monkeypatch, 5)
    assert run(capsys, *arguments("stopped"))[0] == 130
    monkeypatch.undo()
    assert run(capsys, *arguments("stopped"), "--resume")[0] == 0
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert (stopped / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert without_speed(stopped / "log.jsonl") == without_speed(whole / "log.jsonl")


@pytest.mark.slow
def test_folds_are_scored_by_runs_that_have_not_seen_them_and_go_on(capsys, monkeypatch, tmp_path, files, tiny_folder):
    def arguments(name):
        given = arguments_of(tiny_folder("bert", **SMALL), files, tmp_path / name, "--folds", "2")
        given += ["--metric", "mcc", "--class-weights", "balanced"]
        at = given.index("--dev")
        return [*given[:at], *given[at + 2 :]]

    code, out, err = run(capsys, *arguments("whole"))
    assert (code, err) == (0, "")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    told = json.loads((whole / "folds.json").read_text())
    scores = [one["score"] for one in told["by_fold"]]
    assert (len(scores), told["metric"]) == (2, "mcc")
    assert told["mean"] == pytest.approx(np.mean(scores))
    assert told["spread"] == pytest.approx(np.std(scores, ddof=1))
    assert f"2 folds: Matthews correlation {told['mean']:.4f} ± {told['spread']:.4f}" in out
    lines = [json.loads(line) for line in (whole / "out-of-fold.jsonl").read_text().splitlines()]
    assert [line["text"] for line in lines] == [text for text, _ in ROWS]
    evaluated = ("evaluate", "--model", str(whole), "--data", files[0], "--scores", str(whole / "out-of-fold.jsonl"))
    assert cli.main([*evaluated, "--suspects", "3", "--json"]) == 0
    assert "suspects" in json.loads(capsys.readouterr().out)

    add, count = Log.add, iter(range(1000))

    def stop(log, event):
        if next(count) == 5:  # in the second fold, of 4 steps
            raise KeyboardInterrupt
        add(log, event)

    monkeypatch.setattr(Log, "add", stop)
    assert run(capsys, *arguments("stopped"))[0] == 130
    monkeypatch.undo()
    assert (tmp_path / ".stopped.training" / "folds" / "1.npy").exists()
    trained, select = [], folds.select
    monkeypatch.setattr(folds, "select", lambda data, chosen: trained.append(len(chosen)) or select(data, chosen))
    assert run(capsys, *arguments("stopped"), "--resume")[0] == 0
    assert trained == [30, 30]  # the second alone, and its own texts
    for name in ("model.safetensors", "out-of-fold.jsonl", "folds.json"):
        assert (stopped / name).read_bytes() == (whole / name).read_bytes(), name
    assert not (tmp_path / ".stopped.training").exists()


@pytest.mark.slow
def test_a_lengthened_run_says_so_and_goes_on(capsys, monkeypatch, tmp_path, files, tiny_folder):
    def arguments(name):
        given = arguments_of(tiny_folder("bert", **SMALL), files, tmp_path / name, "--min-steps", "30")
        at = given.index("--epochs")
        return [*given[:at], *given[at + 2 :]]

    code, out, _ = run(capsys, *arguments("whole"))
    assert code == 0
    (line,) = [line for line in out.splitlines() if line.startswith("the texts are few: ")]
    assert line.endswith("steps, at least --min-steps 30")
    stop_at(monkeypatch, 17)
    assert run(capsys, *arguments("stopped"))[0] == 130
    monkeypatch.undo()
    assert run(capsys, *arguments("stopped"), "--resume")[0] == 0
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "stopped")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(("predicted", "expected"), [(2.0, 1.0), (2.5, 0.0)])
def test_of_values_that_are_all_the_same_r2_is_scikit_learns(predicted, expected):
    gold, found = np.full(4, 2.0, np.float32), np.full((4, 1), predicted, np.float32)
    assert choosing.evaluate(found, gold, config("regression", ("v",)), metric="r2").score == expected
    assert pytest.importorskip("sklearn.metrics").r2_score(gold, found[:, 0]) == expected
