"""A new head takes the place of a head, and of nothing else: the encoder must be there, all of it and no more."""

import re
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

import flaxsent
from flaxsent import models
from tests.conftest import NATIVE

FAMILIES = NATIVE
NEW = ["no", "yes"]
OTHER_HEADS = {
    "cls.predictions.bias": (61,),
    "cls.predictions.transform.dense.weight": (36, 36),
    "lm_head.dense.weight": (36, 36),
    "qa_outputs.weight": (2, 36),
    "predictions.bias": (61,),
    "discriminator_predictions.dense.weight": (36, 36),
    "final_logits_bias": (1, 61),
    "vocab_transform.weight": (36, 36),
}
"""Of masked words, answers, replaced words, summaries: what encoders on the Hub come with."""


@pytest.fixture
def checkpoint(tiny_folder, tmp_path):
    """`checkpoint(family, change)`: a tiny folder in whose tensors a function has changed something."""

    def make(family, change):
        folder = shutil.copytree(tiny_folder(family), tmp_path / "checkpoint")
        (folder / "model.safetensors").unlink()
        tensors = safetensors.numpy.load_file(tiny_folder(family) / "model.safetensors")
        safetensors.numpy.save_file(change(dict(tensors)), folder / "model.safetensors")
        return folder

    return make


def load(folder, **arguments):
    return flaxsent.load(folder, backend="native", **arguments)


def layers_of(tensors):
    """The names of the tensors of the last layer of each stack, by name of a layer that is one too many."""
    found = {}
    for name in tensors:
        if match := re.search(r"\.(?:layer|layers|albert_layer_groups)\.(\d+)\.", name):
            found[name[: match.start(1)] + "99" + name[match.end(1) :]] = name
    return found


def base_of(tensors):
    """The prefix of the encoder's tensors, with its dot."""
    return max((name.partition(".")[0] for name in layers_of(tensors).values()), key=len) + "."


@pytest.mark.parametrize("family", FAMILIES)
def test_half_an_encoder_is_not_trained_and_told_where_it_is_used(checkpoint, tiny_folder, family, caplog):
    """A file of 12 layers under a config of 6: transformers computes six, and says so."""
    folder = checkpoint(
        family, lambda tensors: tensors | {new: tensors[old] for new, old in layers_of(tensors).items()}
    )
    for arguments in ({"labels": NEW}, {"new_head": True}, {"new_head": False}):  # train says which head it wants
        with pytest.raises(flaxsent.FlaxsentError, match=r"\(- missing, \+ unexpected\): \+ [\w.]+\.99\.") as told:
            load(folder, **arguments)
        assert ": - " not in str(told.value)
    params = load(folder).params
    jax.tree.map(np.testing.assert_array_equal, params, load(tiny_folder(family)).params)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert re.search(r"tensors that this model does not have were left out: [\w.]+\.99\.\* \(\d+\)", caplog.text)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("is_bare", [False, True])
def test_a_layer_too_few_is_told_with_the_prefix_and_without(checkpoint, family, is_bare):
    lost = []

    def change(tensors):
        name = [*layers_of(tensors).values()][-1]
        lost.append(name)
        del tensors[name]
        base = base_of(tensors)
        return (
            {name.removeprefix(base): tensor for name, tensor in tensors.items() if name.startswith(base)}
            if is_bare
            else tensors
        )

    folder = checkpoint(family, change)
    with pytest.raises(flaxsent.FlaxsentError, match=rf"unexpected\): - {re.escape(lost[0])}$"):
        load(folder, labels=NEW)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bare_encoder_with_a_layer_too_many_is_told(checkpoint, family):
    def change(tensors):
        base = base_of(tensors)
        tensors |= {new: tensors[old] for new, old in layers_of(tensors).items()}
        return {name.removeprefix(base): tensor for name, tensor in tensors.items() if name.startswith(base)}

    with pytest.raises(flaxsent.FlaxsentError, match=r"unexpected\): \+ [\w.]+\.99\."):
        load(checkpoint(family, change), labels=NEW)


def without_last_layer(family, tensors):
    """As a checkpoint of the encoder with its prefix: nothing beside it."""
    return {name: tensor for name, tensor in tensors.items() if name.startswith(base_of(tensors))}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_lost_head_is_told_unless_a_new_one_is_drawn(checkpoint, tiny_folder, family):
    folder = checkpoint(family, lambda tensors: without_last_layer(family, tensors))
    own = load(tiny_folder(family))
    for arguments in (
        {},
        {"labels": own.config.labels},
        {"new_head": False},
        {"labels": ["a", "b", "c"], "new_head": False},
    ):
        with pytest.raises(flaxsent.FlaxsentError, match=r"unexpected\): - "):
            load(folder, **arguments)
    base = models.base(own.config)
    for arguments in ({"labels": NEW}, {"new_head": True}):
        params = load(folder, **arguments).params
        assert params.keys() == own.params.keys()
        for path, leaf in leaves(own.params[base]):
            if "pooler" not in path:
                np.testing.assert_array_equal(dict(leaves(params[base]))[path], leaf)


def leaves(tree, path=()):
    for name, node in tree.items():
        if isinstance(node, dict):
            yield from leaves(node, (*path, name))
        else:
            yield (*path, name), node


@pytest.mark.parametrize("family", FAMILIES)
def test_what_other_heads_leave_over_is_no_fault_where_a_new_head_is_drawn(checkpoint, family, caplog):
    more = {name: np.zeros(shape, np.float32) for name, shape in OTHER_HEADS.items()}
    folder = checkpoint(family, lambda tensors: without_last_layer(family, tensors) | more)
    with caplog.at_level("INFO", "flaxsent"):
        assert load(folder, labels=NEW).config.labels == tuple(NEW)
    assert [record.levelname for record in caplog.records] == ["INFO"]
    with pytest.raises(
        flaxsent.FlaxsentError, match=r"unexpected\): - .*\+ cls\.predictions\.bias; \+ .*\+ vocab_transform"
    ):
        load(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_other_heads_leave_over_beside_a_head_that_is_kept_is_logged(checkpoint, family, caplog):
    folder = checkpoint(family, lambda tensors: tensors | {"lm_head.bias": np.zeros(61, np.float32)})
    for arguments in ({}, {"new_head": False}, {"labels": ["a", "b", "c"], "new_head": False}):
        caplog.clear()
        with caplog.at_level("INFO", "flaxsent"):
            load(folder, **arguments)
        assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
            "tensors that this model does not have were left out: lm_head.bias"
        ]


@pytest.mark.parametrize("labels", [[], "ab", ["a", "a"]])
def test_labels_are_a_list_of_different_names(tiny_folder, labels):
    with pytest.raises(flaxsent.FlaxsentError, match=re.escape(f"labels={labels!r}: expected a list of one or more")):
        load(tiny_folder("bert"), labels=labels)


def test_one_new_label_is_regression_and_as_many_as_before_are_not_multi_label(tiny_folder):
    folder = tiny_folder("bert", problem_type="multi_label_classification")
    types = {
        str(labels): load(folder, labels=labels).config.problem_type
        for labels in (None, ["score"], ["a", "b", "c"], ["LABEL_0", "LABEL_1", "LABEL_2"])
    }
    assert [*types.values()] == [
        "multi_label_classification",
        "regression",
        "single_label_classification",
        "multi_label_classification",
    ]
