"""The stack of layers: Encoder and Decoder."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from xtdist.model.compat import layers_config
from xtdist.model.config import LayersConfig
from xtdist.nn.attention.module import Attention, AttentionGeometry, AttentionInputs
from xtdist.nn.feedforward import FeedForward
from xtdist.nn.position.config import RotaryConfig
from xtdist.nn.position.rotary import RotaryTable, rotary_table


class Block(nn.Module):
    """x + attention(norm(x)), then x + feedforward(norm(x))."""

    def __init__(self, config: LayersConfig, *, layer: int) -> None:
        super().__init__()
        init_gain = (2 * config.depth) ** -0.5
        geometry = AttentionGeometry(
            dim=config.dim,
            heads=config.heads,
            causal=config.causal,
            layer=layer,
            init_gain=init_gain,
        )
        self.attention_norm = config.norm.build(config.dim)
        self.attention = Attention(geometry, config.attention)
        self.feedforward_norm = config.norm.build(config.dim)
        self.feedforward = FeedForward(config.dim, config.feedforward, init_gain=init_gain)

    def forward(self, x: Float[Tensor, "b n d"], shared: AttentionInputs) -> Float[Tensor, "b n d"]:
        x = x + self.attention(self.attention_norm(x), shared)
        return x + self.feedforward(self.feedforward_norm(x))


class Layers(nn.Module):
    """``depth`` blocks and a final norm, pre-norm (2002.04745).

    Built from a config; ``Decoder`` and ``Encoder`` build the same from x-transformers' keywords.
    """

    def __init__(self, config: LayersConfig) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(Block(config, layer=i) for i in range(config.depth))
        self.final_norm = config.norm.build(config.dim)

    def forward(self, x: Float[Tensor, "b n d"], shared: AttentionInputs) -> Float[Tensor, "b n d"]:
        for block in self.blocks:
            x = block(x, shared)
        return self.final_norm(x)

    def rotary(self, pos: Int[Tensor, "b n"]) -> RotaryTable | None:
        """The rotation of queries and keys at ``pos``; None without rotary positions."""
        if not isinstance(self.config.position, RotaryConfig):
            return None
        return rotary_table(pos, dim=self.config.rotary_dim, theta=self.config.position.theta)


class Decoder(Layers):
    """A causal stack by x-transformers' keywords.

    Raises:
        TypeError: a keyword that is not known, with the nearest one that is.

    Example:
        >>> Decoder(dim=512, depth=6, heads=8, rotary_pos_emb=True, attn_flash=True).config.causal
        True
    """

    def __init__(self, **keywords: Any) -> None:
        super().__init__(layers_config(keywords, causal=True, name="Decoder"))


class Encoder(Layers):
    """A bidirectional stack by x-transformers' keywords; raises as ``Decoder``."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(layers_config(keywords, causal=False, name="Encoder"))
