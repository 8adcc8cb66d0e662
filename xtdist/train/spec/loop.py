"""Length of a run and what happens on its way."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from xtdist.config import NonNegativeInt, PositiveInt, configclass


@configclass
class LoopSpec:
    """Length of the run and what happens on the way; all ``*_every`` in steps, 0 = never.

    ``valid_windows``: windows of the validation split per validation, evenly spread over it.
    """

    steps: Annotated[int, Field(gt=0, lt=2**40)]
    valid_every: NonNegativeInt = 100
    valid_windows: PositiveInt = 64
    sample_prompts: tuple[str, ...] = ()
    sample_tokens: PositiveInt = 48
