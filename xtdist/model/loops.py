"""A stack that runs several times: recycling and looping."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor, nn

from xtdist.model.parts import LoopedConfig, RecyclingConfig
from xtdist.model.stack import StackOutput
from xtdist.nn.linear import Linear

RunStack = Callable[[Tensor, int], StackOutput]
"""(input, number of the pass) ↦ what the stack makes of it."""


@dataclass(frozen=True, kw_only=True)
class LoopOutput:
    """The last pass, the hidden states to go on with and, for a looped stack, those of every pass,
    the logits of leaving after each, and the number of the pass at which each token has left."""

    stack: StackOutput
    hidden: Float[Tensor, "b n d"]
    hiddens: tuple[Float[Tensor, "b n d"], ...] = ()
    exit_logits: tuple[Float[Tensor, "b n 1"], ...] = ()
    exits: Int[Tensor, "b n"] | None = None


class Recycling(nn.Module):
    """x ↦ stack(x + W stack(x + W stack(…))), with gradients in the last pass only.

    All ranks of a distributed run make the same number of passes: it is drawn from torch's
    default CPU generator on rank 0 and broadcast.
    """

    def __init__(self, dim: int, config: RecyclingConfig) -> None:
        super().__init__()
        self.config = config
        self.proj = Linear(dim, dim)

    def run(self, x: Float[Tensor, "b n d"], stack: RunStack, *, steps: int | None) -> LoopOutput:
        """``steps`` passes, without it as many as the config says."""
        steps = steps or (self.draw(x.device) if self.training else self.config.max_steps)
        differentiable = torch.is_grad_enabled()
        out: StackOutput | None = None
        for step in range(steps):
            with torch.set_grad_enabled(differentiable and step == steps - 1):
                # the first pass recycles nothing; the weight gets its gradient all the same
                recycled = torch.zeros_like(x) if out is None else out.hidden.detach()
                wanted = out is not None or torch.is_grad_enabled()
                out = stack(x + self.proj(recycled) if wanted else x, step)
        assert out is not None
        return LoopOutput(stack=out, hidden=out.hidden)

    def draw(self, device: torch.device) -> int:
        """A number of passes, the same on all ranks."""
        steps = torch.randint(1, self.config.max_steps + 1, ())
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            steps = steps.to(device)
            torch.distributed.broadcast(steps, src=0)
        return int(steps)


class Looped(nn.Module):
    """x ↦ stack(… stack(stack(x))), and after each pass the logit of leaving (2510.25741)."""

    def __init__(self, dim: int, config: LoopedConfig) -> None:
        super().__init__()
        self.config = config
        self.exit_gate = Linear(dim, 1)

    def run(
        self,
        x: Float[Tensor, "b n d"],
        stack: RunStack,
        *,
        steps: int | None,
        threshold: float | None,
    ) -> LoopOutput:
        """``steps`` passes for all tokens, of which each takes the one at which it has left with
        probability ``threshold``, the last without one."""
        hiddens, exit_logits = [], []
        for step in range(steps or self.config.max_steps):
            out = stack(x, step)
            x = out.hidden
            hiddens.append(x)
            exit_logits.append(self.exit_gate(x))
        if self.training:  # the gate has a gradient in every step, also where no loss asks for it
            x = x + 0.0 * torch.stack(exit_logits).sum()
        exits: Tensor | None = None
        if threshold is not None:
            exits = first_exits(exit_logits, threshold)
            index = repeat(exits, "b n -> 1 b n d", d=x.shape[-1])
            x = torch.stack(hiddens).gather(0, index)[0]
        return LoopOutput(
            stack=out,
            hidden=x,
            hiddens=tuple(hiddens),
            exit_logits=tuple(exit_logits),
            exits=exits,
        )


def first_exits(logits: list[Float[Tensor, "b n 1"]], threshold: float) -> Int[Tensor, "b n"]:
    """For each token the first pass after which it has left with probability ``threshold``."""
    leaves = rearrange(torch.stack(logits), "s b n 1 -> s b n").float().sigmoid()
    left = 1 - (1 - leaves[:-1]).cumprod(dim=0)
    return (left < threshold).sum(dim=0)
