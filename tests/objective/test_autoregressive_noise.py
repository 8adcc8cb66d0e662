"""Hidden tokens, smoothing, documents and padding: what the network sees and what counts."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import VOCABULARY, make_net, some_ids
from torch import Tensor

from xtdist.config import ConfigError, from_mapping
from xtdist.objective import AutoregressiveConfig, AutoregressiveWrapper, build_objective

MASK, END = 18, 7


def wrapped(net: dict[str, Any] | None = None, **keywords: Any) -> AutoregressiveWrapper:
    return AutoregressiveWrapper(make_net(causal=True, **(net or {})), **keywords)


def nats(net: Any, x: Tensor, counted: Tensor, **inputs: Any) -> Tensor:
    """The mean over the ``counted`` targets, from all logits."""
    logits = net(x[:, :-1], **inputs)
    each = F.cross_entropy(logits.transpose(1, 2), x[:, 1:], reduction="none")
    return each[counted].mean()


def test_hidden_keys_are_drawn_from_seed_and_sample_alone() -> None:
    wrapper, x = wrapped(mask_prob=0.4), some_ids(4, 13)
    prepared = wrapper.prepare(x, seed=3, sample_ids=torch.arange(4))
    assert prepared.keys is not None
    assert prepared.keys[:, 0].all()
    assert ((~prepared.keys).sum(dim=1) == int(12 * 0.4)).all()
    assert torch.equal(prepared.inputs, x[:, :-1])
    alone = wrapper.prepare(x[2:3], seed=3, sample_ids=torch.tensor([2]))
    assert alone.keys is not None
    assert torch.equal(alone.keys, prepared.keys[2:3])
    other = wrapper.prepare(x, seed=4, sample_ids=torch.arange(4))
    assert not torch.equal(other.keys, prepared.keys)  # type: ignore[arg-type]
    assert len({tuple(row.tolist()) for row in prepared.keys}) == 4


@pytest.mark.parametrize("net", [{}, {"memory_tokens": {"tokens": 3}}])
@pytest.mark.parametrize("prepended", [0, 2])
def test_nobody_reads_a_hidden_key(net: dict[str, Any], prepended: int) -> None:
    """A5"""
    wrapper, x = wrapped(net, mask_prob=0.4), some_ids(3, 13)
    prepared = wrapper.prepare(x, seed=3, sample_ids=torch.arange(3))
    more = {"prepend_embeds": torch.randn(3, prepended, 32)} if prepended else {}
    keys = prepared.keys
    assert keys is not None
    out = wrapper.net.run(prepared.inputs, self_attn_kv_mask=keys, **more).hidden[:, prepended:]
    other = prepared.inputs.where(keys, (prepared.inputs + 1) % VOCABULARY)
    moved = wrapper.net.run(other, self_attn_kv_mask=keys, **more).hidden[:, prepended:]
    torch.testing.assert_close(out[keys], moved[keys])
    assert not torch.allclose(out[~keys], moved[~keys])
    torch.manual_seed(1)
    loss = wrapper(x, **more)
    assert loss.isfinite()
    assert loss != wrapper(x, **more)


def test_tokens_are_replaced_and_their_targets_stay() -> None:
    wrapper, x = wrapped(mask_token_prob=0.5, mask_id=MASK), some_ids(4, 17, high=MASK)
    x[3, 10:] = -100
    prepared = wrapper.prepare(x, seed=3, sample_ids=torch.arange(4))
    replaced = prepared.inputs != x[:, :-1].clamp(min=0)
    assert (prepared.inputs[replaced] == MASK).all()
    assert replaced.sum(dim=1).tolist() == [8, 8, 8, 5]
    assert not replaced[:, 0].any()
    assert not replaced[3, 10:].any()
    assert torch.equal(prepared.targets, x[:, 1:].clamp(min=0))
    assert prepared.keys is None


def test_both_kinds_are_hidden_apart() -> None:
    wrapper = wrapped(mask_token_prob=0.5, mask_prob=0.5, mask_id=MASK)
    prepared = wrapper.prepare(some_ids(1, 65, high=MASK), seed=3, sample_ids=torch.arange(1))
    assert prepared.keys is not None
    assert not torch.equal(prepared.inputs == MASK, ~prepared.keys)


def test_nothing_is_hidden_or_smoothed_in_evaluation() -> None:
    """A7"""
    plain = wrapped()
    keywords = {"mask_prob": 0.3, "mask_token_prob": 0.3, "label_smoothing": 0.3}
    wrapper, x = AutoregressiveWrapper(plain.net, mask_id=MASK, **keywords), some_ids(4, 13)
    prepared = wrapper.eval().prepare(x, seed=3, sample_ids=torch.arange(4))
    assert prepared.keys is None
    assert torch.equal(prepared.inputs, x[:, :-1])
    torch.testing.assert_close(wrapper(x), plain(x))
    assert wrapper.train()(x) != plain(x)


def test_the_first_token_of_each_document_and_of_the_real_ones_is_never_hidden() -> None:
    wrapper = wrapped(mask_prob=0.9, document_end=END)
    x = some_ids(2, 13).where(torch.arange(13) % 4 != 3, END)
    x[1, :5] = -100
    prepared = wrapper.prepare(x, seed=0, sample_ids=torch.arange(2))
    assert prepared.keys is not None
    assert prepared.keys[0, ::4].all()
    assert prepared.keys[1, [5, 8]].all()
    assert not prepared.keys[0, 1:4].any()


@settings(max_examples=40, deadline=None)
@given(ends=st.lists(st.booleans(), min_size=12, max_size=12), seed=st.integers(0, 9))
def test_packed_documents_cost_what_each_costs_alone(ends: list[bool], seed: int) -> None:
    wrapper = wrapped({"position": {"kind": "rotary"}}, document_end=END)
    x = some_ids(1, 12, seed=seed)
    x[x == END] = END - 1
    x = x.where(~torch.tensor(ends), END)
    cuts = [0, *[i + 1 for i in range(12) if ends[i]], 12]
    alone = AutoregressiveWrapper(wrapper.net)
    total, count = torch.zeros(()), 0
    for start, stop in itertools.pairwise(cuts):
        if stop - start > 1:
            total = total + alone(x[:, start:stop]) * (stop - start - 1)
            count += stop - start - 1
    torch.testing.assert_close(wrapper(x), total / max(count, 1))
    prepared = wrapper.prepare(x, seed=0, sample_ids=torch.arange(1))
    assert prepared.weight == count
    numbers = torch.tensor([[sum(ends[:i]) for i in range(12)]])
    torch.testing.assert_close(alone(x, documents=numbers), total / max(count, 1))


@settings(max_examples=30, deadline=None)
@given(
    lens=st.lists(st.integers(1, 10), min_size=3, max_size=3),
    start=st.lists(st.integers(0, 5), min_size=3, max_size=3),
)
def test_padding_on_either_side_changes_nothing(lens: list[int], start: list[int]) -> None:
    wrapper = wrapped({"position": {"kind": "rotary"}})
    x = some_ids(3, 16)
    place = torch.arange(16)
    first, last = (
        torch.tensor(start)[:, None],
        torch.tensor(start)[:, None] + torch.tensor(lens)[:, None],
    )
    mask = (place >= first) & (place < last)
    total, count = torch.zeros(()), 0
    for row, a, n in zip(x, start, lens, strict=True):
        if n > 1:
            total = total + wrapper(row[None, a : a + n]) * (n - 1)
            count += n - 1
    torch.testing.assert_close(wrapper(x, mask=mask), total / max(count, 1))
    again = wrapper(x, seq_start_pos=torch.tensor(start), lens=last[:, 0])
    torch.testing.assert_close(again, total / max(count, 1))


def test_inputs_may_be_as_long_as_the_tokens_or_without_the_last() -> None:
    wrapper, x = wrapped(), some_ids(2, 12)
    everything = torch.ones(2, 11, dtype=torch.bool)
    inputs = {
        "self_attn_kv_mask": torch.rand(2, 12) > 0.2,
        "attn_mask": torch.rand(12, 12) > 0.2,
        "attn_bias": torch.randn(1, 2, 12, 12),
        "pos": torch.arange(12) * 2,
        "sum_embeds": torch.randn(2, 12, 32),
    }
    short = {
        "self_attn_kv_mask": inputs["self_attn_kv_mask"][:, :11],
        "attn_mask": inputs["attn_mask"][:11, :11],
        "attn_bias": inputs["attn_bias"][:, :, :11, :11],
        "pos": inputs["pos"][:11],
        "sum_embeds": inputs["sum_embeds"][:, :11],
    }
    for name in inputs:
        want = nats(wrapper.net, x, everything, **{name: short[name]})
        torch.testing.assert_close(wrapper(x, **{name: inputs[name]}), want)
        torch.testing.assert_close(wrapper(x, **{name: short[name]}), want)


@pytest.mark.parametrize("head", [{}, {"sigsoftmax": True}, {"mixture": 2}])
@pytest.mark.parametrize("smoothing", [0.1, 0.75])
def test_smoothed_losses_and_gradients_are_torchs(head: dict[str, Any], smoothing: float) -> None:
    wrapper, x = wrapped({"head": head}, label_smoothing=smoothing), some_ids(3, 12)
    x[1, 7:] = -100
    logits = wrapper.net(x[:, :-1].clamp(min=0)).flatten(0, 1)
    want = F.cross_entropy(logits, x[:, 1:].flatten(), label_smoothing=smoothing)
    got, weights = wrapper(x), [p for p in wrapper.parameters() if p.requires_grad]
    torch.testing.assert_close(got, want)
    grads = torch.autograd.grad(got, weights, allow_unused=True)
    torch.testing.assert_close(grads, torch.autograd.grad(want, weights, allow_unused=True))


def test_tokens_without_a_logit_can_be_inputs_but_no_targets() -> None:
    wrapper, x = wrapped({"head": {"dim": 15}}), some_ids(3, 12, high=15)
    x[:, 0] = 19
    logits = wrapper.net(x[:, :-1])
    want = F.cross_entropy(logits.flatten(0, 1), x[:, 1:].flatten())
    torch.testing.assert_close(wrapper(x), want)
    x[1, 4] = 17
    with pytest.raises(ConfigError, match=r"id 17.* ids 0 to 14.*logits_dim"):
        wrapper(x)
    x[1, 4] = -100
    assert wrapper(x).isfinite()


def test_every_setting_is_in_the_config_and_a_mapping_gives_it() -> None:
    tree = {
        "label_smoothing": 0.1,
        "mask_prob": 0.2,
        "mask_token_prob": 0.15,
    }
    config = from_mapping(AutoregressiveConfig, tree)
    built = build_objective(config, make_net(causal=True), mask_id=MASK, pad_id=5)
    assert isinstance(built, AutoregressiveWrapper)
    assert built.config == config
    assert (built.mask_id, built.document_end, built.pad_value) == (MASK, None, 5)
    same = AutoregressiveWrapper(built.net, mask_id=MASK, pad_value=5, **tree)
    assert same.config == config


@pytest.mark.parametrize(
    ("keywords", "named"),
    [
        ({"mask_token_prob": 0.1}, "mask_id"),
        ({"mask_token_prob": 0.1, "mask_id": VOCABULARY}, "ids 0 to 19"),
        ({"mask_prob": 1.0}, "mask_prob"),
        ({"label_smoothing": -0.1}, "label_smoothing"),
    ],
)
def test_values_that_can_not_be_are_refused(keywords: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        wrapped(**keywords)


def test_documents_that_the_model_can_not_keep_apart_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"kept apart.*shift"):
        wrapped({"shift_tokens": 1}, document_end=END)


def test_an_unknown_keyword_names_the_nearest() -> None:
    with pytest.raises(TypeError, match="'mask_prob'"):
        wrapped(mask_probs=0.1)


@pytest.mark.parametrize(
    ("inputs", "named"),
    [
        ({"lens": torch.tensor([3])}, "lens"),
        ({"mask": torch.ones(2, 5, dtype=torch.bool)}, "mask"),
        ({"mask": torch.ones(2, 12)}, "mask"),
        ({"documents": torch.zeros(2, 11, dtype=torch.long)}, "documents"),
    ],
)
def test_inputs_of_another_shape_are_named(inputs: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        wrapped()(some_ids(2, 12), **inputs)
