"""Files of a checkpoint folder ↔ params: the only module that knows PyTorch's names.

A checkpoint is an ordinary Hugging Face folder. Its files are hostile until checked: no pickle is opened without
torch's `weights_only`, no code is fetched, no name in an index leads out of the folder.
"""

import errno
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from flaxsent.base import FlaxsentError, Params
from flaxsent.files import require

logger = logging.getLogger(__name__)

SAFETENSORS, SAFETENSORS_INDEX = "model.safetensors", "model.safetensors.index.json"
MSGPACK, PICKLE, PICKLE_INDEX = "flax_model.msgpack", "pytorch_model.bin", "pytorch_model.bin.index.json"
WEIGHT_FILES = (SAFETENSORS, SAFETENSORS_INDEX, MSGPACK, PICKLE, PICKLE_INDEX)
"""In the order in which they are preferred."""

SHARD = re.compile(r"(model|pytorch_model)-\d{5}-of-\d{5}\.(safetensors|bin)")
"""The names of other files of weights, when there are several."""

# Flax leaf name -> PyTorch's; kernels are transposed besides. Names not listed are the same in both.
_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
# How old checkpoints call LayerNorm's parameters.
_OLD_LEAVES = {"scale": "gamma", "bias": "beta"}
# Tensors of PyTorch checkpoints that are no parameters: counters, computed tables, second names of tied weights, and a
# table that microsoft's DeBERTas hold but do not use (transformers ignores it too).
_NOT_PARAMETERS = re.compile(
    r"(^|\.)(embeddings\.position_ids|embeddings\.token_type_ids|(encoder|decoder)\.embed_tokens\.weight"
    r"|(encoder|decoder)\.version"
    r"|encoder\.embed_positions\.weight|deberta\.embeddings\.position_embeddings\.weight)$"
)
# What heads of pretraining and poolers that the family's classifier does not read leave over: no reader misses them.
_OF_NO_INTEREST = re.compile(
    r"(^|\.)(pooler|cls|lm_head|\w*predictions|generator_\w+|vocab_(transform|layer_norm|projector)|qa_outputs"
    r"|seq_relationship|sop_classifier|final_logits_bias|loss_fct|mask_token_embedding)(\.|$)"
)
_MOST_NAMES = 10
"""How many tensors a message names."""


def first_line(err: BaseException) -> str:
    """What other libraries say in many lines."""
    return next((line.strip() for line in str(err).splitlines() if line.strip()), type(err).__name__)


def shard_files(index: Path) -> list[str]:
    """The files named by the index of a checkpoint in several files, checked to be of its kind and to lie beside it.

    Raises:
        FlaxsentError: not an index, or a name leads out of the folder.
    """
    ending = ".bin" if index.name == PICKLE_INDEX else ".safetensors"
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as err:
        raise FlaxsentError(f"{index} is not an index of shards: {first_line(err)}; fetch it again.") from err
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(rf"[\w.-]+{re.escape(ending)}", name):
            raise FlaxsentError(f"{index} names the shard {name!r}; expected the name of a {ending} file beside it.")
    return names


def read_params(
    folder: Path,
    *,
    shapes: Params,
    base: str,
    dtype: jnp.dtype | None,
    drawn: Params | None = None,
    is_whole: bool = False,
) -> Params:
    """Reads the weights of a checkpoint folder into a tree of the given shapes; `dtype` None keeps what is stored.

    `base` is the branch that holds the encoder; a checkpoint of the encoder alone lacks it. Where `drawn` parameters
    are given, a new head is put on the encoder: those of them that the file has not in this shape are taken. Tensors
    that the model does not have are left out and logged, as by transformers, unless `is_whole` says that the file must
    hold this encoder and no more of one.

    Raises:
        FlaxsentError: a file is damaged, or tensors are missing (-) or of another shape: all in one error, with those
            that were not expected (+); or all names have a prefix.
        MissingPackageError: the format needs a package that is not installed.
    """
    file = _weight_file(folder)
    _tell_newer(file)
    tensors = _READERS[file.name](file)
    fallback = dict(flatten(drawn or {}))
    leaves, missing, misshaped = {}, [], []
    for path, shape in flatten(shapes):
        names = pytorch_names(path, base)
        name = next((name for name in names if name in tensors), names[0])
        tensor = tensors.pop(name, None)
        if tensor is not None and tensor.shape == pytorch_shape(path, shape):
            leaves[path] = tensor.T if path[-1] == "kernel" else tensor
        elif path in fallback:
            leaves[path] = fallback[path]
        elif tensor is None:
            missing.append(name)
        else:
            misshaped.append(f"{name}: expected {pytorch_shape(path, shape)}, got {tensor.shape}")
    left_over = [name for name in sorted(tensors) if not _NOT_PARAMETERS.search(name)]
    faults = [f"- {name}" for name in missing] + misshaped
    beyond = [name for name in left_over if is_whole and _is_of_encoder(name, base, shapes[base])]
    if faults or beyond:
        _check_prefix(file, missing, left_over, base)
        left_over = left_over if drawn is None else beyond
        unexpected = [f"+ {name}" for name in left_over]
        told = "; ".join(some(names, between="; ") for names in (faults, unexpected) if names)
        raise FlaxsentError(f"{file} does not fit its config.json (- missing, + unexpected): {told}")
    if left_over:
        of_no_interest = drawn is not None or all(map(_OF_NO_INTEREST.search, left_over))
        level = logging.INFO if of_no_interest else logging.WARNING
        logger.log(level, "%s: tensors that this model does not have were left out: %s", file, _grouped(left_over))
    odd = {str(leaf.dtype) for leaf in leaves.values() if not jnp.issubdtype(leaf.dtype, jnp.floating)}
    if odd:
        raise FlaxsentError(
            f"{file} has weights of dtype {', '.join(sorted(odd))}; expected floats: it may be quantised."
        )
    return unflatten({path: jnp.asarray(leaf, dtype) for path, leaf in leaves.items()})


def unfit(folder: Path, *, shapes: Params, base: str) -> tuple[set[tuple[str, ...]], set[tuple[str, ...]]]:
    """The paths of parameters that the weights of a folder lack, and of those that they have in another shape.

    Raises: as `read_params`.
    """
    file = _weight_file(folder)
    tensors = _READERS[file.name](file)
    missing, misshaped = set(), set()
    for path, shape in flatten(shapes):
        tensor = next((tensors[name] for name in pytorch_names(path, base) if name in tensors), None)
        if tensor is None:
            missing.add(path)
        elif tensor.shape != pytorch_shape(path, shape):
            misshaped.add(path)
    return missing, misshaped


def _check_prefix(file: Path, missing: Sequence[str], left_over: Sequence[str], base: str) -> None:
    """Raises FlaxsentError if what is missing is there with something in front, as wrappers of models save it."""
    there = {*left_over}
    for wanted in (missing, [name.removeprefix(f"{base}.") for name in missing]):
        prefixes = Counter(
            name.removesuffix(one) for one in wanted[:_MOST_NAMES] for name in left_over if name.endswith(f".{one}")
        )
        for prefix, _ in prefixes.most_common(1):
            if sum(prefix + name in there for name in wanted) > len(wanted) / 2:
                raise FlaxsentError(
                    f"{file} has {prefix!r} in front of its tensors' names, as in {prefix}{wanted[0]}: a wrapper of "
                    "the model wrote them; save the model that it wraps, or take the prefix away."
                )


def some(names: Sequence[str], *, between: str = ", ") -> str:
    more = [] if len(names) <= _MOST_NAMES else [f"and {len(names) - _MOST_NAMES} more"]
    return between.join([*names[:_MOST_NAMES], *more])


def _grouped(names: Iterable[str]) -> str:
    """The names by what they have in front, with how many there are of each: a layer's, or a module's.

    >>> _grouped(["a.layer.7.b.weight", "a.layer.7.c.weight", "head.bias", "x.y.bias", "x.y.weight"])
    'a.layer.7.* (2), head.bias, x.y.* (2)'
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        layer = re.match(r".*?\.\d+(?=\.)", name)
        groups.setdefault(layer[0] if layer else name.rpartition(".")[0], []).append(name)
    told = [f"{group}.* ({len(held)})" if len(held) > 1 else held[0] for group, held in groups.items()]
    return some(told)


def stored_dtype(folder: Path) -> jnp.dtype:
    """The dtype of the weights in a folder; float32 where they have several, or one that `load` does not compute in.

    Raises: as `read_params`.
    """
    file = _weight_file(folder)
    found = {
        tensor.dtype for tensor in _READERS[file.name](file).values() if jnp.issubdtype(tensor.dtype, jnp.floating)
    }
    dtype = found.pop() if len(found) == 1 else jnp.dtype(jnp.float32)
    return dtype if dtype in (jnp.bfloat16, jnp.float16) else jnp.dtype(jnp.float32)


def _weight_file(folder: Path) -> Path:
    file = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if file is None:
        raise FileNotFoundError(f"{folder} has no weights; expected one of {', '.join(WEIGHT_FILES)}.")
    return file


def _tell_newer(file: Path) -> None:
    """Logs that a file of weights beside the one that is read is newer: the latter may be left from before a training.

    It is a warning where PyTorch's transformers would read the other one. In the Hub's cache, which links to files, the
    times are those of downloads.
    """
    others = [file.parent / name for name in WEIGHT_FILES if name != file.name]
    there = [other for other in others if other.is_file() and not other.is_symlink()]
    newest = max(there, key=lambda other: other.stat().st_mtime_ns, default=file)
    if newest.stat().st_mtime_ns > file.stat().st_mtime_ns and not file.is_symlink():
        level = logging.WARNING if file.name == MSGPACK else logging.INFO
        logger.log(
            level, "%s was read; %s beside it is newer, and was not: remove the one that is old", file, newest.name
        )


def _is_of_encoder(name: str, base: str, branches: Params) -> bool:
    """Whether a tensor is the encoder's, and not of a head or of the pooler that stood on it."""
    branch, _, rest = name.partition(".")
    branch = rest.partition(".")[0] if branch == base else branch
    return branch in branches and branch != "pooler"


def pytorch_shape(path: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[::-1] if path[-1] == "kernel" else shape


def to_tensors(params: Params) -> dict[str, np.ndarray]:
    """The parameters under PyTorch's names and in its layout."""
    return {
        pytorch_names(path)[0]: np.ascontiguousarray(np.asarray(leaf).T if path[-1] == "kernel" else np.asarray(leaf))
        for path, leaf in flatten(params)
    }


def write_tensors(tensors: dict[str, np.ndarray], file: Path, metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file that everybody may read; the library makes it for its owner alone.

    Raises:
        OSError: it cannot be written.
    """
    try:
        safetensors.numpy.save_file(tensors, file, metadata=metadata)
    except safetensors.SafetensorError as err:  # "I/O error: No space left on device (os error 28)"
        found = re.search(r"\(os error (\d+)\)", str(err))
        number = int(found[1]) if found else errno.EIO
        raise OSError(number, os.strerror(number)) from err
    file.chmod(0o644)


def pytorch_names(path: tuple[str, ...], base: str = "") -> list[str]:
    """PyTorch's name of a leaf, then the others that checkpoints use: LayerNorm's old names, the encoder on its own."""
    leaves = [_LEAVES.get(path[-1], path[-1])]
    if "".join(path[-2:-1]).endswith("LayerNorm") and path[-1] in _OLD_LEAVES:
        leaves.append(_OLD_LEAVES[path[-1]])
    stems = [path[:-1], path[1:-1]] if path[0] == base else [path[:-1]]
    if path[-2:] == ("shared", "embedding"):  # BART's table has three names, and a file may keep any one of them
        stems += [(*stem[:-1], stack, "embed_tokens") for stem in stems for stack in ("encoder", "decoder")]
    return [".".join((*stem, leaf)) for stem in stems for leaf in leaves]


def _read_safetensors(file: Path) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    for shard in [file] if file.name == SAFETENSORS else _shards(file):
        try:
            tensors.update(safetensors.numpy.load_file(shard))
        except (safetensors.SafetensorError, KeyError, TypeError, AttributeError) as err:
            if odd := _unreadable(shard):
                raise FlaxsentError(
                    f"{shard} has tensors of a dtype that cannot be read: {some(odd)}; expected floats of 16 bits or "
                    "more: convert them first."
                ) from err
            raise FlaxsentError(f"{shard} is not a whole safetensors file: {first_line(err)}; fetch it again.") from err
    return tensors


def _shards(index: Path) -> list[Path]:
    """The files of an index.

    Raises:
        FileNotFoundError: one is missing.
        FlaxsentError: as `shard_files`.
    """
    shards = [index.parent / name for name in shard_files(index)]
    if missing := [shard.name for shard in shards if not shard.is_file()]:
        raise FileNotFoundError(f"{index} names files that are not there: {some(missing)}; fetch them.")
    return shards


def _unreadable(file: Path) -> list[str]:
    """The tensors of a safetensors file of a dtype that NumPy does not have; none if it is no such file."""
    try:
        with safetensors.safe_open(file, framework="np") as opened:
            dtypes = {name: opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118
    except safetensors.SafetensorError:
        return []
    return [f"{name} is {dtype}" for name, dtype in sorted(dtypes.items()) if not _IN_NUMPY.fullmatch(dtype)]


# safetensors' names of dtypes that NumPy has, or JAX adds to it.
_IN_NUMPY = re.compile(r"F(16|32|64)|BF16|[IU](8|16|32|64)|BOOL|C64")


def _read_msgpack(file: Path) -> dict[str, np.ndarray]:
    serialization = require("flax.serialization", needed_by=f"reading {file}", install="flax")
    try:
        tree = serialization.msgpack_restore(file.read_bytes())
    except Exception as err:  # msgpack raises many kinds
        raise FlaxsentError(f"{file} is not a whole msgpack file: {first_line(err)}; fetch it again.") from err
    if not isinstance(tree, dict):
        raise FlaxsentError(f"{file} holds a {type(tree).__name__}; expected a tree of parameters.")
    if not all(isinstance(name, str) for path, _ in flatten(tree) for name in path):
        raise FlaxsentError(f"{file} has names that are no text; expected a tree of parameters.")
    _check_not_nested(file, tree, ["params"])
    if odd := [".".join(path) for path, leaf in flatten(tree) if not isinstance(leaf, np.ndarray)]:
        raise FlaxsentError(f"{file} has entries that are no arrays: {some(odd)}; expected a tree of parameters.")
    return to_tensors(tree)


def _read_pickle(file: Path) -> dict[str, np.ndarray]:
    """A pickle can run any code: only torch's `weights_only` reader opens it, which has been safe since torch 2.6.

    Before, a file could break out of it: CVE-2025-32434.
    """
    torch = require(
        "torch",
        needed_by=f"reading the pickle {file}",
        install=f"'torch>=2.6', or fetch a checkpoint with {SAFETENSORS}",
    )
    if tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2]) < (2, 6):
        raise FlaxsentError(
            f"{file} is a pickle, which torch {torch.__version__} does not read safely (CVE-2025-32434): "
            f"pip install 'torch>=2.6', or fetch a checkpoint with {SAFETENSORS}."
        )
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as err:  # torch raises many kinds
        raise FlaxsentError(f"{file} was refused by torch.load(weights_only=True): {first_line(err)}") from err
    if not isinstance(state, Mapping):
        raise FlaxsentError(f"{file} holds a {type(state).__name__}; expected tensors by their names.")
    _check_not_nested(file, state, ["state_dict", "model_state_dict", "model", "module", "net", "params"])
    if odd := [f"{name} ({type(one).__name__})" for name, one in state.items() if not isinstance(one, torch.Tensor)]:
        raise FlaxsentError(
            f"{file} has entries that are no tensors: {some(odd)}; expected tensors by their names: save "
            "model.state_dict()."
        )
    return {str(name): _to_numpy(file, str(name), tensor) for name, tensor in state.items()}


def _check_not_nested(file: Path, held: Mapping[Any, Any], names: Iterable[str]) -> None:
    """Raises FlaxsentError for the checkpoint of a training, which has the parameters among other things."""
    for name in names:
        if isinstance(held.get(name), Mapping):
            others = [str(other) for other in held if other != name]
            beside = f" beside {some(others)}" if others else ""
            raise FlaxsentError(
                f"{file} has the parameters in an entry {name!r}{beside}; expected them alone: save what is in "
                f"{name!r} as {file.name}."
            )


def _to_numpy(file: Path, name: str, tensor: Any) -> np.ndarray:
    """NumPy has no bfloat16 that torch knows; float32 holds it exactly, and float8 too, which transformers casts."""
    is_narrow = tensor.is_floating_point() and tensor.element_size() < 4 and str(tensor.dtype) != "torch.float16"
    try:
        return (tensor.float() if is_narrow else tensor).detach().numpy()
    except Exception as err:  # quantised, sparse, two in a byte: torch raises many kinds
        kind = f"{tensor.dtype}, {tensor.layout}".replace("torch.", "")
        raise FlaxsentError(
            f"{file} has a tensor that cannot be read, {name} ({kind}); expected plain arrays of floats."
        ) from err


_READERS = {
    SAFETENSORS: _read_safetensors,
    SAFETENSORS_INDEX: _read_safetensors,
    MSGPACK: _read_msgpack,
    PICKLE: _read_pickle,
    PICKLE_INDEX: lambda index: {name: one for shard in _shards(index) for name, one in _read_pickle(shard).items()},
}


def flatten(tree: Mapping[Any, Any], path: tuple[Any, ...] = ()) -> Iterable[tuple[tuple[str, ...], Any]]:
    for name, node in tree.items():
        if isinstance(node, Mapping):
            yield from flatten(node, (*path, name))
        else:
            yield (*path, name), node


def unflatten(leaves: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = leaf
    return tree
