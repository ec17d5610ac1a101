"""Texts beyond the limit, read in overlapping windows whose values are pooled, rather than cut.

`windows(classifier)` is a classifier whose `classify`, `Engine`, jobs and evaluation read all of a text. Let its window
w hold n_w tokens of the text (a token of two windows counts in both; special tokens and the other text of a pair do not
count) and have logits z_w and scores p_w = postprocess(z_w). Then the scores of the text are

    mean_logits         postprocess(Σ n_w z_w / Σ n_w)
    max_logits          postprocess(max_w z_w), the maximum of each label by itself
    mean_probabilities  Σ n_w p_w / Σ n_w
    max_probabilities   max_w p_w, of each label by itself; where scores are a softmax, divided by their sum

Of any other function of the engine, the values are pooled as they are, by the same mean or maximum. A text that fits is
one window, the row that it would be otherwise, and has exactly what the function gives for it.
"""

from typing import Literal

import jax
import numpy as np
from jaxtyping import Float, Int, PyTree, Shaped

from flaxsent.base import AnyArray, FlaxsentError, ScoreFunction
from flaxsent.classifier import Classifier, Outputs, with_limit, with_windows
from flaxsent.tokenization import PAIRS, POOLINGS, Windowed, Windows

Pooling = Literal["mean_logits", "max_logits", "mean_probabilities", "max_probabilities"]


def windows(
    classifier: Classifier,
    *,
    length: int | None = None,
    stride: int = 64,
    pooling: Pooling = "mean_logits",
    pairs: Literal["longer", "second"] = "longer",
) -> Classifier:
    """The same classifier, for texts of any length; its `tokenize` still gives one row a text, and cuts it.

    Args:
        classifier: what scores each window.
        length: tokens of a window, special tokens included, and of the longest text that is read whole; by default as
            many as the checkpoint takes. A checkpoint that was trained on sentences reads shorter windows better.
        stride: how many tokens of the window before are in each window, as in Hugging Face tokenizers.
        pooling: what is made of the logits, or of the probabilities, of the windows.
        pairs: which text of a pair is cut into windows. Each window has the other text, too: whole, or, if it takes
            more than half of the room, its half, which is said.

    Raises:
        FlaxsentError: the checkpoint takes no windows of this length, `stride` is not below it, or a name is unknown.

    >>> import flaxsent
    >>> text = "a bad start , " + "and then it is wonderful , moving and funny . " * 99
    >>> cut = flaxsent.load(backend="native")
    >>> len(windows(cut, stride=64).tokenizer.encode([text]).input_ids[0])  # of 1094
    512
    >>> flaxsent.classify([text], windows(cut, stride=64))[0].label
    'POSITIVE'
    """
    if length is not None:
        classifier = with_limit(with_windows(classifier, None), length)  # whose stride need not fit
    for name, value, known in (("pooling", pooling, POOLINGS), ("pairs", pairs, PAIRS)):
        if value not in known:
            raise FlaxsentError(f"{name}={value!r}: expected one of {', '.join(known)}.")
    return with_windows(classifier, Windows(stride, pooling, pairs))


def pool(
    values: PyTree[Shaped[AnyArray, "W ..."]],
    texts: Int[AnyArray, " W"],
    weights: Float[AnyArray, " W"],
    num_texts: int,
    *,
    by: Literal["mean", "max"],
) -> PyTree[Float[AnyArray, "B ..."]]:
    """Values of texts from those of their windows, in float32: of NumPy arrays on the host, else under any transform.

    `texts` says which text each window is of, and `weights` how much it counts in the mean. Each text has a window.

    >>> pool(np.array([[1.0], [4.0], [7.0]]), np.array([0, 0, 1]), np.array([2.0, 1.0, 5.0]), 2, by="mean").tolist()
    [[2.0], [7.0]]
    """
    shares = weights / _sum(weights, texts, num_texts)[texts]  # 1 exactly, of a text that is one window

    def pooled(leaf: Shaped[AnyArray, "W ..."]) -> Float[AnyArray, "B ..."]:
        leaf = leaf.astype(np.float32)
        if by == "max":
            return _max(leaf, texts, num_texts)
        return _sum(leaf * shares.reshape(-1, *[1] * (leaf.ndim - 1)), texts, num_texts)

    return jax.tree.map(pooled, values)


def _sum(values: Float[AnyArray, "W ..."], texts: Int[AnyArray, " W"], num_texts: int) -> Float[AnyArray, "B ..."]:
    if not isinstance(values, np.ndarray):
        return jax.ops.segment_sum(values, texts, num_texts)
    found = np.zeros((num_texts, *values.shape[1:]), np.float32)
    np.add.at(found, texts, values)  # compiles nothing: the number of windows is another in each batch
    return found


def _max(values: Float[AnyArray, "W ..."], texts: Int[AnyArray, " W"], num_texts: int) -> Float[AnyArray, "B ..."]:
    if not isinstance(values, np.ndarray):
        return jax.ops.segment_max(values, texts, num_texts)
    found = np.full((num_texts, *values.shape[1:]), -np.inf, np.float32)
    np.maximum.at(found, texts, values)
    return found


def pooled(values: PyTree[Shaped[AnyArray, "W ..."]], windowed: Windowed, *, pooling: Pooling) -> PyTree:
    """What the engine makes of a function's values of windows."""
    by = "max" if pooling.startswith("max") else "mean"
    return pool(values, windowed.texts, windowed.weights, windowed.num_texts, by=by)


def pooled_scores(
    outputs: Outputs, windowed: Windowed, *, pooling: Pooling, score_function: ScoreFunction
) -> Float[np.ndarray, "B C"]:
    """The scores of texts from the outputs of their windows, on the host, by the formulas above."""
    logits_BC, scores_BC = pooled(outputs, windowed, pooling=pooling)
    is_long_B = windowed.is_long
    if not is_long_B.any() or pooling == "mean_probabilities":
        return scores_BC
    if pooling == "max_probabilities":
        made_BC = scores_BC / scores_BC.sum(axis=-1, keepdims=True) if score_function == "softmax" else scores_BC
    else:
        from scipy import special  # takes a while, which only long texts need

        match score_function:
            case "softmax":
                made_BC = special.softmax(logits_BC, axis=-1)
            case "sigmoid":
                made_BC = special.expit(logits_BC)
            case "none":
                made_BC = logits_BC
    return np.where(is_long_B[:, None], made_BC, scores_BC)
