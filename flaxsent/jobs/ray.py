"""Ray Data on mixed clusters: an actor for each device, which holds one warm `Engine`, and datasets through them.

Ray decides where actors run, repeats what was lost when one dies, and spills to disk. This module only says what an
actor does with a batch.
"""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from flaxsent import files
from flaxsent.base import FlaxsentError, Text
from flaxsent.checkpoint import hub
from flaxsent.checkpoint.exported import is_exported
from flaxsent.engine import Engine
from flaxsent.jobs.chunks import columns_of, is_finite, why_bad
from flaxsent.jobs.plan import JobOptions
from flaxsent.jobs.scoring import SAMPLES, Scoring
from flaxsent.models.config import ModelConfig

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

_BATCH_SIZE = 16384
"""Texts that an actor takes at once: several windows of the engine on a CPU, a dozen steps on an accelerator."""


def classify(
    dataset: "Dataset",
    *,
    model: str | os.PathLike | Sequence[str | os.PathLike] | None = None,
    text_column: str = "text",
    second_column: str | None = None,
    all_scores: bool = False,
    uncertainty: bool = False,
    num_samples: int = SAMPLES,
    embeddings: bool = False,
    prefix: str = "",
    special_tokens_in_text: Literal["special", "literal"] = "special",
    zero_shot: Mapping[str, Any] | None = None,
    windows: Mapping[str, Any] | None = None,
    num_actors: int | None = None,
    batch_size: int | None = None,
) -> "Dataset":
    """A dataset of the same rows with `label` and `score` besides, as `flaxsent classify --input` adds them.

    It is computed when it is read or written, by Ray. Rows keep their columns; their order is kept only if Ray is told
    to (`ray.data.DataContext.get_current().execution_options.preserve_order`).

    Args:
        dataset: any of Ray Data's.
        model: a Hub id or a folder that every node sees, exported or not; None is the embedded model. Of several, the
            mean of their scores counts.
        text_column: the column of the texts.
        second_column: the column of the second texts, for pairs.
        all_scores: adds a column with the score of each label.
        uncertainty: adds entropy, mutual_information and disagreement of several models, or of one model under draws of
            dropout.
        num_samples: so many draws.
        embeddings: adds a column with the vector that the head reads, a list.
        prefix: put before the names of the added columns.
        special_tokens_in_text: as in `load`.
        zero_shot: arguments of `transforms.zero_shot`, by which an NLI model has labels that are given at run time.
        windows: arguments of `transforms.windows`, by which texts beyond the limit are read; None cuts them.
        num_actors: by default one for each GPU or TPU of the cluster, or one for each node if it has none.
        batch_size: rows that an actor takes at once; the more, the better they fill the rows of tokens.

    Raises:
        MissingPackageError: Ray is not installed.
        FileNotFoundError, ConnectionError: a node does not find the model.
        FlaxsentError: a column is missing or exists already, a number is not positive, or as `Scoring`. From Ray, when
            the dataset is read: a row has no text, or a score is not a finite number.
    """
    for module in ("ray", "ray.data", "pyarrow"):
        files.require(module, needed_by="flaxsent.jobs.ray", extra="ray")
    import ray

    for name, number in (("num_actors", num_actors), ("batch_size", batch_size)):
        if number is not None and (type(number) is not int or number < 1):
            raise FlaxsentError(f"{name}={number!r}: expected 1 or more, or None.")
    models = (model,) if model is None or isinstance(model, str | os.PathLike) else (*model,)
    scoring = Scoring(
        models=models,
        special_tokens_in_text=special_tokens_in_text,
        zero_shot=zero_shot,
        windows=windows,
        uncertainty=uncertainty,
        num_samples=num_samples,
        embeddings=embeddings,
    )
    columns = tuple(column for column in (text_column, second_column) if column is not None)
    if zero_shot is not None and second_column is not None:
        raise FlaxsentError("second_column does not go with zero_shot, which makes a pair of each text.")
    options = JobOptions(
        text_columns=columns,
        all_scores=all_scores,
        uncertainty=scoring.measured_by,
        embeddings=embeddings,
        prefix=prefix,
    )
    if not ray.is_initialized():
        ray.init()
    if (schema := dataset.schema(fetch_if_missing=False)) is not None:  # else each batch is looked at
        _check_columns(schema.names, columns, options.added_names(labels=()))
    for one in models:
        _check_model(one)
    devices, per_actor = _devices()
    return dataset.map_batches(
        _Scorer,
        fn_constructor_args=(scoring, options),
        batch_size=batch_size or _BATCH_SIZE,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=num_actors or devices),
        scheduling_strategy="SPREAD",
        udf_modifying_row_count=False,
        **per_actor,
    )


class _Scorer:
    """What an actor holds: one engine, warm before the first batch comes."""

    def __init__(self, scoring: Scoring, options: JobOptions) -> None:
        self._options = options
        classifier, function = scoring.open()
        self._engine = Engine(classifier, function=function)
        self._engine.warmup()

    def __call__(self, batch: "pa.Table") -> "pa.Table":
        config, columns = self._engine.classifier.config, self._options.text_columns
        added = self._options.added_names(config.labels)
        _check_columns(batch.column_names, columns, added)
        texts = _texts(batch, columns)
        results = self._engine(texts)
        if not (is_good_B := is_finite(results)).all():
            worst = int(is_good_B.argmin())
            raise FlaxsentError(
                f"the text {texts[worst]!r:.99} {why_bad(results, worst)}; filter such rows out, or check the model "
                "(flaxsent info)."
            )
        for name, values in _arrays(columns_of(results, config, added, self._options), config).items():
            batch = batch.append_column(name, [values])
        return batch


def _arrays(columns: Mapping[str, Any], config: ModelConfig) -> dict[str, "pa.Array"]:
    """The columns by name: labels first, then numbers, or for texts of several labels lists of both."""
    import pyarrow as pa

    kinds = (pa.string(), pa.float32())
    if config.score_thresholds is not None:
        kinds = (pa.list_(kinds[0]), pa.list_(kinds[1]))
    (label, labels), (score, scores), *others = columns.items()
    found = {label: pa.array(labels, kinds[0]), score: pa.array(scores, kinds[1])}
    # Of a table of numbers, Arrow takes the rows one by one.
    return found | {name: pa.array([*rows] if rows.ndim == 2 else np.ascontiguousarray(rows)) for name, rows in others}


def _texts(batch: "pa.Table", columns: Sequence[str]) -> list[Text]:
    values = [batch.column(column).to_pylist() for column in columns]
    for column, texts in zip(columns, values, strict=True):
        odd = next((text for text in texts if not isinstance(text, str)), "")
        if not isinstance(odd, str):
            raise FlaxsentError(
                f"the column {column!r} has a row with {odd!r}; expected text: filter such rows out, or fill them in."
            )
    return values[0] if len(values) == 1 else [*zip(*values, strict=True)]


def _check_columns(there: Sequence[str], columns: Sequence[str], added: Sequence[str]) -> None:
    if missing := [column for column in columns if column not in there]:
        raise FlaxsentError(f"the dataset has no column {missing[0]!r}; it has {', '.join(there)}: name one of them.")
    if len({*added}) < len(added):
        raise FlaxsentError(
            f"the added columns would be {', '.join(added)}; expected other names: leave out all_scores."
        )
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
