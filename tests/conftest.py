"""JAX's own checks, and the tiny checkpoints that the tests share: nothing is downloaded.

The random models are those of `flaxsent parity`.
"""

import contextlib
import importlib.util
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

# No test reads or fills the cache of whoever runs it.
_CACHE = tempfile.TemporaryDirectory(prefix="flaxsent-tests-")
os.environ["FLAXSENT_CACHE"] = _CACHE.name
# jaxlib 0.10 prints pages about the processor when it reads what it compiled before; the command line sets this, too.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Tests of small models spend their time compiling, here and in the processes that they start. The mark
# `compiled_as_for_users` has all of XLA's optimizations again, and `flaxsent parity` has them always.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax
import jaxtyping
import numpy as np
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")

with install_import_hook("flaxsent", "beartype.beartype"):
    import flaxsent
    import flaxsent.bench.plan
    import flaxsent.bench.train_work
    import flaxsent.cli
    import flaxsent.evaluation.explanations
    import flaxsent.evaluation.report
    import flaxsent.jobs.run
    import flaxsent.parity.compare
    import flaxsent.training.run
    from flaxsent.checkpoint import exported
    from flaxsent.models import flax_auto
    from flaxsent.models.config import ModelConfig, read_config
    from flaxsent.parity.random_checkpoints import CONFIGS, random_checkpoint

    if flax_auto.is_installed():
        import flaxsent.flax

NATIVE = [name for name, family in flaxsent.models.FAMILIES.items() if family.is_native]
HAS_TORCH = importlib.util.find_spec("torch") is not None
HAS_LIBTPU = importlib.util.find_spec("libtpu") is not None
HAS_FLAX = flax_auto.is_installed()
HAS_FLAX_AUTO = flax_auto.has_theirs()

AWKWARD_TEXTS = [
    "",
    " ",
    "a",
    "\t\n \u2003",
    "I've been waiting for a HuggingFace course my whole life",
    "I hate this so much!",
    "not bad at all 😀👩‍👩‍👧‍👦🇰🇷",
    "هذا رائع \u202eשלום עולם\u202c",
    "이 영화 정말 좋아요 — 本当に、すごい。",
    "[CLS] [SEP] [MASK] [PAD] <s> </s>",
    "x" * 3000,
    "\x00\x01\x7f\ufeffZ\u0301\u0327a\u030a",
    "1234567890 3.14159 1e-30 ½ ① Ⅳ",
    "word " * 400,
]
"""Empty, spaces, scripts, emoji, special tokens spelt out, control characters, long ones."""


def others_slow(first: Iterable[Any], everything: Iterable[Any]) -> list[Any]:
    """Arguments for `parametrize`: `first` for every run, the others of `everything` with the mark `slow`.

    A tuple is one argument for each name.
    """
    first = [*first]
    others = [one if isinstance(one, tuple) else (one,) for one in everything if one not in first]
    return [*first, *(pytest.param(*one, marks=pytest.mark.slow) for one in others)]


def pytest_addoption(parser):
    parser.addoption(
        "--one-of-each",
        action="store_true",
        help="of a test with several arguments, run the first that can run here, and report the first that cannot",
    )


@pytest.hookimpl(trylast=True)  # after -m
def pytest_collection_modifyitems(config, items):
    """Tests that need a package which this environment does not have say so, one by one."""
    for item in items:
        if item.get_closest_marker("torch") and not HAS_TORCH:
            item.add_marker(pytest.mark.skip(reason="needs PyTorch"))
        if item.get_closest_marker("tpu") and not HAS_LIBTPU:
            item.add_marker(pytest.mark.skip(reason="needs libtpu"))
        if item.get_closest_marker("flax_auto") and not HAS_FLAX_AUTO:
            item.add_marker(pytest.mark.skip(reason="needs the Flax classes of transformers 4"))
    if config.getoption("one_of_each"):
        kept, again, seen = [], [], set()
        for item in items:
            is_skipped = item.get_closest_marker("skip") is not None
            one = (item.path, getattr(item, "originalname", item.name), is_skipped)
            is_another = one in seen and item.get_closest_marker("each_of_all") is None
            (again if is_another else kept).append(item)
            seen.add(one)
        items[:] = kept
        config.hook.pytest_deselected(items=again)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """A test with the mark `compiled_as_for_users` has them, and so have its fixtures and the processes it starts."""
    if item.get_closest_marker("compiled_as_for_users") is None:
        return (yield)
    before = jax.config.read("jax_disable_most_optimizations")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")
        jax.config.update("jax_disable_most_optimizations", False)
        try:
            return (yield)
        finally:
            jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """`tiny_folder(family, **changes)`: a checkpoint folder of random weights; changes go into its config.json."""
    made: dict[str, Path] = {}

    def make(family: str, **changes) -> Path:
        key = json.dumps([family, changes], sort_keys=True)
        if key not in made:
            made[key] = tmp_path_factory.mktemp(family)
            random_checkpoint(made[key], family, **changes)
        return made[key]

    return make


@pytest.fixture(scope="module")
def symbolic_sizes():
    """While functions are lowered, sizes are symbols where signatures say int, which beartype would refuse."""
    functions = exported._functions

    def unchecked(*arguments):
        jaxtyping.config.update("jaxtyping_disable", True)
        try:
            return functions(*arguments)
        finally:
            jaxtyping.config.update("jaxtyping_disable", False)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exported, "_functions", unchecked)
        yield


@pytest.fixture(scope="session")
def embedded():
    """The embedded checkpoint, natively."""
    return flaxsent.load(backend="native")


def config_of(folder: Path, family: str, **changes) -> ModelConfig:
    """What `load` reads of a folder that holds a tokenizer and no weights: a tiny config, with sizes for any text."""
    named = json.loads((folder / "config.json").read_text()) if (folder / "config.json").is_file() else {}
    sizes = {"vocab_size": 10**6, "max_position_embeddings": 600}
    return read_config(json.dumps(CONFIGS[family] | sizes | named | changes | {"model_type": family}))


def texts_of_lengths(lengths, seed: int = 0) -> list[str]:
    """Texts of that many word pieces each, special tokens not counted."""
    rng = np.random.default_rng(seed)
    return [
        " ".join(rng.choice(["the", "film", "not", "bad", "good", "hate", "so", "a", "i"], length))
        for length in lengths
    ]


def accuracy(classifier, data) -> float:
    """Share of the texts whose best label is the right one."""
    found = [prediction.label for prediction in flaxsent.classify(data.texts, classifier)]
    return float(
        np.mean([label == classifier.config.labels[index] for label, index in zip(found, data.labels, strict=True)])
    )


@contextlib.contextmanager
def counted_compilations() -> Iterator[list[str]]:
    """What is compiled within the block, an entry each; the listener has heard one before."""
    heard: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: heard.append(event) if "backend_compile" in event else None
    )
    try:
        jax.jit(lambda x: x * 3)(np.ones(3))
        assert len(heard) == 1, "the listener hears compilations"
        heard.clear()
        yield heard
    finally:
        jax.monitoring.clear_event_listeners()
