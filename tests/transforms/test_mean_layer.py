"""A layer more makes [CLS] the mean of a text's states, in flaxsent and in PyTorch alike."""

import numpy as np
import pytest

import flaxsent
from flaxsent.base import FlaxsentError
from flaxsent.checkpoint.folder import save
from flaxsent.engine import Engine
from flaxsent.transforms.mean_layer import with_mean_layer
from tests.conftest import AWKWARD_TEXTS, texts_of_lengths

FAMILIES = ("bert", "roberta", "xlm-roberta", "camembert")
TEXTS = [*AWKWARD_TEXTS[:8], *texts_of_lengths([1, 3, 17, 30])]


def means(states_BLD, mask_BL):
    mean_BD = (states_BLD * mask_BL[..., None]).sum(1) / mask_BL.sum(1, keepdims=True)
    centred_BD = mean_BD - mean_BD.mean(1, keepdims=True)
    return centred_BD / centred_BD.std(1, keepdims=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_reads_the_mean_of_the_states_in_packed_rows_too(tiny_folder, family):
    classifier = flaxsent.load(tiny_folder(family), backend="native")
    tokens = classifier.tokenize(TEXTS)
    expected = means(np.asarray(classifier.hidden_states(classifier.params, tokens)), tokens.attention_mask)
    changed = with_mean_layer(classifier)
    with Engine(changed, function=changed.embeddings) as engine:
        found = engine(TEXTS)
    # 1% of [CLS], whose length is that of a LayerNorm's, over a mean that is no longer than that.
    cosines = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosines.min() > 0.999


@pytest.mark.torch
@pytest.mark.parametrize("family", FAMILIES)
def test_pytorch_opens_it_and_has_its_logits(tiny_folder, tmp_path, family):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    changed = with_mean_layer(flaxsent.load(tiny_folder(family), backend="native"))
    save(changed, tmp_path / "out")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    tokens = changed.tokenize(TEXTS)
    inputs = {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask}
    with torch.no_grad():
        expected = model(**{name: torch.from_numpy(np.asarray(ids)).long() for name, ids in inputs.items()}).logits
    found = changed.forward(changed.params, tokens)
    # Logits of float32 through 4 layers, as those of other checkpoints.
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4, rtol=1e-4)


def test_families_of_another_kind_are_refused(tiny_folder):
    with pytest.raises(FlaxsentError, match="no mean of states for distilbert; expected one of bert, roberta"):
        with_mean_layer(flaxsent.load(tiny_folder("distilbert"), backend="native"))
