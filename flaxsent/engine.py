"""Streams of texts at full speed, in order: what is done with a classifier when there are many texts.

Texts come in windows. A window's texts are tokenized and packed into steps, batches of rows of a few fixed shapes, in a
thread, while the devices compute the window before it. Each shape is compiled once; its rows are spread over the
devices; results are fetched late.
"""

import contextlib
import functools
import itertools
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from flaxsent.classifier import AnyClassifier
from flaxsent.packing import SEGMENT_TOKENS, Step, StepShape, pack_steps, unpack
from flaxsent.tokenization import checked
from flaxsent.types import Params, Text, Texts, Tokens

_T = TypeVar("_T")


class Stats(NamedTuple):
    """What a window of texts took."""

    num_texts: int
    num_tokens: int
    """Real ones, of texts that were computed; a text that is there twice is computed once."""
    num_places: int
    """Tokens and padding."""
    num_truncated: int


class _Window(NamedTuple):
    steps: list[Step]
    unique: Int[np.ndarray, " B"]
    """For each text, which of the computed ones it is."""
    num_unique: int
    stats: Stats


class Engine:
    """Scores of streams of texts, from a classifier; holds its compiled functions, and may be shared by threads.

    >>> import flaxsent
    >>> with Engine(flaxsent.load(backend="native")) as engine:
    ...     [int(scores.argmax()) for scores in engine.stream(iter(["so good", "so bad"]))]
    [1, 0]
    """

    def __init__(
        self,
        classifier: AnyClassifier,
        *,
        row_lengths: Sequence[int] | None = None,
        tokens_per_step: int | None = None,
        steps_per_window: int = 64,
        devices: Sequence[Any] | None = None,
        on_window: Callable[[Stats], None] | None = None,
    ) -> None:
        """Puts the parameters on the devices; compiles nothing yet.

        Args:
            classifier: with the native backend, or exported from it, texts are packed; with flax, each is padded to one
                of several lengths.
            row_lengths: tokens in a row, one compiled shape each; the longest must take the longest text.
            tokens_per_step: tokens and padding in a step, on each device.
            steps_per_window: how many steps' worth of texts are looked at together, and held in memory.
            devices: all local ones by default; the rows of a step are spread over them.
            on_window: called with the figures of each window, when its scores are there.

        Raises:
            ValueError: the row lengths do not fit the checkpoint or the step.
        """
        self.classifier = classifier
        self._on_window = on_window
        mesh = Mesh(np.asarray(jax.local_devices() if devices is None else devices), ("rows",))
        self._by_row, replicated = NamedSharding(mesh, PartitionSpec("rows")), NamedSharding(mesh, PartitionSpec())
        self._params: Params | None = jax.device_put(classifier.params, replicated)
        platform = mesh.devices.flat[0].platform
        self.shapes = _shapes(
            row_lengths,
            is_packed=classifier.packs,
            longest=classifier.tokenizer.max_length,
            tokens_per_step=tokens_per_step or _tokens_per_device(platform, mesh.size),
            num_devices=mesh.size,
        )
        largest_step = max(shape.num_rows * shape.row_length for shape in self.shapes)
        self.characters_per_window = steps_per_window * largest_step * _CHARACTERS_PER_TOKEN
        self._shardings = {"in_shardings": (replicated, self._by_row), "out_shardings": self._by_row}
        self._compiled: dict[StepShape, Any] = {}
        self._compiling = threading.Lock()

    def __call__(self, texts: Texts) -> Float[np.ndarray, "B C"]:
        """The scores of texts or pairs, in their order: probabilities, or the values themselves for regression.

        Raises:
            TypeError, ValueError: as `Tokenizer.encode` does.
            RuntimeError: the engine is closed.
        """
        empty = np.zeros((0, self.classifier.config.num_labels), np.float32)
        return np.concatenate([empty, *self.batches(self._windows(texts))])

    def stream(self, texts: Texts) -> Iterator[Float[np.ndarray, " C"]]:
        """The scores of an endless iterable of texts, one by one, in order; reads ahead by a few windows.

        Raises: as `__call__`, when it comes to it.
        """
        for scores_BC in self.batches(self._windows(texts)):
            yield from scores_BC

    def batches(self, batches: Iterable[Texts]) -> Generator[Float[np.ndarray, "B C"], None, None]:
        """The scores of each list of texts, in order; each list is a window, computed by itself.

        Raises: as `__call__`, when it comes to it.
        """
        running: deque[tuple[_Window, list[Any]]] = deque()
        with contextlib.closing(_ahead(map(self._prepare, batches))) as windows:
            for window in windows:
                running.append((window, [self._start(step) for step in window.steps]))
                if len(running) > 1:
                    yield self._finish(*running.popleft())
            while running:
                yield self._finish(*running.popleft())

    def warmup(self) -> None:
        """Compiles every shape now rather than when it is first needed."""
        for shape in self.shapes:
            self._executable(shape)

    def close(self) -> None:
        """Frees the parameters and what was compiled; the engine cannot be used after."""
        self._params = None
        self._compiled.clear()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _scores(self, params: Params, tokens: Tokens, *, num_segments: int) -> Float[Array, "R S C"]:
        if self.classifier.packs:
            return self.classifier.predict_packed(params, tokens, num_segments)
        return self.classifier.predict(params, tokens)[:, None]

    def _executable(self, shape: StepShape) -> Any:
        with self._compiling:
            if self._params is None:
                raise RuntimeError("the engine is closed; make another.")
            if shape not in self._compiled:
                zeros_RT = np.zeros((shape.num_rows, shape.row_length), np.int32)
                scores = functools.partial(self._scores, num_segments=shape.num_segments)
                lowered = jax.jit(scores, **self._shardings).lower(self._params, Tokens(*[zeros_RT] * 4))
                self._compiled[shape] = lowered.compile()
            return self._compiled[shape]

    def _windows(self, texts: Texts) -> Iterator[list[Text]]:
        """As many texts as make the steps of a window, by their characters, of which English has four a token."""
        window, size = [], 0
        for text in checked(texts):
            window.append(text)
            size += max(sum(map(len, text)) if isinstance(text, tuple) else len(text), _CHARACTERS_PER_TOKEN)
            if size >= self.characters_per_window:
                yield window
                window, size = [], 0
        if window:
            yield window

    def _prepare(self, texts: Texts) -> _Window:
        batch = [*checked(texts)]
        unique = {text: index for index, text in enumerate(dict.fromkeys(batch))}
        encodings = self.classifier.tokenizer.encode(unique)
        config = self.classifier.config
        steps = pack_steps(
            encodings, self.shapes, first_position=config.first_position, pad_token_id=config.pad_token_id
        )
        return _Window(
            steps,
            np.array([unique[text] for text in batch], np.int64),
            len(unique),
            Stats(
                num_texts=len(batch),
                num_tokens=sum(map(len, encodings.input_ids)),
                num_places=sum(step.tokens.input_ids.size for step in steps),
                num_truncated=encodings.num_truncated,
            ),
        )

    def _start(self, step: Step) -> Float[Array, "R S C"]:
        tokens = jax.device_put(step.tokens, self._by_row)
        return self._executable(step.shape)(self._params, tokens)

    def _finish(self, window: _Window, scores: Sequence[Float[Array, "_ _ C"]]) -> Float[np.ndarray, "B C"]:
        unique_UC = np.zeros((window.num_unique, self.classifier.config.num_labels), np.float32)
        for step, scores_RSC in zip(window.steps, scores, strict=True):
            unique_UC[step.texts] = unpack(np.asarray(scores_RSC), step.placement)
        if self._on_window is not None:
            self._on_window(window.stats)
        return unique_UC[window.unique]


def num_cores() -> int:
    """Cores of the CPU that this process may use: as many devices of JAX are best (`jax_num_cpu_devices`)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_TOKENS_PER_STEP = {"cpu": 1024}
"""More than this leaves the caches of a CPU; devices of one CPU share it, down to a row of 512 each."""
_LEAST_TOKENS_PER_DEVICE = 512
_TOKENS_ON_ACCELERATOR = 32768
_CHARACTERS_PER_TOKEN = 4
_PACKED_ROW, _PADDED_ROWS = 128, (16, 24, 32, 48, 64, 96)
"""The shortest packed row, below which rows cannot be filled; the lengths of padded ones up to the same."""


def _tokens_per_device(platform: str, num_devices: int) -> int:
    if platform not in _TOKENS_PER_STEP:
        return _TOKENS_ON_ACCELERATOR
    return max(_TOKENS_PER_STEP[platform] // num_devices, _LEAST_TOKENS_PER_DEVICE)


def _shapes(
    row_lengths: Sequence[int] | None, *, is_packed: bool, longest: int, tokens_per_step: int, num_devices: int
) -> tuple[StepShape, ...]:
    if row_lengths is None:
        doubled = list(itertools.takewhile(lambda length: length < longest, (_PACKED_ROW << n for n in range(32))))
        between = [] if is_packed else [*_PADDED_ROWS, *(length * 3 // 2 for length in doubled)]
        row_lengths = [length for length in (*doubled, *between) if length < longest]
        row_lengths.append(max(longest, _PACKED_ROW) if is_packed else longest)
    if not row_lengths or min(row_lengths) < 1 or max(row_lengths) < longest:
        raise ValueError(f"row_lengths={row_lengths}: expected numbers of which one is at least {longest}, the limit.")
    shapes = []
    for length in sorted(set(row_lengths)):
        num_rows = max(tokens_per_step // length, 1) * num_devices
        shapes.append(StepShape(num_rows, length, -(-length // SEGMENT_TOKENS) if is_packed else 1))
    return tuple(shapes)


def _ahead(items: Iterator[_T], *, depth: int = 2) -> Generator[_T, None, None]:
    """The same items, made in a thread up to `depth` before they are asked for; closing it ends the thread."""
    made: queue.Queue[tuple[str, Any]] = queue.Queue(depth)
    is_over = threading.Event()

    def put(kind: str, value: Any) -> None:
        while not is_over.is_set():
            with contextlib.suppress(queue.Full):
                return made.put((kind, value), timeout=0.1)

    def make() -> None:
        try:
            for item in items:
                put("item", item)
                if is_over.is_set():
                    return
            put("end", None)
        except BaseException as err:  # told where the items are asked for
            put("error", err)

    # A daemon: Ctrl-C must not wait for an iterable that is waiting for its own input.
    thread = threading.Thread(target=make, name="flaxsent-prepare", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = made.get()
            if kind == "error":
                raise value
            if kind == "end":
                return
            yield value
    finally:
        is_over.set()
        thread.join(2)  # Python's end aborts the process if the thread is in the tokenizer then
