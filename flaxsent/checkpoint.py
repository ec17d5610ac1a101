"""Folder or Hub id → files → params, and back: the only room that knows PyTorch's names.

A checkpoint is an ordinary Hugging Face folder. Its files are hostile until checked: no pickle is opened without
torch's `weights_only`, no code is fetched, no name in an index leads out of the folder.
"""

import functools
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from flaxsent.types import Params

SAFETENSORS, SAFETENSORS_INDEX = "model.safetensors", "model.safetensors.index.json"
MSGPACK, PICKLE = "flax_model.msgpack", "pytorch_model.bin"
WEIGHT_FILES = (SAFETENSORS, SAFETENSORS_INDEX, MSGPACK, PICKLE)
"""In the order in which they are preferred."""

EMBEDDED = Path(__file__).parent / "default_model"

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


def find(source: str | os.PathLike | None, *, revision: str | None = None, tokenizer_files: Sequence[str]) -> Path:
    """The folder of a checkpoint: `source` itself, the Hub's copy of it in the local cache, or the embedded one.

    From the Hub come `config.json`, one set of weights and the tokenizer's files, all of one commit; `HF_HUB_OFFLINE`,
    `HF_ENDPOINT`, `HF_HOME` and `HF_TOKEN` work as everywhere.

    Raises:
        FileNotFoundError: neither a checkpoint folder nor on the Hub.
        ConnectionError: the Hub does not answer and the cache lacks a file.
    """
    if source is None:
        return EMBEDDED
    folder = Path(source)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(
                f"{folder} has no config.json; expected a Hugging Face checkpoint folder (flaxsent.load_exported and "
                "classify --model open what flaxsent export wrote)."
            )
        return folder
    if isinstance(source, str) and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) and not folder.exists():
        return _download(source, revision, tokenizer_files)
    raise FileNotFoundError(f"{source} is neither a folder nor a Hub id (name or owner/name).")


def _download(hub_id: str, revision: str | None, tokenizer_files: Sequence[str]) -> Path:
    import huggingface_hub
    from huggingface_hub import errors

    at = f"{hub_id}{'' if revision is None else f' at revision {revision}'}"
    try:
        return _fetch(hub_id, revision, tokenizer_files)
    except errors.LocalEntryNotFoundError as err:
        why = f"the Hub gives no answer: {_first_line(err.__cause__ or err)}"
        if huggingface_hub.constants.HF_HUB_OFFLINE:
            why = "HF_HUB_OFFLINE is set: unset it to fetch."
        raise ConnectionError(f"{at} is not in the local cache, and {why}") from err
    except errors.RepositoryNotFoundError as err:
        raise FileNotFoundError(
            f"the Hub shows no {hub_id}: check the name, or set HF_TOKEN if it is private or gated."
        ) from err
    except errors.RevisionNotFoundError as err:
        raise FileNotFoundError(f"the Hub has no {at}; expected a branch, a tag or a commit of it.") from err
    except errors.EntryNotFoundError as err:
        raise FileNotFoundError(f"{at} has no config.json on the Hub; expected a Hugging Face checkpoint.") from err
    except (errors.HfHubHTTPError, errors.HFValidationError) as err:
        raise FileNotFoundError(f"{at} could not be fetched from the Hub: {_first_line(err)}") from err
    except (OSError, RuntimeError, errors.HTTPError) as err:  # pyright: ignore[reportPrivateImportUsage]
        # A connection that breaks: requests raises OSErrors without a number, httpx its HTTPError, hf_xet RuntimeError.
        if isinstance(err, OSError) and err.errno is not None:
            raise
        raise ConnectionError(f"the Hub broke off while {at} was fetched: {_first_line(err)}; try again.") from err


def _fetch(hub_id: str, revision: str | None, tokenizer_files: Sequence[str]) -> Path:
    import huggingface_hub

    config_file = Path(huggingface_hub.hf_hub_download(hub_id, "config.json", revision=revision))
    # The rest comes from the commit that this one came from, whatever is pushed meanwhile.
    get = functools.partial(_download_if_there, hub_id, commit=config_file.parent.name)
    weights = next(filter(get, WEIGHT_FILES), None)
    if weights == SAFETENSORS_INDEX:
        for shard in shard_files(config_file.parent / SAFETENSORS_INDEX):
            get(shard)
    tokenizer_json, settings, *vocabularies = tokenizer_files
    get(settings)
    if not get(tokenizer_json):
        for name in vocabularies:
            get(name)
    return config_file.parent


def _download_if_there(hub_id: str, name: str, *, commit: str) -> bool:
    import huggingface_hub
    from huggingface_hub import errors

    cached = huggingface_hub.try_to_load_from_cache(hub_id, name, revision=commit)
    if cached is not None and not isinstance(cached, str):
        return False  # it was not there when last asked for, and a commit does not change
    try:
        huggingface_hub.hf_hub_download(hub_id, name, revision=commit)
    except errors.LocalEntryNotFoundError:
        # Offline, the cache does not tell a file that was never there from one that was not fetched.
        if huggingface_hub.constants.HF_HUB_OFFLINE:
            return False
        raise
    except errors.EntryNotFoundError:
        return False
    return True


def _first_line(err: BaseException) -> str:
    return next((line.strip() for line in str(err).splitlines() if line.strip()), type(err).__name__)


def shard_files(index: Path) -> list[str]:
    """The files named by a `model.safetensors.index.json`, checked to lie beside it.

    Raises:
        ValueError: not an index, or a name leads out of the folder.
    """
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as err:
        raise ValueError(f"{index} is not an index of shards: {_first_line(err)}; fetch it again.") from err
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+\.safetensors", name):
            raise ValueError(f"{index} names the shard {name!r}; expected the name of a .safetensors file beside it.")
    return names


def read_params(folder: Path, *, shapes: Params, base: str, dtype: jnp.dtype, drawn: Params | None = None) -> Params:
    """Reads the weights of a checkpoint folder into a tree of the given shapes.

    `base` is the branch that holds the encoder; a checkpoint of the encoder alone lacks it. Where `drawn` parameters
    are given, those of them that the checkpoint has not in this shape are taken, and tensors left over are no fault:
    that is how a head is put on an encoder.

    Raises:
        ValueError: a file is damaged, or tensors are missing (-), unexpected (+) or of another shape: all in one error.
        ImportError: the format needs a package that is not installed.
    """
    file = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if file is None:
        raise FileNotFoundError(f"{folder} has no weights; expected one of {', '.join(WEIGHT_FILES)}.")
    tensors = _READERS[file.name](file)
    fallback = dict(_flatten(drawn or {}))
    leaves, faults = {}, []
    for path, shape in _flatten(shapes):
        names = _pytorch_names(path, base)
        name = next((name for name in names if name in tensors), names[0])
        tensor = tensors.pop(name, None)
        if tensor is not None and tensor.shape == _pytorch_shape(path, shape):
            leaves[path] = tensor.T if path[-1] == "kernel" else tensor
        elif path in fallback:
            leaves[path] = fallback[path]
        elif tensor is None:
            faults.append(f"- {name}")
        else:
            faults.append(f"{name}: expected {_pytorch_shape(path, shape)}, got {tensor.shape}")
    if drawn is None:
        faults += [f"+ {name}" for name in sorted(tensors) if not _NOT_PARAMETERS.search(name)]
    if faults:
        raise ValueError(f"{file} does not fit its config.json (- missing, + unexpected): {'; '.join(faults)}")
    odd = {str(leaf.dtype) for leaf in leaves.values() if not jnp.issubdtype(leaf.dtype, jnp.floating)}
    if odd:
        raise ValueError(f"{file} has weights of dtype {', '.join(sorted(odd))}; expected floats: it may be quantised.")
    return _unflatten({path: jnp.asarray(leaf, dtype) for path, leaf in leaves.items()})


def _pytorch_shape(path: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[::-1] if path[-1] == "kernel" else shape


def to_tensors(params: Params) -> dict[str, np.ndarray]:
    """The parameters under PyTorch's names and in its layout."""
    return {
        _pytorch_names(path)[0]: np.ascontiguousarray(np.asarray(leaf).T if path[-1] == "kernel" else np.asarray(leaf))
        for path, leaf in _flatten(params)
    }


def write(
    folder: str | os.PathLike,
    *,
    tensors: Mapping[str, np.ndarray],
    config_json: str,
    tokenizer_files: Mapping[str, bytes],
) -> None:
    """Writes a checkpoint folder; each file appears under its name only when it is complete.

    Raises:
        OSError: the folder cannot be written.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target, prefix=".saving-") as unfinished:
        safetensors.numpy.save_file(dict(tensors), Path(unfinished, SAFETENSORS), metadata={"format": "pt"})
        Path(unfinished, "config.json").write_text(config_json)
        for name, content in tokenizer_files.items():
            Path(unfinished, name).write_bytes(content)
        for file in Path(unfinished).iterdir():
            file.chmod(0o644)
            os.replace(file, target / file.name)


def _pytorch_names(path: tuple[str, ...], base: str = "") -> list[str]:
    """PyTorch's name of a leaf, then the others that checkpoints use: LayerNorm's old names, the encoder on its own."""
    leaves = [_LEAVES.get(path[-1], path[-1])]
    if "".join(path[-2:-1]).endswith("LayerNorm") and path[-1] in _OLD_LEAVES:
        leaves.append(_OLD_LEAVES[path[-1]])
    stems = [path[:-1], path[1:-1]] if path[0] == base else [path[:-1]]
    if path[-2:] == ("shared", "embedding"):  # BART's table has three names, and a file may keep any one of them
        stems += [(*stem[:-1], stack, "embed_tokens") for stem in stems for stack in ("encoder", "decoder")]
    return [".".join((*stem, leaf)) for stem in stems for leaf in leaves]


def _read_safetensors(file: Path) -> dict[str, np.ndarray]:
    files = [file] if file.name == SAFETENSORS else [file.parent / name for name in shard_files(file)]
    tensors: dict[str, np.ndarray] = {}
    for shard in files:
        try:
            tensors.update(safetensors.numpy.load_file(shard))
        except (safetensors.SafetensorError, KeyError) as err:
            raise ValueError(f"{shard} is not a whole safetensors file: {_first_line(err)}; fetch it again.") from err
    return tensors


def _read_msgpack(file: Path) -> dict[str, np.ndarray]:
    try:
        from flax.serialization import msgpack_restore
    except ImportError as err:
        raise ImportError(f"{file} needs Flax to be read: pip install flax") from err
    try:
        tree = msgpack_restore(file.read_bytes())
    except Exception as err:  # msgpack raises many kinds
        raise ValueError(f"{file} is not a whole msgpack file: {_first_line(err)}; fetch it again.") from err
    if not isinstance(tree, dict):
        raise ValueError(f"{file} holds a {type(tree).__name__}; expected a tree of parameters.")
    if not all(isinstance(name, str) for path, _ in _flatten(tree) for name in path):
        raise ValueError(f"{file} has names that are no text; expected a tree of parameters.")
    return to_tensors(tree)


def _read_pickle(file: Path) -> dict[str, np.ndarray]:
    """A pickle can run any code: only torch's `weights_only` reader opens it."""
    try:
        import torch
    except ImportError as err:
        raise ImportError(
            f"{file} is a pickle, which needs PyTorch to be read: pip install torch, or fetch a checkpoint with "
            f"{SAFETENSORS}."
        ) from err
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        return {name: _to_numpy(tensor) for name, tensor in state.items()}
    except Exception as err:  # torch raises many kinds
        raise ValueError(f"{file} was refused by torch.load(weights_only=True): {_first_line(err)}") from err


def _to_numpy(tensor: Any) -> np.ndarray:
    """NumPy has no bfloat16 that torch knows; float32 holds it exactly."""
    return (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).detach().numpy()


_READERS = {
    SAFETENSORS: _read_safetensors,
    SAFETENSORS_INDEX: _read_safetensors,
    MSGPACK: _read_msgpack,
    PICKLE: _read_pickle,
}


def _flatten(tree: Mapping[Any, Any], path: tuple[Any, ...] = ()) -> Iterable[tuple[tuple[str, ...], Any]]:
    for name, node in tree.items():
        if isinstance(node, Mapping):
            yield from _flatten(node, (*path, name))
        else:
            yield (*path, name), node


def _unflatten(leaves: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = leaf
    return tree
