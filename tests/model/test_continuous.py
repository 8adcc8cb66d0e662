"""Sequences of vectors: against x-transformers with the same weights, and by invariants."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from xtdist.config import ConfigError
from xtdist.model import Decoder, Encoder
from xtdist.model.batch_cache import BatchCache
from xtdist.model.compat_weights import from_x_transformers
from xtdist.model.continuous import ContinuousTransformerWrapper

xt = pytest.importorskip("x_transformers")

STACK: dict[str, Any] = {"dim": 32, "depth": 2, "heads": 4, "attn_dim_head": 8}
SIZES: dict[str, Any] = {"dim_in": 6, "dim_out": 5, "max_seq_len": 16}
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "learned positions": (SIZES, {}),
    "no positions": ({**SIZES, "use_abs_pos_emb": False}, {}),
    "no length": ({"dim_in": 6, "dim_out": 5}, {}),
    "sines": ({**SIZES, "scaled_sinu_pos_emb": True}, {}),
    "rotary": (SIZES, {"rotary_pos_emb": True, "attn_kv_heads": 2}),
    "memory tokens": ({**SIZES, "num_memory_tokens": 3}, {"rotary_pos_emb": True}),
    "norm": ({**SIZES, "post_emb_norm": True}, {}),
    "pooled": ({**SIZES, "average_pool_embed": True}, {}),
    "probabilistic": ({**SIZES, "probabilistic": True}, {}),
    "same widths": (
        {"dim_in": 32, "dim_out": 32, "max_seq_len": 16, "use_identity_if_same_dim": True},
        {},
    ),
    "no projections": ({"max_seq_len": 16}, {}),
}
STACKS = {True: Decoder, False: Encoder}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def perturb(module: nn.Module) -> None:
    for seed, weight in enumerate(module.parameters()):
        weight.add_(0.1 * noise(*weight.shape, seed=seed))


def ours_of(kind: str, *, causal: bool = True, **more: Any) -> ContinuousTransformerWrapper:
    torch.manual_seed(0)
    keywords, stack = KINDS[kind]
    net = ContinuousTransformerWrapper(
        attn_layers=STACKS[causal](**{**STACK, **stack, **more}), **keywords
    )
    perturb(net)
    return net.eval()


def pair_of(kind: str, *, causal: bool = True) -> tuple[Any, ContinuousTransformerWrapper]:
    keywords, stack = KINDS[kind]
    there = xt.Decoder if causal else xt.Encoder
    theirs = xt.ContinuousTransformerWrapper(
        attn_layers=there(**STACK, **stack, verbose=False), **keywords
    )
    perturb(theirs)
    ours = ours_of(kind, causal=causal)
    ours.load_state_dict(converted(theirs.state_dict(), ours))
    return theirs.eval(), ours


def converted(state: dict[str, Tensor], net: ContinuousTransformerWrapper) -> dict[str, Tensor]:
    layers = {name: state.pop(name) for name in list(state) if name.startswith("attn_layers.")}
    found = from_x_transformers(layers, net.layers.config)
    names = {
        "pos_emb.scale": "position_embedding.scale",
        "post_emb_norm.gamma": "post_emb_norm.gain",
        "memory_tokens": "memory_tokens.weight",
    }
    for name, weight in state.items():
        if name == "pos_emb.emb.weight":
            found["position_embedding.weight"] = weight * net.dim**-0.5
        else:
            found[names.get(name, name)] = weight
    return found


def vectors(kind: str, *, n: int = 9, batch: int = 2, seed: int = 1) -> Tensor:
    return noise(batch, n, KINDS[kind][0].get("dim_in", 32), seed=seed)


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_weights_give_x_transformers_outputs(kind: str, causal: bool) -> None:
    theirs, ours = pair_of(kind, causal=causal)
    x = vectors(kind)
    close(ours(x), theirs(x))
    close(ours(x, return_embeddings=True), theirs(x, return_embeddings=True))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kind", ["learned positions", "memory tokens", "pooled"])
def test_padding_is_left_out_as_in_x_transformers(kind: str, causal: bool) -> None:
    theirs, ours = pair_of(kind, causal=causal)
    x, lens = vectors(kind), torch.tensor([9, 4])
    real = torch.arange(9) < lens[:, None]
    keep = slice(None) if kind == "pooled" else real
    close(
        ours(x, lens=lens)[keep],
        theirs(x, lens=lens)[keep] if kind != "pooled" else theirs(x, mask=real),
    )
    close(ours(x, mask=real), ours(x, lens=lens))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_ragged_batch_is_each_row_alone(kind: str, causal: bool) -> None:
    ours = ours_of(kind, causal=causal)
    x = vectors(kind)
    got, want = ours(x, lens=torch.tensor([9, 4])), ours(x[1:, :4])
    if kind != "pooled":
        got = got[..., :4, :]
    close(got[..., 1:, :] if kind == "pooled" else got[..., 1:, :, :], want)


def test_left_padding_shifts_learned_positions_and_is_not_read() -> None:
    ours = ours_of("learned positions")
    x = vectors("learned positions")
    got = ours(x, seq_start_pos=torch.tensor([0, 5]))
    close(got[1:, 5:], ours(x[1:, 5:]))


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "pooled"])
def test_a_decoder_does_not_see_the_future(kind: str) -> None:
    ours = ours_of(kind)
    x = vectors(kind)
    changed = x.clone()
    changed[:, 6:] += 1.0
    got, want = ours(changed), ours(x)
    assert torch.equal(got[..., :6, :], want[..., :6, :])
    assert not torch.allclose(got[..., 6:, :], want[..., 6:, :])


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("pooled", "memory tokens")])
def test_with_a_cache_the_outputs_are_the_same_step_by_step(kind: str) -> None:
    ours = ours_of(kind)
    x, cache, steps = vectors(kind), BatchCache(), []
    for at, to in ((0, 5), (5, 6), (6, 9)):
        steps.append(ours(x[:, at:to], pos=torch.arange(at, to), cache=cache))
        cache.seen(to - at, to - at)
    close(torch.cat(steps, dim=-2), ours(x))


def test_prepended_vectors_stand_before_the_sequence() -> None:
    theirs, ours = pair_of("learned positions")
    x, before = vectors("learned positions"), noise(2, 3, 32, seed=5)
    got = ours(x, prepend_embeds=before)
    assert got.shape == (2, 12, 5)
    close(got, theirs(x, prepend_embeds=before))
    seen = torch.tensor([[True] * 3, [False, False, True]])
    lens = torch.tensor([9, 4])
    masked = ours(x, prepend_embeds=before, prepend_mask=seen, lens=lens)
    close(masked[:1], got[:1])
    close(masked[1:, 2:7], ours(x[1:, :4], prepend_embeds=before[1:, 2:]))


def test_prepended_vectors_and_memory_tokens_go_together() -> None:
    ours = ours_of("memory tokens", causal=False)
    x, before = vectors("memory tokens"), noise(2, 3, 32, seed=5)
    got = ours(x, prepend_embeds=before, lens=torch.tensor([9, 4]))
    assert got.shape == (2, 12, 5)
    close(got[1:, :7], ours(x[1:, :4], prepend_embeds=before[1:]))


def test_pooling_is_the_mean_of_the_real_outputs_prepended_ones_included() -> None:
    ours = ours_of("pooled", causal=False)
    x, before = vectors("pooled"), noise(2, 3, 32, seed=5)
    pooled = ours(x, prepend_embeds=before, lens=torch.tensor([9, 4]), return_embeddings=True)
    ours.config = type(ours.config)(**{**vars(ours.config), "average_pool_embed": False})
    each = ours(x, prepend_embeds=before, lens=torch.tensor([9, 4]), return_embeddings=True)
    close(pooled, torch.stack((each[0].mean(dim=0), each[1, :7].mean(dim=0))))


def test_positions_reach_the_rotation_and_the_embedding() -> None:
    rotary, learned = ours_of("rotary"), ours_of("learned positions")
    x = vectors("rotary")
    pos = torch.tensor([0, 1, 2, 5, 6, 7, 9, 10, 12])
    close(rotary(x, pos=pos + 3), rotary(x, pos=pos))
    assert not torch.allclose(rotary(x, pos=pos), rotary(x), atol=1e-3)
    assert not torch.allclose(learned(x, pos=pos + 3), learned(x, pos=pos), atol=1e-3)
    close(learned(x, pos=torch.arange(9)), learned(x))
    memory = ours_of("memory tokens")
    close(memory(x, pos=torch.arange(9)), memory(x))


def test_memories_of_a_segment_stand_in_for_it() -> None:
    stack = {"max_mem_len": 6, "use_abs_pos_emb": False, **SIZES}
    net = ContinuousTransformerWrapper(
        attn_layers=Decoder(**{**STACK, "depth": 1}, rotary_pos_emb=True), **stack
    )
    perturb(net)
    x = noise(2, 9, 6)
    _, mems = net(x[:, :4], return_mems=True)
    out, more = net(x[:, 4:], mems=mems, return_mems=True)
    close(out, net(x)[:, 4:])  # in one layer, hidden states before are all that it sees
    assert [m.shape for m in more] == [(2, 6, 32)]
    close(more[0], net(x, return_mems=True)[1][0])
    assert not more[0].requires_grad
    none = ContinuousTransformerWrapper(attn_layers=Decoder(**STACK), **SIZES)
    assert none(x, return_mems=True)[1][0].shape == (2, 0, 32)


def test_attentions_and_everything_on_the_way_are_handed_back() -> None:
    theirs, ours = pair_of("memory tokens")
    x = vectors("memory tokens")
    got, want = ours(x, return_attn=True), theirs(x, return_attn=True)
    for mine, other in zip(got[1], want[1], strict=True):
        close(mine, other)
    out, hidden = ours(x, return_intermediates=True)
    close(out, hidden.hidden @ ours.project_out.weight.T)
    assert [h.shape for h in hidden.hiddens] == [(2, 9, 32)] * 2


def test_projections_of_ones_own_take_the_place_of_linear_ones() -> None:
    torch.manual_seed(0)
    net = ContinuousTransformerWrapper(
        attn_layers=Encoder(**STACK),
        project_in=nn.Sequential(nn.Linear(3, 32), nn.GELU()),
        project_out=nn.Linear(32, 2),
    )
    assert net(noise(2, 9, 3)).shape == (2, 9, 2)
    with pytest.raises(ConfigError, match="dim_in and a projection"):
        ContinuousTransformerWrapper(
            attn_layers=Encoder(**STACK), project_in=nn.Linear(3, 32), dim_in=3
        )


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_gets_a_gradient_and_the_net_pickles(kind: str) -> None:
    ours = ours_of(kind).train()
    x = vectors(kind, n=16)
    ours(x).square().sum().backward()
    for name, weight in ours.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().sum() > 0, name
    again = pickle.loads(pickle.dumps(ours))
    assert torch.equal(again(x), ours(x))


def test_context_goes_to_cross_attention() -> None:
    ours = ours_of("rotary", cross_attend=True, cross_attn_dim_context=7)
    x, context = vectors("rotary"), noise(2, 5, 7)
    mask = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    got = ours(x, context=context, context_mask=mask)
    close(got[1:], ours(x[1:], context=context[1:, :2]))
    assert not torch.allclose(got, ours(x, context=context))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"scaled_sinu_pos_emb": True, "use_abs_pos_emb": False}, "takes positions away"),
        ({"emb_dropout": 1.5}, "emb_dropout"),
    ],
)
def test_what_can_not_be_is_refused(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ContinuousTransformerWrapper(attn_layers=Decoder(**STACK), **keywords)


def test_two_kinds_of_positions_are_refused() -> None:
    with pytest.raises(ConfigError, match="has rotary positions"):
        ContinuousTransformerWrapper(
            attn_layers=Decoder(**STACK, rotary_pos_emb=True), scaled_sinu_pos_emb=True
        )


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"x": noise(2, 9, 5)}, r"x: got .*give vectors \(b, n, 6\)"),
        ({"x": noise(2, 17, 6)}, "positions end at max_seq_len=16"),
        ({"mask": torch.ones(2, 9)}, "True = a real vector"),
        ({"mask": torch.ones(2, 9, dtype=torch.bool), "lens": torch.tensor([9, 9])}, "give one"),
        ({"sum_embeds": noise(2, 9, 6)}, "sum_embeds: got"),
        ({"prepend_embeds": noise(1, 3, 32)}, "prepend_embeds: got"),
        ({"prepend_mask": torch.ones(2, 3, dtype=torch.bool)}, "without prepend_embeds"),
        ({"cache": BatchCache(), "lens": torch.tensor([9, 9])}, "can't be combined with lens"),
        ({"return_attn": True, "return_mems": True}, "choose one"),
    ],
)
def test_bad_input_is_one_clear_error(inputs: dict[str, Any], message: str) -> None:
    ours = ours_of("learned positions")
    x = inputs.pop("x", vectors("learned positions"))
    with pytest.raises(ValueError, match=message):
        ours(x, **inputs)


def test_unknown_keywords_name_the_nearest() -> None:
    with pytest.raises(TypeError, match="did you mean 'dim_in'"):
        ContinuousTransformerWrapper(attn_layers=Decoder(**STACK), dim_inn=3)
    with pytest.raises(TypeError, match="unknown keyword 'lengths'"):
        ours_of("rotary")(vectors("rotary"), lengths=torch.tensor([9, 4]))


@pytest.mark.parametrize("kind", ["learned positions", "sines", "memory tokens"])
def test_in_bf16_the_outputs_are_nearly_those_of_fp32(kind: str) -> None:
    ours = ours_of(kind)
    x = vectors(kind)
    want = ours(x)
    got = ours.bfloat16()(x.bfloat16())
    assert got.dtype == torch.bfloat16
    assert (got - want).norm() < 0.05 * want.norm()
