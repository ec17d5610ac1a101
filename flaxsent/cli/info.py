"""`flaxsent info`: what a checkpoint is and what it runs on."""

import argparse
import importlib.metadata
import itertools
from typing import Any

import jax

import flaxsent
from flaxsent.checkpoint.folder import load
from flaxsent.cli.options import printable


def add(commands: Any) -> None:
    command = commands.add_parser("info", help="tell what a checkpoint is and what it runs on")
    command.add_argument("model", nargs="?", metavar="MODEL", help="Hub id or folder; the embedded model by default")
    command.set_defaults(run=run, keeps_compiled=True)


def run(options: argparse.Namespace) -> None:
    import jax.numpy as jnp

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
        "backend": classifier.backend,
        "devices": ", ".join(str(device) for device in jax.devices()),
        "versions": ", ".join([f"flaxsent {flaxsent.__version__}", *itertools.chain(*map(_version, packages))]),
    }
    for name, fact in facts.items():
        print(f"{name:<13} {fact}")


def _version(package: str) -> list[str]:
    try:
        return [f"{package} {importlib.metadata.version(package)}"]
    except importlib.metadata.PackageNotFoundError:
        return []
