"""What happens to what the heads have read, before it is projected out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from xtdist.nn.attention.config import AttentionConfig, GateConfig
from xtdist.nn.attention.scores import softclamp
from xtdist.nn.linear import Linear


def laser_in(v: Tensor, cap: float) -> Tensor:
    """exp of values that can't exceed ``cap``: attention is then over exponentials (2411.03493)."""
    return softclamp(v.float(), cap).exp()


def laser_out(out: Tensor) -> Tensor:
    """The way back; nothing read gives the smallest number, not −∞."""
    return out.clamp(min=1e-20).log()


class Gate(nn.Module):
    """A projection of vectors to one logit per channel, or per head, of what the heads read."""

    def __init__(self, dim: int, heads: int, dim_head: int, config: GateConfig) -> None:
        super().__init__()
        self.heads, self.headwise, self.silu = heads, config.headwise, config.silu_between
        out = heads if config.headwise else heads * dim_head
        self.down = None if config.rank is None else Linear(dim, config.rank)
        self.up = Linear(dim if config.rank is None else config.rank, out)

    def forward(self, x: Float[Tensor, "b n m"]) -> Float[Tensor, "b h n _d"]:
        if self.down is not None:
            x = self.down(x)
            x = F.silu(x) if self.silu else x
        logits = self.up(x)
        return rearrange(logits, "b n (h d) -> b h n d", h=self.heads)


class HeadGate(nn.Module):
    """One gate for each head from the token; starts open (2306.12929)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(heads, dim))
        self.bias = nn.Parameter(torch.empty(heads))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Start open, whatever the token: sigmoid(10)."""
        self.weight.zero_()
        self.bias.fill_(10.0)

    def forward(self, x: Float[Tensor, "b n m"]) -> Float[Tensor, "b h n 1"]:
        return rearrange(F.linear(x, self.weight, self.bias).sigmoid(), "b n h -> b h n 1")


class HeadScale(nn.Module):
    """A learned gain for each head (NormFormer)."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.empty(heads))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Start as the identity."""
        self.gain.fill_(1.0)

    def forward(self, out: Float[Tensor, "b h n d"]) -> Float[Tensor, "b h n d"]:
        return out * rearrange(self.gain, "h -> h 1 1").to(out.dtype)


class ValueMods(nn.Module):
    """Head gains and gates, in this order."""

    def __init__(self, dim: int, heads: int, config: AttentionConfig) -> None:
        super().__init__()
        dim_head = config.value_dim_head or config.dim_head
        self.activation = config.gate_activation
        self.head_scale = HeadScale(heads) if config.head_scale else None
        self.head_gate = HeadGate(dim, heads) if config.gate_heads else None
        self.gate = self.output_gate = None
        if config.gate is not None:
            self.gate = Gate(dim, heads, dim_head, config.gate)
        if config.output_gate is not None:
            self.output_gate = Gate(heads * dim_head, heads, dim_head, config.output_gate)

    def forward(
        self, out: Float[Tensor, "b h n d"], x: Float[Tensor, "b n m"]
    ) -> Float[Tensor, "b h n d"]:
        """``out`` is what the heads read for the tokens ``x``."""
        if self.head_scale is not None:
            out = self.head_scale(out)
        if self.head_gate is not None:
            out = out * self.head_gate(x)
        logits = None if self.gate is None else self.gate(x)
        if self.output_gate is not None:
            more = self.output_gate(rearrange(out, "b h n d -> b n (h d)"))
            logits = more if logits is None else logits + more
        if logits is None:
            return out
        return out * (F.silu(logits) if self.activation == "silu" else logits.sigmoid())
