"""What tokens become before the stack: widths, tables, prepended vectors, positions, modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from option_grid import LAYERS, WRAPPER, ids
from torch import nn
from wrapper_pairs import both, close, ours, vectors

from xtdist.config import ConfigError
from xtdist.model import Decoder, TransformerWrapper, build_model
from xtdist.model.compat_back import keywords_of
from xtdist.model.compat_weights import to_x_transformers

pytest.importorskip("x_transformers")

TYPES = {"embed_num_tokens": {"kind": 3, "speaker": 5}}


def test_further_tables_are_x_transformers_own() -> None:
    theirs, model = both({**TYPES, "emb_dim": 16, "post_emb_norm": True})
    x, given = ids(2, 9), {"kind": ids(2, 9) % 3, "speaker": ids(2, 9, seed=1) % 5}
    close(model(x, embed_ids=given), theirs(x, embed_ids=given))
    state = to_x_transformers(model.state_dict(), model.config)
    assert state.keys() == theirs.state_dict().keys()
    assert keywords_of(model.config)[1]["embed_num_tokens"] == TYPES["embed_num_tokens"]


@pytest.mark.parametrize("wrapper", [{}, {"emb_dim": 16}, {"num_memory_tokens": 2}], ids=str)
@pytest.mark.parametrize("layers", [{}, {"rotary_pos_emb": True}], ids=str)
def test_prepended_vectors_are_x_transformers_own(
    wrapper: dict[str, Any], layers: dict[str, Any]
) -> None:
    theirs, model = both(wrapper, layers)
    x, extra = ids(2, 9), vectors(2, 4, wrapper.get("emb_dim", 32))
    for given in ({}, {"excise_prepend_embeds": True}):
        close(model(x, prepend_embeds=extra, **given), theirs(x, prepend_embeds=extra, **given))
    close(model(None, prepend_embeds=extra), theirs(None, prepend_embeds=extra))


@pytest.mark.parametrize("causal", [True, False])
def test_prepended_padding_is_not_read(causal: bool) -> None:
    model, x, extra = (
        ours({}, {"alibi_pos_bias": True}, causal=causal),
        ids(2, 9),
        vectors(2, 4, 32),
    )
    real = torch.tensor([[False, False, True, True]]).expand(2, -1)
    got = model(x, prepend_embeds=extra, prepend_mask=real)[:, 2:]
    close(got, model(x, prepend_embeds=extra[:, 2:]))


def test_left_padding_shifts_absolute_positions() -> None:
    for wrapper in ({}, {"scaled_sinu_pos_emb": True}):
        model, x = ours(wrapper), ids(2, 9)
        got = model(x, seq_start_pos=torch.tensor([3, 0]))
        close(got[:1, 3:], model(x[:1, 3:]))
        close(got[1:], model(x[1:]))
    theirs, model = both({})
    start = torch.tensor([3, 0])
    got, want = model(x, seq_start_pos=start), theirs(x, seq_start_pos=start)
    close(got[0, 3:], want[0, 3:])


def test_floating_positions_replace_the_models_own() -> None:
    theirs, model = both({})
    x, pos = ids(2, 9), vectors(2, 9, 32)
    close(model(x, pos=pos), theirs(x, pos=pos))


def test_a_share_of_the_gradient_reaches_the_embedding_alone() -> None:
    full, part = ours({}), ours({"emb_frac_gradient": 0.1})
    for model in (full, part):
        model(ids(2, 9)).square().mean().backward()
    grads = [model.token_embedding.weight.grad for model in (full, part)]
    close(grads[1], 0.1 * grads[0])
    close(part.head.weight.grad, full.head.weight.grad)


def test_unit_vectors_have_length_one_and_turn_under_any_weight() -> None:
    model = ours({"l2norm_embed": True})
    close(model.token_embedding(ids(2, 5)).norm(dim=-1), torch.ones(2, 5))
    assert build_model(model.config).token_embedding.weight.std() < 1e-4


def test_the_deep_embedding_works_beside_other_tokens() -> None:
    wrapper = {"ff_deep_embed": True, "num_memory_tokens": 2}
    model, x, extra = ours(wrapper), ids(2, 9), vectors(2, 3, 32)
    assert model(x, prepend_embeds=extra).shape == (2, 12, 40)
    plain = ours({"num_memory_tokens": 2})
    with torch.no_grad():
        model.deep_embedding.weight.fill_(1.0)
    plain.load_state_dict(model.state_dict(), strict=False)
    close(model(x, prepend_embeds=extra), plain(x, prepend_embeds=extra))


def test_the_deep_embedding_refuses_another_number_of_feed_forwards() -> None:
    with pytest.raises(ConfigError, match="runs 4; leave out ff_deep_embed"):
        ours({"ff_deep_embed": True}, {"macaron": True})


class Doubling(nn.Module):
    """A token embedding that takes an argument."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 32)

    def forward(self, x: torch.Tensor, factor: float = 1.0) -> torch.Tensor:
        return self.table(x) * factor


def test_modules_of_the_callers_take_their_arguments_and_have_no_config_to_build() -> None:
    model = TransformerWrapper(
        **WRAPPER, attn_layers=Decoder(**LAYERS), token_emb=Doubling(), to_logits=nn.Linear(32, 7)
    )
    x = ids(2, 5)
    assert model(x).shape == (2, 5, 7)
    twice = model(x, token_emb_kwargs={"factor": 2.0})
    assert (twice - model(x)).abs().max() > 1e-4
    with pytest.raises(ConfigError, match="can't be built from a config"):
        build_model(model.config)
    with pytest.raises(ConfigError, match="given embedding and tied embedding can't be combined"):
        TransformerWrapper(
            **WRAPPER, attn_layers=Decoder(**LAYERS), token_emb=Doubling(), tie_embedding=True
        )


def test_a_tied_head_refuses_what_it_can_not_be() -> None:
    for wrapper, name in (
        ({"emb_dim": 16}, "embedding width"),
        ({"logits_dim": 9}, "number of logits"),
        ({"num_output_heads": 2}, "several heads"),
    ):
        with pytest.raises(ConfigError, match=f"{name} and tied embedding can't be combined"):
            ours({"tie_embedding": True, **wrapper})
