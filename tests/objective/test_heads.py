"""Losses of networks whose head is more than one matrix, and of networks without one for tokens."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nets import VOCABULARY, make_net, some_ids
from torch import nn

from xtdist.config import ConfigError
from xtdist.model import Decoder, TransformerWrapper
from xtdist.model.parts import HeadConfig
from xtdist.objective import AutoregressiveWrapper, NonAutoregressiveWrapper
from xtdist.objective.base import check_trainable

HEADS: dict[str, dict[str, Any]] = {
    "mixture": {"mixture": 3},
    "sigsoftmax": {"sigsoftmax": True},
    "both": {"mixture": 2, "sigsoftmax": True},
    "squeezed": {"squeeze": True},
}


@pytest.mark.parametrize("head", HEADS)
def test_the_next_token_loss_is_that_of_the_heads_own_probabilities(head: str) -> None:
    net, x = make_net(causal=True, head=HEADS[head]), some_ids(3, 12)
    x[1, 7:] = -100
    logits = net(x[:, :-1].clamp(min=0))
    p = logits.exp() if net.config.head.mixture else logits.softmax(dim=-1)
    want = F.nll_loss(p.double().log().flatten(0, 1).float(), x[:, 1:].flatten())
    wrapper = AutoregressiveWrapper(net)
    got = wrapper(x)
    torch.testing.assert_close(got, want)
    got.backward()
    assert all(w.grad is not None for w in wrapper.parameters())


@pytest.mark.parametrize("head", HEADS)
def test_the_masked_token_loss_is_that_of_the_heads_own_probabilities(head: str) -> None:
    net = make_net(causal=False, head=HEADS[head])
    wrapper = NonAutoregressiveWrapper(net, mask_id=VOCABULARY - 1)
    prepared = wrapper.prepare(some_ids(3, 10), seed=3, sample_ids=torch.arange(3))
    logits = net(prepared.inputs)
    p = logits.exp() if net.config.head.mixture else logits.softmax(dim=-1)
    chosen = p.gather(-1, prepared.targets[..., None])[..., 0]
    want = -(chosen.log() * prepared.weights).sum()
    torch.testing.assert_close(wrapper.losses(prepared).sum, want)


def test_a_head_that_is_given_is_used() -> None:
    head = nn.Sequential(nn.Linear(32, 8), nn.GELU(), nn.Linear(8, VOCABULARY))
    stack = Decoder(dim=32, depth=1, heads=2, attn_dim_head=16)
    net = TransformerWrapper(
        num_tokens=VOCABULARY, max_seq_len=16, attn_layers=stack, to_logits=head
    )
    x = some_ids(2, 9)
    want = F.cross_entropy(net(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())
    torch.testing.assert_close(AutoregressiveWrapper(net)(x), want)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"head": {"heads": 2}}, "2 heads, and nothing says which"),
        ({"head": {"output": "hidden"}}, "has no head"),
        ({"pool": {"kind": "mean"}}, "one output for the whole sequence"),
    ],
)
def test_a_network_without_one_distribution_for_each_token_is_refused(
    more: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        AutoregressiveWrapper(make_net(causal=True, **more))
    with pytest.raises(ConfigError, match=message):
        NonAutoregressiveWrapper(make_net(causal=False, **more), mask_id=VOCABULARY - 1)


@pytest.mark.parametrize("prefix", [0, 1, 5, 11, torch.tensor([3, 0, 8])])
def test_targets_inside_the_prefix_do_not_count(prefix: int | torch.Tensor) -> None:
    net, x = make_net(causal=True, prefix=True), some_ids(3, 12)
    x[2, 10:] = -100
    logits = net(x[:, :-1].clamp(min=0), prefix_attn_len=prefix)
    lengths = prefix.tolist() if isinstance(prefix, torch.Tensor) else [prefix] * 3
    total, count = torch.zeros(()), 0
    for row in range(3):
        for t in range(1, 12):
            if t >= lengths[row] and x[row, t] >= 0:
                total = total - logits[row, t - 1].log_softmax(dim=-1)[x[row, t]]
                count += 1
    got = AutoregressiveWrapper(net)(x, prefix_attn_len=prefix)
    torch.testing.assert_close(got, total / max(count, 1))


def test_no_counted_target_is_visible_to_the_position_that_predicts_it() -> None:
    """Change one counted target alone: only its own loss and that of later ones moves."""
    net, x = make_net(causal=True, prefix=True).eval(), some_ids(1, 12)
    for t in range(5, 12):
        y = x.clone()
        y[0, t] = (y[0, t] + 1) % VOCABULARY
        before, after = (net(z[:, :-1], prefix_attn_len=5) for z in (x, y))
        assert torch.equal(before[:, :t], after[:, :t])


NEEDS_MORE: list[tuple[dict[str, Any], str]] = [
    ({"cross_attention": {"dim_head": 16}}, r"run: cross_attention needs context="),
    ({"norm": {"kind": "adaptive_rmsnorm"}}, r"run: norm\.kind=adaptive_rmsnorm needs condition="),
    ({"branch_scale": {"kind": "adaptive_layerscale"}}, r"adaptive_layerscale needs condition="),
    ({"embedding": {"tables": [{"name": "x", "tokens": 3}]}}, r"embedding\.tables needs embed_ids"),
    ({"head": {"dim": 7}}, r"run\.head\.dim: got 7, but all 20 tokens"),
    ({"prefix": True}, r"run: prefix=true needs prefix_attn_len="),
]


@pytest.mark.parametrize(("more", "message"), NEEDS_MORE)
def test_what_a_caller_can_give_is_refused_where_there_are_tokens_alone(
    more: dict[str, Any], message: str
) -> None:
    net = make_net(causal=True, **more)
    AutoregressiveWrapper(net)
    with pytest.raises(ConfigError, match=message):
        check_trainable(net.config, causal=True, name="run", alone=True)


def test_a_head_that_is_given_stands_in_no_config() -> None:
    config = dataclasses.replace(make_net(causal=True).config, head=HeadConfig(given=True))
    with pytest.raises(ConfigError, match=r"run\.head\.given: .*leave it out"):
        check_trainable(config, causal=True, name="run", alone=True)
