"""What only DeBERTa has: buckets of distances, and the names of old checkpoints. The rest is in test_families.py."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy

import flaxsent
from flaxsent import models
from flaxsent.models import deberta
from flaxsent.models.config import read_config
from flaxsent.packing import pack, pad, unpack
from tests.conftest import texts_of_lengths
from tests.models.reference import TOLERANCE, pytorch, pytorch_logits


@pytest.mark.torch
@pytest.mark.parametrize(("num_buckets", "max_distance"), [(256, 512), (32, 512), (7, 40), (4, 33), (2, 9), (64, 4096)])
def test_buckets_equal_pytorch_at_every_distance(num_buckets, max_distance):
    import torch
    from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

    differences = torch.arange(-max_distance + 1, max_distance)
    theirs = make_log_bucket_position(differences, num_buckets, max_distance).long().numpy()
    ours = deberta._buckets(max_distance, num_buckets, max_distance)
    np.testing.assert_array_equal(np.concatenate([-ours[:0:-1], ours]), theirs)


@pytest.mark.torch
def test_old_names_are_read_as_pytorch_reads_them(tiny_folder, tmp_path):
    """LayerNorm's gamma and beta, and an absolute position table that microsoft's checkpoints hold but do not use."""
    from transformers import AutoModelForSequenceClassification

    folder = tiny_folder("deberta-v2", num_hidden_layers=2, conv_kernel_size=3)
    classifier = flaxsent.load(folder)
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in tensors.items()
    }
    assert len(old.keys() - tensors.keys()) == 14, "embeddings, distances, convolution and two a layer"
    old["deberta.embeddings.position_embeddings.weight"] = np.zeros((40, 36), np.float32)
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    safetensors.numpy.save_file(old, tmp_path / "model.safetensors", metadata={"format": "pt"})
    theirs, info = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert all(tensor.equal(theirs.state_dict()[name]) for name, tensor in pytorch(folder).state_dict().items())
    jax.tree.map(np.testing.assert_array_equal, flaxsent.load(tmp_path).params, classifier.params)


def test_default_dropout_of_the_head_is_that_of_the_encoder():
    base = models.FAMILIES["deberta-v2"].tiny_config
    rates = [{"hidden_dropout_prob": 0.25}, {"hidden_dropout_prob": 0.25, "cls_dropout": 0.0}, {"cls_dropout": None}]
    assert [read_config(json.dumps(base | rate)).classifier_dropout for rate in rates] == [0.25, 0.0, 0.1]
    assert read_config(json.dumps(base)).layer_norm_eps == 1e-7


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("num_buckets", [7, 4, 12, -1])
def test_texts_longer_than_the_config_says_equal_pytorch(tiny_folder, num_buckets):
    """max_position_embeddings is 40: from there on distances share buckets, and at last the last one."""
    folder = tiny_folder("deberta-v2", num_hidden_layers=2, position_buckets=num_buckets)
    classifier = flaxsent.load(folder)
    encodings = classifier.tokenizer.encode(texts_of_lengths([38, 60, 150, 300]), max_length=400)
    assert max(encodings.lengths) == 302
    tokens = pad(encodings)
    ours = classifier.forward(classifier.params, tokens)
    np.testing.assert_allclose(ours, pytorch_logits(folder, encodings), atol=TOLERANCE, rtol=0)
    packed, placement = pack(encodings, row_length=400)
    np.testing.assert_allclose(
        unpack(np.asarray(classifier.forward_packed(classifier.params, packed, 4)), placement), ours, atol=TOLERANCE
    )


def test_a_table_of_positions_or_buckets_that_do_not_grow_limit_deberta():
    base = models.FAMILIES["deberta-v2"].tiny_config
    limits = [
        models.limits_positions(read_config(json.dumps(base | changes)))
        for changes in ({}, {"position_buckets": -1}, {"position_biased_input": True}, {"position_buckets": 78})
    ]
    assert limits == [False, False, True, True]
