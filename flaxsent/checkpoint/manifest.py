"""The manifest of an exported folder: what is in it, for which JAX and which devices, and the hashes of its files.

`exported.py` writes and reads the folder. What the manifest says is hostile until it is checked here.
"""

import datetime
import json
import logging
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.export

from flaxsent.base import FlaxsentError
from flaxsent.classifier import Classifier
from flaxsent.files import sha256
from flaxsent.models.config import ModelConfig, read_config, to_json

logger = logging.getLogger(__name__)

FORMAT = 2
"""Of the manifest, and of what it says of the files."""
MANIFEST, PARAMS, TOKENIZER = "manifest.json", "params.safetensors", "tokenizer.json"
FORWARD, FORWARD_PACKED = "forward.jax_export", "forward_packed.jax_export"
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
_NEEDED = (FORWARD, PARAMS, TOKENIZER)
_FILES = (*_NEEDED, FORWARD_PACKED, "tokenizer_config.json", "special_tokens_map.json")

READABLE_DAYS = 180
"""How long JAX promises to read what it has exported: https://docs.jax.dev/en/latest/export/export.html, "Compatibility
guarantees". Later versions may read it or may not."""

_MOST_BYTES = 1 << 24
"""More than the manifest of any classifier takes, with thousands of labels."""


ANEW = "copy the folder again, or export the model anew"


class _File(NamedTuple):
    num_bytes: int
    sha256: str


class Manifest(NamedTuple):
    config: ModelConfig
    platforms: tuple[str, ...]
    files: Mapping[str, _File]
    jax: str
    """The version of the jax that wrote the functions."""
    promise: str
    """Until when JAX promises to read them, as a part of a sentence."""


def read_manifest(folder: Path) -> Manifest:
    file = folder / MANIFEST
    raw = _parse(file)
    if (number := _get(file, raw, "format", int)) != FORMAT:
        raise FlaxsentError(f"{file} has format {number}; this flaxsent reads {FORMAT}: export the model anew.")
    jax_version = short(_get(file, raw, "versions", dict).get("jax"))
    promise = _promise(file, _get(file, raw, "readable_until", str))
    _check_convention(file, _get(file, raw, "calling_convention", int), jax_version, promise)
    platforms = _get(file, raw, "platforms", list)
    if not platforms or not all(platform in PLATFORMS for platform in platforms):
        raise FlaxsentError(
            f"{file} has platforms={short(platforms)}; expected some of {', '.join(PLATFORMS)}: {ANEW}."
        )
    return Manifest(
        config=_config(file, raw),
        platforms=tuple(platforms),
        files=_files(file, _get(file, raw, "files", dict)),
        jax=jax_version,
        promise=promise,
    )


def _parse(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise FileNotFoundError(f"{file.parent} has no {MANIFEST}; expected a folder that flaxsent export wrote.")
    if (size := file.stat().st_size) > _MOST_BYTES:
        raise FlaxsentError(f"{file} has {size:,} bytes; expected at most {_MOST_BYTES:,}: {ANEW}.")
    try:
        raw = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as err:
        raise FlaxsentError(f"{file} is not JSON: {err}; {ANEW}.") from err
    if not isinstance(raw, dict):
        raise FlaxsentError(f"{file} holds a {type(raw).__name__}; expected an object: {ANEW}.")
    return raw


def _get(file: Path, raw: Mapping[str, Any], key: str, kind: type) -> Any:
    if type(value := raw.get(key)) is not kind:
        raise FlaxsentError(f"{file} has {key}={short(value)}; expected {_KINDS[kind]}: {ANEW}.")
    return value


_KINDS = {int: "an integer", list: "a list", dict: "an object", str: "text"}


def _promise(file: Path, until: str) -> str:
    try:
        last = datetime.date.fromisoformat(until)
    except ValueError as err:
        raise FlaxsentError(f"{file} has readable_until={short(until)}; expected a date: {ANEW}.") from err
    if last >= _today():
        return f"JAX promises to read it until {last}"
    logger.warning("%s has expired: JAX promised to read it until %s; export the model anew", file.parent, last)
    return f"it has expired, as JAX promised to read it until {last} only"


def _check_convention(file: Path, convention: int, jax_version: str, promise: str) -> None:
    least = jax.export.minimum_supported_calling_convention_version
    most = jax.export.maximum_supported_calling_convention_version
    if not least <= convention <= most:
        raise FlaxsentError(
            f"{file} has calling convention {convention}, of jax {jax_version}; jax {jax.__version__} reads {least} to "
            f"{most} ({promise}): install the other jax, or export the model anew."
        )


def _config(file: Path, raw: Mapping[str, Any]) -> ModelConfig:
    try:
        config = read_config(json.dumps(_get(file, raw, "config", dict)))
    except ValueError as err:
        raise FlaxsentError(f"{file}: {err}") from err
    for key, said in (("labels", [*config.labels]), ("problem_type", config.problem_type)):
        if (value := raw.get(key)) != said:
            raise FlaxsentError(f"{file} has {key}={short(value)}; its config says {short(said)}: {ANEW}.")
    return config


def _files(manifest: Path, raw: Mapping[str, Any]) -> dict[str, _File]:
    if odd := [name for name in (*raw, *_NEEDED) if name not in _FILES or name not in raw]:
        does = "names" if odd[0] in raw else "does not name"
        raise FlaxsentError(f"{manifest} {does} the file {short(odd[0])}; expected {', '.join(_FILES)}: {ANEW}.")
    files = {}
    for name, said in raw.items():
        num_bytes, digest = (said.get("bytes"), said.get("sha256")) if isinstance(said, dict) else (None, None)
        if type(num_bytes) is not int or not isinstance(digest, str):
            raise FlaxsentError(f"{manifest} says {short(said)} of {name}; expected bytes and sha256: {ANEW}.")
        files[name] = _File(num_bytes, digest)
    return files


def short(value: Any) -> str:
    """As Python writes it, as far as a line has room: what a hostile file holds may be long."""
    return text if len(text := repr(value)) <= 60 else f"{text[:60]}…"


def check_files(folder: Path, manifest: Manifest) -> None:
    for name, said in manifest.files.items():
        file = folder / name
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing, which {MANIFEST} names; {ANEW}.")
        if (size := file.stat().st_size) != said.num_bytes:
            raise FlaxsentError(f"{file} has {size:,} bytes; {MANIFEST} says {said.num_bytes:,}: {ANEW}.")
        if (digest := sha256(file)) != said.sha256:
            raise FlaxsentError(f"{file} has the SHA-256 {digest}; {MANIFEST} says {short(said.sha256)}: {ANEW}.")


def check_platform(folder: Path, manifest: Manifest) -> None:
    here = jax.export.default_export_platform()
    if here not in manifest.platforms:
        raise FlaxsentError(
            f"{folder} was exported for {', '.join(manifest.platforms)}, and JAX computes on {here} here; export it "
            f"with --platforms {','.join((*manifest.platforms, here))}, or choose with JAX_PLATFORMS."
        )


def make_manifest(classifier: Classifier, platforms: Sequence[str], convention: int, folder: Path) -> str:
    config, dtype = classifier.config, jax.tree.leaves(classifier.params)[0].dtype.name
    files = sorted(file for file in folder.iterdir())
    manifest = {
        "format": FORMAT,
        "labels": config.labels,
        "problem_type": config.problem_type,
        "platforms": list(platforms),
        "calling_convention": convention,
        "readable_until": (_today() + datetime.timedelta(READABLE_DAYS)).isoformat(),
        "versions": {package: version(package) for package in ("flaxsent", "jax", "jaxlib", "numpy", "tokenizers")},
        "files": {file.name: {"bytes": file.stat().st_size, "sha256": sha256(file)} for file in files},
        "config": json.loads(to_json(config, dtype=dtype)),
    }
    return json.dumps(manifest, indent=1) + "\n"


def _today() -> datetime.date:
    return datetime.datetime.now(datetime.UTC).date()
