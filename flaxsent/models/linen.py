"""The native encoders as one module of Flax's linen: what `flaxsent.flax` holds, and the flax backend without theirs.

The module takes what a module of transformers' Flax classes takes, and params of the same names and shapes.
"""

import functools
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from flaxsent import models
from flaxsent.base import FlaxsentError, Params, Tokens
from flaxsent.files import require
from flaxsent.models import attention, layers
from flaxsent.models.config import ModelConfig
from flaxsent.models.dropout import split_key

if TYPE_CHECKING:
    import flax.linen as nn
    from flax import struct
else:
    struct = require("flax.struct", needed_by="flaxsent.flax", extra="flax")
    nn = require("flax.linen", needed_by="flaxsent.flax", extra="flax")


@struct.dataclass
class Outputs:
    """What a model gives, in the order of transformers' tuples; what was not asked for, or is not there, is None.

    An encoder-decoder names the states of its two stacks, an encoder has `hidden_states`.
    """

    logits: Any = None
    last_hidden_state: Any = None
    pooler_output: Any = None
    hidden_states: Any = None
    attentions: Any = None
    decoder_hidden_states: Any = None
    decoder_attentions: Any = None
    cross_attentions: Any = None
    encoder_last_hidden_state: Any = None
    encoder_hidden_states: Any = None
    encoder_attentions: Any = None

    def keys(self) -> tuple[str, ...]:
        return tuple(name for name, value in vars(self).items() if value is not None)

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(self[name] for name in self.keys())

    def __getitem__(self, key: str | int | slice) -> Any:
        return getattr(self, key) if isinstance(key, str) else self.to_tuple()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())


class Encoder(nn.Module):
    """`Encoder(config=…).apply({"params": params}, input_ids, attention_mask, …)`, of padded rows.

    It computes in `dtype`, whatever that of the params is; logits are float32. With `has_head` False it is AutoModel's,
    and its params are those of the branch of the encoder. With `saves_memory` a gradient keeps layers' outputs alone.
    """

    config: ModelConfig
    dtype: Any = jnp.float32
    has_head: bool = True
    saves_memory: bool = False

    @nn.compact
    def __call__(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        head_mask: Any = None,
        *,
        decoder_input_ids: Any = None,
        deterministic: bool = True,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        return_dict: bool = True,
    ) -> Any:
        """As `outputs`; an encoder that is not `deterministic` draws its dropout from the rng "dropout".

        Raises:
            FlaxsentError: there is no such rng, or there is a `head_mask`; and as `outputs`.
        """
        if head_mask is not None:
            raise FlaxsentError("flaxsent masks no heads; leave out head_mask.")
        if not deterministic and not self.has_rng("dropout"):
            raise FlaxsentError("a model in training draws dropout; pass dropout_rng=jax.random.key(…).")
        found = outputs(
            self._params(),
            tokens_of(input_ids, attention_mask, token_type_ids, position_ids, config=self.config),
            None if deterministic else typed_key(self.make_rng("dropout")),
            config=self.config,
            dtype=self.dtype,
            has_head=self.has_head,
            has_states=output_hidden_states,
            has_attentions=output_attentions,
            saves_memory=self.saves_memory,
            decoder_ids=None if decoder_input_ids is None else jnp.asarray(decoder_input_ids, jnp.int32),
        )
        return found if return_dict else found.to_tuple()

    def _params(self) -> Params:
        """A parameter each for the branches: what is in one is a matter of `models`, not of linen's."""
        shapes = shapes_of(self.config, has_head=self.has_head)
        return {
            branch: self.get_variable("params", branch)
            if self.has_variable("params", branch)
            else self.param(branch, self._draw, shape)
            for branch, shape in shapes.items()
        }

    def _draw(self, key: Any, shapes: Any) -> dict[str, Any]:
        return layers.init_params(typed_key(key), shapes, stddev=self.config.initializer_range)


def shapes_of(config: ModelConfig, *, has_head: bool) -> dict[str, Any]:
    """Those of `Encoder`'s params."""
    shapes = models.shapes(config)
    return shapes if has_head else shapes[models.base(config)]


def typed_key(key: Any) -> Any:
    """A key, of one or of what `jax.random.PRNGKey` gives."""
    return key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key)


def tokens_of(
    input_ids: Any, attention_mask: Any, token_type_ids: Any, position_ids: Any, *, config: ModelConfig
) -> Tokens:
    """Padded rows of what transformers' tokenizers give; positions that are left out are those of transformers.

    NumPy's arrays stay NumPy's, so that `models.check` sees what is in them.

    Raises:
        FlaxsentError: `input_ids` are not `[B, L]`.
    """
    given = (input_ids, attention_mask, token_type_ids, position_ids)
    on_device = any(isinstance(array, jax.Array) for array in given)
    xp: Any = jnp if on_device else np
    ids_BL = xp.asarray(input_ids).astype("int32")
    if ids_BL.ndim != 2:
        raise FlaxsentError(f"input_ids have shape {ids_BL.shape}; expected texts by tokens, [B, L].")
    if position_ids is None:
        position_ids = xp.broadcast_to(xp.arange(ids_BL.shape[1], dtype="int32")[None], ids_BL.shape)
        if models.FAMILIES[config.family].positions_follow_padding:
            is_token_BL = (ids_BL != config.pad_token_id).astype("int32")
            position_ids = xp.cumsum(is_token_BL, axis=1, dtype="int32") * is_token_BL + config.pad_token_id
    is_text_BL = xp.ones_like(ids_BL) if attention_mask is None else xp.asarray(attention_mask) != 0
    types_BL = xp.zeros_like(ids_BL) if token_type_ids is None else xp.asarray(token_type_ids)
    return Tokens(ids_BL, *(xp.asarray(array).astype("int32") for array in (types_BL, position_ids, is_text_BL)))


def outputs(
    params: Params,
    tokens: Tokens,
    key: Any = None,
    *,
    config: ModelConfig,
    dtype: Any,
    has_head: bool = True,
    has_states: bool = False,
    has_attentions: bool = False,
    saves_memory: bool = False,
    decoder_ids: Int[Array, "B L"] | None = None,
) -> Outputs:
    """Of padded rows `[B, L]`, with dropout if there is a `key`; the rows' keys are split as in `classifier.forward`.

    Raises:
        FlaxsentError: as `models.check`; or attentions are asked for of rows that are so long that no array holds them.
    """
    models.check(config, tokens)
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), params if has_head else {models.base(config): params})

    def row(tokens_T: Tokens, decoder_ids_T: Int[Array, " T"] | None, row_key: Any) -> Outputs:
        embed_key, encode_key, head_key = split_key(row_key, 3)
        decoder = {} if decoder_ids_T is None else {"decoder_ids": decoder_ids_T}
        embedded = models.embed(params, tokens_T, config=config, key=embed_key, **decoder)
        encoder = (params, embedded, tokens_T)
        found: dict[str, Any] = {}
        if has_head:
            # Under jit, what this has in common with the states is computed once.
            pooled_1D = models.encode(*encoder, config=config, num_segments=1, key=encode_key)[-1]
            found["logits"] = models.head(params, pooled_1D, config=config, key=head_key)[0]
        encoded = models.encoder_states(*encoder, config=config, key=encode_key)
        if has_states or not has_head:
            states = models.encode(*encoder, config=config, key=encode_key)
            if has_states:
                found["hidden_states" if encoded is None else "decoder_hidden_states"] = tuple(states)
            if not has_head:
                found |= {
                    "last_hidden_state": states[-1],
                    "pooler_output": _pooled(params, states[-1], tokens_T, config),
                }
        if encoded is not None:
            found["encoder_last_hidden_state"] = encoded[-1]
            found["encoder_hidden_states"] = tuple(encoded) if has_states else None
        if has_attentions:
            found |= _attentions(*encoder, encode_key, config=config)
        return Outputs(**{name: in_dtype(name, value) for name, value in found.items()})

    def in_dtype(name: str, value: PyTree) -> PyTree:
        return value if name == "logits" else jax.tree.map(lambda x: x.astype(dtype), value)

    if saves_memory:
        row = jax.checkpoint(row, policy=jax.checkpoint_policies.save_only_these_names(layers.STATE))
    keys = None if key is None else jax.random.split(key, tokens.input_ids.shape[0])
    return jax.vmap(row)(jax.tree.map(jnp.asarray, tokens), decoder_ids, keys)


def _pooled(
    params: Params, last_TD: Float[Array, "T D"], tokens: Tokens, config: ModelConfig
) -> Float[Array, " D"] | None:
    """BERT's and ALBERT's; the params of other families have no pooler."""
    pooler = params[models.base(config)].get("pooler")
    if pooler is None:
        return None
    first_1D = layers.take(last_TD, layers.first_tokens(tokens, 1))
    return jnp.tanh(layers.dense(layers.in_float32(pooler.get("dense", pooler)), first_1D))[0]


def _attentions(
    params: Params, embedded: PyTree, tokens: Tokens, key: Any, *, config: ModelConfig
) -> dict[str, tuple[Float[Array, "N T T"], ...]]:
    """The probabilities before dropout of each layer, in their order in the jaxpr of `encode`.

    Attention is a primitive there, whose operands give them; with dropout they bear their name.
    """

    def encode(*arguments: Any) -> Any:
        return models.encode(*arguments[:3], config=config, key=arguments[3])

    arguments = (params, embedded, tokens, key)
    closed = jax.make_jaxpr(encode)(*arguments)
    places = []
    for equation in closed.jaxpr.eqns:
        if equation.primitive is attention.attend_p:
            q, k, _, *others = equation.invars
            places.append((functools.partial(attention.probs, **equation.params), [q, k, *others]))
        elif equation.primitive.name == "name" and equation.params["name"] == attention.PROBS:
            places.append((lambda probs: probs, equation.outvars))
    length, stacks = len(tokens.input_ids), 1 if models.encoder_states(*arguments[:3], config=config) is None else 2
    debug_info = closed.jaxpr.debug_info._replace(result_paths=None)
    named = [variable for _, variables in places for variable in variables]
    kept = jax.extend.core.ClosedJaxpr(closed.jaxpr.replace(outvars=named, debug_info=debug_info), closed.consts)
    values = iter(jax.extend.core.jaxpr_as_fun(kept)(*jax.tree.leaves(arguments)))
    found = [probs_of(*itertools.islice(values, len(variables))) for probs_of, variables in places]
    if len(found) < config.num_layers or any(probs.shape[1:] != (length, length) for probs in found):
        raise FlaxsentError(f"rows of {length} tokens are attended in blocks; ask attentions of shorter ones.")
    if stacks == 1:
        return {"attentions": tuple(found)}
    encoders, decoders = found[: config.num_layers], found[config.num_layers :]
    return {
        "encoder_attentions": tuple(encoders),
        "decoder_attentions": tuple(decoders[::2]),
        "cross_attentions": tuple(decoders[1::2]),
    }
