"""The whole flow on one page: three pure functions, and `Classifier`, the record of them with params and config.

`checkpoint.load` makes the record; `engine.py` runs what is in it over many texts.
"""

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float, Int, Key, PyTree

from flaxsent import models
from flaxsent.base import AnyArray, Backend, FlaxsentError, Params, Texts, Tokens
from flaxsent.models.config import ModelConfig
from flaxsent.packing import check_padded, pad
from flaxsent.tokenization import Tokenizer, Windows

logger = logging.getLogger(__name__)

OptionalKey = Key[Array, ""] | None

Function = Callable[[Params, Tokens, int], PyTree[Array]]
"""`function(params, tokens, num_segments)` of rows `[R, T]` gives a pytree of arrays with one entry for each text,
`[R, S, ...]`, or for each token, `[R, T, ...]`; S is `num_segments`. It is pure: it is compiled, and equal texts are
computed once."""


def tokenize(texts: Texts, length: int | None = None, *, tokenizer: Tokenizer) -> Tokens:
    """NumPy arrays `[B, L]` of texts or pairs, cut and padded to `length` tokens, or padded to the longest text.

    Raises: as `Tokenizer.encode`.
    """
    encodings = tokenizer.encode(texts, max_length=length)
    tell_truncated(encodings.num_truncated, len(encodings.input_ids), length or tokenizer.max_length)
    return pad(encodings, length=length)


def forward(
    params: Params,
    tokens: Tokens,
    key: OptionalKey = None,
    *,
    config: ModelConfig,
    matmul_precision: str | None = "highest",
) -> Float[Array, "B C"]:
    """Logits in float32 of padded rows, one text in each; a `key` switches dropout on, for training.

    By flaxsent's own encoder, in the dtype of the params. `matmul_precision` is `jax.default_matmul_precision` within:
    "highest" makes float32 mean float32 on GPU and TPU too, None leaves it to JAX.

    Raises:
        FlaxsentError: flaxsent has no native encoder for the family; or, where the tokens are NumPy's, a row holds
            several texts or is longer than the position table.
    """
    check_padded(tokens)
    return forward_packed(params, tokens, 1, key, config=config, matmul_precision=matmul_precision)[:, 0]


def forward_packed(
    params: Params,
    tokens: Tokens,
    num_segments: int,
    key: OptionalKey = None,
    *,
    config: ModelConfig,
    matmul_precision: str | None = "highest",
) -> Float[Array, "R S C"]:
    """Logits in float32 of packed rows, of up to `num_segments` texts each; this is where `vmap` adds the batch.

    Raises: as `forward`.
    """
    models.check(config, tokens)
    row = functools.partial(models.forward, params, config=config, num_segments=num_segments)
    with _precision(matmul_precision):
        if key is None:
            return jax.vmap(row)(tokens)
        keys = jax.random.split(key, tokens.input_ids.shape[0])
        return jax.vmap(lambda tokens_T, row_key: row(tokens_T, key=row_key))(tokens, keys)


def hidden_states(
    params: Params, tokens: Tokens, *, config: ModelConfig, matmul_precision: str | None = "highest"
) -> Float[Array, "B L D"]:
    """AutoModel's `last_hidden_state` of padded rows; what stands on padding has no meaning.

    Raises: as `forward`.
    """
    check_padded(tokens)
    models.check(config, tokens)
    with _precision(matmul_precision):
        return jax.vmap(lambda tokens_T: models.hidden_states(params, tokens_T, config=config))(tokens)


def embeddings(
    params: Params,
    tokens: Tokens,
    num_segments: int,
    *,
    config: ModelConfig,
    matmul_precision: str | None = "highest",
) -> Float[Array, "R S D"]:
    """The vector in float32 that the head reads of each text of packed rows: its first token's, in most families.

    Raises: as `forward`.
    """
    models.check(config, tokens)
    row = functools.partial(models.embeddings, params, config=config, num_segments=num_segments)
    with _precision(matmul_precision):
        return jax.vmap(row)(tokens)


class Outputs(NamedTuple):
    """Of texts, or of windows of them."""

    logits: Float[AnyArray, "*batch C"]
    scores: Float[AnyArray, "*batch C"]


class Asking(NamedTuple):
    """How a model is asked for one label after the other, by another row for each (`transforms.zero_shot`)."""

    model: "Classifier"
    row: Callable[[Tokens, Int[Array, "*S"]], tuple[Tokens, Int[Array, " T"]]]
    """`row(tokens, labels)`: what the model reads of one row `[T]` to tell of a label of each of its texts, or of one
    label of all. And for each token that it reads, the place of the given row that it stands for."""
    logit: Callable[[Float[Array, "*texts C"]], Float[Array, "*texts"]]
    """The logit of the label, of the model's for such a row."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Classifier:
    """The three pure functions of a checkpoint with their `params`; it holds nothing else that changes.

    `logits`, `scores` and `embeddings` are for `Engine(classifier, function=…)`: they take rows as it lays them out.
    """

    tokenize: Callable[..., Tokens]
    """`tokenize(texts, length=None)`: NumPy arrays `[B, L]`, padded to the longest text or to `length`."""
    forward: Callable[..., Float[Array, "B C"]]
    """`forward(params, tokens, key=None)`: logits f32 `[B, C]`; a `key` switches dropout on, for training."""
    forward_packed: Callable[..., Float[Array, "R S C"]] | None
    """`forward_packed(params, tokens, num_segments, key=None)`: logits of rows that hold up to `num_segments` texts
    each (`packing.pack`), by flaxsent's own encoder, whatever `backend` is; None for a family that has none."""
    hidden_states: Callable[[Params, Tokens], Float[Array, "B L D"]]
    """AutoModel's `last_hidden_state`; what stands on padding has no meaning. FlaxsentError for an exported folder."""
    embeddings: Callable[[Params, Tokens, int], Float[Array, "R S D"]]
    """`embeddings(params, tokens, num_segments)`: the vector that the head reads of each text. FlaxsentError for an
    exported folder."""
    postprocess: Callable[[Float[Array, "*batch C"]], Float[Array, "*batch C"]]
    """Softmax, sigmoid or nothing, by `config.score_function`; float32."""
    params: Params
    config: ModelConfig
    tokenizer: Tokenizer
    backend: Backend
    """Of `forward`: "flax", "native" or "exported"; "zero-shot" or "adapters" where `transforms.zero_shot` or
    `by_segment` made it of another's."""
    windows: Windows | None = None
    """How `classify` and `Engine` read texts beyond the limit (`transforms.windows`); None cuts them."""
    asking: Asking | None = None
    """Where the labels are no labels of the params."""

    def __repr__(self) -> str:
        leaves = jax.tree.leaves(self.params)
        dtypes = "/".join(sorted({str(leaf.dtype) for leaf in leaves}))
        size = f"{sum(leaf.size for leaf in leaves):,} params in {dtypes}"
        return f"Classifier({self.config.family}, backend={self.backend!r}, {self.config.num_labels} labels, {size})"

    def __getstate__(self) -> dict[str, Any]:
        """Without what `jit` has compiled: no other process can read it."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @property
    def packs(self) -> bool:
        """Whether a row may hold several texts."""
        return self.forward_packed is not None

    def logits(
        self, params: Params, tokens: Tokens, num_segments: int, key: OptionalKey = None
    ) -> Float[Array, "R S C"]:
        """Logits of the texts of rows `[R, T]`, packed where the family can be, else of one text in each.

        Raises:
            FlaxsentError: `num_segments` is more than 1 for a family that does not pack.
        """
        if self.forward_packed is not None:
            return self.forward_packed(params, tokens, num_segments, key)
        if num_segments > 1:
            raise FlaxsentError(f"{self.config.family} takes one text a row; pass num_segments=1, not {num_segments}.")
        return self.forward(params, tokens, key)[:, None]

    def scores(
        self, params: Params, tokens: Tokens, num_segments: int, key: OptionalKey = None
    ) -> Float[Array, "R S C"]:
        """`postprocess` of `logits`: probabilities, or the values themselves for regression."""
        return self.postprocess(self.logits(params, tokens, num_segments, key))

    def outputs(self, params: Params, tokens: Tokens, num_segments: int) -> Outputs:
        """`logits`, and the `scores` that come of them."""
        logits_RSC = self.logits(params, tokens, num_segments)
        return Outputs(logits_RSC, self.postprocess(logits_RSC))

    def predict(self, params: Params, tokens: Tokens) -> Float[Array, "B C"]:
        """`jit` of `postprocess` after `forward`: padded rows; compiled once a shape as long as this record lives."""
        check_padded(tokens)
        return self._predict(params, tokens)

    @functools.cached_property
    def _predict(self) -> Callable[[Params, Tokens], Float[Array, "B C"]]:
        return jax.jit(lambda params, tokens: self.postprocess(self.forward(params, tokens)))

    @functools.cached_property
    def predict_packed(self) -> Callable[[Params, Tokens, int], Float[Array, "R S C"]]:
        """`jit` of `scores`: rows of up to `num_segments` texts, which is static."""
        return jax.jit(self.scores, static_argnums=2)

    @functools.cached_property
    def outputs_packed(self) -> Callable[[Params, Tokens, int], Outputs]:
        """`jit` of `outputs`, as `predict_packed`."""
        return jax.jit(self.outputs, static_argnums=2)


def check_is_of_one_model(classifier: Classifier) -> None:
    """Refuses a classifier whose labels are not those of its params alone, where these are to be trained or written.

    Raises:
        FlaxsentError: it is `transforms.zero_shot`'s or `by_segment`'s.
    """
    if classifier.backend == "zero-shot":
        raise FlaxsentError("labels given at run time are neither trained nor saved; pass the checkpoint itself.")
    if classifier.backend == "adapters":
        raise FlaxsentError(
            "several adapters in a row are neither trained nor saved; pass the classifier of one of them."
        )


def with_thresholds(classifier: Classifier, thresholds: Sequence[float] | None) -> Classifier:
    """The same, with thresholds of its labels (`postprocessing.tune_thresholds`), which `save` stores; None: 0.5 each.

    Raises:
        FlaxsentError: it is not one of several labels at once, or they are not a probability for each label.
    """
    config = classifier.config
    if config.problem_type != "multi_label_classification":
        raise FlaxsentError(f"thresholds are for several labels at once; this is {config.problem_type}.")
    if thresholds is not None and (len(thresholds) != config.num_labels or not all(0 < one < 1 for one in thresholds)):
        raise FlaxsentError(f"{len(thresholds)} thresholds; expected {config.num_labels}, each between 0 and 1.")
    config = dataclasses.replace(config, label_thresholds=None if thresholds is None else (*map(float, thresholds),))
    return dataclasses.replace(classifier, config=config)


def with_limit(classifier: Classifier, max_length: int) -> Classifier:
    """The same, for texts of so many tokens at most.

    Raises:
        FlaxsentError: the checkpoint takes less, or special tokens are as many; or the stride of its windows is not
            below them any more.
    """
    classifier.tokenizer.encode([], max_length=max_length)  # refuses what is no length of its texts
    tokenizer = dataclasses.replace(classifier.tokenizer, max_length=max_length)
    found = dataclasses.replace(
        classifier, tokenizer=tokenizer, tokenize=functools.partial(tokenize, tokenizer=tokenizer)
    )
    return with_windows(found, classifier.windows)


def with_windows(classifier: Classifier, windows: Windows | None) -> Classifier:
    """The same, for texts that are read in these windows.

    Raises:
        FlaxsentError: `stride` is not below the window.
    """
    if windows is not None:
        tokenizer, stride = classifier.tokenizer, windows.stride
        size = tokenizer.text_limit - tokenizer.backend.num_special_tokens_to_add(True)
        if type(stride) is not int or not 0 <= stride < size:
            raise FlaxsentError(
                f"stride={stride!r}: windows of this checkpoint have {size} tokens of a text; expected a number of "
                f"them from 0 to {size - 1}."
            )
    return dataclasses.replace(classifier, windows=windows)


def tell_truncated(num_truncated: int, num_texts: int, limit: int) -> None:
    """Logs that texts lost their end: nothing is cut without being said."""
    if num_truncated:
        logger.warning("%d of %d texts were truncated to %d tokens", num_truncated, num_texts, limit)


def tell_windows(num_long: int, num_windows: int, num_texts: int, limit: int) -> None:
    """Logs that texts were read in windows, and in how many."""
    if num_long:
        logger.warning(
            "%d of %d texts of more than %d tokens were read in %d windows", num_long, num_texts, limit, num_windows
        )


def _precision(matmul_precision: str | None) -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext() if matmul_precision is None else jax.default_matmul_precision(matmul_precision)
