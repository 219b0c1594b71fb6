"""Which collectives a compiled program holds: kind, axes of the mesh, bytes that one device receives."""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping

import numpy as np

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")
DTYPE_BYTES = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "bf16": 2,
    "f16": 2,
    "s16": 2,
    "f32": 4,
    "s32": 4,
    "u32": 4,
    "f64": 8,
    "s64": 8,
}
# A float8 type is written f8e4m3fn and the like.
_ARRAY = re.compile(r"\b(f8\w+|[a-z]+[0-9]+|pred)\[([0-9,]*)\]")
_LINE = re.compile(rf"= (?P<result>.*?) (?P<kind>{'|'.join(KINDS)})(?P<start>-start)?\(")
_MESH_GROUPS = re.compile(r"replica_groups=mesh\[[^\]]*\] \{([^}]*)\}")
_IOTA_GROUPS = re.compile(r"replica_groups=\[([0-9,]+)\]<=\[([0-9,]+)\](?:T\(([0-9,]+)\))?")
_LIST_GROUPS = re.compile(r"replica_groups=\{\{([0-9,]+)\}")
_SLOW_WAY = re.compile(r"/cond/branch_0")


@dataclasses.dataclass(frozen=True, kw_only=True, order=True)
class Collective:
    """One collective of one device.

    kind: of `KINDS`; axes: of the mesh over which it runs; result_bytes: of its result on a device; received_bytes: what a device
    gets from the others (ring algorithms; a ragged all-to-all at most); is_fallback: runs only where table ids overflow.
    """

    kind: str
    axes: tuple[str, ...]
    result_bytes: int
    received_bytes: int
    is_fallback: bool


def collectives(text: str, mesh: Mapping[str, int]) -> list[Collective]:
    """Every collective of a compiled program's text (`compiled.as_text()`), on a mesh of these axes and sizes.

    A collective in a loop's body counts once.

    Raises:
      ValueError: the devices of a collective are not those of any axes of the mesh.
    """
    found = []
    for line in text.splitlines():
        match = _LINE.search(line)
        if match is None:
            continue
        kind, arrays = match["kind"], [_array_bytes(*array) for array in _ARRAY.findall(match["result"])]
        # An asynchronous start returns its operands, too; an all-reduce's only where it is written as two tuples.
        if match["start"] and (kind != "all-reduce" or match["result"].startswith("((")):
            arrays = arrays[len(arrays) // 2 :]
        axes = _axes(line, mesh)
        size = math.prod(mesh[axis] for axis in axes)
        if size == 1:
            continue
        result = sum(arrays)
        found.append(
            Collective(
                kind=kind,
                axes=axes,
                result_bytes=result,
                received_bytes=_received(kind, result, size),
                is_fallback=_SLOW_WAY.search(line) is not None,
            )
        )
    return found


def total_received(found: Iterable[Collective], kind: str | None = None, axes: tuple[str, ...] | None = None) -> int:
    """Bytes that a device receives in a step without overflow, of one kind or over certain axes."""
    return sum(
        c.received_bytes for c in found if not c.is_fallback and kind in (None, c.kind) and axes in (None, c.axes)
    )


def _array_bytes(dtype: str, shape: str) -> int:
    size = 1 if dtype.startswith("f8") else DTYPE_BYTES[dtype]
    return size * math.prod(int(n) for n in shape.split(",") if n)


def _received(kind: str, result: int, size: int) -> int:
    if kind == "all-reduce":
        return 2 * result * (size - 1) // size
    if kind == "reduce-scatter":
        return result * (size - 1)
    return result * (size - 1) // size


def _axes(line: str, mesh: Mapping[str, int]) -> tuple[str, ...]:
    if named := _MESH_GROUPS.search(line):
        return tuple(name for name in mesh if f"'{name}'" in named[1])
    group = _first_group(line, math.prod(mesh.values()))
    ids = np.arange(math.prod(mesh.values())).reshape(tuple(mesh.values()))
    for mask in range(1 << len(mesh)):
        axes = tuple(name for place, name in enumerate(mesh) if mask >> place & 1)
        index = tuple(slice(None) if name in axes else 0 for name in mesh)
        if np.array_equal(np.sort(group), np.sort(ids[index].ravel())):
            return axes
    raise ValueError(
        f"a collective over devices {group[:16].tolist()} runs along no axes of {dict(mesh)}: {line.strip()[:200]}"
    )


def _first_group(line: str, num_devices: int) -> np.ndarray:
    if iota := _IOTA_GROUPS.search(line):
        shape, reshape = ([int(n) for n in iota[k].split(",")] for k in (1, 2))
        ids = np.arange(math.prod(reshape)).reshape(reshape)
        if iota[3]:
            ids = ids.transpose([int(n) for n in iota[3].split(",")])
        return ids.reshape(shape)[0]
    if listed := _LIST_GROUPS.search(line):
        return np.array([int(n) for n in listed[1].split(",")])
    return np.arange(num_devices)  # no groups: all devices
