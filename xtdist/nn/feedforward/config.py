"""What a feed-forward layer is."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from xtdist.config import (
    ConfigError,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Probability,
    configclass,
)

Activation = Literal["gelu", "gelu_tanh", "silu", "relu", "relu_squared", "solu"]


@configclass
class MLPConfig:
    """W₂ act(W₁ x). The inner width is ``mult`` × dim, rounded up to ``multiple_of``.

    ``gelu_tanh`` is GPT-2's approximation of GELU; ``relu_squared`` is relu(x)² (2109.08668);
    ``solu`` is norm(x · softmax(x)) (Anthropic's SoLU). ``softclamp`` c bends the activation's
    input into ±c by c · tanh(x / c). ``post_act_norm`` puts a LayerNorm behind the activation
    (NormFormer). ``dropout`` acts on the inner vector, ``dropout_out`` on the output.
    ``zero_init_output`` starts the layer as 0.
    """

    has_aux: ClassVar[bool] = False
    kind: Literal["mlp"] = "mlp"
    activation: Activation = "gelu"
    mult: PositiveFloat = 4.0
    multiple_of: PositiveInt = 1
    bias_in: bool = False
    bias_out: bool = False
    softclamp: PositiveFloat | None = None
    post_act_norm: bool = False
    dropout: Probability = 0.0
    dropout_out: Probability = 0.0
    zero_init_output: bool = False


@configclass
class GLUConfig:
    """W₂ (W₁ x · act(V x)): SwiGLU with ``silu``, GEGLU with ``gelu`` (2002.05202).

    The inner width is ``mult`` × dim, rounded up to ``multiple_of``; at 8/3 it has as many weights
    as an MLP of ``mult`` 4. ``mult_bias`` learns a factor for each inner channel.
    ``gate_softclamp`` c makes the growing factor of gelu or silu saturate at c (c · tanh(z / c)
    instead of z), and ``up_softclamp`` bends W₁ x into its ± (2607.24653: 4 and 25). The rest is as
    for ``mlp``.
    """

    has_aux: ClassVar[bool] = False
    kind: Literal["glu"] = "glu"
    activation: Activation = "silu"
    mult: PositiveFloat = 8 / 3
    multiple_of: PositiveInt = 64
    bias_in: bool = False
    bias_out: bool = False
    mult_bias: bool = False
    gate_softclamp: PositiveFloat | None = None
    up_softclamp: PositiveFloat | None = None
    post_act_norm: bool = False
    dropout: Probability = 0.0
    dropout_out: Probability = 0.0
    zero_init_output: bool = False

    def __post_init__(self) -> None:
        if self.gate_softclamp is not None and self.activation not in ("gelu", "silu"):
            raise ConfigError(
                f"gate_softclamp: got {self.gate_softclamp} with activation "
                f"{self.activation!r}; it is defined for 'gelu' and 'silu' only. Leave it null or "
                "use one of these"
            )


ExpertConfig = Annotated[MLPConfig | GLUConfig, Field(discriminator="kind")]


@configclass
class MoEConfig:
    """A mixture of ``experts`` feed-forward layers of which each token uses its ``top_k`` (Mixtral,
    2401.04088): softmax over the router's scores, the best k, renormalized. No token is dropped.

    ``expert`` is the shape of one expert. ``shared_experts`` more of them serve every token with
    weight 1 (DeepSeekMoE, 2401.06066). ``balance_loss_weight`` scales experts · Σ fᵢ Pᵢ (Switch,
    2101.03961), which is 1 when the load is even; ``z_loss_weight`` scales the mean squared
    log-sum-exp of the router's scores (ST-MoE, 2202.08906).
    """

    has_aux: ClassVar[bool] = True
    kind: Literal["moe"] = "moe"
    experts: PositiveInt = 8
    top_k: PositiveInt = 2
    expert: ExpertConfig = GLUConfig()
    shared_experts: NonNegativeInt = 0
    balance_loss_weight: NonNegativeFloat = 0.01
    z_loss_weight: NonNegativeFloat = 0.001

    def __post_init__(self) -> None:
        if self.top_k > self.experts:
            raise ConfigError(
                f"top_k: got {self.top_k} with experts={self.experts}; a token can't "
                "use more experts than there are"
            )
        expert = self.expert
        refused = {
            "activation": expert.activation == "solu" and "it holds a norm",
            "post_act_norm": expert.post_act_norm and "it is a norm",
            "mult_bias": isinstance(expert, GLUConfig) and expert.mult_bias and "it is a gain",
        }
        for name, why in refused.items():
            if why:
                raise ConfigError(
                    f"expert.{name}: got {getattr(expert, name)!r}; {why} inside the "
                    "expert, which experts don't have. Use its default"
                )


FeedForwardConfig = Annotated[MLPConfig | GLUConfig | MoEConfig, Field(discriminator="kind")]


def inner_dim(config: MLPConfig | GLUConfig, dim: int) -> int:
    """The hidden width between the two projections."""
    return -(-int(dim * config.mult) // config.multiple_of) * config.multiple_of
