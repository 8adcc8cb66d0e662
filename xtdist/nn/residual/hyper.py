"""Hyper-connections: several residual streams with learned, token-dependent wiring."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from xtdist.nn.norm import LayerNormConfig
from xtdist.nn.residual.base import Carry, Residual
from xtdist.nn.residual.config import HyperResidualConfig

_START_SCALE = 0.01  # of everything that depends on the token


def sinkhorn(logits: Float[Tensor, "*b s t"], *, iters: int) -> Float[Tensor, "*b s t"]:
    """A matrix of positive numbers whose rows and columns sum to 1 (the columns exactly), by
    ``iters`` rounds of dividing both by their sums; in the logits' type (give fp32)."""
    mix = logits.softmax(dim=-2)
    for _ in range(iters):
        mix = F.normalize(F.normalize(mix, p=1.0, dim=-1), p=1.0, dim=-2)
    return mix


class HyperResidual(Residual):
    """Dynamic hyper-connections (2409.19606, algorithm 2), with the mix of the streams held
    doubly stochastic (2512.24880).

    Stream s gives σ(αₛᵥ) to the branch's view v and Mₛₜ to stream t; the branch's output reaches
    stream s with the weight 2 σ(βₛ). α, M and β are a learned constant plus a linear map of the
    normalized stream. ``layer`` chooses the stream that the branch reads first.
    """

    def __init__(
        self, dim: int, config: HyperResidualConfig, *, layer: int, views: int = 1
    ) -> None:
        super().__init__()
        self.config, self.layer, self.views = config, layer, views
        streams = config.streams
        self.norm = LayerNormConfig(unit_offset=False).build(dim)
        self.static_alpha = nn.Parameter(torch.empty(streams, views + streams))
        self.dynamic_alpha = nn.Parameter(torch.empty(dim, views + streams))
        self.dynamic_alpha_scale = nn.Parameter(torch.empty(1))
        self.static_beta = nn.Parameter(torch.empty(streams))
        self.dynamic_beta = nn.Parameter(torch.empty(dim))
        self.dynamic_beta_scale = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Start without dependence on the token: read mostly one stream, keep each mostly."""
        streams, views = self.config.streams, self.views
        self.static_alpha.zero_()
        self.static_alpha[self.layer % streams, :views] = 1.0
        self.static_alpha[:, views:].fill_diagonal_(1.0)
        self.static_beta.fill_(1.0)
        for weight in (self.dynamic_alpha, self.dynamic_beta):
            weight.zero_()
        for scale in (self.dynamic_alpha_scale, self.dynamic_beta_scale):
            scale.fill_(_START_SCALE)

    def read(self, stream: Float[Tensor, "b s n d"]) -> tuple[Float[Tensor, "*v b n d"], Carry]:
        normed = self.norm(stream)
        alpha = (normed @ self.dynamic_alpha).float() * self.dynamic_alpha_scale
        alpha = rearrange(alpha, "b s n t -> b n s t") + self.static_alpha
        take = alpha[..., : self.views].sigmoid()
        weights = torch.cat((take, self.mix(alpha[..., self.views :])), dim=-1).to(stream.dtype)
        mixed = einsum(weights, stream, "b n s t, b s n d -> b t n d")
        view, rest = mixed[:, : self.views], mixed[:, self.views :]
        x = view[:, 0] if self.views == 1 else rearrange(view, "b v n d -> v b n d")
        return x, (rest, self.strength(normed))

    def mix(self, logits: Float[Tensor, "b n s t"]) -> Float[Tensor, "b n s t"]:
        """How much of stream s goes on in stream t."""
        if self.config.mixing == "sum":
            return torch.ones_like(logits)
        return sinkhorn(logits, iters=self.config.sinkhorn_iters)

    def strength(self, normed: Float[Tensor, "b s n d"]) -> Float[Tensor, "b s n 1"]:
        """How strongly the branch's output enters each stream."""
        dynamic = 2 * (normed @ self.dynamic_beta).float().sigmoid() * self.dynamic_beta_scale
        static = rearrange(self.static_beta, "s -> s 1")
        return 2 * (dynamic + static).sigmoid()[..., None].to(normed.dtype)

    def write(
        self, branch: Float[Tensor, "b n d"], carry: Carry, mask: Bool[Tensor, "b n"] | None
    ) -> Float[Tensor, "b s n d"]:
        rest, strength = carry
        return torch.addcmul(rest, strength, rearrange(branch, "b n d -> b 1 n d"))
