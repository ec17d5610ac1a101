"""Adapters in PEFT's format: PEFT opens ours and we open PEFT's, with equal logits; what is refused, and when."""

import contextlib
import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import flaxsent
from flaxsent.base import FlaxsentError
from flaxsent.checkpoint import adapters
from flaxsent.checkpoint.folder import save_adapter
from flaxsent.models.adapters import has_adapters, is_trained
from flaxsent.transforms import lora
from tests.conftest import NATIVE, texts_of_lengths
from tests.models.reference import TOLERANCE

FIRST = ("bert",)
FAMILIES = [*FIRST, *(pytest.param(name, marks=pytest.mark.slow) for name in NATIVE if name not in FIRST)]
TEXTS = texts_of_lengths([0, 1, 7, 30])


@pytest.fixture
def adapted(tiny_folder):
    """`adapted(family, **options)`: a tiny classifier with adapters and a head that are as large as trained ones."""

    def make(family="bert", **options):
        classifier = flaxsent.load(tiny_folder(family), backend="native")
        return trained(lora.adapt(classifier, **options))

    return make


def trained(classifier, seed=0):
    """What training moves is moved: the adapters, of which one matrix is 0 at first, and the head."""
    rng = np.random.default_rng(seed)

    def move(leaf, is_moved):
        return leaf + jnp.asarray(rng.normal(scale=0.1, size=leaf.shape), leaf.dtype) if is_moved else leaf

    params = jax.tree.map(move, classifier.params, is_trained(classifier.params))
    return dataclasses.replace(classifier, params=params)


def logits(classifier):
    return np.asarray(classifier.forward(classifier.params, classifier.tokenize(TEXTS)))


def pytorch_logits(model, classifier):
    import torch

    found = []
    for text in TEXTS:
        tokens = classifier.tokenize([text])
        inputs = {"input_ids": torch.tensor(np.array(tokens.input_ids, np.int64))}
        with torch.no_grad():
            found.append(model.eval()(**inputs).logits[0].numpy())
    return np.stack(found)


def base_of(folder):
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager")


@pytest.mark.torch
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("targets", [None, ["all-linear"]])
def test_peft_opens_what_we_write(adapted, tiny_folder, tmp_path, family, targets):
    peft = pytest.importorskip("peft")
    classifier = adapted(family, targets=targets, rank=3, alpha=5)
    save_adapter(classifier, tmp_path / "adapter", base=str(tiny_folder(family)))
    model = peft.PeftModel.from_pretrained(base_of(tiny_folder(family)), tmp_path / "adapter")
    expected = pytorch_logits(model, classifier)
    base = logits(flaxsent.load(tiny_folder(family), backend="native"))
    ours = logits(classifier)
    assert np.abs(expected - base).max() > 0.1
    np.testing.assert_allclose(ours, expected, atol=TOLERANCE)
    merged = flaxsent.load(tmp_path / "adapter", backend="native")
    assert not has_adapters(merged.params)
    np.testing.assert_allclose(logits(merged), expected, atol=TOLERANCE)


KINDS = {
    "plain": {},
    "rslora": {"use_rslora": True, "r": 5},
    "patterns": {
        "rank_pattern": {"layer.1.attention.self.query": 2},
        "alpha_pattern": {"value": 3, "^bert.encoder.layer.0.attention.self.query": 1},
    },
    "dora": {"use_dora": True},
    "biases of its layers": {"bias": "lora_only"},
    "all biases": {"bias": "all"},
    "a regular expression": {"target_modules": r".*layer\.[02].*\.(dense|key)"},
    "fan_in_fan_out": {"fan_in_fan_out": True},
    "gaussian, some layers": {"init_lora_weights": "gaussian", "layers_to_transform": [1], "target_modules": ["dense"]},
}


@pytest.mark.torch
@pytest.mark.parametrize(
    "kind", [name if name in ("plain", "dora") else pytest.param(name, marks=pytest.mark.slow) for name in KINDS]
)
def test_we_open_what_peft_trains(tiny_folder, tmp_path, kind):
    open_as_peft_trains(tiny_folder, tmp_path, "bert", **({"target_modules": ["query", "value"]} | KINDS[kind]))


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.parametrize("family", [name for name in NATIVE if name != "bert"])
def test_we_open_what_peft_trains_of_every_family(tiny_folder, tmp_path, family):
    more = {"modules_to_save": ["classification_head"]} if family in ("bart", "mbart") else {}
    # PEFT's own all-linear names DistilBERT's head, which it then cannot save whole.
    targets = ["q_lin", "out_lin", "lin2"] if family == "distilbert" else "all-linear"
    open_as_peft_trains(tiny_folder, tmp_path, family, target_modules=targets, **more)


def open_as_peft_trains(tiny_folder, tmp_path, family, **options):
    peft = pytest.importorskip("peft")
    import torch

    folder = tiny_folder(family)
    settings = {"r": 4, "lora_alpha": 7, "lora_dropout": 0.1, "task_type": "SEQ_CLS"} | options
    with pytest.warns() if "fan_in_fan_out" in options else contextlib.nullcontext():
        model = peft.get_peft_model(base_of(folder), peft.LoraConfig(**settings))
    torch.manual_seed(0)
    classifier = flaxsent.load(folder, backend="native")
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    tokens = classifier.tokenize(TEXTS[:2])
    for _ in range(3):
        ids, mask = (torch.tensor(np.array(one, np.int64)) for one in (tokens.input_ids, tokens.attention_mask))
        model(input_ids=ids, attention_mask=mask, labels=torch.tensor([0, 1])).loss.backward()
        optimizer.step()
    model.save_pretrained(tmp_path / "adapter")
    expected = pytorch_logits(model, classifier)
    assert np.abs(expected - logits(classifier)).max() > 0.1
    for loaded in (
        flaxsent.load(folder, adapter=tmp_path / "adapter", backend="native"),
        flaxsent.load(tmp_path / "adapter", backend="native"),
    ):
        np.testing.assert_allclose(logits(loaded), expected, atol=TOLERANCE)
    flaxsent.save(loaded, tmp_path / "whole")
    np.testing.assert_array_equal(logits(flaxsent.load(tmp_path / "whole", backend="native")), logits(loaded))
