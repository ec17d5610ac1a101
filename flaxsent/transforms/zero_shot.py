"""Labels named at run time: how far a text entails "This example is sports", by an NLI model.

A text comes with room behind it for any of the hypotheses, so that it is tokenized and packed once. On the device, each
hypothesis in turn is written into that room, and the model reads the pair that transformers' zero-shot pipeline makes.
What that gives is a `Classifier` again, with the new labels, for whatever takes one.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from flaxsent.base import AnyArray, Encodings, FlaxsentError, Params, Texts, Tokens
from flaxsent.classifier import Asking, Classifier, tokenize, with_windows
from flaxsent.models.config import ModelConfig
from flaxsent.packing import check_padded
from flaxsent.postprocessing import postprocess
from flaxsent.tokenization import Span, Tokenizer, Windowed, Windows, checked

TEMPLATE = "This example is {}."
"""transformers' own."""


def zero_shot(
    classifier: Classifier,
    labels: Sequence[str],
    *,
    template: str = TEMPLATE,
    multi_label: bool = False,
    entailment: str | None = None,
) -> Classifier:
    """A classifier of texts by other labels, with the params of an NLI checkpoint and the scores of transformers.

    Its logits are those of entailment, with a softmax over the labels. Of several labels that may all be true, or of
    one alone, they are those of entailment less those of contradiction, with a sigmoid for each. A text that is too
    long is cut, or read in `windows`; its hypothesis is whole. It is neither saved nor exported nor trained.

    Args:
        classifier: an NLI checkpoint.
        labels: the new ones.
        template: the hypothesis, with {} for the label.
        multi_label: whether the labels do not exclude one another.
        entailment: the checkpoint's label that says so; the first that begins with "entail" by default. Contradiction
            is its first label, or the last one if entailment is the first, as in transformers.

    Raises:
        FlaxsentError: labels that are none, empty or repeated, a template without {}, hypotheses that leave no room for
            a text or for the overlap of its `windows`, or a checkpoint without a label for entailment and another.

    >>> import flaxsent
    >>> sentiment = flaxsent.load(backend="native")
    >>> topics = zero_shot(sentiment, ["good", "bad"], template="It is {}.", entailment="POSITIVE")
    >>> logits_BL = topics.forward(topics.params, topics.tokenize(["so bad"]))
    >>> pairs = [("so bad", "It is good."), ("so bad", "It is bad.")]
    >>> logits_BC = sentiment.forward(sentiment.params, sentiment.tokenize(pairs))
    >>> bool(jnp.allclose(logits_BL[0], logits_BC[:, sentiment.config.labels.index("POSITIVE")], atol=1e-5))
    True
    >>> {label: round(score, 2) for label, score in zip(*flaxsent.classify(["so bad"], topics, top_k=None)[0])}
    {'good': 0.88, 'bad': 0.12}
    """
    if classifier.backend == "zero-shot":
        raise FlaxsentError("the labels of this classifier are given already; pass the checkpoint that it is made of.")
    if classifier.backend == "adapters":
        raise FlaxsentError("several adapters in a row name no hypothesis; pass the classifier of one of them.")
    spoken = hypotheses(labels, template)
    entailed, contradicted = _columns(classifier.config, entailment)
    is_multi = multi_label or len(labels) == 1
    tokenizer, behind = _read(classifier.tokenizer, spoken)
    config = dataclasses.replace(
        classifier.config,
        labels=tuple(labels),
        problem_type="multi_label_classification" if is_multi else "single_label_classification",
        function_to_apply=None,
        label_thresholds=None,
    )
    row = functools.partial(_with_hypotheses, behind=behind, tokenizer=tokenizer)

    def logit(logits: Float[Array, "*texts C"]) -> Float[Array, "*texts"]:
        return logits[..., entailed] - logits[..., contradicted] if is_multi else logits[..., entailed]

    def by_label(logits: Callable[[Tokens], Float[Array, "*texts C"]], tokens: Tokens) -> Float[Array, "*texts L"]:
        rows = jax.tree.map(jnp.asarray, tokens)
        # One after the other: a step of rows is as large as is good for a device.
        found = jax.lax.map(
            lambda label: logit(logits(jax.vmap(lambda tokens_T: row(tokens_T, label)[0])(rows))),
            jnp.arange(len(labels)),
        )
        return jnp.moveaxis(found, 0, -1)

    def forward(params: Params, tokens: Tokens, key: Key[Array, ""] | None = None) -> Float[Array, "B L"]:
        check_padded(tokens)
        return by_label(lambda pairs: classifier.forward(params, pairs, key), tokens)

    def forward_packed(
        params: Params, tokens: Tokens, num_segments: int, key: Key[Array, ""] | None = None
    ) -> Float[Array, "R S L"]:
        assert classifier.forward_packed is not None
        packed = classifier.forward_packed
        return by_label(lambda pairs: packed(params, pairs, num_segments, key), tokens)

    found = Classifier(
        tokenize=functools.partial(tokenize, tokenizer=tokenizer),
        forward=forward,
        forward_packed=forward_packed if classifier.packs else None,
        hidden_states=_refuse,
        embeddings=_refuse,
        postprocess=functools.partial(postprocess, config=config),
        params=classifier.params,
        config=config,
        tokenizer=tokenizer,
        backend="zero-shot",
        asking=Asking(classifier, row, logit),
    )
    return with_windows(found, classifier.windows)


def hypotheses(labels: Sequence[str], template: str = TEMPLATE) -> list[str]:
    """What each label says of a text.

    Raises:
        FlaxsentError: labels that are none, empty or repeated, or a template without {}.

    >>> hypotheses(["sports", "the law"])
    ['This example is sports.', 'This example is the law.']
    """
    is_list = not isinstance(labels, str) and all(isinstance(label, str) and label.strip() for label in labels)
    if not is_list or not labels or len(set(labels)) < len(labels):
        raise FlaxsentError(f"labels={labels!r}: expected a list of one or more labels, all different and none empty.")
    try:
        found = [template.format(label) for label in labels]
    except (LookupError, ValueError, AttributeError, TypeError) as err:
        raise FlaxsentError(f"template={template!r}: expected a sentence with one {{}} for the label.") from err
    if template in found or len(set(found)) < len(found):
        raise FlaxsentError(f"template={template!r} does not name the label; put {{}} where it should stand.")
    return found


def _columns(config: ModelConfig, entailment: str | None) -> tuple[int, int]:
    """Which logits are those of entailment and of contradiction."""
    told = ", ".join(config.labels)
    if entailment is not None and entailment not in config.labels:
        raise FlaxsentError(f"entailment={entailment!r} is none of the checkpoint's labels, {told}.")
    named = [label for label in config.labels if label.lower().startswith("entail")] or [entailment]
    label = named[0] if entailment is None else entailment
    if label is None or config.num_labels < 2:
        raise FlaxsentError(
            f"the checkpoint has the labels {told}, of which none begins with 'entail' beside another; expected an NLI "
            "model: pass one, or name its label: entailment=LABEL, --entailment LABEL."
        )
    entailed = config.labels.index(label)
    return entailed, config.num_labels - 1 if entailed == 0 else 0


class _Behind(NamedTuple):
    """What follows the tokens of a text: the hypothesis, and the special tokens before and after it."""

    input_ids: Int[AnyArray, "*L X"]
    token_type_ids: Int[AnyArray, "*L X"]
    length: Int[AnyArray, "*L"]


@dataclasses.dataclass(frozen=True)
class _Premises(Tokenizer):
    """Gives texts without their last special tokens, and room for a hypothesis: tokens of type 1, of any id."""

    num_before: int
    """Special tokens before a text."""
    num_after: int
    """Special tokens after a text that is alone."""
    room: tuple[int, int]
    """Tokens of the shortest and of the longest hypothesis, with the special tokens before and after it."""

    @property
    def text_limit(self) -> int:
        """What the longest hypothesis leaves, so that each label is asked of the same windows."""
        return self.max_length - self.room[1] + self.num_after

    def encode(self, texts: Texts, *, max_length: int | None = None) -> Encodings:
        batch, limit = self._checked_texts(texts), self._checked_limit(max_length)
        found = super().encode(batch, max_length=limit - self.room[0] + self.num_after)
        return self._with_room(found, limit)

    def encode_windows(self, texts: Texts, windows: Windows | None) -> Windowed:
        found = super().encode_windows(self._checked_texts(texts), windows)
        if windows is None:  # these are what `encode` gives
            return found
        return found._replace(encodings=self._with_room(found.encodings, self.max_length))

    def spans(self, texts: Texts, *, max_length: int | None = None) -> list[list[Span | None]]:
        batch, limit = self._checked_texts(texts), self._checked_limit(max_length)
        found = super().spans(batch, max_length=limit - self.room[0] + self.num_after)
        lengths = [len(spans) - self.num_after for spans in found]
        return [
            spans[:length] + [None] * self._room(length, limit) for spans, length in zip(found, lengths, strict=True)
        ]

    def _checked_texts(self, texts: Texts) -> list[str]:
        batch: list[str] = []
        for text in checked(texts):
            if isinstance(text, tuple):
                raise FlaxsentError("labels given at run time make a pair of a text; expected texts, and no pairs.")
            batch.append(text)
        return batch

    def _checked_limit(self, max_length: int | None) -> int:
        limit, (_, longest) = self._limit(max_length), self.room
        if limit - longest + self.num_after <= self.backend.num_special_tokens_to_add(True):
            raise FlaxsentError(
                f"the longest hypothesis takes {longest} of {limit} tokens, and leaves none for a text; shorten the "
                "template or the label."
            )
        return limit

    def _room(self, length: int, limit: int) -> int:
        """Tokens behind a text, of which one that is too long leaves what the shortest hypothesis takes.

        For a longer hypothesis it is cut on the device.
        """
        return min(length + self.room[1], limit) - length

    def _with_room(self, found: Encodings, limit: int) -> Encodings:
        lengths = [length - self.num_after for length in found.lengths]
        rooms = [self._room(length, limit) for length in lengths]
        return found._replace(
            input_ids=[
                ids[:length] + [self.pad_token_id] * room
                for ids, length, room in zip(found.input_ids, lengths, rooms, strict=True)
            ],
            token_type_ids=[[0] * length + [1] * room for length, room in zip(lengths, rooms, strict=True)],
            num_truncated=max(found.num_truncated, sum(room < self.room[1] for room in rooms)),
        )


def _read(tokenizer: Tokenizer, spoken: Sequence[str]) -> tuple[_Premises, _Behind]:
    """The tokenizer of the texts, and what follows them for each hypothesis.

    Raises:
        FlaxsentError: a hypothesis leaves no room for a text.
    """
    num_special, num_before = tokenizer.backend.num_special_tokens_to_add(False), 0
    if num_special:
        none, some = tokenizer.encode(["", spoken[0]]).input_ids
        same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(none, some, strict=False))
        num_before = min(len([*same]), num_special)
    pairs = tokenizer.encode([("", hypothesis) for hypothesis in spoken])
    lengths = [length - num_before for length in pairs.lengths]
    own = {field.name: getattr(tokenizer, field.name) for field in dataclasses.fields(tokenizer)}
    premises = _Premises(
        **own,
        num_before=num_before,
        num_after=num_special - num_before,
        room=(min(lengths), max(lengths)),
    )
    premises.encode([])  # says now that there is no room
    ids, types = (
        np.array(
            [each[num_before:] + [0] * (max(lengths) - length) for each, length in zip(lists, lengths, strict=True)]
        )
        for lists in (pairs.input_ids, pairs.token_type_ids)
    )
    return premises, _Behind(ids.astype(np.int32), types.astype(np.int32), np.array(lengths, np.int32))


def _with_hypotheses(
    row: Tokens, labels: Int[Array, "*S"], *, behind: _Behind, tokenizer: _Premises
) -> tuple[Tokens, Int[Array, " T"]]:
    """`Asking.row`: each text with the hypothesis of its label behind it; what is left of its room is padding.

    Where the room is less than the hypothesis, the text loses tokens, where `cut_side` says.
    """
    at_T = jnp.arange(row.segment_ids.shape[0], dtype=jnp.int32)
    sum_of = functools.partial(jax.ops.segment_sum, segment_ids=row.segment_ids, num_segments=at_T.shape[0] + 1)
    is_there_T = row.segment_ids > 0
    size_T = sum_of(is_there_T.astype(jnp.int32))[row.segment_ids]
    premise_T = sum_of((is_there_T & (row.token_type_ids == 0)).astype(jnp.int32))[row.segment_ids]
    is_first_T = jnp.append(True, row.segment_ids[1:] != row.segment_ids[:-1])
    start_T = jax.lax.cummax(jnp.where(is_first_T, at_T, 0))
    place_T = at_T - start_T
    label_T = labels[jnp.maximum(row.segment_ids - 1, 0)] if labels.ndim else jnp.full_like(at_T, labels)
    length_T = jnp.asarray(behind.length)[label_T]
    kept_T = jnp.minimum(premise_T, size_T - length_T)
    is_text_T = is_there_T & (place_T < kept_T)
    is_there_T &= place_T < kept_T + length_T
    cut_T = jnp.where(place_T < tokenizer.num_before, 0, premise_T - kept_T) if tokenizer.cut_side == "left" else 0
    # What has no place in the room counts for the last token there.
    source_T = jnp.where(is_text_T, at_T + cut_T, jnp.minimum(at_T + premise_T - kept_T, start_T + size_T - 1))
    source_T = jnp.where(is_there_T, source_T, at_T)
    behind_T = jnp.clip(place_T - kept_T, 0, behind.input_ids.shape[1] - 1)
    ids_T = jnp.where(is_text_T, row.input_ids[source_T], jnp.asarray(behind.input_ids)[label_T, behind_T])
    position_T = place_T
    if tokenizer.first_position:  # as in packing.py; what a token of the text was there, it is here
        padding_idx = tokenizer.first_position - 1
        is_counted_T = is_there_T & (jnp.where(is_text_T, row.position_ids[source_T], ids_T) != padding_idx)
        counts_T = jnp.cumsum(is_counted_T.astype(jnp.int32))
        before_T = (counts_T - is_counted_T.astype(jnp.int32))[start_T]
        position_T = jnp.where(is_counted_T, counts_T - before_T, 0) + padding_idx
    read = Tokens(
        input_ids=jnp.where(is_there_T, ids_T, tokenizer.pad_token_id),
        token_type_ids=jnp.where(is_there_T & ~is_text_T, jnp.asarray(behind.token_type_ids)[label_T, behind_T], 0),
        position_ids=jnp.where(is_there_T, position_T, 0),
        segment_ids=jnp.where(is_there_T, row.segment_ids, 0),
    )
    return read, source_T


def _refuse(params: Params, tokens: Tokens, num_segments: int = 1) -> NoReturn:
    raise FlaxsentError(
        "a text has another vector with each of the labels given at run time; take those of the checkpoint itself."
    )
