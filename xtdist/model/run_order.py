"""The order in which a forward pass runs the sublayers, where it says so itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from xtdist.model.config import LayersConfig
from xtdist.model.options.resolver import order_refused
from xtdist.model.order import block_of


def attentions_of(config: LayersConfig, given: Mapping[str, Any]) -> int:
    """Self attentions that run, one that runs twice counted twice; raises as ``execution_of``."""
    order = execution_of(config, given)
    return sum(config.kinds[i] == "a" for i in (config.execution if order is None else order))


def execution_of(config: LayersConfig, given: Mapping[str, Any]) -> Sequence[int] | None:
    """The numbers of the sublayers to run, where a forward pass changes them.

    Raises:
        ValueError: no order, sublayers that there are not, or an option that needs the built order.
    """
    order, repeat = given.get("layers_execute_order"), given.get("repeat_blocks")
    if order is None and repeat is None:
        return None
    tied = order_refused(config)
    if tied:
        name = "repeat_blocks" if order is None else "layers_execute_order"
        raise ValueError(f"{name}: can't run in another order ({tied}); leave one out")
    if repeat is None:
        return None if order is None else _checked_order(config, order)
    shape = config.order
    if order is not None or shape.custom or shape.par_ratio or shape.sandwich:
        raise ValueError("repeat_blocks: works on default blocks in their default order only")
    length = len(block_of(shape, cross=config.cross_attention is not None))
    blocks = len(config.kinds) // length
    sequence: list[int] = []
    at = 0
    for first, last, times in _ranges(repeat):
        if not at <= first <= last < blocks or times < 1:
            raise ValueError(
                f"repeat_blocks: got (({first}, {last}), {times}); give ranges of the {blocks} "
                "blocks that don't overlap, and a number of times"
            )
        sequence += [*range(at, first), *(list(range(first, last + 1)) * times)]
        at = last + 1
    sequence += range(at, blocks)
    return [block * length + i for block in sequence for i in range(length)]


def _checked_order(config: LayersConfig, order: object) -> Sequence[int]:
    if not isinstance(order, (list, tuple)) or not order or not all(_is_int(i) for i in order):
        raise ValueError(
            f"layers_execute_order: got {order!r}; give the numbers of the sublayers to run, as "
            "(0, 1, 1)"
        )
    beyond = [i for i in order if not 0 <= i < len(config.kinds)]
    if beyond:
        raise ValueError(
            f"layers_execute_order: got {beyond[0]}; there are {len(config.kinds)} sublayers"
        )
    return order


def _ranges(repeat: object) -> list[tuple[int, int, int]]:
    """(first, last, times), in the order of the blocks."""
    several = repeat
    if isinstance(repeat, (list, tuple)) and repeat and not isinstance(repeat[-1], (list, tuple)):
        several = (repeat,)
    found: list[tuple[int, int, int]] = []
    for entry in several if isinstance(several, (list, tuple)) else ():
        where, times = entry if isinstance(entry, (list, tuple)) and len(entry) == 2 else (None, 0)
        span = where if isinstance(where, (list, tuple)) else (where, where)
        if len(span) != 2 or not all(_is_int(number) for number in (*span, times)):
            found = []
            break
        found.append((*span, times))
    if not found:
        raise ValueError(
            f"repeat_blocks: got {repeat!r}; give (block, times) or ((first, last), times), or "
            "several of those: (((0, 1), 2), (3, 2))"
        )
    return sorted(found)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
