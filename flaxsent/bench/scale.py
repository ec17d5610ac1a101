"""What a large job takes, before it is begun: `flaxsent scale`.

The speed of a device is measured elsewhere, by `flaxsent bench` or a job. What a host does for its devices is measured
here, how evenly the work is shared is simulated with the rule that jobs use, and the rest is arithmetic.
"""

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np

from flaxsent.base import FlaxsentError
from flaxsent.bench.machine import resident_memory
from flaxsent.bench.texts import make_texts
from flaxsent.classifier import Classifier
from flaxsent.data import records, writers
from flaxsent.engine import Engine
from flaxsent.jobs import shards
from flaxsent.jobs.plan import CHUNK_BYTES
from flaxsent.packing import pack_steps

NUM_GROUPS = 10**6
PROCESSES = (1, 10, 100, 1000, 7000, 9999, 10_000)


class Scale(NamedTuple):
    """The question: how long so many documents take devices of this speed."""

    texts_per_second: float
    tokens_per_second: float
    """Of one device, measured."""
    documents: float
    hours: float
    devices_per_host: int
    cores_per_host: int
    matrix_use: float | None = None
    """Share of its matrix units' peak that this speed uses, from 0 to 1."""


class Host(NamedTuple):
    """What one process does for its devices, as measured on this machine."""

    bytes_per_text: float
    tokenized_per_second: float
    """Texts a second of one core; tokenizing takes as many cores as there are."""
    handled_per_second: float
    """Texts a second read, packed and written: Python code, which one core of a process runs at a time."""
    memory: int
    """Bytes that this process holds, with the model and the texts."""


class Answer(NamedTuple):
    """What the job takes."""

    limits: dict[str, float]
    """Texts a second of a host, by each of its parts alone."""
    texts_per_second: float
    """Of a host: the least of the limits."""
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


class Spread(NamedTuple):
    """The largest share of the work over the mean share, as the rule of `shards.assign` shares it."""

    num_processes: int
    equal: float
    """Where all row groups are equal."""
    lognormal: float
    """Where the logarithm of their sizes has a standard deviation of 1."""
    largest: float
    """The largest of these row groups over the mean share: no rule can do better."""


def measure(classifier: Classifier, *, tokens_per_text: float, num_texts: int = 4096) -> Host:
    """Times what a host does, in seconds of its cores: other processes do not count.

    Raises:
        FlaxsentError: made-up texts of so few tokens would not differ, or the checkpoint takes no texts of so many.
    """
    longest = classifier.tokenizer.max_length
    if not _SHORTEST <= tokens_per_text <= longest:
        raise FlaxsentError(
            f"tokens per second over texts per second is {tokens_per_text:.1f} tokens a text; expected {_SHORTEST} to "
            f"{longest}."
        )
    texts = make_texts(lambda _, number: np.full(number, tokens_per_text), num_texts)
    with Engine(classifier) as engine:
        shapes = engine.shapes
    config = classifier.config
    encodings = classifier.tokenizer.encode(texts)
    tokenizing = _seconds(lambda: classifier.tokenizer.encode(texts))
    packing = _seconds(lambda: pack_steps(encodings, shapes))
    with TemporaryDirectory() as folder:
        file = Path(folder) / "texts.jsonl"
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        copying = _seconds(lambda: _copy(file, config.labels[0]))
    return Host(
        bytes_per_text=sum(map(len, texts)) / num_texts,
        tokenized_per_second=num_texts / tokenizing,
        handled_per_second=num_texts / (packing + copying),
        memory=resident_memory(),
    )


def answer(asked: Scale, host: Host) -> Answer:
    """How many hosts and devices the job takes, and what limits each host."""
    measured = asked.texts_per_second * asked.devices_per_host
    limits = {
        "devices, as measured": measured,
        "tokenizing, all cores": host.tokenized_per_second * asked.cores_per_host,
        "reading, packing, writing, one core": host.handled_per_second,
    }
    if asked.matrix_use is not None:
        limits["matrix units, fully used"] = measured / asked.matrix_use
    rate = min(limits.values())
    num_hosts = math.ceil(asked.documents / rate / 3600 / asked.hours)
    return Answer(
        limits=limits,
        texts_per_second=rate,
        num_hosts=num_hosts,
        num_devices=num_hosts * asked.devices_per_host,
        hours=asked.documents / rate / 3600 / num_hosts,
        input_bytes=rate * host.bytes_per_text,
        network_bytes=4 * rate * host.bytes_per_text,
        memory=host.memory + _CHUNKS * CHUNK_BYTES,
    )


def simulate(num_groups: int = NUM_GROUPS, processes: Sequence[int] = PROCESSES) -> list[Spread]:
    """Shares row groups among processes, as a job does."""
    equal = [1 << 20] * num_groups
    lognormal = np.random.default_rng(0).lognormal(math.log(1 << 20), 1, num_groups).astype(np.int64).tolist()
    return [
        Spread(
            number,
            shards.spread(equal, number),
            shards.spread(lognormal, number),
            max(lognormal) * number / sum(lognormal),
        )
        for number in processes
    ]


def table(asked: Scale, host: Host, answered: Answer, spreads: Sequence[Spread]) -> str:
    """All the figures, line by line."""
    tokens = asked.tokens_per_second / asked.texts_per_second
    network = answered.network_bytes * 8 / 1e9
    limits = sorted((limit, name) for name, limit in answered.limits.items())
    groups = {
        "asked": [
            f"{asked.documents:,.0f} documents within {asked.hours:g} hours",
            f"hosts of {asked.devices_per_host} devices and {asked.cores_per_host} cores",
        ],
        "a device, as given": [f"{asked.texts_per_second:,.0f} texts/s, {asked.tokens_per_second:,.0f} tokens/s"],
        "a text": [f"{tokens:.1f} tokens, or {host.bytes_per_text:.0f} bytes of the texts made up here"],
        "a core here": [
            f"tokenizes {host.tokenized_per_second:,.0f} texts/s, {host.tokenized_per_second * tokens:,.0f} tokens/s",
            f"reads, packs and writes {host.handled_per_second:,.0f} texts/s",
        ],
        "a host at most": [f"{limit:,.0f} texts/s: {name}" for limit, name in limits],
        "the job": [
            f"{answered.num_hosts:,} hosts, {answered.num_devices:,} devices, {answered.hours:.1f} hours",
            f"{answered.num_devices * answered.hours:,.0f} device hours",
        ],
        "a host then": [
            f"reads {answered.input_bytes / 1e6:,.1f} MB/s of texts, {network:.2f} Gbit/s with parts and outputs",
            f"holds {answered.memory / 1e9:.1f} GB: {host.memory / 1e9:.1f} GB as this process, and {_CHUNKS} chunks",
        ],
    }
    lines = [
        f"{'' if index else name:<18} {figure}"
        for name, figures in groups.items()
        for index, figure in enumerate(figures)
    ]
    lines += ["", f"largest share / mean share of {NUM_GROUPS:,} row groups", ""]
    lines.append(f"{'processes':>9}  {'equal':>8}  {'log-normal':>10}  {'largest group':>13}")
    lines += [
        f"{spread.num_processes:>9,}  {spread.equal:>8.4f}  {spread.lognormal:>10.4f}  {spread.largest:>13.4f}"
        for spread in spreads
    ]
    return "\n".join(lines)


def to_json(asked: Scale, host: Host, answered: Answer, spreads: Sequence[Spread]) -> dict[str, object]:
    """All the figures as plain dicts and lists."""
    return {
        "asked": asked._asdict(),
        "host": host._asdict() | {"cores": os.cpu_count()},
        "answer": answered._asdict(),
        "spread": [spread._asdict() for spread in spreads],
    }


_SHORTEST = 8
_CHUNKS = 7
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
