"""Mixture of experts: every token goes through the few feed-forward layers its router picks."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from xtdist.nn.aux import AuxLoss
from xtdist.nn.feedforward.config import GLUConfig, MoEConfig, inner_dim
from xtdist.nn.feedforward.dense import FeedForward, activate_gate, activate_mlp, clamp_up
from xtdist.nn.feedforward.grouped import grouped_matmul
from xtdist.nn.linear import Linear, scaled_normal_


class MoEOutput(NamedTuple):
    """The layer's output and its auxiliary losses ("balance", "router_z")."""

    out: Float[Tensor, "b n d"]
    aux: tuple[AuxLoss, ...]


class Routing(NamedTuple):
    """What the router says about t tokens: all scores in fp32, and each token's k experts."""

    logits: Float[Tensor, "t e"]
    probs: Float[Tensor, "t e"]
    chosen: Int[Tensor, "t k"]
    weight: Float[Tensor, "t k"]


class Router(Linear):
    """The score of each expert for each token, computed in fp32 also under autocast."""

    def forward(  # type: ignore[override]  # nothing comes before it
        self, x: Float[Tensor, "t d"]
    ) -> Float[Tensor, "t e"]:
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.float(), self.weight.float())


def route(logits: Float[Tensor, "t e"], top_k: int) -> Routing:
    """The ``top_k`` experts of each token with their softmax weights, renormalized to sum to 1.

    A single expert keeps its probability as weight (Switch): renormalized it would be the
    constant 1, and the router would learn nothing from the task.
    """
    probs = logits.softmax(dim=-1)
    weight, chosen = probs.topk(top_k, dim=-1)
    if top_k > 1:
        weight = weight / weight.sum(dim=-1, keepdim=True)
    return Routing(logits, probs, chosen, weight)


def balance_loss(routing: Routing, counts: Float[Tensor, " t"], *, scale: float) -> AuxLoss:
    """experts · Σᵢ fᵢ Pᵢ (Switch, 2101.03961): fᵢ the share of assignments that expert i got, Pᵢ
    its mean probability. 1 when even, up to ``experts`` when one gets all. ``counts`` is 1 for real
    tokens, 0 for padding. Shares are of this call's tokens."""
    experts, k = routing.probs.shape[-1], routing.chosen.shape[-1]
    tokens = counts.sum()
    hits = counts[:, None].expand_as(routing.chosen)
    load = routing.probs.new_zeros(experts).scatter_add(0, routing.chosen.flatten(), hits.flatten())
    share = load / (k * tokens).clamp(min=1)
    return AuxLoss("balance", experts * (share * (counts @ routing.probs)).sum(), tokens, scale)


def router_z_loss(routing: Routing, counts: Float[Tensor, " t"], *, scale: float) -> AuxLoss:
    """log²(Σ exp(scores)) of each real token (ST-MoE, 2202.08906): keeps the scores small."""
    squares = routing.logits.logsumexp(dim=-1).square()
    return AuxLoss("router_z", (squares * counts).sum(), counts.sum(), scale)


class MoE(nn.Module):
    """Σ over a token's experts of weight · expert(x), plus the shared experts.

    The weights of all experts are one parameter for each projection, (experts, in, out), so that
    sharded training gathers them in one call on every rank and each expert has a gradient in every
    step (zeros for one without tokens).

    Tokens are sorted by expert, and each projection is one grouped matrix product. In bf16 this is
    torch's kernel; otherwise a loop that reads the group sizes on the host (one synchronization for
    each projection), where torch.compile breaks the graph.
    """

    def __init__(self, dim: int, config: MoEConfig, *, init_gain: float = 1.0) -> None:
        super().__init__()
        expert = config.expert
        inner = inner_dim(expert, dim)
        wide = inner * (2 if isinstance(expert, GLUConfig) else 1)
        self.config = config
        self.gain_out = 0.0 if expert.zero_init_output else init_gain
        self.router = Router(dim, config.experts)
        self.proj_in = nn.Parameter(torch.empty(config.experts, dim, wide))
        self.proj_out = nn.Parameter(torch.empty(config.experts, inner, dim))
        self.bias_in = nn.Parameter(torch.empty(config.experts, wide)) if expert.bias_in else None
        self.bias_out = nn.Parameter(torch.empty(config.experts, dim)) if expert.bias_out else None
        self.shared = (
            FeedForward(dim, expert, init_gain=init_gain, inner=inner * config.shared_experts)
            if config.shared_experts
            else None
        )
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw each expert as a feed-forward layer of its size would be."""
        scaled_normal_(self.proj_in, self.proj_in.shape[1], generator)
        scaled_normal_(self.proj_out, self.proj_out.shape[1], generator)
        self.proj_out.mul_(self.gain_out)
        for bias in (self.bias_in, self.bias_out):
            if bias is not None:
                bias.zero_()

    def forward(
        self, x: Float[Tensor, "b n d"], mask: Bool[Tensor, "b n"] | None = None
    ) -> MoEOutput:
        """``mask`` True = a real token; others count in no auxiliary loss.

        Raises:
            ValueError: a mask of another shape.
        """
        if mask is not None and mask.shape != x.shape[:2]:
            raise ValueError(
                f"mask: got shape {tuple(mask.shape)} for tokens {tuple(x.shape[:2])}; give one "
                "True (real) or False (padding) for each token"
            )
        rows = rearrange(x, "b n d -> (b n) d")
        routing = route(self.router(rows), self.config.top_k)
        b, n = x.shape[:2]  # both, for a batch of none
        out = rearrange(self.experts(rows, routing), "(b n) d -> b n d", b=b, n=n)
        out = F.dropout(out, self.config.expert.dropout_out, self.training)
        if self.shared is not None:
            out = out + self.shared(x)
        real = torch.ones_like(x[..., 0], dtype=torch.bool) if mask is None else mask
        counts = rearrange(real, "b n -> (b n)").float()
        return MoEOutput(
            out,
            (
                balance_loss(routing, counts, scale=self.config.balance_loss_weight),
                router_z_loss(routing, counts, scale=self.config.z_loss_weight),
            ),
        )

    def experts(self, x: Float[Tensor, "t d"], routing: Routing) -> Float[Tensor, "t d"]:
        """Each token through its experts: sort by expert, two grouped products, sort back."""
        k = self.config.top_k
        expert, order = routing.chosen.flatten().sort(stable=True)
        every = torch.arange(self.config.experts, device=x.device)
        ends = torch.searchsorted(expert, every, right=True, out_int32=True)
        h = grouped_matmul(x[order // k], self.proj_in, ends)
        h = self.activate(h if self.bias_in is None else h + self.bias_in[expert])
        h = F.dropout(h, self.config.expert.dropout, self.training)
        h = grouped_matmul(h, self.proj_out, ends)
        h = h if self.bias_out is None else h + self.bias_out[expert]
        h = rearrange(h[order.argsort()], "(t k) d -> t k d", k=k)
        return reduce(h * routing.weight[..., None].to(h.dtype), "t k d -> t d", "sum")

    def activate(self, x: Float[Tensor, "r f"]) -> Float[Tensor, "r e"]:
        """The expert's nonlinearity."""
        expert = self.config.expert
        if not isinstance(expert, GLUConfig):
            return activate_mlp(x, expert)
        up, gate = x.chunk(2, dim=-1)
        return clamp_up(up, expert) * activate_gate(gate, expert)
