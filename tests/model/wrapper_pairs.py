"""Tiny models by keywords, ours and x-transformers' with the same weights."""

from __future__ import annotations

from typing import Any

import torch
from option_grid import LAYERS, WRAPPER, perturb
from torch import Tensor

from xtdist.model import Decoder, Encoder, TransformerWrapper
from xtdist.model.compat_weights import from_x_transformers


def ours(
    wrapper: dict[str, Any], layers: dict[str, Any] | None = None, *, causal: bool = True
) -> TransformerWrapper:
    torch.manual_seed(0)
    stack = (Decoder if causal else Encoder)(**{**LAYERS, **(layers or {})})
    model = TransformerWrapper(**{**WRAPPER, **wrapper}, attn_layers=stack)
    perturb(model)
    return model.eval()


def both(
    wrapper: dict[str, Any], layers: dict[str, Any] | None = None, *, causal: bool = True
) -> tuple[Any, TransformerWrapper]:
    import x_transformers as xt

    torch.manual_seed(0)
    stack = getattr(xt, "Decoder" if causal else "Encoder")(
        **{**LAYERS, **(layers or {})}, verbose=False
    )
    theirs = xt.TransformerWrapper(**{**WRAPPER, **wrapper}, attn_layers=stack)
    perturb(theirs)
    model = ours(wrapper, layers, causal=causal)
    model.load_state_dict(from_x_transformers(theirs.state_dict(), model.config))
    return theirs.eval(), model


def close(got: Any, want: Any) -> None:
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-3)


def vectors(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
