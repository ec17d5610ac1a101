"""Tokens folded to words, and a page that hostile texts and labels cannot leave."""

import dataclasses
import html.parser
import re

import jax
import numpy as np
import pytest

import flaxsent
from flaxsent.engine import Engine
from flaxsent.evaluation.explanations import (
    COLUMNS,
    Explanation,
    Word,
    explain,
    fold,
    page,
    pieces,
    summary,
    to_columns,
)
from flaxsent.tokenization import PythonTokenizer, Span
from flaxsent.transforms import occlusion
from tests.conftest import AWKWARD_TEXTS


def words(text, *spans):
    """Each token has a score of its own, a power of two, so that the sums tell which tokens are in a word."""
    found = fold(text, [None if one is None else Span(0, *one) for one in spans], [2.0**n for n in range(len(spans))])
    return [(word.text, word.score) for word in found]


@pytest.mark.parametrize(
    ("text", "spans", "expected"),
    [
        ("I haven't", [(0, 1), (2, 5), (5, 7), (7, 8), (8, 9)], [("I", 1), ("haven't", 30)]),
        ("'good'!", [(0, 1), (1, 5), (5, 6), (6, 7)], [("'", 1), ("good", 2), ("'", 4), ("!", 8)]),
        ("don’t stop...", [(0, 3), (3, 5), (5, 10), (10, 13)], [("don’t", 3), ("stop", 4), ("...", 8)]),
        ("well-made", [(0, 4), (4, 5), (5, 9)], [("well", 1), ("-", 2), ("made", 4)]),
        ("e\u0301te\u0301!", [(0, 1), (1, 4), (4, 5), (5, 6)], [("e\u0301te\u0301", 7), ("!", 8)]),
        ("हिन्दी है", [(0, 2), (2, 6), (7, 9)], [("हिन्दी", 3), ("है", 4)]),
        ("좋아요 정말", [(0, 1), (1, 3), (4, 6)], [("좋아요", 3), ("정말", 4)]),
        ("本当に、すごい", [(0, 2), (2, 3), (3, 4), (4, 7)], [("本当", 1), ("に", 2), ("、", 4), ("すごい", 8)]),
        ("a 😀", [(0, 1), (2, 3), (2, 3), (2, 3)], [("a", 1), ("😀", 14)]),  # the bytes of one character
        (" so good", [(0, 3), (3, 8)], [("so", 1), ("good", 2)]),  # the space before a word, in byte-level BPE
        (" so", [(0, 1), (1, 3)], [("so", 3)]),  # what SentencePiece puts before a text
        ("so", [(0, 0), (0, 2)], [("so", 3)]),
        ("a \n", [(0, 1), (1, 3)], [("a", 1), ("", 2)]),
        ("", [None, None], []),
    ],
)
def test_tokens_are_folded_to_words(text, spans, expected):
    assert words(text, *spans) == expected


def test_the_texts_of_a_pair_are_folded_apart():
    found = fold(("so", "so"), [None, Span(0, 0, 2), None, Span(1, 0, 1), Span(1, 1, 2)], [9.0, 1.0, 9.0, 2.0, 4.0])
    assert found == [Word(Span(0, 0, 2), "so", 1.0), Word(Span(1, 0, 2), "so", 6.0)]


@pytest.fixture(scope="module")
def engine(tiny_folder):
    classifier = flaxsent.load(tiny_folder("bert"), backend="native")
    with Engine(classifier, function=occlusion(classifier), row_lengths=[40], tokens_per_step=320) as engine:
        yield engine


def test_the_words_of_awkward_texts_have_all_that_the_tokens_have(engine):
    texts = [*AWKWARD_TEXTS, ("so good", "not bad"), *AWKWARD_TEXTS]
    found = [*explain(iter(texts), engine)]
    attributions = engine(texts)
    assert [one.text for one in found] == texts
    for index, one in enumerate(found):
        label = int(attributions.label[index])
        probs_C = np.asarray(jax.nn.softmax(attributions.logits[index]))
        total = sum(word.score for word in one.words) + one.special_tokens
        assert one.label == engine.classifier.config.labels[label]
        assert one.score == pytest.approx(probs_C[label], abs=1e-6)
        assert total == pytest.approx(attributions.scores[index].sum(), abs=1e-4)
        assert total == pytest.approx(one.difference + one.gap, abs=1e-4)
        parts = one.text if isinstance(one.text, tuple) else (one.text,)
        assert ["".join(piece.text for piece in part) for part in pieces(one)] == [*parts]
        assert [*to_columns(one)] == [*COLUMNS]


def test_scores_that_are_not_finite_are_refused(tiny_folder):
    classifier = flaxsent.load(tiny_folder("bert"), backend="native")
    params = {
        **classifier.params,
        "classifier": jax.tree.map(lambda leaf: leaf * np.nan, classifier.params["classifier"]),
    }
    broken = dataclasses.replace(classifier, params=params)
    with (
        Engine(broken, function=occlusion(broken), row_lengths=[40], tokens_per_step=320) as engine,
        pytest.raises(flaxsent.FlaxsentError, match="text 0 has a score that is NaN or infinite"),
    ):
        [*explain(["so good"], engine)]


def test_a_tokenizer_of_python_does_not_tell_words(engine):
    tokenizer = dataclasses.replace(engine.classifier.tokenizer, backend=PythonTokenizer(None))
    with pytest.raises(flaxsent.FlaxsentError, match="does not tell where in a text a token stands"):
        tokenizer.spans([])


class Page(html.parser.HTMLParser):
    """The elements, their attributes and the text of a page."""

    def __init__(self, content):
        super().__init__()
        self.tags, self.attributes, self.texts = [], [], []
        self.feed(content)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.texts.append(data)


HOSTILE = (
    "</p></section><script>alert('x')</script><img src=x onerror=\"alert(1)\"> \x00\x1b[31m \u202eevil\u202c\ud800 "
    "&lt; TEXTS"
)


def test_texts_and_labels_are_only_text_on_a_page():
    word = Word(Span(0, 4, 40), HOSTILE[4:40], -1.5)
    content = page([Explanation(HOSTILE, HOSTILE, 0.5, [word], 0.0, -1.0, -0.5)] * 2)
    plain = page([Explanation("so", "so", 0.5, [Word(Span(0, 0, 2), "so", 1.0)], 0.0, -1.0, -0.5)] * 2)
    seen, expected = Page(content), Page(plain)
    assert {*seen.tags} == {*expected.tags}
    assert not {"script", "img"} & {*seen.tags}
    assert {name for name, _ in seen.attributes} == {name for name, _ in expected.attributes}
    assert "alert('x')" in "".join(seen.texts)
    assert not re.search("[\x00-\x08\x1b\u202e]", content)
    content.encode()
    assert "default-src 'none'" in content
    assert "prefers-color-scheme: dark" in content
    assert not re.search("https?:|url[(]|@import", plain)


def test_the_gap_is_told():
    told = summary(Explanation("so", "GOOD", 0.9, [Word(Span(0, 0, 2), "so", 1.25)], 0.5, 1.5, 0.25))
    assert told == (
        "the words' scores and the special tokens' +0.500 add up to +1.750; the logit is +1.500 from the baseline's: "
        "a gap of +0.2"
    )
