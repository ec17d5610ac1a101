"""The scores of `transforms/explain.py` as people read them: folded to words, as JSON, as a page of HTML."""

import html
import re
import unicodedata
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from flaxsent.base import FlaxsentError, Text, Texts
from flaxsent.engine import Engine
from flaxsent.tokenization import Span, checked
from flaxsent.transforms.explain import Attributions


class Word(NamedTuple):
    """A piece of a text, and what it adds to the logit of the label."""

    span: Span
    text: str
    score: float


class Explanation(NamedTuple):
    """Why a text has its label, or how near it comes to another one."""

    text: Text
    label: str
    score: float
    """Of the label: a probability, or the value itself for regression."""
    words: list[Word]
    special_tokens: float
    """What the special tokens add."""
    difference: float
    """The logit of the label, less the baseline's: what words and special tokens should add up to."""
    gap: float
    """By how much they add up to more."""


def explain(texts: Texts, engine: Engine) -> Iterator[Explanation]:
    """The explanations of a stream of texts or pairs, in order.

    The engine's function is one of `transforms/explain.py`, or another one that gives `Attributions`.

    Raises:
        FlaxsentError: a text that cannot be encoded, or whose scores are not finite; or a tokenizer that does not tell
            where in a text its tokens stand.
    """
    classifier, waiting = engine.classifier, deque[Text]()
    classifier.tokenizer.spans([])  # refuses what cannot be told before anything is computed

    def given() -> Iterator[Text]:  # in the engine's thread
        for text in checked(texts):
            waiting.append(text)
            yield text

    for index, found in enumerate(engine.stream(given())):
        text = waiting.popleft()
        if not all(np.isfinite(leaf).all() for leaf in found):
            raise FlaxsentError(
                f"text {index} has a score that is NaN or infinite; `flaxsent info` says whether the weights are."
            )
        yield _explanation(text, found, engine, np.asarray(classifier.postprocess(found.logits)))


def _explanation(text: Text, found: Attributions, engine: Engine, probs_C: Float[np.ndarray, " C"]) -> Explanation:
    classifier, label = engine.classifier, int(found.label)
    (spans,) = classifier.tokenizer.spans([text])
    special = sum(float(score) for span, score in zip(spans, found.scores, strict=True) if span is None)
    return Explanation(
        text=text,
        label=classifier.config.labels[label],
        score=float(probs_C[label]),
        words=fold(text, spans, found.scores.tolist()),
        special_tokens=special,
        difference=float(found.scores.sum() - found.gap),
        gap=float(found.gap),
    )


def fold(text: Text, spans: Sequence[Span | None], scores: Sequence[float]) -> list[Word]:
    """The scores of tokens, added up by words; special tokens, which have no span, are left out.

    A word is letters, digits and the apostrophes between them; one letter, in scripts without spaces between words; or
    any other character. A token that is longer than a word is one.

    >>> fold("isn't bad", [Span(0, 0, 3), Span(0, 3, 5), None, Span(0, 6, 9)], [1.0, 2.0, 5.0, 4.0])
    [Word(span=Span(part=0, start=0, end=5), text="isn't", score=3.0), \
Word(span=Span(part=0, start=6, end=9), text='bad', score=4.0)]
    """
    parts = text if isinstance(text, tuple) else (text,)
    starts = [*map(_word_starts, parts)]
    spans_of: dict[tuple[int, int], list[Span]] = {}
    scores_of: dict[tuple[int, int], list[float]] = {}
    for span, score in zip(spans, scores, strict=True):
        if span is None:
            continue
        piece = parts[span.part][span.start : span.end]
        span = span._replace(start=span.end - len(piece.lstrip()), end=span.end)
        # What SentencePiece puts before a text stands on the space before the first word, or nowhere.
        word = (span.part, starts[span.part].get(span.start, span.start))
        spans_of.setdefault(word, []).append(span)
        scores_of.setdefault(word, []).append(score)
    words = []
    for word, own in spans_of.items():
        whole = Span(word[0], min(span.start for span in own), max(span.end for span in own))
        words.append(Word(whole, parts[whole.part][whole.start : whole.end], sum(scores_of[word])))
    return words


def _word_starts(text: str) -> dict[int, int]:
    """For each character that is no space, where its word begins."""
    kinds = "".join(map(_kind, text))
    return {at: found.start() for found in _WORD.finditer(kinds) for at in range(*found.span())}


_WORD = re.compile("w+(?:'w+)*|[^ ]")
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
"""Thai, Lao, Burmese, Khmer, kana and Han."""


def _kind(char: str) -> str:
    if char.isspace():
        return " "
    if char in "'’":
        return "'"
    is_letter = unicodedata.category(char)[0] in "LMN" or unicodedata.category(char) == "Cf"
    return "w" if is_letter and not _UNSPACED.match(char) else "."


def to_columns(explanation: Explanation) -> dict[str, Any]:
    """All that is said of a text, for JSON."""
    is_pair = isinstance(explanation.text, tuple)
    return {
        "label": explanation.label,
        "score": _short(explanation.score),
        "words": [
            {"word": text, "score": _short(score), "start": span.start, "end": span.end}
            | ({"part": span.part} if is_pair else {})
            for span, text, score in explanation.words
        ],
        "special_tokens": _short(explanation.special_tokens),
        "difference": _short(explanation.difference),
        "gap": _short(explanation.gap),
    }


COLUMNS = ("label", "score", "words", "special_tokens", "difference", "gap")
"""Those of `to_columns`."""


def _short(number: float) -> float:
    """As many digits as float32 has."""
    return float(f"{number:.7g}")


class Piece(NamedTuple):
    """A word, or what is between two."""

    text: str
    score: float | None = None
    share: float = 0.0
    """Of the largest score of the text: -1 to 1."""


def pieces(explanation: Explanation) -> Iterator[list[Piece]]:
    """All of a text, in pieces; of each text of a pair.

    >>> word = Word(Span(0, 3, 7), "good", -2.0)
    >>> [[so, good]] = pieces(Explanation("so good", "NEGATIVE", 0.1, [word], 0.0, -2.0, 0.0))
    >>> so.text, good
    ('so ', Piece(text='good', score=-2.0, share=-1.0))
    """
    largest = max((abs(word.score) for word in explanation.words), default=0) or 1
    for part, text in enumerate(explanation.text if isinstance(explanation.text, tuple) else (explanation.text,)):
        found, end = [], 0
        for word in sorted(word for word in explanation.words if word.span.part == part):
            start = max(word.span.start, end)  # what SentencePiece puts before a text may stand on its first character
            if start > end:
                found.append(Piece(text[end:start]))
            if word.span.end > start:
                found.append(Piece(text[start : word.span.end], word.score, word.score / largest))
            end = max(end, word.span.end)
        yield [*found, Piece(text[end:])] if end < len(text) else found


def summary(explanation: Explanation) -> str:
    """What the scores add up to, in a line."""
    special = f" and the special tokens' {explanation.special_tokens:+.3f}" if explanation.special_tokens else ""
    return (
        f"the words' scores{special} add up to {explanation.difference + explanation.gap:+.3f}; the logit is "
        f"{explanation.difference:+.3f} from the baseline's: a gap of {explanation.gap:+.1g}"
    )


def page(explanations: Iterable[Explanation]) -> str:
    """One page of HTML without scripts and without anything from elsewhere; texts and labels are only text in it."""
    return _PAGE.replace("STYLE", STYLE).replace("TEXTS", "\n".join(map(_section, explanations)))


def _section(explanation: Explanation) -> str:
    head = f"<b>{escaped(explanation.label)}</b> {explanation.score:.4f}"
    return f"<section><h2>{head}</h2>{paragraphs(explanation)}<small>{escaped(summary(explanation))}</small></section>"


def paragraphs(explanation: Explanation) -> str:
    """The text, or each of a pair, in HTML with its words coloured by the classes of `STYLE`."""
    return "".join(f'<p dir="auto">{"".join(_piece(piece) for piece in part)}</p>' for part in pieces(explanation))


def _piece(piece: Piece) -> str:
    if piece.score is None:
        return escaped(piece.text)
    side, share = ("for" if piece.score >= 0 else "against"), f"--share:{abs(piece.share):.3f}"
    return f'<span class="{side}" style="{share}" title="{piece.score:+.4f}">{escaped(piece.text)}</span>'


def escaped(text: str) -> str:
    """A text that is only text in HTML, whatever it holds."""
    return html.escape(_HARMFUL.sub("\ufffd", text))


_HARMFUL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")
"""What HTML forbids, and what turns the direction of the text after it."""


STYLE = """:root { color-scheme: light dark; --page: #fff; --ink: #1a1a1a; --faint: #595959; --for: 37 99 235;
  --against: 217 95 2 }
@media (prefers-color-scheme: dark) { :root { --page: #161616; --ink: #ececec; --faint: #a6a6a6 } }
body { background: var(--page); color: var(--ink); font: 1.05rem/1.7 system-ui, sans-serif; max-width: 46rem;
  margin: 2rem auto; padding: 0 1rem }
h1, h2 { font-size: 1rem; font-weight: normal; margin: 0; unicode-bidi: isolate }
section { margin: 1.5rem 0 }
p { margin: .2rem 0; white-space: pre-wrap; overflow-wrap: anywhere }
small, h1 { color: var(--faint) }
p span, h1 span { border-radius: .2em; padding: .1em 0 }
.for { background: rgb(var(--for) / calc(var(--share) * .65)) }
.against { background: rgb(var(--against) / calc(var(--share) * .65)) }"""
"""Of pages: colours in light and dark, and words that are coloured by their share."""


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
<title>Which words decided</title>
<style>
STYLE
</style>
<h1><span class="for" style="--share:1">Blue</span> words speak for the label,
<span class="against" style="--share:1">orange</span> ones against it.</h1>
TEXTS
</html>
"""
