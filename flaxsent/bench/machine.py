"""What the machine is and can do: its name, its fastest matrix product, and the memory that this process holds."""

import contextlib
import functools
import importlib.metadata
import os
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from flaxsent.models import modernbert
from flaxsent.models.config import ModelConfig
from flaxsent.placement import num_cores


def is_on_cpu() -> bool:
    """Whether JAX computes on the CPU."""
    return jax.default_backend() == "cpu"


def is_on_gpu() -> bool:
    """Whether JAX computes on a GPU."""
    return jax.default_backend() == "gpu"


def describe() -> str:
    """The processor and its cores, or the accelerator."""
    if not is_on_cpu():
        return jax.local_devices()[0].device_kind
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), name)
    return f"{name}, {num_cores()} cores"


def versions() -> dict[str, str]:
    """Those of the packages that are installed, out of all that are compared."""
    packages = (
        "flaxsent",
        "jax",
        "jaxlib",
        "flax",
        "transformers",
        "tokenizers",
        "torch",
        "captum",
        "onnxruntime",
        "openvino",
    )
    found = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def resident_memory() -> int:
    """Bytes of memory that this process holds now."""
    if Path("/proc/self/statm").exists():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    told = subprocess.run(["ps", "-o", "rss=", "-p", str(os.getpid())], capture_output=True, text=True, check=True)
    return int(told.stdout) * 1024


def seconds(call: Callable[[], object]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


_SIZES, _SIZES_ON_ACCELERATOR = (512, 1024, 2048), (2048, 4096, 8192)


def matrix_peak(dtype: str) -> float:
    """Operations a second of the fastest of a few square products, with results in float32 or rounded to the dtype."""
    peak = 0.0
    for size in _SIZES if is_on_cpu() else _SIZES_ON_ACCELERATOR:
        x = jax.random.normal(jax.random.key(0), (size, size)).astype(dtype)
        for result in {"float32", dtype}:
            product = jax.jit(functools.partial(jnp.matmul, precision="highest", preferred_element_type=result))
            product(x, x).block_until_ready()
            best = min(seconds(lambda x=x, product=product: product(x, x).block_until_ready()) for _ in range(8))
            peak = max(peak, 2 * size**3 / best)
    return peak


_PLAIN_FAMILIES = {
    "albert",
    "bert",
    "camembert",
    "distilbert",
    "electra",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
}
"""Six matrices a layer: queries, keys, values, output, and two of the feed-forward. ModernBERT has a third one of the
feed-forward, and windows in most layers."""


def operations(lengths: Sequence[int], config: ModelConfig) -> float | None:
    """Multiplications and additions in the layers' matrix products that the logits of texts of these lengths need.

    Of the last layer these are the keys and values of all tokens, and the rest for the classified token only. None for
    a family with other matrices.
    """
    lengths_B, size = np.asarray(lengths, np.float64), config.hidden_size
    is_gated = config.family == "modernbert"
    if not is_gated and config.family not in _PLAIN_FAMILIES:
        return None
    windows = modernbert.windows(config) if is_gated else [None] * config.num_layers
    total_B = np.zeros_like(lengths_B)
    for index, window in enumerate(windows):
        keys_values = lengths_B * 2 * size**2
        seen_B = lengths_B if window is None else np.minimum(lengths_B, window)
        a_token = 2 * size**2 + (3 if is_gated else 2) * size * config.intermediate_size + seen_B * 2 * size
        total_B += keys_values + (1 if index == config.num_layers - 1 else lengths_B) * a_token
    return float(2 * total_B.sum())
