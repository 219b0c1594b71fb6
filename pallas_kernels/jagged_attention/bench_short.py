"""Short histories: each backend beside the time that reading q, k, v (and the gradient of o) and writing the results once takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.common import timing
from pallas_kernels.jagged_attention import jagged_attention

COPY_BYTES_PER_MS = 4.2e9  # of an H200's device-to-device copy, read and written
IMPLEMENTATIONS = ("triton_short", "mosaic_gpu", "triton", "xla")


@dataclasses.dataclass(frozen=True)
class Short:
    """Causal self-attention over histories of geometric lengths, bfloat16.

    Attributes:
      batch, max_len, mean: histories, the longest, and the mean length before that limit.
      calls: of a program, on arrays of their own, as a step has several layers; they share the list of tiles. One call a
        program would measure the host.
    """

    batch: int
    max_len: int
    mean: int
    kind: str = "silu"
    heads: int = 4
    head_dim: int = 64
    calls: int = 6

    def layout(self) -> tuple[np.ndarray, np.ndarray]:
        """(offsets [B + 1], lengths [B])."""
        lengths = np.clip(np.random.default_rng(0).geometric(1 / self.mean, self.batch), 1, self.max_len)
        return np.concatenate([[0], np.cumsum(-(-lengths // 8) * 8)]).astype(np.int32), lengths.astype(np.int32)


SIZES = ((2048, 32, 12), (2048, 64, 27), (1024, 256, 110), (512, 1024, 400))
CASES = tuple(Short(*size, kind=kind) for size in SIZES for kind in ("silu", "softmax"))


def rows() -> Iterator[dict]:
    """Milliseconds a call of each case, pass and backend that runs here; "bwd" is what is left of both passes without the first."""
    for case in CASES:
        for implementation in IMPLEMENTATIONS:
            try:
                forward, both = (timing.milliseconds(*call) / case.calls for call in _calls(case, implementation))
            except NotImplementedError as error:
                print(f"skipped {case}, {implementation}: {error}", flush=True)
                continue
            for name, ms, arrays in (("fwd", forward, 4), ("bwd", both - forward, 7)):
                yield _row(case, implementation, name, ms, arrays)


def _row(case: Short, implementation: str, name: str, ms: float, arrays: int) -> dict:
    num_rows = int(case.layout()[0][-1])
    once = arrays * num_rows * case.heads * case.head_dim * 2 / COPY_BYTES_PER_MS
    described = dict(
        kind=case.kind, heads=case.heads, head_dim=case.head_dim, max_len=case.max_len, lengths="geometric"
    )
    timed = {"pass": name, "implementation": implementation, "ms": round(ms, 4), "bytes_once_ms": round(once, 4)}
    return dict(op="short_histories", **described, rows=num_rows) | timed


def _calls(case: Short, implementation: str) -> list[tuple]:
    """The forward passes of a program, and both passes: compiled functions with their arguments."""
    offsets, lengths = (jnp.asarray(x) for x in case.layout())
    shape = (case.calls, 4, int(offsets[-1]), case.heads, case.head_dim)
    data = [tuple(x) for x in jax.random.normal(jax.random.key(0), shape, jnp.bfloat16)]

    def attend(q, k, v, offsets, lengths):
        options = dict(max_len=case.max_len, kind=case.kind, implementation=implementation)
        return jagged_attention(q, k, v, offsets, lengths, **options)

    def forward(data, offsets, lengths):
        return [attend(q, k, v, offsets, lengths) for q, k, v, _ in data]

    def both(data, offsets, lengths):
        results = []
        for q, k, v, do in data:
            out, pull = jax.vjp(lambda q, k, v: attend(q, k, v, offsets, lengths), q, k, v)
            results.append((out, *pull(do)))
        return results

    return [timing.warm(jax.jit(function), data, offsets, lengths) for function in (forward, both)]
