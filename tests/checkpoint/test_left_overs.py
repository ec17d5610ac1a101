"""Tensors in a file that the model does not have: left out with one log line, as transformers leaves them out."""

import functools
import re
import shutil

import numpy as np
import pytest
import safetensors.numpy

import flaxsent
from flaxsent.packing import pad
from tests.conftest import NATIVE, others_slow
from tests.models.reference import SINGLES, TOLERANCE

ZEROS = functools.partial(np.zeros, dtype=np.float32)
EVERYWHERE = {
    "cls.predictions.bias": ZEROS(61),
    "cls.predictions.transform.dense.weight": ZEROS((36, 36)),
    "cls.predictions.transform.dense.bias": ZEROS(36),
    "lm_head.decoder.weight": ZEROS((61, 36)),
    "lm_head.bias": ZEROS(61),
    "loss_fct.weight": ZEROS(3),
}
"""What heads of pretraining and Trainers leave in a file, for names that no family has."""
POOLERS = ("roberta", "xlm-roberta", "camembert", "mpnet", "electra", "distilbert")
BUFFERS = {"embeddings.position_ids": np.arange(40)[None], "embeddings.token_type_ids": np.zeros((1, 40), np.int64)}
"""What PyTorch computes anew; older versions saved it."""


@pytest.fixture
def folder_with(tiny_folder, tmp_path):
    """`folder_with(family, tensors)`: a tiny folder with more tensors in its file; a function changes all of them."""

    def make(family, more):
        folder = shutil.copytree(tiny_folder(family), tmp_path / "checkpoint")
        tensors = dict(safetensors.numpy.load_file(folder / "model.safetensors"))
        (folder / "model.safetensors").unlink()
        changed = more(tensors) if callable(more) else tensors | more
        safetensors.numpy.save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return make


def load(folder, caplog, **arguments):
    """The classifier, and what was logged in loading it: level and tensors."""
    caplog.clear()
    with caplog.at_level("DEBUG", "flaxsent"):
        classifier = flaxsent.load(folder, backend="native", **arguments)
    lines = [(record.levelname, record.getMessage()) for record in caplog.records if record.name.startswith("flaxsent")]
    return classifier, [(level, line.partition("were left out: ")[2]) for level, line in lines]


def pooler_of(family):
    base = flaxsent.models.FAMILIES[family].base
    return {f"{base}.pooler.dense.weight": ZEROS((36, 36)), f"{base}.pooler.dense.bias": ZEROS(36)}


def their_logits(folder, encodings):
    import torch
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        return np.stack([model.eval()(torch.tensor([ids])).logits[0].numpy() for ids in encodings.input_ids])


@pytest.mark.torch
@pytest.mark.parametrize(
    "family",
    others_slow(["bert", "roberta"], ["bart", "mpnet", "albert", "deberta-v2", "modernbert"]),
)
def test_logits_are_pytorchs_whatever_else_the_file_holds(folder_with, family, caplog):
    base = flaxsent.models.FAMILIES[family].base
    beyond = {name: ZEROS(3) for name in (f"{base}.encoder.layer.7.output.dense.bias", f"{base}.layers.9.mlp.Wi.bias")}
    buffers = {f"{base}.{name}": tensor for name, tensor in BUFFERS.items()}
    pooler = pooler_of(family) if family in POOLERS else {}
    folder = folder_with(family, EVERYWHERE | beyond | buffers | pooler)
    classifier, logged = load(folder, caplog)
    assert [level for level, _ in logged] == ["WARNING"]
    encodings = classifier.tokenizer.encode(SINGLES)
    ours = classifier.forward(classifier.params, pad(encodings))
    np.testing.assert_allclose(ours, their_logits(folder, encodings), atol=TOLERANCE)


@pytest.mark.parametrize("family", NATIVE)
def test_what_pretraining_leaves_over_is_one_line_that_nobody_need_see(folder_with, family, caplog):
    _, logged = load(folder_with(family, EVERYWHERE), caplog)
    assert logged == [
        (
            "INFO",
            "cls.predictions.bias, cls.predictions.transform.dense.* (2), lm_head.bias, lm_head.decoder.weight, "
            "loss_fct.weight",
        )
    ]


@pytest.mark.parametrize("family", POOLERS)
def test_a_pooler_that_the_classifier_does_not_read_is_left_out(folder_with, family, caplog):
    base = flaxsent.models.FAMILIES[family].base
    _, logged = load(folder_with(family, pooler_of(family)), caplog)
    assert logged == [("INFO", f"{base}.pooler.dense.* (2)")]


@pytest.mark.parametrize("family", ["bert", "roberta", "electra"])
def test_buffers_are_not_worth_a_line(folder_with, family, caplog):
    base = flaxsent.models.FAMILIES[family].base
    folder = folder_with(family, {f"{base}.{name}": tensor for name, tensor in BUFFERS.items()})
    assert load(folder, caplog)[1] == []


def test_what_may_be_missed_is_a_warning_and_a_long_list_is_cut(folder_with, caplog):
    """An adapter beside the layers is part of another model; integers in it are nobody's business."""
    more = {f"bert.encoder.adapter{letter}.down.weight": np.ones((2, 2), np.int8) for letter in "abcdefghijklm"}
    _, logged = load(folder_with("bert", more | {"lm_head.bias": ZEROS(61)}), caplog)
    named = [f"bert.encoder.adapter{letter}.down.weight" for letter in "abcdefghij"]
    assert logged == [("WARNING", ", ".join([*named, "and 4 more"]))]


@pytest.mark.parametrize("labels", [None, ["no", "yes"]])
@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("family", ["bert", "roberta", "bart", "modernbert"])
def test_a_prefix_in_front_of_all_names_is_named_as_such(folder_with, family, prefix, labels):
    """transformers leaves all of these out, and draws the whole model at random."""
    folder = folder_with(family, lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()})
    with pytest.raises(flaxsent.FlaxsentError) as told:
        flaxsent.load(folder, backend="native", labels=labels)
    base = flaxsent.models.FAMILIES[family].base
    assert re.search(rf" has '{prefix}' in front of its tensors' names, as in {prefix}{base}\.", str(told.value))
    assert str(told.value).endswith(
        ": a wrapper of the model wrote them; save the model that it wraps, or take the prefix away."
    )
    assert len(str(told.value)) < 400


def test_a_prefix_is_named_where_other_names_have_none(folder_with):
    """As Lightning writes a module with a loss; the head, which it calls otherwise, is missing indeed."""

    def change(tensors):
        moved = {f"model.{name}": tensor for name, tensor in tensors.items() if not name.startswith("classifier")}
        return moved | EVERYWHERE

    with pytest.raises(flaxsent.FlaxsentError, match=r"has 'model\.' in front of its tensors' names"):
        flaxsent.load(folder_with("bert", change), backend="native")


def test_a_prefix_is_named_where_the_encoder_is_alone(folder_with):
    def change(tensors):
        encoder = {name: tensor for name, tensor in tensors.items() if name.startswith("bert.")}
        return {name.replace("bert.", "module."): tensor for name, tensor in encoder.items()}

    with pytest.raises(flaxsent.FlaxsentError, match=r"has 'module\.' in front .* as in module\.emb"):
        flaxsent.load(folder_with("bert", change), backend="native", labels=["no", "yes"])


def test_of_many_missing_tensors_ten_are_named(folder_with):
    def change(tensors):
        return {f"other{index}": tensor for index, tensor in enumerate(tensors.values())}

    with pytest.raises(flaxsent.FlaxsentError) as told:
        flaxsent.load(folder_with("bert", change), backend="native")
    assert re.search(r"unexpected\): - bert\.[^+]*; and 47 more; \+ other0; .*; and 47 more$", str(told.value))
    assert str(told.value).count("; - ") == str(told.value).count("; + other") - 1 == 9
