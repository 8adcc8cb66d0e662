"""Which sublayers a stack has, and in what order they run: a attention, c cross attention,
f feed-forward."""

from __future__ import annotations

from typing import Literal

from xtdist.config import ConfigError, NonNegativeInt, PositiveInt, configclass

Kind = Literal["a", "c", "f"]
ATTENTION: Kind = "a"
FEEDFORWARD: Kind = "f"


@configclass
class OrderConfig:
    """A stack is ``depth`` blocks of attention, [cross attention,] feed-forward, unless:

    only_cross: without self attention. only_attention: without feed-forward.
    macaron: half a feed-forward before and after (1906.02762).
    sandwich: so many attentions first and feed-forwards last (1911.03864).
    par_ratio: one attention in so many sublayers (2009.04534).
    custom: these sublayers; ``depth`` then counts nothing.
    execute: run these sublayers, by number, in this order. tie: every block is the same one
    (1909.11942).
    """

    only_cross: bool = False
    only_attention: bool = False
    macaron: bool = False
    sandwich: PositiveInt | None = None
    par_ratio: PositiveInt | None = None
    custom: tuple[Kind, ...] | None = None
    execute: tuple[NonNegativeInt, ...] | None = None
    tie: bool = False

    def __post_init__(self) -> None:
        shapes = [
            name for name in ("sandwich", "par_ratio", "custom") if getattr(self, name) is not None
        ]
        for name in ("custom", "execute"):
            if getattr(self, name) == ():
                raise ConfigError(
                    f"order.{name}: got (); a stack without sublayers is none. Give some, or leave "
                    "it null"
                )
        if self.only_attention and self.macaron:
            raise ConfigError(
                "order.macaron: its feed-forwards stand around attention, and only_attention "
                "leaves out all; keep one"
            )
        if len(shapes) > 1:
            raise ConfigError(
                f"order: {' and '.join(shapes)} both say which sublayers there are; keep one"
            )
        if self.tie and (shapes or self.execute is not None):
            other = shapes[0] if shapes else "execute"
            raise ConfigError(
                f"order: tie repeats the default block, {other} gives another order; keep one"
            )
        if self.only_attention and self.custom is not None and "f" in self.custom:
            raise ConfigError(
                "order.custom: has feed-forwards ('f') with only_attention=true; leave one out"
            )


def block_of(order: OrderConfig, *, cross: bool) -> tuple[Kind, ...]:
    """The sublayers of one block."""
    block: tuple[Kind, ...] = ("a", "c", "f") if cross else ("a", "f")
    if order.only_cross:
        block = ("c", "f")
    if order.macaron:
        block = ("f", *block)
    return _allowed(block, order)


def sublayer_kinds(order: OrderConfig, *, depth: int, cross: bool) -> tuple[Kind, ...]:
    """The sublayers that exist, in the order of their numbers.

    Raises:
        ConfigError: sizes that don't fit ``depth``.
    """
    block = block_of(order, cross=cross)
    if order.custom is not None:
        return order.custom
    if order.par_ratio is not None:
        return _par(block, order, depth)
    if order.sandwich is not None:
        if order.sandwich > depth:
            raise ConfigError(
                f"order.sandwich: got {order.sandwich} with depth={depth}; at most that"
            )
        kinds: tuple[Kind, ...] = (ATTENTION,) * order.sandwich + block * (depth - order.sandwich)
        kinds += (FEEDFORWARD,) * order.sandwich
        return _allowed(kinds, order)
    return block * (1 if order.tie else depth)


def execution(order: OrderConfig, *, depth: int, cross: bool) -> tuple[int, ...]:
    """The numbers of the sublayers in the order in which they run.

    Raises:
        ConfigError: a number that no sublayer has.
    """
    kinds = sublayer_kinds(order, depth=depth, cross=cross)
    if order.tie:
        return tuple(range(len(kinds))) * depth
    if order.execute is None:
        return tuple(range(len(kinds)))
    beyond = [i for i in order.execute if i >= len(kinds)]
    if beyond:
        raise ConfigError(
            f"order.execute: got {beyond[0]}, but there are {len(kinds)} sublayers; count from 0"
        )
    return order.execute


def _par(block: tuple[Kind, ...], order: OrderConfig, depth: int) -> tuple[Kind, ...]:
    """Attention early and seldom, feed-forwards to the end (PAR transformer)."""
    ratio, total = order.par_ratio or 1, depth * len(block)
    if not 1 < ratio <= total:
        raise ConfigError(f"order.par_ratio: got {ratio}; give 2 to {total} (all sublayers)")
    attention: tuple[Kind, ...] = tuple(kind for kind in block if kind != "f")
    count, cut = total // ratio, total * 2 // 3
    width = (cut + cut // count) // count
    if len(attention) > width:
        raise ConfigError(
            f"order.par_ratio: {ratio} leaves room for {width} of the block's attentions "
            f"{attention}; give a larger ratio"
        )
    head: tuple[Kind, ...] = (attention + (FEEDFORWARD,) * (width - len(attention))) * count
    kinds = head + (FEEDFORWARD,) * (total - len(head))
    return _allowed(kinds, order)


def _allowed(kinds: tuple[Kind, ...], order: OrderConfig) -> tuple[Kind, ...]:
    return tuple(kind for kind in kinds if not (order.only_attention and kind == "f"))
