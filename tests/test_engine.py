"""The engine against the classifier text by text, and what it promises: order, bounds, compilations, devices."""

import collections
import dataclasses
import itertools
import json
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxsent
from flaxsent import placement, transforms
from flaxsent.engine import Engine
from tests.conftest import AWKWARD_TEXTS, counted_compilations, texts_of_lengths

# The same sums in another order: scores of size 1.
TOLERANCE = 2e-6

SHAPES = {"row_lengths": [64, 128], "tokens_per_step": 256, "steps_per_window": 4}


@pytest.fixture(scope="module")
def classifier(tiny_folder):
    return flaxsent.load(tiny_folder("bert"), backend="native")


@pytest.fixture(scope="module")
def engine(classifier):
    with Engine(classifier, **SHAPES) as engine:
        yield engine


def obvious(classifier, texts):
    """One text at a time."""
    predict = jax.jit(lambda tokens: classifier.postprocess(classifier.forward(classifier.params, tokens)))
    return np.concatenate([predict(classifier.tokenize([text], length=classifier.config.max_length)) for text in texts])


def mixed_texts(number, seed=0):
    rng = np.random.default_rng(seed)
    return texts_of_lengths(np.minimum(rng.geometric(0.07, number), 38).tolist(), seed)


@pytest.mark.parametrize(
    ("family", "backend", "options"),
    [
        ("bert", "native", SHAPES),
        ("bert", "native", {"row_lengths": [40], "tokens_per_step": 1}),
        pytest.param("bart", "native", SHAPES, marks=pytest.mark.slow),
        pytest.param("deberta-v2", "native", SHAPES, marks=pytest.mark.slow),
        pytest.param("roberta", "native", SHAPES, marks=pytest.mark.slow),
        ("bert", "native", {"layout": "padded", "row_lengths": [24, 40], "tokens_per_step": 256}),
        pytest.param("distilbert", "flax", SHAPES, marks=[pytest.mark.flax_auto, pytest.mark.slow]),
        pytest.param("big_bird", "flax", {"row_lengths": [40], "tokens_per_step": 256}, marks=pytest.mark.flax_auto),
    ],
)
def test_scores_are_those_of_each_text_alone(tiny_folder, family, backend, options):
    classifier = flaxsent.load(tiny_folder(family), backend=backend)
    texts = [*AWKWARD_TEXTS, ("so", "good " * 50), *mixed_texts(50), ("bad", "")]
    with Engine(classifier, **options) as engine:
        ours = engine(texts)
    assert ours.dtype == np.float32
    assert np.abs(ours - obvious(classifier, texts)).max() <= TOLERANCE


@pytest.mark.parametrize("problem_type", ["multi_label_classification", "regression"])
def test_other_problems_than_one_label(tiny_folder, problem_type):
    classifier = flaxsent.load(tiny_folder("bert", problem_type=problem_type), backend="native")
    texts = mixed_texts(9)
    with Engine(classifier, **SHAPES) as engine:
        assert np.abs(engine(texts) - obvious(classifier, texts)).max() <= 1e-5  # values of size 1 to 10


# functions


def test_logits_are_what_the_scores_come_from(classifier):
    texts = [*AWKWARD_TEXTS, *mixed_texts(30)]
    with Engine(classifier, function=classifier.logits, **SHAPES) as engine:
        logits_BC = engine(texts)
    assert np.abs(logits_BC).max() > 1
    assert np.abs(classifier.postprocess(logits_BC) - obvious(classifier, texts)).max() <= TOLERANCE


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_embeddings_are_the_vectors_that_the_head_reads(classifier, layout):
    texts = [*AWKWARD_TEXTS, *mixed_texts(30), ("so", "good")]
    with Engine(classifier, function=classifier.embeddings, layout=layout, **SHAPES) as engine:
        embeddings_BD = engine(texts)
    hidden_BLD = classifier.hidden_states(classifier.params, classifier.tokenize(texts))
    assert embeddings_BD.shape == (len(texts), classifier.config.hidden_size)
    assert np.abs(embeddings_BD - hidden_BLD[:, 0]).max() <= 2e-5  # values of size 1 to 10


def by_token(params, tokens, num_segments):
    """A per-token example: each token's word vector, and how often its text has the same token."""
    vectors_RTE = jnp.take(params["bert"]["embeddings"]["word_embeddings"]["embedding"], tokens.input_ids, axis=0)
    is_own_RTT = tokens.segment_ids[:, :, None] == tokens.segment_ids[:, None, :]
    is_same_RTT = tokens.input_ids[:, :, None] == tokens.input_ids[:, None, :]
    ends_RS = jax.vmap(lambda segments: jnp.bincount(segments, length=num_segments + 1)[1:])(tokens.segment_ids)
    return {"vectors": vectors_RTE, "counts": jnp.sum(is_own_RTT & is_same_RTT, axis=-1), "lengths": ends_RS}


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_a_function_may_give_an_entry_for_each_token_beside_one_for_each_text(classifier, layout):
    texts = [*mixed_texts(40), "so good so good so", ("so", "good"), *mixed_texts(40)]
    encodings = classifier.tokenizer.encode(texts)
    with Engine(classifier, function=by_token, layout=layout, **SHAPES) as engine:
        results, streamed = engine(texts), [*engine.stream(iter(texts))]
    table = np.asarray(classifier.params["bert"]["embeddings"]["word_embeddings"]["embedding"])
    assert len(results["vectors"]) == len(results["counts"]) == len(texts)
    for index, ids in enumerate(encodings.input_ids):
        np.testing.assert_array_equal(results["vectors"][index], table[ids])
        assert results["counts"][index].tolist() == [ids.count(token) for token in ids]
        assert results["lengths"][index] == len(ids)
        for name in results:
            np.testing.assert_array_equal(streamed[index][name], results[name][index])
    with Engine(classifier, function=by_token, **SHAPES) as engine:
        nothing = engine([])
    assert (nothing["vectors"], nothing["counts"], nothing["lengths"].shape) == ([], [], (0,))


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda tokens: tokens.input_ids[0], r"gives an array of shape \(64,\).*one entry a text.*one a token"),
        (lambda tokens: tokens.input_ids.sum(), r"gives an array of shape \(\) "),
        (lambda tokens: None, "gives no array; expected an entry for each text or token"),
    ],
)
def test_a_function_of_another_shape_is_refused(classifier, result, message):
    with (
        Engine(classifier, function=lambda params, tokens, num_segments: result(tokens), **SHAPES) as engine,
        pytest.raises(flaxsent.FlaxsentError, match=message),
    ):
        engine(["so good"])


def test_only_what_computes_natively_is_given_stacked_layers(tiny_folder, classifier):
    def engine_of(classifier, **options):
        return Engine(classifier, **SHAPES, **options)

    for function in (None, classifier.logits, classifier.embeddings):
        assert engine_of(classifier, function=function)._reads_stacked()
    assert engine_of(transforms.windows(classifier, stride=8))._reads_stacked()
    # A function of one's own may read params by their names.
    assert not engine_of(classifier, function=by_token)._reads_stacked()
    replaced = dataclasses.replace(classifier, forward_packed=lambda *arguments: classifier.forward_packed(*arguments))
    assert not engine_of(replaced)._reads_stacked()
    topics = transforms.zero_shot(classifier, ["good", "bad"], entailment=classifier.config.labels[0])
    assert not engine_of(topics)._reads_stacked()


def test_an_engine_of_stacked_layers_gives_the_same_scores(monkeypatch, classifier):
    texts, with_names = mixed_texts(20), []
    expected = obvious(classifier, texts)

    def put(params, where):
        with_names.extend(params["bert"]["encoder"]["layer"])
        return placement.put(params, where)

    monkeypatch.setattr("flaxsent.engine.placement", SimpleNamespace(**vars(placement) | {"put": put}))
    monkeypatch.setattr("flaxsent.engine._STACKED_ON", ("cpu",))
    with Engine(classifier, **SHAPES) as engine:
        assert np.abs(engine(texts) - expected).max() <= TOLERANCE
    assert with_names == ["0-1", "2"]


@pytest.mark.flax_auto
def test_a_family_that_does_not_pack_is_padded_and_says_so(tiny_folder):
    classifier = flaxsent.load(tiny_folder("roformer"))
    assert not classifier.packs
    with pytest.raises(flaxsent.FlaxsentError, match="roformer takes one text a row; pass layout='padded'"):
        Engine(classifier, layout="packed")
    with Engine(classifier, row_lengths=[40], tokens_per_step=40) as engine:
        assert {shape.num_segments for shape in engine.shapes} == {1}
        assert np.abs(engine(["so good", "bad"]) - obvious(classifier, ["so good", "bad"])).max() <= TOLERANCE


# streams


def test_stream_keeps_the_order_of_an_endless_iterable_and_reads_only_some_windows_ahead(classifier, engine):
    texts, taken = mixed_texts(40), []

    def endless():
        for text in itertools.cycle(texts):
            taken.append(text)
            yield text

    expected = obvious(classifier, texts)
    stream = engine.stream(endless())
    for index, scores in enumerate(itertools.islice(stream, 2000)):
        assert np.abs(scores - expected[index % 40]).max() <= TOLERANCE
    stream.close()
    at_close = len(taken)
    time.sleep(0.3)
    assert len(taken) == at_close, "the thread that reads ends with the stream"
    window = max(len(window) for window in itertools.islice(engine._windows(itertools.cycle(texts)), 50))
    assert at_close <= 2000 + 6 * window


def test_batches_are_computed_by_themselves(classifier, engine):
    lists = [mixed_texts(30), [], ["so good"], mixed_texts(7, seed=1)]
    batches = [*engine.batches(iter(lists))]
    assert [len(batch) for batch in batches] == [30, 0, 1, 7]
    for batch, texts in zip(batches, lists, strict=True):
        np.testing.assert_array_equal(batch, engine(texts))
    assert engine([]).shape == (0, 3)


def test_a_text_that_is_in_the_window_is_computed_once(classifier):
    stats = []
    texts = mixed_texts(20)
    with Engine(classifier, **SHAPES | {"steps_per_window": 64}, on_window=stats.append) as engine:
        once, often = engine(texts), engine(texts * 5)
    np.testing.assert_array_equal(np.tile(once, (5, 1)), often)
    assert [stat.num_tokens for stat in stats] == [stats[0].num_tokens] * 2
    assert [stat.num_texts for stat in stats] == [20, 100]


def test_nothing_compiles_after_warmup(classifier):
    with Engine(classifier, **SHAPES) as engine:
        engine.warmup()
        with counted_compilations() as compilations:
            engine(mixed_texts(5000, seed=3) + AWKWARD_TEXTS)
        assert compilations == []


def test_threads_share_an_engine(classifier, engine):
    lists = [mixed_texts(60, seed) for seed in range(6)]
    expected, found = [engine(texts) for texts in lists], {}
    threads = [
        threading.Thread(target=lambda index=index: found.update({index: engine(lists[index])})) for index in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in range(6):
        np.testing.assert_array_equal(found[index], expected[index])


@pytest.mark.parametrize(
    ("texts", "error", "message"),
    [
        ("a bare text", TypeError, "got one str"),
        ([*["fine"] * 500, 3], TypeError, "text 500 is of type int"),
        (["a", "\ud800"], ValueError, "text 1 has a lone surrogate"),
    ],
)
def test_bad_texts_are_refused_by_their_place(engine, texts, error, message):
    with pytest.raises(error, match=message):
        engine(texts if isinstance(texts, str) else iter(texts))  # beartype looks into lists, at one place or another


def test_an_iterable_that_fails_tells_its_own_error(engine):
    def broken():
        yield "so good"
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(engine.stream(broken()))


def test_a_closed_engine_says_so(classifier):
    engine = Engine(classifier, **SHAPES)
    engine.close()
    for texts in (["so good"], []):
        with pytest.raises(RuntimeError, match="engine is closed"):
            engine(texts)


def test_a_stream_under_way_ends_when_its_engine_is_closed(classifier):
    engine = Engine(classifier, **SHAPES)
    stream = engine.stream(itertools.cycle(mixed_texts(40)))
    next(stream)
    engine.close()
    with pytest.raises(RuntimeError, match="engine is closed"):
        collections.deque(itertools.islice(stream, 5000), maxlen=0)


def drain(stream, raised):
    try:
        collections.deque(stream, maxlen=0)
    except RuntimeError as err:
        raised.append(str(err))


def test_engines_that_are_closed_while_streams_run_raise_nothing_else(classifier):
    """A closed engine used to take its params from under a stream that was computing."""
    for delay in (0.0, 0.002, 0.01, 0.03):
        engine, raised = Engine(classifier, **SHAPES), []
        thread = threading.Thread(target=drain, args=(engine.stream(itertools.cycle(mixed_texts(40))), raised))
        thread.start()
        time.sleep(delay)
        engine.close()
        thread.join(30)
        assert not thread.is_alive()
        assert raised == ["the engine is closed; make another."]


@pytest.mark.parametrize("row_lengths", [[], [0, 64], [39]])
def test_rows_too_short_for_the_checkpoint_are_refused(classifier, row_lengths):
    with pytest.raises(ValueError, match="expected numbers of which one is at least 40"):
        Engine(classifier, row_lengths=row_lengths)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens_per_step": -5}, "tokens_per_step=-5: expected a positive number"),
        ({"tokens_per_step": 0}, "tokens_per_step=0: expected a positive number"),
        ({"steps_per_window": -1}, "steps_per_window=-1: expected a positive number"),
        ({"steps_per_window": 0}, "steps_per_window=0: expected a positive number"),
        ({"devices": []}, r"devices=\[\]: expected one or more"),
    ],
)
def test_numbers_that_are_none_are_refused(classifier, options, message):
    with pytest.raises(flaxsent.FlaxsentError, match=message):
        Engine(classifier, **options)


def in_new_process(code, *arguments, env=None):
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])  # before it, jax 0.12 tells where what it refuses stands


EIGHT_DEVICES = """
import json, sys, jax, numpy as np
jax.config.update("jax_num_cpu_devices", 8)
import flaxsent
from flaxsent import placement, transforms
from flaxsent.engine import Engine
texts = [("good " * (i % 37)).strip() + " bad" * (i % 2) for i in range(300)]
classifier = flaxsent.load(sys.argv[1], backend="native")
options = dict(row_lengths=[64], tokens_per_step=128)
with Engine(classifier, **options) as eight, Engine(classifier, devices=jax.local_devices()[:1], **options) as one:
    used = len(eight._start(eight._prepare(texts).steps[0]).sharding.device_set)
    places = {
        shard.data.unsafe_buffer_pointer()
        for params in (eight._running.params, one._running.params)
        for shard in jax.tree.leaves(params)[0].addressable_shards
    } | {jax.tree.leaves(classifier.params)[0].unsafe_buffer_pointer()}
    difference = float(np.abs(eight(texts) - one(texts)).max())
try:
    Engine(classifier, function=lambda params, tokens, num_segments: tokens.input_ids[:3], **options)(texts)
except flaxsent.FlaxsentError as err:
    print(json.dumps([used, len(places), difference, str(err)]))
"""


def test_eight_devices_give_what_one_gives_from_the_same_params_in_memory(tiny_folder):
    num_devices, num_copies, difference, told = in_new_process(EIGHT_DEVICES, str(tiny_folder("bert")))
    assert told.startswith("the function of the engine gives an array of shape (3, 64)")
    assert num_devices == 8
    assert num_copies == 1, "the devices of a CPU read the classifier's own arrays"
    assert difference <= TOLERANCE


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize("family", ["bert", "deberta-v2", "modernbert", "bart"])
def test_a_step_lowers_for_accelerators(tiny_folder, family, platform):
    classifier = flaxsent.load(tiny_folder(family), backend="native")
    tokens = flaxsent.Tokens(*[np.zeros((4, 128), np.int32)] * 4)
    step = jax.jit(lambda params, tokens: classifier.postprocess(classifier.forward_packed(params, tokens, 16)))
    exported = jax.export.export(step, platforms=[platform])(classifier.params, tokens)
    assert exported.out_avals[0].shape == (4, 16, 3)


def test_tweets_and_reviews_fill_97_percent_of_the_rows(embedded):
    """Lengths as those of tweets (about 20 tokens) and of full reviews (about 230, up to the limit)."""
    rng = np.random.default_rng(0)
    lengths = np.concatenate([rng.poisson(18, 3000), rng.lognormal(5.3, 0.55, 400).astype(int)])
    texts = texts_of_lengths(np.clip(rng.permutation(lengths), 1, 600).tolist())
    engine = Engine(embedded)
    stats = [engine._prepare(window).stats for window in engine._windows(texts)]
    assert sum(stat.num_tokens for stat in stats) >= 0.97 * sum(stat.num_places for stat in stats)
    assert sum(stat.num_truncated for stat in stats) > 0
