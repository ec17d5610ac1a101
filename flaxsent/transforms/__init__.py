"""Functions of the functions: each takes a forward (or params) and gives a forward (or params), in a file of its own.

Their `Function`s are those of the engine: `function(params, tokens, num_segments)` of packed rows `[R, T]` gives a
pytree of arrays with one entry for each text, `[R, S, ...]`, or for each token, `[R, T, ...]`. So they compose with one
another, with `jit`, `vmap` and `grad`, and with `Engine(classifier, function=…)`.
"""

from flaxsent.transforms.by_segment import by_segment as by_segment
from flaxsent.transforms.embedded import Embedded as Embedded
from flaxsent.transforms.embedded import with_embeddings as with_embeddings
from flaxsent.transforms.ensemble import Uncertainty as Uncertainty
from flaxsent.transforms.ensemble import columns as columns
from flaxsent.transforms.ensemble import disagreement as disagreement
from flaxsent.transforms.ensemble import ensemble as ensemble
from flaxsent.transforms.ensemble import entropy as entropy
from flaxsent.transforms.ensemble import join as join
from flaxsent.transforms.ensemble import mean as mean
from flaxsent.transforms.ensemble import members_of as members_of
from flaxsent.transforms.ensemble import monte_carlo_dropout as monte_carlo_dropout
from flaxsent.transforms.ensemble import mutual_information as mutual_information
from flaxsent.transforms.ensemble import soup as soup
from flaxsent.transforms.ensemble import spread as spread
from flaxsent.transforms.ensemble import stack as stack
from flaxsent.transforms.ensemble import uncertainty as uncertainty
from flaxsent.transforms.explain import Attributions as Attributions
from flaxsent.transforms.explain import gradient_x_input as gradient_x_input
from flaxsent.transforms.explain import integrated_gradients as integrated_gradients
from flaxsent.transforms.explain import occlusion as occlusion
from flaxsent.transforms.lora import adapt as adapt
from flaxsent.transforms.per_example import el2n as el2n
from flaxsent.transforms.per_example import errors as errors
from flaxsent.transforms.per_example import gradients as gradients
from flaxsent.transforms.per_example import grand as grand
from flaxsent.transforms.per_example import influence as influence
from flaxsent.transforms.per_example import last_inputs as last_inputs
from flaxsent.transforms.per_example import tangent_kernel as tangent_kernel
from flaxsent.transforms.quantize import quantize as quantize
from flaxsent.transforms.windows import pool as pool
from flaxsent.transforms.windows import windows as windows
from flaxsent.transforms.zero_shot import zero_shot as zero_shot
