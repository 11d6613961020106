"""Floating-point operations of a traced program, loops multiplied by their trip counts.

The compiler's own count takes a loop's body once, so that a model whose layers are a scan counts as one layer. Here the
jaxpr is walked: 2 m n k for a product, everything elementwise left out. Inside ``shard_map`` shapes are those of one
device and count for all of them, so the result is the work of all devices together, repeated work included.
"""

from __future__ import annotations

import math
from typing import Any

from jax.extend import core


def flops(jaxpr: Any) -> int:
    """FLOPs of matrix products in a jaxpr or closed jaxpr; what is computed again in a backward pass counts again.

    A ``while`` loop without a known bound counts once, the branch of a conditional with the most work counts. A Pallas
    kernel counts what its cost estimate says.
    """
    inner = getattr(jaxpr, "jaxpr", jaxpr)
    return sum(_flops_of(equation) for equation in inner.eqns)


def _flops_of(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contract, _), (batch, _) = params["dimension_numbers"]
        left, right = (variable.aval.shape for variable in equation.invars)
        shared = math.prod(left[axis] for axis in contract)
        both = math.prod(left[axis] for axis in batch)
        return 2 * math.prod(left) * math.prod(right) // max(1, shared * both)
    if name == "pallas_call":
        estimate = params.get("cost_estimate")
        return int(estimate.flops) if estimate is not None else 0
    if name == "scan":
        return params["length"] * flops(params["jaxpr"])
    if name == "cond":
        return max(flops(branch) for branch in params["branches"])
    times = 1
    if name == "shard_map":
        mesh = params["mesh"]
        sizes = dict(zip(mesh.axis_names, mesh.axis_sizes))
        times = math.prod(sizes[axis] for axis in params.get("manual_axes", mesh.axis_names))
    return times * sum(flops(inner) for value in params.values() for inner in _jaxprs(value))


def _jaxprs(value: Any) -> list[Any]:
    if isinstance(value, (core.Jaxpr, core.ClosedJaxpr)):
        return [value]
    if isinstance(value, (tuple, list)):
        return [inner for item in value for inner in _jaxprs(item)]
    return []
