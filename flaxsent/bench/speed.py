"""Texts a second beside other libraries, on the same texts in one run: `flaxsent bench`.

First the model and the texts, then the peers (`PEERS`: each a function that makes a predictor of a checkpoint), then
the rounds. Each library is timed once a round, so that a machine that slows down slows all of them; tokenizing counts.
"""

import contextlib
import functools
import importlib.metadata
import importlib.util
import inspect
import json
import math
import os
import platform
import shutil
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
import tokenizers
from jaxtyping import Float, Int

from flaxsent import models
from flaxsent.base import FlaxsentError, Tokens
from flaxsent.checkpoint import hub, weights
from flaxsent.checkpoint.folder import load
from flaxsent.classifier import Classifier
from flaxsent.engine import Engine, Stats, num_cores
from flaxsent.models.config import ModelConfig, read_config
from flaxsent.packing import select
from flaxsent.parity.compare import backends_of, pytorch_model, quietly
from flaxsent.parity.random_checkpoints import random_params

INSTALL = 'pip install "flaxsent[bench]"'

OURS = {"flaxsent-f32": "float32", "flaxsent-bf16": "bfloat16"}
"""Always measured, in these dtypes; the labels of the first are what those of all others are compared with."""

AGREEMENT = 0.75
"""With fewer labels in common, a peer computes something else: half is chance. int8 turns close calls, of which a
random model has many: it keeps 9 of 10 labels."""

Predict = Callable[[Sequence[str], int], Int[np.ndarray, " B"]]
"""`predict(texts, batch_size)`: the index of the label of each text, in their order."""


class Source(NamedTuple):
    """What a predictor is made of."""

    folder: Path
    classifier: Classifier
    """The checkpoint, read by flaxsent in float32: its tokenizer serves the peers too."""
    scratch: Path
    """A folder for converted models, shared by the peers of a run."""


class Peer(NamedTuple):
    """Another way to the same labels."""

    make: Callable[[Source], Predict]
    is_cpu_only: bool = False
    compiles: bool = False
    """Takes long the first time that it sees a shape."""


class Workload(NamedTuple):
    """Texts that are measured together."""

    name: str
    texts: list[str]


class Timing(NamedTuple):
    """What a library took for the texts of a workload."""

    batch_size: int | None
    """The best of those tried; None where the library chooses."""
    seconds: list[float]
    """One a round."""
    agreement: float
    """Share of the texts with the label that flaxsent gives in float32."""


class Efficiency(NamedTuple):
    """What flaxsent makes of the machine."""

    tokens_per_second: float
    """Real ones: padding does not count."""
    real_share: float
    """Real tokens among the places of the rows."""
    operations_per_second: float | None
    """Of the matrix products that the real tokens need; None where flaxsent does not know how many these are."""


class Result(NamedTuple):
    """The figures of a workload, by the names of the libraries."""

    workload: str
    num_texts: int
    num_tokens: int
    num_truncated: int
    timings: dict[str, Timing]
    efficiencies: dict[str, Efficiency]


class Report(NamedTuple):
    """The figures of a run."""

    model: str
    machine: str
    versions: dict[str, str]
    peak: dict[str, float]
    """Operations a second of the fastest matrix product in each dtype."""
    skipped: dict[str, str]
    """The peers that were not measured, and why."""
    results: list[Result]


def run(
    model: str | os.PathLike | None = None,
    *,
    peers: Sequence[str] | None = None,
    texts: str | os.PathLike | None = None,
    num_texts: int | None = None,
    rounds: int | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Report:
    """Measures flaxsent and its peers.

    Args:
        model: folder or Hub id; None is a model of DistilBERT's size with random weights.
        peers: names out of `PEERS`, all of them by default. One that is not installed, or fails, is skipped.
        texts: a file with a text on each line; None is made-up texts as long as those of SST-2 and of IMDb.
        num_texts: how many texts; of those as long as IMDb's, a seventh.
        rounds: how often each is timed; None is three times, or less where that would take more than ten minutes.
        report: called with a line on what goes on.

    Raises:
        FlaxsentError: no such peer, a number that is not positive, or a model or texts that cannot be measured.
        Whatever `load` raises.
    """
    names = [*PEERS] if peers is None else [*peers]
    if unknown := [name for name in names if name not in PEERS]:
        raise FlaxsentError(f"there is no peer {', '.join(unknown)}; expected some of {', '.join(PEERS)}.")
    if rounds is not None and rounds < 1:
        raise FlaxsentError(f"rounds={rounds}: expected a positive number.")
    begin = time.perf_counter()
    workloads, skipped, tell = _workloads(texts, num_texts), {}, _with_seconds(report, begin)
    with TemporaryDirectory() as scratch, quietly():
        tell("opening the model")
        source = _open(model, Path(scratch))
        stats: dict[str, list[Stats]] = {name: [] for name in OURS}
        predictors = {name: _flaxsent(source.folder, dtype, stats[name]) for name, dtype in OURS.items()}
        for name in names:
            tell(f"preparing {name}")
            with _or_skipped(name, skipped, tell):
                predictors[name] = _make(PEERS[name], source)
        peak, results = dict.fromkeys(OURS.values(), 0.0), []
        for number, workload in enumerate(workloads, start=1):
            until = begin + _SECONDS * number / len(workloads) if rounds is None else math.inf
            for windows in stats.values():
                windows.clear()
            encodings = source.classifier.tokenizer.encode(workload.texts)
            lengths = [len(ids) for ids in encodings.input_ids]
            timings = _measure(
                workload, predictors, rounds=rounds or _ROUNDS, until=until, skipped=skipped, report=tell
            )
            efficiencies = {
                name: _efficiency(timings[name], stats[name], lengths, source.classifier.config) for name in OURS
            }
            tell("measuring the fastest matrix product")
            peak = {dtype: max(best, _matrix_peak(dtype)) for dtype, best in peak.items()}
            results.append(
                Result(
                    workload=workload.name,
                    num_texts=len(lengths),
                    num_tokens=sum(lengths),
                    num_truncated=encodings.num_truncated,
                    timings=timings,
                    efficiencies=efficiencies,
                )
            )
    return Report(
        model="DistilBERT's size, random weights" if model is None else str(model),
        machine=_machine(),
        versions=_versions(),
        peak=peak,
        skipped=skipped,
        results=results,
    )


_ROUNDS, _SECONDS = 3, 540
"""Without a number of rounds, the last ends before so many seconds, if each workload has had one."""


def _with_seconds(report: Callable[[str], None], begin: float) -> Callable[[str], None]:
    """Puts the seconds since `begin` before each line."""
    return lambda line: report(f"{time.perf_counter() - begin:4.0f} s  {line}")


def texts_per_second(result: Result, name: str) -> float:
    """By the median round."""
    return result.num_texts / statistics.median(result.timings[name].seconds)


def ratio(result: Result, name: str, other: str) -> float:
    """How many times as fast as `other` a library is: the median of what each round says.

    >>> timings = {"a": Timing(None, [1.0, 2.0, 1.0], 1.0), "b": Timing(8, [3.0, 4.0, 5.0], 1.0)}
    >>> ratio(Result("", 1, 1, 0, timings, {}), "a", "b")
    3.0
    """
    seconds, others = result.timings[name].seconds, result.timings[other].seconds
    return statistics.median(theirs / ours for ours, theirs in zip(seconds, others, strict=True))


# The model and the texts


def _open(model: str | os.PathLike | None, scratch: Path) -> Source:
    if model is None:
        write_model(scratch)
    folder = scratch if model is None else hub.find(model)
    classifier = _load(folder, "float32")
    if classifier.config.num_labels < 2:
        raise FlaxsentError(f"{model} gives one number for a text; expected labels, by which peers are compared.")
    return Source(folder, classifier, scratch)


def _load(folder: Path, dtype: str) -> Classifier:
    """Natively where it can be: the engine packs texts for flaxsent's own encoders."""
    return load(folder, backend=next(reversed(backends_of(folder)), None), dtype=dtype)


_DISTILBERT = {
    "model_type": "distilbert",
    "architectures": ["DistilBertForSequenceClassification"],
    "dim": 768,
    "hidden_dim": 3072,
    "n_layers": 6,
    "n_heads": 12,
    "max_position_embeddings": 512,
    "id2label": {"0": "NEGATIVE", "1": "POSITIVE"},
    "label2id": {"NEGATIVE": 0, "POSITIVE": 1},
}


def write_model(folder: Path, **changes: Any) -> None:
    """Writes a DistilBERT with random weights and the embedded checkpoint's vocabulary, BERT's 30,522 pieces.

    About half the texts of `make_texts` get each label. `changes` go into its config.json: other sizes.
    """
    tokenizer = (hub.EMBEDDED / "tokenizer.json").read_bytes()
    vocab_size = tokenizers.Tokenizer.from_buffer(tokenizer).get_vocab_size()
    raw = json.dumps(_DISTILBERT | {"vocab_size": vocab_size} | changes)
    (folder / "config.json").write_text(raw)
    (folder / "tokenizer.json").write_bytes(tokenizer)
    settings = {"tokenizer_class": "DistilBertTokenizer", "model_max_length": 512, "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tensors = dict(weights.to_tensors(random_params(models.shapes(read_config(raw)))))
    # Positions as large as words would make all long texts alike.
    tensors[_POSITIONS] = tensors[_POSITIONS] * np.float32(0.1)
    safetensors.numpy.save_file(tensors, folder / weights.SAFETENSORS, metadata={"format": "pt"})
    with Engine(load(folder, backend="native")) as engine:
        probs_BC = engine([*make_texts(_like_sst2, 32), *make_texts(_like_imdb, 32)])
    tensors["classifier.bias"] = tensors["classifier.bias"] - np.median(np.log(probs_BC), axis=0)
    safetensors.numpy.save_file(tensors, folder / weights.SAFETENSORS, metadata={"format": "pt"})


_POSITIONS = "distilbert.embeddings.position_embeddings.weight"


def _workloads(file: str | os.PathLike | None, num_texts: int | None) -> list[Workload]:
    if num_texts is None:
        num_texts = _NUM_TEXTS if _is_on_cpu() else _NUM_TEXTS_ON_ACCELERATOR
    if num_texts < 1:
        raise FlaxsentError(f"num_texts={num_texts}: expected a positive number.")
    if file is not None:
        return [Workload(Path(file).name, read_texts(file, num_texts))]
    return [Workload(name, make_texts(draw, max(num_texts // part, 1))) for name, draw, part in _MADE_UP]


Draw = Callable[[np.random.Generator, int], Float[np.ndarray, " B"]]
"""`draw(rng, num_texts)`: lengths in tokens."""


def _like_sst2(rng: np.random.Generator, num_texts: int) -> Float[np.ndarray, " B"]:
    """SST-2's 872 dev sentences have 25.2 tokens on average (deviation 10.4), 55 at most."""
    return np.clip(rng.gamma(5.9, 4.27, num_texts), 4, 60)


def _like_imdb(rng: np.random.Generator, num_texts: int) -> Float[np.ndarray, " B"]:
    """230 tokens on average, with a long tail that is cut."""
    return np.clip(rng.lognormal(np.log(200), 0.6, num_texts), 16, 512)


_MADE_UP = (("sst2-like", _like_sst2, 1), ("imdb-like", _like_imdb, 7))
"""Name, lengths, and by what `num_texts` is divided: long texts take as long as so many short ones."""
_NUM_TEXTS, _NUM_TEXTS_ON_ACCELERATOR = 160, 16384
"""On two cores, three rounds of so many take less than ten minutes."""


def make_texts(draw: Draw, num_texts: int) -> list[str]:
    """Different texts of English words, the frequent ones often; the same at each call."""
    vocabulary = tokenizers.Tokenizer.from_file(str(hub.EMBEDDED / "tokenizer.json")).get_vocab()
    # BERT's vocabulary has the frequent words first, after letters.
    pieces = sorted(vocabulary, key=vocabulary.__getitem__)
    words = np.array([piece for piece in pieces if piece.isascii() and piece.isalpha() and len(piece) > 1])
    frequencies = 1 / np.arange(10, len(words) + 10)
    frequencies /= frequencies.sum()
    rng = np.random.default_rng(0)
    # Every hundredth of many: as few as ten texts have the mean of the distribution.
    lengths = rng.permutation(np.sort(draw(rng, 100 * num_texts))[50::100]).round().astype(int)
    texts: dict[str, None] = {}
    for length in lengths:
        text = None
        while text is None or text in texts:
            drawn = rng.choice(words, length - 3, p=frequencies)  # [CLS], the full stop, [SEP]
            text = " ".join([*drawn, "."])
        texts[text] = None
    return [*texts]


def read_texts(file: str | os.PathLike, num_texts: int) -> list[str]:
    """The first different lines of a file: no library shall gain by texts that are there twice.

    Raises:
        FlaxsentError: it has none, or is not UTF-8 text.
    """
    try:
        lines = Path(file).read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as err:
        raise FlaxsentError(f"{file} is not UTF-8 text: {err}; convert it first.") from err
    texts = [*dict.fromkeys(line for line in lines if line.strip())][:num_texts]
    if not texts:
        raise FlaxsentError(f"{file} has no text; expected one on each line.")
    return texts


# The libraries


def _flaxsent(folder: Path, dtype: str, stats: list[Stats]) -> Predict:
    """On one accelerator, or on all cores of the CPU, as the peers."""
    devices = jax.local_devices() if _is_on_cpu() else jax.local_devices()[:1]
    engine = Engine(_load(folder, dtype), devices=devices, on_window=stats.append)
    engine.warmup()
    return lambda texts, batch_size: engine(texts).argmax(axis=-1)


def _pipeline(source: Source, *, sort: bool) -> Predict:
    """`transformers.pipeline`, given the texts as they come, or those of like length together."""
    import torch
    from transformers import AutoTokenizer, pipeline

    labels = source.classifier.config.labels
    tokenizer = AutoTokenizer.from_pretrained(source.folder, local_files_only=True, trust_remote_code=False)
    classify = pipeline(
        "text-classification",
        model=pytorch_model(source.folder, dtype="float32"),
        tokenizer=tokenizer,
        device=torch.device(_pytorch_device()),
    )

    def predict(texts: Sequence[str], batch_size: int) -> Int[np.ndarray, " B"]:
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]) if sort else index)
        limit = source.classifier.tokenizer.max_length
        outputs = classify([texts[index] for index in order], batch_size=batch_size, truncation=True, max_length=limit)
        found = np.zeros(len(texts), np.int64)
        found[order] = [labels.index(output["label"]) for output in outputs]
        return found

    return predict


def _pytorch(source: Source, *, dtype: str, compiled: bool = False) -> Predict:
    import torch

    device = _pytorch_device()
    if device == "cpu" and dtype == "bfloat16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        raise RuntimeError("PyTorch is slower in bfloat16 than in float32 on this processor")
    if device == "cpu" and compiled and shutil.which(os.environ.get("CXX", "g++")) is None:
        raise RuntimeError("torch.compile needs a C++ compiler")
    model = pytorch_model(source.folder, dtype=dtype).to(device)
    names = _input_names(model)
    if compiled:
        model = torch.compile(model, dynamic=True)

    def logits(batches: Iterable[Tokens]) -> Iterator[Float[np.ndarray, "B C"]]:
        with torch.inference_mode():
            inputs = ({name: torch.tensor(getattr(batch, name), device=device) for name in names} for batch in batches)
            outputs = [model(**named).logits for named in inputs]
            yield from (output.float().cpu().numpy() for output in outputs)

    return _length_sorted(source.classifier, logits)


def _pytorch_device() -> str:
    """The kind of device that JAX is on."""
    import torch

    if _is_on_cpu():
        torch.set_num_threads(num_cores())
        return "cpu"
    if not torch.cuda.is_available():
        raise RuntimeError("this PyTorch does not see the accelerator")
    return "cuda"


def _input_names(model: Any) -> list[str]:
    """Those of `Tokens` that a PyTorch model takes; it makes the positions itself."""
    taken = inspect.signature(model.forward).parameters
    return [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in taken]


def _length_sorted(
    classifier: Classifier, logits: Callable[[Iterable[Tokens]], Iterable[Float[np.ndarray, "B C"]]]
) -> Predict:
    """Batches of texts of like length, the longest first, each padded to its longest."""

    def predict(texts: Sequence[str], batch_size: int) -> Int[np.ndarray, " B"]:
        encodings = classifier.tokenizer.encode(texts)
        order = sorted(range(len(texts)), key=lambda index: -len(encodings.input_ids[index]))
        starts = range(0, len(order), batch_size)
        batches = (classifier.pad(select(encodings, order[start : start + batch_size])) for start in starts)
        labels = np.zeros(len(texts), np.int64)
        labels[order] = np.concatenate([*logits(batches)]).argmax(axis=-1)
        return labels

    return predict


def _onnxruntime(source: Source, *, quantized: bool) -> Predict:
    import onnxruntime

    file = _onnx_file(source)
    if quantized:
        from onnxruntime.quantization import quantize_dynamic

        quantize_dynamic(file, file := source.scratch / "int8.onnx", per_channel=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_cores()
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    names = [argument.name for argument in session.get_inputs()]

    def logits(batches: Iterable[Tokens]) -> Iterator[Float[np.ndarray, "B C"]]:
        return (np.asarray(session.run(None, _int64(batch, names))[0]) for batch in batches)

    return _length_sorted(source.classifier, logits)


def _openvino(source: Source, *, precision: str) -> Predict:
    """With the hint THROUGHPUT: batches side by side on a core each, faster here than one on all cores (LATENCY)."""
    import openvino

    core = openvino.Core()
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise RuntimeError("OpenVINO has no bfloat16 on this processor")
    # openvino.convert_model would give the same; it reports its use to the maker.
    file = _onnx_file(source)
    hints = {
        "PERFORMANCE_HINT": "THROUGHPUT",
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": num_cores(),
    }
    compiled = core.compile_model(core.read_model(file), "CPU", hints)
    names = [argument.any_name for argument in compiled.inputs]

    def logits(batches: Iterable[Tokens]) -> Iterator[Float[np.ndarray, "B C"]]:
        outputs: dict[int, Float[np.ndarray, "B C"]] = {}
        waiting = openvino.AsyncInferQueue(compiled)
        waiting.set_callback(lambda request, index: outputs.update({index: request.get_output_tensor().data.copy()}))
        for index, batch in enumerate(batches):
            waiting.start_async(_int64(batch, names), userdata=index)
        waiting.wait_all()
        return (outputs[index] for index in range(len(outputs)))

    return _length_sorted(source.classifier, logits)


def _int64(batch: Tokens, names: Sequence[str]) -> dict[str, Int[np.ndarray, "B L"]]:
    return {name: getattr(batch, name).astype(np.int64) for name in names}


def _onnx_file(source: Source) -> Path:
    """The checkpoint as ONNX, through PyTorch, for any number of texts of any length; written once."""
    file = source.scratch / "float32.onnx"
    if not file.exists():
        import torch

        model = pytorch_model(source.folder, dtype="float32")
        names = _input_names(model)
        # Sizes that are neither 1 nor alike, which would count as fixed.
        example = {name: torch.ones((2, 8), dtype=torch.int64) for name in names}
        axes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
        torch.onnx.export(
            model,
            (),
            file,
            kwargs=example,
            input_names=names,
            output_names=["logits"],
            dynamic_shapes=dict.fromkeys(names, axes),
            dynamo=True,
            verbose=False,
        )
    return file


def _flax_auto(source: Source) -> Predict:
    """FlaxAutoModelForSequenceClassification under `jit`, padded to few shapes, each compiled once."""
    classifier = load(source.folder, backend="flax")
    forward = jax.jit(classifier.forward)

    def logits(batches: Iterable[Tokens]) -> Iterator[Float[np.ndarray, "B C"]]:
        num_rows, outputs = 0, []
        for batch in batches:
            num_texts, length = batch.input_ids.shape
            num_rows = max(num_rows, num_texts)  # the last batch may be smaller
            filling = ((0, num_rows - num_texts), (0, _few(length, classifier.tokenizer.max_length) - length))
            filled = jax.tree.map(functools.partial(np.pad, pad_width=filling), batch)
            outputs.append((num_texts, forward(classifier.params, filled)))
        return (np.asarray(output)[:num_texts] for num_texts, output in outputs)

    return _length_sorted(classifier, logits)


def _few(length: int, limit: int) -> int:
    """The next of 16, 24, 32, 48, 64, 96, ...; the limit at most.

    >>> [_few(length, 500) for length in (3, 17, 25, 64, 400)]
    [16, 24, 32, 64, 500]
    """
    double = max(16, 1 << (length - 1).bit_length())
    between = double * 3 // 4
    return min(between if between >= max(length, 16) else double, limit)


PEERS: dict[str, Peer] = {
    "pipeline": Peer(functools.partial(_pipeline, sort=False)),
    "pipeline-sorted": Peer(functools.partial(_pipeline, sort=True)),
    "torch-f32": Peer(functools.partial(_pytorch, dtype="float32")),
    "torch-bf16": Peer(functools.partial(_pytorch, dtype="bfloat16")),
    "torch-compiled-f32": Peer(functools.partial(_pytorch, dtype="float32", compiled=True), compiles=True),
    "torch-compiled-bf16": Peer(functools.partial(_pytorch, dtype="bfloat16", compiled=True), compiles=True),
    "onnx-f32": Peer(functools.partial(_onnxruntime, quantized=False), is_cpu_only=True),
    "onnx-int8": Peer(functools.partial(_onnxruntime, quantized=True), is_cpu_only=True),
    "openvino-f32": Peer(functools.partial(_openvino, precision="f32"), is_cpu_only=True),
    "openvino-bf16": Peer(functools.partial(_openvino, precision="bf16"), is_cpu_only=True),
    "flax-auto": Peer(_flax_auto, compiles=True),
}
"""All sort the texts by length and pad each batch to its longest, but for `pipeline`, which takes them as they come."""


def _make(peer: Peer, source: Source) -> Predict:
    if peer.is_cpu_only and not _is_on_cpu():
        raise RuntimeError(f"it runs on the CPU, not on {jax.default_backend()}")
    predict = peer.make(source)
    predict(["so good", "so bad"], 2)  # what compiles or fails at the first texts does so now
    return predict


@contextlib.contextmanager
def _or_skipped(name: str, skipped: dict[str, str], report: Callable[[str], None]) -> Iterator[None]:
    """Whatever ails another library, the run goes on without it."""
    try:
        yield
    except Exception as err:
        skipped[name] = " ".join(f"{err}".split())[:200] or type(err).__name__
        if isinstance(err, ImportError):
            skipped[name] += f" ({INSTALL})"
        report(f"skipped {name}: {skipped[name]}")


# The rounds

_BATCH_SIZES, _BATCH_SIZES_ON_ACCELERATOR = (8, 16, 32, 64), (64, 256, 1024)
_NO_BETTER = 1.05
"""When a batch size takes so many times as long as the best before it, larger ones are not tried."""


def _measure(
    workload: Workload,
    predictors: dict[str, Predict],
    *,
    rounds: int,
    until: float,
    skipped: dict[str, str],
    report: Callable[[str], None],
) -> dict[str, Timing]:
    """Looks for the best batch size of each, has it see every text once, then times the rounds.

    After the first, a round that would not end before `until` is left out.
    """
    ready: dict[str, Callable[[], Any]] = {}
    sizes: dict[str, int | None] = {}
    labels: dict[str, Int[np.ndarray, " B"]] = {}
    for name, predict in predictors.items():
        report(f"{workload.name}: warming up {name}")
        with contextlib.nullcontext() if name in OURS else _or_skipped(name, skipped, report):
            size = None if name in OURS else _best_batch_size(predict, workload.texts, PEERS[name].compiles)
            call = functools.partial(predict, workload.texts, size or 0)
            labels[name] = call()
            ready[name], sizes[name] = call, size
    seconds: dict[str, list[float]] = {name: [] for name in ready}
    for number in range(1, rounds + 1):
        if number > 1 and time.perf_counter() + sum(taken[-1] for taken in seconds.values()) > until:
            break
        report(f"{workload.name}: round {number} of {rounds}")
        for name, call in ready.items():
            seconds[name].append(_seconds(call))
    reference = labels[next(iter(OURS))]
    return {name: Timing(sizes[name], seconds[name], float((labels[name] == reference).mean())) for name in ready}


def _best_batch_size(predict: Predict, texts: Sequence[str], compiles: bool) -> int:
    """The fastest on the first half of the texts."""
    sample = texts[: max(len(texts) // 2, 1)]
    found: dict[int, float] = {}
    for size in _BATCH_SIZES if _is_on_cpu() else _BATCH_SIZES_ON_ACCELERATOR:
        if compiles:
            predict(sample, size)
        found[size] = _seconds(lambda size=size: predict(sample, size))
        if size >= len(sample) or found[size] > _NO_BETTER * min(found.values()):
            break
    return min(found, key=found.__getitem__)


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


# The machine


def _is_on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def _machine() -> str:
    """The processor and its cores, or the accelerator."""
    if not _is_on_cpu():
        return jax.local_devices()[0].device_kind
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), name)
    return f"{name}, {num_cores()} cores"


def _versions() -> dict[str, str]:
    packages = ("flaxsent", "jax", "jaxlib", "flax", "transformers", "tokenizers", "torch", "onnxruntime", "openvino")
    versions = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


_SIZES, _SIZES_ON_ACCELERATOR = (512, 1024, 2048), (2048, 4096, 8192)


def _matrix_peak(dtype: str) -> float:
    """Operations a second of the fastest of a few square products, with sums in float32, as the encoders take them."""
    product = jax.jit(functools.partial(jnp.matmul, precision="highest", preferred_element_type=jnp.float32))
    peak = 0.0
    for size in _SIZES if _is_on_cpu() else _SIZES_ON_ACCELERATOR:
        x = jax.random.normal(jax.random.key(0), (size, size)).astype(dtype)
        product(x, x).block_until_ready()
        best = min(_seconds(lambda x=x: product(x, x).block_until_ready()) for _ in range(8))
        peak = max(peak, 2 * size**3 / best)
    return peak


def _efficiency(timing: Timing, windows: Sequence[Stats], lengths: Sequence[int], config: ModelConfig) -> Efficiency:
    seconds = statistics.median(timing.seconds)
    operations = _operations(lengths, config)
    return Efficiency(
        tokens_per_second=sum(lengths) / seconds,
        real_share=sum(window.num_tokens for window in windows) / sum(window.num_places for window in windows),
        operations_per_second=None if operations is None else operations / seconds,
    )


_PLAIN_FAMILIES = {
    "albert",
    "bert",
    "camembert",
    "distilbert",
    "electra",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
}
"""Six matrices a layer: queries, keys, values, output, and two of the feed-forward."""


def _operations(lengths: Sequence[int], config: ModelConfig) -> float | None:
    """Multiplications and additions in the layers' matrix products that the logits of texts of these lengths need.

    Of the last layer that is keys and values of all tokens, and all else of the classified one only.
    """
    if config.family not in _PLAIN_FAMILIES:
        return None
    lengths_B, size = np.asarray(lengths, np.float64), config.hidden_size
    keys_values = lengths_B * 2 * size**2
    a_token = 2 * size**2 + 2 * size * config.intermediate_size + lengths_B * 2 * size
    each = keys_values + lengths_B * a_token
    return float(2 * ((config.num_layers - 1) * each + keys_values + a_token).sum())


# What is told


def table(report: Report) -> str:
    """The figures of each workload, line by line, the fastest last."""
    versions = ", ".join(f"{package} {version}" for package, version in report.versions.items())
    peak = ", ".join(f"{dtype} {peak / 1e9:,.0f}" for dtype, peak in report.peak.items())
    lines = [report.model, report.machine, versions, f"fastest matrix product, in GFLOP/s: {peak}"]
    for result in report.results:
        lines += ["", *_result_lines(result), *_efficiency_lines(result, report.peak)]
    if report.skipped:
        lines += ["", *(f"skipped {name}: {reason}" for name, reason in report.skipped.items())]
    return "\n".join(lines)


def _result_lines(result: Result) -> Iterator[str]:
    mean = result.num_tokens / result.num_texts
    cut = f" ({result.num_truncated:,} cut)" if result.num_truncated else ""
    rounds = f"medians of {len(next(iter(result.timings.values())).seconds)} rounds"
    yield f"{result.workload}: {result.num_texts:,} texts of {mean:.1f} tokens on average{cut}, {rounds}"
    beside = "".join(f"{f'{name} is':>18}" for name in OURS)
    yield f"{'':20}{'texts/s':>10}{'spread':>8}{'batch':>7}{'same labels':>13}{beside}"
    ascending = sorted(result.timings, key=lambda name: texts_per_second(result, name))
    for name in ascending:
        timing = result.timings[name]
        spread = (max(timing.seconds) - min(timing.seconds)) / statistics.median(timing.seconds)
        ratios = "".join(f"{f'{ratio(result, ours, name):.2f} ×':>18}" for ours in OURS)
        if timing.agreement < AGREEMENT:
            ratios = f"{'no peer: computes something else':>36}"
        yield (
            f"{name:20}{texts_per_second(result, name):10,.1f}{spread:8.0%}{timing.batch_size or '–':>7}"
            f"{timing.agreement:13.1%}{ratios}"
        )
    peers = [name for name in ascending if name not in OURS and result.timings[name].agreement >= AGREEMENT]
    if peers:
        ours = next(name for name in reversed(ascending) if name in OURS)
        yield f"{ours} is {ratio(result, ours, peers[-1]):.2f} × as fast as {peers[-1]}, the fastest peer"


def _efficiency_lines(result: Result, peak: dict[str, float]) -> Iterator[str]:
    yield f"{'':20}{'tokens/s':>10}{'real tokens':>15}{'of the matrix peak':>22}"
    for name, efficiency in result.efficiencies.items():
        operations = efficiency.operations_per_second
        share = "–" if operations is None else f"{operations / peak[OURS[name]]:.1%}"
        yield f"{name:20}{efficiency.tokens_per_second:10,.0f}{efficiency.real_share:15.1%}{share:>22}"


def to_json(report: Report) -> dict[str, Any]:
    """All the figures as plain dicts and lists."""
    return report._asdict() | {"results": [_result_json(result) for result in report.results]}


def _result_json(result: Result) -> dict[str, Any]:
    timings = {
        name: timing._asdict()
        | {"texts_per_second": texts_per_second(result, name)}
        | {"ratio": {ours: ratio(result, ours, name) for ours in OURS}}
        for name, timing in result.timings.items()
    }
    efficiencies = {name: efficiency._asdict() for name, efficiency in result.efficiencies.items()}
    return result._asdict() | {"timings": timings, "efficiencies": efficiencies}


def plot(report: Report, file: str | os.PathLike) -> None:
    """Writes bars of texts a second, a panel for each workload, as the image that the name of the file asks for.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError, OSError: it cannot write such a file.
    """
    check_plot()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6 * len(report.results), 5), layout="constrained")
    panels = figure.subplots(1, len(report.results), squeeze=False)[0]
    for panel, result in zip(panels, report.results, strict=True):
        names = sorted(result.timings, key=lambda name: texts_per_second(result, name))
        colors = ["tab:orange" if name in OURS else "tab:gray" for name in names]
        bars = panel.barh(names, [texts_per_second(result, name) for name in names], color=colors)
        panel.bar_label(bars, fmt="{:,.1f}", padding=3)
        panel.margins(x=0.12)
        mean = result.num_tokens / result.num_texts
        panel.set(title=f"{result.workload}: {mean:.0f} tokens on average", xlabel="texts a second")
    figure.suptitle(f"{report.model} · {report.machine}")
    figure.savefig(file)


def check_plot() -> None:
    """Raises ImportError with the command that installs what `plot` needs."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError(f"the chart needs matplotlib, which is not installed: {INSTALL}")
