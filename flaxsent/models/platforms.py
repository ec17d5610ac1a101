"""Functions that are lowered for the platform they are compiled for, whichever machine compiles them.

`jax.lax.platform_dependent` traces what it does not lower, and a gradient of it keeps the residuals of all platforms. A
primitive does neither.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, mlir

Implementation = Callable[..., jax.Array]

_SMALL = frozenset(("TPU v2", "TPU v3", "TPU v4"))


def _device_kind(axes: Any) -> str:
    """What it is compiled for, by the context of a lowering; "" where no device is named."""
    mesh = getattr(axes, "mesh", None)
    devices = getattr(axes, "device_assignment", None) or ()
    if isinstance(mesh, jax.sharding.Mesh):
        devices = mesh.devices.flat
    abstract = getattr(mesh, "abstract_device", None)
    return next((device.device_kind for device in (*devices, *([abstract] if abstract else ()))), "")


def primitive(
    name: str,
    by_xla: Implementation,
    *,
    result_of: Callable[..., Any] = lambda first, *_, **__: first,
    on_tpu: Implementation | None = None,
    on_gpu: Implementation | None = None,
    on_cpu: Implementation | None = None,
    is_large: bool = False,
) -> Primitive:
    """A function of arrays and static keywords; `batching` is the caller's.

    `result_of` gives shape and dtype of the result from those of the operands; by default they are the first operand's.
    A TPU computes it by `on_tpu` and NVIDIA's GPUs by `on_gpu`, but for gradients, which are those of `by_xla`, and for
    programs that XLA divides among devices by itself, which it cannot do with a kernel; `jax.shard_map` can. TPUs up to
    the v4 have 16 MiB on the chip and get no kernel that `is_large`.
    """
    bound = Primitive(name)

    def differentiate(operands: Any, tangents: Any, **static: Any) -> Any:
        at = [index for index, operand in enumerate(operands) if jnp.issubdtype(operand.dtype, jnp.floating)]

        def of_floats(*floats: Any) -> Any:
            given = dict(zip(at, floats, strict=True))
            return by_xla(*[given.get(index, operand) for index, operand in enumerate(operands)], **static)

        moving = tuple(ad.instantiate_zeros(tangents[index]) for index in at)
        return jax.jvp(of_floats, tuple(operands[index] for index in at), moving)

    xla_rule = mlir.lower_fun(by_xla, multiple_results=False)

    def rule_of(kernel: Implementation) -> Callable[..., Any]:
        kernel_rule = mlir.lower_fun(kernel, multiple_results=False)

        def rule(context: mlir.LoweringRuleContext, *operands: Any, **static: Any) -> Any:
            axes = context.module_context.axis_context
            is_divided_by_xla = not hasattr(axes, "manual_axes") and (getattr(axes, "num_devices", 1) or 1) > 1
            has_room = not is_large or _device_kind(axes) not in _SMALL
            return (kernel_rule if has_room and not is_divided_by_xla else xla_rule)(context, *operands, **static)

        return rule

    bound.def_impl(by_xla)
    bound.def_abstract_eval(result_of)
    ad.primitive_jvps[bound] = differentiate
    mlir.register_lowering(bound, xla_rule)
    for platform, kernel in (("tpu", on_tpu), ("cuda", on_gpu)):
        if kernel is not None:
            mlir.register_lowering(bound, rule_of(kernel), platform=platform)
    if on_cpu is not None:
        mlir.register_lowering(bound, mlir.lower_fun(on_cpu, multiple_results=False), platform="cpu")
    return bound
