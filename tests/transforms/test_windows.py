"""Windows: cut as AutoTokenizer cuts them, pooled by the formulas of the docstring, everywhere where texts go in."""

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from scipy import special

import flaxsent
from flaxsent.base import FlaxsentError
from flaxsent.checkpoint.tokenizer import read_tokenizer
from flaxsent.classifier import with_limit
from flaxsent.cli import main
from flaxsent.engine import Engine
from flaxsent.jobs import ray
from flaxsent.jobs.plan import JobOptions
from flaxsent.jobs.scoring import Scoring
from flaxsent.packing import pad
from flaxsent.tokenization import POOLINGS, Windows
from flaxsent.transforms import pool, windows
from tests.checkpoint.test_tokenizer import FOLDERS, config, reference, write
from tests.conftest import counted_compilations, texts_of_lengths

# Float32 sums of a few probabilities or logits of size 1, computed in rows of another length.
TOLERANCE = 2e-6

WORDS = texts_of_lengths([*range(0, 80, 3), 200])
PAIRS = [(first, second) for first in ("", "so good", "so bad a film") for second in WORDS]
LIMIT = 64


def windows_of_transformers(folder, columns, strategy, limit, stride):
    """Ids, types and text of each window, by a fresh tokenizer: the fast ones keep the truncation of the last call."""
    found = reference(folder)(
        *columns, truncation=strategy, max_length=limit, stride=stride, return_overflowing_tokens=True
    )
    types = found.get("token_type_ids", [[0] * len(ids) for ids in found["input_ids"]])
    return found["input_ids"], types, found["overflow_to_sample_mapping"]


@pytest.mark.parametrize("stride", [0, 1, 25])
@pytest.mark.parametrize("name", ["bert", "bert, left", "roberta, space", "albert", "bart merges.txt"])
def test_windows_are_those_of_auto_tokenizer(name, stride, tmp_path):
    case = FOLDERS[name]
    folder = write(case, tmp_path)
    tokenizer = dataclasses.replace(read_tokenizer(folder, config(case, folder)), max_length=LIMIT)
    for texts, columns, strategy, pairs in (
        (WORDS, [WORDS], True, "longer"),
        (PAIRS, [[*part] for part in zip(*PAIRS, strict=True)], "only_second", "second"),
        (PAIRS, [[*part] for part in zip(*PAIRS, strict=True)], "only_second", "longer"),
        ([pair[::-1] for pair in PAIRS], [[*part] for part in zip(*PAIRS, strict=True)][::-1], "only_first", "longer"),
    ):
        ids, types, texts_of = windows_of_transformers(folder, columns, strategy, LIMIT, stride)
        if not tokenizer.has_token_types:
            types = [[0] * len(one) for one in ids]
        windowed = tokenizer.encode_windows(texts, Windows(stride, "mean_logits", pairs))
        assert windowed.encodings.input_ids == ids
        assert windowed.encodings.token_type_ids == types
        assert windowed.texts.tolist() == texts_of
        assert windowed.encodings.num_truncated == 0
        assert windowed.num_long == len({text for text in texts_of if texts_of.count(text) > 1}) > 0


def test_weights_are_the_tokens_of_the_text_in_each_window(embedded):
    tokenizer = dataclasses.replace(embedded.tokenizer, max_length=12)
    texts = ["so good", *texts_of_lengths([23]), (texts_of_lengths([3])[0], texts_of_lengths([9])[0])]
    windowed = tokenizer.encode_windows(texts, Windows(2, "mean_logits", "longer"))
    assert windowed.texts.tolist() == [0, 1, 1, 1, 2, 2]
    assert windowed.weights.tolist() == [1, 10, 10, 7, 6, 5]
    assert (windowed.num_long, windowed.num_windows, windowed.num_texts) == (2, 5, 3)


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_other_text_of_a_pair_keeps_what_is_free_or_half_of_the_room_and_that_is_counted(embedded, side):
    tokenizer = dataclasses.replace(embedded.tokenizer, max_length=23, cut_side=side)  # room for 20
    first, second, short = texts_of_lengths([40, 31, 4])
    windowed = tokenizer.encode_windows(
        [(second, first), (first, short), (short, first)], Windows(3, "mean_logits", "second")
    )
    pieces = [ids[1:].index(102) for ids in windowed.encodings.input_ids]  # tokens of the first text
    assert pieces == [10] * 6 + [16] + [4] * 3
    assert windowed.encodings.num_truncated == 2
    assert max(windowed.encodings.lengths) == 23
    kept = tokenizer.backend.encode(first, add_special_tokens=False).ids
    assert windowed.encodings.input_ids[6][1:17] == (kept[:16] if side == "right" else kept[-16:])


@pytest.mark.parametrize("stride", [19, 11])
def test_windows_go_on_whatever_the_other_text_takes(embedded, stride):
    tokenizer = dataclasses.replace(embedded.tokenizer, max_length=23)
    pair = (*texts_of_lengths([40]), *texts_of_lengths([31]))
    windowed = tokenizer.encode_windows([pair], Windows(stride, "mean_logits", "second"))
    assert windowed.num_windows == 31 - stride, "each is one token further"


def test_token_types_are_told_apart_in_every_window(embedded):
    tokenizer = dataclasses.replace(embedded.tokenizer, max_length=16)
    windowed = tokenizer.encode_windows([("so good", *texts_of_lengths([50]))], Windows(4, "mean_logits", "longer"))
    for ids, types in zip(windowed.encodings.input_ids, windowed.encodings.token_type_ids, strict=True):
        assert types == [0] * 4 + [1] * (len(ids) - 4)


@pytest.mark.parametrize("name", ["bertweet", "bertweet, left"])
def test_tokenizers_in_python_are_cut_alike(name, tmp_path):
    """Theirs gives what is beyond the limit as one list; the first window is what it cuts."""
    case = FOLDERS[name]
    folder = write(case, tmp_path)
    tokenizer = dataclasses.replace(read_tokenizer(folder, config(case, folder)), max_length=32)
    for text in (WORDS[-1], ("so good", WORDS[-1])):
        windowed = tokenizer.encode_windows([text], Windows(5, "mean_logits", "longer"))
        ids = windowed.encodings.input_ids
        assert ids[0] == tokenizer.encode([text]).input_ids[0]
        parts = text if isinstance(text, tuple) else (text,)
        whole = reference(folder)(parts[-1], add_special_tokens=False)["input_ids"]
        start = 1 if len(parts) == 1 else ids[0][1:].index(2) + 3  # after <s>, or after the two </s> between
        pieces = [one[start:-1] for one in ids]
        if "left" in name:
            pieces = pieces[::-1]
            joined = [*pieces[-1]]
            for piece in pieces[-2::-1]:
                assert piece[-5:] == joined[:5]
                joined = piece[:-5] + joined
        else:
            joined = [*pieces[0]]
            for piece in pieces[1:]:
                assert piece[:5] == joined[-5:]
                joined += piece[5:]
        assert joined == whole
        assert len(ids) > 3


# Pooling.


SCORES = {"softmax": functools.partial(special.softmax, axis=-1), "sigmoid": special.expit, "none": np.asarray}


def pooled_by_hand(z_wC, n_w, pooling, score_function):
    """The scores of a text from the logits of its windows, in float64."""
    z_wC, n_w, score = np.asarray(z_wC, np.float64), np.asarray(n_w, np.float64), SCORES[score_function]
    match pooling:
        case "mean_logits":
            return score((n_w @ z_wC) / n_w.sum())
        case "max_logits":
            return score(z_wC.max(axis=0))
        case "mean_probabilities":
            return n_w @ score(z_wC) / n_w.sum()
        case "max_probabilities":
            p_C = score(z_wC).max(axis=0)
            return p_C / p_C.sum() if score_function == "softmax" else p_C


def by_hand(classifier, texts, pooling):
    """Each window as a text by itself."""
    windowed = classifier.tokenizer.encode_windows(texts, classifier.windows)
    logits_WC = np.asarray(classifier.forward(classifier.params, pad(windowed.encodings)))
    of_texts = [windowed.texts == text for text in range(len(texts))]
    score_function = classifier.config.score_function
    return np.array(
        [pooled_by_hand(logits_WC[one], windowed.weights[one], pooling, score_function) for one in of_texts]
    )


PROBLEMS = {
    "softmax": {},
    "sigmoid": {"problem_type": "multi_label_classification"},
    "none": {"id2label": {"0": "score"}, "problem_type": "regression"},
}
TEXTS = [*texts_of_lengths([3, 200, 38, 39, 90], seed=1), ("so good", *texts_of_lengths([120], seed=2)), "so bad"]


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize(
    "problem", [pytest.param(name, marks=pytest.mark.slow if name == "sigmoid" else ()) for name in PROBLEMS]
)
def test_scores_are_those_of_the_formulas(tiny_folder, problem, pooling):
    folder = tiny_folder("bert", **PROBLEMS[problem])
    classifier = windows(flaxsent.load(folder, backend="native"), stride=7, pooling=pooling)
    expected = by_hand(classifier, TEXTS, pooling)
    with Engine(classifier, row_lengths=[64], tokens_per_step=256) as engine:
        np.testing.assert_allclose(engine(TEXTS), expected, rtol=0, atol=TOLERANCE)
    predictions = flaxsent.classify(TEXTS, classifier, top_k=None)
    labels = classifier.config.labels
    found = [[dict(zip(*one, strict=True))[label] for label in labels] for one in predictions]
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


def test_windows_of_a_length_are_those_of_a_checkpoint_with_that_limit(tiny_folder, tmp_path):
    folder = tmp_path / "short"
    shutil.copytree(tiny_folder("bert"), folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": 20}))
    short = windows(flaxsent.load(folder, backend="native"), stride=7)
    own = windows(flaxsent.load(tiny_folder("bert"), backend="native"), length=20, stride=7)
    assert own.tokenizer.max_length == short.tokenizer.max_length == 20
    assert flaxsent.classify(TEXTS, own, top_k=None) == flaxsent.classify(TEXTS, short, top_k=None)
    with Engine(own) as engine, Engine(short) as other:
        assert engine.shapes == other.shapes
        np.testing.assert_array_equal(engine(TEXTS), other(TEXTS))
    assert own.tokenize(TEXTS).input_ids.shape == (len(TEXTS), 20)


def test_a_shorter_limit_is_refused_where_the_stride_does_not_fit_it(embedded):
    long = windows(embedded, stride=64)
    with pytest.raises(FlaxsentError, match="stride=64: windows of this checkpoint have 47 tokens of a text"):
        with_limit(long, 50)
    assert flaxsent.classify(["so good " * 60], with_limit(long, 80))[0].label == "POSITIVE"
    assert windows(long, length=50, stride=8).windows.stride == 8


def test_poolings_differ(tiny_folder):
    classifier = flaxsent.load(tiny_folder("bert"), backend="native")
    scores = [by_hand(windows(classifier, stride=7, pooling=pooling), TEXTS, pooling)[1] for pooling in POOLINGS]
    assert min(np.abs(one - other).max() for i, one in enumerate(scores) for other in scores[:i]) > 1e-4


@pytest.mark.parametrize("pooling", POOLINGS)
def test_texts_that_fit_have_exactly_what_they_have_without_windows(tiny_folder, pooling):
    classifier = flaxsent.load(tiny_folder("bert"), backend="native")
    texts = [*texts_of_lengths(range(39)), ("so good", "so bad")]
    with Engine(classifier) as plain, Engine(windows(classifier, stride=7, pooling=pooling)) as engine:
        np.testing.assert_array_equal(engine(texts), plain(texts))
        assert engine([]).shape == (0, classifier.config.num_labels)
    assert flaxsent.classify(texts, windows(classifier, stride=7, pooling=pooling)) == flaxsent.classify(
        texts, classifier
    )


def test_every_function_of_the_engine_is_pooled_leaf_by_leaf(tiny_folder):
    classifier = windows(flaxsent.load(tiny_folder("bert"), backend="native"), stride=7, pooling="mean_logits")

    def function(params, tokens, num_segments):
        return {
            "embeddings": classifier.embeddings(params, tokens, num_segments),
            "best": classifier.logits(params, tokens, num_segments).argmax(axis=-1),
        }

    with Engine(classifier, function=function) as engine:
        found = engine(TEXTS)
    windowed = classifier.tokenizer.encode_windows(TEXTS, classifier.windows)
    fits = dataclasses.replace(classifier, windows=None)
    tokens = pad(windowed.encodings)
    values = {
        "embeddings": np.asarray(fits.embeddings(fits.params, tokens, 1)[:, 0]),
        "best": np.asarray(fits.forward(fits.params, tokens).argmax(axis=-1)),
    }
    expected = pool(values, windowed.texts, windowed.weights, len(TEXTS), by="mean")
    # Vectors of size 1.
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-5), found, expected)


def test_a_function_with_an_entry_for_each_token_is_refused(tiny_folder):
    classifier = windows(flaxsent.load(tiny_folder("bert"), backend="native"), stride=7)
    with (
        Engine(classifier, function=lambda params, tokens, num_segments: tokens.input_ids) as engine,
        pytest.raises(FlaxsentError, match="pass a classifier without windows"),
    ):
        engine(["so good"])


@pytest.mark.parametrize("by", ["mean", "max"])
def test_pool_is_one_function_of_numpy_and_of_jax_under_any_transform(by):
    rng = np.random.default_rng(0)
    texts, weights = np.array([0, 0, 1, 2, 2, 2]), rng.integers(1, 9, 6).astype(np.float32)
    values_WC = rng.normal(size=(6, 3)).astype(np.float32)
    on_host = pool(values_WC, texts, weights, 3, by=by)
    assert isinstance(on_host, np.ndarray)
    pooled = functools.partial(pool, by=by)
    on_device = jax.jit(pooled, static_argnums=3)(jnp.asarray(values_WC), texts, jnp.asarray(weights), 3)
    np.testing.assert_allclose(on_device, on_host, atol=1e-6)  # another order of the sum
    each = jax.vmap(lambda values_W: pooled(values_W, texts, jnp.asarray(weights), 3))(jnp.asarray(values_WC.T))
    np.testing.assert_allclose(each.T, on_host, atol=1e-6)
    gradient_WC = jax.grad(lambda values: pooled(values, texts, jnp.asarray(weights), 3)[2].sum())(
        jnp.asarray(values_WC)
    )
    shares = weights[3:] / weights[3:].sum()
    expected = np.zeros((6, 3))
    expected[3:] = shares[:, None] if by == "mean" else values_WC[3:] == values_WC[3:].max(axis=0)
    np.testing.assert_allclose(gradient_WC, expected, atol=1e-6)


def test_nothing_compiles_after_warmup(tiny_folder):
    classifier = windows(flaxsent.load(tiny_folder("bert"), backend="native"), stride=7)
    with Engine(classifier, row_lengths=[64], tokens_per_step=256, steps_per_window=1) as engine:
        engine.warmup()
        with counted_compilations() as compilations:
            engine(texts_of_lengths(np.random.default_rng(0).integers(1, 150, 60).tolist()))
        assert compilations == []


def test_one_text_a_row_and_an_exported_folder_have_windows_too(tiny_folder, tmp_path, symbolic_sizes):
    classifier = flaxsent.load(tiny_folder("bert"), backend="native")
    in_windows = windows(classifier, stride=7)
    expected = by_hand(in_windows, TEXTS, "mean_logits")
    with Engine(in_windows, layout="padded") as engine:
        np.testing.assert_allclose(engine(TEXTS), expected, rtol=0, atol=TOLERANCE)
    flaxsent.export(classifier, tmp_path / "out", platforms=("cpu",))
    with Engine(windows(flaxsent.load(tmp_path / "out"), stride=7)) as engine:
        np.testing.assert_allclose(engine(TEXTS), expected, rtol=0, atol=TOLERANCE)


def test_the_number_of_windows_is_told(tiny_folder, caplog):
    classifier = windows(flaxsent.load(tiny_folder("bert"), backend="native"), stride=8)
    stats = []
    with Engine(classifier, on_window=stats.append) as engine:
        engine(TEXTS)
    assert [(one.num_long, one.num_windows, one.num_truncated) for one in stats] == [(4, 17, 0)]
    flaxsent.classify(TEXTS, classifier)
    assert caplog.messages == ["4 of 7 texts of more than 40 tokens were read in 17 windows"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stride": 37}, "stride=37: windows of this checkpoint have 37 tokens of a text; expected .* from 0 to 36"),
        ({"stride": -1}, "stride=-1"),
        ({"stride": 2.0}, r"stride=2\.0"),
        ({"stride": True}, "stride=True"),
        ({"length": 3}, "a length of 3 tokens was asked for; this checkpoint takes 4 to 40: pass one of these"),
        ({"length": 41}, "a length of 41 tokens was asked for"),
        ({"length": 20.0}, r"a length of 20\.0 tokens was asked for"),
        ({"length": 20}, "stride=64: windows of this checkpoint have 17 tokens of a text"),
        ({"stride": 1, "pooling": "median"}, "pooling='median': expected one of mean_logits, max_logits, mean_prob"),
        ({"stride": 1, "pairs": "first"}, "pairs='first': expected one of longer, second"),
    ],
)
def test_mistakes_are_one_line(tiny_folder, monkeypatch, changes, message):
    classifier = flaxsent.load(tiny_folder("bert"), backend="native")
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # or conftest's type checks would speak first
    with pytest.raises(FlaxsentError, match=message) as refusal:
        windows(classifier, **changes)
    assert "\n" not in str(refusal.value)


# The command line.


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def data(tmp_path):
    rows = [{"text": text, "gold": index % 3} for index, text in enumerate(TEXTS) if isinstance(text, str)]
    (tmp_path / "data.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return tmp_path / "data.jsonl"


GOLD = ["--label-column", "gold"]
WINDOWS = ["--long-texts", "windows", "--stride", "7", "--pooling"]


@pytest.mark.slow
@pytest.mark.parametrize("pooling", POOLINGS)
def test_files_and_evaluation_have_the_scores_of_windows(capsys, tiny_folder, data, tmp_path, pooling):
    model = tiny_folder("bert")
    classifier = windows(flaxsent.load(model, backend="native"), stride=7, pooling=pooling)
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    expected = by_hand(classifier, [row["text"] for row in rows], pooling)
    told = "flaxsent: 3 texts of more than 40 tokens were read in 12 windows\n"
    command = ["--input", data, "--output", tmp_path / "out.jsonl", "--all-scores", "--model", model]
    assert run(capsys, "classify", *command, *WINDOWS, pooling) == (0, "", told)
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    found = [[row[label] for label in classifier.config.labels] for row in written]
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
    code, out, err = run(capsys, "evaluate", "--data", data, "--json", *GOLD, "--model", model, *WINDOWS, pooling)
    assert (code, err) == (0, told)
    loss = -np.mean([np.log(one[row["gold"]]) for one, row in zip(expected, rows, strict=True)])
    assert json.loads(out)["log_loss"] == pytest.approx(loss, abs=1e-5)
    code, _, err = run(capsys, "classify", *command, "--resume")
    assert code == 2
    facts = f'{{"length": 40, "stride": 7, "pooling": "{pooling}", "pairs": "longer"}}'
    assert f"its windows of long texts: {facts} then, null now" in err
    code, _, err = run(capsys, "classify", *command, "--resume", *WINDOWS, pooling, "--window-length", "30")
    assert code == 2
    assert f"its windows of long texts: {facts} then, {facts.replace('40', '30')} now" in err


def test_texts_and_lines_are_read_in_windows(capsys, tiny_folder, monkeypatch, tmp_path, caplog):
    model, long = tiny_folder("bert"), TEXTS[1]
    _, cut, _ = run(capsys, "classify", long, "--model", model)
    code, out, _ = run(capsys, "classify", long, "--model", model, *WINDOWS, "mean_logits")
    assert code == 0
    assert out != cut
    assert caplog.messages[-1] == "1 of 1 texts of more than 40 tokens were read in 7 windows"
    (tmp_path / "stdin").write_text(f"{long}\n")
    with (tmp_path / "stdin").open() as stream:
        monkeypatch.setattr("sys.stdin", stream)
        code, lines, err = run(capsys, "classify", "-", "--model", model, *WINDOWS, "mean_logits")
    assert (code, err) == (0, "flaxsent: 1 texts of more than 40 tokens were read in 7 windows\n")
    for line, expected in zip(lines.splitlines(), out.splitlines(), strict=True):
        (label, score, text), (*_, expected_score, _) = line.split("\t"), expected.split("\t")
        assert expected == "\t".join((label, expected_score, text))
        assert score == expected_score == "score" or abs(float(score) - float(expected_score)) < 3e-6, (
            "packed otherwise"
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--long-texts", "windows", "--stride", "510"], "stride=510: windows of this checkpoint have 509 tokens"),
        (["--long-texts", "windows", "--uncertainty"], "several models, and draws of dropout, give probabilities"),
        (["--stride", "7"], "--stride needs --long-texts windows."),
        (["--window-length", "20"], "--window-length needs --long-texts windows."),
        (
            ["--long-texts", "windows", "--window-length", "2"],
            "a length of 2 tokens was asked for; this checkpoint takes",
        ),
        (["--window-pairs", "second"], "--window-pairs needs --long-texts windows."),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(capsys, arguments, message):
    code, out, err = run(capsys, "classify", "so good", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"flaxsent: error: {message}")
    assert err.count("\n") == 1


def test_a_temperature_is_fitted_to_pooled_logits_only(capsys, tiny_folder, data):
    code, _, err = run(
        capsys,
        "evaluate",
        "--data",
        data,
        "--calibrate",
        *GOLD,
        "--model",
        tiny_folder("bert"),
        *WINDOWS,
        "mean_probabilities",
    )
    assert code == 2
    assert "--calibrate divides logits" in err
    assert err.count("\n") == 1


def test_several_models_are_read_in_windows_too(capsys, tiny_folder):
    model = tiny_folder("bert")
    alone = run(capsys, "classify", TEXTS[1], "--model", model, *WINDOWS, "mean_probabilities")
    twice = run(capsys, "classify", TEXTS[1], "--model", model, "--model", model, *WINDOWS, "mean_probabilities")
    assert alone[0] == twice[0] == 0
    assert alone[1].split("\t")[2] == twice[1].split("\t")[2]
    # The printed digits of a mean of two equal scores.
    assert float(alone[1].split("\t")[3]) == pytest.approx(float(twice[1].split("\t")[3]), abs=2e-6)


def test_an_actor_of_ray_reads_windows(tiny_folder):
    actor = ray._Scorer(Scoring(models=(tiny_folder("bert"),), windows={"stride": 7}), JobOptions())
    assert actor._engine.classifier.windows == Windows(7, "mean_logits", "longer")
