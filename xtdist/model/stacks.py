"""Stacks of layers by x-transformers' keywords."""

from __future__ import annotations

from typing import Any, Unpack

from jaxtyping import Float
from torch import Tensor

from xtdist.model.compat import layers_config
from xtdist.model.inputs import StackKeywords, stack_inputs
from xtdist.model.layers import Layers
from xtdist.model.stack import StackOutput
from xtdist.model.tensors import check_tensor, seen


class _Stack(Layers):
    """A stack that can be used by itself, on vectors."""

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        *,
        return_hiddens: bool = False,
        **given: Unpack[StackKeywords],
    ) -> Float[Tensor, "b n d"] | tuple[Float[Tensor, "b n d"], StackOutput]:
        """The hidden states of ``x``; ``return_hiddens`` adds everything on the way.

        Raises:
            ValueError: a shape, type or combination that the stack can't take.
        """
        check_tensor(x, name="x")
        if not x.is_floating_point() or x.ndim != 3 or x.shape[-1] != self.config.dim:
            raise ValueError(f"x: got {seen(x)}; a stack takes vectors (b, n, {self.config.dim})")
        out = self.run(x, stack_inputs(x, self.config, given, keep=return_hiddens))
        return (out.hidden, out) if return_hiddens else out.hidden


class Decoder(_Stack):
    """A causal stack by x-transformers' keywords.

    Raises:
        TypeError: a keyword that is not known, with the nearest one that is.
        ConfigError: options that don't work together, with the way out.

    Example:
        >>> Decoder(dim=512, depth=6, heads=8, rotary_pos_emb=True, attn_flash=True).config.causal
        True
    """

    def __init__(self, **keywords: Any) -> None:
        super().__init__(layers_config(keywords, causal=True, name="Decoder"))


class Encoder(_Stack):
    """A bidirectional stack by x-transformers' keywords; raises as ``Decoder``."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(layers_config(keywords, causal=False, name="Encoder"))


class PrefixDecoder(_Stack):
    """A causal stack whose first ``prefix_attn_len`` tokens see each other (1910.10683); raises as
    ``Decoder``."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(layers_config(keywords, causal=True, name="PrefixDecoder", prefix=True))


class CrossAttender(_Stack):
    """A bidirectional stack of cross attention and feed-forward; raises as ``Decoder``."""

    def __init__(self, **keywords: Any) -> None:
        both = {"cross_attend": True, "only_cross": True, **keywords}
        super().__init__(layers_config(both, causal=False, name="CrossAttender"))
