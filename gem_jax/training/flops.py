"""FLOPs of a traced function, counted from its jaxpr: no compilation, no device, any size of model.

Conventions as in XLA's cost analysis: a matrix product of [M, K] by [K, N] is 2 M N K, an elementwise operation 1 per output
element, a reduction 1 per input element; transcendental functions are not counted.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core

_ELEMENTWISE = {
    "add", "sub", "mul", "div", "max", "min", "neg", "abs", "sign", "floor", "ceil", "round", "select_n", "clamp", "and", "or",
    "not", "xor", "eq", "ne", "lt", "le", "gt", "ge", "add_any", "square", "rem", "integer_pow", "is_finite",
}  # fmt: skip
_REDUCTIONS = {
    "reduce_sum",
    "reduce_max",
    "reduce_min",
    "reduce_prod",
    "reduce_and",
    "reduce_or",
    "argmax",
    "argmin",
    "cumsum",
}


def count(function: Callable, *args: Any) -> dict[str, float]:
    """FLOPs of `function(*args)`: {"matmul": products only, "total": everything}.

    `args` may be `jax.ShapeDtypeStruct`s. A scan's body counts as often as it runs; of a cond's branches the largest counts.
    """
    jaxpr = jax.make_jaxpr(function)(*args)
    matmul, other = _count(jaxpr.jaxpr)
    return {"matmul": matmul, "total": matmul + other}


def _count(jaxpr: Any) -> tuple[float, float]:
    matmul = other = 0.0
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if name == "dot_general":
            matmul += _dot_flops(eqn)
        elif name in _ELEMENTWISE:
            other += sum(math.prod(v.aval.shape) for v in eqn.outvars)
        elif name in _REDUCTIONS:
            other += math.prod(eqn.invars[0].aval.shape)
        else:
            inner = [_count(j) for j in _inner_jaxprs(eqn)]
            if name == "cond":
                inner = [max(inner)]
            times = eqn.params["length"] if name == "scan" else 1
            matmul += times * sum(m for m, _ in inner)
            other += times * sum(o for _, o in inner)
    return matmul, other


def _dot_flops(eqn: Any) -> float:
    (contract, _), _ = eqn.params["dimension_numbers"]
    lhs = eqn.invars[0].aval.shape
    return 2.0 * math.prod(eqn.outvars[0].aval.shape) * math.prod(lhs[d] for d in contract)


def _inner_jaxprs(eqn: Any) -> list[Any]:
    """The jaxprs an equation runs: of jit, scan, cond, custom derivatives (the primal only), remat."""
    if "call_jaxpr" in eqn.params:
        return [_open(eqn.params["call_jaxpr"])]
    if "jaxpr" in eqn.params:
        return [_open(eqn.params["jaxpr"])]
    if "branches" in eqn.params:
        return [_open(j) for j in eqn.params["branches"]]
    return []


def _open(jaxpr: Any) -> Any:
    return jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr
