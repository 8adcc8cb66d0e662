"""The choice of objective."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from xtdist.config import (
    ConfigError,
    FiniteFloat,
    Fraction,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Probability,
    configclass,
    within,
)
from xtdist.model.config import ModelConfig
from xtdist.model.options import resolve

RENAMED = {"use_simple_mdlm_loss_weight": "weight: elbo (for true) or none (for false)"}
"""x-transformers' keywords that have another name here."""


def explain_key(key: str) -> str:
    """What to write instead of x-transformers' ``key``; empty if it has no other name here."""
    return f"it is {RENAMED[key]} here" if key in RENAMED else ""


@configclass
class AutoregressiveConfig:
    """Predict each token from those before it. Targets equal to ``ignore_index`` don't count.

    In training only:

    label_smoothing: so much of a target's probability is spread evenly over the vocabulary
        (1512.00567).
    mask_prob: so many of a sequence's tokens are hidden as keys (2210.13432), rounded down;
        mask_token_prob: so many are replaced by the mask token. Never the first token.
    add_attn_z_loss: the squared log-partition of the attentions' scores is kept small, with the
        weight ``model.attn_z_loss_weight``. It needs the tables of scores, so it is slow.
    next_embed_loss_weight: of the next token's predicted embedding, where the model has
        ``head.next_embedding``.
    looped_…: of a model with ``loop.kind`` looped: a token should leave after a pass if the next
        one lowers its loss by less than ``looped_loss_threshold_exit`` (nats), decided as sharply
        as ``looped_loss_slope`` says (1/nats); ``looped_exit_loss_weight`` is that of learning it.
    """

    kind: Literal["autoregressive"] = "autoregressive"
    ignore_index: Annotated[int, Field(ge=-(2**63), lt=2**63)] = -100
    label_smoothing: Probability = 0.0
    mask_prob: Probability = 0.0
    mask_token_prob: Probability = 0.0
    add_attn_z_loss: bool = False
    next_embed_loss_weight: NonNegativeFloat = 0.1
    looped_loss_threshold_exit: FiniteFloat = 0.05
    looped_loss_slope: PositiveFloat = 50.0
    looped_exit_loss_weight: NonNegativeFloat = 1.0


@configclass
class NonAutoregressiveConfig:
    """Predict masked tokens from the others (masked diffusion, MDLM, 2406.07524).

    schedule: how the masked fraction p is drawn: linear, uniform in (0, 1]; cosine, mostly high.
    weight: elbo weighs each masked token by 1/p (times what corrects for the schedule), so that the
        mean loss is an upper bound on the negative log-likelihood per token; none is plain
        cross-entropy of the masked tokens.
    no_replace_prob, random_token_prob: of the masked tokens, the part left as it is, and the part
        of the rest that becomes a random token (1810.04805), each in every second sequence, by
        chance; they still count in the loss. Only in training: the bound does not hold with them.
    self_cond: the network also sees what it made of the sequence before (2208.04202): in training,
        with probability self_cond_train_prob, its own first pass; at generation the step before.
    token_critic, self_token_critic: a second network, with one logit for each token, or one more
        output of the same network learns to tell which tokens the first one drew wrong, and says
        at generation which are drawn again. Its loss counts with critic_loss_weight. In YAML the
        network is written out like a model (it has no presets), without vocabulary, length and
        head: ``token_critic: {dim: 128, depth: 2, heads: 2, causal: false}``.
    steps: denoising steps at generation.
    can_mask_prev_unmasked: at generation, tokens that were kept may be masked again.
    """

    explain_key: ClassVar[Callable[[str], str]] = explain_key

    kind: Literal["nonautoregressive"] = "nonautoregressive"
    schedule: Literal["linear", "cosine"] = "linear"
    weight: Literal["elbo", "none"] = "elbo"
    no_replace_prob: Probability = 0.0
    random_token_prob: Probability = 0.0
    self_cond: bool = False
    self_cond_train_prob: Fraction = 0.75
    token_critic: ModelConfig | None = None
    self_token_critic: bool = False
    critic_loss_weight: NonNegativeFloat = 1.0
    steps: PositiveInt = 18
    can_mask_prev_unmasked: bool = False
    ignore_index: Annotated[int, Field(ge=-(2**63), lt=2**63)] = -100

    def __post_init__(self) -> None:
        if self.token_critic is None:
            return
        if self.self_token_critic:
            raise ConfigError("token_critic, self_token_critic: there is one critic; leave one out")
        if self.token_critic.causal:
            raise ConfigError("token_critic.causal: a critic reads all tokens; set it to false")
        with within(type(self), "token_critic"):
            resolve(self.token_critic)


ObjectiveConfig = Annotated[
    AutoregressiveConfig | NonAutoregressiveConfig, Field(discriminator="kind")
]
