"""Which numbers of a teacher's representation are kept.

Shape letters: B batch, R size of a representation, d components kept of it.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from gem_jax.errors import UserError
from gem_jax.parallel.mesh import EVERYWHERE
from gem_jax.run.memory import device_batch
from gem_jax.run.program import Program
from gem_jax.transfer.manifest import EmbeddingConfig


class Projection:
    """What is kept of a representation: its product with a fixed random matrix [R, d] of variance 1 / R, so that components stay of
    the order that they have, and angles are kept as Johnson and Lindenstrauss say; all of it where R is no more than d.

    Args:
      config: which representation, and d.
      size: R.
      mesh: the devices that it lies on.

    Attributes:
      config: the same.
      name: of the representation.
      width: components kept.
    """

    def __init__(self, config: EmbeddingConfig, size: int, mesh: Mesh):
        self.config, self.name, self.width = config, config.representation, min(size, config.dim)
        matrix = None
        if size > config.dim:
            matrix = np.random.default_rng(config.seed).normal(size=(size, config.dim)).astype(np.float32) / np.sqrt(
                np.float32(size)
            )

        def project(x: jax.Array) -> jax.Array:
            x = x.astype(jnp.float32)
            return x if matrix is None else jnp.dot(x, matrix, precision=jax.lax.Precision.HIGHEST)

        self._project = jax.jit(project, out_shardings=NamedSharding(mesh, P(EVERYWHERE)))

    @classmethod
    def of(cls, config: EmbeddingConfig | None, program: Program) -> "Projection | None":
        """For a program's model; None where no embedding is asked for.

        Raises:
          UserError: the model has no such representation.
        """
        if config is None:
            return None
        one = device_batch(program.config, program.schema)
        whole = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((x.shape[0] * program.mesh.size, *x.shape[1:]), x.dtype), one
        )
        found = jax.eval_shape(program.score, program.shapes(), whole).representations
        if config.representation not in found:
            raise UserError(
                f"the teacher has no representation '{config.representation}'; it has {', '.join(sorted(found))}: set "
                "embedding.representation to one of them"
            )
        return cls(config, found[config.representation].shape[1], program.mesh)

    def __call__(self, representation: Float[Array, "B R"]) -> Float[Array, "B d"]:
        """float32, on the representation's devices."""
        return self._project(representation)
