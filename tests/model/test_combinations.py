"""Options that meet in unusual places: padding inside, memories in front, caches, other types."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from option_grid import LAYERS, LENGTH, WRAPPER, ids, perturb
from torch import Tensor

from xtdist.config import ConfigError
from xtdist.model import Decoder, TransformerWrapper
from xtdist.model.compat_weights import from_x_transformers

xt = pytest.importorskip("x_transformers")


def make(wrapper: dict[str, Any] | None = None, **layers: Any) -> TransformerWrapper:
    torch.manual_seed(0)
    stack = Decoder(**{**LAYERS, **layers})
    model = TransformerWrapper(**{**WRAPPER, **(wrapper or {})}, attn_layers=stack)
    perturb(model)
    return model.eval()


def mask_of(*padding: range) -> Tensor:
    """Two rows; the first has padding at these places."""
    mask = torch.ones(2, LENGTH, dtype=torch.bool)
    for places in padding:
        mask[0, list(places)] = False
    return mask


HOLE, LEFT = mask_of(range(5, 8)), mask_of(range(4))
SENSITIVE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "window": ({}, {"attn_max_attend_past": 2}),
    "token shift": ({}, {"shift_tokens": 1}),
    "forgetting": ({}, {"attn_data_dependent_alibi": True}),
    "rotary": ({"use_abs_pos_emb": False}, {"rotary_pos_emb": True}),
    "ALiBi": ({}, {"alibi_pos_bias": True}),
    "memory tokens and window": ({"num_memory_tokens": 3}, {"attn_max_attend_past": 4}),
}


@torch.no_grad()
@pytest.mark.parametrize("name", SENSITIVE)
@pytest.mark.parametrize("mask", [HOLE, LEFT], ids=["hole", "left"])
def test_padding_means_the_same_whatever_else_a_pass_is_asked(name: str, mask: Tensor) -> None:
    wrapper, layers = SENSITIVE[name]
    model, x = make(wrapper, **layers), ids(2, LENGTH)
    want = model(x, mask=mask)[mask]
    everything = torch.ones(LENGTH, LENGTH, dtype=torch.bool)
    logits, weights = model(x, mask=mask, return_attn=True)
    torch.testing.assert_close(logits[mask], want, atol=1e-4, rtol=1e-4)
    if not wrapper.get("num_memory_tokens"):
        got = model(x, mask=mask, attn_mask=everything)[mask]
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
        for table in weights:  # in the order of the tokens: padding is read by no real token
            assert table[0][:, mask[0]][..., ~mask[0]].abs().max() == 0


@torch.no_grad()
@pytest.mark.parametrize("name", ["window", "forgetting", "token shift", "ALiBi"])
def test_padding_in_the_middle_is_as_if_it_were_not_there(name: str) -> None:
    wrapper, layers = SENSITIVE[name]
    model, x = make({**wrapper, "use_abs_pos_emb": False}, **layers), ids(2, LENGTH)
    got = model(x, mask=HOLE)[0, HOLE[0]]
    want = model(x[:1, HOLE[0]])[0]
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", ["rotary", "ALiBi", "window"])
def test_memories_stand_right_before_the_first_real_token(name: str) -> None:
    wrapper, layers = SENSITIVE[name]
    model = make({**wrapper, "use_abs_pos_emb": False, "max_mem_len": 5}, **layers)
    x, mems = ids(2, LENGTH), [torch.randn(2, 5, 32) for _ in range(LAYERS["depth"])]
    got = model(x, mask=LEFT, mems=mems)[0, 4:]
    want = model(x[:1, 4:], mems=[m[:1] for m in mems])[0]
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_values_of_the_first_layer_reach_cross_attention_with_a_cache_too() -> None:
    model = make(add_value_residual=True, cross_attend=True, attn_value_rmsnorm=True)
    x, context = ids(2, LENGTH), torch.randn(2, 7, 32)
    want = model(x, context=context)
    got, kept = model(x[:, :9], context=context, return_intermediates=True)
    torch.testing.assert_close(got, want[:, :9], atol=1e-4, rtol=1e-4)
    more = model(x, context=context, cache=kept)
    torch.testing.assert_close(more, want[:, 9:], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_hidden_memories_change_no_mixed_value() -> None:
    model = make({"max_mem_len": 5}, add_value_residual=True)
    x, mems = ids(2, LENGTH), [torch.randn(2, 5, 32) for _ in range(LAYERS["depth"])]
    hidden = [torch.zeros(2, 5, dtype=torch.bool)] * LAYERS["depth"]
    got = model(x, mems=mems, mem_masks=hidden)
    torch.testing.assert_close(got, model(x), atol=1e-4, rtol=1e-4)
    assert (model(x, mems=mems) - model(x)).abs().max() > 1e-2


@pytest.mark.parametrize(
    "layers",
    [
        {"attn_selective": True, "attn_num_mem_kv": 2},
        {"attn_cog_signed": True, "attn_use_cope": True},
        {"attn_cog_signed": True, "attn_selective": True},
        {"attn_cog_signed": True, "attn_head_learned_sink": True},
    ],
    ids=lambda layers: " + ".join(layers),
)
def test_score_options_act_in_x_transformers_order(layers: dict[str, Any]) -> None:
    torch.manual_seed(0)
    stack = xt.Decoder(**LAYERS, **layers, verbose=False)
    theirs = xt.TransformerWrapper(**WRAPPER, attn_layers=stack)
    perturb(theirs)
    ours = make(**layers)
    ours.load_state_dict(from_x_transformers(theirs.state_dict(), ours.config))
    x = ids(2, LENGTH)
    torch.testing.assert_close(ours(x), theirs.eval()(x), atol=3e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({"polar_pos_emb": True, "attn_num_mem_kv": 2}, "polar positions and memory keys"),
        ({"polar_pos_emb": True, "attn_use_cope": True}, "CoPE"),
        (
            {
                "polar_pos_emb": True,
                "attn_use_latent_kv": True,
                "attn_dim_latent_kv": 8,
                "attn_latent_rope_subheads": 1,
            },
            "latent attention",
        ),
        ({"attn_sigmoid": True, "attn_head_learned_sink": True}, "takes nothing"),
    ],
)
def test_pairs_without_a_meaning_are_refused_by_name(layers: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**layers)


def test_sinusoidal_positions_are_refused_where_others_stand() -> None:
    for name in ("rotary_pos_emb", "polar_pos_emb", "rel_pos_bias"):
        with pytest.raises(ConfigError, match="scaled_sinu_pos_emb: has no effect"):
            make({"scaled_sinu_pos_emb": True}, **{name: True})


def test_what_counts_along_the_tokens_stays_out_of_cross_attention() -> None:
    for name in ("attn_selective", "attn_use_cope", "attn_max_attend_past"):
        value = 3 if name == "attn_max_attend_past" else True
        model = make(cross_attend=True, **{name: value})
        assert model(ids(2, LENGTH), context=torch.randn(2, 5, 32)).isfinite().all()
        with pytest.raises(TypeError, match=f"cross_{name}"):
            make(cross_attend=True, **{f"cross_{name}": value})


def test_a_gru_residual_runs_under_autocast() -> None:
    model = make(gate_residual=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(ids(2, LENGTH)).float().square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_attention_over_layers_runs_in_double_precision() -> None:
    kwargs = {"attn_aggregated_residual_kwargs": {"lora_rank": 8}}
    model = make(attn_aggregated_residuals=True, **kwargs)
    x = ids(2, LENGTH)
    torch.testing.assert_close(model(x).double(), model.double()(x), atol=1e-3, rtol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize(
    "wrapper", [{}, {"scaled_sinu_pos_emb": True}], ids=["learned", "sinusoidal"]
)
def test_absolute_positions_start_anew_in_each_packed_document(wrapper: dict[str, Any]) -> None:
    model, x = make(wrapper), ids(2, LENGTH)
    documents = torch.tensor([[4] * 5 + [2] * 4 + [4] * (LENGTH - 9), [0] * LENGTH])
    got = model(x, documents=documents)
    for part in (slice(0, 5), slice(5, 9)):
        torch.testing.assert_close(got[:1, part], model(x[:1, part]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(got[1:], model(x[1:]), atol=1e-4, rtol=1e-4)
