"""Multi-head attention, https://arxiv.org/abs/1706.03762, as a pipeline of declared parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from xtdist.nn.attention.attend import Attend, Reading
from xtdist.nn.attention.backends import BACKENDS
from xtdist.nn.attention.cache import Kept, Read
from xtdist.nn.attention.config import AttentionConfig
from xtdist.nn.attention.exchange import SequenceGroup
from xtdist.nn.attention.extra import MemoryKeyValues, Sink, ValueMix, prepend
from xtdist.nn.attention.inputs import AttentionInputs, AttentionOutput, LayerInputs
from xtdist.nn.attention.latent import LatentProjection, build_projection, keeps_latent
from xtdist.nn.attention.masks import EVERYTHING, Visible
from xtdist.nn.attention.pairs import PairBias, Rows
from xtdist.nn.attention.projection import (
    QKV,
    HeadNorms,
    HeadSizes,
    JointProjection,
    apart,
)
from xtdist.nn.attention.rotation import Rotation
from xtdist.nn.attention.scores import ScoreMods
from xtdist.nn.attention.values import ValueMods, laser_in, laser_out
from xtdist.nn.linear import Linear
from xtdist.nn.position.geometry import PositionGeometry

NOTHING = LayerInputs()
PAST = Visible(causal=True)


@dataclass(frozen=True, kw_only=True)
class AttentionGeometry:
    """What an attention layer takes from the stack that it stands in.

    ``dim_context`` is set for cross attention: the width of what it reads. ``learned_mix``: how
    much of the first layer's values is mixed in is learned.
    """

    dim: int
    heads: int
    causal: bool
    dim_context: int | None = None
    learned_mix: bool = False
    init_gain: float = 1.0

    def place(self, config: AttentionConfig) -> PositionGeometry:
        """What positional parts of the layer take from it."""
        return PositionGeometry(
            dim=self.dim,
            heads=self.heads,
            kv_heads=config.kv_heads or self.heads,
            dim_head=config.dim_head,
            causal=self.causal,
        )


class Attention(nn.Module):
    """project → norm → rotate → (cache) → read → gate → project.

    Query head i reads key/value head i // (heads // kv_heads). ``sequence``: the ranks that hold
    the other slices of the tokens' sequences, while there are such.
    """

    sequence: SequenceGroup | None = None

    def __init__(
        self, geometry: AttentionGeometry, config: AttentionConfig, *, backend: str = "sdpa"
    ) -> None:
        super().__init__()
        self.config, self.geometry, self.backend = config, geometry, backend
        self.sizes = sizes = HeadSizes.of(geometry.heads, config)
        self.keeps_latent = keeps_latent(config) and geometry.dim_context is None
        self.scale = config.dim_head**-0.5
        if config.cosine is not None and not config.cosine.learned_scale:
            self.scale = config.cosine.scale
        dim, heads, place = geometry.dim, geometry.heads, geometry.place(config)
        self.projection = build_projection(dim, geometry.dim_context, sizes, config)
        self.norms = HeadNorms(sizes, config)
        self.memory = MemoryKeyValues(sizes, config.memory_kv) if config.memory_kv else None
        self.sink = Sink(heads) if config.sink else None
        self.mix = ValueMix(dim, sizes.kv_heads) if geometry.learned_mix else None
        self.pair_bias = PairBias(place, config) if has_pair_bias(config) else None
        self.score_mods = ScoreMods(config, place) if needs_table(config) else None
        self.value_mods = ValueMods(dim, heads, config) if has_value_mods(config) else None
        out = dim * (2 if config.glu_out else 1)
        gain = 0.0 if config.zero_init_out else geometry.init_gain
        self.to_out = Linear(heads * sizes.value_dim, out, bias=config.bias_out, init_gain=gain)

    def forward(
        self, x: Float[Tensor, "b n d"], shared: AttentionInputs, own: LayerInputs = NOTHING
    ) -> AttentionOutput:
        """What the layer adds for the tokens ``x``."""
        if self.geometry.dim_context is not None:
            reading, values = self._cross(x, shared, own)
        else:
            reading, values = self._self(x, shared, own)
        out = reading.out if self.value_mods is None else self.value_mods(reading.out, x)
        out = self.to_out(out.transpose(1, 2).flatten(2))
        out = F.glu(out, dim=-1) if self.config.glu_out else out
        if self.training and self.config.dropout_out:
            out = F.dropout(out, self.config.dropout_out)
        return AttentionOutput(out, values, reading)

    def _self(
        self, x: Tensor, shared: AttentionInputs, own: LayerInputs
    ) -> tuple[Reading, Tensor | None]:
        source = x if own.memory is None else torch.cat((own.memory, x), dim=1)
        key_rotation = shared.key_rotation or shared.rotation
        values: Tensor | None = None
        kept: Kept
        if self.keeps_latent:
            q, kept = self._latent(x, source, key_rotation)
        else:
            q, k, v = self._project(x, own)
            values = v
            q, k, v = QKV(q, k, v if own.values is None else self._mixed(source, v, own.values))
            if not self.norms.empty:
                q, k, v = self.norms(QKV(q, k, v))
            if key_rotation is not None:
                k, v = key_rotation.keys(k), apart(v)
            kept = (k, v)
        q = q if shared.rotation is None else shared.rotation.queries(q)
        rows: Rows = ()
        if self.pair_bias is not None:
            rows, left = self.pair_bias.project(x, source)
            kept = (*kept, *left)
        return self._read_kept((q, *rows), kept, shared, own), values

    def _latent(self, x: Tensor, source: Tensor, rotation: Rotation | None) -> tuple[Tensor, Kept]:
        projection = self.projection
        assert isinstance(projection, LatentProjection)
        latent, rotary = projection.compress(source)
        assert rotary is not None
        return projection.queries(x), (
            latent,
            rotary if rotation is None else rotation.keys(rotary),
        )

    def _project(self, x: Tensor, own: LayerInputs) -> QKV:
        """Queries of the tokens, keys and values of what they read: by default the same."""
        sources = own.sources or (x, x)
        if own.memory is not None:
            sources = (
                torch.cat((own.memory, sources[0]), dim=1),
                torch.cat((own.memory, sources[1]), dim=1),
            )
        projection = self.projection
        if isinstance(projection, LatentProjection):
            return projection(x, sources[0])
        assert isinstance(projection, JointProjection)
        plain = own.sources is None and own.memory is None
        return projection(x) if plain else projection(x, sources)

    def _mixed(self, source: Tensor, v: Tensor, first: Tensor) -> Tensor:
        """The first layer's values, moved towards this layer's (2410.17897)."""
        share = 0.5 if self.mix is None else self.mix(source)
        return first + (v - first) * share

    def _cross(
        self, x: Tensor, shared: AttentionInputs, own: LayerInputs
    ) -> tuple[Reading, Tensor | None]:
        assert not isinstance(self.projection, JointProjection)
        q = self.norms.queries(self.projection.queries(x))
        if shared.cache is not None:
            return self._cross_cached(q, shared, own)
        context = shared.context
        assert context is not None
        k, values = self._context_kept(context.states)
        v = values if own.values is None else self._mixed(x, values, own.values)
        if context.rotation is not None and context.query_rotation is not None:
            q, k = context.query_rotation.queries(q), context.rotation.keys(k)
        how = replace(self._how(Visible(keys=context.mask), shared, own), bias=None, memo=None)
        return self._read((q,), (k, self.norms.values(v)), how, own), values

    def _cross_cached(
        self, q: Tensor, shared: AttentionInputs, own: LayerInputs
    ) -> tuple[Reading, Tensor]:
        """The same for sequences that each have a context of their own."""
        assert shared.cache is not None
        outs, values = [], []
        reads = shared.cache.context(own.layer, self._context_kept)
        first: Sequence[Tensor | None] = [None] * len(reads)
        if own.values is not None:
            first = _by_length(own.values, reads)
        for number, read in enumerate(reads):
            k, v = read.kept
            values.append(v)
            of_first = first[number]
            v = v if of_first is None else self._mixed(q, v, of_first)
            before = own.scores[number] if own.scores else None
            how = self._how(EVERYTHING, shared, NOTHING).after(before, keep=shared.keep_scores)
            how = replace(how, bias=None, memo=None)
            kept = (k, self.norms.values(v))
            outs.append(self._read((q[:, :, read.rows],), kept, how, NOTHING))
        return _joined(outs), torch.cat(values, dim=2) if len(values) > 1 else values[0]

    def _context_kept(self, context: Tensor) -> Kept:
        """Normed keys of a context, and its values before any mixing."""
        assert not isinstance(self.projection, JointProjection)
        k, v = self.projection.keys_values(context)
        return self.norms.keys(k), v

    def _read_kept(
        self,
        queries: Rows,
        kept: Kept,
        shared: AttentionInputs,
        own: LayerInputs,
    ) -> Reading:
        if shared.cache is None:
            how = self._how(shared.visible, shared, own)
            if self.pair_bias is not None:
                places = shared.q_pos, shared.k_pos
                extra = self.pair_bias(queries[1:], kept[2:], *places, shared.visible)
                bias = extra if how.bias is None else how.bias + extra
                how = replace(how, bias=bias, memo=None)
            return self._read(queries, kept, how, own)
        outs, how = [], Attend(scale=self.scale, visible=PAST, mods=self.score_mods)
        if self.sink is not None:
            how = replace(how, sink=self.sink())
        for number, read in enumerate(shared.cache.update(own.layer, kept)):
            rows = tuple([t[:, :, read.rows] for t in queries])
            told = self._how_cached(how, rows, read, shared)
            told = told.after(own.scores[number] if own.scores else None, keep=shared.keep_scores)
            outs.append(self._read(rows, read.kept, told, NOTHING))
        return _joined(outs)

    def _how(self, visible: Visible, shared: AttentionInputs, own: LayerInputs) -> Attend:
        if self.config.window is not None:
            visible = replace(visible, window=self.config.window)
        return Attend(
            scale=self.scale,
            visible=visible,
            bias=shared.bias,
            sink=None if self.sink is None else self.sink(),
            mods=self.score_mods,
            memo=None if own.added is not None or self.sink is not None else shared.memo,
            dropout=self.config.dropout if self.training else 0.0,
            previous=own.scores[0] if own.scores else None,
            keep_scores=shared.keep_scores,
        )

    def _how_cached(self, how: Attend, rows: Rows, read: Read, shared: AttentionInputs) -> Attend:
        """``how``, with what depends on how many keys there are."""
        i, j = rows[0].shape[2], read.kept[0].shape[2]
        window = self.config.window
        if window is not None and j > window + 1:
            how = replace(how, visible=replace(how.visible, window=window))
        if shared.position_bias is None and self.pair_bias is None:
            return how
        keys = torch.arange(read.first, read.first + j, device=rows[0].device)[None]
        terms = []
        if shared.position_bias is not None:
            terms.append(shared.position_bias(keys[:, j - i :], keys, reach=j - 1))
        if self.pair_bias is not None:
            terms.append(self.pair_bias(rows[1:], read.kept[2:], keys[:, j - i :], keys))
        return replace(how, bias=terms[0] if len(terms) == 1 else torch.add(*terms))

    def _read(self, queries: Rows, kept: Kept, how: Attend, own: LayerInputs) -> Reading:
        """Attention itself, with the keys that don't come from tokens put before the others."""
        q, (k, v), config = queries[0], kept[:2], self.config
        if self.keeps_latent:
            assert isinstance(self.projection, LatentProjection)
            k, v = self.projection.expand(k, v)
        if self.sequence is not None:
            q, k, v, how = self.sequence.heads(q, k, v, how)
        if self.memory is not None:
            k, v = self.memory(k, v, self.norms)
            how = replace(how, visible=how.visible.after(config.memory_kv))
        if own.added is not None:
            k, v, visible = prepend(k, v, own.added, how.visible)
            how = replace(how, visible=visible)
        if config.laser is not None:
            q, k, v = q.float(), k.float(), laser_in(v, config.laser)
        if config.zero_kv:  # adds nothing, to a sum of exponentials too
            k, v = F.pad(k, (0, 0, 1, 0)), F.pad(v, (0, 0, 1, 0))
            how = replace(how, visible=how.visible.after(1))
        eager = how.keep_scores or how.previous is not None
        reading = BACKENDS["eager" if eager else self.backend](q, k, v, how)
        if config.laser is not None:
            reading = reading._replace(out=laser_out(reading.out).to(queries[0].dtype))
        if self.sequence is None:
            return reading
        return reading._replace(out=self.sequence.positions(reading.out))


def _by_length(values: Tensor, reads: Sequence[Read]) -> list[Tensor]:
    """The contexts' values one by one, as they were joined."""
    return list(values.split([read.kept[1].shape[2] for read in reads], dim=2))


def _joined(readings: list[Reading]) -> Reading:
    """The tokens of several sequences side by side; each keeps scores of its own."""
    if len(readings) == 1:
        return readings[0]
    return Reading(
        torch.cat([reading.out for reading in readings], dim=2),
        scores=sum((reading.scores for reading in readings), ()),
        weights=sum((reading.weights for reading in readings), ()),
    )


def has_value_mods(config: AttentionConfig) -> bool:
    """Whether something happens to what was read before it is projected out."""
    gates = config.gate is not None or config.output_gate is not None or config.gate_heads
    return gates or config.head_scale


def has_pair_bias(config: AttentionConfig) -> bool:
    """Whether the layer computes a bias from its own tokens."""
    return config.forgetting is not None or config.relative_projection is not None


def needs_table(config: AttentionConfig) -> bool:
    """Whether some option acts on the table of scores itself."""
    return (
        config.similarity != "dot"
        or config.softclamp is not None
        or config.pre_talking_heads
        or config.post_talking_heads
        or config.pre_scale_post_talking_heads
        or config.selective
        or config.cope is not None
        or config.weights.kind != "softmax"
    )
