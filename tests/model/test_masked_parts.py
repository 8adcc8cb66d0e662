"""Parts that sum along the sequence or mix heads, under masks that hide tokens in its midst."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from option_grid import LAYERS, WRAPPER, ids, perturb
from torch import Tensor
from wrapper_pairs import close, vectors

from xtdist.model import Decoder, Encoder, PrefixDecoder, TransformerWrapper

FORGETTING = {"attn_data_dependent_alibi": True}
BY_ROW = {**FORGETTING, "attn_data_dependent_alibi_per_row": True}
NO_POSITIONS = {"use_abs_pos_emb": False}
HOLE = torch.ones(2, 16, dtype=torch.bool)
HOLE[:, 5:8] = False


def model(stack: type[Decoder], layers: dict[str, Any], **wrapper: Any) -> TransformerWrapper:
    torch.manual_seed(0)
    built = TransformerWrapper(**{**WRAPPER, **wrapper}, attn_layers=stack(**{**LAYERS, **layers}))
    perturb(built)
    return built.eval()


def changed(x: Tensor, where: Tensor) -> Tensor:
    return torch.where(where, (x + 7) % 40, x)


@pytest.mark.parametrize(
    "mixing",
    ["attn_pre_talking_heads", "attn_post_talking_heads", "attn_pre_scale_post_talking_heads"],
)
def test_heads_mix_scores_that_are_passed_on(mixing: str) -> None:
    net = model(Decoder, {"residual_attn": True, mixing: True, "depth": 3}).train()
    out = net(ids(2, 16))
    assert out.isfinite().all()
    out.square().mean().backward()
    assert all(weight.grad.isfinite().all() for weight in net.parameters())


@torch.no_grad()
@pytest.mark.parametrize(
    ("stack", "layers", "inputs", "hidden"),
    [
        (Encoder, FORGETTING, {"mask": HOLE}, ~HOLE),
        (Encoder, FORGETTING, {"documents": (~HOLE).long()}, ~HOLE),
        (Decoder, FORGETTING, {"documents": (~HOLE).long()}, ~HOLE),
        (Decoder, BY_ROW, {"documents": (~HOLE).long()}, ~HOLE),
        (Decoder, FORGETTING, {"attn_mask": HOLE[:1].expand(16, 16) | torch.eye(16).bool()}, ~HOLE),
        (PrefixDecoder, FORGETTING, {"mask": HOLE, "prefix_attn_len": 10}, ~HOLE),
        (Decoder, {"attn_selective": True}, {"self_attn_kv_mask": HOLE}, ~HOLE),
        (Decoder, {"attn_selective": True}, {"attn_mask": HOLE[:1].expand(16, 16)}, ~HOLE),
        (Decoder, BY_ROW, {"self_attn_kv_mask": HOLE}, ~HOLE),
        (Decoder, FORGETTING, {"self_attn_kv_mask": HOLE}, ~HOLE),
        (Decoder, {"attn_use_cope": True}, {"self_attn_kv_mask": HOLE}, ~HOLE),
    ],
)
def test_tokens_between_that_may_not_be_read_change_nothing(
    stack: type[Decoder], layers: dict[str, Any], inputs: dict[str, Any], hidden: Tensor
) -> None:
    net, x = model(stack, {**layers, "depth": 1}), ids(2, 16)
    a, b = (net(tokens, **inputs) for tokens in (x, changed(x, hidden)))
    assert torch.equal(a[~hidden], b[~hidden])
    assert (a - b)[hidden].abs().max() > 0.01


@torch.no_grad()
def test_left_padding_behind_prepended_vectors_forgets_nothing() -> None:
    net, x = model(Encoder, FORGETTING), ids(2, 16)
    padding = torch.arange(16) < torch.tensor([[4], [0]])
    given = {
        "prepend_embeds": vectors(2, 3, 32),
        "seq_start_pos": torch.tensor([4, 0]),
        "excise_prepend_embeds": True,
    }
    a, b = (net(tokens, **given) for tokens in (x, changed(x, padding)))
    close(a[~padding], b[~padding])


@torch.no_grad()
def test_memories_that_are_hidden_forget_nothing_in_either_direction() -> None:
    net, x = model(Encoder, FORGETTING, max_mem_len=4, **NO_POSITIONS), ids(2, 16)
    masks = [torch.zeros(2, 4, dtype=torch.bool)] * 2
    close(net(x, mems=[vectors(2, 4, 32)] * 2, mem_masks=masks), net(x))


@torch.no_grad()
@pytest.mark.parametrize("layers", [{}, {"attn_post_talking_heads": True}, {"attn_sigmoid": True}])
def test_a_query_that_may_read_nothing_has_no_weights(layers: dict[str, Any]) -> None:
    net, x = model(Decoder, layers), ids(2, 16)
    keys = torch.ones(2, 16, dtype=torch.bool)
    keys[:, 0] = False
    _, found = net(x, self_attn_kv_mask=keys, return_intermediates=True, return_attn=True)
    for attention in found.attn_intermediates:
        assert not attention.post_softmax_attn[:, :, 0].any()
        assert attention.pre_softmax_attn[:, :, 0].isneginf().all()


def test_the_z_loss_of_queries_without_keys_is_zero() -> None:
    net, x = model(Decoder, {}), ids(2, 16)
    keys = torch.ones(2, 16, dtype=torch.bool)
    _, some = net(x, return_attn_z_loss=True)
    _, none = net(x, self_attn_kv_mask=~keys, return_attn_z_loss=True)
    assert some.attn_z_loss > 0
    assert none.attn_z_loss == 0
    keys[:, 0] = False
    _, found = net(x, self_attn_kv_mask=keys, return_attn_z_loss=True)
    found.attn_z_loss.backward()
    grads = [weight.grad for weight in net.parameters() if weight.grad is not None]
    assert grads
    assert all(grad.isfinite().all() for grad in grads)


@torch.no_grad()
@pytest.mark.parametrize("stack", [Encoder, Decoder, PrefixDecoder])
def test_shifted_tokens_skip_padding_between_them(stack: type[Decoder]) -> None:
    net, x = model(stack, {"shift_tokens": 1}, **NO_POSITIONS), ids(2, 16)
    prefixes = ({"prefix_attn_len": 9}, {"prefix_attn_len": 6})
    whole, short = prefixes if stack is PrefixDecoder else ({}, {})
    close(net(x, mask=HOLE, **whole)[:, HOLE[0]], net(x[:, HOLE[0]], **short))


@torch.no_grad()
@pytest.mark.parametrize(
    "layers",
    [
        {"rotary_pos_emb": True},
        {"alibi_pos_bias": True},
        {"rel_pos_bias": True},
        {"attn_max_attend_past": 3},
        {"shift_tokens": 1},
    ],
    ids=str,
)
def test_a_prefix_of_nothing_is_no_prefix_with_padding_between(layers: dict[str, Any]) -> None:
    net, x = model(PrefixDecoder, layers, **NO_POSITIONS), ids(2, 16)
    got, want = net(x, mask=HOLE, prefix_attn_len=0), net(x, mask=HOLE)
    close(got[HOLE], want[HOLE])


@torch.no_grad()
def test_a_large_bias_keeps_its_digits_in_bf16() -> None:
    net = model(Decoder, {"dynamic_pos_bias": True, "depth": 1}, max_seq_len=800, **NO_POSITIONS)
    net.layers.position_bias.to_bias.weight.mul_(10)
    x = ids(1, 800)
    want, half = net(x)[:, -100:], copy.deepcopy(net).bfloat16()
    fused = (half(x)[:, -100:].float() - want).abs().mean()
    for sublayer in half.layers.sublayers:
        sublayer.branch.backend = "eager"
    exact = (half(x)[:, -100:].float() - want).abs().mean()
    assert fused < 1.3 * exact


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_xpos_is_the_same_wherever_a_sequence_stands(dtype: torch.dtype) -> None:
    net = model(Decoder, {"rotary_pos_emb": True, "rotary_xpos": True}, **NO_POSITIONS).to(dtype)
    x, pos = ids(2, 16), torch.arange(16)
    for shift in (10000, 100000):
        got, to = net(x, pos=pos + shift), 0.02 if dtype == torch.float16 else 1e-3
        torch.testing.assert_close(got, net(x), atol=to, rtol=to)


@torch.no_grad()
def test_memories_and_tokens_count_xpos_from_one_position() -> None:
    net = model(
        Decoder,
        {"rotary_pos_emb": True, "rotary_xpos": True, "rotary_xpos_scale_base": 4, "depth": 1},
        max_mem_len=8,
        **NO_POSITIONS,
    )
    x = ids(2, 16)
    _, mems = net(x[:, :8], return_mems=True)
    close(net(x[:, 8:], mems=mems), net(x)[:, 8:])


@torch.no_grad()
@pytest.mark.parametrize("shape", [(2, 0), (0, 5), (0, 0)])
@pytest.mark.parametrize(
    "layers",
    [
        {"attn_selective": True},
        {"attn_hard": True},
        {"attn_gumbel_softmax": True},
        {"dynamic_pos_bias": True},
        {"rotary_xpos": True},
        FORGETTING,
        BY_ROW,
    ],
    ids=lambda layers: list(layers)[-1],
)
def test_no_tokens_give_no_logits(layers: dict[str, Any], shape: tuple[int, int]) -> None:
    out = model(Decoder, layers)(torch.zeros(shape, dtype=torch.long))
    assert out.shape == (*shape, 40)
