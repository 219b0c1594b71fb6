"""How much memory a run needs on each device, by kind, before anything is made."""

import dataclasses
import math
import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from gem_jax.config import Config
from gem_jax.data.batch import Batch
from gem_jax.data.columns import empty_examples
from gem_jax.data.packing import pack
from gem_jax.data.schema import Schema
from gem_jax.embedding.tables import Embedded
from gem_jax.models.outputs import table_width

GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Predicted bytes of the fullest device.

    Attributes:
      kinds: what -> bytes.
      limit: what the device has; None where it is not known.
    """

    kinds: dict[str, int]
    limit: int | None

    @property
    def total(self) -> int:
        """All kinds together."""
        return sum(self.kinds.values())

    def line(self) -> str:
        """For people: the total, the limit, and the kinds from the largest on."""
        of = f" of {readable(self.limit)}" if self.limit is not None else ""
        kinds = sorted(((size, kind) for kind, size in self.kinds.items() if size), reverse=True)
        parts = ", ".join(f"{kind} {readable(size)}" for size, kind in kinds)
        return f"Memory of a device, predicted: {readable(self.total)}{of} ({parts})"


def readable(num_bytes: int) -> str:
    """Bytes with three digits that count, e.g. 1.43 GiB, 512 MiB, 96.0 KiB."""
    units = (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))
    unit, size = next((u for u in units if num_bytes >= u[1]), units[-1])
    value = num_bytes / size
    return f"{value:,.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"


def device_memory(given_gib: float | None, devices: Sequence[jax.Device]) -> int | None:
    """Bytes that a device has: as given, as it reports, or of a CPU its share of the machine's; None for what is not there."""
    if given_gib is not None:
        return int(given_gib * GIB)
    device = devices[0]
    if device.platform == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(jax.local_devices())
    try:
        return (device.memory_stats() or {}).get("bytes_limit")
    except jax.errors.JaxRuntimeError:  # a device that only the compiler knows
        return None


def device_batch(config: Config, schema: Schema) -> Batch:
    """One device's batch of empty slots: the static shapes."""
    return pack(empty_examples(schema), schema, config.batch.examples, config.batch.budgets(schema))[0]


def embedded_shapes(batch: Batch, schema: Schema, dim: int) -> Embedded:
    """What the tables give for a batch of one device, as shapes."""
    num_examples = batch.weight.shape[0]
    return Embedded(
        features={f.name: jax.ShapeDtypeStruct((num_examples, dim), jnp.float32) for f in schema.categoricals},
        events={
            s.name: {
                a.name: jax.ShapeDtypeStruct((batch.sequences[s.name].age_s.shape[0], dim), jnp.float32)
                for a in s.attributes
            }
            for s in schema.sequences
        },
    )


COMPILER_SHARE = 0.57
"""What XLA's buffers of a step hold beyond the activations, as a share of them: it fits the one peak that was measured, 19.1 GiB of
`configs/gem_base.py` in bfloat16 on an H100 and on an H200 (jax 0.11.2), where all else is 13.6 GiB, 9.67 of them activations. It
is an estimate: models with other shapes needed from 0.7 to 2 times their activations in all, by the compiler's own count."""

REMADE = frozenset(
    "add sub mul div max min neg abs sign floor ceil round select_n clamp and or not xor eq ne lt le gt ge add_any square rem "
    "integer_pow pow is_finite exp exp2 log log1p expm1 tanh logistic rsqrt sqrt sin cos erf convert_element_type broadcast_in_dim "
    "reshape slice squeeze transpose concatenate pad stop_gradient copy iota rev expand_dims split name jit custom_jvp_call".split()
)
"""What XLA makes again inside the fusions that need it, rather than keep."""


def saved_activations(config: Config, schema: Schema, batch: Batch) -> int:
    """Bytes that the forward pass of one device keeps for the backward pass, as traced.

    Results of products, reductions, gathers and kernels count, made without compiling; what XLA needs beside them is
    `COMPILER_SHARE`.
    """
    graph, dense = nnx.split(
        nnx.eval_shape(lambda: config.model.build(schema, policy=config.precision, rngs=nnx.Rngs(0)))
    )
    objective = config.objective.build(schema)
    embedded = embedded_shapes(batch, schema, table_width(config.model, schema))
    key = jax.eval_shape(lambda: jax.random.key(0))

    def kept(dense, embedded, batch, key):
        def loss(dense, embedded):
            return objective(nnx.merge(graph, dense)(batch, embedded, key), batch)[0]

        policy = lambda primitive, *_, **__: primitive.name not in REMADE  # noqa: E731
        return jax.vjp(jax.checkpoint(loss, policy=policy), dense, embedded)[1]

    kept_bytes, parameter_bytes = (
        sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))
        for tree in (jax.eval_shape(kept, dense, embedded, batch, key), dense)
    )
    return max(kept_bytes - parameter_bytes, 0)  # parameters are kept too; they are counted elsewhere
