"""The models that a config can name; each config builds its model from a schema."""

from gem_jax.data.schema import Schema
from gem_jax.models.dcnv2 import DCNv2Config
from gem_jax.models.dlrm import DLRMConfig
from gem_jax.models.gem import GemConfig
from gem_jax.models.hstu import HSTUConfig
from gem_jax.models.interformer import InterFormerConfig
from gem_jax.models.logistic_regression import LogisticRegressionConfig
from gem_jax.models.sasrec import SASRecConfig
from gem_jax.models.wukong import WukongConfig

type ModelConfig = (
    GemConfig
    | WukongConfig
    | InterFormerConfig
    | HSTUConfig
    | SASRecConfig
    | DLRMConfig
    | DCNv2Config
    | LogisticRegressionConfig
)


def table_width(model: ModelConfig, schema: Schema) -> int:
    """Width of the embedding tables that the model reads."""
    return len(schema.tasks) if model.embedding_dim is None else model.embedding_dim
