"""Learning which tokens of a sequence are wrong (Token-Critic, https://arxiv.org/abs/2209.04439).

Shapes: b rows, n positions, m masked positions of all rows together, d channels, v vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from xtdist.config import ConfigError
from xtdist.decode.noise import gumbel, mix
from xtdist.model import TransformerWrapper
from xtdist.objective.config import NonAutoregressiveConfig
from xtdist.objective.loss import CHUNK_LOGITS


def check_critics(
    config: NonAutoregressiveConfig, critic: TransformerWrapper | None, net: TransformerWrapper
) -> None:
    """Refuse two critics, and one that does not fit ``net``.

    Raises:
        ConfigError: saying what is wrong.
    """
    if critic is None:
        if config.token_critic is not None:
            raise ConfigError(
                "config.token_critic: build_objective builds it; give it as token_critic"
            )
        return
    if config.self_token_critic:
        raise ConfigError("token_critic, self_token_critic: there is one critic; leave one out")
    _check_critic(critic, net)


def _check_critic(critic: TransformerWrapper, net: TransformerWrapper) -> None:
    """Refuse a network that can't judge the tokens of ``net``.

    Raises:
        ConfigError: saying what it lacks.
    """
    head, pool = critic.config.head, critic.config.pool
    if critic is net:
        raise ConfigError("token_critic: got the network itself; use self_token_critic=True")
    if critic.config.causal:
        raise ConfigError("token_critic: a decoder sees only what comes before; give an Encoder")
    if head.output != "logits" or head.dim != 1 or head.heads > 1 or head.mixture or pool:
        raise ConfigError(
            "token_critic: it has to give one number for each token; build it with logits_dim=1, "
            "one head, no mixture and no pooling"
        )
    for name in ("num_tokens", "max_seq_len"):
        own, wanted = getattr(critic, name), getattr(net, name)
        if own < wanted:
            raise ConfigError(f"token_critic.{name}: got {own}; the network has {wanted}")


def position_keys(
    keys: Int[Tensor, "b 2"], places: Int[Tensor, " m"], n: int
) -> Int[Tensor, "m 2"]:
    """A noise key for each of ``places`` in the flattened (b n) positions, from its row's."""
    own = keys[places // n]
    own[:, 0] = mix(own[:, 0] ^ (places % n).to(torch.int32))
    return own


@torch.no_grad()
def drawn_tokens(
    net: TransformerWrapper,
    hidden: Float[Tensor, "m d"],
    keys: Int[Tensor, "m 2"],
    temperature: Float[Tensor, " m"],
    *,
    banned: int,
) -> Int[Tensor, " m"]:
    """A token for each hidden state, never ``banned``; temperature 0 gives the likeliest. Only some
    rows have logits at a time where the head is one matrix, which is read in one call."""
    ids = torch.arange(net.num_tokens, device=hidden.device)[None]

    def pick(logits: Tensor, part: slice) -> Tensor:
        logits = logits.float()
        logits[:, banned] = -torch.inf
        noise = gumbel(keys[part], ids) * rearrange(temperature[part], "m -> m 1")
        return (logits + noise).argmax(dim=-1)

    def chunked(hidden: Tensor, weight: Tensor) -> Tensor:
        limit = CHUNK_LOGITS.get(hidden.device.type, CHUNK_LOGITS["cuda"])
        rows = max(1, limit // weight.shape[0])
        parts = [slice(at, at + rows) for at in range(0, max(len(hidden), 1), rows)]
        return torch.cat([pick(F.linear(hidden[part], weight), part) for part in parts])

    if net.config.head.is_linear:
        return net.apply_head(hidden, chunked)
    return pick(net.to_logits(hidden), slice(None))


def critic_loss(
    judged: Float[Tensor, "b n"],
    seen: Int[Tensor, "b n"],
    truth: Int[Tensor, "b n"],
    *,
    counts: Float[Tensor, " b"],
    mask: Bool[Tensor, "b n"] | None,
) -> Float[Tensor, ""]:
    """Σ over rows of ``counts`` times the mean cross-entropy (nats) of "this token is wrong" over
    the real tokens that the critic has seen."""
    real = torch.ones_like(seen, dtype=torch.bool) if mask is None else mask
    share = rearrange(counts / real.sum(dim=1).clamp(min=1), "b -> b 1") * real
    judged = judged.float().masked_fill(~real, 0.0)
    return F.binary_cross_entropy_with_logits(
        judged, (seen != truth).float(), weight=share, reduction="sum"
    )
