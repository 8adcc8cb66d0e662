"""Which tensors of transformers a tensor of ours is made of, and how: once, for both directions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xtdist.checkpoint.huggingface.families import Family
from xtdist.config import CheckpointError
from xtdist.model.config import ModelConfig
from xtdist.model.wrapper import TransformerWrapper
from xtdist.nn.attention.projection import HeadSizes
from xtdist.nn.feedforward import MoEConfig
from xtdist.nn.feedforward.config import inner_dim
from xtdist.nn.position.config import RotaryConfig

Change = Callable[[Tensor], Tensor]


def _same(x: Tensor) -> Tensor:
    return x


def _turned(x: Tensor) -> Tensor:
    return x.mT.contiguous()


@dataclass(frozen=True)
class Part:
    """``name`` there is ``rows`` rows of a tensor of ours; ``there`` and ``back`` change them."""

    name: str
    rows: int
    there: Change = _same
    back: Change = _same


@dataclass(frozen=True)
class Piece:
    """A tensor of ours: its parts one below the other, changed as a whole by ``there`` before it is
    cut, and by ``back`` once it is joined."""

    ours: str
    parts: tuple[Part, ...]
    there: Change = _same
    back: Change = _same

    def cut(self, ours: Tensor) -> Iterator[tuple[str, Tensor]]:
        """As they stand there."""
        pieces = self.there(ours).split([part.rows for part in self.parts])
        for part, piece in zip(self.parts, pieces, strict=True):
            yield part.name, part.there(piece).clone(memory_format=torch.contiguous_format)

    def join(self, theirs: Mapping[str, Tensor]) -> Tensor:
        """As it stands here. Raises CheckpointError for a shape that does not fit."""
        for part in self.parts:
            shape = theirs[part.name].shape
            if shape[:1] != (part.rows,):
                raise CheckpointError(
                    f"{part.name}: its shape does not fit config.json: {list(shape)}, and "
                    f"{part.rows:,} rows there"
                )
        try:
            found = [part.back(theirs[part.name]) for part in self.parts]
            whole = found[0] if len(found) == 1 else torch.cat(found)
            return self.back(whole).contiguous()
        except RuntimeError:
            raise CheckpointError(
                f"{self.parts[0].name}: its shape does not fit config.json"
            ) from None


class Layout:
    """The tensors of a model of ``config`` as ``kind``."""

    def __init__(self, config: ModelConfig, kind: Family) -> None:
        self.config, self.kind = config, kind
        self.gpt2 = kind.name == "gpt2"
        self.sizes = HeadSizes.of(config.heads, config.attention)
        position = config.position
        self.by_pairs = isinstance(position, RotaryConfig) and position.layout == "interleaved"

    def pieces(self) -> Iterator[Piece]:
        """Of every tensor of ours that is not another one's."""
        stem = "transformer." if self.gpt2 else "model."
        embedding, final = ("wte", "ln_f") if self.gpt2 else ("embed_tokens", "norm")
        config = self.config
        yield self._whole("token_embedding.weight", f"{stem}{embedding}.weight", config.num_tokens)
        if self.gpt2:
            yield self._whole("position_embedding.weight", f"{stem}wpe.weight", config.max_seq_len)
        for number in range(config.depth):
            layer = f"{stem}{'h' if self.gpt2 else 'layers'}.{number}"
            yield from self._attention(f"layers.sublayers.{2 * number}", layer)
            yield from self._feedforward(f"layers.sublayers.{2 * number + 1}", layer)
        yield from self._norm("layers.final_norm", f"{stem}{final}")
        if not config.tie_embedding:
            yield self._whole("head.weight", "lm_head.weight", config.num_tokens)

    def _whole(self, ours: str, theirs: str, rows: int) -> Piece:
        return Piece(ours, (Part(theirs, rows),))

    def _norm(self, ours: str, theirs: str) -> Iterator[Piece]:
        offset = getattr(self.config.norm, "unit_offset", False)
        gain = (Part(f"{theirs}.weight", self.config.dim),)
        yield Piece(f"{ours}.gain", gain, there=_plus_one if offset else _same)
        if getattr(self.config.norm, "bias", False):
            yield self._whole(f"{ours}.bias", f"{theirs}.bias", self.config.dim)

    def _attention(self, ours: str, layer: str) -> Iterator[Piece]:
        attention = self.config.attention
        yield from self._norm(
            f"{ours}.norm", f"{layer}.{'ln_1' if self.gpt2 else 'input_layernorm'}"
        )
        ours = f"{ours}.branch"
        endings = ["weight", *(["bias"] if attention.bias else [])]
        for ending in endings:
            yield self._qkv(f"{ours}.projection.{ending}", layer, ending)
        if attention.shared_norm_gain:
            for name, norm in (("query", "q_norm"), ("key", "k_norm")):
                part = self._rotated(f"{layer}.self_attn.{norm}.weight", self.sizes.dim)
                yield Piece(f"{ours}.norms.{name}.gain", (part,))
        out = f"{layer}.attn.c_proj" if self.gpt2 else f"{layer}.self_attn.o_proj"
        yield from self._linear(f"{ours}.to_out", (out,), bias=attention.bias_out)

    def _qkv(self, ours: str, layer: str, ending: str) -> Piece:
        queries, keys, values = self.sizes.widths
        if self.gpt2:
            change = _turned if ending == "weight" else _same
            rows = self.config.dim if ending == "weight" else queries + keys + values
            parts = (Part(f"{layer}.attn.c_attn.{ending}", rows),)
            return Piece(ours, parts, there=change, back=change)
        stem = f"{layer}.self_attn"
        return Piece(
            ours,
            (
                self._rotated(f"{stem}.q_proj.{ending}", queries),
                self._rotated(f"{stem}.k_proj.{ending}", keys),
                Part(f"{stem}.v_proj.{ending}", values),
            ),
        )

    def _rotated(self, name: str, rows: int) -> Part:
        """Channels of rotated heads, where a pair may stand otherwise there."""
        if not self.by_pairs:
            return Part(name, rows)
        dim = self.sizes.dim

        def to_halves(x: Tensor) -> Tensor:
            return x.unflatten(0, (-1, dim // 2, 2)).transpose(1, 2).flatten(0, 2)

        def to_pairs(x: Tensor) -> Tensor:
            return x.unflatten(0, (-1, 2, dim // 2)).transpose(1, 2).flatten(0, 2)

        return Part(name, rows, to_halves, to_pairs)

    def _feedforward(self, ours: str, layer: str) -> Iterator[Piece]:
        norm = "ln_2" if self.gpt2 else "post_attention_layernorm"
        yield from self._norm(f"{ours}.norm", f"{layer}.{norm}")
        ff, ours = self.config.feedforward, f"{ours}.branch"
        if isinstance(ff, MoEConfig):
            yield from self._experts(ours, f"{layer}.block_sparse_moe", ff)
            return
        ins: tuple[str, ...] = (f"{layer}.mlp.up_proj", f"{layer}.mlp.gate_proj")
        out = f"{layer}.mlp.down_proj"
        if self.gpt2:
            ins, out = (f"{layer}.mlp.c_fc",), f"{layer}.mlp.c_proj"
        yield from self._linear(
            f"{ours}.proj_in", ins, bias=ff.bias_in, rows=inner_dim(ff, self.config.dim)
        )
        yield from self._linear(f"{ours}.proj_out", (out,), bias=ff.bias_out)

    def _linear(
        self, ours: str, theirs: tuple[str, ...], *, bias: bool, rows: int | None = None
    ) -> Iterator[Piece]:
        """A layer of ``rows`` outputs (None: the model's width) for each of ``theirs``."""
        rows = rows or self.config.dim
        if self.gpt2:  # which keeps the transposed matrix
            inputs = self._inputs(ours)
            parts = tuple(Part(f"{name}.weight", inputs) for name in theirs)
            yield Piece(f"{ours}.weight", parts, there=_turned, back=_turned)
        else:
            yield Piece(f"{ours}.weight", tuple(Part(f"{name}.weight", rows) for name in theirs))
        if bias:
            yield Piece(f"{ours}.bias", tuple(Part(f"{name}.bias", rows) for name in theirs))

    def _inputs(self, ours: str) -> int:
        ff = self.config.feedforward
        if ours.endswith("proj_out") and not isinstance(ff, MoEConfig):
            return inner_dim(ff, self.config.dim)
        return self.sizes.widths[0] if ours.endswith("to_out") else self.config.dim

    def _experts(self, ours: str, theirs: str, ff: MoEConfig) -> Iterator[Piece]:
        """Ours are one tensor of all experts, (e, in, out), with up and gate side by side."""
        count, dim, inner = ff.experts, self.config.dim, inner_dim(ff.expert, self.config.dim)
        yield self._whole(f"{ours}.router.weight", f"{theirs}.gate.weight", count)
        names = [f"{theirs}.experts.{e}" for e in range(count)]
        ups = tuple(Part(f"{n}.{w}.weight", inner) for n in names for w in ("w3", "w1"))
        downs = tuple(Part(f"{n}.w2.weight", dim) for n in names)

        def there(x: Tensor) -> Tensor:
            return x.mT.flatten(0, 1)

        def back(x: Tensor) -> Tensor:
            return x.unflatten(0, (count, -1)).mT.contiguous()

        yield Piece(f"{ours}.proj_in", ups, there, back)
        yield Piece(f"{ours}.proj_out", downs, there, back)

    def added(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Biases that the model there has and ours does not: zeros, with their shapes."""
        config, ff = self.config, self.config.feedforward
        has, kind = config.attention, self.kind
        biased = has.bias or has.bias_out
        q, k, v = self.sizes.widths
        for number in range(config.depth):
            layer = f"transformer.h.{number}" if self.gpt2 else f"model.layers.{number}"
            if self.gpt2:
                yield from self._added_gpt2(layer)
                continue
            if not has.bias and (kind.biases == "qkv" or (kind.biases == "key" and biased)):
                for name, rows in (("q", q), ("k", k), ("v", v)):
                    yield f"{layer}.self_attn.{name}_proj.bias", (rows,)
            if not has.bias_out and kind.biases == "key" and biased:
                yield f"{layer}.self_attn.o_proj.bias", (config.dim,)
            if kind.mlp_bias and not isinstance(ff, MoEConfig) and ff.bias_in != ff.bias_out:
                inner = inner_dim(ff, config.dim)
                lacking = [("down", config.dim)] if ff.bias_in else [("up", inner), ("gate", inner)]
                for name, rows in lacking:
                    yield f"{layer}.mlp.{name}_proj.bias", (rows,)
        if self.gpt2 and not getattr(config.norm, "bias", False):
            yield "transformer.ln_f.bias", (config.dim,)

    def _added_gpt2(self, layer: str) -> Iterator[tuple[str, tuple[int, ...]]]:
        config: Any = self.config
        dim = config.dim
        lacking = (
            (not config.norm.bias, "ln_1", dim),
            (not config.norm.bias, "ln_2", dim),
            (not config.attention.bias, "attn.c_attn", sum(self.sizes.widths)),
            (not config.attention.bias_out, "attn.c_proj", dim),
            (not config.feedforward.bias_in, "mlp.c_fc", inner_dim(config.feedforward, dim)),
            (not config.feedforward.bias_out, "mlp.c_proj", dim),
        )
        for missing, name, rows in lacking:
            if missing:
                yield f"{layer}.{name}.bias", (rows,)


def _plus_one(gain: Tensor) -> Tensor:
    """In the type that the model adds it in."""
    return gain + 1.0


def to_theirs(state: Mapping[str, Tensor], config: ModelConfig, kind: Family) -> dict[str, Tensor]:
    """The tensors of a model of ours, which ``kind`` can be, as transformers names them."""
    layout = Layout(config, kind)
    left = dict(state)
    theirs: dict[str, Tensor] = {}
    for piece in layout.pieces():
        theirs |= dict(piece.cut(left.pop(piece.ours)))
    if left:
        raise CheckpointError(f"{next(iter(left))}: {kind.architecture} has no such tensor")
    dtype = next(iter(theirs.values())).dtype
    theirs |= {name: torch.zeros(shape, dtype=dtype) for name, shape in layout.added()}
    return theirs


def to_ours(
    theirs: Mapping[str, Tensor], config: ModelConfig, kind: Family, *, where: str
) -> dict[str, Tensor]:
    """The other way round.

    Raises:
        CheckpointError: a tensor is missing, unknown, of another shape or not of numbers; the
            first is named.
    """
    pieces = list(Layout(config, kind).pieces())
    check_names(theirs, (part.name for piece in pieces for part in piece.parts), where=where)
    check_finite(theirs, where=where, hint="its training failed, or its file was damaged")
    with torch.device("meta"):
        wanted = TransformerWrapper.from_config(config).state_dict()
    ours = {}
    for piece in pieces:
        try:
            tensor = ours[piece.ours] = piece.join(theirs)
        except CheckpointError as e:
            raise CheckpointError(f"{where}: {e}") from None
        if tensor.shape != wanted[piece.ours].shape:
            raise CheckpointError(
                f"{where}: {piece.parts[0].name}: its shape does not fit config.json"
            )
    return ours


def check_names(found: Iterable[str], wanted: Iterable[str], *, where: str) -> None:
    """Raises CheckpointError unless both are the same names."""
    wanted, found = list(wanted), list(found)
    for what, names in (
        ("missing", sorted(set(wanted) - set(found))),
        ("unknown", sorted(set(found) - set(wanted))),
    ):
        if names:
            raise CheckpointError(
                f"{where}: {len(names)} tensors {what}, {names[0]!r:.200} first: not the model "
                "that config.json describes"
            )


def check_finite(tensors: Mapping[str, Tensor], *, where: str, hint: str) -> None:
    """Raises CheckpointError for NaN and infinity."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise CheckpointError(
                f"{where}: {name} has NaN or infinity as {str(tensor.dtype)[6:]}: {hint}"
            )
