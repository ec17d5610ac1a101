"""Each transform on what each other one gives, in the engine: texts in packed rows get what they get alone.

What does not go together is refused in one line: `REFUSED` says what.
"""

import dataclasses

import jax
import numpy as np
import pytest

import flaxsent
from flaxsent.base import FlaxsentError
from flaxsent.engine import Engine
from flaxsent.transforms import (
    ensemble,
    gradient_x_input,
    integrated_gradients,
    join,
    last_inputs,
    mean,
    monte_carlo_dropout,
    occlusion,
    quantize,
    tangent_kernel,
    uncertainty,
    windows,
    zero_shot,
)
from flaxsent.transforms.embedded import with_embeddings

TEXTS = ["the film", "so much good", "not bad", "a", "this film hate good so much", "long film " * 30]
SMALL = {"num_hidden_layers": 1, "hidden_size": 12, "intermediate_size": 16}


def in_int8(classifier):
    return dataclasses.replace(classifier, params=quantize(classifier.params))


def with_labels(classifier):
    return zero_shot(classifier, ["good", "bad"], template="it is {}", entailment="LABEL_0")


def in_windows(classifier):
    return windows(classifier, stride=2)


MADE = {
    "int8": in_int8,
    "labels": with_labels,
    "windows": in_windows,
    "labels of int8": lambda classifier: with_labels(in_int8(classifier)),
    "windows of int8": lambda classifier: in_windows(in_int8(classifier)),
    "labels of windows": lambda classifier: with_labels(in_windows(classifier)),
    "windows of labels": lambda classifier: in_windows(with_labels(classifier)),
}
FUNCTIONS = {
    "scores": lambda classifier: classifier.scores,
    "embeddings": with_embeddings,
    "occlusion": occlusion,
    "integrated gradients": lambda classifier: integrated_gradients(classifier, steps=2),
    "gradient x input": gradient_x_input,
    "draws": lambda classifier: mean(monte_carlo_dropout(classifier.scores, num_samples=2)),
    "uncertainty": lambda classifier: uncertainty(
        monte_carlo_dropout(classifier.scores, num_samples=2), score_function=classifier.config.score_function
    ),
    "last inputs": lambda classifier: last_inputs(classifier.logits),
    "tangent kernel": lambda classifier: tangent_kernel(classifier.logits),
    "members": lambda classifier: mean(ensemble(classifier.scores)),
}
OF_DRAWS = ("draws", "uncertainty")
BY_TOKEN = ("occlusion", "integrated gradients", "gradient x input")
OFTEN = ("scores", "members")
"""In the default run, of int8 params and of windows."""
REFUSED = {
    ("labels", "embeddings"): "another vector with each of the labels",
    **dict.fromkeys([("windows", name) for name in BY_TOKEN], "entry for each token|one a token|each token"),
    ("int8", "tangent kernel"): "int8",
}


# Where two transforms are applied one after the other, one function of each kind says whether they go together.
OF_TWO = ("scores", "integrated gradients", "draws", "members")
PAIRS = [(made, name) for made in MADE for name in FUNCTIONS if " of " not in made or name in OF_TWO]


@pytest.fixture(scope="module")
def classifier(tiny_folder):
    return flaxsent.load(tiny_folder("bert", **SMALL), backend="native")


def refusal(made, name):
    return next((told for (part, of), told in REFUSED.items() if part in made and of == name), None)


@pytest.mark.parametrize(
    ("made", "name"),
    [
        pytest.param(made, name, marks=() if made in ("int8", "windows") and name in OFTEN else pytest.mark.slow)
        for made, name in PAIRS
    ],
)
def test_what_a_text_gets_is_what_it_gets_alone(classifier, made, name):
    composed = MADE[made](classifier)
    if name == "members":
        other = dataclasses.replace(classifier, params=jax.tree.map(lambda leaf: 0.9 * leaf, classifier.params))
        composed = join([composed, MADE[made](other)])
    if (told := refusal(made, name)) is not None:
        with pytest.raises(FlaxsentError, match=told):
            run(composed, name, [TEXTS])
        return
    (together,) = run(composed, name, [TEXTS])
    assert all(np.isfinite(values).all() for leaf in jax.tree.leaves(together) for values in leaf)
    if name in OF_DRAWS:  # a text gets other draws at another place in its row
        return
    alone = run(composed, name, [[text] for text in TEXTS], layout="padded")
    for leaf, *leaves in zip(jax.tree.leaves(together), *map(jax.tree.leaves, alone), strict=True):
        for mine, (theirs,) in zip(leaf, leaves, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=2e-4, atol=2e-5)  # float32 sums in rows of other lengths


def run(classifier, name, calls, *, layout="packed"):
    """What each of the calls gives, by one engine, which compiles once."""
    function = FUNCTIONS[name](classifier)
    with Engine(classifier, function=function, layout=layout, row_lengths=[40], tokens_per_step=80) as engine:
        return [engine(texts) for texts in calls]
