"""One sublayer: an attention, cross attention or feed-forward with its norms and its residual."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from xtdist.model.config import LayersConfig
from xtdist.model.order import Kind
from xtdist.nn.attention.inputs import AddedKeyValues, AttentionInputs, LayerInputs
from xtdist.nn.attention.module import Attention, AttentionGeometry
from xtdist.nn.aux import AuxLoss
from xtdist.nn.feedforward import build_feedforward
from xtdist.nn.residual.build import build_branch_scale, build_integrator, build_residual
from xtdist.nn.residual.config import PlainResidualConfig
from xtdist.nn.residual.dropout import keep_mask
from xtdist.nn.residual.skip import UNetSkip


@dataclass(frozen=True, kw_only=True)
class Seat:
    """Where a sublayer stands: its number, its block, the backend of its attention; in the second
    half of a U, the sublayer whose input it reads."""

    number: int
    kind: Kind
    block: int
    backend: str
    is_first_attention: bool = False
    skip_from: int | None = None


class AttentionRecord(NamedTuple):
    """Scores before and weights after the softmax of one attention, both (b, h, i, j), fp32."""

    kind: Kind
    scores: Float[Tensor, "b h i j"]
    weights: Float[Tensor, "b h i j"]


class Carry(NamedTuple):
    """What sublayers hand on beside the stream.

    scores, values: of the last self attention and of the first. cross_…: of cross attentions.
    history: the inputs of all sublayers so far, where something reads them. records, hiddens: what
    the caller wants to see: each attention, the input of each self attention.
    """

    scores: tuple[Tensor, ...] = ()
    values: Tensor | None = None
    cross_scores: tuple[Tensor, ...] = ()
    cross_values: Tensor | None = None
    history: tuple[Tensor, ...] = ()
    streams: tuple[Tensor, ...] = ()
    records: tuple[AttentionRecord, ...] = ()
    hiddens: tuple[Tensor, ...] = ()
    aux: tuple[AuxLoss, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What all sublayers of one forward pass share; ``mask`` True = a real token."""

    attention: AttentionInputs
    mask: Bool[Tensor, "b n"] | None = None
    condition: Float[Tensor, "b 1|n c"] | None = None
    inject: Float[Tensor, "b n d"] | None = None
    keep: bool = False


@dataclass(frozen=True, kw_only=True)
class Own:
    """What one sublayer is given: its number among the attentions as they run, a memory and
    key/values for a self attention, a factor on the output of a feed-forward."""

    layer: int = 0
    memory: Float[Tensor, "b m d"] | None = None
    added: AddedKeyValues | None = None
    factor: Float[Tensor, "b n d"] | None = None


class Sublayer(nn.Module):
    """stream ↦ residual(stream, scale · branch(norm(read(stream))))."""

    def __init__(self, config: LayersConfig, seat: Seat) -> None:
        super().__init__()
        dim, self.config, self.seat = config.dim, config, seat
        views = 3 if self._has_views() else 1
        pre = config.norm_position != "post" and config.residual.kind != "gated_multi"
        post = config.norm_position != "pre"
        self.norm = config.norm.build(dim) if pre else None
        self.branch = self._branch()
        self.branch_norm = config.norm.build(dim) if config.branch_norm else None
        self.post_norm = config.norm.build(dim) if post else None
        stream_views = 1 if config.integrator is not None else views
        self.residual = None  # the sum
        if config.residual != PlainResidualConfig():
            self.residual = build_residual(
                dim, config.residual, layer=seat.number, views=stream_views
            )
        self.scale = self.integrator = None
        if config.branch_scale is not None:
            self.scale = build_branch_scale(dim, config.branch_scale)
        if config.integrator is not None:
            self.integrator = build_integrator(
                dim, config.integrator, layers=seat.number + 1, views=views
            )
        self.skip = None if seat.skip_from is None else UNetSkip(dim)
        self.shift = _of_each(config.shift_tokens, seat.number)
        self.dropout = _of_each(config.layer_dropout, seat.number)

    def _has_views(self) -> bool:
        """Whether queries, keys and values read the stream differently."""
        if self.seat.kind != "a":
            return False
        if self.config.integrator is not None:
            lime = self.config.integrator.kind == "lime"
            return lime and not self.seat.is_first_attention
        return getattr(self.config.residual, "qkv_views", False)

    def _branch(self) -> nn.Module:
        config, seat = self.config, self.seat
        gain = {
            "by_depth": (2 * config.depth) ** -0.5,
            "by_layer": (2 * (seat.block + 1)) ** -0.5,
            "zero": 0.0,
        }[config.branch_init]
        if seat.kind == "f":
            return build_feedforward(config.dim, config.feedforward, init_gain=gain)
        cross = seat.kind == "c"
        value_residual = config.value_residual
        learned = value_residual is not None and value_residual.learned
        geometry = AttentionGeometry(
            dim=config.dim,
            heads=config.heads,
            causal=config.causal and not cross,
            dim_context=(config.dim_context or config.dim) if cross else None,
            learned_mix=learned and not cross and not seat.is_first_attention,
            init_gain=gain,
        )
        attention = config.cross_attention if cross else config.attention
        assert attention is not None
        return Attention(geometry, attention, backend=seat.backend)

    def forward(
        self, stream: Float[Tensor, "b *s n d"], carry: Carry, shared: Shared, own: Own
    ) -> tuple[Float[Tensor, "b *s n d"], Carry]:
        if self.config.unet_skips:
            carry = carry._replace(streams=(*carry.streams, stream))
        if self.skip is not None:
            assert self.seat.skip_from is not None
            stream = self.skip(stream, carry.streams[self.seat.skip_from])
        x, kept = (stream, None) if self.residual is None else self.residual(stream)
        if shared.keep and self.seat.kind == "a":
            carry = carry._replace(hiddens=(*carry.hiddens, x[0] if x.ndim == 4 else x))
        x, carry = self._integrated(x, carry)
        x = x if shared.inject is None else x + shared.inject
        out, carry = self._run(_normed(self.norm, x, shared.condition), carry, shared, own)
        out = _normed(self.branch_norm, out, shared.condition)
        new = stream + out if self.residual is None else self.residual(out, kept, shared.mask)
        new = _normed(self.post_norm, new, shared.condition)
        if self.dropout and self.training:
            new = torch.where(keep_mask(stream, self.dropout), new, stream)
        return new, carry

    def _integrated(self, x: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        """The input of the branch as a mix of all inputs so far."""
        if self.integrator is None:
            return x, carry
        carry = carry._replace(history=(*carry.history, x))
        return self.integrator(x, carry.history), carry

    def _run(
        self, x: Tensor, carry: Carry, shared: Shared, own: Own
    ) -> tuple[Float[Tensor, "b n d"], Carry]:
        """The branch, between token shift and output factors."""
        if self.shift:
            x = shift_tokens(x, self.shift, causal=self.config.causal, mask=shared.mask)
        if self.seat.kind == "f":
            out, carry = self._feedforward(x, carry, shared, own)
        else:
            out, carry = self._attention(x, carry, shared, own)
        if self.scale is not None:
            out = (
                self.scale(out, shared.condition) if self.scale.needs_condition else self.scale(out)
            )
        return out, carry

    def _feedforward(
        self, x: Tensor, carry: Carry, shared: Shared, own: Own
    ) -> tuple[Tensor, Carry]:
        if self.config.feedforward.has_aux:
            out, aux = self.branch(x, shared.mask)
            carry = carry._replace(aux=(*carry.aux, *aux))
        else:
            out = self.branch(x)
        out = out if own.factor is None else out * own.factor
        return (out * 0.5 if self.config.order.macaron else out), carry

    def _attention(self, x: Tensor, carry: Carry, shared: Shared, own: Own) -> tuple[Tensor, Carry]:
        cross, config = self.seat.kind == "c", self.config
        passes_on = config.cross_residual_attention if cross else config.residual_attention
        first = carry.cross_values if cross else carry.values
        memory = own.memory
        if memory is not None:
            memory = _normed(self.norm, memory, shared.condition)
        inputs = LayerInputs(
            layer=own.layer,
            memory=memory,
            added=own.added,
            scores=carry.cross_scores if cross else carry.scores,
            values=first if config.value_residual is not None else None,
            sources=(x[1], x[2]) if x.ndim == 4 else None,
        )
        told = shared.attention
        if passes_on and not told.keep_scores:
            told = told.with_scores()
        out, values, reading = self.branch(x[0] if x.ndim == 4 else x, told, inputs)
        if shared.keep and reading.scores:
            record = AttentionRecord(self.seat.kind, reading.scores[0], reading.weights[0])
            carry = carry._replace(records=(*carry.records, record))
        if config.value_residual is not None and first is None:
            carry = carry._replace(**{"cross_values" if cross else "values": values})
        if passes_on:
            carry = carry._replace(**{"cross_scores" if cross else "scores": reading.scores})
        return out, carry


def _normed(norm: nn.Module | None, x: Tensor, condition: Tensor | None) -> Tensor:
    """``norm`` of ``x``, view by view where there are several."""
    if norm is None:
        return x
    if not norm.needs_condition:
        return cast(Tensor, norm(x))
    if x.ndim == 4:
        return torch.stack([norm(view, condition) for view in x])
    return cast(Tensor, norm(x, condition))


def _of_each(value: Any, number: int) -> Any:
    """The value of sublayer ``number``, where there is one for each."""
    return value[number] if isinstance(value, tuple) else value


def shift_tokens(
    x: Float[Tensor, "*v b n d"], amount: int, *, causal: bool, mask: Bool[Tensor, "b n"] | None
) -> Float[Tensor, "*v b n d"]:
    """The channels in equal groups, each from another token: 0 … ``amount`` places before, and
    after too if not causal (2106.07477). What lies outside is zero; padding is too, and skipped."""
    if mask is not None:
        order = torch.argsort((~mask).to(torch.uint8), dim=1, stable=True)
        x = _rows(x.masked_fill(~mask[..., None], 0.0), order)
    shifts = range(0 if causal else -amount, amount + 1)
    size = x.shape[-1] // len(shifts)
    groups = list(x.split(size, dim=-1))
    n = x.shape[-2]
    moved = []
    for group, by in zip(groups, shifts, strict=False):
        by = max(-n, min(by, n))
        moved.append(F.pad(group, (0, 0, by, -by)))
    shifted = torch.cat((*moved, *groups[len(shifts) :]), dim=-1)
    return shifted if mask is None else _rows(shifted, order.argsort(dim=1, stable=True))


def _rows(x: Float[Tensor, "*v b n d"], order: Int[Tensor, "b n"]) -> Float[Tensor, "*v b n d"]:
    """The tokens in another order."""
    return x.gather(-2, order[..., None].expand(x.shape))
