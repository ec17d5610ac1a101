"""Several adapters on one base in one packed row: each text by its own, in one program and one forward.

The matrices of all adapters stand side by side, as one adapter of the sum of their ranks; of a token's product with the
first of them, what is not its own adapter's is multiplied by 0. The base is computed once.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from flaxsent import models
from flaxsent.base import Encodings, FlaxsentError, Params, Texts, Tokens
from flaxsent.classifier import Classifier, OptionalKey, tokenize
from flaxsent.models import layers
from flaxsent.models.adapters import ARRAYS, attach, has_adapters, head_paths, is_below
from flaxsent.models.config import FAMILIES
from flaxsent.packing import check_padded
from flaxsent.tokenization import Span, Tokenizer, Windowed, Windows, checked

_HEADS = "heads"


def by_segment(classifier: Classifier, adapters: Mapping[str, Params]) -> Classifier:
    """A classifier of texts that name their adapter: `("mail", "so good")` is "so good" by the adapter "mail".

    It is for whatever takes a classifier, as `Engine`. It takes no pairs and no key of dropout, and is neither saved
    nor trained.

    Args:
        classifier: the base; its labels are those of all adapters.
        adapters: by their names, as `checkpoint.adapters.read` or `models.adapters.part_of` gives them.

    Raises:
        FlaxsentError: there are none, or one is of another base, of other labels, or of a kind that is not a token's
            own: biases, DoRA, or what reads the distances of DeBERTa.

    >>> import flaxsent
    >>> from flaxsent.models.adapters import part_of
    >>> from flaxsent.transforms import lora
    >>> clf = flaxsent.load(backend="native")
    >>> own = part_of(lora.adapt(clf).params, config=clf.config)
    >>> both = by_segment(clf, {"films": own, "mail": own})
    >>> [found.label for found in flaxsent.classify([("films", "so good"), ("mail", "so bad")], both)]
    ['POSITIVE', 'NEGATIVE']
    """
    if not adapters or not classifier.packs or has_adapters(classifier.params) or classifier.asking is not None:
        raise FlaxsentError(
            "several adapters in a row: expected one or more, on a base with a native encoder and labels of its own, "
            "and without adapters of its own."
        )
    config = classifier.config
    heads = head_paths(classifier.params, config=config)
    for name, adapter in adapters.items():
        _check(name, adapter, classifier, heads)
    params = {**_side_by_side(classifier.params, [*adapters.values()]), _HEADS: {}}
    for name, adapter in adapters.items():
        params[_HEADS][name] = _only(adapter, heads)
    tokenizer = _Named(
        **{field.name: getattr(classifier.tokenizer, field.name) for field in _FIELDS}, names=(*adapters,)
    )
    precision = getattr(classifier.forward_packed, "keywords", {}).get("matmul_precision")

    def forward_packed(
        params: Params, tokens: Tokens, num_segments: int, key: OptionalKey = None
    ) -> Float[Array, "R S C"]:
        if key is not None:
            raise FlaxsentError(
                "several adapters in a row have no dropout; leave the key out, or pass the classifier of one of them."
            )
        row = functools.partial(_row, params, config=config, names=[*adapters], num_segments=num_segments)
        with jax.default_matmul_precision(precision):
            return jax.vmap(row)(jax.tree.map(jnp.asarray, tokens))

    def forward(params: Params, tokens: Tokens, key: OptionalKey = None) -> Float[Array, "B C"]:
        check_padded(tokens)
        return forward_packed(params, tokens, 1, key)[:, 0]

    return dataclasses.replace(
        classifier,
        tokenize=functools.partial(tokenize, tokenizer=tokenizer),
        forward=forward,
        forward_packed=forward_packed,
        hidden_states=_refuse,
        embeddings=_refuse,
        params=params,
        tokenizer=tokenizer,
        backend="adapters",
    )


def _row(
    params: Params, tokens: Tokens, *, config: Any, names: Sequence[str], num_segments: int
) -> Float[Array, "S C"]:
    """Logits of one row; a token's type is the index of its adapter."""
    which_T = tokens.token_type_ids
    tokens = tokens._replace(token_type_ids=jnp.zeros_like(which_T))
    # By how many rows a layer reads, it has those of tokens or those of texts: the numbers must differ.
    num_rows = num_segments + (num_segments == len(which_T))
    which_S = which_T[jnp.asarray(layers.first_tokens(tokens, num_rows))]
    own = _with_scales(params, {str(len(which)): jnp.asarray(which) for which in (which_T, which_S)})
    embedded = models.embed(own, tokens, config=config)
    x_SD = models.encode(own, embedded, tokens, config=config, num_segments=num_rows)[-1][:num_segments]
    base = {name: node for name, node in params.items() if name != _HEADS}
    logits_KSC = jnp.stack([models.head(attach(base, params[_HEADS][name]), x_SD, config=config) for name in names])
    return logits_KSC[which_S[:num_segments], jnp.arange(num_segments)]


def _with_scales(node: Params, which: Mapping[str, Int[Array, " rows"]]) -> dict[str, Any]:
    """Instead of a scale for each adapter, one for each row."""
    scaled = {name: _with_scales(one, which) if isinstance(one, Mapping) else one for name, one in node.items()}
    if "lora_scale" in node:
        scaled["lora_scale"] = {rows: node["lora_scale"][index] for rows, index in which.items()}
    return scaled


def _side_by_side(node: Params, adapters: Sequence[Params]) -> dict[str, Any]:
    """The base with the matrices of all adapters, and a scale for each of these and each column, 0 at the others'."""
    joined = {
        name: _side_by_side(one, [adapter.get(name, {}) for adapter in adapters]) if isinstance(one, Mapping) else one
        for name, one in node.items()
    }
    there = [(index, adapter) for index, adapter in enumerate(adapters) if "lora_a" in adapter]
    if there:
        scales = [
            np.outer(np.arange(len(adapters)) == index, np.full(adapter["lora_a"].shape[-1], adapter["lora_scale"]))
            for index, adapter in there
        ]
        joined["lora_a"] = jnp.concatenate([adapter["lora_a"] for _, adapter in there], axis=-1)
        joined["lora_b"] = jnp.concatenate([adapter["lora_b"] for _, adapter in there], axis=-2)
        joined["lora_scale"] = jnp.asarray(np.concatenate(scales, axis=-1), jnp.float32)
    return joined


def _check(name: str, adapter: Params, classifier: Classifier, heads: Sequence[tuple[str, ...]]) -> None:
    attach(classifier.params, adapter)
    for keys, _ in jax.tree_util.tree_leaves_with_path(adapter):
        path = tuple(key.key for key in keys)
        is_of_distances = (
            FAMILIES[classifier.config.family].model_type == "deberta-v2"
            and classifier.config.get("relative_attention")
            and path[-2] in ("query_proj", "key_proj", "pos_query_proj", "pos_key_proj")
        )
        is_of_head = any(is_below(path, head) for head in heads)
        if is_of_distances or not (is_of_head or path[-1] in ARRAYS):
            raise FlaxsentError(
                f"the adapter {name!r} changes {'.'.join(path[:-1])} by more than what each token reads there, and "
                "cannot stand in a row with others; merge it."
            )
    last = models.last_layer(attach(classifier.params, adapter))["kernel"].shape[-1]
    if last != classifier.config.num_labels:
        raise FlaxsentError(f"the adapter {name!r} has {last} labels; expected {classifier.config.num_labels}.")


def _only(adapter: Params, heads: Sequence[tuple[str, ...]], path: tuple[str, ...] = ()) -> dict[str, Any]:
    """What of an adapter is a head's."""
    kept = {}
    for name, value in adapter.items():
        where = (*path, name)
        if any(is_below(where, head) for head in heads):
            kept[name] = value
        elif isinstance(value, Mapping) and (inner := _only(value, heads, where)):
            kept[name] = inner
    return kept


@dataclasses.dataclass(frozen=True)
class _Named(Tokenizer):
    """Reads texts that come with the name of an adapter: its index is the type of their tokens."""

    names: tuple[str, ...]

    def encode(self, texts: Texts, *, max_length: int | None = None) -> Encodings:
        which, batch = self._taken_apart(texts)
        return _with_types(super().encode(batch, max_length=max_length), which)

    def encode_windows(self, texts: Texts, windows: Windows | None) -> Windowed:
        if windows is None:
            return super().encode_windows(texts, None)  # which calls `encode`
        which, batch = self._taken_apart(texts)
        found = super().encode_windows(batch, windows)
        return found._replace(encodings=_with_types(found.encodings, [which[text] for text in found.texts]))

    def spans(self, texts: Texts, *, max_length: int | None = None) -> list[list[Span | None]]:
        found = super().spans(self._taken_apart(texts)[1], max_length=max_length)
        return [[None if span is None else span._replace(part=1) for span in spans] for spans in found]

    def _taken_apart(self, texts: Texts) -> tuple[list[int], list[str]]:
        """Which adapter each text names, and the texts."""
        which, batch = [], []
        for index, text in enumerate(checked(texts)):
            if not isinstance(text, tuple) or text[0] not in self.names:
                raise FlaxsentError(
                    f"text {index} names no adapter; expected (name, text) with one of {', '.join(self.names)}."
                )
            which.append(self.names.index(text[0]))
            batch.append(text[1])
        return which, batch


def _with_types(found: Encodings, which: Sequence[int]) -> Encodings:
    types = [[index] * len(ids) for index, ids in zip(which, found.input_ids, strict=True)]
    return found._replace(token_type_ids=types)


_FIELDS = dataclasses.fields(Tokenizer)


def _refuse(params: Params, tokens: Tokens, num_segments: int = 1) -> NoReturn:
    raise FlaxsentError("the vectors of several adapters are not those of one; take each adapter's own classifier.")
