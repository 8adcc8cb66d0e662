"""All options together, and the table of x-transformers' keywords that they make up."""

from __future__ import annotations

import dataclasses

from xtdist.model.options import (
    attention,
    branch,
    contextual,
    families,
    feedforward,
    layers,
    norm,
    position,
    residual,
    scores,
    values,
    width,
    wrapper,
)
from xtdist.model.options.base import INHERIT, AnyRow, Fixed, Option, Row

OPTIONS: tuple[Option, ...] = (
    *layers.OPTIONS,
    *norm.OPTIONS,
    *residual.OPTIONS,
    *branch.OPTIONS,
    *attention.OPTIONS,
    *scores.OPTIONS,
    *values.OPTIONS,
    *contextual.OPTIONS,
    *position.OPTIONS,
    *feedforward.OPTIONS,
    *families.OPTIONS,
    *wrapper.OPTIONS,
    *width.MUP,
)


def by_name() -> dict[str, Option]:
    """Every option by its name."""
    return {option.name: option for option in OPTIONS}


def layers_rows() -> tuple[AnyRow, ...]:
    """The keywords of ``Decoder``, ``Encoder`` and so on, those that others depend on first."""
    rows = [row for option in OPTIONS for row in option.rows]
    return tuple(sorted([*rows, *map(_cross, filter(_doubles, rows))], key=_rank))


def wrapper_rows() -> tuple[AnyRow, ...]:
    """The keywords of ``TransformerWrapper``, those that others depend on first."""
    return tuple(sorted((row for option in OPTIONS for row in option.wrapper), key=_rank))


def _rank(row: AnyRow) -> tuple[bool, int, bool]:
    """Kinds and optional parts, outer ones first; what is fixed before what is chosen."""
    return not row.chooses, row.place.count("."), isinstance(row, Row)


def _doubles(row: AnyRow) -> bool:
    return row.place.startswith("attention.") and not getattr(row, "self_only", False)


def _cross(row: AnyRow) -> AnyRow:
    """The same row of cross attention, which takes over what ``attn_…`` says."""
    place = f"cross_{row.place}"
    if isinstance(row, Fixed):
        needs = row.needs if row.needs else "cross_attend"
        return dataclasses.replace(row, place=place, needs=needs)
    needs = "|".join(f"cross_{name}" for name in row.needs.split("|")) if row.needs else ""
    return dataclasses.replace(
        row, keyword=f"cross_{row.keyword}", place=place, default=INHERIT, needs=needs
    )
