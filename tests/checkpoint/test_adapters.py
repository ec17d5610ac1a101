"""Adapters in PEFT's format: PEFT opens ours and we open PEFT's, with equal logits; what is refused, and when."""

import contextlib
import dataclasses
import importlib.util
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import flaxsent
from flaxsent.base import FlaxsentError
from flaxsent.bench import texts
from flaxsent.checkpoint import adapters, hub
from flaxsent.checkpoint.folder import save_adapter
from flaxsent.classifier import with_thresholds
from flaxsent.cli import main
from flaxsent.files import EMBEDDED
from flaxsent.models.adapters import attach, has_adapters, is_trained, merge, part_of
from flaxsent.transforms import lora
from tests.conftest import NATIVE, others_slow, texts_of_lengths
from tests.models.reference import TOLERANCE

# PEFT asks it of transformers 5
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
FIRST = ("bert",)
FAMILIES = others_slow(FIRST, NATIVE)
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
    return np.asarray(jax.jit(classifier.forward)(classifier.params, classifier.tokenize(TEXTS)))


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
def test_peft_opens_what_we_write(adapted, tiny_folder, tmp_path, family):
    peft = pytest.importorskip("peft")
    classifier = adapted(family, targets=["all-linear"], rank=3, alpha=5)
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
@pytest.mark.parametrize("kind", others_slow(["plain"], KINDS))
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
    classifier = flaxsent.load(folder, backend="native")
    torch.manual_seed(0)
    with torch.no_grad():  # what training moves is moved
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape)
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


@pytest.fixture
def written(adapted, tiny_folder, tmp_path):
    """A folder with an adapter, and the base that it names."""
    save_adapter(adapted(), tmp_path / "adapter", base=str(tiny_folder("bert")))
    return tmp_path / "adapter", tiny_folder("bert")


def change(folder, **keys):
    file = folder / adapters.CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))


def tensors_of(folder):
    return safetensors.numpy.load_file(folder / adapters.WEIGHTS)


def test_what_is_written_is_read_again(adapted, written):
    folder, base = written
    found = adapters.read(folder, config=flaxsent.load(base, backend="native").config)
    expected = part_of(adapted().params, config=adapted().config)
    assert jax.tree.structure(found.params) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(found.params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_labels_are_those_of_the_adapter(tiny_folder, tmp_path):
    classifier = flaxsent.load(tiny_folder("bert"), backend="native", labels=["a", "b", "c", "d"])
    save_adapter(trained(lora.adapt(classifier)), tmp_path / "adapter", base=str(tiny_folder("bert")))
    loaded = flaxsent.load(tmp_path / "adapter", backend="native")
    assert loaded.config.labels == ("a", "b", "c", "d")
    assert logits(loaded).shape[1] == 4
    file = tmp_path / "adapter" / adapters.WEIGHTS
    safetensors.numpy.save_file(tensors_of(file.parent), file)  # as PEFT writes it
    assert flaxsent.load(tmp_path / "adapter", backend="native").config.labels[3] == "LABEL_3"
    names = ["w", "x", "y", "z"]
    named = flaxsent.load(tmp_path / "adapter", backend="native", labels=names, new_head=False)
    np.testing.assert_array_equal(logits(named), logits(loaded))
    again = flaxsent.load(tmp_path / "adapter", backend="native", labels=["y", "n"])
    assert logits(again).shape[1] == 2


def of_several_labels(folder, labels, thresholds=None):
    options = {"labels": labels, "problem_type": "multi_label_classification", "new_head": True}
    return with_thresholds(flaxsent.load(folder, backend="native", **options), thresholds)


def test_thresholds_are_those_of_the_adapter(tiny_folder, tmp_path):
    flaxsent.save(of_several_labels(tiny_folder("bert"), ["a", "b", "c"], [0.3, 0.4, 0.5]), tmp_path / "base")
    for name, labels, thresholds in (("same", ["a", "b", "c"], (0.1, 0.2, 0.9)), ("fewer", ["x", "y"], None)):
        tuned = with_thresholds(lora.adapt(of_several_labels(tmp_path / "base", labels)), thresholds)
        save_adapter(tuned, tmp_path / name, base=str(tmp_path / "base"))
        loaded = flaxsent.load(tmp_path / name, backend="native")
        assert loaded.config.label_thresholds == thresholds
        assert len(flaxsent.classify(["so good"], loaded)) == 1
    file = tmp_path / "fewer" / adapters.WEIGHTS
    safetensors.numpy.save_file(tensors_of(file.parent), file)  # as PEFT writes it
    assert flaxsent.load(tmp_path / "fewer", backend="native").config.label_thresholds is None


def test_who_would_read_the_base_alone_is_told(written, tmp_path, capsys):
    folder, base = written
    assert hub.find_whole(str(base)) == base
    with pytest.raises(FlaxsentError, match="adapter is an adapter; expected a whole checkpoint"):
        texts.open_model(folder, tmp_path)
    if importlib.util.find_spec("torch") is not None:
        assert main(["parity", str(folder)]) == 2
        assert "adapter is an adapter; expected a whole checkpoint" in capsys.readouterr().err


def test_labels_that_do_not_fit_the_head_are_refused(written):
    folder, base = written
    whole, config = tensors_of(folder), (base / "config.json").read_text()
    for told, message in (
        ("{", "is not JSON"),
        (config.replace(', "2": "LABEL_2"', ""), "tells of 2 labels, .* has 3"),
    ):
        metadata = {"flaxsent.config": told}
        safetensors.numpy.save_file(whole, folder / adapters.WEIGHTS, metadata=metadata)
        with pytest.raises(FlaxsentError, match=message):
            flaxsent.load(folder, backend="native")


def test_a_base_of_another_name_is_logged_where_nothing_else_is_known(written, tmp_path, caplog):
    folder, base = written
    shutil.copytree(base, tmp_path / "copy")
    flaxsent.load(tmp_path / "copy", adapter=folder, backend="native")
    assert not caplog.records  # the weights are known to be the same
    safetensors.numpy.save_file(tensors_of(folder), folder / adapters.WEIGHTS)
    flaxsent.load(tmp_path / "copy", adapter=folder, backend="native")
    assert f"was trained on {base} by its adapter_config.json, and is read on {tmp_path / 'copy'}" in caplog.text


@pytest.mark.torch
def test_transformers_opens_the_folder_too(written, adapted):
    pytest.importorskip("peft")
    folder, _ = written
    model = base_of(folder)
    np.testing.assert_allclose(logits(adapted()), pytorch_logits(model, adapted()), atol=TOLERANCE)


def test_half_precision_is_rounded_after_it_is_folded_in(written):
    folder, _ = written
    half, whole = (flaxsent.load(folder, backend="native", dtype=dtype).params for dtype in ("bfloat16", "float32"))
    for ours, theirs in zip(jax.tree.leaves(half), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(ours, theirs.astype(jnp.bfloat16))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"peft_type": "IA3"}, "has peft_type='IA3'; expected LORA"),
        ({"task_type": "CAUSAL_LM"}, "has task_type='CAUSAL_LM'; expected SEQ_CLS"),
        ({"init_lora_weights": "pissa"}, "has init_lora_weights='pissa'; expected one that leaves the base as it is"),
        ({"lora_bias": True}, "has lora_bias=True; expected none: it is not implemented"),
        ({"layer_replication": [[0, 2]]}, "has layer_replication=.*; expected none"),
        ({"a_key_to_come": {"x": 1}}, "has a_key_to_come=.*; expected none"),
        ({"lora_alpha": "big"}, "has lora_alpha='big'; expected a positive number"),
        ({"r": 0}, "has r=0; expected a whole number"),
        ({"alpha_pattern": {"(a+)+$": 3}}, "has alpha_pattern=.*; expected positive numbers by the names of modules"),
        ({"base_model_name_or_path": ["x"]}, "has base_model_name_or_path=.*; expected a text"),
        ({"base_model_name_or_path": None}, "does not name its base; pass it: load"),
        ({"r": 4}, "is of another base .*lora_A.weight: expected .4, 36., got .8, 36."),
    ],
)
def test_configs_that_are_refused(written, keys, message):
    folder, _ = written
    change(folder, **keys)
    with pytest.raises(FlaxsentError, match=message) as err:
        flaxsent.load(folder, backend="native")
    assert "\n" not in str(err.value)


def test_the_embedded_checkpoint_is_the_base_wherever_it_is_installed(tmp_path):
    save_adapter(lora.adapt(flaxsent.load(backend="native"), rank=1), tmp_path / "adapter", base=str(EMBEDDED))
    change(tmp_path / "adapter", base_model_name_or_path="/elsewhere/site-packages/flaxsent/default_model")
    assert flaxsent.load(tmp_path / "adapter", backend="native").config.labels == ("NEGATIVE", "POSITIVE")


def test_a_base_that_is_not_here_is_told(written):
    folder, base = written
    change(folder, base_model_name_or_path="/no/such/folder")
    with pytest.raises(FileNotFoundError, match="names the base /no/such/folder, which is no folder here; pass it"):
        flaxsent.load(folder)
    flaxsent.load(base, adapter=folder, backend="native")


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"[" * 100_000, b"\xff"])
def test_damaged_configs_are_told(written, content):
    (written[0] / adapters.CONFIG).write_bytes(content)
    with pytest.raises(FlaxsentError, match=r"adapter_config.json (is not JSON|holds a list)"):
        flaxsent.load(written[0])


def test_another_base_is_refused(written, tiny_folder, tmp_path):
    folder, base = written
    with pytest.raises(
        FlaxsentError, match=r"is of another base \(- missing, \+ unexpected\): \+ base_model.model.bert"
    ):
        flaxsent.load(tiny_folder("roberta"), adapter=folder, backend="native")
    with pytest.raises(FlaxsentError, match=r"query.lora_A.weight: expected \(8, 48\), got \(8, 36\)"):
        flaxsent.load(tiny_folder("bert", hidden_size=48), adapter=folder, backend="native")
    changed = flaxsent.load(base, backend="native")
    params = jax.tree.map(lambda leaf: leaf + 1e-3, changed.params)  # the same shapes, other weights
    other = tmp_path / "other"
    flaxsent.save(dataclasses.replace(changed, params=params), other)
    with pytest.raises(FlaxsentError, match=f"was trained on other weights than these; expected those of {base}"):
        flaxsent.load(other, adapter=folder, backend="native")
    with pytest.raises(FlaxsentError, match=r"is of another base: at bert\.encoder\.layer\.0"):
        attach(flaxsent.load(tiny_folder("bert", hidden_size=48)).params, part_of_folder(folder, base))


def part_of_folder(folder, base):
    found = adapters.read(folder, config=flaxsent.load(base, backend="native").config).params
    return {"bert": {"encoder": found["bert"]["encoder"]}}


def test_pickles_are_refused(written):
    folder, _ = written
    (folder / adapters.WEIGHTS).rename(folder / adapters.PICKLE)
    with pytest.raises(FlaxsentError, match=r"adapter_model\.bin is a pickle, which can run code; save the adapter as"):
        flaxsent.load(folder)
    (folder / adapters.PICKLE).unlink()
    with pytest.raises(FileNotFoundError, match=r"has no adapter_model\.safetensors"):
        flaxsent.load(folder)


def test_tensors_that_do_not_fit_are_told_before_one_is_read(written, monkeypatch):
    folder, _ = written
    name = "base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight"
    whole = tensors_of(folder)

    def refused(tensors, message):
        safetensors.numpy.save_file(tensors, folder / adapters.WEIGHTS)
        with pytest.raises(FlaxsentError, match=message):
            flaxsent.load(folder, backend="native")

    refused({n: t for n, t in whole.items() if n != name}, "- base_model.model.bert.*query.lora_A or lora_B")
    refused(whole | {"base_model.model.x": whole[name]}, r"\+ base_model.model.x")
    refused(whole | {name: whole[name].astype(np.int32)}, "no floats of 16 bits or more: base_model")
    refused({n: t for n, t in whole.items() if "lora" not in n}, "has no tensors of adapters")
    file = folder / adapters.WEIGHTS
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(FlaxsentError, match="is not a whole safetensors file"):
        flaxsent.load(folder, backend="native")
    # Gigabytes of zeros, of which a disk keeps none.
    change(folder, r=10**8)
    header = {name: {"dtype": "F32", "shape": [10**8, 36], "data_offsets": [0, 4 * 36 * 10**8]}}
    text = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + 4 * 36 * 10**8)
    with pytest.raises(FlaxsentError, match=r"expected \(36, 36\), got \(100000000, 36\)"):
        flaxsent.load(folder, backend="native")


def test_adapters_are_not_saved_as_a_checkpoint(adapted, tmp_path):
    with pytest.raises(FlaxsentError, match="holds no adapters, and these params do: merge them"):
        flaxsent.save(adapted(), tmp_path / "out")
    merged = dataclasses.replace(adapted(), params=merge(adapted().params))
    with pytest.raises(FlaxsentError, match="these params have no adapters"):
        save_adapter(merged, tmp_path / "out")
    flaxsent.save(merged, tmp_path / "out")
    np.testing.assert_allclose(logits(merged), logits(adapted()), atol=TOLERANCE)


def test_a_checkpoint_that_is_saved_over_an_adapter_is_read(written, adapted):
    folder, base = written
    flaxsent.save(flaxsent.load(base, backend="native"), folder)
    assert not (folder / adapters.CONFIG).exists()
