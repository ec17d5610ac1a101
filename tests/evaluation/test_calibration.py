"""`evaluate --calibrate`: the temperature of least log loss, in the last layer of a folder, for every reader of it."""

import contextlib
import io
import json
import math
import os
import shutil
import stat

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import scipy.optimize
import scipy.special
import sklearn.metrics

import flaxsent
import flaxsent.cli.evaluate
from flaxsent import models
from flaxsent.base import FlaxsentError
from flaxsent.checkpoint.weights import SAFETENSORS, SAFETENSORS_INDEX, stored_dtype
from flaxsent.cli import main
from flaxsent.evaluation.calibration import calibrate, fit_temperature
from flaxsent.evaluation.report import measure
from flaxsent.parity.random_checkpoints import CONFIGS
from tests.conftest import NATIVE, texts_of_lengths
from tests.evaluation.conftest import (
    MULTI,
    REGRESSION,
    TEXTS,
    TOLERANCE,
    config_of,
    drawn,
    figures,
    mostly_right,
    run,
    scores_of,
    write_csv,
)

OLD_KEY = "flaxsent_temperature"
"""Of config.json, where flaxsent 0.1 stored a temperature."""


# The fit


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5, 40.0])
def test_the_temperature_is_that_of_least_log_loss(temperature):
    logits, labels = drawn(temperature)
    fitted = fit_temperature(logits, labels, "single_label_classification")
    # Near 40, where scores are nearly uniform, chance weighs more.
    assert fitted == pytest.approx(temperature, rel=0.1 if temperature < 40 else 0.3), "what labels were drawn at"

    def slope(log_temperature):
        """Of the log loss, by hand: the mean of the label's logit less that of the mean logit under the scores."""
        scaled = logits.astype(np.float64) / math.exp(log_temperature)
        own = scaled[np.arange(len(labels)), labels]
        return np.mean(own - (scipy.special.softmax(scaled, axis=1) * scaled).sum(axis=1))

    # Where the loss is least, it is flat to its 15th digit within 1e-7 or so.
    assert fitted == pytest.approx(math.exp(scipy.optimize.brentq(slope, -5, 5, xtol=1e-12)), rel=1e-6)


def test_the_temperature_of_several_labels_is_that_of_their_decisions():
    rng = np.random.default_rng(5)
    logits = 3 * rng.standard_normal((2000, 3)).astype(np.float32)
    targets = (rng.random(logits.shape) < 1 / (1 + np.exp(-logits / 2))).astype(np.float32)
    fitted = fit_temperature(logits, targets, "multi_label_classification")
    losses = [
        sklearn.metrics.log_loss(targets.ravel(), scipy.special.expit(logits.astype(np.float64) / t).ravel())
        for t in (fitted * 0.99, fitted, fitted * 1.01)
    ]
    assert losses[1] == min(losses)
    assert fitted == pytest.approx(2, rel=0.1)


def test_no_temperature_fits_what_is_all_right_or_says_nothing():
    logits, _ = drawn(1.0, num_texts=50)
    with pytest.raises(FlaxsentError, match="has all 50 texts right"):
        fit_temperature(logits, logits.argmax(axis=1), "single_label_classification")
    for labels in (logits.argmin(axis=1), np.zeros(50, np.int64)):
        scored = logits if labels.any() else np.ones((50, 2), np.float32)
        with pytest.raises(FlaxsentError, match="do not favour the right labels"):
            fit_temperature(scored, labels, "single_label_classification")


# The folder


@pytest.fixture(scope="module")
def calibration(model, tmp_path_factory):
    """A folder after --calibrate, the one before, the labelled file, what was printed, the labels and old scores."""
    plain, folder = tmp_path_factory.mktemp("plain"), tmp_path_factory.mktemp("model")
    source, _, scores = model()
    for target in (plain, folder):
        shutil.copytree(source, target, dirs_exist_ok=True)
        (target / "notes").mkdir()
        (target / "notes" / "mine.txt").write_text("kept")
    (folder / SAFETENSORS).chmod(0o640)
    folder.chmod(0o750)
    labels = mostly_right(scores, share=0.95)
    file = write_csv(folder.parent / "calibration.csv", zip(TEXTS, labels, strict=True))
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(["evaluate", "--model", str(folder), "--data", str(file), "--calibrate"]) == 0
    return folder, plain, file, out.getvalue(), labels, scores


@pytest.fixture
def calibrated(calibration, tmp_path):
    """A copy of the calibrated folder."""
    return shutil.copytree(calibration[0], tmp_path / "calibrated")


def temperature_of(calibration):
    """Fitted by hand, as the command should."""
    _, _, _, _, labels, before = calibration
    return fit_temperature(np.log(before), labels, "single_label_classification")  # but for a constant a row, logits


def softened(scores, temperature):
    return scipy.special.softmax(np.log(scores.astype(np.float64)) / temperature, axis=1)


def test_calibration_lowers_the_log_loss_and_tells_both(calibration):
    folder, _, _, out, labels, before = calibration
    temperature = temperature_of(calibration)
    first, _, second = out.splitlines()[:3]
    old, new = (
        measure(logits.astype(np.float32), labels, config_of(num_labels=3)).figures
        for logits in (np.log(before), np.log(before) / temperature)
    )
    assert first == (
        f"temperature {temperature:.4g}: log loss {old['log_loss']:.4f} → {new['log_loss']:.4f}, calibration error "
        f"{old['calibration_error']:.4f} → {new['calibration_error']:.4f}; stored in {folder / SAFETENSORS}"
    )
    assert second == "60 texts, single label classification"
    assert f"accuracy           {old['accuracy']:.4f}" in out, "the best labels stay"
    assert new["log_loss"] < old["log_loss"]


@pytest.mark.parametrize("backend", ["native", pytest.param("flax", marks=pytest.mark.flax_auto)])
def test_all_scores_are_the_calibrated_ones_from_then_on(capsys, calibration, backend):
    folder, plain = calibration[:2]
    texts = texts_of_lengths([1, 5, 9, 12, 20, 25, 30, 37])
    before = scores_of(flaxsent.load(plain, backend="native"), texts)
    expected = softened(before, temperature_of(calibration))
    assert np.abs(expected - before).max() > 0.05, "the temperature shows"
    classifier = flaxsent.load(folder, backend=backend)
    scores = {
        "postprocess": classifier.postprocess(classifier.forward(classifier.params, classifier.tokenize(texts))),
        "engine": scores_of(classifier, texts),
        "classify": [by_label(zip(*one, strict=True)) for one in flaxsent.classify(texts, classifier, top_k=None)],
    }
    code, out, _ = run(capsys, "classify", "--model", folder, "--format", "jsonl", "--top-k", "3", *texts)
    assert code == 0
    rows = [json.loads(line)["scores"] for line in out.splitlines()]
    scores["command"] = [by_label((one["label"], one["score"]) for one in row) for row in rows]
    for name, found in scores.items():
        assert np.abs(np.asarray(found) - expected).max() <= TOLERANCE, name


def by_label(pairs):
    return [score for _, score in sorted(pairs)]


@pytest.mark.torch
@pytest.mark.parametrize("changes", [{}, MULTI], ids=["one label", "several labels"])
def test_pytorch_gives_the_calibrated_scores(model, tmp_path, changes):
    import torch
    from transformers import AutoModelForSequenceClassification

    source, classifier, before = model(**changes)
    folder = shutil.copytree(source, tmp_path / "model")
    calibrate(classifier, folder, 2.5)
    theirs, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    tokens = classifier.tokenize(TEXTS)
    with torch.no_grad():
        logits = theirs(
            input_ids=torch.tensor(tokens.input_ids), attention_mask=torch.tensor(tokens.attention_mask)
        ).logits.numpy()
    activation = scipy.special.expit if changes else lambda x: scipy.special.softmax(x, axis=1)
    found, ours = activation(logits), scores_of(flaxsent.load(folder, backend="native"), TEXTS)
    assert np.abs(found - ours).max() <= TOLERANCE
    expected = scipy.special.expit(scipy.special.logit(before) / 2.5) if changes else softened(before, 2.5)
    assert np.abs(found - expected).max() <= TOLERANCE
    np.testing.assert_array_equal(np.argsort(found, axis=1), np.argsort(before, axis=1), "the order of labels stays")


def test_calibrating_again_changes_next_to_nothing(capsys, calibration, calibrated):
    told = figures(capsys, calibrated, calibration[2], "--calibrate")
    # By as much as float32 rounds logits; the loss is flat there.
    assert told["temperature"] == pytest.approx(1, abs=1e-5)
    assert told["before"]["log_loss"] == pytest.approx(told["log_loss"], abs=1e-7)
    assert told["stored_in"] == str(calibrated / SAFETENSORS)
    np.testing.assert_allclose(
        scores_of(flaxsent.load(calibrated, backend="native"), TEXTS),
        softened(calibration[5], temperature_of(calibration)),
        atol=TOLERANCE,
    )


def test_calibration_changes_the_last_layer_and_nothing_else(calibration):
    folder, plain = calibration[:2]
    assert {file.name for file in folder.iterdir()} == {file.name for file in plain.iterdir()}
    assert (folder / "notes" / "mine.txt").read_text() == "kept"
    for file in plain.iterdir():
        if file.is_file() and file.name not in ("config.json", SAFETENSORS):
            assert (folder / file.name).read_bytes() == file.read_bytes()
    before, now = (safetensors.numpy.load_file(at / SAFETENSORS) for at in (plain, folder))
    assert before.keys() == now.keys()
    assert [name for name in before if (before[name] != now[name]).any()] == ["classifier.bias", "classifier.weight"]
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (folder, folder / SAFETENSORS)]
    assert modes == [0o750, 0o640], "who may read it is who could"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_keep_the_dtype_in_which_they_are_stored(model, tmp_path, dtype):
    _, classifier, _ = model()
    flaxsent.save(classifier, tmp_path / "plain", dtype=dtype)
    folder = shutil.copytree(tmp_path / "plain", tmp_path / "model")
    calibrate(flaxsent.load(folder, backend="native"), folder, 2.5)
    before, now = (safetensors.numpy.load_file(at / SAFETENSORS) for at in (tmp_path / "plain", folder))
    assert {tensor.dtype for tensor in now.values()} == {jnp.dtype(dtype)}
    for name, tensor in before.items():
        if name.startswith("classifier."):  # exact, up to the last place of the dtype
            expected, rtol = tensor.astype(np.float32) / 2.5, float(jnp.finfo(dtype).eps)
            np.testing.assert_allclose(now[name].astype(np.float32), expected, rtol=rtol)
        else:
            np.testing.assert_array_equal(now[name], tensor)
    assert json.loads((folder / "config.json").read_text())["torch_dtype"] == dtype


def test_weights_of_several_dtypes_are_stored_in_one_that_holds_them_all(model, tmp_path):
    folder = shutil.copytree(model()[0], tmp_path / "model")
    tensors = safetensors.numpy.load_file(folder / SAFETENSORS)
    half = {name: tensor.astype(jnp.float16 if "bias" in name else jnp.bfloat16) for name, tensor in tensors.items()}
    safetensors.numpy.save_file(half, folder / SAFETENSORS)
    assert stored_dtype(folder) == jnp.float32
    calibrate(flaxsent.load(folder, backend="native"), folder, 2.0)
    now = safetensors.numpy.load_file(folder / SAFETENSORS)
    np.testing.assert_array_equal(now.pop("classifier.bias"), half["classifier.bias"].astype(np.float32) / 2)
    assert all((now[name] == half[name].astype(np.float32)).all() for name in now if name != "classifier.weight")


def shards(folder):
    tensors = safetensors.numpy.load_file(folder / SAFETENSORS)
    (folder / SAFETENSORS).unlink()
    file_of = {name: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(tensors)}
    for file in set(file_of.values()):
        part = {name: tensor for name, tensor in tensors.items() if file_of[name] == file}
        safetensors.numpy.save_file(part, folder / file)
    (folder / SAFETENSORS_INDEX).write_text(json.dumps({"weight_map": file_of}))


def pickle(folder):
    import torch

    tensors = safetensors.numpy.load_file(folder / SAFETENSORS)
    (folder / SAFETENSORS).unlink()
    torch.save({name: torch.tensor(tensor) for name, tensor in tensors.items()}, folder / "pytorch_model.bin")


@pytest.mark.parametrize("stored_as", [shards, pytest.param(pickle, marks=pytest.mark.torch)])
def test_the_calibrated_weights_are_those_that_load_however_they_were_stored(model, tmp_path, stored_as):
    source, _, before = model()
    folder = shutil.copytree(source, tmp_path / "model")
    stored_as(folder)
    classifier = flaxsent.load(folder, backend="native")
    assert calibrate(classifier, folder, 2.5) == folder / SAFETENSORS
    assert not (folder / SAFETENSORS_INDEX).exists()
    assert not (folder / "pytorch_model.bin").exists()
    found = scores_of(flaxsent.load(folder, backend="native"), TEXTS)
    np.testing.assert_allclose(found, softened(before, 2.5), atol=TOLERANCE)


def test_old_folders_give_calibrated_scores_and_lose_the_key_when_saved(capsys, model, calibration, tmp_path):
    source, _, before = model()
    old = shutil.copytree(source, tmp_path / "old")
    config = json.loads((old / "config.json").read_text())
    (old / "config.json").write_text(json.dumps(config | {OLD_KEY: 2.5}))
    classifier = flaxsent.load(old, backend="native")
    scores = scores_of(classifier, TEXTS)
    np.testing.assert_allclose(scores, softened(before, 2.5), atol=TOLERANCE)
    flaxsent.save(classifier, tmp_path / "saved")
    told = figures(capsys, old, calibration[2], "--calibrate")
    assert told["temperature"] * 2.5 == pytest.approx(temperature_of(calibration), rel=1e-5), "beyond the old one"
    for folder, expected in ((tmp_path / "saved", scores), (old, softened(before, temperature_of(calibration)))):
        assert OLD_KEY not in json.loads((folder / "config.json").read_text())
        found = scores_of(flaxsent.load(folder, backend="native"), TEXTS)
        np.testing.assert_allclose(found, expected, atol=TOLERANCE)


def test_a_new_head_on_an_old_folder_has_no_temperature(model, tmp_path):
    source = model()[0]
    old = shutil.copytree(source, tmp_path / "old")
    config = json.loads((old / "config.json").read_text())
    (old / "config.json").write_text(json.dumps(config | {OLD_KEY: 2.5}))
    drawn_anew = [flaxsent.load(folder, backend="native", labels=["a", "b", "c"], seed=3) for folder in (source, old)]
    jax.tree.map(np.testing.assert_array_equal, *(one.params for one in drawn_anew))
    kept = flaxsent.load(old, backend="native", labels=["a", "b", "c"], new_head=False)
    np.testing.assert_array_equal(scores_of(kept, TEXTS), scores_of(flaxsent.load(old, backend="native"), TEXTS))


IMPOSSIBLE = [0, -1, 1e-300, 1e300, 10**400, "2", True, [2], {}, math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("value", IMPOSSIBLE, ids=lambda value: str(value)[:9])
def test_an_impossible_old_temperature_is_refused_by_the_name_of_its_key(model, tmp_path, value):
    folder = shutil.copytree(model()[0], tmp_path / "old")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {OLD_KEY: value}))
    with pytest.raises(FlaxsentError, match=f"{OLD_KEY}=.*; expected a number from 0.001 to 1000"):
        flaxsent.load(folder, backend="native")


def test_an_old_temperature_of_regression_is_refused(model, tmp_path):
    folder = shutil.copytree(model(**REGRESSION)[0], tmp_path / "old")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {OLD_KEY: 1.25}))
    with pytest.raises(FlaxsentError, match=f"{OLD_KEY}=1.25; expected none, as regression has no probabilities"):
        flaxsent.load(folder, backend="native")


def test_calibrating_through_a_link_writes_where_it_leads(model, tmp_path):
    source, classifier, before = model()
    folder = shutil.copytree(source, tmp_path / "model")
    (tmp_path / "link").symlink_to(folder)
    calibrate(classifier, tmp_path / "link", 2.5)
    assert (tmp_path / "link").is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == {"model", "link"}
    found = scores_of(flaxsent.load(folder, backend="native"), TEXTS)
    np.testing.assert_allclose(found, softened(before, 2.5), atol=TOLERANCE)


@pytest.mark.parametrize("name", ["rename", "fsync"])
def test_a_folder_is_what_it_was_when_storing_fails(model, tmp_path, monkeypatch, name):
    def fails(*_):
        raise OSError(28, "No space left on device")

    source, classifier, _ = model()
    folder = shutil.copytree(source, tmp_path / "model")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    monkeypatch.setattr(os, name, fails)
    with pytest.raises(OSError, match="No space left"):
        calibrate(classifier, folder, 3.0)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


HEADS = ("bert", "roberta", "bart")
"""A family for each way to name the last layer; the others take their time."""
FAMILIES = [
    pytest.param(
        family,
        marks=[
            *([] if family in HEADS else [pytest.mark.slow]),
            *([] if family in NATIVE else [pytest.mark.flax_auto]),
        ],
    )
    for family in CONFIGS
]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_logits_of_every_family_are_divided_by_its_last_layer(tiny_folder, family):
    classifier = flaxsent.load(tiny_folder(family))
    tokens, forward = classifier.tokenize(["so good", "i hate this film"]), jax.jit(classifier.forward)
    logits, divided = (
        np.asarray(forward(params, tokens))
        for params in (classifier.params, models.divide_logits(classifier.params, 2.0))
    )
    np.testing.assert_allclose(divided, logits / 2, rtol=1e-6)  # halves are exact


# What is refused before the model is loaded


def refused(capsys, monkeypatch, *arguments):
    monkeypatch.setattr(flaxsent.cli.evaluate, "load", None)
    code, out, err = run(capsys, "evaluate", "--data", "data.csv", "--calibrate", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    return err


@pytest.mark.parametrize("name", [None, "distilbert-base-uncased", "owner/name"])
def test_what_lies_in_no_folder_is_not_calibrated(capsys, monkeypatch, name):
    err = refused(capsys, monkeypatch, *([] if name is None else ["--model", name]))
    load = f"flaxsent.load({'' if name is None else repr(name)})"
    assert f"flaxsent.save({load}, FOLDER), and pass --model FOLDER." in err


def test_an_exported_folder_is_not_calibrated(capsys, monkeypatch, tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    err = refused(capsys, monkeypatch, "--model", tmp_path)
    assert "which was exported; pass the checkpoint, then export it anew." in err


def test_an_adapter_is_not_calibrated(capsys, monkeypatch, tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    err = refused(capsys, monkeypatch, "--model", tmp_path)
    assert f"is an adapter; write a whole one first, with flaxsent.save(flaxsent.load('{tmp_path}'), FOLDER)" in err


@pytest.mark.parametrize("inside", [".", "notes"])
def test_the_current_folder_is_not_replaced(capsys, monkeypatch, calibrated, inside):
    monkeypatch.chdir(calibrated / inside)
    assert "which is the current one" in refused(capsys, monkeypatch, "--model", calibrated)


@pytest.mark.parametrize("which", ["the folder", "the folder around it"])
def test_a_folder_that_cannot_be_written_is_told_before_anything_is_computed(capsys, calibrated, monkeypatch, which):
    forbidden = calibrated if which == "the folder" else calibrated.parent
    monkeypatch.setattr(os, "access", lambda path, _: path != forbidden)  # root may write anywhere
    assert "which you may not write" in refused(capsys, monkeypatch, "--model", calibrated)
