"""Transformers on sequences of vectors instead of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Unpack, cast

import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from xtdist.config import ConfigError, NonNegativeInt, PositiveInt, Probability, configclass
from xtdist.model.around import absolute_positions
from xtdist.model.caching import cache_spec
from xtdist.model.checks import check_beside, check_learned
from xtdist.model.config import LayersConfig
from xtdist.model.inputs import StackKeywords, stack_inputs
from xtdist.model.keywords import config_of
from xtdist.model.layers import Layers
from xtdist.model.slots import Slots
from xtdist.model.stack import StackOutput
from xtdist.model.stack_checks import check_tensors
from xtdist.model.tensors import check_ids, check_shape, check_tensor, check_type, seen
from xtdist.nn.attention.cache import CacheSpec
from xtdist.nn.linear import Linear
from xtdist.nn.memory import LearnedTokens
from xtdist.nn.norm import LayerNormConfig
from xtdist.nn.position.config import LearnedConfig, SinusoidalConfig
from xtdist.nn.position.learned import LearnedPosition
from xtdist.nn.position.sinusoidal import SinusoidalPosition


@configclass
class ContinuousConfig:
    """What stands around the layers.

    Vectors of ``dim_in`` come in and of ``dim_out`` go out, each null = the width of the layers,
    without a projection; ``use_identity_if_same_dim``: without one too where the widths agree.
    ``max_seq_len`` positions are learned where the layers have no others (null: none are);
    ``scaled_sinu_pos_emb`` takes sines instead, ``use_abs_pos_emb`` false nothing.
    ``num_memory_tokens`` learned vectors stand before the sequence (2006.11527). ``max_mem_len``
    hidden states of each layer are handed on to the next segment (1901.02860).
    ``post_emb_norm``: a norm on the embedded vectors. ``average_pool_embed``: one output for the
    whole sequence. ``probabilistic``: a mean and a variance for each output.
    """

    dim_in: PositiveInt | None = None
    dim_out: PositiveInt | None = None
    max_seq_len: NonNegativeInt | None = None
    max_mem_len: NonNegativeInt = 0
    num_memory_tokens: NonNegativeInt | None = None
    post_emb_norm: bool = False
    emb_dropout: Probability = 0.0
    use_abs_pos_emb: bool = True
    scaled_sinu_pos_emb: bool = False
    average_pool_embed: bool = False
    probabilistic: bool = False
    use_identity_if_same_dim: bool = False


class ContinuousInputs(StackKeywords, total=False):
    """Optional inputs of a forward pass: those of the stack, for the n vectors alone, and of the
    embedding.

    lens: (b,) real vectors in each row, instead of ``mask``.
    sum_embeds: (b, n, d) added to the embedded vectors.
    prepend_embeds, prepend_mask: (b, p, d) and (b, p), embedded vectors before them.
    """

    lens: Int[Tensor, " b"] | None
    sum_embeds: Float[Tensor, "b n d"] | None
    prepend_embeds: Float[Tensor, "b p d"] | None
    prepend_mask: Bool[Tensor, "b p"] | None


AROUND = ("lens", "sum_embeds", "prepend_embeds", "prepend_mask")
"""Inputs that the stack does not know."""


class ContinuousTransformerWrapper(nn.Module):
    """Project in, add positions, layers, project out.

    Example:
        >>> net = ContinuousTransformerWrapper(
        ...     dim_in=32, dim_out=100, max_seq_len=1024, attn_layers=Encoder(dim=512, depth=6)
        ... )
        >>> net(torch.randn(1, 1024, 32)).shape
        torch.Size([1, 1024, 100])
    """

    def __init__(
        self,
        *,
        attn_layers: Layers,
        project_in: nn.Module | None = None,
        project_out: nn.Module | None = None,
        **keywords: Any,
    ) -> None:
        """``keywords``: the fields of ``ContinuousConfig``. ``project_in`` and ``project_out`` take
        the place of linear projections.

        Raises:
            TypeError: an unknown keyword.
            ConfigError: values that can't be, or not together.
        """
        super().__init__()
        name = "ContinuousTransformerWrapper"
        self.config = config = config_of(ContinuousConfig, keywords, name=name)
        for given, width in ((project_in, "dim_in"), (project_out, "dim_out")):
            if given is not None and getattr(config, width) is not None:
                raise ConfigError(f"{name}: {width} and a projection of yours; give one of the two")
        self.dim = dim = attn_layers.config.dim
        same = config.use_identity_if_same_dim
        out = (
            None if config.dim_out is None else config.dim_out * (2 if config.probabilistic else 1)
        )
        self.project_in = project_in or _projection(config.dim_in, dim, config.dim_in, same=same)
        self.project_out = project_out or _projection(dim, out, out, same=same)
        self.max_seq_len, self.probabilistic = config.max_seq_len or None, config.probabilistic
        self.position_embedding = _positions(config, attn_layers.config)
        self.post_emb_norm = None
        if config.post_emb_norm:
            self.post_emb_norm = LayerNormConfig(unit_offset=False).build(dim)
        count = config.num_memory_tokens or 0
        self.memory_tokens = LearnedTokens(count, dim) if count else None
        self.layers = attn_layers

    def forward(
        self,
        x: Float[Tensor, "b n c"],
        *,
        return_embeddings: bool = False,
        return_intermediates: bool = False,
        return_mems: bool = False,
        return_attn: bool = False,
        **inputs: Unpack[ContinuousInputs],
    ) -> Any:
        """(b, n, dim_out) for vectors ``x``, or (b, dim_out) where the sequence is pooled; mean and
        variance (2, b, n, dim_out) where the net is probabilistic. Prepended vectors have outputs
        too, before the others. Further inputs are described in ``ContinuousInputs``.

        return_embeddings: hidden states, instead of the projected ones.
        return_intermediates, return_mems, return_attn: the output and, beside it, everything on the
        way; or the hidden states to give to the next segment as ``mems``; or every attention's
        weights.

        Raises:
            ValueError: shapes, types or a length that the net can't take; two kinds of return.
        """
        if return_intermediates + return_mems + return_attn > 1:
            raise ValueError("return_intermediates, return_mems, return_attn: choose one")
        keep = return_intermediates or return_mems or return_attn
        hidden, mask = self.run(x, keep=keep, **inputs)
        out = hidden.hidden
        if self.config.average_pool_embed:
            out = _masked_mean(out, mask)
        out = out if return_embeddings else self.to_output(out)
        if return_intermediates:
            return out, hidden
        if return_mems:
            return out, self._memories(hidden.hiddens, inputs.get("mems") or ())
        return (out, tuple(a.weights for a in hidden.attentions)) if return_attn else out

    def run(
        self, x: Float[Tensor, "b n c"], *, keep: bool = False, **inputs: Unpack[ContinuousInputs]
    ) -> tuple[StackOutput, Bool[Tensor, "b p+n"] | None]:
        """Everything below the projection out, without the memory tokens, and which of it is real;
        raises as ``forward``."""
        self._check(x, inputs)
        mask = real_vectors(x, inputs)
        given: dict[str, Any] = {k: v for k, v in inputs.items() if k not in AROUND}
        given["mask"] = mask
        stack = stack_inputs(x, self.layers.config, cast(StackKeywords, given), keep=keep)
        h = self._embed(x, inputs)
        prepended = inputs.get("prepend_embeds")
        if prepended is not None:
            before = inputs.get("prepend_mask")
            if mask is not None or before is not None:
                mask = torch.cat((_or_ones(before, prepended), _or_ones(mask, x)), dim=1)
            h = torch.cat((prepended.to(h.dtype), h), dim=1)
        slots = Slots(
            x.shape[1],
            prepended=h.shape[1] - x.shape[1],
            memories=self.config.num_memory_tokens or 0,
            every=None,
        )
        memory = None if self.memory_tokens is None else self.memory_tokens(len(x))
        h = F.dropout(slots.join(h, None, memory), self.config.emb_dropout, self.training)
        if slots.lead:
            stack = slots.inputs(stack, mask, causal=self.layers.config.causal)
        return _without_memories(self.layers.run(h, stack), slots), mask

    def _embed(self, x: Tensor, inputs: ContinuousInputs) -> Float[Tensor, "b n d"]:
        """The vectors projected in, with their positions."""
        h = cast(Tensor, self.project_in(x))
        if self.position_embedding is not None:
            h = h + self.position_embedding(absolute_positions(x, inputs))
        summed = inputs.get("sum_embeds")
        h = h if summed is None else h + summed.to(h.dtype)
        return h if self.post_emb_norm is None else self.post_emb_norm(h)

    def to_output(self, hidden: Float[Tensor, "... d"]) -> Tensor:
        """Hidden states projected out; mean and variance as a new first axis where the net is
        probabilistic."""
        out = cast(Tensor, self.project_out(hidden))
        if not self.probabilistic:
            return out
        mean, log_variance = rearrange(out, "... (d two) -> two ... d", two=2)
        return torch.stack((mean, log_variance.exp()))

    def cache_spec(self) -> CacheSpec:
        """What a key/value store must hold for each vector."""
        spec = cache_spec(self.layers.config)
        if self.memory_tokens is None:
            return spec
        why = "memory tokens: they stand before the sequence, where a cache has no place"
        return replace(spec, refused="; ".join(filter(None, (spec.refused, why))))

    def _check(self, x: Tensor, inputs: ContinuousInputs) -> None:
        check_tensors(check_tensor(x, name="x"), inputs)
        width = self.config.dim_in
        if width is None and isinstance(self.project_in, nn.Identity):
            width = self.dim
        if x.ndim != 3 or not x.is_floating_point() or x.shape[-1] != (width or x.shape[-1]):
            raise ValueError(f"x: got {seen(x)}; give vectors (b, n, {width or 'channels'})")
        if isinstance(self.project_in, nn.Identity):
            check_type(x, self.layers, name="x")
        elif isinstance(self.project_in, Linear):
            check_type(x, self.project_in, name="x")
        if isinstance(self.position_embedding, LearnedPosition):
            limit = len(self.position_embedding.weight)
            check_learned(inputs.get("pos"), x.shape[1], limit=limit, what="vectors")
        check_beside(x, inputs, dim=self.dim)
        if inputs.get("cache") is None:
            return
        if self.memory_tokens is not None:
            raise ValueError("cache: can't be combined with memory tokens")
        for name in ("mask", "lens", "seq_start_pos"):
            if cast(Mapping[str, Any], inputs).get(name) is not None:
                raise ValueError(f"cache: can't be combined with {name}; leave padding out instead")

    def _memories(
        self, hiddens: Sequence[Tensor], before: Sequence[Tensor]
    ) -> tuple[Float[Tensor, "b m d"], ...]:
        """The last hidden states of each self attention, those of earlier segments included."""
        length = self.config.max_mem_len
        if before:
            hiddens = [torch.cat(pair, dim=1) for pair in zip(before, hiddens, strict=True)]
        return tuple(h[:, max(0, h.shape[1] - length) :].detach() for h in hiddens)


def _projection(dim_in: int | None, dim_out: int | None, asked: int | None, *, same: bool) -> Any:
    """A linear map where a width is ``asked`` for, except between equal widths if ``same``."""
    if asked is None or (same and dim_in == dim_out):
        return nn.Identity()
    assert dim_in is not None
    assert dim_out is not None
    return Linear(dim_in, dim_out)


def _without_memories(out: StackOutput, slots: Slots) -> StackOutput:
    """The vectors of the sequence alone."""
    if not slots.memories:
        return out
    return replace(
        out,
        hidden=slots.split(out.hidden)[0],
        hiddens=tuple(slots.split(h)[0] for h in out.hiddens),
        block_hiddens=tuple(slots.split(h)[0] for h in out.block_hiddens),
    )


def _positions(
    config: ContinuousConfig, layers: LayersConfig
) -> LearnedPosition | SinusoidalPosition | None:
    """What is added to the vectors."""
    open_to = isinstance(layers.position, LearnedConfig)
    if config.scaled_sinu_pos_emb and not (config.use_abs_pos_emb and open_to):
        why = f"attn_layers has {layers.position.kind} positions" if not open_to else ""
        raise ConfigError(
            f"scaled_sinu_pos_emb: {why or 'use_abs_pos_emb=False takes positions away'}; leave "
            "one of the two out"
        )
    if config.scaled_sinu_pos_emb:
        return SinusoidalConfig().build(layers.dim)
    if not (config.use_abs_pos_emb and open_to and config.max_seq_len):
        return None
    return LearnedConfig().build(config.max_seq_len, layers.dim)


def real_vectors(x: Tensor, given: Mapping[str, Any]) -> Bool[Tensor, "b n"] | None:
    """Which vectors of ``x`` are real, by ``mask``, ``lens`` and ``seq_start_pos``. None: all.

    Raises:
        ValueError: another shape, type or number than can be, or both mask and lens.
    """
    (b, n), mask, lens = x.shape[:2], given.get("mask"), given.get("lens")
    start = given.get("seq_start_pos")
    if mask is not None and lens is not None:
        raise ValueError("mask, lens: both say which vectors are real; give one")
    if mask is not None:
        what = ", True = a real vector"
        check_shape(mask, name="mask", kind="bool", shapes=[(b, n)], what=what)
    for name, numbers in (("lens", lens), ("seq_start_pos", start)):
        if numbers is not None:
            check_shape(numbers, name=name, kind="integer", shapes=[(b,)])
            check_ids(numbers, n + 1, name=name, what="numbers of vectors")
    place = torch.arange(n, device=x.device)
    if lens is not None:
        mask = place < rearrange(lens, "b -> b 1")
    if start is not None:
        behind = place >= rearrange(start, "b -> b 1")
        mask = behind if mask is None else mask & behind
    return mask


def _or_ones(mask: Tensor | None, x: Tensor) -> Bool[Tensor, "b n"]:
    return torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask


def _masked_mean(x: Tensor, mask: Tensor | None) -> Float[Tensor, "b d"]:
    """The mean over real vectors; zero where there are none."""
    if mask is None:
        return reduce(x, "b n d -> b d", "mean")
    total = reduce(x.masked_fill(~mask[..., None], 0.0), "b n d -> b d", "sum")
    return total / repeat(mask.sum(dim=1).clamp(min=1), "b -> b 1")
