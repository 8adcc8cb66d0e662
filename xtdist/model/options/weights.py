"""Rules that convert weights between x-transformers and this library, in both directions.

A rule names tensors relative to the module of its ``scope``; {i} is the sublayer's number:

    scope            there                             here
    wrapper                                            (the model)
    layers           attn_layers.                      layers.
    norm             any norm of the stack             layers.final_norm.,
                                                       layers.sublayers.{i}.norm.,
                                                       ….branch_norm., ….post_norm.
    attention        attn_layers.layers.{i}.1.         layers.sublayers.{i}.branch.
    cross_attention  the same, cross attention alone
    feedforward      the same, feed-forward alone
    scale            its wrapper's (LayerScale)        layers.sublayers.{i}.scale.
    residual         attn_layers.layers.{i}.2.         layers.sublayers.{i}.residual.
    integrator       attn_layers.layer_integrators.{i}.  layers.sublayers.{i}.integrator.
    skip             attn_layers.skip_combines.{i}.    layers.sublayers.{i}.skip.

A rule applies where its option is active and its tensors are there. Where two active options have
rules for the same tensor, the later option's replaces the other. In names, ``{j}`` stands for any
number, and ``{position_bias.depth}`` for what stands at that place of the config.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from einops import rearrange
from torch import Tensor

Scope = Literal[
    "wrapper",
    "layers",
    "norm",
    "attention",
    "cross_attention",
    "feedforward",
    "scale",
    "residual",
    "integrator",
    "skip",
]


@dataclass(frozen=True)
class Context:
    """Where a rule is applied: the config of the layers or the model, and of the attention that
    the weight belongs to (self attention's for weights outside of attention)."""

    config: Any
    attention: Any

    @property
    def heads(self) -> int:
        """Query heads."""
        return int(self.config.heads)

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return int(self.attention.kv_heads or self.config.heads)


class Transform(Protocol):
    """A change of one tensor that can be undone."""

    def into(self, tensor: Tensor, context: Context) -> Tensor:
        """Theirs ↦ ours."""

    def back(self, tensor: Tensor, context: Context) -> Tensor:
        """Ours ↦ theirs."""


@dataclass(frozen=True)
class Heads:
    """Reorder the query heads along ``axis``, which runs over (outer, heads, anything).

    There, head i reads key/value head i mod kv_heads; here, i // (heads // kv_heads).
    """

    axis: int = 0
    outer: int = 1

    def into(self, tensor: Tensor, context: Context) -> Tensor:
        return self._reorder(tensor, "(o g hk d)", "(o hk g d)", context)

    def back(self, tensor: Tensor, context: Context) -> Tensor:
        return self._reorder(tensor, "(o hk g d)", "(o g hk d)", context)

    def _reorder(self, tensor: Tensor, old: str, new: str, context: Context) -> Tensor:
        if context.heads == context.kv_heads:
            return tensor
        axes = [f"a{i}" for i in range(tensor.ndim)]
        axes[self.axis] = old
        source = " ".join(axes)
        axes[self.axis] = new
        groups = context.heads // context.kv_heads
        sizes = {"o": self.outer, "hk": context.kv_heads, "g": groups}
        return rearrange(tensor, f"{source} -> {' '.join(axes)}", **sizes)


@dataclass(frozen=True)
class Shape:
    """Another shape of the same numbers, by einops patterns."""

    theirs: str
    ours: str

    def into(self, tensor: Tensor, context: Context) -> Tensor:
        return rearrange(tensor, f"{self.theirs} -> {self.ours}")

    def back(self, tensor: Tensor, context: Context) -> Tensor:
        return rearrange(tensor, f"{self.ours} -> {self.theirs}")


SCALAR = Shape("", "1")
"""A number, which is a vector of one here: sharding can't cut numbers."""


@dataclass(frozen=True)
class Scaled:
    """Ours is theirs times ``factor(config)``."""

    factor: Callable[[Any], float]

    def into(self, tensor: Tensor, context: Context) -> Tensor:
        return tensor * self.factor(context.config)

    def back(self, tensor: Tensor, context: Context) -> Tensor:
        return tensor / self.factor(context.config)


@dataclass(frozen=True)
class Part:
    """One of several tensors of theirs that are one tensor of ours, along its first axis.

    ``rows(context)`` is its length, None for the one that takes what is left.
    """

    theirs: str
    transforms: tuple[Transform, ...] = ()
    rows: Callable[[Context], int] | None = None


@dataclass(frozen=True)
class Rule:
    """``theirs`` is ``ours`` after ``transforms``; a tuple of parts is concatenated. ``where``: it
    applies under this condition alone, written as ``Option.active`` is."""

    scope: Scope
    theirs: str | tuple[Part, ...]
    ours: str
    transforms: tuple[Transform, ...] = ()
    where: str = ""

    @property
    def parts(self) -> tuple[Part, ...]:
        """``theirs`` as parts."""
        if isinstance(self.theirs, str):
            return (Part(self.theirs, self.transforms),)
        return self.theirs


@dataclass(frozen=True)
class Derived:
    """A buffer of theirs that is no weight: left out here, computed for them."""

    scope: Scope
    theirs: str
    compute: Callable[[Context], Tensor]


@dataclass(frozen=True)
class Nest:
    """The option wraps their sublayers of ``kinds`` in a module, whose inner one is ``fn``.

    ``order``: 0 half a feed-forward, 1 shifted tokens, 2 branch gain, 3 branch scale, inner first.
    ``scale``: parameters of scope scale are this wrapper's.
    """

    kinds: str
    order: int
    scale: bool = False


@dataclass(frozen=True)
class Refused:
    """Weights of the option can't be converted ``where`` this holds (a condition as of a rule, or
    a function of the config), because of ``why``."""

    where: str | Callable[[Any], bool]
    why: str
