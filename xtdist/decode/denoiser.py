"""What filling masks needs of a model."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from xtdist.config import ConfigError
from xtdist.decode.given import as_net
from xtdist.model.tokens import check_predicts_tokens


@runtime_checkable
class Denoiser(Protocol):
    """A module that predicts all positions of a sequence at once, perhaps conditioned on what it
    predicted before, perhaps with a critic. It is called in evaluation mode, without gradients.

    mask_id: the token that stands for a position to fill; None: each request says it.
    has_critic: whether ``criticise`` gives scores.
    """

    @property
    def num_tokens(self) -> int: ...
    @property
    def max_seq_len(self) -> int: ...
    @property
    def mask_id(self) -> int | None: ...
    @property
    def has_critic(self) -> bool: ...
    @property
    def device(self) -> torch.device: ...

    def denoise(
        self,
        ids: Int[Tensor, "b n"],
        *,
        rows: Int[Tensor, " m"],
        mask: Bool[Tensor, "b n"] | None,
        previous: Float[Tensor, "b n d"] | None,
    ) -> tuple[Float[Tensor, "m v"], Float[Tensor, "b n d"] | None]:
        """Logits at ``rows`` of the flattened (b n) positions, and what the next step is given as
        ``previous`` (None: it does not condition on itself; in the first step there is none).
        ``mask``: True = real position; None: all are."""
        ...

    def criticise(
        self, ids: Int[Tensor, "b n"], *, mask: Bool[Tensor, "b n"] | None
    ) -> Float[Tensor, "b n"] | None:
        """Logits that a token is wrong; None without a critic."""
        ...


class PlainDenoiser(nn.Module):
    """A bidirectional model as it is: no memory of its own predictions, no critic."""

    mask_id = None
    has_critic = False

    def __init__(self, net: Any) -> None:
        """Raises ConfigError for a model that can't fill masks."""
        super().__init__()
        net = as_net(net)
        check_fills(net)
        self.net = net
        self.num_tokens, self.max_seq_len = net.config.num_tokens, net.max_seq_len

    @property
    def device(self) -> torch.device:
        """Where its parameters are."""
        return next(self.net.parameters()).device

    def denoise(
        self,
        ids: Int[Tensor, "b n"],
        *,
        rows: Int[Tensor, " m"],
        mask: Bool[Tensor, "b n"] | None,
        previous: Float[Tensor, "b n d"] | None,
    ) -> tuple[Float[Tensor, "m v"], None]:
        """As ``Denoiser.denoise``."""
        return self.net(ids, mask=mask, logit_rows=rows), None

    def criticise(self, ids: Int[Tensor, "b n"], *, mask: Bool[Tensor, "b n"] | None) -> None:
        """As ``Denoiser.criticise``."""


def as_denoiser(model: Any) -> Denoiser | None:
    """``model`` if it denoises, an adapter of its network if that is bidirectional; None: it is
    causal.

    Raises:
        ConfigError: no network, or a bidirectional one that can't fill masks.
    """
    if isinstance(model, Denoiser):
        return model
    return None if as_net(model).config.causal else PlainDenoiser(model)


def check_fills(net: Any) -> None:
    """Raises ConfigError unless ``net`` sees both sides of a mask and needs nothing but tokens."""
    config = net.config
    if config.causal:
        raise ConfigError(
            "model: it is causal, so it can't see what comes after a mask; use GenerationParams to "
            "continue text with it, or train a non-autoregressive model"
        )
    check_predicts_tokens(config, name="model", given=())
