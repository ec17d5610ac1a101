"""The words that a run's texts have: its steps compute with these rows of the table of words, and with no others.

A row that no text looks up has no gradient in any step. What moves it is weight decay, which does the same to all such
rows: one row of ones stands for them, and tells at the end what they are to be multiplied by. The table is half of a
MiniLM and two thirds of XLM-RoBERTa-base, of which gradient, moments and average are kept; few texts have few words.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from flaxsent import models
from flaxsent.base import AnyArray, Params
from flaxsent.classifier import Classifier
from flaxsent.training.batches import Corpus


class Vocabulary(NamedTuple):
    """Which rows of the table of words a run computes with; all of them where `path` is empty."""

    path: tuple[str, ...] = ()
    """Where in the params the table is."""
    ids: Int[np.ndarray, " U"] = np.zeros(0, np.int32)
    """What the texts have; their rows come first in the smaller table, in this order, then rows of ones."""
    row_of_id: Int[np.ndarray, " V"] = np.zeros(0, np.int32)
    """The row of each id in the smaller table; -1 where no text has it."""

    def cut(self, params: Params) -> Params:
        """The params with the smaller table."""
        if not self.path:
            return params

        def rows(table_VD: Float[Array, "V D"]) -> Float[Array, "R D"]:
            ones = jnp.ones((_num_rows(len(self.ids)) - len(self.ids), table_VD.shape[1]), table_VD.dtype)
            return jnp.concatenate([jnp.asarray(table_VD)[self.ids], ones])

        return _changed(params, self.path, rows)

    def whole(self, params: Params, start: Params) -> Params:
        """The params that a run came to, with the table as it would be if the run had computed with it whole."""
        if not self.path:
            return params

        def table(rows_RD: Float[AnyArray, "R D"]) -> Float[np.ndarray, "V D"]:
            trained, before = np.array(rows_RD), start
            for name in self.path:
                before = before[name]
            table_VD = np.asarray(before, np.float32) * trained[-1]
            table_VD[self.ids] = trained[: len(self.ids)]
            return table_VD

        return _changed(params, self.path, table)

    def with_row_of_id(self, params: Params) -> Params:
        """The params as a forward reads them: a smaller table says which row an id has, a whole one nothing."""
        if not self.path:
            return params
        row_of_id = jnp.asarray(self.row_of_id)

        def told(table: Params) -> Params:
            is_whole = len(table["embedding"]) == len(row_of_id)
            return table if is_whole else {**table, "row_of_id": row_of_id}

        return _changed(params, self.path[:-1], told)


def vocabulary_of(classifier: Classifier, corpora: Sequence[Corpus]) -> Vocabulary:
    """That of the texts of a run, and of what the family looks up besides; the whole one where it is no larger."""
    config = classifier.config
    path = models.words_path(config) if classifier.backend == "native" else ()
    texts = (ids for corpus in corpora for ids in corpus.encodings.input_ids)
    found = {id for id in set().union(models.ids_besides(config), *texts) if id < config.vocab_size}
    ids = np.array(sorted(found), np.int32)
    if not path or _num_rows(len(ids)) >= config.vocab_size:
        return Vocabulary()
    row_of_id_V = np.full(config.vocab_size, -1, np.int32)
    row_of_id_V[ids] = np.arange(len(ids))
    return Vocabulary(path, ids, row_of_id_V)


def _num_rows(num_ids: int) -> int:
    """A row of ones at least; a multiple of what accelerators lay out together."""
    return -(-(num_ids + 1) // 8) * 8


def _changed(node: Any, path: Sequence[str], change: Callable[[Any], Any]) -> Any:
    if not path:
        return change(node)
    return {**node, path[0]: _changed(node[path[0]], path[1:], change)}
