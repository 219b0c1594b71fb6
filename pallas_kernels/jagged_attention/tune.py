"""Search of the Hopper kernels' tile sizes; run through `python -m pallas_kernels.bench jagged_attention --tune`."""

from __future__ import annotations

import functools
import math

import jax

from pallas_kernels.common import timing
from pallas_kernels.common.tuning import fastest
from pallas_kernels.jagged_attention import tuning
from pallas_kernels.jagged_attention.bench import Case, prepare
from pallas_kernels.jagged_attention.mosaic_gpu import HEAD_DIMS

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


def tune(head_dims: list[int]):
    """Search tile sizes (of every head dim if the list is empty) on log-normal lengths and write the file of this GPU,
    kernel by kernel: every field in turn is set to each of its values, from the present tiling on, and the fastest
    value stays if it is clearly faster."""
    kind = jax.devices()[0].device_kind
    table = {size: tuning.tilings(kind, size)._asdict() for size in HEAD_DIMS}
    for size in head_dims or HEAD_DIMS:
        for kernel in CHOICES:
            row = table[size]
            if row[kernel] is None:
                continue
            times = functools.partial(_times, size, kernel, dict(row))
            row[kernel] = fastest(row[kernel], CHOICES[kernel], times)
            tuning.write(kind, {size: tuning.Tilings(**row) for size, row in table.items()})


def _times(size: int, kernel: str, row: dict, candidates: list) -> list[float]:
    """Milliseconds of each tiling of a kernel, compiled together; infinite where it does not fit."""
    kind, pass_name, deterministic = TUNED_ON[kernel]
    case = Case(kind, size, 4096, "lognormal", passes=(pass_name,), deterministic=deterministic)

    def compiled(tiling):
        with tuning.trial(tuning.Tilings(**row | {kernel: tiling})):
            return prepare(case, pass_name)

    # anything: out of shared memory or registers is not a candidate
    ready = timing.compiled_together(compiled, [(tiling,) for tiling in candidates], Exception)
    times = []
    for tiling, call in zip(candidates, ready, strict=True):
        times.append(timing.milliseconds(*call) if call is not None else math.inf)
        print(f"K{size} {kernel} {tiling}: {times[-1]:.3f} ms", flush=True)
    return times
