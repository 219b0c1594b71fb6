"""Inputs of the fused rows' tests, and their truth: float64 formulas written out, differentiated by jax."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import fused_rows

EPS = 1e-5


def rows(dtype: str, num_rows: int, width: int, count: int):
    """`count` arrays of rows, of which about a third are not real and hold NaN; and which are real."""
    rng = np.random.default_rng(num_rows + width)
    real = rng.uniform(size=num_rows) < 0.7
    arrays = [rng.normal(size=(num_rows, width)).astype(dtype) + np.asarray(0.5, dtype) for _ in range(count)]
    for x in arrays:
        x[~real] = np.nan
    return [jnp.asarray(x) for x in arrays], jnp.asarray(real)


def layer_norm(x):
    """LN of float64 rows."""
    mean, variance = x.mean(axis=-1, keepdims=True), x.var(axis=-1, keepdims=True)
    return (x - mean) / jnp.sqrt(variance + EPS)


def sum_norms(a, b):
    """RMS(a + b) and its LN, in float64."""
    y = (a + b) / jnp.sqrt(((a + b) ** 2).mean(axis=-1, keepdims=True) + EPS)
    return y, layer_norm(y)


def mixed_keys(x, w1, w2):
    """Group by group, token by token, in float64."""
    both = []
    for w in (w1, w2):
        groups = [sum(w[g, i].T[None, :, :, None] * x[:, i, None] for i in range(x.shape[1])) for g in range(len(w))]
        both.append(jnp.concatenate(groups))
    return tuple(both)


def truth(function, arrays, grads):
    """Values and gradients in float64, as flat lists."""
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(x, np.float64)) for x in arrays]
        out, pull = jax.vjp(function, *wide)
        given = [jnp.asarray(np.asarray(g, np.float64)) for g in grads]
        results = jax.tree.leaves(out) + list(pull(given[0] if len(given) == 1 else tuple(given)))
        return [np.asarray(x) for x in results]


def close(values, expected, dtype: str, terms: int) -> None:
    """Each array within a few roundings of the sums' size: inputs and results round once, sums of `terms` keep float32."""
    bound = 8 * float(jnp.finfo(dtype).eps) + terms * float(jnp.finfo("float32").eps)
    for value, true in zip(values, expected, strict=True):
        value = np.asarray(value, np.float64)
        assert value.shape == true.shape and np.all(np.isfinite(value))
        assert np.max(np.abs(value - true), initial=0) <= bound * np.max(np.abs(true), initial=1), (bound, dtype)


def check_rows(dtype: str, num_rows: int, width: int, implementation: str) -> None:
    """Both norms and their gradients."""
    for name, count in (("row_norm", 1), ("sum_norms", 2)):
        arrays, real = rows(dtype, num_rows, width, 2 * count)
        inputs, grads = arrays[:count], arrays[count:]
        operation = getattr(fused_rows, name)
        out, pull = jax.vjp(
            lambda *x, f=operation, real=real: f(*x, real, eps=EPS, implementation=implementation), *inputs
        )
        values = jax.tree.leaves(out) + list(pull(grads[0] if count == 1 else tuple(grads)))
        keep = np.asarray(real)
        for value in values:
            assert np.all(np.asarray(value)[~keep] == 0), name
        kept = [np.asarray(x)[keep] for x in (*inputs, *grads)]
        expected = truth(layer_norm if count == 1 else sum_norms, kept[:count], kept[count:])
        close([np.asarray(x)[keep] for x in values], expected, dtype, width)


def check_mixed_keys(dtype: str, sizes: tuple[int, int, int, int, int, int], implementation: str) -> None:
    """`sizes`: B, m, H, K, G, J."""
    batch, tokens, heads, size, groups, keys = sizes
    rng = np.random.default_rng(batch)
    x, w1, w2 = (
        jnp.asarray(rng.normal(size=s).astype(dtype))
        for s in ((batch, tokens, heads, size), *[(groups, tokens, heads, keys)] * 2)
    )
    grads = [jnp.asarray(rng.normal(size=(groups * batch, keys, heads, size)).astype(dtype)) for _ in range(2)]
    out, pull = jax.vjp(lambda *x: fused_rows.mixed_keys(*x, implementation=implementation), x, w1, w2)
    expected = truth(mixed_keys, (x, w1, w2), grads)
    close([*out, *pull(tuple(grads))], expected, dtype, batch * size)
