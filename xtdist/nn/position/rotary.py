"""Rotary position embedding (RoPE), https://arxiv.org/abs/2104.09864."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from xtdist.config import ConfigError

if TYPE_CHECKING:
    from xtdist.nn.position.config import RotaryConfig

Layout = Literal["interleaved", "halves"]
FASTEST_DECAY = 0.4 / 1.4
"""Of xPos: what the fastest channel keeps of a score over ``xpos_scale_base`` positions."""


class Growth(NamedTuple):
    """How far xPos makes queries grow, or keys: at most by 2^bits; the positions to one bit."""

    bits: Float[Tensor, ""]
    positions: float

    def check(self, dtype: torch.dtype) -> None:
        """That ``dtype`` can hold it. On a GPU without waiting for the result; the error then comes
        from the device. A compiled graph does not look.

        Raises:
            ValueError: positions too far from the one that exponents count from.
        """
        most = 8.0 if dtype == torch.float16 else 100.0
        if torch.compiler.is_compiling():
            return
        limit = int(most * self.positions)
        if self.bits.is_cuda:
            name = f"position.xpos_scale_base: positions too far apart for {dtype} ({limit})"
            torch._assert_async(self.bits <= most, name)
        elif float(self.bits) > most:
            raise ValueError(
                f"position.xpos_scale_base: a position lies {int(self.bits * self.positions)} from "
                f"the one that exponents count from, and {dtype} can hold {limit}; give shorter "
                "sequences, bfloat16 instead of float16, or a larger base; with a cache, also an "
                "xpos_centre amid the positions"
            )


class RotaryTable(NamedTuple):
    """How far to turn each of r pairs of channels at each position, in fp32.

    ``phase`` holds the cosine and the sine, times what else multiplies the pair. ``layout``: a pair
    is two neighbours, or channel i of either half. ``heads``: so many of the last are turned, None
    = all. ``growth``: with xPos.
    """

    phase: Float[Tensor, "b 1 n r 2"]
    layout: Layout = "interleaved"
    heads: int | None = None
    growth: Growth | None = None

    @property
    def cos(self) -> Float[Tensor, "b 1 n r"]:
        """The cosines."""
        return self.phase[..., 0]

    @property
    def sin(self) -> Float[Tensor, "b 1 n r"]:
        """The sines."""
        return self.phase[..., 1]


class RotaryTables(NamedTuple):
    """What queries and what keys are turned by: the same table, except with xPos."""

    query: RotaryTable
    key: RotaryTable


def rotary_table(pos: Int[Tensor, "b n"], *, dim: int, theta: float) -> RotaryTable:
    """The angles pos · theta^(−2i/dim), i < dim/2.

    Computed in fp32 from integer positions at every call: there is no buffer that a cast of the
    module to bf16 could round (bf16 can't tell position 256 from 257).
    """
    return RotaryTable(_phase(pos, _frequency(dim, theta, pos.device)))


def rotary_tables(
    pos: Int[Tensor, "b n"],
    config: RotaryConfig,
    *,
    dim_head: int,
    around: Int[Tensor, "b m"] | None = None,
) -> RotaryTables:
    """The tables of ``config`` for heads of ``dim_head`` channels; compute them once for all
    layers, in fp32 as above.

    xPos counts its exponents from the middle of the positions ``around``, so that they stay small
    wherever a sequence stands: no score depends on it, as long as queries and keys have the same.
    None = from ``xpos_centre``, for keys that later queries read.

    Raises:
        ConfigError: the config's ``dim`` does not fit into the head.
    """
    dim = config.dim or dim_head
    if dim % 2 or dim > dim_head:
        raise ConfigError(
            f"position.dim: {dim} channels can't be rotated in pairs in a head of {dim_head}; "
            "give an even number up to that"
        )
    theta = config.theta
    if config.theta_rescale != 1:
        theta *= config.theta_rescale ** (dim / (dim - 2))
    frequency, amplitude = _frequency(dim, theta, pos.device), 1.0
    if config.scaling is not None:
        frequency = config.scaling.scale(frequency, dim=dim, theta=theta)
        amplitude = config.scaling.amplitude
    phase = _phase(pos, frequency, interpolation=config.interpolation)
    if amplitude != 1:
        phase = phase * amplitude
    query = key = phase
    growth = None
    if config.xpos_scale_base is not None:
        from_centre = pos - (config.xpos_centre if around is None else _middle(around))
        times, growth = _xpos(from_centre, dim=dim, base=config.xpos_scale_base)
        query, key = phase * times, phase / times
    pad = 0
    if config.layout == "interleaved" and dim_head % 2 == 0:
        pad = (dim_head - dim) // 2  # a turn by nothing is cheaper than to cut and to join
    query_table = RotaryTable(_pad_unturned(query, pad), config.layout, config.heads, growth)
    if key is query:
        return RotaryTables(query_table, query_table)
    return RotaryTables(query_table, query_table._replace(phase=_pad_unturned(key, pad)))


def rotate(x: Float[Tensor, "b h n d"], table: RotaryTable) -> Float[Tensor, "b h n d"]:
    """Turn each pair of channels by its angle; channels and heads beyond the table stay.

    The arithmetic is fp32, the result has the type of ``x``.

    Raises:
        ValueError: xPos at positions too far apart for that type.
    """
    if table.growth is not None:
        table.growth.check(x.dtype)
    if table.heads is not None and table.heads < x.shape[1]:
        rest, turned = x.split((x.shape[1] - table.heads, table.heads), dim=1)
        return torch.cat((rest, rotate(turned, table._replace(heads=None))), dim=1)
    rotated = 2 * table.phase.shape[-2]
    turn = _turn_neighbours if table.layout == "interleaved" else _turn_halves
    if rotated == x.shape[-1]:
        return turn(x, table)
    return torch.cat((turn(x[..., :rotated], table), x[..., rotated:]), dim=-1)


def _turn_neighbours(x: Float[Tensor, "b h n d"], table: RotaryTable) -> Float[Tensor, "b h n d"]:
    """(x₀ + i x₁) · phase: one complex product, 4 to 17 times faster on CPU than its four real
    ones, which a compiler fuses better (and does not fuse when complex)."""
    wide = x if x.dtype == torch.float64 else x.float()
    if torch.compiler.is_compiling():
        even, odd = rearrange(wide, "... (r two) -> two ... r", two=2)
        turned = torch.stack(_product(even, odd, table), dim=-1)
    else:
        pairs = torch.view_as_complex(_aligned(wide).unflatten(-1, (-1, 2)))
        turned = torch.view_as_real(pairs * torch.view_as_complex(table.phase))
    return turned.flatten(-2).to(x.dtype)


def _turn_halves(x: Float[Tensor, "b h n d"], table: RotaryTable) -> Float[Tensor, "b h n d"]:
    first, second = x.chunk(2, dim=-1)
    return torch.cat(_product(first, second, table), dim=-1).to(x.dtype)


def _product(real: Tensor, imaginary: Tensor, table: RotaryTable) -> tuple[Tensor, Tensor]:
    """Real and imaginary part of (real + i imaginary) · phase."""
    cos, sin = table.cos, table.sin
    return real * cos - imaginary * sin, imaginary * cos + real * sin


def _aligned(x: Tensor) -> Tensor:
    """``x`` such that neighbouring channels can be seen as one complex number without a copy."""
    *strides, last = x.stride()
    odd = x.storage_offset() % 2 or any(stride % 2 for stride in strides)
    return x.contiguous() if odd or last != 1 else x


def _frequency(dim: int, theta: float, device: torch.device) -> Float[Tensor, " r"]:
    """theta^(−2i/dim): radians for each position."""
    channel = torch.arange(0, dim, 2, device=device, dtype=torch.float32)
    return 1.0 / theta ** (channel / dim)


def _phase(
    pos: Int[Tensor, "b n"], frequency: Float[Tensor, " r"], *, interpolation: float = 1.0
) -> Float[Tensor, "b 1 n r 2"]:
    """Cosine and sine of pos · frequency / interpolation."""
    angle = rearrange(pos, "b n -> b 1 n 1").to(torch.float32) * frequency
    if interpolation != 1:
        angle = angle / interpolation
    return torch.stack((angle.cos(), angle.sin()), dim=-1)


def _xpos(
    pos: Int[Tensor, "b n"], *, dim: int, base: int
) -> tuple[Float[Tensor, "b 1 n r 1"], Growth]:
    """How far queries grow, and keys shrink, by ``pos`` (xPos, 2212.10554): each channel's decay
    for ``base`` positions is a number between 0.29 (fast turning) and 1 (slow)."""
    channel = torch.arange(0, dim, 2, device=pos.device, dtype=torch.float32)
    decay = (channel + 0.4 * dim) / (1.4 * dim)
    exponent = rearrange(pos, "b n -> b 1 n 1 1").to(torch.float32) / base
    bits = -math.log2(FASTEST_DECAY)
    farthest = exponent.abs().amax() if pos.numel() else exponent.new_zeros(())
    growth = Growth(farthest * bits, base / bits)
    return rearrange(decay, "r -> r 1") ** exponent, growth


def _middle(pos: Int[Tensor, "b n"]) -> Int[Tensor, "b 1"] | int:
    """Halfway between the first and the last of each row."""
    if not pos.numel():
        return 0
    return (pos.amin(dim=1, keepdim=True) + pos.amax(dim=1, keepdim=True)) // 2


def _pad_unturned(phase: Float[Tensor, "b 1 n r 2"], pairs: int) -> Float[Tensor, "b 1 n r 2"]:
    """``phase`` with so many more pairs that do not turn."""
    if pairs == 0:
        return phase
    padded = F.pad(phase, (0, 0, 0, pairs))
    padded[..., -pairs:, 0] = 1.0
    return padded
