"""The stack of layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import cast

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from xtdist.model.config import LayersConfig
from xtdist.model.options.resolver import resolve
from xtdist.model.order import block_of
from xtdist.model.seats import seats
from xtdist.model.stack import RealFirst, StackInputs, StackOutput, as_table, unsorted
from xtdist.model.steering import ConditionMLP, Reinject
from xtdist.model.sublayer import Carry, Own, Shared, Sublayer
from xtdist.model.upkeep import Upkeep
from xtdist.nn.attention.inputs import AttentionInputs, Context
from xtdist.nn.attention.masks import Visible
from xtdist.nn.attention.rotation import PolarRotation, RotaryRotation, Rotation
from xtdist.nn.attention.scores import softclamp
from xtdist.nn.position.config import PolarConfig, RotaryConfig
from xtdist.nn.position.geometry import PositionGeometry
from xtdist.nn.residual.streams import Streams


class Layers(Upkeep):
    """Sublayers and a final norm.

    Built from a config; ``Decoder`` and ``Encoder`` build the same from x-transformers' keywords.

    Raises:
        ConfigError: options that don't work together.
    """

    def __init__(self, config: LayersConfig) -> None:
        super().__init__()
        self.config = config
        backends = {name: names[0] for name, names in resolve(config).backends.items()}
        self._default_plan = self._plan(config.execution)
        self.sublayers = nn.ModuleList(Sublayer(config, seat) for seat in seats(config, backends))
        keeps_norm = config.norm_position == "pre" or config.residual.kind == "gated_multi"
        self.final_norm = (
            config.norm.build(config.dim) if keeps_norm and config.final_norm else None
        )
        streams = config.residual.streams
        self.streams = Streams(config.dim, streams=streams) if streams > 1 else None
        self.condition_mlp = self.reinject = None
        if config.condition_mlp is not None:
            self.condition_mlp = ConditionMLP(config)
        if config.reinject is not None:
            self.reinject = Reinject(config.dim, gated=config.reinject.gate)
        place = PositionGeometry(
            dim=config.dim,
            heads=config.heads,
            kv_heads=config.attention.kv_heads or config.heads,
            dim_head=config.attention.dim_head,
            causal=config.causal and not config.prefix,
        )
        self.position_bias = self.polar = None
        if config.position_bias is not None:
            self.position_bias = config.position_bias.build(place)
        if isinstance(config.position, PolarConfig):
            self.polar = config.position.build(place)

    def run(self, x: Float[Tensor, "b n d"], inputs: StackInputs) -> StackOutput:
        """The stack over ``x``; the outer surface has checked the inputs."""
        x, inputs, sorting = self._without_padding(x, inputs)
        shared = self._shared(x, inputs)
        stream = x if self.streams is None else self.streams(x)
        carry, block_hiddens = Carry(), []
        for steps in self._blocks(inputs):
            stream, carry = self._block(stream, carry, shared, steps)
            if inputs.keep:
                block_hiddens.append(self._single(stream))
        if self.config.softclamp is not None:
            stream = softclamp(stream, self.config.softclamp)
        hidden = self._single(stream)
        if self.final_norm is not None:
            needs = self.final_norm.needs_condition
            hidden = self.final_norm(hidden, shared.condition) if needs else self.final_norm(hidden)
        put_back = sorting.restore if sorting is not None else _same
        return StackOutput(
            hidden=put_back(hidden),
            aux=carry.aux,
            hiddens=tuple(put_back(self._single(h)) for h in carry.hiddens),
            block_hiddens=tuple(put_back(h) for h in (*block_hiddens[:-1], hidden)),
            attentions=tuple(unsorted(record, sorting) for record in carry.records),
        )

    @property
    def num_blocks(self) -> int:
        """Blocks that run, unless the inputs say otherwise."""
        return len(self._default_plan)

    def _single(self, stream: Tensor) -> Tensor:
        """One stream of several."""
        return stream if self.streams is None or stream.ndim == 3 else Streams.reduce(stream)

    # The blocks, and the activations that are computed again.

    def _plan(self, order: Sequence[int]) -> list[list[tuple[int, Own]]]:
        """The numbers of the sublayers to run, block by block, with their numbers among the
        attentions."""
        length = len(block_of(self.config.order, cross=self.config.cross_attention is not None))
        kinds, layer, steps = self.config.kinds, 0, []
        for number in order:
            steps.append((number, Own(layer=layer)))
            layer += kinds[number] != "f"
        return [steps[at : at + length] for at in range(0, len(steps), length)]

    def _blocks(self, inputs: StackInputs) -> list[list[tuple[Sublayer, Own]]]:
        """The sublayers to run with what each is given, block by block."""
        plan = self._default_plan if inputs.execute is None else self._plan(inputs.execute)
        sublayers = cast(list[Sublayer], list(self.sublayers))
        memories, factors = iter(inputs.memories), iter(inputs.factors)
        plain = not (inputs.memories or inputs.factors or inputs.added)
        if plain:
            return [[(sublayers[number], own) for number, own in block] for block in plan]
        attentions = sum(sublayers[n].seat.kind == "a" for block in plan for n, _ in block)
        last = list(inputs.added)[-attentions:]
        added = iter([None] * (attentions - len(last)) + last)

        def given(number: int, own: Own) -> Own:
            kind = sublayers[number].seat.kind
            if kind == "a":
                return replace(own, memory=next(memories, None), added=next(added, None))
            return replace(own, factor=next(factors, None)) if kind == "f" else own

        return [[(sublayers[n], given(n, own)) for n, own in block] for block in plan]

    def _block(
        self, stream: Tensor, carry: Carry, shared: Shared, steps: list[tuple[Sublayer, Own]]
    ) -> tuple[Tensor, Carry]:
        recompute = self.config.recompute
        again = recompute is not None and self.training and torch.is_grad_enabled()
        again = again and steps[0][0].seat.block % recompute.blocks == 0  # type: ignore[union-attr]
        if again and recompute is not None and recompute.only == "all":
            run = partial(_run, shared=shared, steps=steps)
            return checkpoint(run, stream, carry, use_reentrant=False)
        for sublayer, own in steps:
            if again and sublayer.seat.kind == "f":
                stream, carry = checkpoint(
                    sublayer, stream, carry, shared, own, use_reentrant=False
                )
            else:
                stream, carry = sublayer(stream, carry, shared, own)
        return stream, carry

    # What the sublayers share.

    def _without_padding(
        self, x: Tensor, inputs: StackInputs
    ) -> tuple[Tensor, StackInputs, RealFirst | None]:
        """A causal stack with padding: it is moved behind the real tokens, where nobody sees it.

        Distances, windows and shifts then count real tokens only, wherever the padding was; so do
        positions, unless they are given.
        """
        mask, prefix = inputs.mask, inputs.prefix
        if mask is None or not self.config.causal:
            return x, inputs, None
        if prefix is not None:  # counts tokens, wherever padding stands among them
            place = torch.arange(x.shape[1], device=x.device)
            prefix = (mask & (place < rearrange(prefix, "b -> b 1"))).sum(dim=1)
        sorting, pos = RealFirst(mask), inputs.pos
        sort, sort_pairs = sorting.sort, sorting.sort_pairs
        per_token, inject = _per_token(inputs.condition, x), _per_token(inputs.inject, x)
        inputs = replace(
            inputs,
            mask=sort(mask),
            key_mask=sort(inputs.key_mask),
            attn_mask=sort_pairs(as_table(inputs.attn_mask)),
            attn_bias=sort_pairs(inputs.attn_bias),
            pos=None if pos is None else sort(pos.expand(x.shape[:2])),
            documents=sort(inputs.documents),
            prefix=prefix,
            condition=sort(inputs.condition) if per_token else inputs.condition,
            inject=sort(inputs.inject) if inject else inputs.inject,
            factors=[sort(f) for f in inputs.factors],  # type: ignore[misc]
        )
        sorted_x = sort(x)
        assert sorted_x is not None
        return sorted_x, inputs, sorting

    def _shared(self, x: Tensor, inputs: StackInputs) -> Shared:
        condition = inputs.condition
        if condition is not None:
            condition = rearrange(condition, "b c -> b 1 c") if condition.ndim == 2 else condition
            condition = condition if self.condition_mlp is None else self.condition_mlp(condition)
        inject = inputs.inject
        if inject is not None and inject.ndim == 2:
            inject = rearrange(inject, "b d -> b 1 d")
        if self.reinject is not None:
            inject = self.reinject(x)
        return Shared(
            attention=self._attention_inputs(x, inputs),
            mask=inputs.mask,
            condition=condition,
            inject=inject,
            keep=inputs.keep,
        )

    def _attention_inputs(self, x: Tensor, inputs: StackInputs) -> AttentionInputs:
        q_pos = k_pos = self._positions(x, inputs)
        memory = next((m for m in inputs.memories if m is not None), None)
        if memory is not None:
            before = torch.arange(-memory.shape[1], 0, device=x.device)
            k_pos = torch.cat((before.expand(len(q_pos), -1) + q_pos[:, :1], q_pos), dim=1)
        around = q_pos if inputs.cache is None else None
        rotation = self._rotation(q_pos, around)
        bias = inputs.attn_bias
        if self.position_bias is not None and inputs.cache is None:
            reach = None if inputs.pos is not None else k_pos.shape[1] - 1
            own = self.position_bias(q_pos, k_pos, reach=reach)
            bias = own if bias is None else own + bias
        return AttentionInputs(
            q_pos=q_pos,
            k_pos=k_pos,
            visible=self._visible(x, inputs, memory),
            rotation=rotation,
            key_rotation=None if memory is None else self._rotation(k_pos, around),
            bias=bias,
            position_bias=self.position_bias,
            cache=inputs.cache,
            context=self._context(inputs, rotation, around),
            keep_scores=inputs.keeps_scores,
        )

    def _visible(self, x: Tensor, inputs: StackInputs, memory: Tensor | None) -> Visible:
        """Who may read whom; memories are keys before the tokens'."""
        config = self.config
        keys = inputs.key_mask
        stays = not config.causal  # see _without_padding
        if inputs.mask is not None and (stays or inputs.keeps_scores):
            keys = inputs.mask if keys is None else keys & inputs.mask
        prefix = inputs.prefix
        if memory is not None:
            keys = _with_memory(keys, memory, x, inputs)
            prefix = None if prefix is None else prefix + memory.shape[1]
        return Visible(
            causal=config.causal,
            keys=keys,
            documents=inputs.documents,
            prefix=prefix,
            table=as_table(inputs.attn_mask),
        )

    def _context(
        self, inputs: StackInputs, rotation: Rotation | None, around: Tensor | None
    ) -> Context | None:
        if inputs.context is None:
            return None
        context, mask = inputs.context, inputs.context_mask
        if self.training and self.config.context_dropout:
            kept = (
                torch.rand(context.shape[:2], device=context.device) >= self.config.context_dropout
            )
            kept = kept | ~kept.any(dim=1, keepdim=True)
            mask = kept if mask is None else mask & kept
        of_keys = None
        if inputs.context_pos is not None:
            pos = inputs.context_pos
            of_keys = self._rotation(pos if pos.ndim == 2 else pos[None], around)
        return Context(states=context, mask=mask, rotation=of_keys, query_rotation=rotation)

    def _positions(self, x: Tensor, inputs: StackInputs) -> Int[Tensor, "b n"]:
        if inputs.pos is not None:
            return inputs.pos if inputs.pos.ndim == 2 else inputs.pos[None]
        return torch.arange(x.shape[1], device=x.device)[None]

    def _rotation(
        self, pos: Int[Tensor, "b n"], around: Int[Tensor, "b m"] | None
    ) -> Rotation | None:
        """The rotation of queries and keys at ``pos``; None where positions don't rotate.
        ``around``: those of the tokens, None = a cache holds others."""
        if self.polar is not None:
            return PolarRotation(self.polar, self.polar.table(pos))
        position = self.config.position
        if not isinstance(position, RotaryConfig):
            return None
        latent = self.config.attention.latent
        if latent is not None and latent.rotary_heads is not None:
            position = replace(position, heads=latent.rotary_heads)
        dim_head = self.config.attention.dim_head
        return RotaryRotation(position.tables(pos, dim_head=dim_head, around=around))


def _run(
    stream: Tensor, carry: Carry, *, shared: Shared, steps: list[tuple[Sublayer, Own]]
) -> tuple[Tensor, Carry]:
    """A block that runs again in the backward pass: its tables are its own, so that both runs
    make the same ones."""
    shared = replace(shared, attention=replace(shared.attention, memo={}))
    for sublayer, own in steps:
        stream, carry = sublayer(stream, carry, shared, own)
    return stream, carry


def _with_memory(
    keys: Tensor | None, memory: Tensor, x: Tensor, inputs: StackInputs
) -> Tensor | None:
    """Which memories and tokens are real."""
    mask = next((m for m in inputs.memory_masks if m is not None), None)
    if keys is None and mask is None:
        return None
    if keys is None:
        keys = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    if mask is None:
        mask = torch.ones(memory.shape[:2], dtype=torch.bool, device=x.device)
    return torch.cat((mask, keys), dim=1)


def _same(x: Tensor) -> Tensor:
    return x


def _per_token(value: Tensor | None, x: Tensor) -> bool:
    return value is not None and value.ndim == 3 and value.shape[1] == x.shape[1] > 1
