"""What a forward pass gives back in x-transformers' words, its heads, and its cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from option_grid import LENGTH, ids
from torch.nn import functional as F
from wrapper_pairs import both, close, ours, vectors

from xtdist.config import ConfigError
from xtdist.model.sublayer import AttentionRecord
from xtdist.model.surface import attention_z_loss

pytest.importorskip("x_transformers")

CACHED = pytest.mark.parametrize(
    ("wrapper", "layers"),
    [
        ({}, {}),
        ({}, {"rotary_pos_emb": True, "attn_kv_heads": 2, "attn_flash": True}),
        ({}, {"alibi_pos_bias": True}),
        ({"ff_deep_embed": True}, {"rotary_xpos": True}),
        ({"looped": True}, {"pre_and_post_norm": True}),
        ({"add_continuous_pred_head": True}, {"cross_attend": True}),
    ],
    ids=str,
)


def inputs(layers: dict[str, Any]) -> dict[str, Any]:
    return {"context": vectors(2, 7, 32)} if layers.get("cross_attend") else {}


@CACHED
@pytest.mark.parametrize("new_only", [True, False])
def test_going_on_from_intermediates_equals_the_whole(
    wrapper: dict[str, Any], layers: dict[str, Any], new_only: bool
) -> None:
    model, x, given = ours(wrapper, layers), ids(2, LENGTH), inputs(layers)
    want = model(x, **given)
    got, inter = model(x[:, :7], return_intermediates=True, **given)
    pieces, at = [got], 7
    for new in (1, 3, 5):  # several new tokens at once too
        first = inter
        part = x[:, at : at + new] if new_only else x[:, : at + new]
        more = {"cache": inter, "input_not_include_cache": new_only, **given}
        out, inter = model(part, return_intermediates=True, **more)
        pieces.append(out)
        at += new
        assert (inter.cache_length, first.cache_length) == (at, at - new)
        close(model(part, **more), out)  # the older intermediates can be used again
    close(torch.cat(pieces, dim=1), want)


def test_going_on_behind_prepended_vectors() -> None:
    for layers in ({}, {"rotary_pos_emb": True}, {"alibi_pos_bias": True}):
        model, x, extra = ours({}, layers), ids(2, 10), vectors(2, 3, 32)
        want = model(x, prepend_embeds=extra)
        _, inter = model(x[:, :6], prepend_embeds=extra, return_intermediates=True)
        close(model(x, prepend_embeds=extra, cache=inter), want[:, 9:])


def test_a_cache_that_can_not_be_is_one_clear_error() -> None:
    model, x = ours({}), ids(2, 10)
    mask = torch.ones(2, 10, dtype=torch.bool)
    _, inter = model(x, mask=mask, return_intermediates=True)
    with pytest.raises(ValueError, match="hold none: it can't be combined with mask"):
        model(x, cache=inter)
    _, inter = model(x, return_intermediates=True)
    with pytest.raises(ValueError, match="the cache holds 10; give the whole sequence with new"):
        model(x, cache=inter)
    with pytest.raises(ValueError, match="can't be combined with mask"):
        model(ids(2, 11), cache=inter, mask=torch.ones(2, 11, dtype=torch.bool))
    _, inter = ours({"num_memory_tokens": 2})(x, return_intermediates=True)
    assert "memory tokens" in inter.no_cache


def test_intermediates_are_x_transformers_own() -> None:
    for causal in (True, False):
        theirs, model = both({}, {"rotary_pos_emb": True}, causal=causal)
        got, inter = model(ids(2, 9), return_intermediates=True, return_attn=True)
        want, other = theirs(ids(2, 9), return_intermediates=True)
        close(got, want)
        close(list(inter.hiddens), other.hiddens)
        close(list(inter.block_hiddens), other.block_hiddens)
        close(inter.last_hidden, other.last_hidden)
        close(inter.initial_embeds, other.initial_embeds)
        maps = [inter.post_softmax_attn for inter in inter.attn_intermediates]
        close(maps, [inter.post_softmax_attn for inter in other.attn_intermediates])


def test_attention_maps_are_in_the_order_of_the_tokens_also_with_padding() -> None:
    model, x = ours({}, {"rotary_pos_emb": True}), ids(1, 8)
    mask = torch.tensor([[False, True, True, False, True, True, True, False]])
    _, maps = model(x, mask=mask, return_attn=True)
    allowed = (mask[0] & torch.ones(8, 8, dtype=torch.bool).tril())[mask[0]]
    real = maps[0][0, :, mask[0]]
    assert torch.equal(real > 0, allowed.expand(4, 5, 8))
    close(real.sum(dim=-1), torch.ones(4, 5))


def test_a_model_that_keeps_no_attentions_says_how_to_get_them() -> None:
    _, inter = ours({})(ids(1, 4), return_intermediates=True)
    with pytest.raises(ValueError, match="return_attn=True"):
        _ = inter.attn_intermediates


def test_the_z_loss_is_summed_over_layers_after_squaring() -> None:
    scores = [torch.zeros(1, 1, 3, 1) + by for by in (5.0, -5.0)]
    records = tuple(AttentionRecord("a", s, s.softmax(dim=-1)) for s in scores)
    close(attention_z_loss(records, None), torch.tensor(50.0))
    half = torch.tensor([[True, True, False]])
    close(attention_z_loss(records, half), torch.tensor(50.0))


@pytest.mark.parametrize("flash", [True, False])
def test_the_weight_of_the_z_loss_holds_on_any_backend(flash: bool) -> None:
    losses = []
    for weight in (1e-4, 100.0):
        model = ours({"attn_z_loss_weight": weight}, {"attn_flash": flash})
        _, inter = model(ids(2, 9), return_attn_z_loss=True)
        losses.append(inter.attn_z_loss)
    close(losses[1], losses[0] * 1e6)
    _, inter = model(ids(2, 9), return_attn_z_loss=True, attn_z_loss_weight=1e-4)
    close(inter.attn_z_loss, losses[0])
    theirs, model = both({}, {"depth": 1}, causal=False)
    _, other = theirs(ids(2, 9), return_attn_z_loss=True)
    _, inter = model(ids(2, 9), return_attn_z_loss=True)
    close(inter.attn_z_loss, other.attn_z_loss)


def test_padding_has_no_part_in_the_z_loss() -> None:
    model, x = ours({}), ids(2, 9)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[:, 6:] = False
    _, inter = model(x, mask=mask, return_attn_z_loss=True)
    _, alone = model(x[:, :6], return_attn_z_loss=True)
    close(inter.attn_z_loss, alone.attn_z_loss)


def test_entropies_are_those_of_the_logits() -> None:
    theirs, model = both({})
    got, inter = model(ids(2, 9), return_logit_entropies=True)
    close(inter.logit_entropies, torch.distributions.Categorical(logits=got).entropy())
    close(inter.logit_entropies, theirs(ids(2, 9), return_logit_entropies=True)[1].logit_entropies)


@pytest.mark.parametrize(
    "wrapper",
    [
        {"squeeze_out_last_dim": True, "logits_dim": 1},
        {"sigsoftmax_logits": True},
        {"mixture_of_softmax": True},
        {"num_output_heads": 2},
    ],
    ids=str,
)
def test_any_head_can_be_left_out_for_embeddings(wrapper: dict[str, Any]) -> None:
    theirs, model = both(wrapper)
    x, extra = ids(2, 9), vectors(2, 3, 32)
    close(model(x), theirs(x))
    hidden = model(x, prepend_embeds=extra, excise_prepend_embeds=True, return_embeddings=True)
    assert hidden.shape == (2, 9, 32)
    pair = model(
        x, prepend_embeds=extra, excise_prepend_embeds=True, return_logits_and_embeddings=1
    )
    close(pair.embeddings, hidden)
    close(pair.logits, model.to_logits(hidden))
    with pytest.raises(ConfigError, match="more than one matrix"):
        model.apply_head(hidden, F.linear)


def test_a_mixture_gives_probabilities() -> None:
    model = ours({"mixture_of_softmax": True, "sigsoftmax_logits": True})
    close(model(ids(2, 9)).exp().sum(dim=-1), torch.ones(2, 9))


@pytest.mark.parametrize("wrapper", [{}, {"emb_dim": 16}], ids=str)
def test_the_next_embedding_is_predicted_for_every_width_and_prefix(
    wrapper: dict[str, Any],
) -> None:
    model = ours({"add_continuous_pred_head": True, **wrapper})
    extra = vectors(2, 3, wrapper.get("emb_dim", 32))
    for given, n in (({}, 12), ({"excise_prepend_embeds": True}, 9)):
        _, (got, want) = model(
            ids(2, 9), prepend_embeds=extra, return_next_embed_pred=True, **given
        )
        assert got.shape == want.shape == (2, n, wrapper.get("emb_dim", 32))
    theirs, model = both({"add_continuous_pred_head": True})
    close(
        model(ids(2, 9), return_next_embed_pred=True),
        theirs(ids(2, 9), return_next_embed_pred=True),
    )


def test_pooled_outputs_are_x_transformers_own() -> None:
    mask = torch.arange(9) < torch.tensor([[9], [6]])
    for wrapper in (
        {"use_cls_token": True},
        {"use_cls_token": True, "num_cls_tokens": 3, "num_memory_tokens": 2},
        {"average_pool_embed": True},
    ):
        theirs, model = both(wrapper, causal=False)
        close(model(ids(2, 9)), theirs(ids(2, 9)))
        close(model(ids(2, 9), mask=mask), theirs(ids(2, 9), mask=mask))


def test_a_mean_is_over_real_vectors_prepended_ones_too() -> None:
    model, x, extra = ours({"average_pool_embed": True}, causal=False), ids(2, 9), vectors(2, 3, 32)
    mask = torch.arange(9) < 6
    got = model(x, prepend_embeds=extra, mask=mask.expand(2, 9))
    close(got, model(x[:, :6], prepend_embeds=extra))


def test_class_tokens_of_a_causal_stack_are_refused() -> None:
    with pytest.raises(ConfigError, match="see nothing of it in a causal stack"):
        ours({"use_cls_token": True})
