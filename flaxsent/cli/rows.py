"""Texts with their labels as lines: of a table, of a TSV, of JSON."""

import json
import shutil
from collections.abc import Mapping
from typing import NamedTuple

from flaxsent.base import Prediction
from flaxsent.cli.options import printable
from flaxsent.data.writers import ESCAPES


class Rows(NamedTuple):
    """How texts with their labels are printed."""

    form: str
    is_list: bool
    """A text may have several labels, or none."""
    abstain_below: float | None

    def row(self, text: str, prediction: Prediction, measures: Mapping[str, float]) -> str:
        match self.form:
            case "table":
                return self._table_row(text, prediction, measures)
            case "tsv":
                return self._tsv_row(text, prediction, measures)
            case _:
                return self._jsonl_row(text, prediction, measures)

    def _abstains(self, prediction: Prediction) -> bool:
        return self.abstain_below is not None and prediction.scores[0] < self.abstain_below

    def _table_row(self, text: str, prediction: Prediction, measures: Mapping[str, float]) -> str:
        """Scores, then as much of the text as the terminal is wide; control characters would move the cursor."""
        labels = [*prediction.labels]
        if self._abstains(prediction):
            labels[0] = _NONE
        cells = [f"{printable(label):<10} {score:.4f}" for label, score in zip(labels, prediction.scores, strict=True)]
        cells = cells or [f"{_NONE:<10} {'':6}"]
        cells += [f"{name.replace('_', ' ')} {value:.4f}" for name, value in measures.items()]
        row = "  ".join([*cells, printable(text)])
        width = shutil.get_terminal_size().columns
        return row if len(row) <= width else row[: width - 1] + "…"

    def _tsv_row(self, text: str, prediction: Prediction, measures: Mapping[str, float]) -> str:
        """Tabs and line ends of texts and labels are written as backslash escapes."""
        if self.is_list:
            scores = [float(f"{score:.6f}") for score in prediction.scores]
            cells = [json.dumps(one, ensure_ascii=False) for one in ([*prediction.labels], scores)]
        else:
            labels = ["" if self._abstains(prediction) else prediction.labels[0], *prediction.labels[1:]]
            pairs = zip(labels, prediction.scores, strict=True)
            cells = [cell for label, score in pairs for cell in (label, f"{score:.6f}")]
        cells = [cell.translate(ESCAPES) for cell in cells]
        return "\t".join([*cells, *(f"{value:.6f}" for value in measures.values()), text.translate(ESCAPES)])

    def _jsonl_row(self, text: str, prediction: Prediction, measures: Mapping[str, float]) -> str:
        pairs = zip(prediction.labels, prediction.scores, strict=True)
        scores = [{"label": label, "score": score} for label, score in pairs]
        label = (
            {} if self.abstain_below is None else {"label": None if self._abstains(prediction) else prediction.label}
        )
        return json.dumps({"text": text, **label, "scores": scores, **measures}, ensure_ascii=False)


_NONE = "–"
"""In a table, where a text is given no label."""
