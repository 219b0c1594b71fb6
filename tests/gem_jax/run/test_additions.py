"""What comes next is an addition: a head with its own loss, and tables kept in another way, without touching the step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gem_jax.config import Config
from gem_jax.data.packing import BatchConfig
from gem_jax.data.synthetic import SyntheticConfig
from gem_jax.embedding.stores.device import DeviceStore
from gem_jax.models import DLRMConfig
from gem_jax.nn.dense import Dense
from gem_jax.parallel.mesh import MeshConfig
from gem_jax.run.plan import RunPlan
from gem_jax.run.program import Program
from gem_jax.training.objective import MultiTaskConfig, binary_cross_entropy
from gem_jax.training.optimizer import OptimizerConfig
from tests.gem_jax.models.batches import FULL, random_batch


@dataclasses.dataclass(frozen=True)
class WithAuxiliaryHead:
    """A model config around another: one more head on its last vector, which must not reach the model below."""

    inner: DLRMConfig

    @property
    def embedding_dim(self):
        return self.inner.embedding_dim

    def build(self, schema, *, policy, rngs):
        return AuxiliaryHead(self.inner.build(schema, policy=policy, rngs=rngs), policy=policy, rngs=rngs)


class AuxiliaryHead(nnx.Module):
    def __init__(self, inner, *, policy, rngs):
        self.inner = inner
        self.head = Dense(44, 1, policy=policy, rngs=rngs)  # the pairs of tokens, and the dense features

    def __call__(self, batch, embedded, key=None):
        outputs = self.inner(batch, embedded, key)
        auxiliary = self.head(jax.lax.stop_gradient(outputs.representations["last"]))
        return dataclasses.replace(outputs, representations=outputs.representations | {"auxiliary": auxiliary})


@dataclasses.dataclass(frozen=True)
class WithTeacher:
    """An objective config: the usual one, and the auxiliary head's against a teacher's soft label."""

    def build(self, schema):
        usual = MultiTaskConfig().build(schema)

        def objective(outputs, batch):
            total, measures = usual(outputs, batch)
            losses = binary_cross_entropy(outputs.representations["auxiliary"][:, 0], jnp.full(batch.weight.shape, 0.3))
            taught = jnp.sum(losses * batch.weight)
            return total + taught, measures | {"loss/auxiliary": taught}

        return objective


class RoundedStore(DeviceStore):
    """Rows are kept as they are and read as bfloat16."""

    def read(self, state, name, rows):
        values = super().read(state, name, rows)
        return values.astype(jnp.bfloat16).astype(jnp.float32) if name == "weight" else values


def program_of(model, objective, store) -> Program:
    config = Config(
        name="additions",
        data=SyntheticConfig(),
        model=model,
        objective=objective,
        batch=BatchConfig(examples=12),
        optimizer=OptimizerConfig(learning_rate=0.02),
        mesh=MeshConfig(replica=1, shard=1),
    )
    return Program.of(config, FULL, RunPlan.of(config, FULL, store=store))


def test_a_head_an_objective_and_a_store_of_ones_own():
    inner = DLRMConfig(embedding_dim=8, bottom_hidden=(8,), top_hidden=(16,))
    plain = program_of(inner, MultiTaskConfig(), DeviceStore())
    added = program_of(WithAuxiliaryHead(inner), WithTeacher(), RoundedStore())
    batch, auxiliary = random_batch(FULL, 12), []
    plain_state, state = plain.init(0), added.init(0)
    # Parameters are drawn by name, and those of the inner model have another one here: both start from the same.
    given = {name.replace("dense/", "dense/inner/", 1): x for name, x in plain.to_logical(plain_state).items()}
    state = added.from_logical({name: given.get(name, x) for name, x in added.to_logical(state).items()})
    rounded, exact = (np.asarray(p.eval_step(s, batch)) for p, s in ((added, state), (plain, plain_state)))
    assert 0 < np.abs(rounded - exact).max() < 0.01  # the store was asked
    for _ in range(20):
        plain_state, _ = plain.train_step(plain_state, batch, 0.5)
        state, outputs = added.train_step(state, batch, 0.5)
        auxiliary.append(float(outputs["measures"]["loss/auxiliary"]))
    assert auxiliary[-1] < auxiliary[0] and "loss/click" in outputs["measures"]
    arrays = added.to_logical(state)
    assert arrays["dense/head/kernel/value"].shape == (44, 1) and "dense/inner/head/mlp/layers/0/kernel/value" in arrays
