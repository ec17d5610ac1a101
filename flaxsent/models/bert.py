"""BERT (Devlin et al. 2018) and its kin, which differ in a name, a projection or a head.

RoBERTa (Liu et al. 2019), XLM-RoBERTa and CamemBERT number positions from `padding_idx + 1`; ELECTRA (Clark et al.
2020) may embed in another size than it computes in. Their head is a layer on [CLS] instead of BERT's pooler.
Reference: `*ForSequenceClassification` of transformers' modeling_{bert,roberta,xlm_roberta,camembert,electra}.py.
"""

import dataclasses
import functools
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from flaxsent.base import Params, Tokens
from flaxsent.models.activations import ACTIVATIONS
from flaxsent.models.dropout import OptionalKey
from flaxsent.models.family import Family, ModelConfig
from flaxsent.models.layers import dense, dense_head, dense_head_shapes, dense_shapes, numbered, two_layers
from flaxsent.models.post_norm import Parts, embed, embedding_shapes, encode

_PARTS = Parts()


def _berts_shapes(config: ModelConfig) -> dict[str, Any]:
    D = config.hidden_size
    encoder = _encoder_shapes(config) | {"pooler": {"dense": dense_shapes(D, D)}}
    return {"bert": encoder, "classifier": dense_shapes(D, config.num_labels)}


def _kins_shapes(config: ModelConfig, *, base: str) -> dict[str, Any]:
    return {base: _encoder_shapes(config), "classifier": dense_head_shapes(config)}


def _encoder_shapes(config: ModelConfig) -> dict[str, Any]:
    D = config.hidden_size
    E = config.get_size("embedding_size", 128) if config.family == "electra" else D
    encoder = {
        "embeddings": embedding_shapes(config, E, position=config.num_positions),
        "encoder": {"layer": numbered(config.num_layers, _PARTS.shapes(config))},
    }
    return encoder if E == D else encoder | {"embeddings_project": dense_shapes(E, D)}


def _embed(params: Params, tokens: Tokens, *, config: ModelConfig, key: OptionalKey) -> Float[Array, "T D"]:
    x_TE = embed(params, tokens, config=config, key=key)
    return dense(params["embeddings_project"], x_TE) if "embeddings_project" in params else x_TE


def _berts_head(
    params: Params, x_SD: Float[Array, "S D"], *, config: ModelConfig, key: OptionalKey
) -> Float[Array, "S C"]:
    """The pooler, dropout, the classifier."""
    pooler, rates = params["bert"]["pooler"]["dense"], (0.0, config.classifier_dropout)
    return two_layers(pooler, params["classifier"], x_SD, activation=jnp.tanh, rates=rates, key=key)


_BERT = Family(
    model_type="bert",
    class_name="Bert",
    base="bert",
    shapes=_berts_shapes,
    embed=_embed,
    encode=functools.partial(encode, parts=_PARTS),
    head=_berts_head,
    stacks=lambda config: {"encoder.layer": [None] * config.num_layers},
)


def _kin(model_type: str, class_name: str, *, base: str, **more: Any) -> Family:
    return dataclasses.replace(
        _BERT,
        model_type=model_type,
        class_name=class_name,
        base=base,
        shapes=functools.partial(_kins_shapes, base=base),
        last_layer=("classifier", "out_proj"),
        **{"head": dense_head, **more},
    )


_roberta = functools.partial(
    _kin,
    base="roberta",
    keys={"pad_token_id": ("pad_token_id", 1)},
    positions_follow_padding=True,
    tiny={"type_vocab_size": 1, "pad_token_id": 1, "max_position_embeddings": 42},
)

FAMILIES = (
    _BERT,
    _roberta("roberta", "Roberta"),
    _roberta("xlm-roberta", "XLMRoberta"),
    _roberta("camembert", "Camembert"),
    _kin(
        "electra",
        "Electra",
        base="electra",
        head=functools.partial(dense_head, activation=ACTIVATIONS["gelu"]),
        tiny={"embedding_size": 20},
    ),
)
