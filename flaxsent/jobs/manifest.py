"""What makes a job the same job: the facts that its outputs depend on, and the files that hold them.

While a job is under way, they are in the manifest in the folder of its parts. It is created only where there is none,
so of two different jobs that start on one output at once, one begins and the other is refused. When the job is done,
they are in a small hidden file beside the outputs, by which `--resume` recognises them.

The number and the kind of devices are no such facts: a job may go on elsewhere. Its scores there agree with those that
it would have had here up to float32 rounding; on the same machine they are the same to the byte.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from flaxsent import files
from flaxsent.base import FlaxsentError
from flaxsent.classifier import Classifier
from flaxsent.data import records
from flaxsent.data.records import STDIN, Record
from flaxsent.jobs.plan import MANIFEST, Job, begun_error, exists_error

Facts = dict[str, Any]
"""As JSON gives them back."""

_WHOLE = 1 << 22
"""Bytes up to which a file is digested whole; of a longer one, as many, in blocks."""
_NUM_BLOCKS = 16


class Manifest(NamedTuple):
    """Of a job under way."""

    run: str
    """Drawn when the job begins. The names of its parts start with it, so that those of two jobs never mix."""
    facts: Facts
    chunk_characters: int
    """A chunk ends where its texts have so many: a window of the engine that began the job."""
    replaces: bool
    """Whether the job may replace outputs that were there before."""


def gather_facts(job: Job, classifier: Classifier) -> Facts:
    """All that the outputs depend on."""
    options = job.options
    versions = {name: importlib.metadata.version(name) for name in ("flaxsent", "jax", "tokenizers")}
    found = {
        "inputs": [[*_input(file.name)] for file in job.files],
        "outputs": [file.output.name for file in job.files],
        "text columns": options.text_columns,
        "top k": options.top_k,
        "abstain below": options.abstain_below,
        "reading of files": dataclasses.asdict(options.reading),
        "all scores": options.all_scores,
        "uncertainty": options.uncertainty,
        "embeddings": options.embeddings,
        "zero shot": options.zero_shot,
        "prefix": options.prefix,
        "bad rows": options.bad_rows and str(Path(options.bad_rows).resolve()),
        "model": fingerprint(classifier),
        "windows of long texts": classifier.windows
        and {"length": classifier.tokenizer.max_length, **classifier.windows._asdict()},
        "special tokens in text": classifier.tokenizer.special_tokens_in_text,
        **{f"version of {name}": version for name, version in versions.items()},
    }
    return json.loads(json.dumps(found))


def _input(name: str) -> tuple[str, str | None]:
    """Path and digest of a file: of all of it, or of the time of its last change and blocks from its whole length."""
    if name == STDIN:
        return name, None  # compared as it is read
    with open(name, "rb") as stream:
        status = os.fstat(stream.fileno())
        digest = hashlib.blake2b(b"%d" % status.st_size, digest_size=16)
        if status.st_size <= _WHOLE:
            digest.update(stream.read())
        else:
            digest.update(b"%d" % status.st_mtime_ns)
            block = _WHOLE // _NUM_BLOCKS
            for number in range(_NUM_BLOCKS):
                stream.seek((status.st_size - block) * number // (_NUM_BLOCKS - 1))
                digest.update(stream.read(block))
    return str(Path(name).resolve()), digest.hexdigest()


def fingerprint(classifier: Classifier) -> str:
    """A digest of weights, config and tokenizer: the same wherever the checkpoint lies and whatever computes it."""
    digest = hashlib.blake2b(repr(classifier.config).encode(), digest_size=16)
    for content in classifier.tokenizer.files.values():
        digest.update(content)
    for leaf in jax.tree.leaves(classifier.params):
        array = np.asarray(leaf)
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def digest_rows(rows: Iterable[Record], digest: Any = None) -> Any:
    """A digest of rows of standard input, or one that goes on with them."""
    digest = hashlib.blake2b(digest_size=16) if digest is None else digest
    for row in rows:
        digest.update(row.raw.encode(errors="surrogateescape") + b"\n")
    return digest


def read(folder: Path) -> Manifest | None:
    """The manifest of the job under way, if there is one.

    Raises:
        FlaxsentError: it is damaged.
    """
    file = folder / MANIFEST
    try:
        return Manifest(**json.loads(file.read_bytes()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, RecursionError) as err:
        raise FlaxsentError(f"{file} is damaged; delete {folder} to start over.") from err


def begin(job: Job, facts: Facts, *, chunk_characters: int) -> tuple[Manifest, bool] | None:
    """Begins a job, or joins it if it has begun; tells which, and None if its outputs are finished already.

    Raises:
        FileExistsError: it has begun, and is not to be joined; or an output exists, and is not to be replaced.
        FlaxsentError: another job has begun or finished the outputs.
        OSError: the folder of the parts cannot be written.
    """
    mine = Manifest(secrets.token_hex(4), facts, chunk_characters, job.options.overwrite)
    begun = None
    try:
        begun = _join_or_begin(job, mine)
    finally:
        if begun is None:
            end(job, mine.run)
            with contextlib.suppress(OSError):
                job.folder.rmdir()
    return begun


def _join_or_begin(job: Job, mine: Manifest) -> tuple[Manifest, bool] | None:
    facts, is_refused = mine.facts, False
    while True:
        if (found := read(job.folder)) is not None:
            found = _join(job, found, facts)
            _forget_others(job, facts)
            return found, False
        known = _finished(job)
        try:
            if _is_finished(job, known, facts):
                return None
        except FileExistsError:
            if is_refused:
                raise
            is_refused = True  # unless other processes have begun this job since there was no manifest
            continue
        job.folder.mkdir(parents=True, exist_ok=True)
        try:
            files.create(job.folder / MANIFEST, json.dumps(mine._asdict(), indent=1).encode())
        except (FileExistsError, FileNotFoundError):  # others begin a job here, or remove the folder of one
            continue
        if all(entry in known for entry in _finished(job)):
            _forget_others(job, facts)
            return mine, True
        end(job, mine.run)  # another job has come and gone, and has made the outputs


def _join(job: Job, found: Manifest, facts: Facts) -> Manifest:
    if not job.options.joins:
        raise begun_error(job.folder)
    then = found.facts
    if then.get("bad rows") is None:  # they may begin to be set aside
        then = then | {"bad rows": facts["bad rows"]}
    if difference := _difference(then, facts):
        raise FlaxsentError(
            f"{job.folder} holds the work of another job: {difference}. Pass what that job was given, or delete the "
            "folder to start over."
        )
    if then != found.facts:
        found = found._replace(facts=then)
        files.write(job.folder / MANIFEST, json.dumps(found._asdict(), indent=1).encode())
    return found


def _difference(then: Facts, now: Facts) -> str | None:
    """How the facts of another job differ, in words."""
    before, after = dict(then.get("inputs", ())), dict(now["inputs"])
    if missing := sorted(before.keys() ^ after.keys()):
        return f"{missing[0]} was {'one' if missing[0] in before else 'none'} of its inputs"
    if changed := [name for name in after if before[name] != after[name]]:
        return f"its input {changed[0]} has changed since"
    if [*before] != [*after]:
        return "its inputs were given in another order"
    # Other labels make another model, too, and say more.
    if then.get("model") != now["model"] and then.get("zero shot") == now["zero shot"]:
        return "it used another model"
    for name, value in now.items():
        if then.get(name) != value:
            return f"its {name}: {json.dumps(then.get(name))} then, {json.dumps(value)} now"
    return None


def is_current(job: Job, run: str) -> bool:
    """Whether the job under way is this one."""
    found = read(job.folder)
    return found is not None and found.run == run


def _forget_others(job: Job, facts: Facts) -> None:
    """Takes other jobs whose outputs this one is about to replace off the record."""
    entries = _finished(job)
    valid = [entry for entry in entries if _is_other(entry, job) or entry["facts"] == facts]
    if valid != entries:  # else another process may finish this job now, and must not lose its record
        _write_record(job, valid)


def _write_record(job: Job, entries: list[dict[str, Any]]) -> None:
    with files.appearing(job.record, job.folder) as stream:
        stream.write(json.dumps(entries, indent=1).encode())


def end(job: Job, run: str) -> None:
    """Removes the manifest, unless it is another job's."""
    if is_current(job, run):
        (job.folder / MANIFEST).unlink(missing_ok=True)


def finish(job: Job, manifest: Manifest, stream: str | None) -> None:
    """Keeps the facts of a finished job beside its outputs, with the digest of standard input if that was read."""
    mine = {"run": manifest.run, "facts": manifest.facts, "stream": stream}
    entries = [*(entry for entry in _finished(job) if _is_other(entry, job)), mine]
    _write_record(job, entries)


def finished_run(job: Job) -> str | None:
    """The run of the job that made the outputs."""
    return next((entry["run"] for entry in _finished(job) if not _is_other(entry, job)), None)


def _finished(job: Job) -> list[dict[str, Any]]:
    """The jobs whose outputs are here: several, in a folder. None where the record cannot be read."""
    try:
        entries = json.loads(job.record.read_bytes())
        return [entry for entry in entries if {"run", "facts", "stream"} <= entry.keys()]
    except (FileNotFoundError, ValueError, TypeError, AttributeError, RecursionError):
        return []


def _is_other(entry: dict[str, Any], job: Job) -> bool:
    """Whether a finished job has no output in common with this one."""
    return {file.output.name for file in job.files}.isdisjoint(entry["facts"]["outputs"])


def _is_finished(job: Job, known: list[dict[str, Any]], facts: Facts) -> bool:
    """Whether one of the known jobs has the same facts, and has made the outputs.

    Raises:
        FileExistsError: there are outputs, and nothing says how they were made.
        FlaxsentError: another job has made them.
    """
    there = [file for file in job.made if file.exists()]
    if not there or job.options.overwrite:
        return False
    entries = [entry for entry in known if not _is_other(entry, job)]
    if not (job.options.joins and len(there) == len(job.made) and entries):
        raise exists_error(there[0])
    difference = _difference(entries[0]["facts"], facts)
    if difference is None and job.files[0].name == STDIN:
        with records.read(STDIN, text_columns=job.options.text_columns, reading=job.options.reading) as source:
            is_same = digest_rows(source.records).hexdigest() == entries[0]["stream"]
        difference = None if is_same else "its standard input was another"
    if difference:
        raise FlaxsentError(
            f"{there[0]} was made by another job: {difference}. Pass --overwrite to replace it, or another output."
        )
    return True
