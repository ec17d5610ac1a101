"""Which checkpoints score the texts of a job, and what the engine computes of them."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, Literal

from flaxsent.base import FlaxsentError
from flaxsent.checkpoint.folder import load
from flaxsent.classifier import Classifier, Function
from flaxsent.tokenization import POOLINGS
from flaxsent.transforms.embedded import with_embeddings
from flaxsent.transforms.ensemble import mean, members_of, uncertainty
from flaxsent.transforms.windows import windows
from flaxsent.transforms.zero_shot import TEMPLATE, hypotheses, zero_shot

SAMPLES = 20
"""Draws of dropout that tell how certain one model is."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scoring:
    """What is asked for; `open` loads it. What does not go together is refused when it is made.

    Raises:
        FlaxsentError: no models; embeddings of several members, or by labels given at run time; windows that pool the
            logits of several members; labels or a template that no model could have.
    """

    models: tuple[str | os.PathLike | None, ...] = (None,)
    """Hub ids and folders; None is the embedded model. Of several, the mean of the scores counts."""
    special_tokens_in_text: Literal["special", "literal"] = "special"
    zero_shot: Mapping[str, Any] | None = None
    """The arguments of `transforms.zero_shot`; None: the labels are the models' own."""
    windows: Mapping[str, Any] | None = None
    """The arguments of `transforms.windows`; None: texts beyond the limit are cut."""
    uncertainty: bool = False
    """By the several models, or by `num_samples` draws of dropout by one."""
    num_samples: int = SAMPLES
    embeddings: bool = False

    def __post_init__(self) -> None:
        if not self.models:
            raise FlaxsentError("expected one model or more; None is the embedded one.")
        if self.embeddings and not self._is_one:
            raise FlaxsentError("embeddings need one model, without uncertainty: each member has another vector.")
        if self.zero_shot is not None:
            hypotheses(self.zero_shot.get("labels", ()), self.zero_shot.get("template", TEMPLATE))
            if self.embeddings:
                raise FlaxsentError("a text has another vector with each of the labels given at run time.")
        pooling = POOLINGS[0] if self.windows is None else self.windows.get("pooling", POOLINGS[0])
        if self.windows is not None and not self._is_one and pooling.endswith("logits"):
            raise FlaxsentError(
                f"several models, and draws of dropout, give probabilities, and windows pool {pooling}; expected the "
                "pooling mean_probabilities or max_probabilities."
            )

    @property
    def _is_one(self) -> bool:
        return len(self.models) == 1 and not self.uncertainty

    @property
    def measured_by(self) -> str | None:
        """What the uncertainty is measured by, if it is."""
        if not self.uncertainty:
            return None
        return f"{len(self.models)} models" if len(self.models) > 1 else f"{self.num_samples} draws of dropout"

    def open(self) -> tuple[Classifier, Function | None]:
        """The classifier, and what an engine is to compute if that is not only its scores.

        Raises: as `load` and the transforms, and
            FlaxsentError: the models have not the same labels, architecture and tokenizer.
        """
        classifiers = [load(model, special_tokens_in_text=self.special_tokens_in_text) for model in self.models]
        if self.zero_shot is not None:
            if len({classifier.config.labels for classifier in classifiers}) > 1:
                raise FlaxsentError(
                    "labels given at run time need models with the same labels of their own, in the same order."
                )
            classifiers = [zero_shot(classifier, **self.zero_shot) for classifier in classifiers]
        if self._is_one:
            classifier = self._in_windows(classifiers[0])
            return classifier, with_embeddings(classifier) if self.embeddings else None
        classifier, members = members_of(classifiers, num_samples=self.num_samples)
        measured = mean(members)
        if self.uncertainty:
            measured = uncertainty(members, score_function=classifier.config.score_function)
        return self._in_windows(classifier), measured

    def _in_windows(self, classifier: Classifier) -> Classifier:
        return classifier if self.windows is None else windows(classifier, **self.windows)
