"""Several documents in one row: each as if it were alone, whatever the model and the kernel."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import VOCABULARY, make_net, some_ids
from torch import Tensor

from xtdist.config import ConfigError
from xtdist.objective import (
    AutoregressiveWrapper,
    NonAutoregressiveConfig,
    NonAutoregressiveWrapper,
)
from xtdist.objective.base import Objective
from xtdist.objective.checks import check_separable
from xtdist.objective.config import AutoregressiveConfig

MASK, PAD, LENGTH = VOCABULARY - 1, 0, 17
NETS: dict[str, dict[str, Any]] = {
    "rotary": {},
    "learned": {"position": {"kind": "learned"}},
    "sinusoidal": {"position": {"kind": "sinusoidal"}},
    "alibi": {"position": {"kind": "none"}, "position_bias": {"kind": "alibi"}},
    "t5": {"position": {"kind": "none"}, "position_bias": {"kind": "t5"}},
    "window": {"attention": {"dim_head": 16, "window": 2}},
    "learned, window": {
        "position": {"kind": "learned"},
        "attention": {"dim_head": 16, "window": 3},
    },
}
PAIRS_OF_KERNELS = [
    (net, backend)
    for net in ("rotary", "learned", "alibi", "t5", "window")
    for backend in ("sdpa", "eager", "flex")
]
LAYOUTS = ([6, 4, 7], [1, 1, 9, 2], [17], [5, 0, 3], [2])
"""Lengths of a row's documents; the rest of it is padding."""


def numbers(lengths: list[int]) -> Tensor:
    """(1, LENGTH): 0, 1, 2 … for the documents, −1, −2 … for the padding behind them."""
    row = [i for i, n in enumerate(lengths) for _ in range(n)]
    return torch.tensor([row + [-1 - i for i in range(LENGTH - len(row))]])


def places(documents: Tensor) -> list[Tensor]:
    """Of each document the places in the row."""
    return [(documents[0] == i).nonzero()[:, 0] for i in range(int(documents.max()) + 1)]


def autoregressive(net: str, **more: Any) -> AutoregressiveWrapper:
    return AutoregressiveWrapper(make_net(causal=True, **NETS[net]), **more).eval()


def prepared_of(objective: Objective, x: Tensor, documents: Tensor | None = None) -> Any:
    ids = torch.arange(len(x))
    return objective.prepare(x, seed=5, sample_ids=ids, documents=documents)


def with_backend(net: str, backend: str, *, causal: bool) -> Any:
    tree = NETS[net]
    attention = {"dim_head": 16, **tree.get("attention", {}), "backend": backend}
    return make_net(causal=causal, **{**tree, "attention": attention}).eval()


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("lengths", LAYOUTS, ids=str)
def test_each_document_costs_what_it_costs_alone(net: str, lengths: list[int]) -> None:
    wrapper, documents, x = autoregressive(net), numbers(lengths), some_ids(1, LENGTH)
    packed = prepared_of(wrapper, x.masked_fill(documents < 0, PAD), documents)
    targets = 0
    for at in places(documents):
        own = torch.zeros(1, LENGTH - 1)
        own[:, at[1:] - 1] = 1  # a target's loss stands at the token before it
        here = wrapper.losses(packed.only(own.bool()))
        targets += max(len(at) - 1, 0)
        if len(at) < 2:
            assert here.weight == 0
            continue
        alone = wrapper.losses(prepared_of(wrapper, x[:, at]))
        assert here.weight == alone.weight == len(at) - 1
        torch.testing.assert_close(here.sum, alone.sum, atol=1e-5, rtol=1e-5)
    assert packed.weight == packed.weights.sum() == targets


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_every_token_but_the_first_of_each_document_is_a_target(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=9))
    while sum(lengths) > LENGTH:
        lengths.pop()
    documents, x = numbers(lengths), some_ids(1, LENGTH)
    wrapper = AutoregressiveWrapper(make_net(causal=True), mask_prob=0.4, mask_id=MASK)
    prepared = prepared_of(wrapper, x, documents)
    wanted = [int(place) for at in places(documents) for place in at[1:]]
    assert (prepared.weights[0].nonzero()[:, 0] + 1).tolist() == wanted
    assert torch.equal(
        prepared.targets[0, torch.tensor(wanted, dtype=torch.long) - 1], x[0, wanted]
    )
    assert prepared.keys is not None
    hidden = (~prepared.keys[0]).nonzero()[:, 0].tolist()
    assert len(hidden) == min(int(0.4 * min(sum(lengths), 16)), len([w for w in wanted if w < 16]))
    assert set(hidden) <= set(wanted)


@pytest.mark.parametrize(("net", "backend"), PAIRS_OF_KERNELS)
@pytest.mark.parametrize("causal", [True, False])
@torch.no_grad()
def test_one_document_moves_no_bit_of_another(net: str, backend: str, causal: bool) -> None:
    model, documents = with_backend(net, backend, causal=causal), numbers([5, 4, 6])[:, :-1]
    x = some_ids(1, LENGTH - 1)
    given: dict[str, Any] = {"documents": documents, "mask": documents >= 0}
    before = model(x, **given)
    for i in (-1, 0, 1, 2):
        changed = documents[0] < 0 if i < 0 else documents[0] == i
        after = model(x.where(~changed, (x + 7) % VOCABULARY), **given)
        assert torch.equal(before[0, ~changed], after[0, ~changed])
        assert not torch.equal(before[0, changed], after[0, changed])


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("critic", [False, True])
@pytest.mark.parametrize("lengths", LAYOUTS, ids=str)
def test_masked_prediction_sees_each_document_alone(
    net: str, critic: bool, lengths: list[int]
) -> None:
    """The noise is drawn for the whole row; each document's part of it alone gives its losses."""
    config = NonAutoregressiveConfig(self_cond=True, self_token_critic=critic)
    wrapper = NonAutoregressiveWrapper(
        make_net(causal=False, **NETS[net]), mask_id=MASK, config=config
    ).eval()
    documents, x = numbers(lengths), some_ids(1, LENGTH)
    packed = prepared_of(wrapper, x.masked_fill(documents < 0, PAD), documents)
    total = torch.zeros(())
    for at in places(documents[:, :-1]):
        if not len(at):
            continue
        cut = {n: getattr(packed, n)[:, at] for n in ("inputs", "targets", "weights")}
        alone = dataclasses.replace(packed, documents=None, mask=None, **cut)
        total = total + wrapper.losses(alone).sum
    torch.testing.assert_close(wrapper.losses(packed).sum, total, atol=1e-5, rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(lengths=st.sampled_from(LAYOUTS), weight=st.sampled_from(["elbo", "none"]))
def test_masked_prediction_leaves_padding_alone(lengths: list[int], weight: Any) -> None:
    config = NonAutoregressiveConfig(weight=weight, self_token_critic=True)
    wrapper = NonAutoregressiveWrapper(make_net(causal=False), mask_id=MASK, config=config)
    documents, x = numbers(lengths), some_ids(1, LENGTH)
    real = (documents >= 0)[:, :-1]
    prepared = prepared_of(wrapper, x.masked_fill(documents < 0, PAD), documents)
    assert not ((prepared.inputs == MASK) & ~real).any()
    assert not (prepared.weights * ~real).any()
    masked = int((prepared.inputs == MASK).sum())
    assert masked >= 1
    assert prepared.weight == (real.sum() if weight == "elbo" else masked)
    assert torch.equal(prepared.mask, real) if not bool(real.all()) else prepared.mask is None
    # The critic is told what is padding, too: its loss is the mean over real tokens.
    other = prepared_of(wrapper, x.masked_fill(documents < 0, 7), documents)
    for one, two in zip(
        wrapper.losses(prepared).metrics.values(),
        wrapper.losses(other).metrics.values(),
        strict=True,
    ):
        torch.testing.assert_close(one, two)


SHIFT: dict[str, Any] = {"shift_tokens": 1}
MEMORY: dict[str, Any] = {"memory_tokens": {"tokens": 2}}
AMONG: dict[str, Any] = {"memory_tokens": {"tokens": 2, "every": 4}}


@pytest.mark.parametrize(
    ("causal", "more", "said"),
    [
        (True, SHIFT, "the first token of a document would read"),
        (False, SHIFT, "the first token of a document would read"),
        (True, AMONG, "memory tokens"),
        (False, MEMORY, "memory tokens"),
    ],
)
def test_a_model_that_mixes_documents_is_refused(causal: bool, more: Any, said: str) -> None:
    kind = AutoregressiveConfig() if causal else NonAutoregressiveConfig()
    net = make_net(causal=causal, **more)
    with pytest.raises(ConfigError, match=f"data.documents: got packed, but model .*{said}"):
        check_separable(kind, net.config, documents="packed")
    make: Any = (
        AutoregressiveWrapper
        if net.config.causal
        else lambda net, **more: NonAutoregressiveWrapper(net, mask_id=MASK, **more)
    )
    make(net)
    with pytest.raises(ConfigError, match=f"document_end: .*{said}.*; leave document_end out"):
        make(net, document_end=3)


def test_a_critic_that_mixes_documents_is_refused() -> None:
    critic = make_net(causal=False, shift_tokens=1).config
    config = NonAutoregressiveConfig(token_critic=critic)
    net = make_net(causal=False).config
    with pytest.raises(ConfigError, match=r"but objective\.token_critic can't keep"):
        check_separable(config, net, documents="masked")
    check_separable(NonAutoregressiveConfig(), net, documents="masked")


@pytest.mark.parametrize("net", ["rotary", "learned", "alibi", "t5"])
def test_memory_before_a_causal_stack_is_as_near_to_all_documents(net: str) -> None:
    model = make_net(causal=True, **NETS[net], **MEMORY)
    check_separable(AutoregressiveConfig(), model.config, documents="packed")
    wrapper, documents, x = AutoregressiveWrapper(model), numbers([8, 9]), some_ids(1, LENGTH)
    packed = wrapper.losses(prepared_of(wrapper, x, documents)).sum
    parts = [wrapper.losses(prepared_of(wrapper, x[:, at])).sum for at in places(documents)]
    torch.testing.assert_close(packed, parts[0] + parts[1])
