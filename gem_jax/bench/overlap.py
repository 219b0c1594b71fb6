"""How much communication a step leaves exposed, from a profiler's trace of GPUs: time in which a GPU only communicates."""

import collections
import pathlib
import re
from collections.abc import Iterable
from typing import NamedTuple

import jax

type Span = tuple[float, float]
"""Start and end, ms."""

COLLECTIVE = re.compile(r"nccl|all-?gather|all-?reduce|reduce-?scatter|all-?to-?all|memcpyp2p", re.IGNORECASE)
"""What the names of collectives' kernels, or of the operations that launched them, hold."""


class Timeline(NamedTuple):
    """One GPU's kernels: spans of computing, and of communicating by name."""

    compute: list[Span]
    communication: dict[str, list[Span]]


def timelines(folder: pathlib.Path) -> list[Timeline]:
    """Every GPU's timeline in the one trace under a folder; none where the trace is of no GPU (a CPU's threads are no devices)."""
    (file,) = folder.rglob("*.xplane.pb")
    planes = jax.profiler.ProfileData.from_file(str(file)).planes
    return [_timeline(plane) for plane in planes if plane.name.startswith("/device:GPU")]


def _timeline(plane: jax.profiler.ProfilePlane) -> Timeline:
    found = Timeline(compute=[], communication=collections.defaultdict(list))
    streams = [line for line in plane.lines if line.name.startswith("Stream")]  # the others repeat these, summed up
    for event in (event for line in streams for event in line.events):
        span = (event.start_ns * 1e-6, (event.start_ns + event.duration_ns) * 1e-6)
        operation = next((value for name, value in event.stats if name == "hlo_op"), None)
        if COLLECTIVE.search(f"{event.name} {operation or ''}"):
            found.communication[re.sub(r"\W.*", "", event.name)].append(span)
        else:
            found.compute.append(span)
    return found


def summary(found: list[Timeline], steps: int) -> dict[str, object]:
    """Milliseconds a step, means over GPUs: computing, communicating, the part of it that nothing hides; and by kernel.

    A collective's kernel waits for the others' GPUs, so exposed time holds imbalance too. `compute_imbalance` is the GPU that
    computes longest over their mean.
    """
    if not found:
        return {
            "compute_ms": None,
            "communication_ms": None,
            "exposed_ms": None,
            "compute_imbalance": None,
            "by_kernel": {},
        }
    computing = [total(union(t.compute)) for t in found]
    communicating = [union(span for spans in t.communication.values() for span in spans) for t in found]
    exposed = [total(without(spans, union(t.compute))) for spans, t in zip(communicating, found, strict=True)]
    by_kernel: dict[str, float] = collections.defaultdict(float)
    for timeline in found:
        for name, spans in timeline.communication.items():
            by_kernel[name] += total(union(spans)) / len(found) / steps
    mean = sum(computing) / len(found)
    return {
        "compute_ms": mean / steps,
        "communication_ms": sum(map(total, communicating)) / len(found) / steps,
        "exposed_ms": sum(exposed) / len(found) / steps,
        "compute_imbalance": max(computing) / mean if mean else None,
        "by_kernel": dict(by_kernel),
    }


def union(spans: Iterable[Span]) -> list[Span]:
    """The same time as spans that are apart, in order."""
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def without(spans: list[Span], others: list[Span]) -> list[Span]:
    """What of `spans` lies in none of `others`; both as `union` returns them."""
    left, first = [], 0
    for start, end in spans:
        while first < len(others) and others[first][1] <= start:
            first += 1
        for other_start, other_end in others[first:]:
            if other_start >= end:
                break
            if other_start > start:
                left.append((start, other_start))
            start = max(start, other_end)
        if start < end:
            left.append((start, end))
    return left


def total(spans: list[Span]) -> float:
    """Milliseconds of spans that are apart."""
    return sum(end - start for start, end in spans)
