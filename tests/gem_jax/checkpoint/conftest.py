"""The package's annotations are checked while its tests run."""

from beartype import BeartypeConf
from beartype.claw import beartype_package

beartype_package("gem_jax.checkpoint", conf=BeartypeConf(violation_type=TypeError))
