"""What is known to keep its settings when a model gets wider (``mup``)."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from typing import Any

from xtdist.config import ConfigError
from xtdist.model.options.base import Option, Sample

MUP: tuple[Option, ...] = (
    Option(
        name="muP",
        about="settings of a narrow model hold for a wide one: start values, scales and learning "
        "rates follow the width",
        active="mup",
        paper="2203.03466",
        tier=2,
        samples=(
            Sample(config={"mup": {"base_width": 16}}),
            Sample(
                wrapper={"tie_embedding": True},
                config={"mup": {"base_width": 8, "base_dim_head": 4}},
            ),
        ),
    ),
)
KNOWN = frozenset(
    (
        *("muP", "attention", "flash", "grouped queries", "attention dropout", "sliding window"),
        *("attention output dropout", "zero attention output", "sink"),
        *("qk rmsnorm", "k rmsnorm", "value rmsnorm", "logit softclamp"),
        *("branch init by layer", "zero branch init", "feed-forward", "mlp", "glu", "swish"),
        *("no feed-forward bias", "feed-forward dropout", "feed-forward output dropout"),
        *("zero feed-forward output", "squared ReLU", "GLU factor", "GLU softclamp"),
        *("activation softclamp", "mixture of experts", "tied embedding", "embedding"),
        *("layers", "attention only", "macaron", "sandwich order", "PAR order", "custom order"),
        *("order of execution", "tied layers", "layer dropout", "recomputation", "residual"),
        *("pre-norm", "post-norm", "pre- and post-norm", "sandwich norm"),
        *("layernorm", "rmsnorm", "simple rmsnorm", "learned positions", "no positions"),
        *("rotary positions", "rotary interpolation", "rotary base rescaling", "rotary scaling"),
        *("rotary layout of halves", "partly rotated heads", "ALiBi"),
        *("attention biases", "attention output bias", "shared norm gain", "layernorm bias"),
        *("tanh GELU",),
    )
)
"""Options whose weights are matrices between widths that grow, or vectors, and that compute with
nothing else that depends on the width. What nobody has looked at is not in it."""


def check_mup(config: Any, active: Iterable[Option]) -> None:
    """Refuse what has no known place in muP, and a base model that can't be.

    Raises:
        ConfigError: naming the option, or the heads.
    """
    mup = getattr(config, "mup", None)
    if mup is None:
        return
    unknown = [option.name for option in active if option.name not in KNOWN]
    if unknown:
        several = ", ".join(unknown)
        raise ConfigError(
            f"mup: how start values and learning rates of {several} follow the width is not known; "
            "leave that out, or leave out mup"
        )
    attention, dim_head = config.attention, mup.base_dim_head or config.attention.dim_head
    for place, heads in (("heads", config.heads), ("attention.kv_heads", attention.kv_heads)):
        if heads is None:
            continue
        base = Fraction(heads * attention.dim_head * mup.base_width, config.dim * dim_head)
        if base.denominator != 1:
            raise ConfigError(
                f"mup.base_width: got {mup.base_width}; {place}={heads} of {attention.dim_head} "
                f"channels at dim={config.dim} would be {float(base):g} of {dim_head} there, and "
                "heads grow with the width; choose them in proportion, or another base_width or "
                "base_dim_head"
            )
