"""What attention layers are told beside their tokens, and what they hand back."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor

from xtdist.nn.attention.attend import Reading
from xtdist.nn.attention.cache import KVCache
from xtdist.nn.attention.masks import EVERYTHING, Visible
from xtdist.nn.attention.rotation import Rotation
from xtdist.nn.position.bias import PositionBias


@dataclass(frozen=True, kw_only=True)
class Context:
    """Another sequence to attend to: (b, j, c), its real tokens (True). Where it has positions:
    the rotation of its keys, and that of the queries."""

    states: Float[Tensor, "b j c"]
    mask: Bool[Tensor, "b j"] | None = None
    rotation: Rotation | None = None
    query_rotation: Rotation | None = None


@dataclass(frozen=True, kw_only=True)
class AttentionInputs:
    """What all attention layers of one forward pass share.

    q_pos, k_pos: positions of the queries, and of the keys: memories, then the same tokens.
    visible: who may read whom among them.
    rotation, key_rotation: of the queries, and of the keys where there are more of them.
    bias: of the positions, for all pairs. With a cache ``position_bias`` makes it for each read.
    cache: what earlier tokens left behind.
    context: what cross attention reads (without a cache; a cache knows it).
    keep_scores: hand back scores and weights.
    memo: tables that several layers use.
    """

    q_pos: Int[Tensor, "b n"]
    k_pos: Int[Tensor, "b j"]
    visible: Visible = EVERYTHING
    rotation: Rotation | None = None
    key_rotation: Rotation | None = None
    bias: Float[Tensor, "b h i j"] | None = None
    position_bias: PositionBias | None = None
    cache: KVCache | None = None
    context: Context | None = None
    keep_scores: bool = False
    memo: dict[tuple[object, ...], Tensor | None] = field(default_factory=dict)

    def with_scores(self) -> AttentionInputs:
        """The same, and hand back scores and weights."""
        return replace(self, keep_scores=True)


class AddedKeyValues(NamedTuple):
    """Keys and values from elsewhere, read before the layer's own; ``mask`` True = may be read."""

    k: Float[Tensor, "b hk e d"]
    v: Float[Tensor, "b hk e dv"]
    mask: Bool[Tensor, "b e"] | None = None


@dataclass(frozen=True, kw_only=True)
class LayerInputs:
    """What one attention layer is told.

    layer: its number among the attentions as they run: a cache knows it by that.
    memory: earlier hidden states, normed, which stand before the tokens as keys.
    added: keys and values from elsewhere.
    scores: those of the layer before, where layers pass them on: of each sequence, with a cache.
    values: those of the first layer, where layers mix them in.
    sources: other inputs for keys and values than the tokens.
    """

    layer: int = 0
    memory: Float[Tensor, "b m d"] | None = None
    added: AddedKeyValues | None = None
    scores: tuple[Float[Tensor, "b h i j"], ...] = ()
    values: Float[Tensor, "b hk n dv"] | None = None
    sources: tuple[Float[Tensor, "b n d"], Float[Tensor, "b n d"]] | None = None


class AttentionOutput(NamedTuple):
    """What the layer adds, its values before any mixing, and what lies behind it."""

    out: Float[Tensor, "b n d"]
    values: Float[Tensor, "b hk n dv"] | None
    reading: Reading
