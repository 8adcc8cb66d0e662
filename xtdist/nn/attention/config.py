"""What an attention layer is."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from xtdist.config import (
    ConfigError,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Probability,
    configclass,
)
from xtdist.nn.position.parts import CoPEConfig, ForgettingConfig, RelativeProjectionConfig


@configclass
class SoftmaxConfig:
    """exp(s) / Σ exp(s)."""

    kind: Literal["softmax"] = "softmax"


@configclass
class SigmoidConfig:
    """1 / (1 + exp(−s)), each weight on its own (2409.04431)."""

    kind: Literal["sigmoid"] = "sigmoid"


@configclass
class TopKConfig:
    """Softmax of the ``k`` largest scores (1912.11637). ``straight_through`` gives the others the
    gradient of a full softmax (2505.22074)."""

    kind: Literal["topk"] = "topk"
    k: PositiveInt
    straight_through: bool = False


@configclass
class HardConfig:
    """The key of the largest score alone, with the gradient of a softmax (2410.01104)."""

    kind: Literal["hard"] = "hard"


@configclass
class GumbelConfig:
    """Softmax of scores plus Gumbel noise over ``temperature``, in evaluation as in training;
    ``hard`` takes the largest alone, with the gradient of the soft one (1611.01144)."""

    kind: Literal["gumbel"] = "gumbel"
    temperature: PositiveFloat = 1.0
    hard: bool = True


@configclass
class SignedConfig:
    """Softmax of |s|, with the sign of s put back: negative weights (Cog attention)."""

    kind: Literal["signed"] = "signed"


WeightsConfig = Annotated[
    SoftmaxConfig | SigmoidConfig | TopKConfig | HardConfig | GumbelConfig | SignedConfig,
    Field(discriminator="kind"),
]


@configclass
class CosineConfig:
    """Queries and keys of unit length in ``groups`` of channels (2010.04245), times ``scale``;
    ``learned_scale`` gives each channel of each head a learned one instead."""

    groups: PositiveInt = 1
    scale: PositiveFloat = 10.0
    learned_scale: bool = False


@configclass
class LatentConfig:
    """Keys and values (and queries) projected through a bottleneck (MLA, 2405.04434).

    ``kv_dim`` and ``q_dim`` are its widths, null = none. ``rotary_heads`` key heads come from the
    token itself and are the only ones that are rotated; a cache then keeps the latent alone, with
    these.
    """

    kv_dim: PositiveInt | None = None
    q_dim: PositiveInt | None = None
    rotary_heads: PositiveInt | None = None


@configclass
class GateConfig:
    """A gate on what the heads read: ``activation`` of a projection to each channel, or one number
    per head (``headwise``); through ``rank`` channels, with a SiLU between (``silu_between``)."""

    headwise: bool = False
    rank: PositiveInt | None = None
    silu_between: bool = True


@configclass
class AttentionConfig:
    """Attention (1706.03762): project, norm, rotate, score, weigh, read, gate, project.

    Sizes: ``dim_head``; ``value_dim_head`` where values differ (null = the same); ``kv_heads`` <
    heads shares keys and values between neighbouring query heads (GQA, 2305.13245; null = one for
    each head). ``backend`` auto = the fastest that honours every option.

    ``window``: keys that a query reaches back, itself excluded (2310.06825). ``dropout`` acts on
    weights, ``dropout_out`` on the layer's output.
    ``bias`` on the projections to queries, keys and values (Qwen2), ``bias_out`` on the output's.
    Norms: ``qk_rmsnorm`` (2302.05442), ``k_rmsnorm``, ``value_rmsnorm`` per head, ``cosine``;
    ``shared_norm_gain``: one gain for all heads (Qwen3), with ``qk_rmsnorm``.
    Scores: ``similarity`` l2 = minus the squared distance; ``softclamp`` caps them smoothly at that
    value (2408.00118); talking heads mix them before, after, or before to scale after, the softmax
    (2003.02436); ``selective`` lets tokens hide others from later ones (2410.02703); ``cope``
    counts positions by content (2405.18719); ``forgetting`` fades keys by learned gates;
    ``relative_projection`` adds a learned curve of the distance; ``weights`` turns scores into
    weights.
    Extra keys that all may read: ``memory_kv`` learned ones (1907.01470), ``zero_kv`` an empty
    one, ``sink`` a learned score per head that reads nothing (gpt-oss).
    Values: ``gate`` from the token (2505.06708) and ``output_gate`` from what was read, both with
    ``gate_activation``; ``gate_heads`` one open gate per head (2306.12929); ``head_scale`` a
    learned gain per head; ``laser`` attends over exponentials, clamped at that value (2411.03493);
    ``glu_out`` gates the output by itself (1908.06954).
    """

    dim_head: PositiveInt = 64
    value_dim_head: PositiveInt | None = None
    kv_heads: PositiveInt | None = None
    backend: Literal["auto", "sdpa", "eager", "flex"] = "auto"
    window: NonNegativeInt | None = None
    dropout: Probability = 0.0
    dropout_out: Probability = 0.0
    bias: bool = False
    bias_out: bool = False

    qk_rmsnorm: bool = False
    k_rmsnorm: bool = False
    value_rmsnorm: bool = False
    shared_norm_gain: bool = False
    cosine: CosineConfig | None = None
    latent: LatentConfig | None = None

    similarity: Literal["dot", "l2"] = "dot"
    softclamp: PositiveFloat | None = None
    pre_talking_heads: bool = False
    post_talking_heads: bool = False
    pre_scale_post_talking_heads: bool = False
    selective: bool = False
    weights: WeightsConfig = SoftmaxConfig()
    cope: CoPEConfig | None = None
    forgetting: ForgettingConfig | None = None
    relative_projection: RelativeProjectionConfig | None = None

    memory_kv: NonNegativeInt = 0
    zero_kv: bool = False
    sink: bool = False

    gate: GateConfig | None = None
    output_gate: GateConfig | None = None
    gate_activation: Literal["sigmoid", "silu"] = "sigmoid"
    gate_heads: bool = False
    head_scale: bool = False
    laser: PositiveFloat | None = None
    glu_out: bool = False
    zero_init_out: bool = False

    def __post_init__(self) -> None:
        if self.cosine is not None and self.dim_head % self.cosine.groups:
            raise ConfigError(
                f"cosine.groups: {self.cosine.groups} does not divide "
                f"dim_head={self.dim_head}; give a divisor"
            )
        for name in ("gate", "output_gate"):
            gate = getattr(self, name)
            if gate is not None and gate.headwise and gate.rank is not None:
                raise ConfigError(
                    f"{name}: rank={gate.rank} with headwise=true; a gate with one "
                    "number per head needs no bottleneck: leave out one of the two"
                )
