"""Sweeps: each run is what it is alone; what is swept, told and written; what is refused."""

import csv
import dataclasses
import json

import jax
import numpy as np
import pytest

import flaxsent
from flaxsent.base import FlaxsentError
from flaxsent.data.labels import Examples
from flaxsent.training.choosing import evaluate
from flaxsent.training.options import TrainOptions
from flaxsent.training.sweep import best, grid, parse, sweep
from flaxsent.training.trainer import Trainer
from tests.conftest import texts_of_lengths
from tests.training.runs import ONE_LAYER, arguments_of, refused, run

TEXTS = texts_of_lengths(np.random.default_rng(0).integers(1, 20, 40).tolist())
DATA = Examples(TEXTS, [int("good" in text) for text in TEXTS])
OPTIONS = TrainOptions(num_epochs=2, tokens_per_step=256, learning_rate=1e-3)
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def start(folder):
    return lambda seed: flaxsent.load(folder, backend="native", labels=["no", "yes"], seed=seed, new_head=True)


def alone(classifier, options):
    trainer = Trainer(classifier, DATA, DATA, options=options)
    snapshot, losses = trainer.start(), []
    for event in trainer.events(snapshot):
        snapshot = event.snapshot
        losses.append(float(event.report.loss))
    return losses, snapshot.evaluations, trainer.result(snapshot)


def assert_same(run, losses, evaluations, classifier):
    # Products of a batch of runs are summed in another order, and Adam divides by the size of gradients: where one is 0
    # but for rounding, as of the keys' biases, which move no logit, it makes steps of it. Losses and logits of size 1
    # differ by up to 1e-4 then, and by much more between the runs.
    np.testing.assert_allclose(run.losses, losses, atol=TOLERANCE)
    assert [one.step for one in run.evaluations] == [one.step for one in evaluations]
    np.testing.assert_allclose([one.loss for one in run.evaluations], [one.loss for one in evaluations], atol=TOLERANCE)
    logits = [np.asarray(jax.jit(one.forward)(one.params, one.tokenize(TEXTS))) for one in (run.classifier, classifier)]
    np.testing.assert_allclose(*logits, atol=TOLERANCE)
    return logits[0]


TOLERANCE = 2e-4
RUNS = [
    {"learning_rate": 1e-3, "seed": 3},
    {"learning_rate": 3e-3, "schedule": "cosine", "warmup": 0.5, "weight_decay": 0.3},
    {"layer_decay": 0.5, "average_decay": 0.0, "label_smoothing": 0.3, "seed": 1},
]


@pytest.mark.slow
def test_each_run_is_what_it_is_alone(tiny_folder):
    begin, options = (
        start(tiny_folder("bert", **NO_DROPOUT, **ONE_LAYER)),
        [dataclasses.replace(OPTIONS, **one) for one in RUNS],
    )
    runs = sweep(begin, DATA, DATA, options)
    found = [alone(begin(each.seed), each) for each in options]
    for each, expected in zip(runs, found, strict=True):
        assert_same(each, *expected)
    assert abs(runs[0].losses[-1] - runs[1].losses[-1]) > 10 * TOLERANCE
    assert runs[0].classifier.config.labels == ("no", "yes")


@pytest.mark.slow
def test_adapters_are_swept(tiny_folder):
    begin = start(tiny_folder("bert", **NO_DROPOUT, **ONE_LAYER))
    options = grid(dataclasses.replace(OPTIONS, lora_rank=2), {"lora_alpha": [2.0, 64.0]})
    runs = sweep(begin, DATA, DATA, options)
    for each, one in zip(runs, options, strict=True):
        assert_same(each, *alone(begin(0), one))


@pytest.mark.slow
@pytest.mark.parametrize("impl", ["threefry2x32", "unsafe_rbg"])  # which draws for all runs from the key of the first
def test_dropout_of_a_run_is_its_own(tiny_folder, impl):
    begin = start(tiny_folder("bert", **ONE_LAYER))
    options = grid(dataclasses.replace(OPTIONS, num_epochs=1), {"seed": [0, 5]})
    with jax.default_prng_impl(impl):
        runs = sweep(begin, DATA, DATA, options)
        for each, one in zip(runs, options, strict=True):
            assert_same(each, *alone(begin(one.seed), one))


@pytest.mark.parametrize(
    ("changes", "rates"),
    [
        ({"metric": "accuracy"}, [3e-2]),
        pytest.param({"metric": "macro-f1"}, [1e-3, 3e-2], marks=pytest.mark.slow),
        pytest.param({"metric": "accuracy", "evaluate_every": 3}, [1e-3, 3e-2], marks=pytest.mark.slow),
    ],
)
def test_a_run_keeps_what_its_metric_keeps_alone(tiny_folder, changes, rates):
    begin = start(tiny_folder("bert", **NO_DROPOUT, **ONE_LAYER))
    options = dataclasses.replace(OPTIONS, num_epochs=4, average_decay=0.0, **changes)
    runs = sweep(begin, DATA, DATA, grid(options, {"learning_rate": rates}))
    for each in runs:
        losses, evaluations, classifier = alone(begin(0), each.options)
        logits = assert_same(each, losses, evaluations, classifier)
        scores = [[one.score for one in found] for found in (each.evaluations, evaluations)]
        np.testing.assert_allclose(*scores, atol=TOLERANCE)
        own = evaluate(logits, np.array(DATA.labels), classifier.config, metric=options.metric)
        assert own.score == pytest.approx(each.evaluation.score, abs=TOLERANCE)
    assert any(each.evaluation is not each.evaluations[-1] for each in runs)
    scores = [each.evaluation.score for each in runs]
    assert scores[best(runs)] == max(scores)


def test_a_grid_is_every_combination():
    runs = grid(OPTIONS, {"learning_rate": [1e-4, 1e-5], "warmup": [0.0, 0.1]}, num_seeds=3)
    assert len(runs) == 12
    assert {one.seed for one in runs} == {0, 1, 2}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["batch_size=1,2"], "sweep: 'batch_size' cannot be swept in one program; expected learning_rate"),
        (["nothing=1"], "sweep: 'nothing' cannot be swept"),
        (["learning_rate"], "sweep: 'learning_rate'; expected NAME=X,Y"),
        (["learning_rate=1e-4,x"], "expected numbers with commas"),
        (["learning_rate=1e-4,1e-4"], "expected one or more values that differ"),
        (["learning_rate=0"], "learning_rate=0.0; expected a positive number"),
        (["warmup=0.1", "warmup=0.2"], "once for each name"),
    ],
)
def test_what_cannot_be_swept_is_told(texts, message):
    with pytest.raises(FlaxsentError, match=message):
        grid(OPTIONS, parse(texts))


def test_what_cannot_be_swept_is_refused_before_a_step(tiny_folder, capsys, tmp_path, files):
    begin = start(tiny_folder("bert", **ONE_LAYER))
    with pytest.raises(FlaxsentError, match="seed is swept already"):
        grid(OPTIONS, {"seed": [1, 2]}, num_seeds=2)
    with pytest.raises(FlaxsentError, match="the runs differ in batch_size, which changes the program"):
        sweep(begin, DATA, DATA, [OPTIONS, dataclasses.replace(OPTIONS, batch_size=3)])
    with pytest.raises(FlaxsentError, match="leave out early_stopping"):
        sweep(begin, DATA, DATA, [dataclasses.replace(OPTIONS, early_stopping=1)])
    arguments = arguments_of(tiny_folder("bert", **ONE_LAYER), files, tmp_path / "out")
    assert "'epochs' cannot be swept" in refused(capsys, *arguments, "--sweep", "epochs=1,2")
    assert "--resume" in refused(capsys, *arguments, "--seeds", "2", "--resume")
    at = arguments.index("--dev")
    assert "needs a dev file" in refused(capsys, *arguments[:at], *arguments[at + 2 :], "--seeds", "2")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dev.tsv", "train.tsv"]


@pytest.mark.slow
def test_the_command_writes_the_best_run_and_tells_all(capsys, tmp_path, files, tiny_folder):
    output = tmp_path / "out"
    swept = ("--sweep", "learning_rate=1e-6,3e-3", "--seeds", "2")
    code, out, err = run(capsys, *arguments_of(tiny_folder("bert", **ONE_LAYER), files, output, *swept))
    assert (code, err) == (0, "")
    head, *rows = out.splitlines()[-5:]
    assert head.split() == ["learning_rate", "seed", "dev", "dev", "loss", "train", "loss"]
    assert [row.split()[:2] for row in rows] == [["1e-06", "0"], ["1e-06", "1"], ["0.003", "0"], ["0.003", "1"]]
    assert [row.split()[-1] for row in rows].count("best") == 1
    told = json.loads((output / "sweep.json").read_text())
    with (output / "sweep.csv").open() as stream:
        curves = [*csv.DictReader(stream)]
    assert {line["run"] for line in curves} == {"0", "1", "2", "3"}
    chosen = next(one for one in told if one["is_best"])
    assert chosen["evaluations"][-1]["score"] == max(one["evaluations"][-1]["score"] for one in told)
    flaxsent.load(output)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dev.tsv", "out", "train.tsv"]
