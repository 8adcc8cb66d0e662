"""The choice of objective."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from xtdist.config import PositiveInt, Probability, configclass


@configclass
class AutoregressiveConfig:
    """Predict each token from those before it. Targets equal to ``ignore_index`` don't count."""

    kind: Literal["autoregressive"] = "autoregressive"
    ignore_index: int = -100


@configclass
class NonAutoregressiveConfig:
    """Predict masked tokens from the others (masked diffusion, MDLM, 2406.07524).

    schedule: how the masked fraction p is drawn: linear, uniform in (0, 1]; cosine, mostly high.
    weight: elbo weighs each masked token by 1/p (times what corrects for the schedule), so that the
        mean loss is an upper bound on the negative log-likelihood per token; none is plain
        cross-entropy of the masked tokens.
    no_replace_prob, random_token_prob: of the masked tokens, the part left as it is, and the part
        of the rest that becomes a random token (1810.04805); they still count in the loss. The
        bound only holds without them.
    steps: denoising steps at generation.
    """

    kind: Literal["nonautoregressive"] = "nonautoregressive"
    schedule: Literal["linear", "cosine"] = "linear"
    weight: Literal["elbo", "none"] = "elbo"
    no_replace_prob: Probability = 0.0
    random_token_prob: Probability = 0.0
    steps: PositiveInt = 18
    ignore_index: int = -100


ObjectiveConfig = Annotated[
    AutoregressiveConfig | NonAutoregressiveConfig, Field(discriminator="kind")
]
