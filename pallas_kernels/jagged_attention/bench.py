"""Benchmark cases and tile-size search; run through `python -m pallas_kernels.bench jagged_attention`.

Batch of 32 sequences, bfloat16. A causal pair counts once (the square's half); forward is 2 matmuls,
backward 5, whatever a kernel recomputes. Everything is compiled first. Each number is then the median of 20 samples, in
bursts of 5 after a rest of 0.2 s, each of at least 10 calls and 10 ms: enough calls that the host's share stays hidden
(starting and ending a sample takes 0.1 ms), and rests since a GPU at its power limit lowers its clock.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import json
import math
import statistics
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.jagged_attention import Mask, api, bench_step, make_work_list, mosaic_gpu, tuning

BATCH = 32
BURSTS, SAMPLES, CALLS, SAMPLE_MS, REST_S = 4, 5, 10, 10.0, 0.2


@dataclasses.dataclass(frozen=True)
class Case:
    """A measured shape; `keys` is GDPA's J, the keys of an example."""

    kind: Any  # of jagged_attention, or "gdpa"
    head_dim: int
    max_len: int
    lengths: str = "full"
    mask: Mask = Mask()
    implementation: api.Implementation = "mosaic_gpu"
    passes: tuple[str, ...] = ("fwd", "bwd")
    deterministic: bool = False
    keys: int = 2048
    width: int = 512  # heads * head_dim

    @property
    def heads(self) -> int:
        return self.width // self.head_dim

    def true_lengths(self) -> np.ndarray:
        if self.lengths == "full":
            return np.full(BATCH, self.max_len)
        if self.lengths == "quarter":  # 25 % fill
            return np.full(BATCH, self.max_len // 4)
        z = np.random.default_rng(0).normal(size=BATCH)
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


def rows(commit: str = "") -> Iterator[dict]:
    """Measured rows; cuDNN's softmax on padded batches stands beside the cases that it has."""
    work = [(case, name) for case in CASES for name in case.passes]
    ready = _prepared(work)
    ceiling = matmul_tflops()
    device = jax.devices()[0].device_kind
    common = dict(device=device, jax=jax.__version__, commit=commit)
    yield dict(op="matmul", kind="bf16 8192^3", **{"pass": "fwd"}, tflops=round(ceiling, 1), **common)
    cudnn = functools.cache(cudnn_tflops)
    for case, name, call in ready:
        ms = milliseconds(*call)
        tflops = {"fwd": 1.0, "bwd": 2.5}[name] * case.flops() / ms / 1e9
        comparable = case.mask == Mask() and case.lengths == "full" and case.kind != "gdpa"
        yield {
            "op": "jagged_attention",
            "kind": case.kind,
            "mask": case.mask_name(),
            "heads": case.heads,
            "head_dim": case.head_dim,
            "max_len": case.max_len,
            "lengths": case.lengths,
            "pass": name,
            "implementation": case.implementation + " deterministic" * case.deterministic,
            "ms": round(ms, 4),
            "tflops": round(tflops, 1),
            "share_of_ceiling": round(tflops / ceiling, 3),
            "cudnn_tflops": cudnn(case.heads, case.head_dim, case.max_len).get(name) if comparable else None,
            **common,
        }
    for max_len, lengths in ((4096, "full"), (4096, "lognormal")):
        offsets, own, total = layout(Case("silu", 128, max_len, lengths))
        build = jax.jit(functools.partial(make_work_list, num_rows=total, heads=4))
        ms = milliseconds(*_warm(build, offsets, own))
        yield dict(op="make_work_list", max_len=max_len, lengths=lengths, ms=round(ms, 4), **common)
    try:
        for work_list, (function, arguments) in bench_step.calls(STEP).items():
            ms = milliseconds(*_warm(function, *arguments))
            described = dict(layers=STEP.layers, max_len=STEP.max_len, lengths="full", work_list=work_list)
            yield dict(op="train_step", **described, ms=round(ms, 4), **common)
    except NotImplementedError as error:
        print(f"skipped {STEP}: {error}")


def _prepared(work: list[tuple[Case, str]]) -> list[tuple[Case, str, tuple]]:
    """(case, pass, call) of each, compiled together."""

    def prepared(item):
        try:
            return prepare(*item)
        except NotImplementedError as error:
            print(f"skipped {item}: {error}")
            return None

    with concurrent.futures.ThreadPoolExecutor() as pool:
        calls = list(pool.map(prepared, work))
    return [(*item, call) for item, call in zip(work, calls, strict=True) if call is not None]


def line(row: dict) -> str:
    """A row for the terminal."""
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
    kv_shape = (BATCH, case.keys, *shape[1:]) if case.kind == "gdpa" else shape
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
        return _warm(jax.jit(forward), *arguments)
    pull = jax.jit(lambda q, k, v, work_list: jax.vjp(lambda q, k, v: forward(q, k, v, work_list), q, k, v)[1])(
        q, k, v, work_list
    )
    return _warm(jax.jit(lambda pull, do: pull(do)), pull, do)


def _warm(function, *arguments):
    jax.block_until_ready(function(*arguments))
    return function, *arguments


def milliseconds(function, *arguments) -> float:
    """Median time of a call; many are queued at a time, so that the host's share stays hidden."""

    def sample(calls):
        start = time.perf_counter()
        for _ in range(calls):
            out = function(*arguments)
        jax.block_until_ready(out)
        return (time.perf_counter() - start) / calls * 1e3

    return _median(sample)


def _median(sample) -> float:
    """Of samples, each the ms a call that sample(calls) measures."""
    calls = max(CALLS, math.ceil(SAMPLE_MS / sample(CALLS)))
    times = []
    for _ in range(BURSTS):
        time.sleep(REST_S)
        sample(2)
        times += [sample(calls) for _ in range(SAMPLES)]
    return statistics.median(times)


def matmul_tflops(n: int = 8192) -> float:
    """The bfloat16 matmul rate of XLA on this device: the ceiling that shares refer to."""
    a = jax.random.normal(jax.random.key(0), (n, n), jnp.bfloat16)
    return 2 * n**3 / milliseconds(jax.jit(jnp.dot), a, a) / 1e9


def cudnn_tflops(heads: int, head_dim: int, max_len: int) -> dict[str, float]:
    """Causal softmax attention of cuDNN on a full batch: through torch, the faster way, or else jax.nn."""
    times = _cudnn_torch(heads, head_dim, max_len) or _cudnn_jax(heads, head_dim, max_len)
    flops = Case("softmax", head_dim, max_len, width=heads * head_dim).flops()
    factors = {"fwd": 1.0, "bwd": 2.5}
    return {name: round(factors[name] * flops / ms / 1e9, 1) for name, ms in times.items()}


def _cudnn_jax(heads, head_dim, max_len):
    if head_dim > 128:  # jax.nn refuses these on Hopper's backward pass
        return {}
    keys = jax.random.split(jax.random.key(0), 4)
    shape = (BATCH, max_len, heads, head_dim)
    q, k, v, do = (jax.random.normal(key, shape, jnp.bfloat16) for key in keys)
    forward = functools.partial(jax.nn.dot_product_attention, is_causal=True, implementation="cudnn")
    pull = jax.jit(lambda *x: jax.vjp(forward, *x)[1])(q, k, v)
    return {
        "fwd": milliseconds(jax.jit(forward), q, k, v),
        "bwd": milliseconds(jax.jit(lambda pull, do: pull(do)), pull, do),
    }


def _cudnn_torch(heads, head_dim, max_len):
    try:
        import torch
        from torch.nn.attention import SDPBackend, sdpa_kernel
    except ImportError:
        return {}
    attend = functools.partial(torch.nn.functional.scaled_dot_product_attention, is_causal=True)
    shape = (BATCH, heads, max_len, head_dim)
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

        return _median(sample)

    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        forward = median(lambda: attend(q, k, v))
        out = attend(q, k, v)
        backward = median(lambda: torch.autograd.grad(out, (q, k, v), do, retain_graph=True))
    return {"fwd": forward, "bwd": backward}


# tile sizes ----------------------------------------------------------------------------------------

# values worth trying of each field, and where a kernel's tiling is; what does not fit is skipped
BACKWARD = dict(q_stages=(2, 3), do_stages=(2, 3), kv_stages=(2, 3, 4))
FORWARD = dict(keys=(64, 128), stages=(2, 3, 4), q_stages=(1, 2, 3), hold=(False, True))
CHOICES: dict[str, dict[str, tuple]] = {
    "forward": FORWARD,
    "forward_softmax": FORWARD,
    "backward": BACKWARD,
    "backward_kv": BACKWARD,
    "dq": dict(q_stages=(1, 2), keys=(64, 128), stages=(1, 2, 3), v_stages=(1, 2, 3)),
}
TUNED_ON = {  # kind, pass, deterministic
    "forward": ("silu", "fwd", False),
    "forward_softmax": ("softmax", "fwd", False),
    "backward": ("silu", "bwd", False),
    "backward_kv": ("silu", "bwd", True),
    "dq": ("silu", "bwd", True),
}


MARGIN = 0.98  # a change must save 2 %: repeated timings of one kernel differ by as much


def tune(head_sizes: list[int]):
    """Search tile sizes (of every head size if the list is empty) on log-normal lengths and write the file of this GPU,
    kernel by kernel: every field in turn is set to each of its values, from the present tiling on, and the fastest
    value stays if it is clearly faster."""
    kind = jax.devices()[0].device_kind
    path = tuning.FOLDER / f"{tuning.file_name(kind)}.json"
    table = {str(size): tuning.tilings(kind, size)._asdict() for size in mosaic_gpu.HEAD_DIMS}
    for size in head_sizes or mosaic_gpu.HEAD_DIMS:
        for kernel in CHOICES:
            if table[str(size)][kernel] is None:
                continue
            table[str(size)][kernel] = _fastest(size, kernel, table[str(size)])
            rows = {size: {k: dataclasses.asdict(x) for k, x in row.items() if x} for size, row in table.items()}
            path.write_text(json.dumps(rows, indent=2) + "\n")


def _fastest(size, kernel, row):
    best = row[kernel]
    [best_ms] = _try(size, kernel, row, [best])
    for field, values in CHOICES[kernel].items():
        others = [dataclasses.replace(best, **{field: value}) for value in values if value != getattr(best, field)]
        ms, tiling = min(zip(_try(size, kernel, row, others), others, strict=True), key=lambda pair: pair[0])
        if ms < MARGIN * best_ms:
            best, best_ms = tiling, ms
    return best


def _try(size, kernel, row, candidates) -> list[float]:
    """Milliseconds of each tiling of a kernel, compiled together; infinite where it does not fit."""
    kind, pass_name, deterministic = TUNED_ON[kernel]
    case = Case(kind, size, 4096, "lognormal", passes=(pass_name,), deterministic=deterministic)

    def compiled(tiling):
        try:
            with tuning.trial(tuning.Tilings(**row | {kernel: tiling})):
                return prepare(case, pass_name)
        except Exception as error:  # out of shared memory or registers: not a candidate
            print(f"K{size} {kernel} {tiling}: {type(error).__name__}", flush=True)
            return None

    with concurrent.futures.ThreadPoolExecutor() as pool:
        ready = list(pool.map(compiled, candidates))
    times = []
    for tiling, call in zip(candidates, ready, strict=True):
        times.append(milliseconds(*call) if call is not None else math.inf)
        print(f"K{size} {kernel} {tiling}: {times[-1]:.3f} ms", flush=True)
    return times
