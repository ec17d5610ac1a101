"""What a text is labelled, and the vector that decided it, in one forward."""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Float

from flaxsent.base import AnyArray, Params, Tokens
from flaxsent.classifier import Classifier


class Embedded(NamedTuple):
    """Of texts: `[R, S]` in rows, `[B]` from an engine."""

    scores: Float[AnyArray, "*texts C"]
    embedding: Float[AnyArray, "*texts D"]
    """The vector that the head reads."""


def with_embeddings(classifier: Classifier) -> Callable[[Params, Tokens, int], Embedded]:
    """`classifier.scores` and `classifier.embeddings` as one function, for `Engine`; the encoder runs once.

    Raises: as `classifier.embeddings`, when it is called.

    >>> import flaxsent
    >>> clf = flaxsent.load(backend="native")
    >>> found = with_embeddings(clf)(clf.params, clf.tokenize(["so good"]), 1)
    >>> found.scores.shape, found.embedding.shape == (1, 1, clf.config.hidden_size)
    ((1, 1, 2), True)
    """

    def function(params: Params, tokens: Tokens, num_segments: int) -> Embedded:
        # Compiled together, the two share all that is alike.
        return Embedded(
            classifier.scores(params, tokens, num_segments), classifier.embeddings(params, tokens, num_segments)
        )

    return function
