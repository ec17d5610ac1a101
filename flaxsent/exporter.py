"""A classifier → a folder to carry away: its function as StableHLO, its parameters, its tokenizer, and a manifest.

`exported.py` reads the folder, and says what may be in it.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jaxtyping import Array, Float

from flaxsent.classifier import Classifier
from flaxsent.config import to_json
from flaxsent.exported import FORMAT, MANIFEST, PARAMS, PLATFORMS, PREDICT, PREDICT_PACKED, name_of, sha256
from flaxsent.packing import SEGMENT_TOKENS
from flaxsent.types import Params, Tokens


def export(
    classifier: Classifier, folder: str | os.PathLike, *, platforms: Sequence[str] = ("cpu", "cuda", "tpu")
) -> None:
    """Writes a folder that `load_exported` opens without the encoders, and that other readers of StableHLO can use.

    The function takes `(params, tokens)`, nested dicts of arrays, for any number of texts of any length; with the
    native backend there is one for packed rows besides. The folder appears when it is complete.

    Args:
        classifier: computes in the dtype and at the precision with which it was loaded.
        folder: new, or empty.
        platforms: what it will run on: some of cpu, cuda, rocm, tpu; none of them need be here.

    Raises:
        FileExistsError: there is something already.
        ValueError: an unknown platform, or a function that depends on the length, as the flax backend's BigBird.
        OSError: the folder cannot be written.
    """
    target, unknown = Path(folder), [platform for platform in platforms if platform not in PLATFORMS]
    if isinstance(platforms, str) or unknown or not platforms or len(set(platforms)) < len(platforms):
        raise ValueError(f"platforms={platforms!r}: expected different ones of {', '.join(PLATFORMS)}.")
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise FileExistsError(f"{target} is there already; choose another folder, or delete it.")
    functions = _functions(classifier, platforms)
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.exporting-") as scratch:
        unfinished = Path(scratch, "folder")
        unfinished.mkdir()
        for name, function in functions.items():
            # To first order, so that gradients flow through it; those of packed rows nobody asks for.
            (unfinished / name).write_bytes(function.serialize(vjp_order=1 if name == PREDICT else 0))
        for name, content in classifier.tokenizer.files.items():
            (unfinished / name).write_bytes(content)
        leaves = jax.tree_util.tree_leaves_with_path(classifier.params)
        tensors = {name_of(path): np.ascontiguousarray(leaf) for path, leaf in leaves}
        safetensors.numpy.save_file(tensors, unfinished / PARAMS)
        (unfinished / PARAMS).chmod(0o644)  # it is made for its owner alone
        convention = functions[PREDICT].calling_convention_version
        (unfinished / MANIFEST).write_text(_manifest(classifier, platforms, convention, unfinished))
        if target.is_dir():
            target.rmdir()  # which fails if something has come into it meanwhile
        unfinished.rename(target)


def _functions(classifier: Classifier, platforms: Sequence[str]) -> dict[str, jax.export.Exported]:
    """By their files."""
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), classifier.params)

    def lowered(function: Callable[..., Array], dims: str, *constraints: str) -> jax.export.Exported:
        ids = jax.ShapeDtypeStruct(jax.export.symbolic_shape(dims, constraints=constraints), jnp.int32)
        return jax.export.export(jax.jit(function), platforms=platforms)(params, dict.fromkeys(Tokens._fields, ids))

    def predict(params: Params, tokens: Mapping[str, Array]) -> Float[Array, "B C"]:
        return classifier.postprocess(classifier.forward(params, Tokens(**tokens)))

    def predict_packed(params: Params, tokens: Mapping[str, Array]) -> Float[Array, "R S C"]:
        num_segments = -(-tokens["input_ids"].shape[-1] // SEGMENT_TOKENS)
        return classifier.predict_packed(params, Tokens(**tokens), num_segments)

    try:
        functions = {PREDICT: lowered(predict, "B, L", f"L <= {classifier.config.max_length}")}
    except jax.errors.InconclusiveDimensionOperation as err:
        raise ValueError(
            f"the {classifier.backend} backend's {classifier.config.family} depends on the length of rows, of which an "
            f"export takes any; load it with backend='native' if there is one: {str(err).splitlines()[0]}"
        ) from err
    return functions | ({PREDICT_PACKED: lowered(predict_packed, "R, T")} if classifier.packs else {})


def _manifest(classifier: Classifier, platforms: Sequence[str], convention: int, folder: Path) -> str:
    config, dtype = classifier.config, jax.tree.leaves(classifier.params)[0].dtype.name
    files = sorted(file for file in folder.iterdir())
    manifest = {
        "format": FORMAT,
        "labels": config.labels,
        "problem_type": config.problem_type,
        "platforms": list(platforms),
        "calling_convention": convention,
        "versions": {package: version(package) for package in ("flaxsent", "jax", "jaxlib", "numpy", "tokenizers")},
        "files": {file.name: {"bytes": file.stat().st_size, "sha256": sha256(file)} for file in files},
        "config": json.loads(to_json(config, dtype=dtype)),
    }
    return json.dumps(manifest, indent=1) + "\n"
