"""Which tokens decided: a score for each token of a text, by gradients or by hiding it.

What is explained is a logit, as Captum does by default: a probability hardly moves where the model is sure. It is that
of the label that is named, or of the best label of each text. The special tokens that the tokenizer adds belong to
every baseline, so that they have no score; only "zeros" leaves nothing of a text. So do the hypotheses of labels that
are given at run time, whose score, if they have any, stands behind the text.
"""

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from flaxsent import models
from flaxsent.base import AnyArray, FlaxsentError, Params, Tokens
from flaxsent.classifier import Asking, Classifier
from flaxsent.models.config import ModelConfig


class Attributions(NamedTuple):
    """The scores of rows of tokens, and what they explain."""

    scores: Float[Array, "R T"]
    """What each token adds to the logit of the label; 0 on padding."""
    label: Int[Array, "R S"]
    """The label of each text whose logit is explained."""
    logits: Float[Array, "R S C"]
    gap: Float[Array, "R S"]
    """The sum of a text's scores, less the difference between its logit and the baseline's: 0 where the scores are
    complete."""


Function = Callable[[Params, Tokens, int], Attributions]

Baseline = Literal["pad", "mask", "zeros"]
"""What a text is compared with: every token of it replaced by [PAD] or by [MASK], or embeddings of 0."""


TOKENS_AT_ONCE = 1024
"""Of a text at several points of its way, or with several tokens replaced: as many as keep two cores of a CPU busy."""


def integrated_gradients(
    classifier: Classifier,
    *,
    label: str | None = None,
    steps: int = 50,
    baseline: Baseline = "pad",
    tokens_at_once: int = TOKENS_AT_ONCE,
) -> Function:
    """The mean gradient on the straight way from the baseline's embeddings to the text's, times that way.

    Sundararajan et al. 2017, Axiomatic Attribution for Deep Networks. The embeddings are what the first layer reads.
    The mean is by Gauss-Legendre quadrature, one forward and one backward a step; the gap tells what more steps would
    change. All steps of a row are one compiled call.

    Args:
        classifier: its config and tokenizer are used, and not its params.
        label: whose logit is explained; the best label of each text by default.
        steps: points on the way.
        baseline: where the way begins.
        tokens_at_once: of short rows, so many points are computed together; it changes no score.

    Raises:
        FlaxsentError: no such label or baseline, fewer than 1 step, or a family that flaxsent does not compute itself.

    >>> import flaxsent
    >>> clf = flaxsent.load(backend="native")
    >>> found = integrated_gradients(clf, label="POSITIVE")(clf.params, clf.tokenize(["so good"]), 1)
    >>> [clf.tokenizer.backend.id_to_token(id) for id in clf.tokenize(["so good"]).input_ids[0]]
    ['[CLS]', 'so', 'good', '[SEP]']
    >>> found.scores.shape, bool(found.scores[0, 2] > found.scores[0, 1] > 0), bool(abs(found.gap[0, 0]) < 1e-3)
    ((1, 4), True, True)
    """
    if type(steps) is not int or steps < 1:
        raise FlaxsentError(f"steps={steps!r}: expected 1 or more points on the way from the baseline.")
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    return _by_gradients(classifier, label, baseline, (nodes + 1) / 2, weights / 2, tokens_at_once)


def gradient_x_input(classifier: Classifier, *, label: str | None = None) -> Function:
    """The gradient at the text's embeddings, times the embeddings (Shrikumar et al. 2016): one backward.

    They are complete only where the model is linear; the gap is to a baseline of zeros.

    Raises: as `integrated_gradients`.
    """
    return _by_gradients(classifier, label, "zeros", np.ones(1), np.ones(1), 1)


def occlusion(
    classifier: Classifier,
    *,
    label: str | None = None,
    baseline: Baseline = "mask",
    tokens_at_once: int = TOKENS_AT_ONCE,
) -> Function:
    """How far the logit falls when a token is replaced by [MASK] (or [PAD]), each in turn (Zeiler & Fergus 2014).

    The token is replaced, and not left out of attention: what reads tokens in other ways, BART's decoder or a
    convolution, would still see it or a hole that no text has. That takes one forward for each token of the longest
    text of the rows, as the texts of a row do not see one another; of short rows, `tokens_at_once` are computed
    together. The gap is to the text with all its tokens replaced. Only the classifier's `logits` are used, so that any
    family will do, and an exported folder.

    Raises:
        FlaxsentError: no such label, no such baseline (embeddings of 0 are no tokens), or no [MASK] in the vocabulary.

    >>> import flaxsent
    >>> clf = flaxsent.load(backend="native")
    >>> found = occlusion(clf, label="NEGATIVE")(clf.params, clf.tokenize(["not good"]), 1)
    >>> bool(found.scores[0, 1] > 0)
    True
    """
    if baseline == "zeros":
        raise FlaxsentError("occlusion replaces tokens, and zeros are none; pass baseline='mask' or 'pad'.")
    index, replace = _index(classifier, label), _replacing(classifier, baseline)

    def function(params: Params, tokens: Tokens, num_segments: int) -> Attributions:
        tokens = jax.tree.map(jnp.asarray, tokens)
        length, ids_RT, new_RT = tokens.input_ids.shape[1], tokens.input_ids, replace(tokens).input_ids
        places_RT = jnp.where(tokens.segment_ids > 0, jax.vmap(_places)(tokens.segment_ids), -1)
        together = min(max(tokens_at_once // max(ids_RT.size, 1), 1), length)

        def rows(input_ids: Int[Array, "N R T"]) -> Tokens:
            tiled = jax.tree.map(lambda leaf: jnp.tile(leaf, (len(input_ids), 1)), tokens)
            return tiled._replace(input_ids=input_ids.reshape(-1, length))

        def logits(input_ids: Int[Array, "N R T"]) -> Float[Array, "N R S C"]:
            found = classifier.logits(params, rows(input_ids), num_segments)
            return found.reshape(*input_ids.shape[:2], *found.shape[1:])

        # One after the other, so that the forward is compiled once for both where one is computed at a time.
        ends = jnp.stack([ids_RT, new_RT])
        logits_RSC, none_RSC = jax.lax.map(logits, ends[:, None])[:, 0] if together == 1 else logits(ends)
        label_RS = _labels(logits_RSC, index)
        own_RS, asking = _of_label(logits_RSC, label_RS), classifier.asking

        def logit(input_ids: Int[Array, "N R T"]) -> Float[Array, "N R S"]:
            if asking is None:
                return jax.vmap(_of_label, in_axes=(0, None))(logits(input_ids), label_RS)
            read, _ = jax.vmap(asking.row)(rows(input_ids), jnp.tile(label_RS, (len(input_ids), 1)))
            found = asking.logit(asking.model.logits(params, read, num_segments))
            return found.reshape(*input_ids.shape[:2], num_segments)

        def hide(place: Int[Array, ""]) -> Int[Array, "R T"]:
            return jnp.where(places_RT == place, new_RT, ids_RT)

        def fall(place: Int[Array, ""], without_RS: Float[Array, "R S"]) -> Float[Array, "R T"]:
            return jnp.where(places_RT == place, _to_tokens(own_RS - without_RS, tokens), 0)

        def add(group: Int[Array, ""], scores_RT: Float[Array, "R T"]) -> Float[Array, "R T"]:
            places_N = group * together + jnp.arange(together)
            falls_NRT = jax.vmap(fall)(places_N, logit(jax.vmap(hide)(places_N)))
            return scores_RT + jnp.sum(falls_NRT, axis=0)

        num_groups = jnp.max(places_RT, initial=-1) // together + 1
        scores_RT = jax.lax.fori_loop(0, num_groups, add, jnp.zeros(places_RT.shape, jnp.float32))
        gap_RS = _sums(scores_RT, tokens, num_segments) - (own_RS - _of_label(none_RSC, label_RS))
        return Attributions(scores_RT, label_RS, logits_RSC, gap_RS)

    return function


def _by_gradients(
    classifier: Classifier,
    label: str | None,
    baseline: Baseline,
    nodes: Float[np.ndarray, " N"],
    weights: Float[np.ndarray, " N"],
    tokens_at_once: int,
) -> Function:
    """The weighted sum of the gradients at some points of the way from the baseline (0) to the text (1)."""
    index, asking = _index(classifier, label), classifier.asking
    model = classifier if asking is None else asking.model
    config = model.config
    others = {"exported": "an exported folder", "adapters": "a classifier of several adapters"}
    if model.backend in others or not models.is_native(config):
        what = others.get(model.backend, config.family)
        raise FlaxsentError(
            f"gradients at the embeddings need flaxsent's own encoder, which {what} has not; use occlusion."
        )
    replace = (lambda _: None) if baseline == "zeros" else _replacing(classifier, baseline)

    def of_row(along: _Way, params: Params, tokens: Tokens) -> Attributions:
        def by_best(logits_SC: Float[Array, "S C"]) -> _Logit:
            return functools.partial(_of_label, label=_labels(logits_SC, index))

        scores_T, logits_SC, rise_S = along(params, tokens, replace(tokens), by_best)
        gap_S = _sums(scores_T, tokens, len(rise_S)) - rise_S
        return Attributions(scores_T, _labels(logits_SC, index), logits_SC, gap_S)

    def of_row_by_asking(
        along: _Way, asking: Asking, params: Params, tokens: Tokens, logits_SL: Float[Array, "S L"]
    ) -> Attributions:
        label_S, hidden = _labels(logits_SL, index), replace(tokens)
        read, places_T = asking.row(tokens, label_S)
        start = None if hidden is None else asking.row(hidden, label_S)[0]
        scores_T, _, rise_S = along(params, read, start, lambda _: asking.logit)
        scores_T = jax.ops.segment_sum(scores_T, places_T, len(scores_T))
        return Attributions(scores_T, label_S, logits_SL, _sums(scores_T, tokens, len(rise_S)) - rise_S)

    def function(params: Params, tokens: Tokens, num_segments: int) -> Attributions:
        models.check(config, tokens)
        rows = jax.tree.map(jnp.asarray, tokens)
        most = min(max(tokens_at_once // max(tokens.input_ids.size, 1), 1), len(nodes))
        # The last points may be fewer, and are filled up with some of weight 0.
        together = min(range(most, most // 2, -1), key=lambda count: -(-len(nodes) // count) * count)
        more = -len(nodes) % together
        points = [jnp.asarray(np.pad(one, (0, more)), jnp.float32).reshape(-1, together) for one in (nodes, weights)]
        along = functools.partial(_along, points=(points[0], points[1]), config=config, num_segments=num_segments)
        with jax.default_matmul_precision("highest"):
            if asking is None:
                return jax.vmap(functools.partial(of_row, along, params))(rows)
            logits_RSL = classifier.logits(params, rows, num_segments)
            return jax.vmap(functools.partial(of_row_by_asking, along, asking, params))(rows, logits_RSL)

    return function


_Logit = Callable[[Float[Array, "S C"]], Float[Array, " S"]]
_Way = Callable[..., tuple[Float[Array, " T"], Float[Array, "S C"], Float[Array, " S"]]]


def _along(
    params: Params,
    tokens: Tokens,
    start: Tokens | None,
    logit_of: Callable[[Float[Array, "S C"]], _Logit],
    *,
    points: tuple[Float[Array, "M N"], Float[Array, "M N"]],
    config: ModelConfig,
    num_segments: int,
) -> tuple[Float[Array, " T"], Float[Array, "S C"], Float[Array, " S"]]:
    """The scores of a row's tokens on the way from those of `start`, or from zeros, and the logits of its texts.

    `logit_of` the texts' logits takes the logit that is explained from any; third, how far this one rises. Of the
    nodes and weights of `points`, N are computed together.
    """

    def logits(embedded: PyTree[Float[Array, "T D"]]) -> Float[Array, "S C"]:
        states = models.encode(params, embedded, tokens, config=config, num_segments=num_segments)
        return models.head(params, states[-1], config=config)

    text = models.embed(params, tokens, config=config)
    origin = jax.tree.map(jnp.zeros_like, text) if start is None else models.embed(params, start, config=config)
    way = jax.tree.map(lambda end, begin: end.astype(jnp.float32) - begin.astype(jnp.float32), text, origin)
    # One after the other, so that the encoder is compiled once for both.
    of_text, of_start = jax.lax.map(logits, jax.tree.map(lambda *ends: jnp.stack(ends), text, origin))
    logit = logit_of(of_text)
    is_there_S = jnp.arange(1, num_segments + 1) <= jnp.max(tokens.segment_ids)

    def explained(embedded: PyTree[Float[Array, "T D"]]) -> Float[Array, ""]:
        # No text sees another, so that the gradient of the sum is each text's own. Where there is no text, the head
        # reads the first token of the row.
        return jnp.sum(jnp.where(is_there_S, logit(logits(embedded)), 0))

    def gradient_at(node: Float[Array, ""]) -> PyTree[Float[Array, "T D"]]:
        there = jax.tree.map(
            lambda begin, one: (begin.astype(jnp.float32) + node * one).astype(begin.dtype), origin, way
        )
        return jax.grad(explained)(there)

    def step(sums: PyTree, points: tuple[Float[Array, " N"], Float[Array, " N"]]) -> tuple[PyTree, None]:
        nodes_N, weights_N = points
        gradients = jax.vmap(gradient_at)(nodes_N)
        return jax.tree.map(
            lambda one, other: one + jnp.einsum("N,N...->...", weights_N, other.astype(jnp.float32)), sums, gradients
        ), None

    gradient, _ = jax.lax.scan(step, jax.tree.map(jnp.zeros_like, way), points)
    scores_T = _by_token(jax.tree.map(lambda one, other: jnp.sum(one * other, axis=-1), way, gradient), tokens)
    return scores_T, of_text, logit(of_text) - logit(of_start)


def _index(classifier: Classifier, label: str | None) -> int | None:
    labels = classifier.config.labels
    if label is not None and label not in labels:
        raise FlaxsentError(f"there is no label {label!r}; this checkpoint has {', '.join(labels)}.")
    return None if label is None else labels.index(label)


def _replacing(classifier: Classifier, baseline: Baseline) -> Callable[[Tokens], Tokens]:
    """All tokens of a text replaced by one, but for those that the tokenizer adds to any text."""
    if baseline not in ("pad", "mask"):
        raise FlaxsentError(f"baseline={baseline!r}: expected 'pad', 'mask' or 'zeros'.")
    tokenizer, size = classifier.tokenizer, classifier.config.vocab_size
    new = tokenizer.pad_token_id
    if baseline == "mask":
        vocabulary = tokenizer.backend.get_vocab()
        masks = [vocabulary[token] for token in ("[MASK]", "<mask>") if vocabulary.get(token, size) < size]
        if not masks:
            raise FlaxsentError("this checkpoint's vocabulary has neither [MASK] nor <mask>; pass baseline='pad'.")
        new = masks[0]
    added = {id for encoding in tokenizer.backend.encode_batch(["", ("", "")]) for id in encoding.ids}

    def replace(tokens: Tokens) -> Tokens:
        ids = tokens.input_ids
        is_added = jnp.zeros(ids.shape, bool)
        for one in sorted(added):
            is_added |= ids == one
        return tokens._replace(input_ids=jnp.where(is_added, ids, jnp.full_like(ids, new)))

    return replace


def _labels(logits: Float[Array, "*texts C"], index: int | None) -> Int[Array, "*texts"]:
    best = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return best if index is None else jnp.full_like(best, index)


def _of_label(logits: Float[Array, "*texts C"], label: Int[Array, "*texts"]) -> Float[Array, "*texts"]:
    return jnp.take_along_axis(logits, label[..., None], axis=-1)[..., 0]


def _to_tokens(values_RS: Float[Array, "R S"], tokens: Tokens) -> Float[Array, "R T"]:
    """The value of its text at each token; what stands on padding has no meaning."""
    return jnp.take_along_axis(values_RS, jnp.maximum(tokens.segment_ids - 1, 0), axis=-1)


def _sums(scores: Float[Array, "*rows T"], tokens: Tokens, num_segments: int) -> Float[Array, "*rows S"]:
    """What the tokens of each text add up to."""
    texts = range(1, num_segments + 1)
    return jnp.stack([jnp.sum(jnp.where(tokens.segment_ids == text, scores, 0), axis=-1) for text in texts], axis=-1)


def _by_token(scores: PyTree[Float[Array, " T"]], tokens: Tokens) -> Float[Array, " T"]:
    """What is said of the places of the embeddings, by the tokens that stand there; 0 on padding.

    BART's decoder reads each token one place later, and first of all the last one.
    """
    own_T, *later = jax.tree.leaves(scores)
    places_T, at_T = _places(tokens.segment_ids), jnp.arange(own_T.shape[0])
    is_last_T = jnp.append(places_T[1:] == 0, True)
    next_T = jnp.where(is_last_T, at_T - places_T, at_T + 1)
    return jnp.where(tokens.segment_ids > 0, sum([one_T[next_T] for one_T in later], start=own_T), 0)


def _places(segment_ids_T: Int[AnyArray, " T"]) -> Int[Array, " T"]:
    """How many tokens of its text stand before each: positions do not tell, where a token has the id of padding.

    >>> _places(jnp.array([1, 1, 2, 2, 2, 0])).tolist()
    [0, 1, 0, 1, 2, 0]
    """
    at_T = jnp.arange(segment_ids_T.shape[0])
    is_first_T = jnp.append(True, segment_ids_T[1:] != segment_ids_T[:-1])
    return at_T - jax.lax.cummax(jnp.where(is_first_T, at_T, 0))
