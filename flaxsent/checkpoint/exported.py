"""A classifier → a folder to carry away, and back: its functions as StableHLO, its parameters, its tokenizer.

The folder runs without the encoders: reading it needs jax, numpy, tokenizers and safetensors only. Files are hostile
until checked: each has the size and the SHA-256 that the manifest says, and a function that calls anything outside
itself is refused. What is read is an ordinary `Classifier`, whose functions are those of the folder.
"""

import functools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jaxtyping import Array, Float

from flaxsent import packing
from flaxsent.base import FlaxsentError, Params, Tokens
from flaxsent.checkpoint.manifest import (
    ANEW,
    FORWARD,
    FORWARD_PACKED,
    MANIFEST,
    PARAMS,
    PLATFORMS,
    TOKENIZER,
    Manifest,
    check_files,
    check_platform,
    make_manifest,
    read_manifest,
    short,
)
from flaxsent.checkpoint.tokenizer import read_tokenizer
from flaxsent.checkpoint.weights import first_line, write_tensors
from flaxsent.classifier import Classifier, check_is_of_one_model, tokenize
from flaxsent.files import replacing
from flaxsent.models import limits_positions
from flaxsent.models.config import ModelConfig
from flaxsent.packing import check_padded
from flaxsent.postprocessing import postprocess


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
        FlaxsentError: an unknown platform, a function that depends on the length, as the flax backend's BigBird, or
            labels that were given at run time.
        OSError: the folder cannot be written.
    """
    target, unknown = Path(folder), [platform for platform in platforms if platform not in PLATFORMS]
    if isinstance(platforms, str) or unknown or not platforms or len(set(platforms)) < len(platforms):
        raise FlaxsentError(f"platforms={platforms!r}: expected different ones of {', '.join(PLATFORMS)}.")
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise FileExistsError(f"{target} is there already; choose another folder, or delete it.")
    check_is_of_one_model(classifier)
    if TOKENIZER not in classifier.tokenizer.files:
        raise FlaxsentError(
            f"this checkpoint's tokenizer is code of transformers that no {TOKENIZER} can hold; it cannot be exported."
        )
    functions = _functions(classifier, platforms)
    with replacing(target) as unfinished:
        for name, function in functions.items():
            # To first order, so that gradients flow through it; those of packed rows nobody asks for.
            (unfinished / name).write_bytes(function.serialize(vjp_order=1 if name == FORWARD else 0))
        for name, content in classifier.tokenizer.files.items():
            (unfinished / name).write_bytes(content)
        leaves = jax.tree_util.tree_leaves_with_path(classifier.params)
        tensors = {_name_of(path): np.ascontiguousarray(leaf) for path, leaf in leaves}
        write_tensors(tensors, unfinished / PARAMS)
        convention = functions[FORWARD].calling_convention_version
        (unfinished / MANIFEST).write_text(
            make_manifest(classifier, platforms, convention, unfinished), encoding="utf-8"
        )


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
        bounds = [f"L <= {classifier.config.max_length}"] if limits_positions(classifier.config) else []
        functions = {FORWARD: lowered(forward, "B, L", *bounds)}
    except jax.errors.InconclusiveDimensionOperation as err:
        raise FlaxsentError(
            f"the {classifier.backend} backend's {classifier.config.family} depends on the length of rows, of which an "
            f"export takes any; load it with backend='native' if there is one: {str(err).splitlines()[0]}"
        ) from err
    return functions | ({FORWARD_PACKED: lowered(forward_packed, "R, T")} if classifier.packs else {})


def is_exported(folder: str | os.PathLike) -> bool:
    """Whether this is a folder that holds a manifest, whatever it says."""
    return (Path(folder) / MANIFEST).is_file()


def read(folder: Path, *, special_tokens_in_text: Literal["special", "literal"] = "special") -> Classifier:
    """Opens a folder that `export` wrote, after checking all of it.

    Its functions compose under `jit`, and `forward` under `grad`; not under `vmap`, as their first axis is the batch.

    Raises:
        FileNotFoundError: there is no such folder, or a file is missing from it.
        FlaxsentError: a file is cut short, changed, hostile or of another version, or it was exported for other
            platforms.
    """
    manifest = read_manifest(folder)
    config = manifest.config
    check_files(folder, manifest)
    check_platform(folder, manifest)
    forward = _read_function(folder / FORWARD, manifest, output_ndim=2)
    params = _read_params(folder / PARAMS, forward)
    forward_packed = None
    if FORWARD_PACKED in manifest.files:
        packed = _read_function(folder / FORWARD_PACKED, manifest, output_ndim=3)
        if packed.params != forward.params:
            raise FlaxsentError(f"{folder} has two functions of different parameters; {ANEW}.")
        forward_packed = functools.partial(_call_packed, packed, config)
    tokenizer = read_tokenizer(folder, config, special_tokens_in_text=special_tokens_in_text)
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


class _Function(NamedTuple):
    call: Callable[..., Any]
    params: dict[str, tuple[tuple[int, ...], str]]
    """The shape and the dtype of each parameter that it takes, by its names with dots between."""
    params_tree: Any


def _read_function(file: Path, manifest: Manifest, *, output_ndim: int) -> _Function:
    """A function of parameters and four int32 arrays of tokens to float32 scores of the labels, and nothing else."""
    try:
        function = jax.export.deserialize(bytearray(file.read_bytes()))
        called = _called(function) | (_called(function.vjp()) if function.has_vjp() else set())
        args, kwargs = jax.tree.unflatten(function.in_tree, function.in_avals)
        params, tokens = args
        names = _names(params)
    except Exception as err:  # flatbuffers, MLIR and jax raise many kinds
        raise FlaxsentError(
            f"{file} is no function that jax {jax.__version__} reads: {first_line(err)}; it was written by jax "
            f"{manifest.jax}, and {manifest.promise}: install that jax, or export the model anew."
        ) from err
    if called:
        raise FlaxsentError(f"{file} calls {short(sorted(called))}, which is code outside of it; flaxsent runs none.")
    is_of_tokens = isinstance(tokens, dict) and sorted(tokens) == sorted(Tokens._fields)
    if not is_of_tokens or kwargs or any((leaf.dtype, leaf.ndim) != (np.int32, 2) for leaf in tokens.values()):
        raise FlaxsentError(f"{file} is no function of parameters and {', '.join(Tokens._fields)}; {ANEW}.")
    num_labels = manifest.config.num_labels
    outputs = [(leaf.dtype, leaf.ndim, leaf.shape[-1:]) for leaf in function.out_avals]
    if outputs != [(np.float32, output_ndim, (num_labels,))] or function.out_tree != jax.tree.structure(0):
        raise FlaxsentError(f"{file} gives no scores of {num_labels} labels; {ANEW}.")
    if set(function.platforms) != set(manifest.platforms):
        raise FlaxsentError(
            f"{file} is for {', '.join(function.platforms)}; {MANIFEST} says {', '.join(manifest.platforms)}: {ANEW}."
        )
    shapes = {name: (leaf.shape, leaf.dtype.name) for name, leaf in names.items()}
    return _Function(jax.jit(function.call), shapes, jax.tree.structure(params))


_CALL = re.compile(r"custom_call(?: @([\w.]+)\()?")
_OWN = {"shape_assertion", "mhlo.erf"}
"""The check of shapes, which jax makes when it compiles, and the error function as jax 0.8 writes it: XLA's own."""


def _called(function: jax.export.Exported) -> set[str]:
    """What a function calls that is not part of it: jaxlib knows names, by which any address can be jumped to."""
    return {name or "?" for name in _CALL.findall(function.mlir_module())} - _OWN


def _names(params: Params) -> dict[str, Any]:
    return {_name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def _name_of(path: tuple[Any, ...]) -> str:
    """What a parameter is called in the file: the names of the nested dicts with dots between."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _read_params(file: Path, function: _Function) -> Params:
    try:
        tensors = safetensors.numpy.load_file(file)
    except (safetensors.SafetensorError, KeyError) as err:
        raise FlaxsentError(f"{file} is not a whole safetensors file: {first_line(err)}; {ANEW}.") from err
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
    if length > config.max_length and limits_positions(config):
        raise FlaxsentError(f"these rows have {length} tokens; this classifier takes {config.max_length} at most.")
    if num_texts == 0:  # which jax.export takes for a mistake
        return jnp.zeros((0, config.num_labels), jnp.float32)
    return function.call(params, tokens._asdict())


def _call_packed(
    function: _Function,
    config: ModelConfig,
    params: Params,
    tokens: Tokens,
    num_segments: int,
    key: Array | None = None,
) -> Float[Array, "R S C"]:
    _check_key(key)
    num_rows, row_length = tokens.input_ids.shape
    if num_segments > (most := packing.num_segments(row_length)):
        raise FlaxsentError(
            f"num_segments={num_segments} is more than the {most} texts that were exported for rows of {row_length} "
            f"tokens; pack with max_segments={most}."
        )
    if num_rows == 0:  # as in `_call`
        return jnp.zeros((0, num_segments, config.num_labels), jnp.float32)
    return function.call(params, tokens._asdict())[:, :num_segments]


def _check_key(key: Array | None) -> None:
    if key is not None:
        raise FlaxsentError("an exported folder has no dropout; leave the key out, or load the checkpoint.")


def _refuse(params: Params, tokens: Tokens, num_segments: int = 1) -> NoReturn:
    raise FlaxsentError("an exported folder gives logits, not the states before them; load the checkpoint instead.")
