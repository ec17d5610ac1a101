"""Text classification in JAX as pure functions: tokenize → forward → postprocess.

Importing this sets nothing and imports neither torch nor transformers. Names are looked up when they are asked for.
"""

from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flaxsent.base import FlaxsentError as FlaxsentError
    from flaxsent.base import Prediction as Prediction
    from flaxsent.base import Tokens as Tokens
    from flaxsent.checkpoint.exported import export as export
    from flaxsent.checkpoint.folder import load as load
    from flaxsent.checkpoint.folder import save as save
    from flaxsent.classifier import Classifier as Classifier
    from flaxsent.classifier import forward as forward
    from flaxsent.classifier import tokenize as tokenize
    from flaxsent.engine import Engine as Engine
    from flaxsent.engine import classify as classify
    from flaxsent.postprocessing import postprocess as postprocess
    from flaxsent.training.trainer import fit as fit

__version__ = version("flaxsent")

_MODULES = {
    "Classifier": "classifier",
    "Engine": "engine",
    "FlaxsentError": "base",
    "Prediction": "base",
    "Tokens": "base",
    "classify": "engine",
    "export": "checkpoint.exported",
    "fit": "training.trainer",
    "forward": "classifier",
    "load": "checkpoint.folder",
    "postprocess": "postprocessing",
    "save": "checkpoint.folder",
    "tokenize": "classifier",
}
"""Where the names of the table of contents stand."""


def __getattr__(name: str) -> Any:
    """A name of the table, or a module."""
    if name in _MODULES:
        return getattr(import_module(f"flaxsent.{_MODULES[name]}"), name)
    module = f"flaxsent.{name}"
    try:
        if not name.startswith("_"):
            return import_module(module)
    except ModuleNotFoundError as err:
        if err.name != module:
            raise
    raise AttributeError(f"module 'flaxsent' has no attribute {name!r}")


def __dir__() -> list[str]:
    """What can be had here: without the extra `train` asking for `fit` is an error that names it."""
    lacking = {"fit"} if find_spec("optax") is None else set()
    return sorted({*globals(), *_MODULES} - lacking)
