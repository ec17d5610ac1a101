"""Text classification in JAX as pure functions: tokenize → forward → postprocess.

Importing this sets nothing and imports neither torch nor transformers.
"""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from flaxsent.classifier import Classifier as Classifier
from flaxsent.classifier import classify as classify
from flaxsent.classifier import load as load
from flaxsent.classifier import save as save
from flaxsent.engine import Engine as Engine
from flaxsent.types import Prediction as Prediction
from flaxsent.types import Tokens as Tokens

if TYPE_CHECKING:
    from flaxsent.train import fit as fit

__version__ = version("flaxsent")


def __getattr__(name: str) -> Any:
    """`fit` brings optax, an extra, when it is first asked for."""
    if name == "fit":
        from flaxsent.train import fit

        return fit
    raise AttributeError(f"module 'flaxsent' has no attribute {name!r}")
