"""What a model is, as data: enough to build it again anywhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar, Literal

from torch import nn

from xtdist.config import (
    ConfigError,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Probability,
    configclass,
)
from xtdist.model.hints import explain_key
from xtdist.model.order import Kind, OrderConfig, block_of, execution, sublayer_kinds
from xtdist.model.parts import (
    EmbeddingConfig,
    HeadConfig,
    LoopConfig,
    MemoryTokensConfig,
    MupConfig,
    PoolConfig,
)
from xtdist.nn.attention.config import AttentionConfig
from xtdist.nn.feedforward import FeedForwardConfig, GLUConfig, MoEConfig
from xtdist.nn.norm import NormConfig, RMSNormConfig
from xtdist.nn.position.config import PositionBiasConfig, PositionConfig, RotaryConfig
from xtdist.nn.residual.config import (
    BranchScaleConfig,
    IntegratorConfig,
    PlainResidualConfig,
    ResidualConfig,
)


@configclass
class ValueResidualConfig:
    """The first layer's values mixed into every later layer's (2410.17897), half and half, or
    by a ``learned`` share for each token and head."""

    learned: bool = True


@configclass
class ReinjectConfig:
    """The stack's input, projected, is added to the input of every sublayer (1909.01377);
    ``gate`` learns how much for each token."""

    gate: bool = False


@configclass
class RecomputeConfig:
    """Activations that are computed again in the backward pass instead of kept (1604.06174).

    ``blocks``: every so many blocks (1 = all). ``only``: what is computed again in them: everything
    but the block's input, or the feed-forwards alone.
    """

    blocks: PositiveInt = 1
    only: Literal["all", "feedforward"] = "all"


def check_sizes(config: object, **most: int) -> None:
    """Numbers so large are typos, and would end in an overflow or a loop without an end."""
    for name, limit in most.items():
        if getattr(config, name) > limit:
            got = getattr(config, name)
            raise ConfigError(f"{name}: got {got:,}; give at most {limit:,}")


@configclass
class LayersConfig:
    """A stack of blocks: by default ``depth`` times attention and feed-forward, pre-norm, with a
    final norm.

    ``causal``: each token sees only its past (a decoder); false = it sees all (an encoder).
    ``prefix``: a causal stack whose first tokens see each other, so many as a forward pass says.
    ``cross_attention``: attend to a context too, of width ``dim_context`` (null = dim).

    ``norm_position``: before a branch, after its residual (post), or both (no final norm then);
    ``branch_norm`` one on each branch's output (2105.13290).
    ``branch_init``: what writes into the stream starts smaller with the depth (GPT-2), with the
    layer's own depth (OLMo), or at zero. ``layer_dropout``: the probability that a sublayer is
    skipped for a sample in training (1603.09382), one for all or one for each.
    ``shift_tokens``: so many groups of channels come from earlier tokens, one number for all
    sublayers or one for each. ``residual_attention``: scores of the layer before are added
    (2012.11747). ``softclamp``: a cap on the stack's output before the final norm.
    ``unet_skips``: late blocks read the outputs of early ones (2209.12152). ``condition_mlp``: the
    condition of adaptive norms goes through a network of so many times its width.
    """

    explain_key: ClassVar[Callable[[str], str]] = explain_key

    dim: PositiveInt
    depth: PositiveInt
    heads: PositiveInt = 8
    causal: bool = True
    prefix: bool = False
    order: OrderConfig = OrderConfig()
    attention: AttentionConfig = AttentionConfig()
    cross_attention: AttentionConfig | None = None
    dim_context: PositiveInt | None = None
    feedforward: FeedForwardConfig = GLUConfig()
    position: PositionConfig = RotaryConfig()
    position_bias: PositionBiasConfig | None = None
    norm: NormConfig = RMSNormConfig()
    norm_position: Literal["pre", "post", "pre_and_post"] = "pre"
    branch_norm: bool = False
    final_norm: bool = True
    residual: ResidualConfig = PlainResidualConfig()
    branch_scale: BranchScaleConfig | None = None
    branch_init: Literal["by_depth", "by_layer", "zero"] = "by_depth"
    integrator: IntegratorConfig | None = None
    value_residual: ValueResidualConfig | None = None
    residual_attention: bool = False
    cross_residual_attention: bool = False
    reinject: ReinjectConfig | None = None
    unet_skips: bool = False
    shift_tokens: NonNegativeInt | tuple[NonNegativeInt, ...] = 0
    layer_dropout: Probability | tuple[Probability, ...] = 0.0
    context_dropout: Probability = 0.0
    softclamp: PositiveFloat | None = None
    condition_mlp: PositiveInt | None = None
    recompute: RecomputeConfig | None = None

    def __post_init__(self) -> None:
        check_sizes(self, dim=2**20, depth=2**14, heads=2**14)
        for name, attention in (
            ("attention", self.attention),
            ("cross_attention", self.cross_attention),
        ):
            if attention is not None:
                self._check_heads(name, attention)
        if isinstance(self.position, RotaryConfig) and (
            self.rotary_dim % 2 or self.rotary_dim > self.attention.dim_head
        ):
            raise ConfigError(
                f"position.dim: {self.rotary_dim} channels can't be rotated in pairs in a head of "
                f"attention.dim_head={self.attention.dim_head}; give an even number up to that"
            )
        for name in ("shift_tokens", "layer_dropout"):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != len(self.kinds):
                raise ConfigError(
                    f"{name}: got {len(value)} values for {len(self.kinds)} sublayers; give one "
                    "for all, or one for each"
                )
        self._check_sizes()
        if self.order.only_cross and self.cross_attention is None:
            raise ConfigError("order.only_cross: needs cross_attention; set it too")
        _ = self.execution

    def _check_sizes(self) -> None:
        """Numbers that must fit the width or the heads."""
        if isinstance(self.position, RotaryConfig) and (self.position.heads or 0) > self.heads:
            raise ConfigError(
                f"position.heads: got {self.position.heads} rotated heads of heads={self.heads}; "
                "give at most that"
            )
        most = self.shift_tokens if isinstance(self.shift_tokens, int) else max(self.shift_tokens)
        groups = most + 1 if self.causal else 2 * most + 1
        if groups > self.dim:
            raise ConfigError(
                f"shift_tokens: got {most}, which splits dim={self.dim} channels into {groups} "
                "groups; give less"
            )
        blocks = len(self.kinds) / len(block_of(self.order, cross=self.cross_attention is not None))
        if self.unet_skips and not self.order.tie and (self.depth < 2 or blocks != self.depth):
            raise ConfigError(
                f"unet_skips: got depth={self.depth} and {len(self.kinds)} sublayers; late blocks "
                "read early ones, so it needs two blocks or more, and all of them whole"
            )
        ff = self.feedforward
        expert = ff.expert if isinstance(ff, MoEConfig) else ff
        inner = self.dim * expert.mult
        if not 1 <= inner < 2**26:
            raise ConfigError(
                f"feedforward.mult: got {expert.mult}, an inner width of {inner:g} at "
                f"dim={self.dim}; give one from 1 to {2**26:,}"
            )

    def _check_heads(self, name: str, attention: AttentionConfig) -> None:
        if attention.kv_heads is not None and self.heads % attention.kv_heads:
            raise ConfigError(
                f"{name}.kv_heads: got {attention.kv_heads} with heads={self.heads}; it must "
                "divide heads (each key/value head serves the same number of query heads)"
            )
        for part in ("window", "selective", "cope", "forgetting", "relative_projection"):
            value = getattr(attention, part)
            if name == "cross_attention" and value is not None and value is not False:
                raise ConfigError(
                    f"cross_attention.{part}: got {value}; it counts along one sequence, and a "
                    f"context is another one. Leave it out there (attention.{part} is for the "
                    "stack's own tokens)"
                )
        latent = attention.latent
        if latent is None or latent.rotary_heads is None:
            return
        if (attention.kv_heads or self.heads) != self.heads:
            raise ConfigError(
                f"{name}.latent.rotary_heads: got {latent.rotary_heads} with kv_heads="
                f"{attention.kv_heads}; rotated heads of a latent need kv_heads = heads"
            )
        if latent.rotary_heads >= self.heads:
            raise ConfigError(
                f"{name}.latent.rotary_heads: got {latent.rotary_heads} of {self.heads} heads; "
                "some must come from the latent"
            )

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The sublayers in the order of their numbers."""
        cross = self.cross_attention is not None
        return sublayer_kinds(self.order, depth=self.depth, cross=cross)

    @property
    def execution(self) -> tuple[int, ...]:
        """The numbers of the sublayers in the order in which they run."""
        cross = self.cross_attention is not None
        return execution(self.order, depth=self.depth, cross=cross)

    @property
    def rotary_dim(self) -> int:
        """Rotated channels of each head; 0 without rotary positions."""
        if not isinstance(self.position, RotaryConfig):
            return 0
        return self.position.dim or self.attention.dim_head


@configclass
class ModelConfig(LayersConfig):
    """A language model: token embedding, layers, output head.

    ``num_tokens`` 0 means: the size of the dataset's vocabulary, filled in before building.
    ``max_seq_len`` is the longest sequence the model is meant for (positions 0 … max_seq_len − 1);
    0 means: the length that it is trained on, filled in before building.
    ``tie_embedding`` uses the embedding matrix as the head, ``logit_scale`` multiplies the logits.

    ``pool``: an output for the whole sequence. ``max_mem_len``: so many hidden states are handed
    from one segment to the next (Transformer-XL, 1901.02860), ``shift_mem_down``: to so many layers
    below (2012.15688). ``loop``: the stack runs several times. ``attn_z_loss_weight``: of the loss
    that keeps attention scores small (2202.08906), where a forward pass asks for it.
    ``input_not_include_cache``: with a cache, the input holds new tokens only. ``mup``: start
    values, scales and learning rates follow the width: settings found on a narrow model hold.
    """

    num_tokens: NonNegativeInt = 0
    max_seq_len: NonNegativeInt = 0
    tie_embedding: bool = False
    logit_scale: PositiveFloat = 1.0
    emb_dropout: Probability = 0.0
    embedding: EmbeddingConfig = EmbeddingConfig()
    memory_tokens: MemoryTokensConfig | None = None
    max_mem_len: NonNegativeInt = 0
    shift_mem_down: NonNegativeInt = 0
    pool: PoolConfig | None = None
    loop: LoopConfig | None = None
    head: HeadConfig = HeadConfig()
    attn_z_loss_weight: NonNegativeFloat = 1e-4
    input_not_include_cache: bool = False
    mup: MupConfig | None = None

    def __post_init__(self) -> None:
        check_sizes(self, num_tokens=2**31, max_seq_len=2**31)
        super().__post_init__()
        if self.pool is not None and self.pool.kind == "cls" and self.causal:
            raise ConfigError(
                "pool.kind: got cls; tokens before the sequence see nothing of it in a causal "
                "stack; use average_pool_embed (pool.kind=mean), or an Encoder (causal=false)"
            )
        looped = self.loop is not None and self.loop.kind == "looped"
        if looped and self.norm_position != "pre_and_post":
            raise ConfigError(
                f"loop.kind: got looped with norm_position={self.norm_position}; a stack that "
                "reads its own output needs pre_and_post_norm=True (norm_position=pre_and_post)"
            )
        self._check_memory()
        for table in self.embedding.tables:
            if not table.name or "." in table.name or hasattr(nn.ModuleDict(), table.name):
                raise ConfigError(
                    f"embedding.tables: the name {table.name!r} can't be that of a module (empty, "
                    "with a dot, or an attribute of nn.ModuleDict); give another"
                )
        count = sum(self.kinds[i] == "f" for i in self.execution)
        if self.embedding.deep and count != self.depth:
            raise ConfigError(
                f"embedding.deep: there is a factor for each of depth={self.depth} feed-forwards, "
                f"and this order runs {count}; leave out ff_deep_embed, or the order"
            )

    def _check_memory(self) -> None:
        if not self.shift_mem_down:
            return
        attentions = sum(self.kinds[i] == "a" for i in self.execution)
        if not self.max_mem_len or self.shift_mem_down >= attentions:
            raise ConfigError(
                f"shift_mem_down: got {self.shift_mem_down} with max_mem_len={self.max_mem_len} "
                f"and {attentions} self attentions; it needs max_mem_len, and less than there are"
            )

    @property
    def layers(self) -> LayersConfig:
        """The part that describes the stack alone."""
        names = [f.name for f in dataclasses.fields(LayersConfig)]
        return LayersConfig(**{name: getattr(self, name) for name in names})

    @property
    def output_scale(self) -> float:
        """What multiplies the logits."""
        if self.mup is None:
            return self.logit_scale
        return self.logit_scale * self.mup.base_width / self.dim

    @property
    def emb_dim(self) -> int:
        """The width of the token embedding."""
        return self.embedding.dim or self.dim
