"""Vision transformer, https://arxiv.org/abs/2010.11929, with registers, 2309.16588."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from jaxtyping import Bool, Float
from torch import Tensor, nn

from xtdist.config import ConfigError, NonNegativeInt, PositiveInt, Probability, configclass
from xtdist.model.inputs import StackKeywords, stack_inputs
from xtdist.model.keywords import config_of
from xtdist.model.layers import Layers
from xtdist.model.outputs import LogitsAndEmbeddings
from xtdist.model.stack import StackOutput
from xtdist.model.tensors import check_tensor, check_type, seen
from xtdist.nn.linear import Linear
from xtdist.nn.memory import LearnedTokens
from xtdist.nn.norm import LayerNormConfig
from xtdist.nn.position.learned import LearnedPosition


@configclass
class VisionConfig:
    """Square images of ``image_size`` pixels a side, cut into patches of ``patch_size``.

    ``num_classes`` null: without a head. ``post_emb_norm``: a norm on the embedded patches.
    ``num_register_tokens`` learned tokens are read and written beside the patches.
    """

    image_size: PositiveInt
    patch_size: PositiveInt
    channels: PositiveInt = 3
    num_classes: PositiveInt | None = None
    post_emb_norm: bool = False
    num_register_tokens: NonNegativeInt = 0
    emb_dropout: Probability = 0.0

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size:
            raise ConfigError(
                f"patch_size: {self.patch_size} does not divide image_size={self.image_size}; "
                "give a divisor"
            )

    @property
    def patches(self) -> int:
        """Patches of an image."""
        return (self.image_size // self.patch_size) ** 2


class PatchEmbedding(nn.Module):
    """Pixels of a patch ↦ norm ↦ linear ↦ norm; patches row by row."""

    def __init__(self, config: VisionConfig, dim: int) -> None:
        super().__init__()
        pixels = config.channels * config.patch_size**2
        norm = LayerNormConfig(unit_offset=False)
        self.patch_size = config.patch_size
        self.pixel_norm = norm.build(pixels)
        self.proj = Linear(pixels, dim, bias=True)
        self.norm = norm.build(dim)

    def forward(self, image: Float[Tensor, "b c y x"]) -> Float[Tensor, "b n d"]:
        p = self.patch_size
        patches = rearrange(image, "b c (h p1) (w p2) -> b (h w) (p1 p2 c)", p1=p, p2=p)
        return self.norm(self.proj(self.pixel_norm(patches)))


class ViTransformerWrapper(nn.Module):
    """Patches, learned positions, an encoder, and a head on the mean of the patches.

    Example:
        >>> net = ViTransformerWrapper(
        ...     image_size=256,
        ...     patch_size=32,
        ...     num_classes=1000,
        ...     attn_layers=Encoder(dim=512, depth=6, heads=8),
        ... )
        >>> net(torch.randn(1, 3, 256, 256)).shape
        torch.Size([1, 1000])
    """

    def __init__(self, *, attn_layers: Layers, **keywords: Any) -> None:
        """``keywords``: the fields of ``VisionConfig``.

        Raises:
            TypeError: an unknown keyword.
            ConfigError: values that can't be, or a causal stack.
        """
        super().__init__()
        self.config = config = config_of(VisionConfig, keywords, name="ViTransformerWrapper")
        if attn_layers.config.causal:
            raise ConfigError(
                "ViTransformerWrapper: attn_layers is causal, but patches have no order; give an "
                "Encoder (causal=false)"
            )
        dim = attn_layers.config.dim
        self.patch_embedding = PatchEmbedding(config, dim)
        self.positions = LearnedPosition(config.patches, dim)
        self.post_emb_norm = None
        if config.post_emb_norm:
            self.post_emb_norm = LayerNormConfig(unit_offset=False).build(dim)
        count = config.num_register_tokens
        self.registers = LearnedTokens(count, dim) if count else None
        self.layers = attn_layers
        self.head = None
        if config.num_classes is not None:
            self.head = Linear(dim, config.num_classes, bias=True)

    def forward(
        self,
        img: Float[Tensor, "b c y x"],
        *,
        return_embeddings: bool = False,
        return_logits_and_embeddings: bool = False,
        condition: Float[Tensor, "b e"] | None = None,
        context: Float[Tensor, "b j e"] | None = None,
        context_mask: Bool[Tensor, "b j"] | None = None,
    ) -> Float[Tensor, "b k"] | Float[Tensor, "b n d"] | LogitsAndEmbeddings:
        """Logits (b, classes) of images; without a head the mean embedding (b, d).

        return_embeddings: the embedded patches (b, n, d) instead, row by row.
        condition, context, context_mask: for layers with adaptive norms or cross attention.

        Raises:
            ValueError: images of another size or type, or both kinds of return asked for.
        """
        if return_embeddings and return_logits_and_embeddings:
            raise ValueError("return_embeddings, return_logits_and_embeddings: choose one")
        given: StackKeywords = {
            "condition": condition,
            "context": context,
            "context_mask": context_mask,
        }
        embeddings = self.run(img, given).hidden
        if return_embeddings:
            return embeddings
        pooled = reduce(embeddings, "b n d -> b d", "mean")
        logits = pooled if self.head is None else self.head(pooled)
        return LogitsAndEmbeddings(logits, embeddings) if return_logits_and_embeddings else logits

    def run(
        self,
        img: Float[Tensor, "b c y x"],
        given: StackKeywords | None = None,
        *,
        keep: bool = False,
    ) -> StackOutput:
        """Everything below the head: embedded patches and auxiliary losses; ``keep`` adds
        attentions and hidden states on the way, which include the registers, last.

        Raises:
            ValueError: as ``forward``.
        """
        self._check(img)
        place = torch.arange(self.config.patches, device=img.device)
        x = self.patch_embedding(img) + self.positions(place[None])
        x = x if self.post_emb_norm is None else self.post_emb_norm(x)
        x = F.dropout(x, self.config.emb_dropout, self.training)
        if self.registers is not None:
            x = torch.cat((x, self.registers(len(x))), dim=1)
        out = self.layers.run(x, stack_inputs(x, self.layers.config, given or {}, keep=keep))
        return replace(out, hidden=out.hidden[:, : self.config.patches])

    def _check(self, img: Tensor) -> None:
        config, img = self.config, check_tensor(img, name="img")
        want = (config.channels, config.image_size, config.image_size)
        if img.ndim != 4 or img.shape[1:] != want:
            raise ValueError(f"img: got {seen(img)}; give (batch, {', '.join(map(str, want))})")
        check_type(img, self.patch_embedding, name="img")
