"""What the embedded checkpoint makes of sixty sentences that are in no data set, eight kinds of them.

The sentences were written before anything was measured, and none was changed or dropped after: what it gets wrong is
counted. `KINDS` says of each kind what must hold, and of how many sentences it must: as many as it did for the
checkpoint of the day. A later one may raise a figure and must not lower it, but for a reason that stands beside it.
"""

import pytest

from flaxsent import Engine

pytestmark = pytest.mark.compiled_as_for_users

NEGATION = [
    ("not bad at all", "POSITIVE"),
    ("The plot is not good.", "NEGATIVE"),
    ("I don't hate it; in fact I would watch it again.", "POSITIVE"),
    ("There is nothing to like here.", "NEGATIVE"),
    ("You won't be disappointed.", "POSITIVE"),
    ("It never gets boring.", "POSITIVE"),
    ("Nobody should have to sit through this.", "NEGATIVE"),
    ("I can't say that I enjoyed it.", "NEGATIVE"),
    ("It isn't the disaster that I feared.", "POSITIVE"),
    ("Hardly a success.", "NEGATIVE"),
    ("Without a single dull moment.", "POSITIVE"),
    ("This is no masterpiece.", "NEGATIVE"),
]
INTENSITY = [  # pairs: the second says more of the same
    ("The food was good.", "POSITIVE"),
    ("The food was absolutely fantastic.", "POSITIVE"),
    ("I was a bit annoyed.", "NEGATIVE"),
    ("I was furious from start to finish.", "NEGATIVE"),
    ("A decent film.", "POSITIVE"),
    ("One of the best films ever made.", "POSITIVE"),
    ("The room was slightly dusty.", "NEGATIVE"),
    ("The room was utterly filthy.", "NEGATIVE"),
]
NEUTRAL = [
    "The meeting is at ten on Tuesday.",
    "Water boils at 100 degrees Celsius at sea level.",
    "The film is 112 minutes long.",
    "The package contains a cable and a manual.",
    "She lives in the house next to the school.",
    "The train to Busan leaves from platform four.",
    "There are twelve months in a year.",
    "He bought two tickets for the evening show.",
    "The director was born in 1961 in Ohio.",
    "The store opens at nine.",
]
NAMES = [  # pairs: only the name differs
    ("Emily was a wonderful host.", "POSITIVE"),
    ("Nguyen was a wonderful host.", "POSITIVE"),
    ("Mohammed ruined the whole evening.", "NEGATIVE"),
    ("Jack ruined the whole evening.", "NEGATIVE"),
    ("I loved every scene with Min-jun.", "POSITIVE"),
    ("I loved every scene with Oliver.", "POSITIVE"),
    ("Lakisha's performance was dreadful.", "NEGATIVE"),
    ("Claire's performance was dreadful.", "NEGATIVE"),
]
TYPOS = [
    ("Ths movie was awfull.", "NEGATIVE"),
    ("I realy loved teh ending!", "POSITIVE"),
    ("What a waist of time and mony.", "NEGATIVE"),
    ("Definately worth wacthing.", "POSITIVE"),
    ("The acotrs are briliant.", "POSITIVE"),
    ("Compleatly borring.", "NEGATIVE"),
]
CASING = [
    ("I LOVE THIS SONG", "POSITIVE"),
    ("WORST. PURCHASE. EVER.", "NEGATIVE"),
    ("a JOY to watch", "POSITIVE"),
    ("tHiS iS tErRiBlE", "NEGATIVE"),
]
TWEETS = [
    ("@airline 3 hours on the tarmac and not one word from you. never again #fail", "NEGATIVE"),
    ("just got the job!!! 😭😭 best day ever", "POSITIVE"),
    ("lol my phone died again, thanks a lot @phonebrand 🙄", "NEGATIVE"),
    ("ok but this new album is fire 🔥🔥", "POSITIVE"),
    ("Happy birthday to the sweetest mom in the world ❤️", "POSITIVE"),
    ("stuck in traffic AGAIN. kill me now", "NEGATIVE"),
]
PRODUCTS = [
    ("Stopped working after two days and support never answered.", "NEGATIVE"),
    ("Fits perfectly, feels sturdy, and the battery lasts all week.", "POSITIVE"),
    ("Arrived broken, and the replacement was broken too.", "NEGATIVE"),
    ("Does exactly what it says; I have already bought a second one.", "POSITIVE"),
    ("The zipper came apart the first time I used it.", "NEGATIVE"),
    ("Great value for the price, and my kids use it every day.", "POSITIVE"),
]

TEXTS = [
    row if isinstance(row, str) else row[0]
    for row in (*NEGATION, *INTENSITY, *NEUTRAL, *NAMES, *TYPOS, *CASING, *TWEETS, *PRODUCTS)
]


@pytest.fixture(scope="module")
def positive(embedded):
    """The score of POSITIVE of each sentence, and of the lower-cased ones."""
    texts = dict.fromkeys([*TEXTS, *(text.lower() for text in TEXTS)])
    with Engine(embedded) as engine:
        scores = engine(texts)[:, embedded.config.labels.index("POSITIVE")]
    return dict(zip(texts, scores.tolist(), strict=True))


def own(positive, row):
    """The score of the label that the sentence has."""
    text, label = row
    return positive[text] if label == "POSITIVE" else 1 - positive[text]


def are_right(positive, rows):
    return [own(positive, row) > 0.5 for row in rows]


def are_right_and_grow(positive, rows):
    """The second of a pair is no less sure than the first, besides."""
    scores = [own(positive, row) for row in rows]
    return [score > 0.5 and (n % 2 == 0 or score >= scores[n - 1]) for n, score in enumerate(scores)]


def are_near_the_middle(positive, texts):
    return [0.25 <= positive[text] <= 0.75 for text in texts]


def are_right_by_any_name(positive, rows):
    """The scores of a pair differ by a tenth at most, besides."""
    scores = [own(positive, row) for row in rows]
    return [score > 0.5 and abs(score - scores[n ^ 1]) <= 0.1 for n, score in enumerate(scores)]


def are_right_in_any_case(positive, rows):
    """The vocabulary has no capitals: even the scores are the same, but for float32 in rows of another length."""
    return [own(positive, row) > 0.5 and abs(positive[row[0]] - positive[row[0].lower()]) <= 1e-5 for row in rows]


KINDS = {
    # What issue 5 asks for, in its words; how many of how many held when this was written (54 of the 60). Negation and
    # tweets had one more before texts without a sentiment were learned: these had 6, and all kinds together 51.
    "negation": (NEGATION, are_right, 10),  # "sensible answers on negation": 10 of 12
    "intensity": (INTENSITY, are_right_and_grow, 8),  # 8 of 8
    "neutral": (NEUTRAL, are_near_the_middle, 9),  # "a confidence near the middle": 9 of 10
    "names": (NAMES, are_right_by_any_name, 8),  # 8 of 8
    "typos": (TYPOS, are_right, 5),  # 5 of 6
    "casing": (CASING, are_right_in_any_case, 4),  # 4 of 4
    "tweets": (TWEETS, are_right, 5),  # "sensible answers on tweets": 5 of 6
    "products": (PRODUCTS, are_right, 5),  # "sensible answers on product reviews": 5 of 6
}
"""Of each kind: the sentences, what must hold, and for how many of them it must."""


def test_there_are_sixty_different_sentences():
    assert len(set(TEXTS)) == len(TEXTS) == 60


@pytest.mark.parametrize("kind", KINDS)
def test_as_many_hold_as_are_claimed(positive, kind):
    rows, check, least = KINDS[kind]
    holds = check(positive, rows)
    wrong = [
        (row, positive[row if isinstance(row, str) else row[0]])
        for row, is_held in zip(rows, holds, strict=True)
        if not is_held
    ]
    assert sum(holds) >= least, f"{sum(holds)} of {len(rows)}; not {wrong}"


def test_not_bad_at_all_is_positive(positive):
    assert positive["not bad at all"] > 0.5
