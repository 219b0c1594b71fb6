"""Names that values carry through a trace (`checkpoint_name`): what recomputation and number formats are chosen by.

Where in the model a value arises is said by `jax.named_scope`, not here.
"""

NORM = "norm"
"""Output of a normalisation."""

ACTIVATION = "activation"
"""Output of a nonlinearity or a gate."""

ATTENTION = "attention"
"""Output of attention over a history, over layers, or of a personalisation."""

PROJECTION = "projection"
"""Output of a product with a parameter."""

INTERACTION = "interaction"
"""Output of a product of tokens with each other: factorization machine, dot products, cross network."""

PARAMETER = "parameter"
"""A parameter in the dtype in which it is used."""

GATHERED = "gathered"
"""A parameter that HSDP has gathered from the devices of its group."""

RECOMPUTABLE = (NORM, ACTIVATION, ATTENTION, PROJECTION, INTERACTION, PARAMETER)
"""What `Policy.recompute` may name; gathered parameters are `remat.regather`'s."""
