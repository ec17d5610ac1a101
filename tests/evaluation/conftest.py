"""Tiny folders, labelled files, and the command."""

import csv
import functools
import json

import numpy as np
import pytest

import flaxsent
from flaxsent.cli import main
from flaxsent.engine import Engine
from flaxsent.models.config import read_config
from flaxsent.parity.random_checkpoints import CONFIGS
from tests.conftest import texts_of_lengths

# Of scores of float32 logits, computed in rows of another length or by another backend.
TOLERANCE = 1e-5

MULTI = {"problem_type": "multi_label_classification"}
REGRESSION = {"id2label": {"0": "score"}, "problem_type": "regression"}

TEXTS = texts_of_lengths(np.random.default_rng(0).integers(1, 30, 60).tolist())


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def figures(capsys, folder, file, *arguments):
    """What `flaxsent evaluate --json` prints."""
    code, out, err = run(capsys, "evaluate", "--model", folder, "--data", file, "--json", *arguments)
    assert (code, err) == (0, "")
    return json.loads(out)


def write_csv(file, rows, columns=("text", "label")):
    with open(file, "w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([columns, *rows])
    return file


def scores_of(classifier, texts):
    with Engine(classifier) as engine:
        return engine(texts)


@pytest.fixture(scope="package")
def model(tiny_folder):
    """`model(**changes)`: a folder of one layer, its classifier, and its scores of `TEXTS`."""

    @functools.cache
    def make(key):
        folder = tiny_folder("bert", num_hidden_layers=1, **json.loads(key))
        classifier = flaxsent.load(folder, backend="native")
        return folder, classifier, scores_of(classifier, TEXTS)

    return lambda **changes: make(json.dumps(changes))


def config_of(**changes):
    return read_config(json.dumps({"model_type": "bert", **CONFIGS["bert"], **changes}))


def mostly_right(scores, share=0.8):
    """Labels of which the model has so many right."""
    rng = np.random.default_rng(1)
    is_kept = rng.random(len(scores)) < share
    return np.where(is_kept, scores.argmax(axis=1), rng.integers(0, scores.shape[1], len(scores)))


def drawn(temperature, num_texts=4000, num_labels=4):
    """Logits, and labels drawn from their softmax at a temperature."""
    rng = np.random.default_rng(4)
    logits = 4 * rng.standard_normal((num_texts, num_labels))
    return logits.astype(np.float32), (logits / temperature + rng.gumbel(size=logits.shape)).argmax(axis=1)
