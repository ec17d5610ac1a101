"""Tokens and logits of checkpoint folders beside those of transformers and PyTorch."""

import numpy as np
import pytest

import flaxsent
from flaxsent.files import EMBEDDED
from flaxsent.parity import pytorch
from tests.conftest import AWKWARD_TEXTS, NATIVE

pytestmark = pytest.mark.torch


def test_logits_of_pytorch_do_not_depend_on_how_texts_are_grouped(tiny_folder):
    """Row by row, unpadded; the same sums, so the same bits."""
    folder, texts = tiny_folder("bert"), ["so good", "a", "not bad at all"]
    together = pytorch.logits(folder, texts)
    np.testing.assert_array_equal(together, np.concatenate([pytorch.logits(folder, [text]) for text in texts]))


@pytest.mark.parametrize("family", NATIVE)
def test_tokens_of_awkward_texts_equal_transformers(tiny_folder, family):
    from transformers import AutoTokenizer

    folder = tiny_folder(family)
    classifier = flaxsent.load(folder, backend="native")
    texts = [text for text in AWKWARD_TEXTS if "[" not in text]  # special tokens spelt out stay text with us
    limit = classifier.tokenizer.max_length
    theirs = AutoTokenizer.from_pretrained(folder)(texts, truncation=True, max_length=limit, padding=True)
    ours = classifier.tokenize(texts)
    assert ours.input_ids.tolist() == theirs["input_ids"]
    assert ours.attention_mask.tolist() == theirs["attention_mask"]


SENTENCES = [
    f"{subject} {verb} {opinion}{end}"
    for subject in ("the film", "this course", "My neighbour's dog", "a 1987 sequel", "Everything about it")
    for verb in ("is", "was never", "could have been", "seems")
    for opinion in (
        "a delight",
        "dull, loud and far too long",
        "not bad at all",
        "brilliant",
        "what it says on the tin",
    )
    for end in (".", " — and I'd watch it again!")
]


@pytest.mark.slow
def test_embedded_checkpoint_equals_pytorch_on_200_sentences(embedded):
    """float16 weights computed in float32 on both sides, six layers deep: 1e-4 is a few rounding errors."""
    assert len(SENTENCES) == 200
    ours = np.asarray(embedded.forward(embedded.params, embedded.tokenize(SENTENCES)))
    theirs = pytorch.logits(EMBEDDED, SENTENCES)
    assert np.abs(ours - theirs).max() <= 1e-4
    assert (ours.argmax(-1) == theirs.argmax(-1)).all()
    assert len(set(ours.argmax(-1).tolist())) == 2, "sentences of both kinds"
