"""Adapters in training: what is trained, by which encoder, what is written, and what is refused before a step."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

import flaxsent
from flaxsent.checkpoint import adapters
from flaxsent.data.labels import Examples
from flaxsent.models.adapters import is_trained
from flaxsent.training.options import TrainOptions
from flaxsent.training.trainer import Trainer, fit
from tests.conftest import accuracy
from tests.training.runs import ONE_LAYER, arguments_of, refused, run

DATA = Examples([f"{word} film" for word in ("good", "bad") * 20], [0, 1] * 20)
OPTIONS = TrainOptions(
    num_epochs=16, batch_size=10, learning_rate=1e-2, lora_rank=2, lora_dropout=0.1, average_decay=0.5, warmup=0.0
)


def test_adapters_and_head_are_trained_and_nothing_else(tiny_folder):
    base = flaxsent.load(tiny_folder("bert", num_hidden_layers=1), backend="native", labels=["a", "b"])
    trainer = Trainer(base, DATA, options=OPTIONS)
    start = trainer.start()
    arrays = sum(leaf.size for leaf in jax.tree.leaves(start.state.opt_state))
    moved = is_trained(trainer.classifier.params)
    sizes = jax.tree.map(lambda leaf, is_moved: leaf.size * is_moved, trainer.classifier.params, moved)
    assert 2 * sum(jax.tree.leaves(sizes)) <= arrays < 2 * sum(jax.tree.leaves(sizes)) + 10  # and counters
    after = fit(base, DATA, options=OPTIONS)
    for (path, before), now, is_moved in zip(
        jax.tree_util.tree_leaves_with_path(trainer.classifier.params),
        *map(jax.tree.leaves, (after.params, moved)),
        strict=True,
    ):
        assert np.array_equal(before, now) != is_moved, path
    predictions = flaxsent.classify(["good film", "bad film"], after)
    assert [prediction.label for prediction in predictions] == ["a", "b"]


@pytest.mark.slow
@pytest.mark.flax_auto
def test_what_the_flax_backend_loads_is_trained_by_the_native_encoder(tiny_folder):
    labels = ["a", "b"]
    native, by_flax = (
        flaxsent.load(tiny_folder("bert", **ONE_LAYER), backend=name, labels=labels) for name in ("native", "flax")
    )
    ours, theirs = (fit(each, DATA, options=OPTIONS) for each in (native, by_flax))
    assert theirs.backend == "native"
    for one, other in zip(jax.tree.leaves(ours.params), jax.tree.leaves(theirs.params), strict=True):
        np.testing.assert_array_equal(one, other)


def _last_accuracy(printed: str) -> float:
    return float(re.findall(r"accuracy (\d\.\d+)", printed)[-1])


@pytest.mark.slow
def test_a_run_writes_an_adapter_that_every_command_reads(capsys, tmp_path, files, tiny_folder):
    output, more = tmp_path / "out", ("--lora-rank", "3", "--lora-alpha", "6", "--lora-targets", "query,dense")
    code, out, err = run(capsys, *arguments_of(tiny_folder("bert", **ONE_LAYER), files, output, *more))
    assert (code, err) == (0, "")
    assert {path.name for path in output.iterdir()} > {adapters.CONFIG, adapters.WEIGHTS, "tokenizer.json", "log.jsonl"}
    assert not (output / "model.safetensors").exists()
    assert "library_name: peft" in (output / "README.md").read_text(encoding="utf-8")
    settings = adapters.read_settings(output)
    assert (settings.base, settings.rank, settings.alpha) == (str(tiny_folder("bert", **ONE_LAYER).resolve()), 3, 6)
    assert accuracy(flaxsent.load(output), read(files[1])) == pytest.approx(_last_accuracy(out), abs=1e-4)
    assert run(capsys, "evaluate", "--model", str(output), "--data", files[1])[0] == 0
    again = arguments_of(tiny_folder("bert", **ONE_LAYER), files, output, *more)
    assert run(capsys, *again, "--resume")[1] == f"{output} is complete; nothing to resume\n"
    assert run(capsys, *again, "--overwrite", "--lora-rank", "0")[0] == 0
    assert not (output / adapters.CONFIG).exists()
    flaxsent.load(output)


def read(file):
    lines = [line.split("\t") for line in Path(file).read_text().splitlines()[1:]]
    return Examples([text for text, _ in lines], [["NEGATIVE", "POSITIVE"].index(label) for _, label in lines])


def test_what_cannot_be_adapted_is_refused_before_a_step(capsys, tmp_path, files, tiny_folder):
    start = arguments_of(tiny_folder("bert", **ONE_LAYER), files, tmp_path / "out", "--lora-rank", "2")
    code, _, err = run(capsys, *start, "--lora-targets", "qury")
    assert (code, err.count("\n")) == (2, 1)
    assert "the LoRA target 'qury' matches no layer" in err
    assert refused(capsys, *start, "--lora-alpha", "-1") == "lora_alpha=-1.0; expected a positive number.\n"
    assert "lora_dropout=1.0; expected a number in [0, 1)" in refused(capsys, *start, "--lora-dropout", "1")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / adapters.CONFIG).write_text("{}")
    onto = arguments_of(tmp_path / "adapter", files, tmp_path / "out", "--lora-rank", "2")
    assert "is an adapter, on which no other can stand" in refused(capsys, *onto)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "dev.tsv", "train.tsv"]
