"""An encoder and a decoder that reads it, https://arxiv.org/abs/1706.03762."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from xtdist.config import ConfigError
from xtdist.decode.runner import evaluating
from xtdist.model import Decoder, Encoder, TransformerWrapper
from xtdist.model.options.base import Row
from xtdist.model.options.table import wrapper_rows
from xtdist.objective.autoregressive import AutoregressiveWrapper


class XTransformer(nn.Module):
    """Reads a source sequence and writes a target sequence.

    ``enc_…`` and ``dec_…`` are the keywords of ``TransformerWrapper`` and of ``Encoder`` and
    ``Decoder``: enc_num_tokens, enc_max_seq_len, enc_depth, enc_heads, and so on.

    Args:
        dim: width of both.
        tie_token_emb: both use the encoder's token embedding.
        ignore_index, pad_value: as for ``AutoregressiveWrapper``.
        cross_attn_tokens_dropout: the probability that the decoder does not see a source token, in
            training.

    Raises:
        TypeError: an unknown keyword, with the nearest one.
        ConfigError: values that can't be, alone or together.

    Example:
        >>> model = XTransformer(
        ...     dim=64, enc_num_tokens=256, enc_max_seq_len=128, enc_depth=2, enc_heads=4,
        ...     dec_num_tokens=256, dec_max_seq_len=128, dec_depth=2, dec_heads=4,
        ... )
        >>> source, target = torch.randint(0, 256, (2, 1, 128))
        >>> loss = model(source, target)
        >>> model.generate(source, target[:, :1], 16).shape
        torch.Size([1, 16])
    """

    def __init__(
        self,
        *,
        dim: int,
        tie_token_emb: bool = False,
        ignore_index: int = -100,
        pad_value: int = 0,
        cross_attn_tokens_dropout: float = 0.0,
        **keywords: Any,
    ) -> None:
        super().__init__()
        sides = _split(keywords)
        encoder, decoder = sides["enc"], sides["dec"]
        # The encoder has no head of its own: its hidden states are what it is for.
        self.encoder = TransformerWrapper(
            **{**encoder.wrapper, "return_only_embed": True},
            attn_layers=Encoder(dim=dim, **encoder.layers),
        )
        if self.encoder.config.pool is not None:
            raise ConfigError(
                "enc_average_pool_embed, enc_use_cls_token, enc_attn_pool: the decoder reads what "
                "the encoder says of each source token, not one output for all; leave it out"
            )
        net = TransformerWrapper(
            **decoder.wrapper,
            attn_layers=Decoder(
                dim=dim,
                cross_attend=True,
                cross_attn_tokens_dropout=cross_attn_tokens_dropout,
                **decoder.layers,
            ),
        )
        if tie_token_emb:
            if net.num_tokens != self.encoder.num_tokens:
                raise ConfigError(
                    f"tie_token_emb: dec_num_tokens is {net.num_tokens}, enc_num_tokens "
                    f"{self.encoder.num_tokens}; one embedding needs one vocabulary"
                )
            net.token_embedding = self.encoder.token_embedding
        self.decoder = AutoregressiveWrapper(net, ignore_index=ignore_index, pad_value=pad_value)

    def forward(
        self,
        src: Int[Tensor, "b j"],
        tgt: Int[Tensor, "b n"],
        mask: Bool[Tensor, "b j"] | None = None,
        attn_mask: Bool[Tensor, "..."] | None = None,
        src_prepend_embeds: Float[Tensor, "b p d"] | None = None,
        **inputs: Any,
    ) -> Float[Tensor, ""]:
        """Mean cross-entropy (nats) of tgt[:, 1:] given ``src``.

        mask: True = a real source token. attn_mask: who may read whom in the source.
        src_prepend_embeds: vectors before the source's own. ``inputs`` go to the decoder's wrapper.
        """
        encoded, mask = self._encode(src, mask, attn_mask, src_prepend_embeds)
        return self.decoder(tgt, context=encoded, context_mask=mask, **inputs)

    @torch.no_grad()
    def generate(
        self,
        seq_in: Int[Tensor, "b j"],
        seq_out_start: Int[Tensor, "b n"],
        seq_len: int,
        mask: Bool[Tensor, "b j"] | None = None,
        attn_mask: Bool[Tensor, "..."] | None = None,
        *,
        amateur_model: nn.Module | Sequence[nn.Module] | None = None,
        src_prepend_embeds: Float[Tensor, "b p d"] | None = None,
        **keywords: Any,
    ) -> Int[Tensor, "b m"]:
        """``seq_out_start`` continued by up to ``seq_len`` tokens, which are returned, given the
        source ``seq_in``. amateur_model: weaker decoders that read this model's encoder;
        ``keywords`` and what comes back: as for ``AutoregressiveWrapper.generate``.

        Raises:
            TypeError: an unknown keyword, with the nearest one.
            ConfigError: what can't be honoured, like sequences beyond dec_max_seq_len.
        """
        if isinstance(amateur_model, XTransformer):
            raise ConfigError(
                "amateur_model: an XTransformer would read an encoding of its own; give a decoder "
                "that reads this model's encoder, or none"
            )
        with evaluating(self.encoder):
            encoded, mask = self._encode(seq_in, mask, attn_mask, src_prepend_embeds)
        return self.decoder.generate(
            seq_out_start,
            seq_len,
            amateur_model=amateur_model,
            context=encoded,
            context_mask=mask,
            **keywords,
        )

    def _encode(
        self,
        src: Tensor,
        mask: Tensor | None,
        attn_mask: Tensor | None,
        prepend_embeds: Tensor | None,
    ) -> tuple[Float[Tensor, "b j d"], Bool[Tensor, "b j"] | None]:
        """The encoder's hidden states, and which of them are real."""
        inputs: dict[str, Any] = {"mask": mask, "attn_mask": attn_mask}
        if prepend_embeds is not None:
            inputs["prepend_embeds"] = prepend_embeds
        encoded = self.encoder(src, return_embeddings=True, **inputs)
        if mask is not None and prepend_embeds is not None:
            mask = F.pad(mask, (prepend_embeds.shape[1], 0), value=True)
        return encoded, mask


@dataclass
class _Side:
    """The keywords of one side: of its wrapper and of its layers."""

    wrapper: dict[str, Any] = field(default_factory=dict)
    layers: dict[str, Any] = field(default_factory=dict)


def _split(keywords: Mapping[str, Any]) -> dict[str, _Side]:
    """``enc_…`` and ``dec_…`` keywords, by side and by part.

    Raises:
        TypeError: a keyword of neither side, or one that both share or that is decided here.
    """
    of_wrapper = {row.keyword for row in wrapper_rows() if isinstance(row, Row)}
    taken = {"dim": "both sides have the keyword dim", "cross_attend": "the decoder always does"}
    taken["cross_attn_tokens_dropout"] = "give it without a prefix"
    sides = {"enc": _Side(), "dec": _Side()}
    for keyword, value in keywords.items():
        side, _, name = keyword.partition("_")
        if side not in sides or not name:
            raise TypeError(
                f"XTransformer: unknown keyword {keyword!r}; those of the encoder begin with "
                "enc_, those of the decoder with dec_"
            )
        if name in taken:
            raise TypeError(f"XTransformer: {keyword!r} can't be given: {taken[name]}")
        part = sides[side].wrapper if name in of_wrapper else sides[side].layers
        part[name] = value
    return sides
