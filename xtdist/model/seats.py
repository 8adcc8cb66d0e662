"""Where each sublayer of a stack stands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from xtdist.model.config import LayersConfig
from xtdist.model.order import block_of
from xtdist.model.sublayer import Seat


def seats(config: LayersConfig, backends: Mapping[str, str]) -> Iterator[Seat]:
    """Where each sublayer of ``config`` stands."""
    kinds = config.kinds
    length = len(block_of(config.order, cross=config.cross_attention is not None))
    skips = [block * length for block in range(config.depth // 2)]
    first = kinds.index("a") if "a" in kinds else None
    for number, kind in enumerate(kinds):
        block = number // length
        skip = None
        if config.unet_skips and number % length == 0 and 2 * block >= config.depth:
            skip = skips.pop()
        yield Seat(
            number=number,
            kind=kind,
            block=block,
            backend=backends["cross_attention" if kind == "c" else "attention"],
            is_first_attention=number == first,
            skip_from=skip,
        )
