"""A classifier → a folder to carry away, and back: its functions as StableHLO, its parameters, its tokenizer.

The folder runs without the encoders: reading it needs jax, numpy, tokenizers and safetensors only. Files are hostile
until checked: each has the size and the SHA-256 that the manifest says, and a function that calls anything outside
itself is refused. What is read is an ordinary `Classifier`, whose functions are those of the folder.
"""

import datetime
import functools
import json
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jaxtyping import Array, Float

from flaxsent import packing
from flaxsent.base import FlaxsentError, Params, Tokens
from flaxsent.classifier import Classifier, tokenize
from flaxsent.files import replacing, sha256
from flaxsent.models.config import ModelConfig, read_config, to_json
from flaxsent.packing import check_padded
from flaxsent.postprocessing import postprocess
from flaxsent.tokenization import read_tokenizer

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


def export(
    classifier: Classifier, folder: str | os.PathLike, *, platforms: Sequence[str] = ("cpu", "cuda", "tpu")
) -> None:
    """Writes a folder that `load` opens without the encoders, and that other readers of StableHLO can use.

    Its functions take `(params, tokens)`, nested dicts of arrays, and give logits: `forward` of any number of texts of
    any length, and `forward_packed` of packed rows where the family can be packed. The folder appears when it is
    complete. The manifest says until when JAX promises to read it: 180 days.

    Args:
        classifier: computes in the dtype and at the precision with which it was loaded.
        folder: new, or empty.
        platforms: what it will run on: some of cpu, cuda, rocm, tpu; none of them need be here.

    Raises:
        FileExistsError: there is something already.
        FlaxsentError: an unknown platform, or a function that depends on the length, as the flax backend's BigBird.
        OSError: the folder cannot be written.
    """
    target, unknown = Path(folder), [platform for platform in platforms if platform not in PLATFORMS]
    if isinstance(platforms, str) or unknown or not platforms or len(set(platforms)) < len(platforms):
        raise FlaxsentError(f"platforms={platforms!r}: expected different ones of {', '.join(PLATFORMS)}.")
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise FileExistsError(f"{target} is there already; choose another folder, or delete it.")
    functions = _functions(classifier, platforms)
    with replacing(target) as unfinished:
        for name, function in functions.items():
            # To first order, so that gradients flow through it; those of packed rows nobody asks for.
            (unfinished / name).write_bytes(function.serialize(vjp_order=1 if name == FORWARD else 0))
        for name, content in classifier.tokenizer.files.items():
            (unfinished / name).write_bytes(content)
        leaves = jax.tree_util.tree_leaves_with_path(classifier.params)
        tensors = {_name_of(path): np.ascontiguousarray(leaf) for path, leaf in leaves}
        safetensors.numpy.save_file(tensors, unfinished / PARAMS)
        (unfinished / PARAMS).chmod(0o644)  # it is made for its owner alone
        convention = functions[FORWARD].calling_convention_version
        (unfinished / MANIFEST).write_text(_manifest(classifier, platforms, convention, unfinished), encoding="utf-8")


def _functions(classifier: Classifier, platforms: Sequence[str]) -> dict[str, jax.export.Exported]:
    """By their files."""
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), classifier.params)

    def lowered(function: Callable[..., Array], dims: str, *constraints: str) -> jax.export.Exported:
        ids = jax.ShapeDtypeStruct(jax.export.symbolic_shape(dims, constraints=constraints), jnp.int32)
        return jax.export.export(jax.jit(function), platforms=platforms)(params, dict.fromkeys(Tokens._fields, ids))

    def forward(params: Params, tokens: Mapping[str, Array]) -> Float[Array, "B C"]:
        return classifier.forward(params, Tokens(**tokens))

    def forward_packed(params: Params, tokens: Mapping[str, Array]) -> Float[Array, "R S C"]:
        return classifier.logits(params, Tokens(**tokens), packing.num_segments(tokens["input_ids"].shape[-1]))

    try:
        functions = {FORWARD: lowered(forward, "B, L", f"L <= {classifier.config.max_length}")}
    except jax.errors.InconclusiveDimensionOperation as err:
        raise FlaxsentError(
            f"the {classifier.backend} backend's {classifier.config.family} depends on the length of rows, of which an "
            f"export takes any; load it with backend='native' if there is one: {str(err).splitlines()[0]}"
        ) from err
    return functions | ({FORWARD_PACKED: lowered(forward_packed, "R, T")} if classifier.packs else {})


def _manifest(classifier: Classifier, platforms: Sequence[str], convention: int, folder: Path) -> str:
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


def is_exported(folder: str | os.PathLike) -> bool:
    """Whether this is a folder that holds a manifest, whatever it says."""
    return (Path(folder) / MANIFEST).is_file()


def read(folder: Path) -> Classifier:
    """Opens a folder that `export` wrote, after checking all of it.

    Its functions compose under `jit`, and `forward` under `grad`; not under `vmap`, as their first axis is the batch.

    Raises:
        FileNotFoundError: there is no such folder, or a file is missing from it.
        FlaxsentError: a file is cut short, changed, hostile or of another version, or it was exported for other
            platforms.
    """
    manifest = _read_manifest(folder)
    config = manifest.config
    _check_files(folder, manifest)
    _check_platform(folder, manifest)
    forward = _read_function(folder / FORWARD, manifest, output_ndim=2)
    params = _read_params(folder / PARAMS, forward)
    forward_packed = None
    if FORWARD_PACKED in manifest.files:
        packed = _read_function(folder / FORWARD_PACKED, manifest, output_ndim=3)
        if packed.params != forward.params:
            raise FlaxsentError(f"{folder} has two functions of different parameters; {_ANEW}.")
        forward_packed = functools.partial(_call_packed, packed)
    tokenizer = read_tokenizer(
        folder,
        family=config.family,
        max_positions=config.max_length,
        type_vocab_size=config.type_vocab_size,
        first_position=config.first_position,
        pad_token_id=config.pad_token_id,
    )
    return Classifier(
        tokenize=functools.partial(tokenize, tokenizer=tokenizer),
        forward=functools.partial(_call, forward, config),
        forward_packed=forward_packed,
        hidden_states=_refuse,
        embeddings=_refuse,
        postprocess=functools.partial(postprocess, config=config),
        params=params,
        config=config,
        tokenizer=tokenizer,
        backend="exported",
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
    promise: str
    """Until when JAX promises to read them, as a part of a sentence."""


def _read_manifest(folder: Path) -> _Manifest:
    file = folder / MANIFEST
    raw = _parse(file)
    if (number := _get(file, raw, "format", int)) != FORMAT:
        raise FlaxsentError(f"{file} has format {number}; this flaxsent reads {FORMAT}: export the model anew.")
    jax_version = _short(_get(file, raw, "versions", dict).get("jax"))
    promise = _promise(file, _get(file, raw, "readable_until", str))
    _check_convention(file, _get(file, raw, "calling_convention", int), jax_version, promise)
    platforms = _get(file, raw, "platforms", list)
    if not platforms or not all(platform in PLATFORMS for platform in platforms):
        raise FlaxsentError(
            f"{file} has platforms={_short(platforms)}; expected some of {', '.join(PLATFORMS)}: {_ANEW}."
        )
    return _Manifest(
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
        raise FlaxsentError(f"{file} has {size:,} bytes; expected at most {_MOST_BYTES:,}: {_ANEW}.")
    try:
        raw = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as err:
        raise FlaxsentError(f"{file} is not JSON: {err}; {_ANEW}.") from err
    if not isinstance(raw, dict):
        raise FlaxsentError(f"{file} holds a {type(raw).__name__}; expected an object: {_ANEW}.")
    return raw


def _get(file: Path, raw: Mapping[str, Any], key: str, kind: type) -> Any:
    if type(value := raw.get(key)) is not kind:
        raise FlaxsentError(f"{file} has {key}={_short(value)}; expected {_KINDS[kind]}: {_ANEW}.")
    return value


_KINDS = {int: "an integer", list: "a list", dict: "an object", str: "text"}


def _promise(file: Path, until: str) -> str:
    try:
        last = datetime.date.fromisoformat(until)
    except ValueError as err:
        raise FlaxsentError(f"{file} has readable_until={_short(until)}; expected a date: {_ANEW}.") from err
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
            raise FlaxsentError(f"{file} has {key}={_short(value)}; its config says {_short(said)}: {_ANEW}.")
    return config


def _files(manifest: Path, raw: Mapping[str, Any]) -> dict[str, _File]:
    if odd := [name for name in (*raw, *_NEEDED) if name not in _FILES or name not in raw]:
        does = "names" if odd[0] in raw else "does not name"
        raise FlaxsentError(f"{manifest} {does} the file {_short(odd[0])}; expected {', '.join(_FILES)}: {_ANEW}.")
    files = {}
    for name, said in raw.items():
        num_bytes, digest = (said.get("bytes"), said.get("sha256")) if isinstance(said, dict) else (None, None)
        if type(num_bytes) is not int or not isinstance(digest, str):
            raise FlaxsentError(f"{manifest} says {_short(said)} of {name}; expected bytes and sha256: {_ANEW}.")
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
            raise FlaxsentError(f"{file} has {size:,} bytes; {MANIFEST} says {said.num_bytes:,}: {_ANEW}.")
        if (digest := sha256(file)) != said.sha256:
            raise FlaxsentError(f"{file} has the SHA-256 {digest}; {MANIFEST} says {_short(said.sha256)}: {_ANEW}.")


def _check_platform(folder: Path, manifest: _Manifest) -> None:
    here = jax.export.default_export_platform()
    if here not in manifest.platforms:
        raise FlaxsentError(
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
        raise FlaxsentError(
            f"{file} is no function that jax {jax.__version__} reads: {_first_line(err)}; it was written by jax "
            f"{manifest.jax}, and {manifest.promise}: install that jax, or export the model anew."
        ) from err
    if called:
        raise FlaxsentError(f"{file} calls {_short(sorted(called))}, which is code outside of it; flaxsent runs none.")
    is_of_tokens = isinstance(tokens, dict) and sorted(tokens) == sorted(Tokens._fields)
    if not is_of_tokens or kwargs or any((leaf.dtype, leaf.ndim) != (np.int32, 2) for leaf in tokens.values()):
        raise FlaxsentError(f"{file} is no function of parameters and {', '.join(Tokens._fields)}; {_ANEW}.")
    num_labels = manifest.config.num_labels
    outputs = [(leaf.dtype, leaf.ndim, leaf.shape[-1:]) for leaf in function.out_avals]
    if outputs != [(np.float32, output_ndim, (num_labels,))] or function.out_tree != jax.tree.structure(0):
        raise FlaxsentError(f"{file} gives no scores of {num_labels} labels; {_ANEW}.")
    if set(function.platforms) != set(manifest.platforms):
        raise FlaxsentError(
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
    return {_name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def _name_of(path: tuple[Any, ...]) -> str:
    """What a parameter is called in the file: the names of the nested dicts with dots between."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _first_line(err: BaseException) -> str:
    return next((line.strip() for line in str(err).splitlines() if line.strip()), type(err).__name__)


def _read_params(file: Path, function: _Function) -> Params:
    try:
        tensors = safetensors.numpy.load_file(file)
    except (safetensors.SafetensorError, KeyError) as err:
        raise FlaxsentError(f"{file} is not a whole safetensors file: {_first_line(err)}; {_ANEW}.") from err
    found = {name: (tensor.shape, tensor.dtype.name) for name, tensor in tensors.items()}
    faults = [f"- {name}" for name in function.params.keys() - found]
    faults += [f"+ {name}" for name in found.keys() - function.params]
    faults += [
        f"{name}: expected {said}, got {found[name]}"
        for name, said in function.params.items()
        if found.get(name, said) != said
    ]
    if faults:
        raise FlaxsentError(f"{file} does not fit {FORWARD} (- missing, + unexpected): {'; '.join(sorted(faults))}")
    return jax.tree.unflatten(function.params_tree, [jnp.asarray(tensors[name]) for name in function.params])


def _call(
    function: _Function, config: ModelConfig, params: Params, tokens: Tokens, key: Array | None = None
) -> Float[Array, "B C"]:
    check_padded(tokens)
    _check_key(key)
    num_texts, length = tokens.input_ids.shape
    if length > config.max_length:
        raise FlaxsentError(f"these rows have {length} tokens; this classifier takes {config.max_length} at most.")
    if num_texts == 0:  # which jax.export takes for a mistake
        return jnp.zeros((0, config.num_labels), jnp.float32)
    return function.call(params, tokens._asdict())


def _call_packed(
    function: _Function, params: Params, tokens: Tokens, num_segments: int, key: Array | None = None
) -> Float[Array, "R S C"]:
    _check_key(key)
    row_length = tokens.input_ids.shape[-1]
    if num_segments > (most := packing.num_segments(row_length)):
        raise FlaxsentError(
            f"num_segments={num_segments} is more than the {most} texts that were exported for rows of {row_length} "
            f"tokens; pack with max_segments={most}."
        )
    return function.call(params, tokens._asdict())[:, :num_segments]


def _check_key(key: Array | None) -> None:
    if key is not None:
        raise FlaxsentError("an exported folder has no dropout; leave the key out, or load the checkpoint.")


def _refuse(params: Params, tokens: Tokens, num_segments: int = 1) -> NoReturn:
    raise FlaxsentError("an exported folder gives logits, not the states before them; load the checkpoint instead.")
