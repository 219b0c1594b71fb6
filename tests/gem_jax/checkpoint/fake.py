"""A program small enough for tests of checkpoints: its state is a dict of named arrays, on any mesh."""

import dataclasses
import hashlib
import pathlib
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gem_jax.checkpoint.checkpoints import Checkpoints, snapshot
from gem_jax.parallel.arrays import ArraySpec
from gem_jax.parallel.mesh import make_mesh

REPLICATED = P()


@dataclasses.dataclass(frozen=True, kw_only=True)
class FakeProgram:
    """Two tables, a map over dense features, heads by task, one matrix; everything has optimizer slots.

    The matrix is large enough (2 KiB a shard) to lie in a file of its own numbers; smaller ones lie in an index's leaves.
    """

    mesh: Mesh = dataclasses.field(default_factory=lambda: make_mesh(1, 1))
    tables: dict[str, int] = dataclasses.field(default_factory=lambda: {"ad": 64, "user": 32})
    dense: tuple[str, ...] = ("age", "price", "hour")
    tasks: tuple[str, ...] = ("click", "buy")
    width: int = 4
    optimizer: bool = True
    positional: dict[str, str] = dataclasses.field(default_factory=dict)
    cut: P = P(("replica", "shard"))
    inits: list[int] = dataclasses.field(default_factory=list)

    def logical_specs(self) -> dict[str, ArraySpec]:
        def spec(shape, *axes, dtype="float32", cut=REPLICATED, grows=False):
            return ArraySpec(
                shape=shape,
                dtype=np.dtype(dtype),
                sharding=NamedSharding(self.mesh, cut),
                axes=axes or (None,) * len(shape),
                grows=grows,
            )

        specs = {}
        for table, rows in self.tables.items():
            specs[f"tables/{table}/weight"] = spec((rows, self.width), cut=self.cut, grows=True)
            if self.optimizer:
                specs[f"tables/{table}/accumulator"] = spec((rows,), cut=self.cut, grows=True)
        for leaf in ("value", "mu", "nu") if self.optimizer else ("value",):
            specs[f"dense/bottom/kernel/{leaf}"] = spec((len(self.dense), self.width), self.dense, None)
            specs[f"dense/layers/0/{leaf}"] = spec((128, 4 * self.width), cut=P("shard"))
            if "dense" not in self.positional:
                specs[f"dense/head/{leaf}"] = spec((self.width, len(self.tasks)), None, self.tasks)
        specs["base_logits"] = spec((len(self.tasks),), self.tasks)
        specs["optimizer/count"] = spec((), dtype="int32")
        specs["step"] = spec((), dtype="int32")
        specs["key"] = spec((2,), dtype="uint32")
        return specs

    def numbers(self, seed: int) -> dict[str, np.ndarray]:
        """Random bits that are no NaN: also subnormal numbers and both zeros."""
        numbers = {}
        for name, spec in self.logical_specs().items():
            stable = int.from_bytes(hashlib.sha256(f"{seed}{name}".encode()).digest()[:4], "little")
            bits = np.random.default_rng(stable).integers(0, 2**32, spec.shape, np.uint32)
            numbers[name] = (
                (bits & np.uint32(0xBFFFFFFF)).view(np.float32) if spec.dtype == np.float32 else bits.view(spec.dtype)
            )
        return numbers

    def init(self, seed: int) -> dict[str, jax.Array]:
        self.inits.append(seed)
        specs = self.logical_specs()
        return {name: jax.device_put(x, specs[name].sharding) for name, x in self.numbers(seed).items()}

    def to_logical(self, state: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return dict(state)

    def from_logical(self, arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
        specs = self.logical_specs()
        assert arrays.keys() == specs.keys()
        for name, x in arrays.items():
            assert (x.shape, x.dtype) == (specs[name].shape, specs[name].dtype)
            assert x.sharding.is_equivalent_to(specs[name].sharding, x.ndim), (name, x.sharding)
        return dict(arrays)

    def describe(self) -> dict[str, Any]:
        schema = {
            "tables": tuple({"name": n, "rows": r} for n, r in self.tables.items()),
            "dense": tuple({"name": n} for n in self.dense),
            "tasks": tuple({"name": n} for n in self.tasks),
            "domains": ("app",),
        }
        return {
            "config": {"train": {"seed": 3}},
            "schema": schema,
            "mesh": dict(self.mesh.shape),
            "placement": {},
            "versions": {},
        }

    def replace(self, **changes: Any) -> "FakeProgram":
        return dataclasses.replace(self, **changes, inits=[])


def save(checkpoints: Checkpoints, program: FakeProgram, state: dict[str, jax.Array], step: int) -> None:
    checkpoints.save(*snapshot(program, state, step=step, data={}, position={"loader": {"position": 96}}))


def saved(folder: pathlib.Path, program: FakeProgram, *steps: int, keep: int = 2) -> Checkpoints:
    """Checkpoints of these steps; each step's numbers are those that the seed of its number gives."""
    checkpoints = Checkpoints(folder, keep=keep)
    for step in steps:
        save(checkpoints, program, program.init(step), step)
    checkpoints.close()
    return checkpoints


def assert_same(state: dict[str, jax.Array], numbers: dict[str, np.ndarray]) -> None:
    """To the last bit."""
    assert state.keys() == numbers.keys()
    for name, x in state.items():
        assert np.asarray(x).tobytes() == numbers[name].tobytes(), name
