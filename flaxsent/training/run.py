"""What `flaxsent train` does: files in, a checkpoint folder out, with nothing lost when it is killed.

What cannot work is refused before a model is loaded. On as many devices as before, a run that goes on comes to the same
parameters, bit for bit; on others, sums over the rows have another order, and differ in their last bits.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from flaxsent.base import FlaxsentError, ProblemType, Text
from flaxsent.checkpoint import hub
from flaxsent.checkpoint.folder import load, save
from flaxsent.checkpoint.weights import WEIGHT_FILES, shard_files, SAFETENSORS_INDEX
from flaxsent.classifier import Classifier
from flaxsent.data import labels, records
from flaxsent.data.labels import Annotations, Examples
from flaxsent.engine import Engine
from flaxsent.files import require, sha256
from flaxsent.models.config import ModelConfig, read_config
from flaxsent.packing import StepShape
from flaxsent.training import distributed, work
from flaxsent.training.checkpoints import Checkpoints
from flaxsent.training.log import Log, draw_curves, read_log
from flaxsent.training.options import RunOptions, TrainOptions
from flaxsent.training.trainer import Evaluation, Snapshot, Trainer

logger = logging.getLogger(__name__)


class Data(NamedTuple):
    """What the files hold, and for what kind of classifier."""

    train: Examples
    dev: Examples | None
    unlabelled: list[Text]
    labels: tuple[str, ...]
    problem_type: ProblemType
    draws_head: bool
    """Whether the checkpoint has no head for these labels."""
