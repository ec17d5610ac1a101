"""Text classification in JAX as pure functions: tokenize → forward → postprocess.

Importing this sets nothing and imports neither torch nor transformers. Names are looked up when they are asked for, so
that `load_exported` runs where the encoders cannot.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flaxsent.classifier import Classifier as Classifier
    from flaxsent.classifier import classify as classify
    from flaxsent.classifier import load as load
    from flaxsent.classifier import save as save
    from flaxsent.engine import Engine as Engine
    from flaxsent.exported import Exported as Exported
    from flaxsent.exported import load_exported as load_exported
    from flaxsent.exporter import export as export
    from flaxsent.train import fit as fit
    from flaxsent.types import Prediction as Prediction
    from flaxsent.types import Tokens as Tokens

__version__ = version("flaxsent")

_ROOM_OF = {
    "Classifier": "classifier",
    "Engine": "engine",
    "Exported": "exported",
    "Prediction": "types",
    "Tokens": "types",
    "classify": "classifier",
    "export": "exporter",
    "fit": "train",
    "load": "classifier",
    "load_exported": "exported",
    "save": "classifier",
}


def __getattr__(name: str) -> Any:
    """A name of the table, or a room."""
    if name in _ROOM_OF:
        return getattr(import_module(f"flaxsent.{_ROOM_OF[name]}"), name)
    room = f"flaxsent.{name}"
    try:
        if not name.startswith("_"):
            return import_module(room)
    except ModuleNotFoundError as err:
        if err.name != room:
            raise
    raise AttributeError(f"module 'flaxsent' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_ROOM_OF})
