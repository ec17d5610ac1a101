"""Functions of the functions: each takes a forward (or params) and gives a forward (or params), in a file of its own.

Their `Function`s are those of the engine: `function(params, tokens, num_segments)` of packed rows `[R, T]` gives a
pytree of arrays with one entry for each text, `[R, S, ...]`, or for each token, `[R, T, ...]`. So they compose with one
another, with `jit`, `vmap` and `grad`, and with `Engine(classifier, function=…)`.
"""

from flaxsent.transforms.quantize import quantize as quantize
