"""A layer's input from all earlier ones: LIMe and attention over the depth.

No stack of the history is made: what is kept for the backward pass are the hiddens themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from xtdist.config import ConfigError
from xtdist.nn.linear import Linear
from xtdist.nn.norm import RMSNormConfig
from xtdist.nn.residual.config import AttentionResidualConfig, LIMeConfig

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "silu": F.silu,
    "relu": F.relu,
}
_EPS = 2**-23  # of the norms: fp32's relative precision


def weighted_sum(
    hiddens: Sequence[Float[Tensor, "b n d"]], weights: Float[Tensor, "v b n l"]
) -> Float[Tensor, "v b n d"]:
    """Σ_l weights_l · hiddens_l, summed in the weights' type."""
    first, *others = weights[..., None].unbind(dim=-2)
    out = first * hiddens[0]
    for weight, hidden in zip(others, hiddens[1:], strict=True):
        out = torch.addcmul(out, weight, hidden)
    return out


class LIMe(nn.Module):
    """A learned mix of the inputs of all layers so far (2502.09245), weighted from the current one;
    ``views`` 3 = one mix each for queries, keys and values.

    The number of earlier inputs is part of the parameters: ``layers`` counts them, the current one
    included.
    """

    def __init__(self, dim: int, config: LIMeConfig, *, layers: int, views: int = 1) -> None:
        super().__init__()
        self.config, self.layers, self.views = config, layers, views
        self.norm = RMSNormConfig(unit_offset=False, eps=config.eps).build(dim)
        self.to_weights = Linear(dim, views * layers, bias=True)

    def forward(
        self, x: Float[Tensor, "b n d"], hiddens: Sequence[Float[Tensor, "b n d"]]
    ) -> Float[Tensor, "*v b n d"]:
        """``hiddens`` are the inputs of all layers so far, ``x`` itself last.

        Raises:
            ValueError: another number of hiddens than this layer was built for.
        """
        if len(hiddens) != self.layers:
            raise ValueError(
                f"hiddens: got {len(hiddens)} for a layer that mixes {self.layers}; layers that "
                "integrate earlier ones run in the order in which they were built"
            )
        scores = self.to_weights(self.norm(x)).float()
        scores = rearrange(scores, "b n (v l) -> v b n l", v=self.views)
        softmax = self.config.weights == "softmax"
        out = weighted_sum(hiddens, scores.softmax(dim=-1) if softmax else F.relu(scores))
        return out[0].to(x.dtype) if self.views == 1 else out.to(x.dtype)


class _KeyGain(nn.Module):
    """The gain of the keys' norm, which acts on the query: the keys are scored without a copy."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Start as the identity."""
        self.gain.fill_(1.0)

    def forward(self) -> Float[Tensor, " d"]:
        """A view: the parameter itself may be gone when this module is done (ZeRO-3)."""
        return self.gain[:]


class AttentionResidual(nn.Module):
    """Attention of each token over its own inputs in all layers so far (2601.21582, 2603.15031).

    The query is the latest input plus a low-rank map of it, normalized; keys are the normalized
    inputs, values the inputs. ``views`` 3 = one query each for queries, keys and values.
    """

    def __init__(self, dim: int, config: AttentionResidualConfig, *, views: int = 1) -> None:
        super().__init__()
        if config.rank >= dim:
            raise ConfigError(
                f"integrator.rank: got {config.rank} with dim={dim}; a low-rank map has a rank "
                "below dim"
            )
        norm = RMSNormConfig(unit_offset=False, eps=_EPS)
        self.config, self.views, self.dim = config, views, dim
        self.delta_norm, self.query_norm = norm.build(dim), norm.build(dim)
        self.key_norm = _KeyGain(dim)
        self.down = Linear(dim, config.rank)
        self.up = Linear(config.rank, dim * views, init_gain=0.0)

    def forward(
        self, x: Float[Tensor, "b n d"], hiddens: Sequence[Float[Tensor, "b n d"]]
    ) -> Float[Tensor, "*v b n d"]:
        """``hiddens`` are the inputs of all layers so far, ``x`` itself last."""
        query = self.query(x)
        scores = torch.stack([self.score(query, hidden) for hidden in hiddens], dim=-1)
        out = weighted_sum(hiddens, scores.softmax(dim=-1)).to(x.dtype)
        return out[0] if self.views == 1 else out

    def query(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "v b n d"]:
        """norm(x + low-rank(x)), times the keys' gain and dim^-1/2."""
        low = self.down(self.delta_norm(x))
        if self.config.activation != "none":
            low = _ACTIVATIONS[self.config.activation](low)
        delta = rearrange(self.up(low), "b n (v d) -> v b n d", v=self.views)
        return self.query_norm(x + delta) * (self.key_norm() * self.dim**-0.5)

    def score(
        self, query: Float[Tensor, "v b n d"], hidden: Float[Tensor, "b n d"]
    ) -> Float[Tensor, "v b n"]:
        """query · hidden / rms(hidden), in fp32 at least."""
        wide = torch.promote_types(hidden.dtype, torch.float32)
        dot = torch.sum(query * hidden, dim=-1, dtype=wide)
        length = torch.linalg.vector_norm(hidden, dim=-1, dtype=wide)
        return dot * torch.rsqrt(length.square() / self.dim + _EPS)
