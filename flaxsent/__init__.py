"""Text classification in JAX as pure functions: tokenize → forward → postprocess.

Importing this sets nothing and imports neither torch nor transformers.
"""

from importlib.metadata import version

from flaxsent.classifier import Classifier as Classifier
from flaxsent.classifier import classify as classify
from flaxsent.classifier import load as load
from flaxsent.classifier import save as save
from flaxsent.engine import Engine as Engine
from flaxsent.types import Prediction as Prediction
from flaxsent.types import Tokens as Tokens

__version__ = version("flaxsent")
