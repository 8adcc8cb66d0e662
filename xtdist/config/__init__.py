"""Typed configs, how they are read, and what a mistake in them looks like."""

from xtdist.config.base import (
    FiniteFloat,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Probability,
    configclass,
    digest,
    from_mapping,
    to_mapping,
    within,
)
from xtdist.config.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    ResourceError,
    UnreachableError,
    UserError,
)
from xtdist.config.fields import Elsewhere
from xtdist.config.load import Loaded, load
from xtdist.config.seeds import derive_seed

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "Elsewhere",
    "FiniteFloat",
    "Fraction",
    "Loaded",
    "NonNegativeFloat",
    "NonNegativeInt",
    "PositiveFloat",
    "PositiveInt",
    "Probability",
    "ResourceError",
    "UnreachableError",
    "UserError",
    "configclass",
    "derive_seed",
    "digest",
    "from_mapping",
    "load",
    "to_mapping",
    "within",
]
