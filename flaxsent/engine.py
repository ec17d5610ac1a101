"""Any pure function of rows of tokens over many texts, in order: `Engine` for streams, `classify` for a list.

Texts come in windows. A window's texts are tokenized and packed into steps, batches of rows of a few fixed shapes, in a
thread, while the devices compute the window before it. Each shape is compiled once; its rows are spread over the
devices; results are fetched late.
"""

import contextlib
import functools
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import numpy as np
from jaxtyping import Array, PyTree

from flaxsent import placement
from flaxsent.base import FlaxsentError, Params, Prediction, Text, Texts, TopK
from flaxsent.checkpoint.folder import load
from flaxsent.classifier import (
    Classifier,
    Function,
    Outputs,
    embeddings,
    forward_packed,
    tell_truncated,
    tell_windows,
)
from flaxsent.data.records import texts_of
from flaxsent.models.stacking import stack
from flaxsent.packing import Step, StepShape, list_steps, pack_steps, stream_shapes, unpack
from flaxsent.postprocessing import check_top_k, decode
from flaxsent.results import PerToken, by_text, concatenate, is_by_text, take
from flaxsent.sharding import check_heads
from flaxsent.tokenization import Windowed, checked
from flaxsent.transforms.windows import pooled, pooled_scores

_T = TypeVar("_T")

Layout = Literal["packed", "padded"]


def classify(
    texts: Any,
    classifier: Classifier | None = None,
    *,
    text_columns: Sequence[str] = ("text",),
    top_k: TopK = "given",
) -> list[Prediction]:
    """Labels and scores of texts or pairs, in their order; the embedded checkpoint if none is given.

    They are a list, a column, or `text_columns` of a table (`data.records.read`). A text is given its best label; or
    where it may have several, each above its threshold, if any. For a stream, or many texts, there is `Engine`.

    Raises:
        TypeError: a bare str, or an element that is neither a str nor a pair of them.
        FlaxsentError: a text that cannot be encoded, a score that is not finite, or `top_k` is no number of labels.

    >>> classify(["I hate this so much!"])[0].label
    'NEGATIVE'
    """
    check_top_k(top_k)
    classifier = _embedded() if classifier is None else classifier
    windows, config, limit = classifier.windows, classifier.config, classifier.tokenizer.max_length
    windowed = classifier.tokenizer.encode_windows(texts_of(texts, text_columns), windows)
    encodings = windowed.encodings
    tell_truncated(encodings.num_truncated, windowed.num_texts, limit)
    tell_windows(windowed.num_long, windowed.num_windows, windowed.num_texts, classifier.tokenizer.text_limit)
    predict = classifier.predict_packed if windows is None else classifier.outputs_packed
    shape = len(encodings.input_ids), config.num_labels
    found = [np.zeros(shape, np.float32) for _ in range(1 if windows is None else len(Outputs._fields))]
    for step in list_steps(encodings, longest=limit, is_packed=classifier.packs):
        results = predict(classifier.params, step.tokens, step.shape.num_segments)
        for leaf, result in zip(found, jax.tree.leaves(results), strict=True):
            leaf[step.texts] = unpack(np.asarray(result), step.placement)
    scores_BC = found[0]
    if windows is not None:
        pooling, score_function = windows.pooling, config.score_function
        scores_BC = pooled_scores(Outputs(*found), windowed, pooling=pooling, score_function=score_function)
    return decode(scores_BC, labels=config.labels, top_k=top_k, thresholds=config.score_thresholds)


@functools.cache
def _embedded() -> Classifier:
    return load(backend="native")


class Stats(NamedTuple):
    """What a window of texts took."""

    num_texts: int
    num_tokens: int
    """Real ones, of texts that were computed; a text that is there twice is computed once."""
    num_places: int
    """Tokens and padding."""
    num_truncated: int
    """Of texts that were computed, as the next two."""
    num_long: int
    """Texts of several windows."""
    num_windows: int
    """That these have."""


class _Window(NamedTuple):
    steps: list[Step]
    unique: list[int]
    """For each text, which of the computed ones it is."""
    windowed: Windowed
    """Of the computed ones."""
    stats: Stats


class _Running(NamedTuple):
    """What a stream works with, whatever happens to its engine."""

    params: Params
    compiled: dict[StepShape, Any]


class Engine:
    """A function of streams of texts, by a classifier's params; holds what it has compiled, and threads may share it.

    >>> import flaxsent
    >>> with Engine(flaxsent.load(backend="native")) as engine:
    ...     [int(scores.argmax()) for scores in engine.stream(iter(["so good", "so bad"]))]
    [1, 0]
    """

    def __init__(
        self,
        classifier: Classifier,
        *,
        function: Function | None = None,
        layout: Layout | None = None,
        row_lengths: Sequence[int] | None = None,
        tokens_per_step: int | None = None,
        steps_per_window: int | None = None,
        devices: Sequence[Any] | None = None,
        sharding: str = "data",
        on_window: Callable[[Stats], None] | None = None,
    ) -> None:
        """Puts the parameters on the devices, once on each that has them; compiles nothing yet.

        Args:
            classifier: whose params and tokenizer are used.
            function: `classifier.scores` by default; `classifier.logits`, `classifier.embeddings`, or any other
                `Function`. Of a classifier with `windows`, texts beyond the limit have pooled values of theirs.
            layout: "packed" rows hold several texts, "padded" ones one; packed by default where the family can be.
            row_lengths: tokens in a row, one compiled shape each; the longest must take the longest text.
            tokens_per_step: tokens and padding in a step, on each device that has rows of its own.
            steps_per_window: how many steps' worth of texts are looked at together, and held in memory; by default 64,
                or fewer where steps are long.
            devices: all local ones by default; the rows of a step are spread over them.
            sharding: "data" gives each device all of the params. With "fsdp" each holds a part and fetches the others
                for each layer; with "tensor=N" N neighbours in `devices` compute the same rows together, each with some
                of the heads and of the feed-forward; "fsdp,tensor=N" is both (`sharding.RULES`).
            on_window: called with the figures of each window, when its results are there.

        Raises:
            FlaxsentError: a number that is not positive, or no devices; the row lengths do not fit the checkpoint or
                the step, the family does not pack, or so many devices cannot share the heads or a parameter.
        """
        if layout not in ("packed", "padded", None):
            raise FlaxsentError(f"layout={layout!r}: expected 'packed', 'padded' or None.")
        if layout == "packed" and not classifier.packs:
            raise FlaxsentError(f"{classifier.config.family} takes one text a row; pass layout='padded'.")
        for name, number in (("tokens_per_step", tokens_per_step), ("steps_per_window", steps_per_window)):
            if number is not None and number < 1:
                raise FlaxsentError(f"{name}={number}: expected a positive number.")
        devices = jax.local_devices() if devices is None else devices
        if len(devices) == 0:
            raise FlaxsentError(f"devices={devices}: expected one or more devices.")
        self.classifier = classifier
        self._pool = None
        if (windows := classifier.windows) is not None:
            self._pool = functools.partial(pooled, pooling=windows.pooling)
            if function is None:
                scores, function = functools.partial(pooled_scores, pooling=windows.pooling), classifier.outputs
                self._pool = functools.partial(scores, score_function=classifier.config.score_function)
        self.function = classifier.scores if function is None else function
        self._on_window = on_window
        self._placement = placement.over(devices, sharding)
        check_heads(classifier.config, self._placement.sharding)
        params = classifier.params
        if devices[0].platform in _STACKED_ON and self._reads_stacked():
            params = stack(params, config=classifier.config)
        self._running: _Running | None = _Running(placement.put(params, self._placement), {})
        self.shapes = stream_shapes(
            row_lengths,
            is_packed=classifier.packs if layout is None else layout == "packed",
            longest=classifier.tokenizer.max_length,
            tokens_per_step=tokens_per_step or placement.tokens_per_device(devices),
            num_devices=self._placement.num_groups,
            shortest=placement.shortest_row(devices),
        )
        largest_step = max(shape.num_rows * shape.row_length for shape in self.shapes)
        steps = steps_per_window or min(max(_TOKENS_PER_WINDOW // largest_step, _LEAST_STEPS), _MOST_STEPS)
        self.characters_per_window = steps * largest_step * _CHARACTERS_PER_TOKEN
        self._compiling = threading.Lock()

    def _reads_stacked(self) -> bool:
        """Whether the function is one of the classifier's own, and it computes natively: that reads both forms."""
        is_native = getattr(self.classifier.forward_packed, "func", None) is forward_packed
        is_own = getattr(self.function, "__self__", None) is self.classifier
        return is_native and (is_own or getattr(self.function, "func", None) is embeddings)

    def __call__(self, texts: Texts) -> Any:
        """The function's results for texts or pairs, in their order.

        What has an entry for each text is an array `[B, ...]`; what has one for each token is a list of B arrays
        `[tokens, ...]`. Scores are float32 `[B, C]`: probabilities, or the values themselves for regression.

        Raises:
            TypeError, FlaxsentError: as `Tokenizer.encode` does; or the function gives another shape.
            RuntimeError: the engine is closed.
        """
        windows = [*self.batches(self._windows(texts))]
        if not windows:
            return next(self.batches([[]]))
        return jax.tree.map(concatenate, *windows)

    def stream(self, texts: Texts) -> Iterator[Any]:
        """The result for each of an endless iterable of texts, one by one, in order; reads ahead by a few windows.

        Raises: as `__call__`, when it comes to it.
        """
        for results in self.batches(self._windows(texts)):
            leaves, treedef = jax.tree.flatten(results)
            for values in zip(*leaves, strict=True):
                yield jax.tree.unflatten(treedef, values)

    def batches(self, batches: Iterable[Texts]) -> Generator[Any, None, None]:
        """The results for each list of texts, in order; each list is a window, computed by itself.

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
        """Frees the parameters and what was compiled; a stream that is under way ends with RuntimeError."""
        with self._compiling:
            self._running = None

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> _Running:
        running = self._running
        if running is None:
            raise RuntimeError("the engine is closed; make another.")
        return running

    def _executable(self, shape: StepShape) -> tuple[Params, Any]:
        with self._compiling:
            params, compiled = self._open()
            if shape not in compiled:
                try:
                    lowered = placement.lower(self.function, params, shape, self._placement)
                except ValueError:  # JAX's, of results that devices cannot share
                    self._check(self._results(shape), shape)
                    raise
                self._check(lowered.out_info, shape)
                compiled[shape] = lowered.compile()
            return params, compiled[shape]

    def _results(self, shape: StepShape) -> PyTree[jax.ShapeDtypeStruct]:
        """The shapes and dtypes of what the function gives for a step."""
        step = placement.of_shape(self.function, shape)
        return jax.eval_shape(step, self._open().params, placement.no_tokens(shape))

    def _check(self, results: PyTree[Any], shape: StepShape) -> None:
        leaves = jax.tree.leaves(results)
        if not leaves:
            raise FlaxsentError("the function of the engine gives no array; expected an entry for each text or token.")
        if not all(is_by_text(leaf.shape, shape) for leaf in leaves) and self._pool is not None:
            raise FlaxsentError(
                "the function of the engine gives an entry for each token, which windows of a text do not pool; pass a "
                "classifier without windows."
            )

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
        with _traced("tokenizing"):
            windowed = self.classifier.tokenizer.encode_windows(unique, self.classifier.windows)
        encodings = windowed.encodings
        with _traced("packing"):
            steps = pack_steps(encodings, self.shapes)
        return _Window(
            steps,
            [unique[text] for text in batch],
            windowed,
            Stats(
                num_texts=len(batch),
                num_tokens=sum(encodings.lengths),
                num_places=sum(step.tokens.input_ids.size for step in steps),
                num_truncated=encodings.num_truncated,
                num_long=windowed.num_long,
                num_windows=windowed.num_windows,
            ),
        )

    def _start(self, step: Step) -> PyTree[Array]:
        params, executable = self._executable(step.shape)
        with _traced("transfer"):
            tokens = jax.device_put(step.tokens, self._placement.by_row)
        with _traced("launching"):
            return executable(params, tokens)

    def _finish(self, window: _Window, results: Sequence[PyTree[Array]]) -> Any:
        if window.steps:
            steps = [by_text(step, _fetch(result)) for step, result in zip(window.steps, results, strict=True)]
            order = np.concatenate([step.texts for step in window.steps])
            places = np.argsort(order)
            joined = jax.tree.map(lambda leaf: take(leaf, places), jax.tree.map(concatenate, *steps))
        else:
            joined = self._of_no_texts()
        whole = joined if self._pool is None else self._pool(joined, window.windowed)
        found = jax.tree.map(lambda leaf: take(leaf, window.unique), whole)
        if self._on_window is not None:
            self._on_window(window.stats)
        return found

    def _of_no_texts(self) -> Any:
        """What one row without texts gives: the function's pytree and dtypes."""
        shape = self.shapes[0]._replace(num_rows=1)
        return jax.tree.map(
            lambda leaf: np.zeros((0, *leaf.shape[2:]), leaf.dtype) if is_by_text(leaf.shape, shape) else PerToken(),
            self._results(shape),
        )


_CHARACTERS_PER_TOKEN = 4
_TOKENS_PER_WINDOW, _LEAST_STEPS, _MOST_STEPS = 2**18, 8, 64
"""The more steps a window has, the fewer of their places are padding; the next window is laid out meanwhile."""
_STACKED_ON = ("tpu",)
"""Where layers run as a scan, which is compiled in a fraction of the time; a GPU's copies the params of each layer."""

HOST_WORK = "flaxsent: "
"""What the names of the host's work begin with in a trace of JAX's profiler."""


def _traced(work: str) -> jax.profiler.TraceAnnotation:
    return jax.profiler.TraceAnnotation(HOST_WORK + work)


def _fetch(results: PyTree[Array]) -> Any:
    with _traced("waiting for results"):
        return jax.device_get(results)


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
            with _traced("waiting for texts"):
                kind, value = made.get()
            if kind == "error":
                raise value
            if kind == "end":
                return
            yield value
    finally:
        is_over.set()
        thread.join(2)  # Python's end aborts the process if the thread is in the tokenizer then
