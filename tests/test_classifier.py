"""The flow compared with itself: padding, packing, order, jit, vmap and dtype change no answer."""

import dataclasses
import functools
import itertools
import json
import pickle
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import flaxsent
from flaxsent.base import Encodings, Tokens
from flaxsent.models import flax_auto
from flaxsent.packing import list_steps, pack, pad, select, unpack
from flaxsent.parity.random_checkpoints import CONFIGS
from flaxsent.postprocessing import decode, postprocess
from tests.conftest import AWKWARD_TEXTS, texts_of_lengths

# float32 sums of another order when rows have another length; logits are of size 1 to 10.
TOLERANCE = 2e-5

LIMIT = 40
SINGLES = texts_of_lengths([0, 1, 5, 17, 30, 38])  # the last fills the 40 positions
PAIRS = list(zip(texts_of_lengths([3, 0, 9, 20, 1, 12], 1), texts_of_lengths([4, 7, 0, 17, 1, 5], 2), strict=True))
TEXTS = [text for both in zip(SINGLES, PAIRS, strict=True) for text in both]

FLAX = pytest.param("flax", marks=pytest.mark.flax_auto)
each_backend = pytest.mark.parametrize("backend", ["native", FLAX])
each_family_and_backend = pytest.mark.parametrize(
    ("family", "backend"),
    [
        ("bert", "native"),
        ("distilbert", "native"),
        pytest.param("bert", "flax", marks=pytest.mark.flax_auto),
        pytest.param("distilbert", "flax", marks=pytest.mark.flax_auto),
    ],
)


@pytest.fixture(scope="module")
def loaded(tiny_folder):
    """`loaded(family, backend)`: one classifier for all tests, so that they share what is compiled.

    Of two layers, for what leaks in one to be seen by the next.
    """

    @functools.cache
    def load(family, backend, dtype="float32"):
        num_layers = {"n_layers" if family == "distilbert" else "num_hidden_layers": 2}
        return flaxsent.load(tiny_folder(family, **num_layers), backend=backend, dtype=dtype)

    return load


@pytest.fixture
def classifier(loaded):
    return loaded("bert", "native")


# These tests spend their time compiling. What `classify` and `predict` compile below is optimised as for users.
FAST_COMPILE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
jit = functools.cache(functools.partial(jax.jit, compiler_options=FAST_COMPILE))


def logits_of(classifier, texts, length=None):
    return np.asarray(jit(classifier.forward)(classifier.params, classifier.tokenize(texts, length=length)))


def packed_logits(classifier, encodings, *, row_length):
    tokens, placement = pack(encodings, row_length=row_length)
    num_segments = int(placement.segment.max()) + 1
    assert num_segments > 1
    forward = jax.jit(classifier.forward_packed, static_argnums=2, compiler_options=FAST_COMPILE)
    return unpack(np.asarray(forward(classifier.params, tokens, num_segments)), placement)


# layouts


@each_family_and_backend
def test_padded_equals_alone(loaded, family, backend):
    classifier = loaded(family, backend)
    padded = logits_of(classifier, TEXTS, LIMIT)
    assert 1 < np.abs(padded).max() < 20, "a random model of another size than trained ones"
    for index in (0, 5, 10):
        alone = logits_of(classifier, [TEXTS[index]])[0]
        assert np.abs(alone - padded[index]).max() <= TOLERANCE, TEXTS[index]


@pytest.mark.parametrize("family", ["bert", "distilbert", "electra", "roberta"])
def test_packed_equals_padded(loaded, family):
    """In rows longer than any text: positions restart in each, or they would leave their table."""
    classifier = loaded(family, "native")
    encodings = classifier.tokenizer.encode(TEXTS)
    assert (encodings.num_truncated, max(map(len, encodings.input_ids))) == (0, LIMIT)
    packed = packed_logits(classifier, encodings, row_length=64)
    assert np.abs(packed - logits_of(classifier, TEXTS, LIMIT)).max() <= TOLERANCE


@each_family_and_backend
def test_neither_more_padding_nor_the_order_changes_a_text(loaded, family, backend):
    classifier = loaded(family, backend)
    texts = sorted(TEXTS, key=lambda text: len(classifier.tokenizer.encode([text]).input_ids[0]))[:8]
    texts += texts[:4]  # as many as TEXTS, so that the shape is compiled already
    short = classifier.tokenize(texts)
    assert short.input_ids.shape[-1] <= LIMIT / 2
    expected = np.asarray(jit(classifier.forward)(classifier.params, short))
    assert np.abs(logits_of(classifier, texts, LIMIT) - expected).max() <= TOLERANCE
    order = np.random.default_rng(0).permutation(len(texts))
    permuted = logits_of(classifier, [texts[index] for index in order], LIMIT)
    assert np.abs(permuted - expected[order]).max() <= TOLERANCE


@each_backend
def test_hidden_states_have_the_shape_of_the_tokens_and_do_not_see_padding(loaded, backend):
    classifier = loaded("bert", backend)
    short, long = (classifier.tokenize(["so good", "i hate this film"], length=length) for length in (8, 20))
    expected = jit(classifier.hidden_states)(classifier.params, short)
    ours = jit(classifier.hidden_states)(classifier.params, long)
    assert (expected.shape, ours.shape) == ((2, 8, 36), (2, 20, 36))
    assert np.abs(ours[:, :8] - expected)[short.segment_ids > 0].max() <= TOLERANCE
    assert np.abs(ours[0, 0] - ours[1, 0]).max() > 0.1, "the states tell texts apart"


@each_family_and_backend
def test_rows_of_padding_and_of_one_token_are_finite_and_leave_the_others_alone(loaded, family, backend):
    classifier = loaded(family, backend)
    encodings = classifier.tokenizer.encode(TEXTS[:-2])
    expected = logits_of(classifier, TEXTS, LIMIT)[:-2]
    one_token = Encodings([*encodings.input_ids, [7], [7]], [*encodings.token_type_ids, [0], [0]])
    tokens = pad(one_token, length=LIMIT)
    empty = Tokens(*(np.concatenate([leaf[:-1], np.zeros_like(leaf[-1:])]) for leaf in tokens))
    assert empty.attention_mask[-2:].sum(axis=-1).tolist() == [1, 0]
    logits = np.asarray(jit(classifier.forward)(classifier.params, empty))
    assert np.isfinite(logits).all()
    assert np.abs(logits[:-2] - expected).max() <= TOLERANCE


def test_a_text_of_the_limit_is_whole_and_a_longer_one_loses_its_end(classifier):
    full = SINGLES[-1]
    encodings = classifier.tokenizer.encode([full, full + " bad"])
    assert [len(ids) for ids in encodings.input_ids] == [LIMIT, LIMIT]
    assert encodings.num_truncated == 1
    assert encodings.input_ids[0] == encodings.input_ids[1]
    whole, cut = flaxsent.classify([full, full + " bad"], classifier)
    assert (whole.label, whole.score) == (cut.label, pytest.approx(cut.score, abs=1e-6))


def test_packed_rows_are_refused_where_they_can_be_seen(classifier):
    tokens, _ = pack(Encodings([[5], [6]], [[0], [0]]), row_length=8)
    for function in (classifier.forward, classifier.hidden_states):
        with pytest.raises(ValueError, match=r"more than one text.*forward_packed with num_segments"):
            function(classifier.params, tokens)


# jit, vmap, grad


@pytest.mark.slow
@each_backend
def test_jit_equals_eager_and_vmap_equals_loop(loaded, backend):
    classifier = loaded("bert", backend)
    batches = [classifier.tokenize(TEXTS[start : start + 4], length=LIMIT) for start in (0, 4, 8)]
    loop = np.stack([classifier.predict(classifier.params, batch) for batch in batches])
    eager = classifier.postprocess(classifier.forward(classifier.params, batches[1]))
    assert np.abs(eager - loop[1]).max() <= 1e-6  # probabilities
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *batches)
    many = jax.vmap(classifier.predict, in_axes=(None, 0))(classifier.params, stacked)
    assert many.shape == (3, 4, 3)
    assert np.abs(many - loop).max() <= 1e-6


@each_backend
def test_gradients_reach_every_parameter_and_are_finite(loaded, backend):
    classifier = loaded("bert", backend)
    tokens = classifier.tokenize(TEXTS[:4], length=LIMIT)
    tokens.segment_ids[-1] = 0  # a row of padding, as in a batch that is filled up

    def log_prob(params):
        return jnp.sum(jnp.log(classifier.postprocess(classifier.forward(params, tokens))[:, 0]))

    gradient = jit(jax.grad(log_prob))(classifier.params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert bool(jnp.isfinite(leaf).all()), path
        # A key's bias adds the same to all scores of a query, and softmax takes it away again.
        assert bool((leaf != 0).any()) or {"key", "bias"} <= {entry.key for entry in path}, path


@pytest.mark.parametrize(
    ("family", "backend"), [("bert", "native"), pytest.param("distilbert", "flax", marks=pytest.mark.flax_auto)]
)
def test_dropout_follows_the_key_and_each_row_has_its_own(loaded, family, backend):
    classifier = loaded(family, backend)
    tokens = classifier.tokenize([SINGLES[3]] * len(TEXTS), length=LIMIT)
    forward = jit(classifier.forward)
    first, same, other = (np.asarray(forward(classifier.params, tokens, jax.random.key(seed))) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    assert len(np.unique(np.concatenate([first, other]), axis=0)) == 2 * len(TEXTS)
    without = np.asarray(forward(classifier.params, tokens))
    np.testing.assert_array_equal(without, forward(classifier.params, tokens))
    assert (np.abs(first - without).max(axis=-1) > 0.01).all()


# dtypes


@pytest.mark.parametrize("family", ["bert", "distilbert"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_finite_and_keeps_the_labels(loaded, family, dtype):
    expected = logits_of(loaded(family, "native"), TEXTS, LIMIT)
    half = loaded(family, "native", dtype)
    ours = logits_of(half, TEXTS, LIMIT)
    assert ours.dtype == np.float32
    assert np.isfinite(ours).all()
    assert half.postprocess(ours).dtype == jnp.float32
    # 11 and 8 bits of mantissa over two layers of sums; a label may change where the best two are that close.
    allowed = {"float16": 0.03, "bfloat16": 0.25}[dtype]
    assert np.abs(ours - expected).max() <= allowed
    best = np.sort(expected, axis=-1)
    is_clear = best[:, -1] - best[:, -2] > 2 * allowed
    assert is_clear.sum() >= 3
    np.testing.assert_array_equal(ours.argmax(-1)[is_clear], expected.argmax(-1)[is_clear])


# postprocess and decode

FORMULAS = {
    "single_label_classification": lambda x: (
        np.exp(x - x.max(-1, keepdims=True)) / np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)
    ),
    "multi_label_classification": lambda x: np.exp(np.minimum(x, 0)) / (1 + np.exp(-np.abs(x))),
    "regression": lambda x: x,
}


@pytest.mark.parametrize("problem_type", FORMULAS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("to_host", [False, True])
def test_postprocess_is_the_formula_in_float32_whatever_comes(classifier, problem_type, dtype, to_host):
    config = dataclasses.replace(classifier.config, problem_type=problem_type)
    logits = jnp.asarray([[-3.0, 0.5, 4.0], [9.0, 9.0, -9.0], [6e4, -6e4, 0.0]], dtype)
    scores = postprocess(np.asarray(logits) if to_host else logits, config=config)
    assert scores.dtype == jnp.float32
    expected = FORMULAS[problem_type](np.asarray(logits, np.float64))
    np.testing.assert_allclose(scores, expected, rtol=1e-6, atol=1e-30)  # a few units in the last place of float32


@pytest.mark.parametrize(
    ("changes", "problem_type"),
    [
        ({"id2label": {"0": "relevance"}}, "multi_label_classification"),
        ({"id2label": {"0": "score"}, "problem_type": "regression"}, "regression"),
        ({"id2label": {"0": "toxic"}, "problem_type": "multi_label_classification"}, "multi_label_classification"),
        ({}, "single_label_classification"),
        ({"problem_type": "multi_label_classification"}, "multi_label_classification"),
        ({"problem_type": "regression"}, "regression"),
    ],
)
def test_the_problem_type_decides_the_scores_of_classify(tiny_folder, changes, problem_type):
    classifier = flaxsent.load(tiny_folder("bert", num_hidden_layers=1, **changes), backend="native")
    texts, labels = TEXTS[:4], classifier.config.labels
    expected = FORMULAS[problem_type](logits_of(classifier, texts, 16).astype(np.float64))
    for prediction, scores in zip(flaxsent.classify(texts, classifier, top_k=None), expected, strict=True):
        ours = dict(zip(*prediction, strict=True))
        np.testing.assert_allclose([ours[label] for label in labels], scores, atol=TOLERANCE)
        assert list(prediction.scores) == sorted(prediction.scores, reverse=True)


@pytest.mark.parametrize(
    ("top_k", "expected"),
    [
        (1, [("b",), ("a",), ("a",)]),
        (2, [("b", "a"), ("a", "c"), ("a", "b")]),
        (3, [("b", "a", "c"), ("a", "c", "b"), ("a", "b", "c")]),
        (99, [("b", "a", "c"), ("a", "c", "b"), ("a", "b", "c")]),
        (None, [("b", "a", "c"), ("a", "c", "b"), ("a", "b", "c")]),
    ],
)
def test_decode_names_the_best_first_and_of_equals_the_first(top_k, expected):
    probs = np.array([[0.25, 0.5, 0.25], [0.5, 0.125, 0.375], [0.25, 0.25, 0.25]])
    predictions = decode(probs, labels="abc", top_k=top_k)
    assert [prediction.labels for prediction in predictions] == expected
    for prediction, row in zip(predictions, probs, strict=True):
        assert prediction.scores == tuple(row["abc".index(label)] for label in prediction.labels)
        assert (prediction.label, prediction.score) == (prediction.labels[0], prediction.scores[0])


def test_decode_of_many_equals_names_the_first():
    """Sorts that are not stable are so on few."""
    labels = [f"LABEL_{index}" for index in range(50)]
    probs = np.where(np.arange(50) % 5, 0.02, 0.01)[None]
    assert decode(probs, labels=labels, top_k=5)[0].labels == tuple(labels[index] for index in (1, 2, 3, 4, 6))


# classify


def test_classify_keeps_the_order_and_no_text_depends_on_the_others(classifier):
    texts = [*TEXTS, *AWKWARD_TEXTS, *TEXTS[::-1]]
    together = flaxsent.classify((text for text in texts), classifier, top_k=None)
    assert len({prediction.labels for prediction in together}) > 1
    for text, prediction in list(zip(texts, together, strict=True))[::5]:
        (alone,) = flaxsent.classify([text], classifier, top_k=None)
        ours, expected = (dict(zip(*both, strict=True)) for both in (prediction, alone))
        assert ours == pytest.approx(expected, abs=1e-6)  # probabilities


def test_classify_of_nothing_and_what_it_refuses(classifier):
    assert flaxsent.classify([], classifier) == []
    with pytest.raises(TypeError, match="got one str: 'a bare text'; pass a list"):
        flaxsent.classify("a bare text", classifier)
    for top_k in (0, -1):
        with pytest.raises(ValueError, match=f"top_k={top_k} is no number of labels"):
            flaxsent.classify(["a"], classifier, top_k=top_k)


def test_classify_compiles_few_shapes(tiny_folder):
    """Rows of 128 tokens; of the last step, shorter ones; and a number of rows that is a power of two."""
    classifier = flaxsent.load(tiny_folder("bert", max_position_embeddings=128, num_hidden_layers=1), backend="native")
    texts = texts_of_lengths(np.random.default_rng(0).integers(0, 140, 300).tolist())
    flaxsent.classify(texts, classifier)
    shapes = classifier.predict_packed._cache_size()
    assert 2 <= shapes <= 4
    flaxsent.classify(texts[::-1], classifier)
    assert classifier.predict_packed._cache_size() == shapes
    for size in (32, 31, 30, 29):
        flaxsent.classify(texts[:size], classifier)
    assert classifier.predict_packed._cache_size() <= shapes + 2


def test_classify_bounds_the_tokens_of_a_step_whatever_the_length_of_the_texts():
    """Batches of 32 texts of 8,192 tokens made 103 GB of scores."""
    encodings = Encodings([[7] * 8192] * 5 + [[7] * 30] * 900, [[0] * 8192] * 5 + [[0] * 30] * 900)
    for is_packed in (True, False):
        steps = [*list_steps(encodings, longest=8192, is_packed=is_packed)]
        assert max(step.tokens.input_ids.size for step in steps) == 8192
        assert sorted(itertools.chain(*(step.texts.tolist() for step in steps))) == [*range(905)]


# loading


def test_backend_is_the_one_asked_for(tiny_folder, monkeypatch):
    assert flaxsent.load(tiny_folder("bert"), backend="native").backend == "native"
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # or conftest's type checks would speak first
    with pytest.raises(ValueError, match="backend='torch' is unknown; pass 'flax', 'native' or None"):
        flaxsent.load(tiny_folder("bert"), backend="torch")


@pytest.mark.parametrize("family", ["bert", "camembert"])
def test_default_backend_is_flax_where_it_is_installed(tiny_folder, family):
    assert flaxsent.load(tiny_folder(family)).backend == ("flax" if flax_auto.is_installed() else "native")


@pytest.mark.parametrize(("family", "extra"), [("bert", "flax"), ("big_bird", "flax-auto")])
def test_without_flax_its_backend_is_refused_with_the_command_that_installs_it(tmp_path, monkeypatch, family, extra):
    monkeypatch.setattr(flax_auto, "is_installed", lambda: False)
    config = {"model_type": family} | CONFIGS[family]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ImportError, match=rf'needs Flax.*, which is not installed: pip install "flaxsent\[{extra}\]"'):
        flaxsent.load(tmp_path, backend="flax")


def in_new_process(code):
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_classifier_is_shown_in_a_line_and_may_be_pickled_when_it_was_used(classifier):
    assert re.fullmatch(r"Classifier\(bert, backend='native', 3 labels, [\d,]+ params in float32\)", repr(classifier))
    assert len(repr(classifier.tokenizer)) < 500
    expected = flaxsent.classify(["so good"], classifier)
    classifier.predict(classifier.params, classifier.tokenize(["so good"]))
    again = pickle.loads(pickle.dumps(classifier))
    assert flaxsent.classify(["so good"], again) == expected


def test_classifying_natively_imports_neither_torch_nor_transformers():
    code = (
        "import sys, json, flaxsent; labels = [p.label for p in flaxsent.classify(['good', ('a', 'b')])]; "
        "print(json.dumps([labels, sorted({'torch', 'transformers', 'flax', 'optax'} & sys.modules.keys())]))"
    )
    labels, imported = in_new_process(code)
    assert imported == []
    assert set(labels) <= {"NEGATIVE", "POSITIVE"}


def test_importing_sets_nothing():
    """Neither JAX's config, the environment, the log levels nor the warning filters; and starts no device."""
    code = """
import json, logging, os, warnings
import jax, jax.extend.core, jaxtyping, numpy, safetensors.numpy, tokenizers

def state():
    loggers = {"": logging.root} | {name: logging.getLogger(name) for name in ("jax", "flaxsent", "transformers")}
    return {
        "jax": {name: repr(value) for name, value in jax.config.values.items()},
        "environment": dict(os.environ),
        "loggers": {name: [logger.level, len(logger.handlers), logger.propagate] for name, logger in loggers.items()},
        "warnings": [repr(rule) for rule in warnings.filters],
        "numpy": repr(numpy.geterr()),
    }

before = state()
import flaxsent, flaxsent.cli, flaxsent.data.records, flaxsent.parity.compare
after = state()
jax.config.update("jax_num_cpu_devices", 3)  # which is refused once devices are there
print(json.dumps([before, after, jax.local_device_count()]))
"""
    before, after, num_devices = in_new_process(code)
    assert before == after
    assert num_devices == 3


def test_select_and_pad_give_the_rows_of_tokenize(classifier):
    encodings = classifier.tokenizer.encode(TEXTS)
    rows = pad(select(encodings, [4, 1]), length=LIMIT)
    for ours, expected in zip(rows, classifier.tokenize([TEXTS[4], TEXTS[1]], length=LIMIT), strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_attention_mask_is_that_of_hugging_face():
    segments = np.array([[1, 1, 2, 0]], np.int32)
    assert Tokens(segments, segments, segments, segments).attention_mask.tolist() == [[1, 1, 1, 0]]
