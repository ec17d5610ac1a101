"""PyTorch's models of transformers, with which the families are compared."""

import functools
import inspect

import jax
import numpy as np

from flaxsent import models
from flaxsent.models.dropout import split_key
from flaxsent.packing import pack, pad, unpack
from tests.conftest import texts_of_lengths

# Both sides compute in float32 in another order of summation; hidden states and logits are of size 1 to 10.
TOLERANCE = 2e-5

SINGLES = texts_of_lengths([0, 1, 7, 30, 38])
PAIRS = list(zip(texts_of_lengths([3, 1, 0, 20]), texts_of_lengths([5, 0, 9, 16], seed=1), strict=True))


def pytorch(folder):
    """The model that PyTorch opens from a folder, strictly: nothing is missing or left over."""
    import torch
    from transformers import AutoModelForSequenceClassification

    model, info = AutoModelForSequenceClassification.from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32, attn_implementation="eager"
    )
    assert not any(info.values()), info
    return model.eval()


def pytorch_stages(folder, encodings):
    """For each text by itself, without padding: its hidden states, the decoder's of BART, and its logits."""
    import torch

    model = pytorch(folder)
    last = []
    model.base_model.register_forward_hook(lambda module, inputs, out: last.append(out[0]))
    stages = []
    for ids, types in zip(encodings.input_ids, encodings.token_type_ids, strict=True):
        inputs = {"input_ids": torch.tensor([ids])}
        if "token_type_ids" in inspect.signature(model.forward).parameters:
            inputs["token_type_ids"] = torch.tensor([types])
        with torch.no_grad():
            out = model(**inputs, output_hidden_states=True)
        states = getattr(out, "decoder_hidden_states", None) or out.hidden_states
        # AutoModel's last_hidden_state: ModernBERT's list ends before the final norm in transformers 4, after it in 5.
        stages.append([state[0].numpy() for state in (*states[:-1], last.pop(), out.logits)])
    return stages


def pytorch_logits(folder, encodings):
    return np.stack([stages[-1] for stages in pytorch_stages(folder, encodings)])


def all_states(params, tokens, *, config, key=None):
    """The embeddings and the output of every layer, of one row."""
    embed_key, encode_key = split_key(key, 2)
    embedded = models.embed(params, tokens, config=config, key=embed_key)
    return models.encode(params, embedded, tokens, config=config, key=encode_key)


def stages_of_row(classifier, text):
    """A function of a dropout key: the states of one text and its logits."""
    row = jax.tree.map(lambda rows: rows[0], classifier.tokenize([text]))
    config, params = classifier.config, classifier.params

    def stages(key):
        logits = models.forward(params, row, config=config, num_segments=1, key=key)
        return [*all_states(params, row, config=config, key=key), logits]

    return stages


def padded_and_packed_logits(classifier, encodings, *, row_length):
    """The logits of texts one a row and several a row, in one batch."""
    count = len(encodings.input_ids)
    packed, placement = pack(encodings, row_length=row_length)
    assert len(packed.input_ids) < count, "some rows hold several texts"
    rows = jax.tree.map(lambda *rows: np.concatenate(rows), pad(encodings, length=row_length), packed)
    row = functools.partial(
        models.forward, classifier.params, config=classifier.config, num_segments=int(placement.segment.max()) + 1
    )
    logits = np.asarray(jax.jit(jax.vmap(row))(rows))
    return logits[:count, 0], unpack(logits[count:], placement)


def with_padding_inside(encodings, *, seed=0):
    """A third of what stands between a text's first and its last token, and in every other text the first, too."""
    rng = np.random.default_rng(seed)
    changed = [np.array(ids) for ids in encodings.input_ids]
    for index, ids in enumerate(changed):
        inner = ids[1:-1]
        is_separator = inner == ids[-1]
        inner[(rng.random(len(inner)) < 0.34) & ~is_separator] = encodings.pad_token_id
        if index % 2:
            ids[0] = encodings.pad_token_id
    assert sum((ids == encodings.pad_token_id).sum() for ids in changed) > 10
    return encodings._replace(input_ids=[ids.tolist() for ids in changed])
