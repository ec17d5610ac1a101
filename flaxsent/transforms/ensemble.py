"""Several members instead of one, and what they do not agree on.

A member is a checkpoint (`ensemble`, of `stack`ed params) or a draw of dropout (`monte_carlo_dropout`). Either gives
the members' results on an axis N after the texts, which the functions of probabilities below take away again.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from jaxtyping import Array, Float, PyTree

from flaxsent import models
from flaxsent.base import AnyArray, FlaxsentError, Params, ScoreFunction, Tokens
from flaxsent.classifier import Classifier, Function


def stack(members: Sequence[Params]) -> dict[str, Any]:
    """One tree of the params of N members, with an axis N in front of each array.

    Raises:
        FlaxsentError: there are none, or one has other arrays than the first.

    >>> stack([{"bias": jnp.zeros(3)}, {"bias": jnp.ones(3)}])["bias"].shape
    (2, 3)
    """
    if not members:
        raise FlaxsentError("an ensemble of no members: expected the params of one or more.")
    expected = _described(members[0])
    for index, params in enumerate(members[1:], start=1):
        found = _described(params)
        for path in sorted(expected.keys() | found.keys()):
            if expected.get(path) != found.get(path):
                raise FlaxsentError(
                    f"member {index} of the ensemble has {found.get(path, 'nothing')} at {path}, and the first has "
                    f"{expected.get(path, 'nothing')}; expected checkpoints of one architecture and one dtype."
                )
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(dict, members))


def _described(params: Params) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): f"{leaf.dtype}{[*leaf.shape]}" for path, leaf in leaves
    }


def soup(stacked: Params) -> Params:
    """The mean of the members' weights (Wortsman et al. 2022, uniform soup): params of one member, as fast as one.

    Its logits are good only if the members were fine-tuned from the same weights.

    Raises:
        FlaxsentError: the params are in int8, each with scales of its own.

    >>> soup(stack([{"bias": jnp.zeros(2)}, {"bias": jnp.ones(2)}]))["bias"].tolist()
    [0.5, 0.5]
    """
    if models.is_int8(stacked):
        raise FlaxsentError("params in int8 have no mean, as each has its own scales; quantize the soup instead.")
    return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0, dtype=jnp.float32).astype(leaf.dtype), stacked)


def join(classifiers: Sequence[Classifier]) -> Classifier:
    """The first of several classifiers with the stacked params of all, for `Engine` to put on the devices.

    Only functions that take stacked params can use it: `ensemble(classifier.scores)`.

    Raises:
        FlaxsentError: they have not the same labels, architecture and tokenizer.
    """
    first, expected = classifiers[0], _facts(classifiers[0])
    for index, other in enumerate(classifiers[1:], start=1):
        found = _facts(other)
        for name in expected:
            if name in found and found[name] != expected[name]:
                is_short = name != "tokenizer"
                told = f" ({found[name]!r:.99}, and not {expected[name]!r:.99})" if is_short else ""
                raise FlaxsentError(
                    f"member {index} of the ensemble has another {name} than the first{told}; expected checkpoints "
                    "with the same labels, architecture and tokenizer."
                )
    params = stack([classifier.params for classifier in classifiers])
    is_same = len({classifier.config.label_thresholds for classifier in classifiers}) == 1  # others are of other scores
    config = first.config if is_same else dataclasses.replace(first.config, label_thresholds=None)
    return dataclasses.replace(first, params=params, config=config)


_NOT_OF_THE_FORWARD = re.compile(
    "^_|version|dtype|dropout|label|initializer|cache|checkpointing|architectures|task|problem_type|threshold"
)
"""Keys of config.json that say where a checkpoint comes from, or how it was trained."""


def _facts(classifier: Classifier) -> dict[str, Any]:
    """What two classifiers must have in common: labels, tokenizer, and the keys of config.json that change numbers."""
    config, tokenizer = classifier.config, classifier.tokenizer
    keys = {**json.loads(config.json), **{name: value for name, value in vars(config).items() if name != "json"}}
    backend = tokenizer.backend
    rules = {name: value for name, value in vars(tokenizer).items() if name not in ("backend", "files")}
    rules["vocabulary"] = backend.to_str() if isinstance(backend, tokenizers.Tokenizer) else tokenizer.files
    return {
        **{name: value for name, value in keys.items() if not _NOT_OF_THE_FORWARD.search(name)},
        "labels": config.labels,
        "score function": config.score_function,
        "tokenizer": rules,
    }


def ensemble(function: Function) -> Function:
    """Of stacked params, what the function gives by each member: `[R, S, N, ...]`.

    `Engine(join(classifiers), function=ensemble(classifiers[0].scores))` gives `[B, N, C]`.

    >>> def scores(params, tokens, num_segments):
    ...     return params["kernel"] * jnp.ones((1, num_segments, 1))
    >>> members, row = ensemble(scores), Tokens(*[jnp.ones((1, 4), int)] * 4)
    >>> stacked = stack([{"kernel": jnp.array(0.25)}, {"kernel": jnp.array(0.75)}])
    >>> members(stacked, row, 1).tolist(), mean(members)(stacked, row, 1).tolist()
    ([[[[0.25], [0.75]]]], [[[0.5]]])
    """
    return lambda params, tokens, num_segments: _of_each(lambda member: function(member, tokens, num_segments), params)


def monte_carlo_dropout(function: Callable[..., PyTree[Array]], *, num_samples: int, seed: int = 0) -> Function:
    """What `function(params, tokens, num_segments, key)` gives by each of N draws of dropout: `[R, S, N, ...]`.

    The draws of Gal & Ghahramani 2016, Dropout as a Bayesian Approximation; the same for the same seed and rows. Which
    of them a text gets depends on where it stands in its row, so that other rows give it another sample.

    Raises:
        FlaxsentError: fewer than two samples, which have no spread.

    >>> def scores(params, tokens, num_segments, key):
    ...     return jax.random.bernoulli(key, 0.5, (1, num_segments, 1)).astype(float)
    >>> draws = monte_carlo_dropout(scores, num_samples=5)({}, Tokens(*[jnp.ones((1, 4), int)] * 4), 1)
    >>> draws.shape, bool(0 < draws.mean() < 1)
    ((1, 1, 5, 1), True)
    """
    if type(num_samples) is not int or num_samples < 2:
        raise FlaxsentError(f"num_samples={num_samples!r}: expected 2 or more draws of dropout.")

    def drawn(params: Params, tokens: Tokens, num_segments: int) -> PyTree[Array]:
        keys = jax.random.split(jax.random.key(seed), num_samples)
        return _of_each(lambda key: function(params, tokens, num_segments, key), keys)

    return drawn


def members_of(classifiers: Sequence[Classifier], *, num_samples: int = 20) -> tuple[Classifier, Function]:
    """The classifier for an engine, and the function that gives its members' scores: `[R, S, N, C]`.

    Several classifiers are the members; of one, `num_samples` draws of dropout are.

    Raises:
        FlaxsentError: as `join` or `monte_carlo_dropout`, or one classifier has no dropout.
    """
    if len(classifiers) > 1:
        return join(classifiers), ensemble(classifiers[0].scores)
    config = classifiers[0].config
    keys = {**json.loads(config.json), **vars(config)}
    rates = [value for key, value in keys.items() if "dropout" in key and isinstance(value, int | float)]
    if not any(rate > 0 for rate in rates):
        raise FlaxsentError(
            "this checkpoint has no dropout to draw from, by its config.json; give several checkpoints."
        )
    return classifiers[0], monte_carlo_dropout(classifiers[0].scores, num_samples=num_samples)


def _of_each(function: Callable[[Any], PyTree[Array]], members: PyTree[Array]) -> PyTree[Array]:
    """`vmap` over the members, one after another, with their axis after the texts (or tokens) of the rows.

    A step of the engine is as large as is good for one member: all at once, 20 draws of dropout by the embedded
    checkpoint took 2.3 GB instead of 0.1 and twice the time on a CPU.
    """
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 2), jax.lax.map(function, members))


def mean(members: Function) -> Function:
    """The mean over the members of what a function gives by each: a function like that of one member."""
    return lambda params, tokens, num_segments: jax.tree.map(
        lambda leaf: jnp.mean(leaf, axis=2), members(params, tokens, num_segments)
    )


class Uncertainty(NamedTuple):
    """What the members say of each text, `[R, S, ...]`; entropies are in nats."""

    scores: Float[AnyArray, "*texts C"]
    """The mean of the members' probabilities."""
    spread: Float[AnyArray, "*texts C"]
    entropy: Float[AnyArray, "*texts_or_C"]
    mutual_information: Float[AnyArray, "*texts_or_C"]
    disagreement: Float[AnyArray, "*texts_or_C"]


def uncertainty(members: Function, *, score_function: ScoreFunction) -> Function:
    """Of a function that gives the members' probabilities, `[R, S, N, C]`: their `Uncertainty`, in one compiled call.

    `score_function` is `config.score_function`: what made the probabilities says what they are of.

    Raises:
        FlaxsentError: it is "none", as of regression, whose values have no entropy.
    """
    _check_probabilities(score_function)

    def measured(params: Params, tokens: Tokens, num_segments: int) -> Uncertainty:
        probs = members(params, tokens, num_segments)
        measures = (entropy, mutual_information, disagreement)
        each = [measure(probs, score_function=score_function) for measure in measures]
        return Uncertainty(jnp.mean(probs, axis=-2), spread(probs), *each)

    return measured


MEASURES = ("entropy", "mutual_information", "disagreement")


def columns(found: Uncertainty) -> dict[str, Float[np.ndarray, " B"]]:
    """The three measures of each of B texts, for a table: by sigmoid, those of the label with the best score."""
    best_B1 = np.asarray(found.scores).argmax(axis=-1)[:, None]
    values = {name: np.asarray(getattr(found, name)) for name in MEASURES}
    return {
        name: value if value.ndim == 1 else np.take_along_axis(value, best_B1, axis=1)[:, 0]
        for name, value in values.items()
    }


def spread(values: Float[Array, "*texts N C"]) -> Float[Array, "*texts C"]:
    """The standard deviation over the members: of probabilities, or of the values of regression.

    >>> spread(jnp.array([[0.25], [0.75]])).tolist()
    [0.25]
    """
    return jnp.std(values, axis=-2)


def entropy(probs: Float[Array, "*texts N C"], *, score_function: ScoreFunction) -> Float[Array, "*texts_or_C"]:
    """The predictive entropy, H[E p], in nats: of each text, or by sigmoid of each of its labels.

    Raises: as `uncertainty`.

    >>> agreed = jnp.array([[0.5, 0.5], [0.5, 0.5]])
    >>> torn = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> for probs in (agreed, torn):
    ...     print(*(f"{measure(probs, score_function='softmax'):.2f}"
    ...             for measure in (entropy, mutual_information, disagreement)))
    0.69 0.00 0.00
    0.69 0.69 0.50
    """
    return _entropy(jnp.mean(probs, axis=-2), score_function)


def mutual_information(
    probs: Float[Array, "*texts N C"], *, score_function: ScoreFunction
) -> Float[Array, "*texts_or_C"]:
    """What the label would tell of the member, H[E p] − E H[p], in nats: BALD (Houlsby et al. 2011).

    It is the part of the entropy that more data would take away; the rest is in the texts.

    Raises: as `uncertainty`.
    """
    own = _entropy(jnp.moveaxis(probs, -2, 0), score_function)
    return jnp.maximum(entropy(probs, score_function=score_function) - jnp.mean(own, axis=0), 0)  # rounding gives −1e-8


def disagreement(probs: Float[Array, "*texts N C"], *, score_function: ScoreFunction) -> Float[Array, "*texts_or_C"]:
    """The share of the members whose decision is not that of most of them: Freeman's variation ratio.

    A member decides for its best label, or by sigmoid for or against each label, at 0.5.

    Raises: as `uncertainty`.
    """
    _check_probabilities(score_function)
    if score_function == "sigmoid":
        in_favour = jnp.mean(probs > 0.5, axis=-2, dtype=jnp.float32)
        return jnp.minimum(in_favour, 1 - in_favour)
    votes = jax.nn.one_hot(jnp.argmax(probs, axis=-1), probs.shape[-1])
    return 1 - jnp.max(jnp.mean(votes, axis=-2), axis=-1)


def _entropy(probs: Float[Array, "*texts C"], score_function: ScoreFunction) -> Float[Array, "*texts_or_C"]:
    _check_probabilities(score_function)
    own = jax.scipy.special.entr(probs)
    return own + jax.scipy.special.entr(1 - probs) if score_function == "sigmoid" else own.sum(axis=-1)


def _check_probabilities(score_function: ScoreFunction) -> None:
    if score_function == "none":
        raise FlaxsentError("scores that are no probabilities, as of regression, have no entropy; they have a spread.")
