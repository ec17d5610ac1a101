"""The libraries that are compared: each makes a predictor of a checkpoint. `PEERS` names those beside flaxsent."""

import bisect
import concurrent.futures
import dataclasses
import functools
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from flaxsent.base import Tokens
from flaxsent.bench.machine import is_on_cpu
from flaxsent.checkpoint.folder import load
from flaxsent.classifier import Classifier
from flaxsent.engine import Engine, Stats
from flaxsent.files import quietly, require
from flaxsent.packing import pad, row_lengths, select
from flaxsent.parity import pytorch
from flaxsent.placement import num_cores
from flaxsent.transforms.quantize import quantize

OURS = {"flaxsent-f32": "float32", "flaxsent-bf16": "bfloat16"}
"""Always measured, in these dtypes; the labels of the first are the ones that all others are compared with."""

Predict = Callable[[Sequence[str], int], Int[np.ndarray, " B"]]
"""`predict(texts, batch_size)`: the index of the label of each text, in their order."""

Logits = Callable[[Iterable[Tokens]], Iterable[Float[np.ndarray, "B C"]]]
"""Of batches of padded texts, in their order."""


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


def engine_predictor(folder: Path, dtype: str, stats: list[Stats]) -> Predict:
    """On one accelerator, or on all cores of the CPU, as the peers; `stats` gets the figures of each window."""
    devices = jax.local_devices() if is_on_cpu() else jax.local_devices()[:1]
    engine = Engine(load(folder, dtype=dtype), devices=devices, on_window=stats.append)
    engine.warmup()
    return lambda texts, batch_size: engine(texts).argmax(axis=-1)


def make(peer: Peer, source: Source) -> Predict:
    """The predictor of a peer; nothing that its libraries warn, log or print comes through.

    Raises: whatever the libraries do.
    """
    if peer.is_cpu_only and not is_on_cpu():
        raise RuntimeError(f"it runs on the CPU, not on {jax.default_backend()}")
    with pytorch.silenced():
        predict = peer.make(source)
        predict(["so good", "so bad"], 2)  # what compiles or fails at the first texts does so now

    def predict_silently(texts: Sequence[str], batch_size: int) -> Int[np.ndarray, " B"]:
        with pytorch.silenced():
            return predict(texts, batch_size)

    return predict_silently


def _pipeline(source: Source, *, sort: bool) -> Predict:
    """`transformers.pipeline`, given the texts as they come, or sorted by length."""
    torch = _require("torch")
    from transformers import AutoTokenizer, pipeline

    labels = source.classifier.config.labels
    tokenizer = AutoTokenizer.from_pretrained(source.folder, local_files_only=True, trust_remote_code=False)
    classify = pipeline(
        "text-classification",
        model=pytorch.model(source.folder, dtype="float32"),
        tokenizer=tokenizer,
        device=torch.device(pytorch_device(torch)),
    )

    def predict(texts: Sequence[str], batch_size: int) -> Int[np.ndarray, " B"]:
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]) if sort else index)
        limit = source.classifier.tokenizer.max_length
        outputs = classify([texts[index] for index in order], batch_size=batch_size, truncation=True, max_length=limit)
        found = np.zeros(len(texts), np.int64)
        found[order] = [labels.index(output["label"]) for output in outputs]
        return found

    return predict


def _pytorch(source: Source, *, dtype: str, compiled: bool = False, attention: str | None = None) -> Predict:
    """By transformers' choice of attention, which is PyTorch's own (SDPA) where the family has it, or as asked for."""
    torch = _require("torch")
    device = pytorch_device(torch)
    if attention == _FLASH:
        if device == "cpu":
            raise RuntimeError("FlashAttention runs on a GPU")
        require("flash_attn", needed_by="it", install="flash-attn")
    if device == "cpu" and dtype == "bfloat16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        raise RuntimeError("PyTorch is slower in bfloat16 than in float32 on this processor")
    if device == "cpu" and compiled and shutil.which(os.environ.get("CXX", "g++")) is None:
        raise RuntimeError("torch.compile needs a C++ compiler")
    model = pytorch.model(source.folder, dtype=dtype, attention=attention).to(device)
    names = pytorch.input_names(model)
    if compiled:
        model = torch.compile(model, dynamic=True)

    def logits(batches: Iterable[Tokens]) -> Iterator[Float[np.ndarray, "B C"]]:
        with torch.inference_mode():
            inputs = ({name: torch.tensor(getattr(batch, name), device=device) for name in names} for batch in batches)
            outputs = [model(**named).logits for named in inputs]
            yield from (output.float().cpu().numpy() for output in outputs)

    return _length_sorted(source.classifier, logits)


def pytorch_device(torch: Any) -> str:
    """The kind of device that JAX is on."""
    if is_on_cpu():
        torch.set_num_threads(num_cores())
        return "cpu"
    if not torch.cuda.is_available():
        raise RuntimeError("this PyTorch does not see the accelerator")
    return "cuda"


def _length_sorted(classifier: Classifier, logits: Logits) -> Predict:
    """Batches of texts of like length, the longest first, each padded to its longest."""

    def predict(texts: Sequence[str], batch_size: int) -> Int[np.ndarray, " B"]:
        encodings = classifier.tokenizer.encode(texts)
        lengths = encodings.lengths
        order = sorted(range(len(texts)), key=lambda index: -lengths[index])
        starts = range(0, len(order), batch_size)
        batches = (pad(select(encodings, order[start : start + batch_size])) for start in starts)
        labels = np.zeros(len(texts), np.int64)
        labels[order] = np.concatenate([*logits(batches)]).argmax(axis=-1)
        return labels

    return predict


_FLASH = "flash_attention_2"
"""transformers' name of what leaves the padding of a batch out: in the whole of ModernBERT, in attention of others."""


def _onnxruntime(source: Source, *, quantized: bool, side_by_side: bool = False) -> Predict:
    """A batch at a time on all cores, or `side_by_side` a batch on each."""
    onnxruntime = _require("onnxruntime")
    file = _onnx_file(source)
    if quantized:
        quantization = _require("onnxruntime.quantization")
        with quietly("root"):  # under which it logs advice
            quantization.quantize_dynamic(file, file := source.scratch / "int8.onnx", per_channel=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1 if side_by_side else num_cores()
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    names = [argument.name for argument in session.get_inputs()]

    def run(batch: Tokens) -> Float[np.ndarray, "B C"]:
        return np.asarray(session.run(None, _int64(batch, names))[0])

    def logits(batches: Iterable[Tokens]) -> Iterable[Float[np.ndarray, "B C"]]:
        if not side_by_side:
            return map(run, batches)
        with concurrent.futures.ThreadPoolExecutor(num_cores()) as threads:
            return [*threads.map(run, batches)]

    return _length_sorted(source.classifier, logits)


def _openvino(source: Source, *, precision: str, hint: str = "THROUGHPUT") -> Predict:
    """By the hint THROUGHPUT batches run side by side on some cores each, by LATENCY one at a time on all."""
    openvino = _require("openvino")
    core = openvino.Core()
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise RuntimeError("OpenVINO has no bfloat16 on this processor")
    # openvino.convert_model would give the same; it reports its use to the maker.
    file = _onnx_file(source)
    hints = {
        "PERFORMANCE_HINT": hint,
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
        torch = _require("torch")
        _require("onnxscript")  # by which PyTorch writes ONNX
        model = pytorch.model(source.folder, dtype="float32")
        names = pytorch.input_names(model)
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
    table = row_lengths(classifier.tokenizer.max_length)

    def logits(batches: Iterable[Tokens]) -> Iterator[Float[np.ndarray, "B C"]]:
        num_rows, outputs = 0, []
        for batch in batches:
            num_texts, length = batch.input_ids.shape
            num_rows = max(num_rows, num_texts)  # the last batch may be smaller
            row_length = table[bisect.bisect_left(table, length)]
            filling = ((0, num_rows - num_texts), (0, row_length - length))
            filled = jax.tree.map(functools.partial(np.pad, pad_width=filling), batch)
            outputs.append((num_texts, forward(classifier.params, filled)))
        return (np.asarray(output)[:num_texts] for num_texts, output in outputs)

    return _length_sorted(classifier, logits)


def _require(module: str) -> Any:
    return require(module, needed_by="it", extra="bench")


def _int8(source: Source) -> Predict:
    """Flaxsent with integer products; its engine fills its own batches."""
    classifier = load(source.folder, backend="native")
    engine = Engine(dataclasses.replace(classifier, params=quantize(classifier.params, mode="dynamic")))
    engine.warmup()
    return lambda texts, batch_size: engine(texts).argmax(axis=-1)


PEERS: dict[str, Peer] = {
    "pipeline": Peer(functools.partial(_pipeline, sort=False)),
    "pipeline-sorted": Peer(functools.partial(_pipeline, sort=True)),
    "torch-f32": Peer(functools.partial(_pytorch, dtype="float32")),
    "torch-bf16": Peer(functools.partial(_pytorch, dtype="bfloat16")),
    "torch-compiled-f32": Peer(functools.partial(_pytorch, dtype="float32", compiled=True), compiles=True),
    "torch-compiled-bf16": Peer(functools.partial(_pytorch, dtype="bfloat16", compiled=True), compiles=True),
    "torch-flash-bf16": Peer(functools.partial(_pytorch, dtype="bfloat16", attention=_FLASH)),
    "onnx-f32": Peer(functools.partial(_onnxruntime, quantized=False), is_cpu_only=True),
    "onnx-f32-side": Peer(functools.partial(_onnxruntime, quantized=False, side_by_side=True), is_cpu_only=True),
    "onnx-int8": Peer(functools.partial(_onnxruntime, quantized=True), is_cpu_only=True),
    "onnx-int8-side": Peer(functools.partial(_onnxruntime, quantized=True, side_by_side=True), is_cpu_only=True),
    "openvino-f32": Peer(functools.partial(_openvino, precision="f32"), is_cpu_only=True),
    "openvino-f32-whole": Peer(functools.partial(_openvino, precision="f32", hint="LATENCY"), is_cpu_only=True),
    "openvino-bf16": Peer(functools.partial(_openvino, precision="bf16"), is_cpu_only=True),
    "flax-auto": Peer(_flax_auto, compiles=True),
    "flaxsent-int8": Peer(_int8),
}
"""All sort the texts by length and pad each batch to its longest, but for `pipeline`, which takes them as they come."""
