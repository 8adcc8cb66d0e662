"""The same keywords and weights give x-transformers' logits, for every option and pairs of them;
and weights go there and back without a change."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import pytest
import torch
from option_grid import (
    LAYERS,
    LENGTH,
    WRAPPER,
    Case,
    as_params,
    config_of,
    ids,
    inputs_of,
    pair_cases,
    perturb,
    refusal,
    single_cases,
)
from torch import Tensor

from xtdist.model import TransformerWrapper, build_model
from xtdist.model.compat_weights import from_x_transformers, to_x_transformers

xt = pytest.importorskip("x_transformers")

PAIRS, OFTEN = 200, 80
"""Of pairs: all, and those that every run has."""
STACKS = {True: "Decoder", False: "Encoder"}


def theirs_of(case: Case, *, causal: bool) -> Any:
    """x-transformers' model. Its dropouts are 0 in eval mode like ours."""
    torch.manual_seed(0)
    stack = getattr(xt, STACKS[causal])(**{**LAYERS, **case.layers}, verbose=False)
    model = xt.TransformerWrapper(**{**WRAPPER, **case.wrapper}, attn_layers=stack)
    perturb(model)
    return model.eval()


@torch.no_grad()
def run(model: Any, case: Case) -> Tensor:
    """Logits; noise is the same each time."""
    torch.manual_seed(1)
    return model(ids(2, LENGTH), **inputs_of(case))


def legal_there(case: Case, *, causal: bool) -> bool:
    """Whether x-transformers builds it at all."""
    with contextlib.suppress(Exception):
        run(theirs_of(case, causal=causal), case)
        return True
    return False


def comparable(case: Case) -> bool:
    """Whether both have it, in some stack."""
    if case.config or case.broken:
        return False
    if case.layers.get("attn_gumbel_softmax") and case.layers.get("attn_kv_heads"):
        return False  # the same noise falls on other heads
    if case.layers.get("cross_attend") and case.layers.get("attn_max_attend_past"):
        return False  # there, the window cuts the context too
    if case.layers.get("cross_attend") and case.layers.get("attn_use_rel_proj_pos_bias"):
        return False  # there, cross attention has such a bias too
    return any(both(case, causal=causal) for causal in STACKS)


@functools.cache
def both(case: Case, *, causal: bool) -> bool:
    return not refusal(case, causal=causal) and legal_there(case, causal=causal)


CASES = [case for case in single_cases() if not case.config and not case.broken]
PAIRED = pair_cases(PAIRS, seed=0, needed=comparable)
GRID = as_params(CASES + PAIRED, rare=PAIRED[OFTEN:])


@pytest.mark.parametrize("case", GRID, ids=str)
def test_the_same_weights_give_x_transformers_logits(case: Case) -> None:
    stacks = [causal for causal in STACKS if both(case, causal=causal)]
    assert stacks, [refusal(case, causal=causal) for causal in STACKS]
    for causal in stacks:
        theirs = theirs_of(case, causal=causal)
        ours = build_model(
            config_of(case, causal=causal), generator=torch.Generator().manual_seed(0)
        )
        ours.load_state_dict(from_x_transformers(theirs.state_dict(), ours.config))
        got, want = run(ours.eval(), case), run(theirs, case)
        torch.testing.assert_close(got, want, atol=3e-4, rtol=1e-3)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_weights_go_there_and_back_without_a_change(case: Case) -> None:
    causal = next(causal for causal in STACKS if both(case, causal=causal))
    theirs, config = theirs_of(case, causal=causal), config_of(case, causal=causal)
    want = theirs.state_dict()
    ours = from_x_transformers(want, config)
    got = to_x_transformers(ours, config)
    assert got.keys() == want.keys()
    for name, weight in want.items():
        torch.testing.assert_close(got[name], weight, atol=0.0, rtol=1e-6, msg=name)
    theirs.load_state_dict(got)
    names = build_model(config, generator=torch.Generator().manual_seed(0)).state_dict()
    assert ours.keys() == names.keys()


def test_padding_masks_agree_with_x_transformers_on_real_tokens() -> None:
    mask = torch.arange(LENGTH) < torch.tensor([[LENGTH], [9]])
    for causal in STACKS:
        theirs, ours = pair_of(LLAMA, causal=causal)
        got, want = ours(ids(2, LENGTH), mask=mask), theirs(ids(2, LENGTH), mask=mask)
        torch.testing.assert_close(got[mask], want[mask], atol=2e-4, rtol=1e-4)


def test_gradients_agree_with_x_transformers() -> None:
    theirs, ours = pair_of(LLAMA, causal=True)
    for net in (theirs, ours):
        net(ids(2, LENGTH)).square().mean().backward()
    grads = {name: weight.grad for name, weight in theirs.named_parameters()}
    converted = from_x_transformers(grads, ours.config)
    for name, weight in ours.named_parameters():
        torch.testing.assert_close(weight.grad, converted[name], atol=2e-5, rtol=1e-3)


LLAMA = Case(
    name="llama",
    options=(),
    layers={
        "rotary_pos_emb": True,
        "use_rmsnorm": True,
        "ff_glu": True,
        "ff_swish": True,
        "ff_no_bias": True,
        "attn_kv_heads": 2,
        "attn_flash": True,
    },
    wrapper={"tie_embedding": True},
)


def pair_of(case: Case, *, causal: bool) -> tuple[Any, TransformerWrapper]:
    """Theirs and ours with the same weights."""
    theirs = theirs_of(case, causal=causal)
    ours = build_model(config_of(case, causal=causal))
    ours.load_state_dict(from_x_transformers(theirs.state_dict(), ours.config))
    return theirs, ours.eval()
