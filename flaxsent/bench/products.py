"""How many operations the matrix products of a function take, by its jaxpr: whatever the family, and backwards too."""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flaxsent.models.attention import attend_p
from flaxsent.models.feed_forward import feed_forward_p
from flaxsent.models.layers import dense_p
from flaxsent.models.post_norm import layers_p


class Products(NamedTuple):
    """Multiplications and additions of all matrix products."""

    operations: int
    passes: int
    """The same, each as often as a matrix unit for bfloat16 makes it: at the precision that was asked for, a float32
    product takes six passes ("highest"), three ("high") or one."""

    def times(self, number: int) -> "Products":
        return Products(self.operations * number, self.passes * number)


def count(function: Callable[..., Any], *arguments: Any) -> Products | None:
    """Of the function at arguments of these shapes; None where it calls a function that jax.export has hidden."""
    return _of(jax.make_jaxpr(function)(*arguments).jaxpr)


def _of(jaxpr: Any) -> Products | None:
    total = Products(0, 0)
    for equation in jaxpr.eqns:
        name, found = equation.primitive.name, Products(0, 0)
        if name == "call_exported":
            return None
        if name == "dot_general":
            found = _of_product(equation)
        elif name == "cond":  # of the branches, the one that takes most
            branches = [_of(branch) for branch in _inner(equation.params)]
            if None in branches:
                return None
            found = max(branch for branch in branches if branch is not None)
        else:
            inner_jaxprs = [*_inner(equation.params)]
            if equation.primitive in (
                attend_p,
                dense_p,
                feed_forward_p,
                layers_p,
            ):  # whatever computes it; of attention, all scores count
                by_xla = functools.partial(equation.primitive.impl, **equation.params)
                inner_jaxprs = [jax.make_jaxpr(by_xla)(*(operand.aval for operand in equation.invars)).jaxpr]
            for inner in inner_jaxprs:
                part = _of(inner)
                if part is None:
                    return None
                found = Products(*map(sum, zip(found, part, strict=True)))
            found = found.times(_runs(name, equation.params))
        total = Products(*map(sum, zip(total, found, strict=True)))
    return total


def _of_product(equation: Any) -> Products:
    left, right = (operand.aval for operand in equation.invars)
    (contracted, _), _ = equation.params["dimension_numbers"]
    operations = 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left.shape[axis] for axis in contracted)
    precision = str(equation.params["precision"]).upper()
    is_long = jnp.float32 in (left.dtype, right.dtype)
    passes = 6 if "HIGHEST" in precision else 3 if "HIGH" in precision else 1
    return Products(operations, operations * (passes if is_long else 1))


def _runs(name: str, params: dict[str, Any]) -> int:
    """How often an equation runs what it holds; a loop whose end is data counts once."""
    if name == "scan":
        return params["length"]
    if name == "pallas_call":
        return math.prod(size for size in params["grid_mapping"].grid if isinstance(size, int))
    return 1


def _inner(params: dict[str, Any]) -> Iterator[Any]:
    """The jaxprs that an equation holds."""
    for value in params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            jaxpr = getattr(one, "jaxpr", one)
            if hasattr(jaxpr, "eqns"):
                yield jaxpr
