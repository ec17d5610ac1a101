"""What a large job takes, before it is begun: `flaxsent scale`.

The speed of a device is measured elsewhere, by `flaxsent bench` or a job. What a host does for its devices is measured
here and now, the sharing of work is simulated by the rule itself, and the rest is arithmetic.
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
from flaxsent.bench.footprint import peak_memory
from flaxsent.bench.speed import make_texts
from flaxsent.classifier import Classifier
from flaxsent.data import records, writers
from flaxsent.engine import Engine
from flaxsent.jobs import shards as hosts
from flaxsent.jobs.run import CHUNK_BYTES
from flaxsent.packing import pack_steps

NUM_GROUPS = 10**6
PROCESSES = (1, 10, 100, 1000, 7000, 9999, 10_000)


class Scale(NamedTuple):
    """What is asked; `Host` and `Answer` say the rest."""

    texts_per_second: float
    tokens_per_second: float
    """Of one device, measured."""
    documents: float
    hours: float
    devices_per_host: int
    cores_per_host: int
    matrix_use: float | None = None
    """How much of what its matrix units can do this speed is, from 0 to 1."""


class Host(NamedTuple):
    """What one process does for its devices, as measured on this machine."""

    bytes_per_text: float
    tokenized_per_second: float
    """Texts a second of one core; tokenizing takes as many cores as there are."""
    handled_per_second: float
    """Texts a second read, packed and written: Python, of which a process runs on one core only."""
    memory: int
    """Bytes that this process has taken at most, with the model and the texts."""


class Answer(NamedTuple):
    """What the job takes."""

    limits: dict[str, float]
    """Texts a second of a host, if nothing else were in the way."""
    texts_per_second: float
    """Of a host: the least of the limits."""
    num_hosts: int
    num_devices: int
    hours: float
    """With so many."""
    input_bytes: float
    """A second, of a host."""
    network_bytes: float
    """A second, of a host: texts come in, go out in parts, and parts come in and go out joined."""
    memory: int
    """Bytes of a host, besides what its devices hold."""


class Spread(NamedTuple):
    """The largest share over the mean, in a simulated run of the sharding rule."""

    num_processes: int
    equal: float
    """Where all row groups are equal."""
    lognormal: float
    """Where the logarithm of their sizes has a standard deviation of 1."""
    largest: float
    """Of these, the largest row group alone over the mean share: no rule gets below."""


def measure(classifier: Classifier, *, tokens_per_text: float, num_texts: int = 4096) -> Host:
    """Times what a host does, by the seconds that its cores take: another process makes it no slower.

    Raises:
        FlaxsentError: texts of so many tokens are too short to be different, or longer than the checkpoint takes.
    """
    longest = classifier.tokenizer.max_length
    if not _SHORTEST <= tokens_per_text <= longest:
        raise FlaxsentError(
            f"{tokens_per_text:.1f} tokens a text, by tokens and texts per second; expected {_SHORTEST} to {longest}."
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
        memory=peak_memory(),
    )


def answer(asked: Scale, host: Host) -> Answer:
    """The arithmetic."""
    measured = asked.texts_per_second * asked.devices_per_host
    limits = {
        "devices, as measured": measured,
        "tokenizing, all cores": host.tokenized_per_second * asked.cores_per_host,
        "reading, packing, writing, one core": host.handled_per_second,
    }
    if asked.matrix_use is not None:
        limits["matrix units, all used"] = measured / asked.matrix_use
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
    """Shares row groups among processes, as a job would."""
    equal = [1 << 20] * num_groups
    lognormal = np.random.default_rng(0).lognormal(math.log(1 << 20), 1, num_groups).astype(np.int64).tolist()
    return [
        Spread(
            number,
            hosts.spread(equal, number),
            hosts.spread(lognormal, number),
            max(lognormal) * number / sum(lognormal),
        )
        for number in processes
    ]


def table(asked: Scale, host: Host, answered: Answer, spreads: Sequence[Spread]) -> str:
    """All of it for people."""
    tokens = asked.tokens_per_second / asked.texts_per_second
    network = answered.network_bytes * 8 / 1e9
    limits = sorted((limit, name) for name, limit in answered.limits.items())
    groups = {
        "asked": [
            f"{asked.documents:,.0f} documents within {asked.hours:g} hours",
            f"hosts of {asked.devices_per_host} devices and {asked.cores_per_host} cores",
        ],
        "a device, as told": [f"{asked.texts_per_second:,.0f} texts/s, {asked.tokens_per_second:,.0f} tokens/s"],
        "a text": [f"{tokens:.1f} tokens by that; as long, made up here: {host.bytes_per_text:.0f} bytes"],
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
            f"{answered.input_bytes / 1e6:,.1f} MB/s of texts, {network:.2f} Gbit/s with parts and outputs",
            f"{answered.memory / 1e9:.1f} GB of memory: {host.memory / 1e9:.1f} as here, and {_CHUNKS} chunks",
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
    """The same figures for programs."""
    return {
        "asked": asked._asdict(),
        "host": host._asdict() | {"cores": os.cpu_count()},
        "answer": answered._asdict(),
        "spread": [spread._asdict() for spread in spreads],
    }


_SHORTEST = 8
_CHUNKS = 7
"""That are in memory at most: one is read, one waits for its place, two are ready, three are on the devices or come."""


def _copy(file: Path, label: str) -> None:
    """What a job does besides tokenizing, packing and computing."""
    with records.read(file, text_columns=("text",)) as source:
        rows = [*source.records]
        writer = writers.open_writer("jsonl", source.layout, ("label", "score"), row_column="row")
    scores = np.linspace(0, 1, len(rows), dtype=np.float32)
    added = {"label": [label] * len(rows), "score": scores, "row": [row.number for row in rows]}
    file.with_name("part").write_bytes(writer.encode(rows, added))


def _seconds(call: Callable[[], object]) -> float:
    """Of all cores together; the least of three."""
    seconds = []
    for _ in range(3):
        begin = time.process_time()
        call()
        seconds.append(time.process_time() - begin)
    return max(min(seconds), 1e-6)
