"""The terms of the next-token loss, against formulas and x-transformers with the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import x_transformers as xt
from nets import VOCABULARY, make_net, some_ids

from xtdist.model import Decoder, TransformerWrapper
from xtdist.model.compat_weights import from_x_transformers
from xtdist.objective import AutoregressiveWrapper

LAYERS: dict[str, Any] = {"dim": 32, "depth": 2, "heads": 4, "attn_dim_head": 8}
SIZES: dict[str, Any] = {"num_tokens": VOCABULARY, "max_seq_len": 16}
LOOPED = {"looped": True, "max_looped_steps": 3}


def both(
    wrapper: dict[str, Any] | None = None, layers: dict[str, Any] | None = None
) -> tuple[TransformerWrapper, Any]:
    """Our network and theirs with the same weights, far enough from their start values."""
    torch.manual_seed(3)
    settings, stack = {**SIZES, **(wrapper or {})}, {**LAYERS, **(layers or {})}
    theirs = xt.TransformerWrapper(**settings, attn_layers=xt.Decoder(**stack))
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    ours = TransformerWrapper(**settings, attn_layers=Decoder(**stack))
    ours.load_state_dict(from_x_transformers(theirs.state_dict(), ours.config))
    return ours, theirs


@pytest.mark.parametrize("lens", [None, torch.tensor([12, 5, 2])])
@pytest.mark.parametrize("prepended", [0, 3])
def test_losses_and_outputs_equal_those_of_x_transformers(lens: Any, prepended: int) -> None:
    ours, theirs = both()
    x, more = some_ids(3, 12), {}
    if prepended:
        more["prepend_embeds"] = torch.randn(3, prepended, 32)
    want, (their_logits, _) = xt.AutoregressiveWrapper(theirs)(
        x, return_outputs=True, lens=lens, **more
    )
    wrapper = AutoregressiveWrapper(ours)
    torch.testing.assert_close(wrapper(x, lens=lens, **more), want, atol=1e-5, rtol=1e-5)
    got, (logits, found) = wrapper(x, return_outputs=True, lens=lens, **more)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    real = torch.arange(11) < (torch.full((3,), 11) if lens is None else lens)[:, None]
    torch.testing.assert_close(logits[real], their_logits[real], atol=1e-4, rtol=1e-4)
    assert logits.shape == (3, 11, VOCABULARY)
    assert found.logits is logits


def test_what_is_returned_goes_on_from_where_it_was() -> None:
    net, x = make_net(causal=True).eval(), some_ids(2, 9)
    _, (_, found) = AutoregressiveWrapper(net)(x[:, :8], return_outputs=True)
    again = net(x[:, :8], cache=found, return_intermediates=True)[0]
    torch.testing.assert_close(again[:, -1], net(x[:, :8])[:, -1])


@pytest.mark.parametrize("prepended", [0, 2])
@pytest.mark.parametrize("emb_dim", [32, 16])
def test_the_next_embedding_loss_is_theirs_over_targets_with_an_embedding(
    prepended: int, emb_dim: int
) -> None:
    """Theirs has an embedding of the last token too; and fails with prepended vectors (A4)."""
    keywords = {"add_continuous_pred_head": True}
    ours, theirs = both(keywords)
    if emb_dim != 32:
        stack = Decoder(**LAYERS)
        ours = TransformerWrapper(**SIZES, **keywords, emb_dim=emb_dim, attn_layers=stack)
    x, more = some_ids(3, 10), {}
    if prepended:
        more["prepend_embeds"] = torch.randn(3, prepended, emb_dim)
    x[1, 6:] = -100
    parts = [AutoregressiveWrapper(ours, next_embed_loss_weight=w)(x, **more) for w in (0.0, 0.7)]
    out = ours.run(x[:, :-1].clamp(min=0), **more)
    hidden, initial = out.hidden[:, prepended:], out.initial[:, prepended:]
    assert ours.next_embedding is not None
    error = (ours.next_embedding(hidden[:, :-1]) - initial[:, 1:]).abs()[x[:, 1:-1] != -100].mean()
    torch.testing.assert_close(parts[1] - parts[0], 0.7 * error)
    if emb_dim == 32 and not prepended:
        without_last = x[:, :-1]
        their = [
            xt.AutoregressiveWrapper(theirs, next_embed_loss_weight=w)(without_last)
            for w in (0.0, 0.7)
        ]
        torch.testing.assert_close(parts[1] - parts[0], their[1] - their[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("flash", [False, True])
def test_the_z_loss_squares_each_layers_log_partition(flash: bool) -> None:
    """A2, A3, A9."""
    stack = Decoder(**LAYERS, attn_flash=flash)
    net = TransformerWrapper(**SIZES, attn_layers=stack, attn_z_loss_weight=0.5)
    x = some_ids(3, 9)
    plain = AutoregressiveWrapper(net)(x)
    wrapper = AutoregressiveWrapper(net, add_attn_z_loss=True)
    _, found = net.eval()(x[:, :-1], return_attn=True, return_intermediates=True)
    net.train()
    want = sum(
        layer.pre_softmax_attn.logsumexp(dim=-1).square().sum(dim=1).mean()
        for layer in found.attn_intermediates
    )
    loss, (_, kept) = wrapper(x, return_outputs=True)
    torch.testing.assert_close(loss, plain + 0.5 * want)
    torch.testing.assert_close(kept.attn_z_loss, 0.5 * want)
    torch.testing.assert_close(wrapper(x), loss)
    torch.testing.assert_close(wrapper.eval()(x), plain)


def looped_pair() -> tuple[TransformerWrapper, Any]:
    return both(LOOPED, {"pre_and_post_norm": True})


@pytest.mark.parametrize("prepended", [0, 2])
def test_looped_losses_equal_those_of_x_transformers(prepended: int) -> None:
    """Theirs divides the expected loss by the number of passes, and fails with prepended vectors
    (A4): compare with the vectors' rows cut from the same formula."""
    ours, theirs = looped_pair()
    x, more = some_ids(3, 10), {}
    x[1, 6:] = -100
    if prepended:
        more["prepend_embeds"] = torch.randn(3, prepended, 32)
    settings = {"looped_loss_threshold_exit": 0.01, "looped_loss_slope": 20}
    got = [
        AutoregressiveWrapper(ours, **settings, looped_exit_loss_weight=w)(x, **more)
        for w in (0.0, 2.0)
    ]
    if not prepended:
        want = [
            xt.AutoregressiveWrapper(theirs, **settings, looped_exit_loss_weight=w)(x)
            for w in (0.0, 2.0)
        ]
        torch.testing.assert_close(got[0], want[0] * 3, atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(got[1] - got[0], want[1] - want[0], atol=1e-4, rtol=1e-4)
    out = ours.run(x[:, :-1].clamp(min=0), **more)
    total, count, rest = 0.0, 0, torch.ones(3, 9)
    for i, (hidden, gate) in enumerate(zip(out.pass_hiddens, out.exit_logits, strict=True)):
        logits, leaves = ours.to_logits(hidden[:, prepended:]), gate[:, prepended:, 0].sigmoid()
        share = rest if i == 2 else rest * leaves
        rest = rest * (1 - leaves)
        each = F.cross_entropy(logits.transpose(1, 2), x[:, 1:], reduction="none")
        total, count = total + (each * share).sum(), (x[:, 1:] != -100).sum()
    torch.testing.assert_close(got[0], total / count)


def test_a_looped_model_is_judged_by_what_it_predicts() -> None:
    ours, _ = looped_pair()
    wrapper, x = AutoregressiveWrapper(ours).eval(), some_ids(3, 10)
    want = F.cross_entropy(ours(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())
    torch.testing.assert_close(wrapper(x), want)


def test_one_pass_has_no_gate_to_train() -> None:
    ours, _ = both({"looped": True, "max_looped_steps": 1}, {"pre_and_post_norm": True})
    loss = AutoregressiveWrapper(ours)(some_ids(3, 10))
    loss.backward()
    assert loss.isfinite()


TERMS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}, {}),
    "smoothed": ({}, {}, {"label_smoothing": 0.1}),
    "hidden": ({}, {}, {"mask_prob": 0.3, "mask_token_prob": 0.3, "mask_id": 19}),
    "z": ({}, {}, {"add_attn_z_loss": True}),
    "next": ({"add_continuous_pred_head": True}, {}, {}),
    "looped": (LOOPED, {"pre_and_post_norm": True}, {}),
    "memories": ({"num_memory_tokens": 3}, {}, {"mask_prob": 0.3, "add_attn_z_loss": True}),
    "all": (
        {**LOOPED, "add_continuous_pred_head": True},
        {"pre_and_post_norm": True},
        {"label_smoothing": 0.1, "mask_prob": 0.3, "add_attn_z_loss": True},
    ),
}


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("ignored", [False, True])
def test_every_parameter_has_a_finite_gradient_also_where_nothing_counts(
    term: str, ignored: bool
) -> None:
    """A1"""
    wrapper_keywords, layer_keywords, keywords = TERMS[term]
    ours, _ = both(wrapper_keywords, layer_keywords)
    wrapper, x = AutoregressiveWrapper(ours, **keywords).train(), some_ids(3, 10)
    loss = wrapper(torch.full_like(x, -100) if ignored else x)
    loss.backward()
    assert loss.isfinite()
    for name, p in wrapper.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        assert not (ignored and p.grad.any()), name
    assert bool(loss == 0) == ignored


@pytest.mark.parametrize("term", TERMS)
def test_terms_of_micro_batches_of_one_size_add_up(term: str) -> None:
    wrapper_keywords, layer_keywords, keywords = TERMS[term]
    ours, _ = both(wrapper_keywords, layer_keywords)
    wrapper = AutoregressiveWrapper(ours, **keywords).train()
    prepared = wrapper.prepare(some_ids(4, 10), seed=1, sample_ids=torch.arange(4))
    whole = wrapper.losses(prepared)
    parts = [wrapper.losses(prepared[i : i + 2]) for i in (0, 2)]
    torch.testing.assert_close(sum(p.sum for p in parts), whole.sum)
    assert sum(p.weight for p in parts) == whole.weight == prepared.weight
    for name, value in whole.metrics.items():
        torch.testing.assert_close(sum(p.metrics[name] for p in parts), value, rtol=1e-4, atol=1e-4)
