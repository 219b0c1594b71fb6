"""A run's functions under its plan: one object that trains, evaluates, scores, and knows its state by name.

    plan    = RunPlan.of(config, schema, devices)
    program = Program.of(config, schema, plan)
    state   = program.init(seed)                     # or restored from a checkpoint, on any mesh
    state, measures = program.train_step(state, batch, progress)

The same on devices that exist and on those that only a compiler knows: `scale` compiles the very step that a run takes.
"""

import concurrent.futures
import dataclasses
import functools
import importlib.metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gem_jax.config import Config, to_dict
from gem_jax.data.batch import Batch
from gem_jax.data.schema import Schema
from gem_jax.embedding.tables import Tables
from gem_jax.models.outputs import Model, Outputs, table_width
from gem_jax.nn.parameters import positional_kinds
from gem_jax.parallel.arrays import ArraySpec
from gem_jax.parallel.mesh import EVERYWHERE, SHARD
from gem_jax.parallel.sharding import shardings
from gem_jax.run import compile_cache, named
from gem_jax.run.memory import device_batch, embedded_shapes
from gem_jax.run.plan import RunPlan
from gem_jax.training.buckets import Buckets, Vectors
from gem_jax.training.cost import forward_flops
from gem_jax.training.optimizer import dense_optimizer, table_optimizer
from gem_jax.training.state import TrainState
from gem_jax.training.step import Parts, score, train_step

NUM_SIGNALS = 4
"""Numbers that each process adds to a step for the others (`parallel.lockstep`)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """The functions of a run.

    Attributes:
      config: everything about the run.
      schema: what the data is.
      plan: where everything lies.
      parts: what the steps are made of.
      specs: axes on the mesh of every array of the state.
    """

    config: Config
    schema: Schema
    plan: RunPlan
    parts: Parts
    specs: TrainState

    @classmethod
    def of(cls, config: Config, schema: Schema, plan: RunPlan, observed: tuple[str, ...] = ()) -> "Program":
        """The program of a run; nothing is allocated or compiled yet. What it will compile is kept (`run.compile_cache`).

        Args:
          config: everything about the run.
          schema: what the data is.
          plan: where everything lies.
          observed: names of the model's representations that a training step returns.

        Raises:
          UserError: the model, the objective or the optimizer does not fit the schema.
        """
        compile_cache.enable()
        graph, abstract = nnx.split(nnx.eval_shape(lambda: _build(config, schema)))
        buckets = Buckets.of(abstract, plan.mesh.shape[SHARD])
        tables = Tables(
            schema,
            table_width(config.model, schema),
            plan.mesh,
            config.tables,
            plan.placement,
            table_optimizer(config.optimizer),
            plan.store,
            init_std=config.optimizer.table_init_std,
        )
        dense_opt = jax.eval_shape(dense_optimizer(config.optimizer, buckets).init, named.abstract_vectors(buckets))
        specs = TrainState(
            step=P(),
            dense=dict.fromkeys(buckets.buckets, P(SHARD)),
            dense_opt=jax.tree.map(lambda x: P(SHARD) if x.ndim else P(), dense_opt),
            tables=tables.specs(),
            base_logits=P(),
            key=P(),
        )
        parts = Parts(
            graph=graph,
            buckets=buckets,
            tables=tables,
            objective=config.objective.build(schema),
            optimizer=config.optimizer,
            policy=config.precision,
            is_sharded=plan.mesh.shape[SHARD] > 1,
            observed=observed,
        )
        return cls(config=config, schema=schema, plan=plan, parts=parts, specs=specs)

    @property
    def mesh(self) -> Mesh:
        """The devices."""
        return self.plan.mesh

    # --- the state ----------------------------------------------------------------------------------------------------------

    def shapes(self) -> TrainState:
        """The state as shapes with their shardings."""
        zeros = jax.ShapeDtypeStruct((len(self.schema.tasks),), jnp.float32)
        rest = jax.eval_shape(self._without_dense, jax.random.key(0), zeros)
        shapes = dataclasses.replace(rest, dense=named.abstract_vectors(self.parts.buckets))
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings(self.mesh, self.specs)
        )

    def init(self, seed: int, base_logits: np.ndarray | None = None) -> TrainState:
        """A new model with its tables and optimizers: a pure function of the arguments, the same on every mesh.

        Dense parameters are drawn on the host, each process its own shares, so that no program is compiled for them; tables, which
        may be thousands of times larger, on their devices.

        Args:
          seed: of parameters, tables and dropout.
          base_logits: [N], the logit of each task's base rate, so that a new model predicts it; zeros unless given.
        """
        logits = np.zeros(len(self.schema.tasks)) if base_logits is None else base_logits
        specs = dataclasses.replace(self.specs, dense={})
        make = jax.jit(self._without_dense, out_shardings=shardings(self.mesh, specs))
        rest = make(jax.random.key(seed), np.asarray(logits, np.float32))
        return dataclasses.replace(rest, dense=self._dense(seed))

    def _dense(self, seed: int) -> Vectors:
        buckets = self.parts.buckets

        def vector(name: str) -> jax.Array:
            size = buckets.buckets[name].size
            draw = functools.cache(functools.partial(buckets.draw, seed, name))  # replicas hold the same shares

            def share(index: tuple[slice, ...] | None) -> np.ndarray:
                start, stop, _ = (index[0] if index else slice(None)).indices(size)
                return draw(start, stop)

            return jax.make_array_from_callback((size,), NamedSharding(self.mesh, self.specs.dense[name]), share)

        with concurrent.futures.ThreadPoolExecutor() as pool:  # numpy draws without the interpreter's lock
            return dict(zip(buckets.buckets, pool.map(vector, buckets.buckets), strict=True))

    def _without_dense(self, key: jax.Array, base_logits: jax.Array) -> TrainState:
        table_key, run_key = jax.random.split(key)
        buckets = self.parts.buckets
        zeros = {name: jnp.zeros(bucket.size) for name, bucket in buckets.buckets.items()}
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            dense={},
            dense_opt=dense_optimizer(self.config.optimizer, buckets).init(zeros),
            tables=self.parts.tables.init(table_key),
            base_logits=base_logits,
            key=run_key,
        )

    # --- steps ----------------------------------------------------------------------------------------------------------------

    def train_step(
        self, state: TrainState, batch: Batch, progress: float | np.float32, signals: jax.Array | None = None
    ) -> tuple[TrainState, dict[str, Any]]:
        """The state after a step, and what it measured (`training.step.train_step`); the state given is consumed.

        Args:
          state: of this program.
          batch: of the whole mesh (`parallel.sharding.place_batch`).
          progress: fraction of the run's examples already trained on.
          signals: int32 [devices, NUM_SIGNALS], summed; zeros unless given.
        """
        signals = self._no_signals if signals is None else signals
        return self._train_step(state, batch, np.float32(progress), signals)

    def eval_step(self, state: TrainState, batch: Batch) -> jax.Array:
        """Logits [B, N], float32, of all devices, without dropout."""
        return self._eval_step(state, batch)

    def score(self, state: TrainState, batch: Batch) -> Outputs:
        """The model's outputs, logits with the base logits and representations, of all devices, without dropout."""
        return self._score(state, batch)

    def in_step(self, state: TrainState) -> TrainState:
        """The state with the tables of all replica groups in step, as a checkpoint or an evaluation needs it."""
        return self._in_step(state)

    def lower(self) -> jax.stages.Lowered:
        """The training step as it runs, lowered for the mesh's platform."""
        one = device_batch(self.config, self.schema)
        sharding = NamedSharding(self.mesh, P(EVERYWHERE))

        def whole(x) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((x.shape[0] * self.mesh.size, *x.shape[1:]), x.dtype, sharding=sharding)

        signals = jax.ShapeDtypeStruct((self.mesh.size, NUM_SIGNALS), jnp.int32, sharding=sharding)
        progress = jax.ShapeDtypeStruct((), jnp.float32)
        traced = self._train_step.trace(self.shapes(), jax.tree.map(whole, one), progress, signals)
        platform = self.mesh.devices.flat[0].platform
        return traced.lower(lowering_platforms=("cuda" if platform == "gpu" else platform,))

    @functools.cached_property
    def _no_signals(self) -> jax.Array:
        zeros = np.zeros((self.mesh.size, NUM_SIGNALS), np.int32)
        return jax.device_put(zeros, NamedSharding(self.mesh, P(EVERYWHERE)))

    @functools.cached_property
    def _train_step(self):
        scalars = ("loss", "grad_norm", "learning_rate", "table_overflow", "signals", "measures")
        outputs = {**dict.fromkeys(scalars, P()), **dict.fromkeys(("logits", "representations"), P(EVERYWHERE))}
        function = functools.partial(train_step, self.parts)
        return self._on_mesh(function, (P(EVERYWHERE), P(), P(EVERYWHERE)), (self.specs, outputs), donate=True)

    @functools.cached_property
    def _eval_step(self):
        return self._on_mesh(lambda s, b: score(self.parts, s, b).logits, (P(EVERYWHERE),), P(EVERYWHERE))

    @functools.cached_property
    def _score(self):
        return self._on_mesh(functools.partial(score, self.parts), (P(EVERYWHERE),), P(EVERYWHERE))

    @functools.cached_property
    def _in_step(self):
        if self.config.tables.sync_every == 1:  # they are in step after every step
            return lambda state: state

        def average(state: TrainState) -> TrainState:
            return dataclasses.replace(state, tables=self.parts.tables.average(state.tables))

        return self._on_mesh(average, (), self.specs)

    def _on_mesh(self, function, more_specs: tuple[P, ...], out_specs, *, donate: bool = False):
        """`function(state, ...)` of one device as a jitted one of the mesh's arrays."""
        # Replication is not tracked (check_vma=False): the gradient is taken inside, and each sum spells its axis out.
        in_specs = (self.specs, *more_specs)
        mapped = jax.shard_map(function, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
        return jax.jit(
            mapped,
            in_shardings=shardings(self.mesh, in_specs),
            out_shardings=shardings(self.mesh, out_specs),
            donate_argnums=(0,) if donate else (),
        )

    # --- the state by name ------------------------------------------------------------------------------------------------------

    def logical_specs(self) -> dict[str, ArraySpec]:
        """Every array of a checkpoint by name: its shape, the names along its axes, and its sharding on this mesh."""
        has_task_columns = self.config.model.embedding_dim is None
        columns = tuple(task.name for task in self.schema.tasks) if has_task_columns else None
        return named.specs(self.shapes(), self.parts, self.schema, self.mesh, columns)

    def to_logical(self, state: TrainState) -> dict[str, jax.Array]:
        """The state as named arrays in which no mesh shows."""
        return self._to_logical(self.in_step(state))

    def from_logical(self, arrays: dict[str, jax.Array]) -> TrainState:
        """The state that has these arrays, exactly, on this mesh."""
        return self._from_logical(arrays)

    @functools.cached_property
    def _to_logical(self):
        layout = {name: spec.sharding for name, spec in self.logical_specs().items()}
        return jax.jit(functools.partial(named.to_logical, parts=self.parts), out_shardings=layout)

    @functools.cached_property
    def _from_logical(self):
        dense_opt = self.shapes().dense_opt
        function = functools.partial(named.from_logical, parts=self.parts, dense_opt=dense_opt)
        return jax.jit(function, out_shardings=shardings(self.mesh, self.specs))

    @functools.cached_property
    def positional(self) -> dict[str, str]:
        """Kind of schema member -> a parameter that depends on their order alone; see `nn.parameters.positional_kinds`."""
        return positional_kinds(functools.partial(_build, self.config), self.schema)

    def describe(self) -> dict[str, Any]:
        """What a checkpoint says of the run, for people and for comparison; JSON-able."""
        tables = self.plan.tables
        return {
            "config": to_dict(self.config),
            "schema": to_dict(self.schema),
            "mesh": dict(self.mesh.shape),
            "placement": {t.name: {"scheme": t.scheme, "owner": t.owner} for t in tables.tables},
            "versions": {"jax": jax.__version__, "gem_jax": _version()},
        }

    def count_parameters(self) -> dict[str, int]:
        """Numbers of dense and table parameters, without what pads them to the mesh."""
        width = table_width(self.config.model, self.schema)
        return {"dense": self.parts.buckets.num_parameters, "tables": width * sum(t.rows for t in self.schema.tables)}

    def forward_flops(self) -> float:
        """FLOPs of one example's forward pass; see `training.cost`."""
        batch = device_batch(self.config, self.schema)
        width = table_width(self.config.model, self.schema)
        return forward_flops(self.parts, embedded_shapes(batch, self.schema, width), batch)


def _version() -> str | None:
    """Of gem_jax; None where it runs from a folder without being installed."""
    try:
        return importlib.metadata.version("gem_jax")
    except importlib.metadata.PackageNotFoundError:
        return None


def _build(config: Config, schema: Schema) -> Model:
    return config.model.build(schema, policy=config.precision, rngs=nnx.Rngs(0))
