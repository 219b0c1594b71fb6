"""What the benchmark is measured against: cuDNN's causal softmax attention in bfloat16."""

from __future__ import annotations

import functools
import time

import jax
import jax.numpy as jnp

from pallas_kernels.common import timing


def cudnn_milliseconds(batch: int, heads: int, head_dim: int, max_len: int) -> dict[str, float]:
    """Of "fwd" and "bwd" on a full batch, through torch, the faster way, or else jax.nn; none where neither has the case."""
    shape = batch, max_len, heads, head_dim
    return _cudnn_torch(*shape) or _cudnn_jax(*shape)


def _cudnn_jax(batch, max_len, heads, head_dim):
    if head_dim > 128:  # jax.nn refuses these on Hopper's backward pass
        return {}
    keys = jax.random.split(jax.random.key(0), 4)
    shape = (batch, max_len, heads, head_dim)
    q, k, v, do = (jax.random.normal(key, shape, jnp.bfloat16) for key in keys)
    forward = functools.partial(jax.nn.dot_product_attention, is_causal=True, implementation="cudnn")
    pull = jax.jit(lambda *x: jax.vjp(forward, *x)[1])(q, k, v)
    return {
        "fwd": timing.milliseconds(jax.jit(forward), q, k, v),
        "bwd": timing.milliseconds(jax.jit(lambda pull, do: pull(do)), pull, do),
    }


def _cudnn_torch(batch, max_len, heads, head_dim):
    try:
        import torch
        from torch.nn.attention import SDPBackend, sdpa_kernel
    except ImportError:
        return {}
    attend = functools.partial(torch.nn.functional.scaled_dot_product_attention, is_causal=True)
    shape = (batch, heads, max_len, head_dim)
    options = dict(device="cuda", dtype=torch.bfloat16)
    q, k, v = (torch.randn(shape, **options, requires_grad=True) for _ in range(3))
    do = torch.randn(shape, **options)

    def median(function):
        def sample(calls):
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(calls):
                function()
            torch.cuda.synchronize()
            return (time.perf_counter() - start) / calls * 1e3

        return timing.median(sample)

    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        forward = median(lambda: attend(q, k, v))
        out = attend(q, k, v)
        backward = median(lambda: torch.autograd.grad(out, (q, k, v), do, retain_graph=True))
    return {"fwd": forward, "bwd": backward}
