"""What a model is, as data: enough to build it again anywhere."""

from __future__ import annotations

import dataclasses

from xtdist.config import (
    ConfigError,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Probability,
    configclass,
)
from xtdist.nn.attention.config import AttentionConfig
from xtdist.nn.feedforward import FeedForwardConfig, GLUConfig
from xtdist.nn.norm import NormConfig, RMSNormConfig
from xtdist.nn.position.config import PositionConfig, RotaryConfig


@configclass
class LayersConfig:
    """A stack of ``depth`` pre-norm blocks (attention, feed-forward) with a final norm.

    ``causal``: each token sees only its past (a decoder); false = it sees all (an encoder).
    """

    dim: PositiveInt
    depth: PositiveInt
    heads: PositiveInt = 8
    causal: bool = True
    attention: AttentionConfig = AttentionConfig()
    position: PositionConfig = RotaryConfig()
    norm: NormConfig = RMSNormConfig()
    feedforward: FeedForwardConfig = GLUConfig()

    def __post_init__(self) -> None:
        kv_heads = self.attention.kv_heads
        if kv_heads is not None and self.heads % kv_heads:
            raise ConfigError(
                f"attention.kv_heads: got {kv_heads} with heads={self.heads}; it must divide heads "
                "(each key/value head serves the same number of query heads)"
            )
        if isinstance(self.position, RotaryConfig) and (
            self.rotary_dim % 2 or self.rotary_dim > self.attention.dim_head
        ):
            raise ConfigError(
                f"position.dim: {self.rotary_dim} channels can't be rotated in pairs in a head of "
                f"attention.dim_head={self.attention.dim_head}; give an even number up to that"
            )

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
    """

    num_tokens: NonNegativeInt = 0
    max_seq_len: NonNegativeInt = 0
    tie_embedding: bool = False
    logit_scale: PositiveFloat = 1.0
    emb_dropout: Probability = 0.0

    @property
    def layers(self) -> LayersConfig:
        """The part that describes the stack alone."""
        names = [f.name for f in dataclasses.fields(LayersConfig)]
        return LayersConfig(**{name: getattr(self, name) for name in names})
