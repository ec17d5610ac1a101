"""What only MPNet has: buckets of distances. The rest is in test_families.py."""

import jax
import numpy as np
import pytest

from flaxsent.models import mpnet


@pytest.mark.torch
def test_every_distance_has_pytorchs_bucket():
    import torch
    from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

    table = {"embedding": np.arange(32, dtype=np.float32)[:, None]}
    bias = jax.jit(mpnet._bias, static_argnums=1)(table, 600)[0]
    theirs = MPNetEncoder.relative_position_bucket(torch.arange(600)[None, :] - torch.arange(600)[:, None])
    np.testing.assert_array_equal(bias, theirs.numpy())
