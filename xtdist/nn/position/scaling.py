"""Rotary frequencies for contexts longer than a model was trained on, wavelength by wavelength."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from xtdist.config import ConfigError, Elsewhere, PositiveFloat, PositiveInt, configclass


def _check_factor(factor: float) -> None:
    if factor < 1:
        raise ConfigError(
            f"position.scaling.factor: got {factor}; give how many times longer the context gets, "
            "1 or more"
        )


@configclass
class YarnConfig:
    """YaRN (2309.00071). Channels that turn more than ``beta_fast`` times within
    ``original_max_len`` stay, those that turn less than ``beta_slow`` times are slowed down by
    ``factor``, with a ramp between. ``attention_factor`` multiplies rotated queries and keys; null
    = 0.1 ln(factor) + 1."""

    kind: Literal["yarn"] = "yarn"
    factor: PositiveFloat
    original_max_len: PositiveInt
    beta_fast: PositiveFloat = 32.0
    beta_slow: PositiveFloat = 1.0
    attention_factor: PositiveFloat | None = None

    def __post_init__(self) -> None:
        _check_factor(self.factor)
        if self.beta_fast <= self.beta_slow:
            raise ConfigError(
                f"position.scaling.beta_fast: got {self.beta_fast}; it must be above beta_slow="
                f"{self.beta_slow} (turns within original_max_len)"
            )

    @property
    def amplitude(self) -> float:
        """The factor on rotated queries and keys."""
        if self.attention_factor is not None:
            return self.attention_factor
        return 0.1 * math.log(self.factor) + 1.0

    def scale(
        self, frequency: Float[Tensor, " r"], *, dim: int, theta: float
    ) -> Float[Tensor, " r"]:
        """The slowed frequencies theta^(−2i/dim)."""

        def channel(turns: float) -> float:
            """The pair of channels that turns so often within the original length."""
            wavelength = self.original_max_len / (2 * math.pi * turns)
            return dim * math.log(wavelength) / (2 * math.log(theta))

        first = max(math.floor(channel(self.beta_fast)), 0)
        last = min(math.ceil(channel(self.beta_slow)), dim - 1)
        width = last - first if last != first else 1e-3
        pair = torch.arange(dim // 2, device=frequency.device, dtype=torch.float32)
        slowed = ((pair - first) / width).clamp(0, 1)
        return frequency / self.factor * slowed + frequency * (1 - slowed)


@configclass
class Llama3Config:
    """The rule of Llama 3.1: wavelengths above ``original_max_len / low_freq_factor`` grow by
    ``factor``, those below ``original_max_len / high_freq_factor`` stay, with a ramp between."""

    kind: Literal["llama3"] = "llama3"
    factor: PositiveFloat = 8.0
    low_freq_factor: PositiveFloat = 1.0
    high_freq_factor: PositiveFloat = 4.0
    original_max_len: PositiveInt = 8192

    def __post_init__(self) -> None:
        _check_factor(self.factor)
        if self.high_freq_factor <= self.low_freq_factor:
            raise ConfigError(
                f"position.scaling.high_freq_factor: got {self.high_freq_factor}; it must be above "
                f"low_freq_factor={self.low_freq_factor}"
            )

    @property
    def amplitude(self) -> float:
        """Rotated queries and keys keep their size."""
        return 1.0

    def scale(
        self, frequency: Float[Tensor, " r"], *, dim: int, theta: float
    ) -> Float[Tensor, " r"]:
        """The slowed frequencies."""
        turns = self.original_max_len * frequency / (2 * math.pi)
        span = self.high_freq_factor - self.low_freq_factor
        kept = ((turns - self.low_freq_factor) / span).clamp(0, 1)
        return frequency / self.factor * (1 - kept) + frequency * kept


PLAIN = "that is position.interpolation, a factor"
REBASED = "that is position.theta_rescale, a factor"
RopeScaling = Annotated[
    YarnConfig | Llama3Config,
    Field(discriminator="kind"),
    Elsewhere({"linear": PLAIN, "interpolation": PLAIN, "ntk": REBASED, "dynamic": REBASED}),
]
