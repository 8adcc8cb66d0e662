"""Next-token loss: shift, ignored targets, parts that add up."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from nets import VOCABULARY, make_net, some_ids

from xtdist.config import ConfigError
from xtdist.objective import (
    AutoregressiveConfig,
    AutoregressiveWrapper,
    build_objective,
)


def test_the_loss_is_the_mean_cross_entropy_of_the_next_token() -> None:
    net, x = make_net(causal=True), some_ids(3, 16)
    logits = net(x[:, :-1])
    want = F.cross_entropy(logits.flatten(0, 1), x[:, 1:].flatten())
    torch.testing.assert_close(AutoregressiveWrapper(net)(x), want)


def test_the_loss_equals_x_transformers_on_the_same_logits() -> None:
    xt = pytest.importorskip("x_transformers")
    net, x = make_net(causal=True), some_ids(3, 12)
    x[1, 7:] = -100

    class Borrowed(torch.nn.Module):
        max_seq_len, num_tokens = 16, VOCABULARY
        add_continuous_pred_head = looped = output_is_log_prob = False
        attn_z_loss_weight = 0.0

        def forward(self, ids: torch.Tensor, **_: object) -> tuple[torch.Tensor, None]:
            return net(ids), None

    theirs = xt.AutoregressiveWrapper(Borrowed())(x)
    torch.testing.assert_close(AutoregressiveWrapper(net)(x), theirs)


def test_the_last_token_of_a_window_is_only_a_target() -> None:
    net, x = make_net(causal=True, position={"kind": "learned"}), some_ids(2, 17)
    assert AutoregressiveWrapper(net)(x).isfinite()


def test_lengths_ignore_what_follows() -> None:
    wrapper, x = AutoregressiveWrapper(make_net(causal=True)), some_ids(2, 10)
    padded = x.clone()
    padded[0, 4:] = -100
    lens = torch.tensor([4, 10])
    torch.testing.assert_close(wrapper(x, lens=lens), wrapper(padded))
    parts = wrapper(x[:1, :4]) * 3 + wrapper(x[1:]) * 9
    torch.testing.assert_close(wrapper(x, lens=lens), parts / 12)


def test_when_every_target_is_ignored_the_loss_is_zero_and_weighs_nothing() -> None:
    wrapper = AutoregressiveWrapper(make_net(causal=True))
    x = torch.full((2, 8), -100)
    assert wrapper(x).item() == 0
    out = wrapper.losses(wrapper.prepare(x, seed=0, sample_ids=torch.arange(2)))
    assert (out.sum.item(), out.weight.item()) == (0, 0)


def test_micro_batches_add_up_to_the_whole_batch() -> None:
    wrapper, x = AutoregressiveWrapper(make_net(causal=True)), some_ids(5, 17)
    x[3, 5:] = -100
    prepared = wrapper.prepare(x, seed=0, sample_ids=torch.arange(5))
    whole = wrapper.losses(prepared)
    parts = [wrapper.losses(prepared[i : i + 2]) for i in (0, 2, 4)]
    torch.testing.assert_close(sum(p.sum for p in parts), whole.sum)
    assert sum(p.weight for p in parts) == whole.weight == prepared.weight == 4 * 16 + 4


def test_a_muted_batch_weighs_nothing_but_reaches_every_parameter() -> None:
    wrapper = AutoregressiveWrapper(make_net(causal=True))
    prepared = wrapper.prepare(some_ids(2, 9), seed=0, sample_ids=torch.arange(2)).muted()
    out = wrapper.losses(prepared)
    out.sum.backward()
    assert (out.sum.item(), prepared.weight.item()) == (0, 0)
    for name, weight in wrapper.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().sum() == 0, name


def test_a_constant_sequence_is_learned() -> None:
    wrapper, x = AutoregressiveWrapper(make_net(causal=True)), some_ids(1, 17).repeat(4, 1)
    optimizer = torch.optim.AdamW(wrapper.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        loss = wrapper(x)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


def test_an_encoder_is_refused() -> None:
    with pytest.raises(ConfigError, match="causal network"):
        AutoregressiveWrapper(make_net(causal=False))


def test_a_sequence_without_a_target_is_refused() -> None:
    with pytest.raises(ValueError, match="n >= 2"):
        AutoregressiveWrapper(make_net(causal=True))(some_ids(2, 1))


def test_the_config_builds_the_wrapper() -> None:
    config = AutoregressiveConfig(ignore_index=-7)
    built = build_objective(config, make_net(causal=True), mask_id=1, pad_id=5)
    assert isinstance(built, AutoregressiveWrapper)
    assert (built.ignore_index, built.pad_value) == (-7, 5)


def test_a_mixture_of_experts_adds_its_losses_in_training_only() -> None:
    moe = {"kind": "moe", "experts": 3, "top_k": 1, "balance_loss_weight": 0.5, "z_loss_weight": 0}
    net, x = make_net(causal=True, feedforward=moe), some_ids(2, 9)
    wrapper = AutoregressiveWrapper(net).eval()
    plain = wrapper(x)
    balance = sum(a.sum / a.weight for a in net.run(x[:, :-1]).aux if a.name == "balance")
    wrapper.train()
    torch.testing.assert_close(wrapper(x), plain + 0.5 * balance)
    out = wrapper.losses(wrapper.prepare(x, seed=0, sample_ids=torch.arange(2)))
    torch.testing.assert_close(out.metrics["aux/balance"] / out.weight, balance.detach())
