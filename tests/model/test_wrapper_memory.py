"""Memory tokens and memories of earlier segments."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from option_grid import LENGTH, ids
from wrapper_pairs import both, close, ours, vectors

from xtdist.config import ConfigError

pytest.importorskip("x_transformers")

EVERY = {"num_memory_tokens": 2, "memory_tokens_interspersed_every": 5}
XL = pytest.mark.parametrize(
    "layers", [{"rotary_pos_emb": True}, {"alibi_pos_bias": True}, {"rel_pos_bias": True}], ids=str
)


@pytest.mark.parametrize("causal", [True, False])
def test_memory_tokens_under_a_padding_mask_are_x_transformers_own(causal: bool) -> None:
    theirs, model = both({"num_memory_tokens": 3}, {"rotary_pos_emb": True}, causal=causal)
    x, mask = ids(2, LENGTH), torch.arange(LENGTH) < torch.tensor([[LENGTH], [9]])
    got, inter = model(x, mask=mask, return_intermediates=True)
    want, theirs_inter = theirs(x, mask=mask, return_intermediates=True)
    close(got[mask], want[mask])
    close(inter.memory_tokens, theirs_inter.memory_tokens)


def test_interspersed_memory_works_with_masks_and_prepended_vectors() -> None:
    model, x = ours(EVERY, {"rotary_pos_emb": True}), ids(2, 12)
    mask = torch.arange(12) < torch.tensor([[12], [9]])
    got = model(x, mask=mask)
    close(got[1, :9], model(x[1:, :9])[0])
    theirs, model = both(EVERY)
    close(model(x), theirs(x))
    extra = vectors(2, 3, 32)
    out = model(x, prepend_embeds=extra)
    assert out.shape == (2, 15, 40)
    close(out[:, :8], model(x[:, :5], prepend_embeds=extra))


def test_who_may_be_read_is_said_for_tokens_alone() -> None:
    x, keys = ids(2, 9), torch.ones(2, 9, dtype=torch.bool)
    keys[:, 4] = False
    other = x.clone()
    other[:, 4] = (x[:, 4] + 1) % 40
    ways: list[dict[str, Any]] = [
        {"self_attn_kv_mask": keys},
        {"attn_mask": keys[:1].expand(9, 9)},
        {"attn_bias": torch.where(keys[:1], 0.0, -1e9).expand(1, 1, 9, 9)},
    ]
    for wrapper in ({"num_memory_tokens": 2}, EVERY, {}):
        model = ours(wrapper)
        for given in ways[:1] if wrapper is EVERY else ways:  # memories in between read all tokens
            inputs: dict[str, Any] = {**given, "prepend_embeds": vectors(2, 3, 32)}
            a, b = model(x, **inputs), model(other, **inputs)
            close(a[:, 8:], b[:, 8:])
            assert (a[:, 7] - b[:, 7]).abs().max() > 1e-3


def test_documents_share_memory_tokens_and_nothing_else() -> None:
    model, x = ours({"num_memory_tokens": 2}, {"rotary_pos_emb": True}), ids(1, 12)
    documents = (torch.arange(12) >= 5).long()[None]
    pos = torch.cat((torch.arange(5), torch.arange(7)))
    got = model(x, documents=documents, pos=pos)
    close(got[:, :5], model(x[:, :5]))
    close(got[:, 5:], model(x[:, 5:]))
    with pytest.raises(ValueError, match="would carry what is in one document to others"):
        ours(EVERY)(x, documents=documents)


def test_interspersed_memory_is_for_causal_stacks() -> None:
    with pytest.raises(ConfigError, match="interspersed memory tokens is defined for a causal"):
        ours(EVERY, causal=False)


@XL
@pytest.mark.parametrize("wrapper", [{}, {"shift_mem_down": 1}], ids=str)
def test_memories_are_x_transformers_own(wrapper: dict[str, Any], layers: dict[str, Any]) -> None:
    theirs, model = both({"max_mem_len": 6, "use_abs_pos_emb": False, **wrapper}, layers)
    mems = theirs_mems = None
    for seed in range(3):
        x = ids(2, 8, seed=seed)
        got, mems = model(x, mems=mems, return_mems=True)
        want, theirs_mems = theirs(x, mems=theirs_mems, return_mems=True)
        close(got, want)
        close(mems, theirs_mems)
        assert not mems[0].requires_grad


def test_no_memory_is_kept_by_default_and_an_empty_one_changes_nothing() -> None:
    model, x = ours({}), ids(2, 8)
    got, mems = model(x, return_mems=True)
    assert [tuple(mem.shape) for mem in mems] == [(2, 0, 32)] * 2
    assert torch.equal(model(x, mems=mems), got)


def test_memories_keep_the_gradient_where_asked_and_are_not_attention_maps() -> None:
    model = ours({"max_mem_len": 4}, {"attn_flash": True}).train()
    _, mems = model(ids(2, 8), return_mems=True, detach_mems=False)
    model(ids(2, 8), mems=mems)[:, -1].sum().backward()
    assert mems[1].requires_grad


def test_memories_that_do_not_fit_are_one_clear_error() -> None:
    model = ours({"max_mem_len": 4})
    with pytest.raises(ValueError, match="one for each of 2 self attentions"):
        model(ids(2, 8), mems=[vectors(2, 4, 32)])
    with pytest.raises(ValueError, match=r"give \(b, m, 32\)"):
        model(ids(2, 8), mems=[vectors(2, 4, 16)] * 2)
