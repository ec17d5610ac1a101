"""What folders on the Hub have besides the ordinary: each is loaded as PyTorch's transformers loads it."""

import importlib.metadata
import json
import shutil

import numpy as np
import pytest
import safetensors.numpy

import flaxsent
from flaxsent.packing import pad
from tests.models.reference import SINGLES, TOLERANCE, pytorch_logits

OLD_NAMES = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
LABELS = {"0": "no", "1": "so-so", "2": "yes"}


def with_old_names(tensors):
    """Of the first BERTs, which TensorFlow's names shine through."""
    found = {}
    for name, tensor in tensors.items():
        old = next((ending for ending in OLD_NAMES if name.endswith(ending)), None)
        found[name if old is None else name.removesuffix(old) + OLD_NAMES[old]] = tensor
    return found


def in_half(tensors):
    return {name: tensor.astype(np.float16) for name, tensor in tensors.items()}


def partly_in_half(tensors):
    return {
        name: tensor.astype(np.float16) if "classifier" in name or "query" in name else tensor
        for name, tensor in tensors.items()
    }


CASES = {
    "old names": (with_old_names, {}),
    "half precision": (in_half, {"torch_dtype": "float16"}),
    "two precisions": (partly_in_half, {"torch_dtype": "float32"}),
    "double precision": (lambda tensors: {name: one.astype(np.float64) for name, one in tensors.items()}, {}),
    "the dtype's new key": (None, {"dtype": "bfloat16"}),
    "a class with another head": (None, {"architectures": ["BertForMaskedLM"]}),
    "no class": (None, {"architectures": None}),
    "labels without names": (None, {"id2label": None, "num_labels": 3}),
    "label2id alone": (None, {"id2label": None, "num_labels": 3, "label2id": {"no": 0, "so-so": 1, "yes": 2}}),
    "labels of one name": (None, {"id2label": dict.fromkeys(LABELS, "same")}),
    "labels out of order": (None, {"id2label": dict(reversed(LABELS.items()))}),
    "label2id that says otherwise": (None, {"id2label": LABELS, "label2id": {"yes": 0, "no": 1, "so-so": 2}}),
    "keys that mean nothing here": (
        None,
        {"classifier_dropout": None, "tie_word_embeddings": False, "gradient_checkpointing": False, "use_cache": True},
    ),
}


FORMS = ("safetensors", "safetensors without metadata", "pickle")
OFTEN = [("bert", case, form) for case in CASES for form in FORMS if form == FORMS[0] or case == "old names"]
SELDOM = [("mpnet", case, form) for case in CASES for form in FORMS] + [
    ("bert", case, form) for case in CASES for form in FORMS if ("bert", case, form) not in OFTEN
]


@pytest.mark.torch
@pytest.mark.parametrize(
    ("family", "case", "form"), [*OFTEN, *(pytest.param(*one, marks=pytest.mark.slow) for one in SELDOM)]
)
def test_logits_and_labels_are_those_of_pytorch(tiny_folder, tmp_path, family, case, form):
    import torch
    from transformers import AutoConfig

    change, keys = CASES[case]
    folder = shutil.copytree(tiny_folder(family), tmp_path / "checkpoint")
    tensors = dict(safetensors.numpy.load_file(folder / "model.safetensors"))
    tensors = tensors if change is None else change(tensors)
    (folder / "model.safetensors").unlink()
    if form == "pickle":
        torch.save({name: torch.tensor(one) for name, one in tensors.items()}, folder / "pytorch_model.bin")
    else:
        metadata = {"format": "pt"} if form == "safetensors" else None
        safetensors.numpy.save_file(tensors, folder / "model.safetensors", metadata=metadata)
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | keys))
    classifier = flaxsent.load(folder, backend="native")
    theirs = AutoConfig.from_pretrained(folder)
    assert classifier.config.labels == tuple(theirs.id2label[index] for index in range(3))
    encodings = classifier.tokenizer.encode(SINGLES)
    ours = classifier.forward(classifier.params, pad(encodings))
    np.testing.assert_allclose(ours, pytorch_logits(folder, encodings), atol=TOLERANCE)


@pytest.mark.torch
def test_names_of_labels_count_before_their_number_as_in_transformers_4(tiny_folder):
    """transformers 5 takes the number, and calls the labels LABEL_0 and so on."""
    from transformers import AutoConfig

    folder = tiny_folder("bert", num_hidden_layers=1, id2label=LABELS, num_labels=2)
    assert flaxsent.load(folder, backend="native").config.labels == tuple(LABELS.values())
    num_labels = 3 if importlib.metadata.version("transformers").startswith("4.") else 2
    assert AutoConfig.from_pretrained(folder).num_labels == num_labels


def test_a_missing_pooler_is_told_where_transformers_draws_one_at_random(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder("bert"), tmp_path / "checkpoint")
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    kept = {name: np.array(tensor) for name, tensor in tensors.items() if "pooler" not in name}
    safetensors.numpy.save_file(kept, folder / "model.safetensors")
    with pytest.raises(flaxsent.FlaxsentError, match=r"- bert\.pooler\.dense\.weight; - bert\.pooler\.dense\.bias$"):
        flaxsent.load(folder, backend="native")
