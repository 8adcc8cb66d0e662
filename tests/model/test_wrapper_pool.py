"""Attention pooling inside a model: against x-transformers, and where that one fails."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from option_grid import LAYERS, WRAPPER, ids
from wrapper_pairs import both, close, ours, vectors

from xtdist.config import ConfigError
from xtdist.model import Encoder, TransformerWrapper, build_model
from xtdist.model.compat_back import keywords_of
from xtdist.model.compat_weights import to_x_transformers
from xtdist.objective import AutoregressiveWrapper, NonAutoregressiveWrapper

pytest.importorskip("x_transformers")

KINDS: dict[str, dict[str, Any]] = {
    "one token": {"attn_pool": True},
    "another width": {"attn_pool": True, "num_pooled_tokens": 3, "dim_pooled_tokens": 24},
    "blocks": {"attn_pool": True, "num_pooled_tokens": 2, "attn_pool_depth": 2},
    "wide blocks": {"attn_pool": True, "attn_pool_depth": 3, "dim_pooled_tokens": 24},
}
ALL = {"return_intermediates": True}
REAL = torch.arange(9) < torch.tensor([[9], [4]])
kinds = pytest.mark.parametrize("kind", KINDS)


@kinds
@pytest.mark.parametrize("layers", [{}, {"attn_kv_heads": 2, "use_rmsnorm": True}], ids=str)
def test_an_encoder_gives_what_its_queries_read(kind: str, layers: dict[str, Any]) -> None:
    theirs, model = both(KINDS[kind], layers, causal=False)
    x = ids(2, 9)
    for mask in (None, REAL):
        close(model(x, mask=mask), theirs(x, mask=mask))
        got, found = model(x, mask=mask, **ALL)
        want, there = theirs(x, mask=mask, **ALL)
        close(got, want)
        close(found.attn_pooled_tokens, there.attn_pooled_tokens)
        real = torch.ones(2, 9, dtype=torch.bool) if mask is None else mask
        close(found.logits[real], there.logits[real])
    close(model(x, return_embeddings=True), theirs(x, return_embeddings=True))
    close(
        tuple(model(x, return_logits_and_embeddings=True)),
        theirs(x, return_logits_and_embeddings=True),
    )


@kinds
def test_a_decoder_gives_logits_and_the_pooled_tokens_beside_them(kind: str) -> None:
    theirs, model = both(KINDS[kind])
    x = ids(2, 9)
    close(model(x), theirs(x))
    got, found = model(x, **ALL)
    want, there = theirs(x, **ALL)
    close(got, want)
    close(found.attn_pooled_tokens, there.attn_pooled_tokens)


@kinds
@pytest.mark.parametrize("causal", [True, False])
def test_the_weights_and_keywords_go_back(kind: str, causal: bool) -> None:
    theirs, model = both(KINDS[kind], causal=causal)
    state, want = to_x_transformers(model.state_dict(), model.config), theirs.state_dict()
    assert state.keys() == want.keys()
    assert all(torch.allclose(state[name], want[name], rtol=1e-6, atol=0.0) for name in want)
    assert keywords_of(model.config)[1] == {**WRAPPER, **KINDS[kind]}
    again = build_model(model.config)
    again.load_state_dict(pickle.loads(pickle.dumps(model)).state_dict())


@kinds
@pytest.mark.parametrize("beside", [{}, {"num_memory_tokens": 2}], ids=str)
def test_masks_work_beside_memory_and_prepended_tokens(kind: str, beside: dict[str, Any]) -> None:
    """x-transformers fails on a mask with memory tokens."""
    model = ours({**KINDS[kind], **beside}, {"rotary_pos_emb": True}, causal=False)
    x, extra = ids(2, 9), vectors(2, 3, 32)
    got = model(x, mask=REAL)
    close(got[1:], model(x[1:, :4]))
    close(got[:1], model(x[:1]))
    got = model(x, mask=REAL, prepend_embeds=extra)
    close(got[1:], model(x[1:, :4], prepend_embeds=extra[1:]))
    assert not torch.allclose(got, model(x, mask=REAL), atol=1e-3)


def test_the_queries_read_the_final_hidden_states() -> None:
    model, x = ours(KINDS["blocks"], causal=False), ids(2, 9)
    close(model(x), model.attention_pool(model(x, return_embeddings=True)))


def test_a_decoder_with_a_cache_pools_only_where_no_token_is_missing() -> None:
    model, x = ours(KINDS["one token"]), ids(2, 9)
    want, whole = model(x, **ALL)
    _, first = model(x[:, :6], **ALL)
    got, later = model(x, cache=first, **ALL)
    close(got, want[:, 6:])
    close(first.attn_pooled_tokens, model(x[:, :6], **ALL)[1].attn_pooled_tokens)
    assert whole.attn_pooled_tokens is not None
    assert later.attn_pooled_tokens is None


@kinds
@pytest.mark.parametrize(
    "more", [{}, {"mixture_of_softmax": True}, {"num_output_heads": 2}], ids=str
)
def test_every_parameter_gets_a_gradient_whichever_output_is_trained(
    kind: str, more: dict[str, Any]
) -> None:
    for causal in (True, False):
        model = ours({**KINDS[kind], **more}, causal=causal).train()
        out = model(ids(2, 9))
        sum(part.square().mean() for part in (out if isinstance(out, tuple) else (out,))).backward()
        for name, weight in model.named_parameters():
            assert weight.grad is not None, name
            assert weight.grad.isfinite().all(), name
        if not causal:
            pool = dict(model.attention_pool.named_parameters())
            assert all(w.grad.abs().sum() > 0 for w in pool.values())


def test_the_objectives_train_the_tokens_beside_a_pool() -> None:
    x = ids(2, 9)
    for wrapper, causal in ((AutoregressiveWrapper, True), (NonAutoregressiveWrapper, False)):
        more = {} if causal else {"mask_id": 39}
        plain, pooled = ours({}, causal=causal), ours(KINDS["one token"], causal=causal)
        pooled.load_state_dict(plain.state_dict(), strict=False)
        losses = []
        for net in (plain, pooled):
            objective = wrapper(net, **more)
            prepared = objective.prepare(x, seed=0, sample_ids=torch.arange(2))
            losses.append(objective.losses(prepared).mean)
        close(losses[1], losses[0])


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(ConfigError, match="both choose pool; leave out one"):
        TransformerWrapper(
            **WRAPPER, attn_layers=Encoder(**LAYERS), attn_pool=True, use_cls_token=True
        )
    with pytest.raises(ConfigError, match="num_pooled_tokens=2 has no effect without attn_pool"):
        ours({"num_pooled_tokens": 2})
    model = ours({"attn_pool": True}, causal=False)
    with pytest.raises(ValueError, match="logit_rows: the output is one for the whole sequence"):
        model(ids(2, 9), logit_rows=torch.tensor([0]))
    with pytest.raises(ValueError, match=r"documents: can't be kept apart .*attention pooling"):
        model(ids(2, 9), documents=torch.zeros(2, 9, dtype=torch.long))


@pytest.mark.parametrize("name", ["transform_token_embeds", "transform_block_inputs", "cache_age"])
def test_arguments_of_forward_that_are_left_out_say_why(name: str) -> None:
    with pytest.raises(TypeError, match=f"leaves out '{name}': .{{20}}"):
        ours({})(ids(2, 9), **{name: 1})
