"""Models; each is built from a schema by its config. A config file may bring its own (`ModelConfig`)."""

from gem_jax.models.dcnv2 import DCNv2Config as DCNv2Config
from gem_jax.models.deepfm import DeepFMConfig as DeepFMConfig
from gem_jax.models.din import DINConfig as DINConfig
from gem_jax.models.dlrm import DLRMConfig as DLRMConfig
from gem_jax.models.esmm import ESMMConfig as ESMMConfig
from gem_jax.models.finalmlp import FinalMLPConfig as FinalMLPConfig
from gem_jax.models.gem import GemConfig as GemConfig
from gem_jax.models.hstu import HSTUConfig as HSTUConfig
from gem_jax.models.interformer import InterFormerConfig as InterFormerConfig
from gem_jax.models.logistic_regression import LogisticRegressionConfig as LogisticRegressionConfig
from gem_jax.models.mmoe import MMoEConfig as MMoEConfig
from gem_jax.models.outputs import Model as Model
from gem_jax.models.outputs import ModelConfig as ModelConfig
from gem_jax.models.outputs import Outputs as Outputs
from gem_jax.models.outputs import table_width as table_width
from gem_jax.models.sasrec import SASRecConfig as SASRecConfig
from gem_jax.models.wukong import WukongConfig as WukongConfig
