"""An exported folder → `Exported`: a classifier carried away, which runs without the encoders that it was made with.

`exporter.py` writes the folder. This room reads it, and needs jax, numpy, tokenizers and safetensors only; the function
is StableHLO, which the jax of half a year later still compiles. Files are hostile until checked: each has the size and
the SHA-256 that the manifest says, and a function that calls anything outside itself is refused.
"""

import dataclasses
import functools
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jaxtyping import Array, Float

from flaxsent.config import ModelConfig, read_config
from flaxsent.packing import SEGMENT_TOKENS, check_padded, pad
from flaxsent.tokenization import Tokenizer, read_tokenizer
from flaxsent.types import Params, Texts, Tokens

FORMAT = 1
"""Of the manifest, and of what it says of the files."""
MANIFEST, PARAMS, TOKENIZER = "manifest.json", "params.safetensors", "tokenizer.json"
PREDICT, PREDICT_PACKED = "predict.jax_export", "predict_packed.jax_export"
_NEEDED = (PREDICT, PARAMS, TOKENIZER)
_FILES = (*_NEEDED, PREDICT_PACKED, "tokenizer_config.json", "special_tokens_map.json")
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")

_MOST_BYTES = 1 << 24
"""More than the manifest of any classifier takes, with thousands of labels."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Exported:
    """What `load_exported` gives: as a `Classifier`, with probabilities in one step instead of logits first.

    `predict` composes under `jit` and `grad`, not under `vmap`: its B is the batch.
    """

    tokenize: Callable[..., Tokens]
    """`tokenize(texts, length=None)`: NumPy arrays `[B, L]`, padded to the longest text or to `length`."""
    pad: Callable[..., Tokens]
    """`pad(encodings, length=None)`: what `tokenize` does after `tokenizer.encode`."""
    predict: Callable[[Params, Tokens], Float[Array, "B C"]]
    """`predict(params, tokens)`: scores f32 `[B, C]`, for any B and any L up to `config.max_length`."""
    predict_packed: Callable[[Params, Tokens, int], Float[Array, "R S C"]]
    """`predict_packed(params, tokens, num_segments)`: scores of rows that hold up to `num_segments` texts each, one for
    every 8 tokens at most. NotImplementedError where `packs` is False."""
    params: Params
    config: ModelConfig
    tokenizer: Tokenizer
    packs: bool
    """Whether the folder has the function for packed rows: the flax backend has none to export."""
    platforms: tuple[str, ...]
    """What it was exported for: some of cpu, cuda, rocm, tpu."""
    sha256: str
    """Of all the files, one behind the other, in the order of their names."""
    backend: Literal["exported"] = "exported"


def is_exported(folder: str | os.PathLike) -> bool:
    """Whether this is a folder that holds a manifest, whatever it says."""
    return (Path(folder) / MANIFEST).is_file()


def load_exported(folder: str | os.PathLike) -> Exported:
    """Opens a folder that `flaxsent.export` wrote, after checking all of it.

    Raises:
        FileNotFoundError: there is no such folder, or a file is missing from it.
        ValueError: a file is cut short, changed, hostile or of another version, or it was exported for other platforms.
    """
    path = Path(folder)
    manifest = _read_manifest(path)
    config = manifest.config
    _check_files(path, manifest)
    _check_platform(path, manifest)
    predict = _read_function(path / PREDICT, manifest, output_ndim=2)
    params = _read_params(path / PARAMS, predict)
    packs = PREDICT_PACKED in manifest.files
    predict_packed = _refuse_packed
    if packs:
        packed = _read_function(path / PREDICT_PACKED, manifest, output_ndim=3)
        if packed.params != predict.params:
            raise ValueError(f"{path} has two functions of different parameters; {_ANEW}.")
        predict_packed = _packed(packed)
    tokenizer = read_tokenizer(
        path, family=config.family, max_positions=config.max_length, type_vocab_size=config.type_vocab_size
    )
    pad_rows = functools.partial(pad, first_position=config.first_position, pad_token_id=config.pad_token_id)

    def tokenize(texts: Texts, length: int | None = None) -> Tokens:
        return pad_rows(tokenizer.encode(texts, max_length=length), length=length)

    return Exported(
        tokenize=tokenize,
        pad=pad_rows,
        predict=_padded(predict, config),
        predict_packed=predict_packed,
        params=params,
        config=config,
        tokenizer=tokenizer,
        packs=packs,
        platforms=manifest.platforms,
        sha256="".join(file.sha256 for _, file in sorted(manifest.files.items())),
    )


_ANEW = "copy the folder again, or export the model anew"


class _File(NamedTuple):
    num_bytes: int
    sha256: str


class _Manifest(NamedTuple):
    config: ModelConfig
    platforms: tuple[str, ...]
    files: Mapping[str, _File]
    jax: str
    """The version of the jax that wrote the functions."""


def _read_manifest(folder: Path) -> _Manifest:
    file = folder / MANIFEST
    raw = _parse(file)
    if (number := _get(file, raw, "format", int)) != FORMAT:
        raise ValueError(f"{file} has format {number}; this flaxsent reads {FORMAT}: install another, or export anew.")
    jax_version = _short(_get(file, raw, "versions", dict).get("jax"))
    _check_convention(file, _get(file, raw, "calling_convention", int), jax_version)
    platforms = _get(file, raw, "platforms", list)
    if not platforms or not all(platform in PLATFORMS for platform in platforms):
        raise ValueError(f"{file} has platforms={_short(platforms)}; expected some of {', '.join(PLATFORMS)}: {_ANEW}.")
    return _Manifest(
        config=_config(file, raw),
        platforms=tuple(platforms),
        files=_files(file, _get(file, raw, "files", dict)),
        jax=jax_version,
    )


def _parse(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise FileNotFoundError(f"{file.parent} has no {MANIFEST}; expected a folder that flaxsent export wrote.")
    if (size := file.stat().st_size) > _MOST_BYTES:
        raise ValueError(f"{file} has {size:,} bytes; expected at most {_MOST_BYTES:,}: {_ANEW}.")
    try:
        raw = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as err:
        raise ValueError(f"{file} is not JSON: {err}; {_ANEW}.") from err
    if not isinstance(raw, dict):
        raise ValueError(f"{file} holds a {type(raw).__name__}; expected an object: {_ANEW}.")
    return raw


def _get(file: Path, raw: Mapping[str, Any], key: str, kind: type) -> Any:
    if type(value := raw.get(key)) is not kind:
        raise ValueError(f"{file} has {key}={_short(value)}; expected {_KINDS[kind]}: {_ANEW}.")
    return value


_KINDS = {int: "an integer", list: "a list", dict: "an object"}


def _check_convention(file: Path, convention: int, jax_version: str) -> None:
    least = jax.export.minimum_supported_calling_convention_version
    most = jax.export.maximum_supported_calling_convention_version
    if not least <= convention <= most:
        raise ValueError(
            f"{file} has calling convention {convention}, of jax {jax_version}; jax {jax.__version__} reads {least} to "
            f"{most}: install the other jax, or export the model anew."
        )


def _config(file: Path, raw: Mapping[str, Any]) -> ModelConfig:
    try:
        config = read_config(json.dumps(_get(file, raw, "config", dict)))
    except ValueError as err:
        raise ValueError(f"{file}: {err}") from err
    for key, said in (("labels", [*config.labels]), ("problem_type", config.problem_type)):
        if (value := raw.get(key)) != said:
            raise ValueError(f"{file} has {key}={_short(value)}; its config says {_short(said)}: {_ANEW}.")
    return config


def _files(manifest: Path, raw: Mapping[str, Any]) -> dict[str, _File]:
    if odd := [name for name in (*raw, *_NEEDED) if name not in _FILES or name not in raw]:
        does = "names" if odd[0] in raw else "does not name"
        raise ValueError(f"{manifest} {does} the file {_short(odd[0])}; expected {', '.join(_FILES)}: {_ANEW}.")
    files = {}
    for name, said in raw.items():
        num_bytes, digest = (said.get("bytes"), said.get("sha256")) if isinstance(said, dict) else (None, None)
        if type(num_bytes) is not int or not isinstance(digest, str):
            raise ValueError(f"{manifest} says {_short(said)} of {name}; expected bytes and sha256: {_ANEW}.")
        files[name] = _File(num_bytes, digest)
    return files


def _short(value: Any) -> str:
    """As Python writes it, as far as a line has room: what a hostile file holds may be long."""
    return text if len(text := repr(value)) <= 60 else f"{text[:60]}…"


def _check_files(folder: Path, manifest: _Manifest) -> None:
    for name, said in manifest.files.items():
        file = folder / name
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing, which {MANIFEST} names; {_ANEW}.")
        if (size := file.stat().st_size) != said.num_bytes:
            raise ValueError(f"{file} has {size:,} bytes; {MANIFEST} says {said.num_bytes:,}: {_ANEW}.")
        if (digest := sha256(file)) != said.sha256:
            raise ValueError(f"{file} has the SHA-256 {digest}; {MANIFEST} says {_short(said.sha256)}: {_ANEW}.")


def sha256(file: Path) -> str:
    """Of what a file holds, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _check_platform(folder: Path, manifest: _Manifest) -> None:
    here = jax.export.default_export_platform()
    if here not in manifest.platforms:
        raise ValueError(
            f"{folder} was exported for {', '.join(manifest.platforms)}, and JAX computes on {here} here; export it "
            f"with --platforms {','.join((*manifest.platforms, here))}, or choose with JAX_PLATFORMS."
        )


class _Function(NamedTuple):
    call: Callable[..., Any]
    params: dict[str, tuple[tuple[int, ...], str]]
    """The shape and the dtype of each parameter that it takes, by its names with dots between."""
    params_tree: Any


def _read_function(file: Path, manifest: _Manifest, *, output_ndim: int) -> _Function:
    """A function of parameters and four int32 arrays of tokens to float32 scores of the labels, and nothing else."""
    try:
        function = jax.export.deserialize(bytearray(file.read_bytes()))
        called = _called(function) | (_called(function.vjp()) if function.has_vjp() else set())
        args, kwargs = jax.tree.unflatten(function.in_tree, function.in_avals)
        params, tokens = args
        names = _names(params)
    except Exception as err:  # flatbuffers, MLIR and jax raise many kinds
        raise ValueError(
            f"{file} is no function that jax {jax.__version__} reads: {_first_line(err)}; it was written by jax "
            f"{manifest.jax}: install that, or export the model anew."
        ) from err
    if called:
        raise ValueError(f"{file} calls {_short(sorted(called))}, which is code outside of it; flaxsent runs none.")
    is_of_tokens = isinstance(tokens, dict) and sorted(tokens) == sorted(Tokens._fields)
    if not is_of_tokens or kwargs or any((leaf.dtype, leaf.ndim) != (np.int32, 2) for leaf in tokens.values()):
        raise ValueError(f"{file} is no function of parameters and {', '.join(Tokens._fields)}; {_ANEW}.")
    num_labels = manifest.config.num_labels
    outputs = [(leaf.dtype, leaf.ndim, leaf.shape[-1:]) for leaf in function.out_avals]
    if outputs != [(np.float32, output_ndim, (num_labels,))] or function.out_tree != jax.tree.structure(0):
        raise ValueError(f"{file} gives no scores of {num_labels} labels; {_ANEW}.")
    if set(function.platforms) != set(manifest.platforms):
        raise ValueError(
            f"{file} is for {', '.join(function.platforms)}; {MANIFEST} says {', '.join(manifest.platforms)}: {_ANEW}."
        )
    shapes = {name: (leaf.shape, leaf.dtype.name) for name, leaf in names.items()}
    return _Function(jax.jit(function.call), shapes, jax.tree.structure(params))


_CALL = re.compile(r"custom_call(?: @(\w+)\()?")


def _called(function: jax.export.Exported) -> set[str]:
    """What a function calls that is not part of it: jaxlib knows names, by which any address can be jumped to.

    The check of its shapes, which jax makes when it compiles, is all that an encoder needs.
    """
    return {name or "?" for name in _CALL.findall(function.mlir_module())} - {"shape_assertion"}


def _names(params: Params) -> dict[str, Any]:
    return {name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def name_of(path: tuple[Any, ...]) -> str:
    """What a parameter is called in the file: the names of the nested dicts with dots between."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _first_line(err: BaseException) -> str:
    return next((line.strip() for line in str(err).splitlines() if line.strip()), type(err).__name__)


def _read_params(file: Path, function: _Function) -> Params:
    try:
        tensors = safetensors.numpy.load_file(file)
    except (safetensors.SafetensorError, KeyError) as err:
        raise ValueError(f"{file} is not a whole safetensors file: {_first_line(err)}; {_ANEW}.") from err
    found = {name: (tensor.shape, tensor.dtype.name) for name, tensor in tensors.items()}
    faults = [f"- {name}" for name in function.params.keys() - found]
    faults += [f"+ {name}" for name in found.keys() - function.params]
    faults += [
        f"{name}: expected {said}, got {found[name]}"
        for name, said in function.params.items()
        if found.get(name, said) != said
    ]
    if faults:
        raise ValueError(f"{file} does not fit {PREDICT} (- missing, + unexpected): {'; '.join(sorted(faults))}")
    return jax.tree.unflatten(function.params_tree, [jnp.asarray(tensors[name]) for name in function.params])


def _padded(function: _Function, config: ModelConfig) -> Callable[[Params, Tokens], Float[Array, "B C"]]:
    def predict(params: Params, tokens: Tokens) -> Float[Array, "B C"]:
        check_padded(tokens)
        num_texts, length = tokens.input_ids.shape
        if length > config.max_length:
            raise ValueError(f"these rows have {length} tokens; this classifier takes {config.max_length} at most.")
        if num_texts == 0:  # which jax.export takes for a mistake
            return jnp.zeros((0, config.num_labels), jnp.float32)
        return function.call(params, tokens._asdict())

    return predict


def _packed(function: _Function) -> Callable[[Params, Tokens, int], Float[Array, "R S C"]]:
    def predict_packed(params: Params, tokens: Tokens, num_segments: int) -> Float[Array, "R S C"]:
        row_length = tokens.input_ids.shape[-1]
        if num_segments > (most := -(-row_length // SEGMENT_TOKENS)):
            raise ValueError(
                f"num_segments={num_segments} is more than the {most} texts that were exported for rows of "
                f"{row_length} tokens; pack with max_segments={most}."
            )
        return function.call(params, tokens._asdict())[:, :num_segments]

    return predict_packed


def _refuse_packed(params: Params, tokens: Tokens, num_segments: int) -> Float[Array, "R S C"]:
    raise NotImplementedError(
        "this folder was exported from the flax backend, whose modules read one text a row; export with "
        "backend='native' to pass packed rows."
    )
