"""`flaxsent info`: what a checkpoint is and what it runs on."""

import argparse
import importlib.metadata
import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flaxsent
from flaxsent.cli.options import printable

if TYPE_CHECKING:
    from flaxsent.classifier import Classifier


def add(commands: Any) -> None:
    command = commands.add_parser("info")
    command.add_argument("model", nargs="?", metavar="MODEL", help="Hub id or folder; the embedded model by default")
    command.set_defaults(run=run, keeps_compiled=True)


def run(options: argparse.Namespace) -> None:
    import jax
    import jax.numpy as jnp

    from flaxsent.checkpoint.folder import load
    from flaxsent.checkpoint.manifest import MANIFEST

    classifier = load(options.model)
    config = classifier.config
    leaves = jax.tree_util.tree_leaves_with_path(classifier.params)
    broken = [
        jax.tree_util.keystr(path, simple=True, separator=".") for path, leaf in leaves if not jnp.isfinite(leaf).all()
    ]
    packages = ("jax", "jaxlib", "transformers", "tokenizers", "flax", "torch")
    facts = {
        "model": options.model or "embedded",
        "family": config.family,
        "parameters": f"{sum(leaf.size for _, leaf in leaves):,}",
        "sizes": f"{config.num_layers} layers, hidden {config.hidden_size}, {config.num_heads} heads, "
        f"feed-forward {config.intermediate_size}, vocabulary {config.vocab_size:,}",
        "labels": printable(", ".join(config.labels)),
        "problem type": config.problem_type,
        "max length": f"{classifier.tokenizer.max_length} tokens",
        "weights": f"NaN or infinite values in {', '.join(broken)}" if broken else "all finite",
        **_backends(classifier),
        **(_promises(Path(options.model, MANIFEST)) if classifier.backend == "exported" else {}),
        "devices": ", ".join(str(device) for device in jax.devices()),
        "versions": ", ".join([f"flaxsent {flaxsent.__version__}", *itertools.chain(*map(_version, packages))]),
    }
    for name, fact in facts.items():
        print(f"{name:<13} {fact}")


def _backends(classifier: "Classifier") -> dict[str, str]:
    """What computes rows of one text, and what rows of several."""
    is_flax, is_exported = classifier.backend == "flax", classifier.backend == "exported"
    packed = ("exported" if is_exported else "native") if classifier.packs else "none: this family takes one text a row"
    return {
        "forward": "flax (FlaxAutoModelForSequenceClassification)" if is_flax else classifier.backend,
        "packed rows": packed,
    }


def _promises(manifest: Path) -> dict[str, str]:
    """Of an exported folder that has been read, and so checked."""
    facts = json.loads(manifest.read_bytes())
    return {
        "platforms": ", ".join(facts["platforms"]),
        "expires": f"{facts['readable_until']}; until then, JAX promises to read it",
    }


def _version(package: str) -> list[str]:
    try:
        return [f"{package} {importlib.metadata.version(package)}"]
    except importlib.metadata.PackageNotFoundError:
        return []
