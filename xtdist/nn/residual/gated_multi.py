"""Gated multi-stream residual (Qwen3-Next family, vendor blog)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from jaxtyping import Bool, Float
from torch import Tensor, nn

from xtdist.nn.linear import Linear
from xtdist.nn.norm import SimpleRMSNormConfig
from xtdist.nn.residual.base import Carry, Residual
from xtdist.nn.residual.config import GatedMultiResidualConfig

_START_SCALE = 0.01  # of everything that depends on the token


class GatedMultiResidual(Residual):
    """Reads the mean of the normalized streams, each channel of each gated by σ(low-rank map);
    writes to stream s with the weight 2 σ(a scalar). Both gates share one bottleneck.

    The input that it gives to the branch is normalized already. ``layer`` chooses the stream whose
    gate is more open at first.
    """

    def __init__(
        self, dim: int, config: GatedMultiResidualConfig, *, layer: int, views: int = 1
    ) -> None:
        super().__init__()
        self.layer, self.views, self.streams = layer, views, config.streams
        self.norm = SimpleRMSNormConfig(eps=2**-23).build(dim)
        self.read_gain = nn.Parameter(torch.empty(config.streams, dim))
        self.static_read = nn.Parameter(torch.empty(views, config.streams, dim))
        self.static_write = nn.Parameter(torch.empty(config.streams))
        wide, rank = dim * config.streams, config.read_gate_rank
        self.to_bottleneck = Linear(wide, rank)
        self.to_read = Linear(rank, wide * views, init_gain=0.0)
        self.to_write = Linear(rank, config.streams, init_gain=0.0)
        self.dynamic_scale = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Start without dependence on the token, writing to each stream with weight 1."""
        self.read_gain.fill_(1.0)
        self.static_read.zero_()
        self.static_read[:, self.layer % self.streams] = 1.0
        self.static_write.zero_()
        self.dynamic_scale.fill_(_START_SCALE)

    def read(self, stream: Float[Tensor, "b *s n d"]) -> tuple[Float[Tensor, "*v b n d"], Carry]:
        if self.streams == 1:
            stream = rearrange(stream, "b n d -> b 1 n d")
        normed = self.norm(stream) * rearrange(self.read_gain, "s d -> s 1 d")
        flat = rearrange(normed, "b s n d -> b n (s d)") / self.streams
        low = F.silu(self.to_bottleneck(flat)) * self.dynamic_scale
        gate = rearrange(
            self.to_read(low), "b n (v s d) -> v b s n d", v=self.views, s=self.streams
        )
        gate = torch.sigmoid(gate + rearrange(self.static_read, "v s d -> v 1 s 1 d"))
        x = reduce(gate * normed, "v b s n d -> v b n d", "sum") / self.streams
        strength = 2 * torch.sigmoid(self.to_write(low) + self.static_write)
        return x[0] if self.views == 1 else x, (stream, rearrange(strength, "b n s -> b s n 1"))

    def write(
        self, branch: Float[Tensor, "b n d"], carry: Carry, mask: Bool[Tensor, "b n"] | None
    ) -> Float[Tensor, "b *s n d"]:
        stream, strength = carry
        stream = torch.addcmul(stream, strength, rearrange(branch, "b n d -> b 1 n d"))
        return stream[:, 0] if self.streams == 1 else stream
