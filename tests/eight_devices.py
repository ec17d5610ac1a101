"""What the tests of sharding run in a process of its own, where a CPU is eight devices, and report as JSON."""

import collections
import dataclasses
import json
import re
import sys

import jax

if __name__ == "__main__":  # pytest looks for doctests here, too, in a process that has its devices
    jax.config.update("jax_num_cpu_devices", 8)
    jax.config.update("jax_default_matmul_precision", "highest")

import numpy as np

import flaxsent
from flaxsent.models.stacking import stack
from flaxsent.training.options import TrainOptions
from flaxsent.training.trainer import Trainer
from flaxsent.transforms.quantize import quantize
from tests.conftest import texts_of_lengths
from tests.training.test_trainer import steps, toy_data

TEXTS = texts_of_lengths(np.random.default_rng(0).integers(0, 38, 100).tolist())
SHAPES = {"row_lengths": [64], "tokens_per_step": 128}


def collectives(hlo: str) -> list[list[str]]:
    """Each operation of a compiled program in which devices exchange something, with the type of its result."""
    found = re.findall(r" = (\(.*?\)|\S+) (all-[a-z-]+?|reduce-scatter|collective-[a-z]+)(?:-start)?\(", hlo)
    return [[name, re.sub(r"\{[^}]*\}", "", types)] for types, name in found]


def bytes_by_device(tree) -> list[int]:
    held = collections.Counter()
    for leaf in jax.tree.leaves(tree):
        for shard in leaf.addressable_shards:
            held[shard.device.id] += shard.data.nbytes
    return [held[device.id] for device in jax.devices()]


def scores(folder, hows, form=None):
    """The logits of a folder under each sharding beside those of one device; of its params stacked or in int8, if so
    told."""
    classifier = flaxsent.load(folder, backend="native")
    if form == "stacked":
        params = stack(classifier.params, config=classifier.config)
        classifier = dataclasses.replace(classifier, params=params)
    elif form is not None:
        classifier = dataclasses.replace(classifier, params=quantize(classifier.params, mode=form))
    options = {"function": classifier.logits, **SHAPES}
    with flaxsent.Engine(classifier, devices=jax.devices()[:1], **options) as engine:
        expected = engine(TEXTS)
    found = {}
    for how in hows:
        with flaxsent.Engine(classifier, sharding=how, **options) as engine:
            logits, (params, executable) = engine(TEXTS), engine._executable(engine.shapes[0])
            found[how] = {
                "difference": float(np.abs(logits - expected).max()),
                "collectives": collectives(executable.as_text()),
                "fetched": [
                    [size // 4 if axis == "model" else size for axis, size in zip(spec, leaf.shape, strict=True)]
                    for leaf in jax.tree.leaves(params)
                    if "rows" in (spec := leaf.sharding.spec)
                ],
                "bytes": bytes_by_device(params),
                "whole": sum(leaf.nbytes for leaf in jax.tree.leaves(classifier.params)),
            }
    return found


def training(folder, hows, accumulation):
    """Some steps under each sharding."""
    classifier, found = flaxsent.load(folder, backend="native"), {}
    for how in hows:
        options = TrainOptions(
            tokens_per_step=16 * 128, accumulation=accumulation, learning_rate=1e-3, sharding=how, average_decay=0.9
        )
        _, state, losses = steps(classifier, toy_data(300), options, 3)
        moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
        found[how] = {
            "losses": losses,
            "params": [np.asarray(leaf).ravel().tolist() for leaf in jax.tree.leaves(state.params)],
            "bytes": [bytes_by_device(tree) for tree in (state.params, state.average, moments)],
        }
    return found


def fetches(folder):
    """How many matrices are cut while a classifier trains, the table of words, and the shapes that its step gathers."""
    classifier = flaxsent.load(folder, backend="native")
    options = TrainOptions(tokens_per_step=8 * 128, sharding="fsdp")
    trainer = Trainer(classifier, toy_data(300), options=options)
    state = trainer.start().state
    lowered = trainer.step.lower(state, trainer._put_batch(trainer._train, trainer._plan(0)[0]))
    cut = [leaf for leaf in jax.tree.leaves(state.params) if not leaf.sharding.is_fully_replicated]
    table = state.params["bert"]["embeddings"]["word_embeddings"]["embedding"]
    return [
        len(cut),
        table.shape,
        [types for name, types in collectives(lowered.compile().as_text()) if name == "all-gather"],
    ]


if __name__ == "__main__":
    functions = {"scores": scores, "training": training, "fetches": fetches}
    json.dump([functions[name](*arguments) for name, *arguments in json.loads(sys.argv[1])], sys.stdout)
