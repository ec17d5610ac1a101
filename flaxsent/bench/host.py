"""What a host does for its devices, as measured here, and how many hosts a corpus takes.

How evenly the work is shared is simulated with the rule that jobs use; the rest is arithmetic.
"""

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np

from flaxsent.base import FlaxsentError
from flaxsent.bench.machine import resident_memory
from flaxsent.bench.texts import make_texts
from flaxsent.classifier import Classifier
from flaxsent.data import records, writers
from flaxsent.jobs import shards
from flaxsent.jobs.plan import CHUNK_BYTES
from flaxsent.packing import StepShape, pack_steps


class Host(NamedTuple):
    """What one process does for its devices, as measured on this machine."""

    tokens_per_text: float
    bytes_per_text: float
    tokenized_per_second: float
    """Texts a second of one core; tokenizing takes as many cores as there are."""
    handled_per_second: float
    """Texts a second read, packed and written: Python code, which one core of a process runs at a time."""
    memory: int
    """Bytes that this process holds, with the model and the texts."""


class Corpus(NamedTuple):
    """The question: what so many documents take."""

    documents: float
    hours: float
    cores_per_host: int
    num_groups: int = 10**6
    """Row groups of its files, which are shared among the hosts."""


class Job(NamedTuple):
    """What the corpus takes."""

    texts_per_second: float
    """Of a host: the least of its limits."""
    num_hosts: int
    num_devices: int
    hours: float
    """That so many hosts take."""
    input_bytes: float
    """A second, of a host."""
    network_bytes: float
    """A second, of a host: texts are read and written as parts, then parts are read and written as outputs."""
    memory: int
    """Bytes of a host, besides what its devices hold."""
    spread: "Spread"


class Spread(NamedTuple):
    """The largest share of the work over the mean share, as the rule of `shards.assign` shares row groups."""

    equal: float
    """Where all row groups are equal."""
    lognormal: float
    """Where the logarithm of their sizes has a standard deviation of 1."""
    largest: float
    """The largest of these row groups over the mean share: no rule can do better."""


def measure(
    classifier: Classifier, shapes: tuple[StepShape, ...], *, tokens_per_text: float, num_texts: int = 4096
) -> Host:
    """Times what a host does, in seconds of its cores: other processes do not count. It packs steps of `shapes`.

    Raises:
        FlaxsentError: made-up texts of so few tokens would not differ, or the checkpoint or the rows take no texts of
            so many.
    """
    longest = min(classifier.tokenizer.max_length, max(shape.row_length for shape in shapes))
    if not SHORTEST <= tokens_per_text <= longest:
        raise FlaxsentError(f"tokens_per_text={tokens_per_text:g}: expected {SHORTEST} to {longest}.")
    texts = make_texts(lambda _, number: np.full(number, tokens_per_text), num_texts)
    encodings = classifier.tokenizer.encode(texts, max_length=longest)
    tokenizing = _seconds(lambda: classifier.tokenizer.encode(texts))
    packing = _seconds(lambda: pack_steps(encodings, shapes))
    with TemporaryDirectory() as folder:
        file = Path(folder) / "texts.jsonl"
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        copying = _seconds(lambda: _copy(file, classifier.config.labels[0]))
    return Host(
        tokens_per_text=tokens_per_text,
        bytes_per_text=sum(map(len, texts)) / num_texts,
        tokenized_per_second=num_texts / tokenizing,
        handled_per_second=num_texts / (packing + copying),
        memory=resident_memory(),
    )


def limits(host: Host, cores: int) -> dict[str, float]:
    """Texts a second of a host with so many cores, by each of its parts alone."""
    return {
        "tokenizing, all cores": host.tokenized_per_second * cores,
        "reading, packing, writing, one core": host.handled_per_second,
    }


def job(corpus: Corpus, host: Host, limits: Mapping[str, float], *, devices_per_host: int) -> Job:
    """How many hosts and devices the corpus takes, where these limits of theirs are told in texts a second."""
    rate = min(limits.values())
    num_hosts = math.ceil(corpus.documents / rate / 3600 / corpus.hours)
    return Job(
        texts_per_second=rate,
        num_hosts=num_hosts,
        num_devices=num_hosts * devices_per_host,
        hours=corpus.documents / rate / 3600 / num_hosts,
        input_bytes=rate * host.bytes_per_text,
        network_bytes=4 * rate * host.bytes_per_text,
        memory=host.memory + CHUNKS * CHUNK_BYTES,
        spread=simulate(num_hosts, corpus.num_groups),
    )


def simulate(num_processes: int, num_groups: int) -> Spread:
    """Shares row groups among processes, as a job does."""
    equal = [1 << 20] * num_groups
    lognormal = np.random.default_rng(0).lognormal(math.log(1 << 20), 1, num_groups).astype(np.int64).tolist()
    return Spread(
        shards.spread(equal, num_processes),
        shards.spread(lognormal, num_processes),
        max(lognormal) * num_processes / sum(lognormal),
    )


SHORTEST = 8
"""Tokens of a text: made-up ones of fewer would not differ."""
CHUNKS = 7
"""In memory at most: one is being read, one waits for the queue, two are in it, three are on or near the devices."""


def _copy(file: Path, label: str) -> None:
    """What a job does besides tokenizing, packing and computing: reads records, and writes them with labels."""
    with records.read(file, text_columns=("text",)) as source:
        found = [*source.records]
        writer = writers.open_writer("jsonl", source.layout, ("label", "score"), row_column="row")
    scores = np.linspace(0, 1, len(found), dtype=np.float32)
    added = {"label": [label] * len(found), "score": scores, "row": [record.number for record in found]}
    file.with_name("part").write_bytes(writer.encode(found, added))


def _seconds(call: Callable[[], object]) -> float:
    """Of all cores together; the fewest of three calls."""
    seconds = []
    for _ in range(3):
        begin = time.process_time()
        call()
        seconds.append(time.process_time() - begin)
    return max(min(seconds), 1e-6)
