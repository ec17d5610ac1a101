"""Ray Data on mixed clusters: an actor for each device, which holds one warm `Engine`, and datasets through them.

Ray decides where actors run, repeats what was lost when one dies, and spills to disk. This module only says what an
actor does with a batch.
"""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float

from flaxsent import files
from flaxsent.base import FlaxsentError, Text
from flaxsent.checkpoint import hub
from flaxsent.checkpoint.exported import is_exported
from flaxsent.checkpoint.folder import load
from flaxsent.engine import Engine
from flaxsent.jobs.chunks import answers
from flaxsent.models.config import ModelConfig
from flaxsent.transforms.windows import windows as in_windows

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

_BATCH_SIZE = 16384
"""Texts that an actor takes at once: several windows of the engine on a CPU, a dozen steps on an accelerator."""


def classify(
    dataset: "Dataset",
    *,
    model: str | os.PathLike | None = None,
    text_column: str = "text",
    second_column: str | None = None,
    all_scores: bool = False,
    prefix: str = "",
    special_tokens_in_text: Literal["special", "literal"] = "special",
    windows: Mapping[str, Any] | None = None,
    num_actors: int | None = None,
    batch_size: int | None = None,
) -> "Dataset":
    """A dataset of the same rows with `label` and `score` besides, as `flaxsent classify --input` adds them.

    It is computed when it is read or written, by Ray. Rows keep their columns; their order is kept only if Ray is told
    to (`ray.data.DataContext.get_current().execution_options.preserve_order`).

    Args:
        dataset: any of Ray Data's.
        model: a Hub id or a folder that every node sees, exported or not; None is the embedded model.
        text_column: the column of the texts.
        second_column: the column of the second texts, for pairs.
        all_scores: adds a column with the score of each label.
        prefix: put before the names of the added columns.
        special_tokens_in_text: as in `load`.
        windows: arguments of `transforms.windows`, by which texts beyond the limit are read; None cuts them.
        num_actors: by default one for each GPU or TPU of the cluster, or one for each node if it has none.
        batch_size: rows that an actor takes at once; the more, the better they fill the rows of tokens.

    Raises:
        MissingPackageError: Ray is not installed.
        FileNotFoundError, ConnectionError: a node does not find the model.
        FlaxsentError: a column is missing or exists already, or a number is not positive. From Ray, when the dataset is
            read: a row has no text, or a score is not a finite number.
    """
    for module in ("ray", "ray.data", "pyarrow"):
        files.require(module, needed_by="flaxsent.jobs.ray", extra="ray")
    import ray

    for name, number in (("num_actors", num_actors), ("batch_size", batch_size)):
        if number is not None and (type(number) is not int or number < 1):
            raise FlaxsentError(f"{name}={number!r}: expected 1 or more, or None.")
    if not ray.is_initialized():
        ray.init()
    columns = [column for column in (text_column, second_column) if column is not None]
    if (schema := dataset.schema(fetch_if_missing=False)) is not None:  # else each batch is looked at
        _check_columns(schema.names, columns, [f"{prefix}{name}" for name in ("label", "score")])
    _check_model(model)
    devices, per_actor = _devices()
    return dataset.map_batches(
        _Scorer,
        fn_constructor_args=(model, columns, all_scores, prefix, special_tokens_in_text, windows),
        batch_size=batch_size or _BATCH_SIZE,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=num_actors or devices),
        scheduling_strategy="SPREAD",
        udf_modifying_row_count=False,
        **per_actor,
    )


class _Scorer:
    """What an actor holds: one engine, warm before the first batch comes."""

    def __init__(
        self,
        model: str | os.PathLike | None,
        columns: list[str],
        all_scores: bool,
        prefix: str,
        special_tokens_in_text: Literal["special", "literal"],
        windows: Mapping[str, Any] | None,
    ) -> None:
        self._columns, self._all_scores, self._prefix = columns, all_scores, prefix
        classifier = load(model, special_tokens_in_text=special_tokens_in_text)
        self._engine = Engine(classifier if windows is None else in_windows(classifier, **windows))
        self._engine.warmup()

    def __call__(self, batch: "pa.Table") -> "pa.Table":
        config = self._engine.classifier.config
        names = ["label", "score", *(config.labels if self._all_scores else ())]
        added = [f"{self._prefix}{name}" for name in names]
        _check_columns(batch.column_names, self._columns, added)
        texts = _texts(batch, self._columns)
        scores_BC = self._engine(texts)
        if not (is_good_B := np.isfinite(scores_BC).all(axis=-1)).all():
            worst = int(is_good_B.argmin())
            raise FlaxsentError(
                f"the text {texts[worst]!r:.99} has a score that is not a finite number: {scores_BC[worst].tolist()}; "
                "filter such rows out, or check the model (flaxsent info)."
            )
        for name, values in zip(added, _values(scores_BC, config), strict=False):
            batch = batch.append_column(name, [values])
        return batch


def _values(scores_BC: Float[np.ndarray, "B C"], config: ModelConfig) -> list[Any]:
    """The labels that texts are given, their scores, and the score of each."""
    import pyarrow as pa

    labels, scores = answers(scores_BC, config)
    kinds = (pa.string(), pa.float32()) if config.score_thresholds is None else ()
    kinds = kinds or (pa.list_(pa.string()), pa.list_(pa.float32()))
    given = [pa.array(labels, kinds[0]), pa.array(scores, kinds[1])]
    return [*given, *(pa.array(column) for column in np.ascontiguousarray(scores_BC.T))]


def _texts(batch: "pa.Table", columns: list[str]) -> list[Text]:
    values = [batch.column(column).to_pylist() for column in columns]
    for column, texts in zip(columns, values, strict=True):
        odd = next((text for text in texts if not isinstance(text, str)), "")
        if not isinstance(odd, str):
            raise FlaxsentError(
                f"the column {column!r} has a row with {odd!r}; expected text: filter such rows out, or fill them in."
            )
    return values[0] if len(values) == 1 else [*zip(*values, strict=True)]


def _check_columns(there: list[str], columns: list[str], added: list[str]) -> None:
    if missing := [column for column in columns if column not in there]:
        raise FlaxsentError(f"the dataset has no column {missing[0]!r}; it has {', '.join(there)}: name one of them.")
    if taken := [name for name in added if name in there]:
        raise FlaxsentError(
            f"the dataset has a column {taken[0]!r} already; pass prefix=, which is put before the added names."
        )


def _check_model(model: str | os.PathLike | None) -> None:
    """Looks for the model on each node that computes: an actor that cannot start says so late, in a hundred lines."""
    import ray
    from ray.exceptions import RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    find = ray.remote(num_cpus=0, max_retries=0)(_find)
    for node in _nodes():
        strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        try:
            ray.get(find.options(scheduling_strategy=strategy).remote(model))
        except RayTaskError as err:
            if isinstance(err.cause, FileNotFoundError | ConnectionError | FlaxsentError):
                raise type(err.cause)(f"node {node['NodeManagerHostname']}: {err.cause}") from None
            raise


def _find(model: str | os.PathLike | None) -> None:
    if model is None or not is_exported(model):
        hub.find(model)


def _nodes() -> list[dict[str, Any]]:
    import ray

    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]


def _devices() -> tuple[int, dict[str, Any]]:
    """How many devices the cluster has, and what an actor asks Ray for to get one of its own."""
    import ray

    resources = ray.cluster_resources()
    if gpus := int(resources.get("GPU", 0)):
        return gpus, {"num_gpus": 1}
    if tpus := int(resources.get("TPU", 0)):
        return tpus, {"resources": {"TPU": 1}}
    return max(len(_nodes()), 1), {"num_cpus": 1}
