"""A DistilBERT of small sizes, as `flaxsent bench` makes one."""

import pytest

from flaxsent.bench import texts

SIZES = {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 64}


@pytest.fixture(scope="session")
def small_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    texts.write_model(folder, **SIZES)
    return folder
