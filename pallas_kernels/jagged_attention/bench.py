"""Benchmark cases and rows; run through `python -m pallas_kernels.bench jagged_attention`.

Bfloat16, a batch of 32 sequences unless `--shapes` says otherwise. A causal pair counts once (the square's half); forward is 2
matmuls, backward 5, whatever a kernel recomputes. How a call is timed: `pallas_kernels.common.timing`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.common import timing
from pallas_kernels.common.shapes import Sequences, Shapes
from pallas_kernels.jagged_attention import Mask, api, bench_peers, bench_short, bench_step, make_work_list

BATCH = 32
BACKWARD_FLOPS = 2.5  # of the forward pass's: 5 matmuls, 2 there


@dataclasses.dataclass(frozen=True)
class Case:
    """A measured shape; `keys` is GDPA's J, the keys of an example."""

    kind: Any  # of jagged_attention, or "gdpa"
    head_dim: int
    max_len: int
    lengths: str = "full"
    mask: Mask = Mask()
    implementation: str | None = "mosaic_gpu"  # None: the fastest that has the case
    passes: tuple[str, ...] = ("fwd", "bwd")
    deterministic: bool = False
    keys: int = 2048
    width: int = 512  # heads * head_dim
    batch: int = BATCH
    tokens: int = 0  # packed rows that "packed" lengths fill

    @property
    def heads(self) -> int:
        return self.width // self.head_dim

    def true_lengths(self) -> np.ndarray:
        if self.lengths == "full":
            return np.full(self.batch, self.max_len)
        if self.lengths == "quarter":  # 25 % fill
            return np.full(self.batch, self.max_len // 4)
        z = np.random.default_rng(0).normal(size=self.batch)
        if self.lengths == "packed":  # log-normal, as many as fill the rows
            return _filling(np.exp(0.8 * z), self.max_len, self.tokens)
        return np.clip(np.exp(0.8 * z) * 0.3 * self.max_len, self.max_len // 16, self.max_len).astype(int)

    def flops(self) -> float:
        """Of the forward pass."""
        return 4.0 * self.heads * self.head_dim * sum(self.pairs(float(n)) for n in self.true_lengths())

    def pairs(self, n: float) -> float:
        if self.kind == "gdpa":
            return n * self.keys
        half = 0.5 if self.mask.causal else 1.0
        if self.mask.block:
            return n * min(self.mask.block, n) * half
        if self.mask.window:
            w = min(self.mask.window, n)
            return w * w / 2 + (n - w) * w
        return n * n * half

    def mask_name(self) -> str:
        if self.kind == "gdpa":
            return "none"
        causal = "causal" if self.mask.causal else "full"
        extra = [f"{name}{value}" for name in ("window", "block") if (value := getattr(self.mask, name))]
        return "+".join([causal, *extra])


def _filling(weights: np.ndarray, max_len: int, tokens: int) -> np.ndarray:
    """Lengths in [1, max_len] in proportion to `weights` whose rows, in groups of 8, are at most `tokens` and close to it."""
    low, high = 0.0, max_len / weights.min()
    for _ in range(50):
        middle = (low + high) / 2
        rows = (-(-_lengths(weights, middle, max_len) // 8) * 8).sum()
        low, high = (middle, high) if rows <= tokens else (low, middle)
    return _lengths(weights, low, max_len)


def _lengths(weights, factor, max_len):
    return np.clip(weights * factor, 1, max_len).astype(int)


def cases_of(shapes: Shapes) -> tuple[Case, ...]:
    """SiLU and softmax attention over each source of a model, on the backend that a model gets."""
    width = shapes.heads * shapes.head_dim
    return tuple(
        _case_of(kind, shapes, source, width) for source in shapes.sources.values() for kind in ("silu", "softmax")
    )


def _case_of(kind: str, shapes: Shapes, source: Sequences, width: int) -> Case:
    return Case(
        kind,
        shapes.head_dim,
        source.max_len,
        "packed",
        implementation=None,
        width=width,
        batch=shapes.examples,
        tokens=source.tokens,
    )


SHAPES = (
    (128, 2048, "full"),
    (128, 4096, "full"),
    (128, 4096, "lognormal"),
    (64, 4096, "full"),
)
CASES = (
    *(Case(kind, *shape) for kind in ("silu", "softmax") for shape in SHAPES),
    Case("silu", 256, 4096, width=1024),
    Case("silu", 128, 4096, passes=("bwd",), deterministic=True),
    Case("silu", 128, 4096, mask=Mask(window=512)),
    Case("silu", 128, 4096, mask=Mask(block=64, causal=False)),
    Case("silu", 128, 4096, "quarter"),
    Case("gdpa", 128, 4096),
    Case("softmax", 256, 4096, width=1024),
    Case("silu", 128, 4096, implementation="triton"),
    Case("silu", 128, 2048, implementation="xla"),
)
STEP = bench_step.Step()


def rows(commit: str = "", shapes: Shapes | None = None) -> Iterator[dict]:
    """Measured rows, of a model's shapes or of the standard cases; cuDNN's softmax on padded batches stands beside the
    standard cases that it has."""
    machine = timing.machine(commit)
    cases = CASES if shapes is None else cases_of(shapes)
    work = [(case, name) for case in cases for name in case.passes]
    calls = timing.compiled_together(prepare, work, NotImplementedError)
    ceiling = timing.matmul_tflops()
    yield dict(op="matmul", kind="bf16 8192^3", **{"pass": "fwd"}, tflops=round(ceiling, 1), **machine)
    cudnn = functools.cache(bench_peers.cudnn_milliseconds)
    for (case, name), call in zip(work, calls, strict=True):
        if call is not None:
            peer = cudnn(BATCH, case.heads, case.head_dim, case.max_len) if _comparable(case) else {}
            yield _row(case, name, timing.milliseconds(*call), peer.get(name), ceiling) | machine
    if shapes is None:
        for row in (*_work_list_rows(), *_step_rows(), *bench_short.rows()):
            yield row | machine


def _comparable(case: Case) -> bool:
    return case.mask == Mask() and case.lengths == "full" and case.kind != "gdpa"


def _row(case: Case, name: str, ms: float, cudnn_ms: float | None, ceiling: float) -> dict:
    flops = {"fwd": 1.0, "bwd": BACKWARD_FLOPS}[name] * case.flops()
    tflops = flops / ms / 1e9
    return {
        "op": "jagged_attention",
        "kind": case.kind,
        "mask": case.mask_name(),
        "heads": case.heads,
        "head_dim": case.head_dim,
        "max_len": case.max_len,
        "lengths": case.lengths,
        "pass": name,
        "implementation": (case.implementation or "default") + " deterministic" * case.deterministic,
        "ms": round(ms, 4),
        "tflops": round(tflops, 1),
        "share_of_ceiling": round(tflops / ceiling, 3),
        "cudnn_tflops": round(flops / cudnn_ms / 1e9, 1) if cudnn_ms else None,
    }


def _work_list_rows() -> Iterator[dict]:
    for max_len, lengths in ((4096, "full"), (4096, "lognormal")):
        offsets, own, total = layout(Case("silu", 128, max_len, lengths))
        build = jax.jit(functools.partial(make_work_list, num_rows=total, heads=4))
        ms = timing.milliseconds(*timing.warm(build, offsets, own))
        yield dict(op="make_work_list", max_len=max_len, lengths=lengths, ms=round(ms, 4))


def _step_rows() -> Iterator[dict]:
    try:
        for work_list, (function, arguments) in bench_step.calls(STEP).items():
            ms = timing.milliseconds(*timing.warm(function, *arguments))
            described = dict(layers=STEP.layers, max_len=STEP.max_len, lengths="full", work_list=work_list)
            yield dict(op="train_step", **described, ms=round(ms, 4))
    except NotImplementedError as error:
        print(f"skipped {STEP}: {error}")


def line(row: dict) -> str:
    """A row for the terminal."""
    if row["op"] == "short_histories":
        described = f"{row['kind']:8} n <= {row['max_len']} {row['pass']} {row['implementation']:13}"
        return f"{described} {row['ms']:8.3f} ms, bytes once {row['bytes_once_ms']:.3f}"
    if "tflops" not in row:
        work_list = f", work list {row['work_list']}" if "work_list" in row else ""
        return f"{row['op']} {row['max_len']} {row['lengths']}{work_list}: {row['ms']:.3f} ms"
    if row["op"] == "matmul":
        return f"bf16 matmul: {row['tflops']:.0f} TFLOP/s"
    beside = f"  cuDNN {row['cudnn_tflops']:.0f}" if row["cudnn_tflops"] else ""
    return (
        f"{row['kind']:8} {row['mask']:15} H{row['heads']} K{row['head_dim']:<4} {row['max_len']} "
        f"{row['lengths']:10} {row['pass']} {row['implementation']:25} {row['ms']:8.3f} ms "
        f"{row['tflops']:5.0f} TFLOP/s {row['share_of_ceiling']:.0%}{beside}"
    )


def table(measured: list[dict]) -> str:
    """The rows of a results file as a Markdown table."""
    head = "| kind | mask | heads x K | max_len | lengths | pass | backend | ms | TFLOP/s | cuDNN | ratio |"
    lines = [head, "|" + "---|" * 11]
    for row in measured:
        if row["op"] != "jagged_attention":
            continue
        other = row["cudnn_tflops"]
        cells = (
            *(row[name] for name in ("kind", "mask")),
            f"{row['heads']} x {row['head_dim']}",
            *(row[name] for name in ("max_len", "lengths", "pass", "implementation")),
            f"{row['ms']:.3f}",
            f"{row['tflops']:.0f}",
            *((f"{other:.0f}", f"{row['tflops'] / other:.2f}") if other else ("", "")),
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def layout(case: Case):
    """offsets, lengths, T of a case."""
    lengths = case.true_lengths()
    offsets = np.concatenate([[0], np.cumsum(-(-lengths // 8) * 8)])
    return jnp.asarray(offsets, jnp.int32), jnp.asarray(lengths, jnp.int32), int(offsets[-1])


def prepare(case: Case, pass_name: str):
    """(a function that has run once, its arguments) of one pass of a case."""
    offsets, lengths, total = layout(case)
    keys = jax.random.split(jax.random.key(0), 4)
    shape = (total, case.heads, case.head_dim)
    kv_shape = (case.batch, case.keys, *shape[1:]) if case.kind == "gdpa" else shape
    q, k, v, do = (
        jax.random.normal(key, s, jnp.bfloat16) for key, s in zip(keys, (shape, kv_shape, kv_shape, shape), strict=True)
    )
    work_list = make_work_list(offsets, lengths, num_rows=total, heads=case.heads, mask=case.mask)

    def forward(q, k, v, work_list):
        attend = functools.partial(
            api.jagged_attention, kind=case.kind, mask=case.mask, deterministic=case.deterministic, work_list=work_list
        )
        if case.kind == "gdpa":
            attend = api.gdpa
        return attend(q, k, v, offsets, lengths, max_len=case.max_len, implementation=case.implementation)

    if pass_name == "fwd":
        arguments = q, k, v, work_list
        return timing.warm(jax.jit(forward), *arguments)
    pull = jax.jit(lambda q, k, v, work_list: jax.vjp(lambda q, k, v: forward(q, k, v, work_list), q, k, v)[1])(
        q, k, v, work_list
    )
    return timing.warm(jax.jit(lambda pull, do: pull(do)), pull, do)
