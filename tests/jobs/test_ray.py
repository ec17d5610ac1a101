"""Ray Data on a cluster of two nodes: each row once, the engine's numbers, whatever dies."""

import dataclasses
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from jaxtyping import config

import flaxsent
from flaxsent.jobs import ray as flaxsent_ray
from flaxsent.transforms import columns, members_of, uncertainty, windows, zero_shot
from tests.conftest import texts_of_lengths

# The same sums in another order: scores of size 1.
TOLERANCE = 2e-6


@pytest.fixture(scope="module")
def spilled(tmp_path_factory):
    """Where objects go that memory does not hold."""
    return tmp_path_factory.mktemp("spilled")


@pytest.fixture(scope="module")
def ray(spilled):
    """Two nodes of two processors, whose object stores are as small as Ray allows."""
    ray = pytest.importorskip("ray", reason="needs the extra ray")
    pytest.importorskip("ray.data", reason="needs the extra ray")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("JAX_PLATFORMS", "cpu")
        patch.setenv("PYTHONPATH", str(Path(flaxsent.__file__).parent.parent))  # the workers' flaxsent is this one
        node = {"num_cpus": 2, "object_store_memory": 80 << 20, "object_spilling_directory": str(spilled)}
        cluster = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
        cluster.add_node(**node)
        ray.init(address=cluster.address, log_to_driver=False)
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield ray
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture(scope="module")
def rows(tiny_folder):
    """Rows of two texts, and the scores of both by the engine."""
    lengths = np.random.default_rng(0).integers(1, 30, 600)
    rows = [{"id": index, "text": text, "second": text[::2]} for index, text in enumerate(texts_of_lengths(lengths))]
    with flaxsent.Engine(flaxsent.load(tiny_folder("bert"), backend="native")) as engine:
        return rows, engine([row["text"] for row in rows]), engine([(row["text"], row["second"]) for row in rows])


def check(found, rows, scores_BC):
    assert [row["id"] for row in found] == [row["id"] for row in rows], "each row once"
    assert [row["text"] for row in found] == [row["text"] for row in rows]
    best_B = scores_BC.argmax(axis=-1)
    assert [row["label"] for row in found] == [f"LABEL_{index}" for index in best_B]
    np.testing.assert_allclose([row["score"] for row in found], scores_BC.max(axis=-1), rtol=0, atol=TOLERANCE)


def by_id(dataset):
    return sorted(dataset.take_all(), key=lambda row: row["id"])


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
def test_parquet_to_parquet_has_each_row_once_with_the_engines_numbers(ray, rows, tiny_folder, tmp_path):
    rows, scores_BC, _ = rows
    ray.data.from_items(rows, override_num_blocks=7).write_parquet(str(tmp_path / "in"))
    scored = flaxsent_ray.classify(
        ray.data.read_parquet(str(tmp_path / "in")), model=tiny_folder("bert"), num_actors=2, batch_size=50
    )
    scored.write_parquet(str(tmp_path / "out"))
    check(by_id(ray.data.read_parquet(str(tmp_path / "out"))), rows, scores_BC)


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
def test_pairs_all_scores_and_an_exported_folder(ray, rows, tiny_folder, tmp_path):
    rows, _, scores_BC = rows
    config.update("jaxtyping_disable", True)  # as in test_export.py
    try:
        flaxsent.export(flaxsent.load(tiny_folder("bert"), backend="native"), tmp_path / "export")
    finally:
        config.update("jaxtyping_disable", False)
    found = by_id(
        flaxsent_ray.classify(
            ray.data.from_items(rows), model=tmp_path / "export", second_column="second", all_scores=True, prefix="our "
        )
    )
    scores = [[row[f"our LABEL_{index}"] for index in range(3)] for row in found]
    np.testing.assert_allclose(scores, scores_BC, rtol=0, atol=TOLERANCE)
    assert {"our label", "our score", "id", "text", "second"} < found[0].keys()


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
def test_labels_given_at_run_time_and_how_certain_two_models_are_of_them(ray, rows, tiny_folder):
    rows, names = rows[0][:100], {"0": "entailment", "1": "neutral", "2": "contradiction"}
    models = [tiny_folder("bert", id2label=names, seed=seed) for seed in (0, 1)]
    asked = {"labels": ["film", "so bad"], "template": "it is {}", "multi_label": True}
    read = {"stride": 3, "pooling": "mean_probabilities"}
    found = by_id(
        flaxsent_ray.classify(
            ray.data.from_items(rows),
            model=models,
            zero_shot=asked,
            windows=read,
            uncertainty=True,
            all_scores=True,
            num_actors=1,
        )
    )
    classifier, members = members_of([zero_shot(flaxsent.load(model), **asked) for model in models])
    function = uncertainty(members, score_function="sigmoid")
    with flaxsent.Engine(windows(classifier, **read), function=function) as engine:
        expected = engine([row["text"] for row in rows])
    for name, values in columns(expected).items():
        np.testing.assert_allclose([row[name] for row in found], values, rtol=0, atol=TOLERANCE)
    scores_BC = np.array([[row["film"], row["so bad"]] for row in found])
    np.testing.assert_allclose(scores_BC, expected.scores, rtol=0, atol=TOLERANCE)
    for row, scores_C in zip(found, scores_BC, strict=True):
        given = [asked["labels"][index] for index in np.argsort(-scores_C) if scores_C[index] > 0.5]
        assert [*row["label"]] == given
        np.testing.assert_allclose(row["score"], [row[label] for label in given], rtol=0, atol=TOLERANCE)


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
def test_embeddings_are_a_column_of_lists(ray, rows, tiny_folder):
    rows, classifier = rows[0][:100], flaxsent.load(tiny_folder("bert"))
    found = by_id(flaxsent_ray.classify(ray.data.from_items(rows), model=tiny_folder("bert"), embeddings=True))
    with flaxsent.Engine(classifier, function=classifier.embeddings) as engine:
        expected = engine([row["text"] for row in rows])
    # Vectors of size 1.
    np.testing.assert_allclose([row["embedding"] for row in found], expected, rtol=0, atol=1e-5)
    assert {"label", "score"} < found[0].keys()


def actors():
    """The processes that hold an engine."""
    import psutil

    return {process.pid: process for process in psutil.process_iter() if "_Scorer" in _title(process)}


def _title(process):
    import psutil

    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
def test_an_actor_that_is_killed_in_the_middle_costs_nothing(ray, rows, tiny_folder):
    rows, scores_BC, _ = rows
    # Half a second a block: the last is not begun when the first is done.
    slow = ray.data.from_items(rows, override_num_blocks=30).map_batches(
        lambda batch: time.sleep(0.5) or batch, batch_size=None, concurrency=1
    )
    scored = flaxsent_ray.classify(slow, model=tiny_folder("bert"), num_actors=2, batch_size=20)
    found, killed = [], None
    for row in scored.iter_rows():
        found.append(row)
        if killed is None:
            there = actors()
            assert len(there) == 2
            killed = min(there)
            there[killed].kill()
    check(sorted(found, key=lambda row: row["id"]), rows, scores_BC)
    assert killed not in actors()


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
def test_rows_that_memory_does_not_hold_spill(ray, rows, tiny_folder, spilled):
    rows, scores_BC, _ = rows
    heavy = ray.data.from_items(rows, override_num_blocks=60).map_batches(
        lambda batch: batch | {"heavy": [b"x" * (3 << 17)] * len(batch["id"])}, batch_size=None
    )
    scored = flaxsent_ray.classify(heavy, model=tiny_folder("bert"), num_actors=2, batch_size=20).materialize()
    num_bytes = sum(file.stat().st_size for file in spilled.rglob("*") if file.is_file())
    assert num_bytes > 50 << 20, "of 236 MB, memory holds 168 at most"
    check(by_id(scored.select_columns(["id", "text", "label", "score"])), rows, scores_BC)


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
def test_mistakes_are_one_line_before_anything_is_computed(ray, rows, tmp_path, tiny_folder):
    dataset = ray.data.from_items(rows[0])
    for arguments, error, message in [
        (
            {"model": "/nowhere/at/all"},
            FileNotFoundError,
            "node .*: /nowhere/at/all is no folder; expected a checkpoint folder",
        ),
        ({"model": tmp_path}, FileNotFoundError, "has no config.json"),
        ({"text_column": "texts"}, ValueError, "the dataset has no column 'texts'; it has id, text, second"),
        ({"num_actors": 0}, ValueError, "num_actors=0: expected 1 or more"),
        ({"batch_size": -1}, ValueError, "batch_size=-1: expected 1 or more"),
        ({"model": []}, ValueError, "expected one model or more"),
        ({"embeddings": True, "uncertainty": True}, ValueError, "embeddings need one model, without uncertainty"),
        ({"embeddings": True, "zero_shot": {"labels": ["a"]}}, ValueError, "another vector with each of the labels"),
        ({"zero_shot": {}}, ValueError, "expected a list of one or more labels"),
        ({"zero_shot": {"labels": ["a"], "template": "so"}}, ValueError, "does not name the label"),
        ({"zero_shot": {"labels": ["a"]}, "second_column": "second"}, ValueError, "does not go with zero_shot"),
        ({"windows": {}, "uncertainty": True}, ValueError, "windows pool mean_logits; expected the pooling"),
    ]:
        with pytest.raises(error, match=message) as refusal:
            flaxsent_ray.classify(dataset, **{"model": tiny_folder("bert")} | arguments)
        assert "\n" not in str(refusal.value)
    with pytest.raises(ValueError, match="has a column 'label' already; pass prefix="):
        flaxsent_ray.classify(ray.data.from_items([{"text": "a", "label": 1}]), model=tiny_folder("bert"))
    empty = flaxsent_ray.classify(ray.data.from_items([{"text": "a"}, {"text": None}]), model=tiny_folder("bert"))
    with pytest.raises(Exception, match="the column 'text' has a row with None; expected text"):
        empty.take_all()


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
def test_a_score_that_is_no_number_is_an_error_and_no_row(ray, tmp_path, tiny_folder):
    classifier = flaxsent.load(tiny_folder("bert"), backend="native")
    last = {name: leaf * np.float32(np.nan) for name, leaf in flaxsent.models.last_layer(classifier.params).items()}
    params = flaxsent.models.with_last_layer(classifier.params, last)
    flaxsent.save(dataclasses.replace(classifier, params=params), tmp_path / "broken")
    scored = flaxsent_ray.classify(ray.data.from_items([{"text": "so good"}]), model=tmp_path / "broken")
    with pytest.raises(
        Exception, match=r"the text 'so good' has a score that is not a finite number: \[nan, nan, nan\]"
    ):
        scored.take_all()


def test_without_ray_the_command_that_installs_it_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r'pip install "flaxsent\[ray\]"'):
        flaxsent_ray.classify(None)
