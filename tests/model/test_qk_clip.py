"""QK-clip: every head's largest score becomes tau and no score grows, checked by the table of
scores itself and by hand on x-transformers' weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from xtdist.config import from_mapping, to_mapping
from xtdist.model import Decoder, Encoder, Layers, LayersConfig, TransformerWrapper
from xtdist.model.compat_weights import from_x_transformers
from xtdist.model.qk_clip import attn_qk_clip_, max_scores, watch_max_scores
from xtdist.model.stack import StackInputs, StackOutput

xt = pytest.importorskip("x_transformers")

STACK: dict[str, Any] = {"dim": 32, "depth": 2, "heads": 4, "attn_dim_head": 8}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rotary": {"rotary_pos_emb": True},
    "grouped keys": {"attn_kv_heads": 2, "rotary_pos_emb": True},
    "one key head": {"attn_one_kv_head": True},
    "cross": {"cross_attend": True, "attn_kv_heads": 2},
    "latent": {"attn_use_latent_kv": True, "attn_dim_latent_kv": 6},
    "latent with rotary heads": {
        "attn_use_latent_kv": True,
        "attn_dim_latent_kv": 6,
        "attn_use_latent_q": True,
        "attn_dim_latent_q": 6,
        "attn_latent_rope_subheads": 2,
        "rotary_pos_emb": True,
    },
    "memory keys": {"attn_num_mem_kv": 3},
    "normed keys": {"attn_k_rmsnorm": True},
    "sinks": {"attn_head_learned_sink": True, "attn_add_zero_kv": True},
    "shared layers": {"weight_tie_layers": True},
}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def perturb(module: nn.Module) -> None:
    """Far from the start values, so that heads differ."""
    for seed, weight in enumerate(module.parameters()):
        weight.add_(0.5 * noise(*weight.shape, seed=seed))


def stack_of(kind: str) -> Layers:
    torch.manual_seed(0)
    net = Decoder(**STACK, **KINDS[kind])
    perturb(net)
    return net.eval()


def inputs_of(net: Layers) -> dict[str, Tensor]:
    return {"context": noise(2, 5, 32, seed=3)} if net.config.cross_attention else {}


def seen(net: Layers, x: Tensor, **inputs: Tensor) -> StackOutput:
    return net(x, return_hiddens=True, **inputs)[1]


def first_of(out: StackOutput) -> Tensor:
    """The scores of the first attention, whose input does not depend on any."""
    return out.attentions[0].scores


@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_a_head_shrink_to_tau_and_others_stay(kind: str) -> None:
    net = stack_of(kind)
    x, inputs = noise(2, 9, 32, seed=9), inputs_of(net)
    before = first_of(seen(net, x, **inputs))
    before = before.detach()
    largest = before.amax(dim=(0, 2, 3))
    tau = float(largest.sort().values[1:3].mean())  # two heads are over it, two are not
    per_layer = [torch.full((4,), -1.0) for _ in max_scores(net, seen(net, x, **inputs))]
    per_layer[0] = largest
    attn_qk_clip_(net, per_layer, tau=tau)
    factor = (tau / largest).clamp(max=1.0)
    assert 0 < int((factor < 1).sum()) < 4
    want = before * factor[:, None, None]
    got = first_of(seen(net, x, **inputs))
    finite = want.isfinite()
    torch.testing.assert_close(got[finite], want[finite], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(got.amax(dim=(0, 2, 3)), largest.clamp(max=tau))


@pytest.mark.parametrize("kind", ["plain", "rotary"])
@pytest.mark.parametrize("tau", [0.5, 20.0])
def test_where_each_key_serves_one_head_both_weights_take_the_square_root(
    kind: str, tau: float
) -> None:
    """x-transformers' own rule scales columns, the input's channels, instead of a head's rows."""
    torch.manual_seed(0)
    theirs = xt.Decoder(**STACK, **KINDS[kind], verbose=False)
    perturb(theirs)
    ours = Decoder(**STACK, **KINDS[kind])
    state = {f"attn_layers.{name}": weight for name, weight in theirs.state_dict().items()}
    found = from_x_transformers(state, ours.config)
    ours.load_state_dict({name.removeprefix("layers."): w for name, w in found.items()})
    x = noise(2, 9, 32, seed=9)
    _, hidden = theirs(x, return_hiddens=True)
    with torch.no_grad():
        for layer, kept in zip((0, 2), hidden.attn_intermediates, strict=True):
            largest = kept.pre_softmax_attn.transpose(0, 1).flatten(1).max(dim=1).values
            rows = (tau / largest).clamp(max=1).sqrt().repeat_interleave(8)
            for linear in (theirs.layers[layer][1].to_q, theirs.layers[layer][1].to_k):
                linear.weight.copy_(torch.diag(rows) @ linear.weight)
    before = ours(x)
    attn_qk_clip_(ours, seen(ours, x), tau=tau)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(ours(x), before, atol=1e-3)


def test_query_heads_that_share_keys_do_not_pay_for_each_other() -> None:
    net = stack_of("one key head")
    weight = net.sublayers[0].branch.projection.weight
    old = weight.detach().clone()
    attn_qk_clip_(net, [torch.tensor([8.0, 0.5, 2.0, 1.0]), torch.zeros(4)], tau=1.0)
    q, k, v = weight.split((32, 8, 8))
    rows = torch.tensor([1 / 8, 1.0, 1 / 2, 1.0]).repeat_interleave(8)[:, None]
    torch.testing.assert_close(q, old[:32] * rows)
    assert torch.equal(torch.cat((k, v)), old[32:])
    attn_qk_clip_(net, [torch.tensor([4.0, 16.0, 4.0, 4.0]), torch.zeros(4)], tau=1.0)
    torch.testing.assert_close(weight[32:40], old[32:40] / 2)  # √(1/4): all of them shrink
    assert torch.equal(weight[40:], old[40:])


@pytest.mark.parametrize("kind", KINDS)
def test_watching_finds_the_largest_scores_of_several_passes(kind: str) -> None:
    net = stack_of(kind)
    inputs = inputs_of(net)
    batches = [noise(2, 9, 32, seed=seed) for seed in (1, 2)]
    each = [max_scores(net, seen(net, x, **inputs)) for x in batches]
    want = [torch.maximum(*pair) for pair in zip(*each, strict=True)]
    plain = [net(x, **inputs) for x in batches]
    with watch_max_scores(net) as watch:
        outs = [net(x, **inputs) for x in batches]
    for got, expected in zip(watch.per_layer(), want, strict=True):
        torch.testing.assert_close(got, expected)
    for got, expected in zip(outs, plain, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
    net(10 * batches[0], **inputs)  # nobody watches any more
    for got, expected in zip(watch.per_layer(), want, strict=True):
        torch.testing.assert_close(got, expected)


def test_a_wrapper_is_watched_and_clipped_as_its_layers_are() -> None:
    torch.manual_seed(0)
    net = TransformerWrapper(num_tokens=20, max_seq_len=16, attn_layers=Decoder(**STACK))
    perturb(net)
    ids = torch.arange(18).reshape(2, 9)
    with watch_max_scores(net) as watch:
        before = net(ids)
    largest = watch.per_layer()
    attn_qk_clip_(net, largest, tau=0.5 * float(largest[0].min()))
    assert not torch.allclose(net(ids), before, atol=1e-3)
    with watch_max_scores(net) as again:
        net(ids)
    torch.testing.assert_close(again.per_layer()[0], torch.full((4,), float(largest[0].min()) / 2))


def test_watching_keeps_no_table() -> None:
    net = stack_of("plain")
    with watch_max_scores(net) as watch:
        out = net.run(noise(2, 9, 32), StackInputs())
    assert out.attentions == ()
    assert [t.shape for t in watch.per_layer()] == [(4,), (4,)]
    with watch_max_scores(net):  # but what the caller asks for is there
        assert len(seen(net, noise(2, 9, 32)).attentions) == 2


def test_layers_that_run_several_times_are_clipped_by_their_largest_score() -> None:
    net = stack_of("shared layers")
    out = seen(net, noise(2, 9, 32))
    per_layer = max_scores(net, out)
    assert len(out.attentions) == 2
    assert len(per_layer) == 1
    want = torch.stack([a.scores.amax(dim=(0, 2, 3)) for a in out.attentions]).amax(dim=0)
    assert torch.equal(per_layer[0], want)


def test_nothing_changes_below_tau_or_where_an_attention_never_ran() -> None:
    net = stack_of("grouped keys")
    old = {name: weight.clone() for name, weight in net.state_dict().items()}
    with watch_max_scores(net) as watch:
        pass
    attn_qk_clip_(net, watch.per_layer(), tau=1.0)
    attn_qk_clip_(net, seen(net, noise(2, 9, 32)), tau=1e6)
    assert all(torch.equal(weight, old[name]) for name, weight in net.state_dict().items())


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"attn_qk_rmsnorm": True}, "qk_rmsnorm"),
        ({"attn_qk_norm": True}, "cosine"),
        ({"attn_l2_distance": True}, "l2"),
        ({"attn_softclamp_logits": True}, "softclamp"),
        ({"attn_pre_talking_heads": True}, "pre_talking_heads"),
        ({"attn_selective": True}, "selective"),
        ({"residual_attn": True}, "residual_attention"),
        ({"polar_pos_emb": True}, "polar"),
    ],
)
def test_options_for_which_it_has_no_meaning_are_refused(
    options: dict[str, Any], name: str
) -> None:
    net = Decoder(**STACK, **options)
    old = net.sublayers[0].branch.projection.weight.clone()
    with pytest.raises(ValueError, match=name):
        attn_qk_clip_(net, [torch.full((4,), 200.0)] * 2)
    assert torch.equal(net.sublayers[0].branch.projection.weight, old)


def test_contextual_positions_are_refused() -> None:
    tree = to_mapping(Decoder(**STACK, disable_abs_pos_emb=True).config)
    tree["attention"]["cope"] = {}
    with pytest.raises(ValueError, match="cope"):
        attn_qk_clip_(Layers(from_mapping(LayersConfig, tree)), [torch.zeros(4)] * 2)


def test_wrong_scores_and_models_are_named() -> None:
    net = Encoder(**STACK)
    with pytest.raises(ValueError, match="of 1 attentions; the model has 2"):
        attn_qk_clip_(net, [torch.zeros(4)])
    with pytest.raises(ValueError, match=r"give \(4,\)"):
        attn_qk_clip_(net, [torch.zeros(4), torch.zeros(3)])
    with pytest.raises(ValueError, match="holds 0 attentions"):
        attn_qk_clip_(net, net.run(noise(2, 9, 32), StackInputs()))
    with pytest.raises(ValueError, match="tau: got 0"):
        attn_qk_clip_(net, [torch.zeros(4)] * 2, tau=0)
    with pytest.raises(ValueError, match="model: got Linear"):
        attn_qk_clip_(nn.Linear(2, 2), [])


def test_as_a_method_it_takes_the_intermediates_of_a_wrapper_and_of_layers() -> None:
    net = TransformerWrapper(num_tokens=20, max_seq_len=16, attn_layers=Decoder(**STACK))
    perturb(net)
    net.eval()
    x = torch.arange(12).view(2, 6)
    want = {"return_intermediates": True, "return_attn": True}
    out = net(x, **want)[1]
    table = out.attn_intermediates[0].pre_softmax_attn
    before = table.amax(dim=(0, 2, 3))
    limit = before.median().item()
    net.attn_qk_clip_(out, tau=limit)
    again = net(x, **want)[1].attn_intermediates[0].pre_softmax_attn.amax(dim=(0, 2, 3))
    assert (before > limit).any()
    torch.testing.assert_close(again, before.clamp(max=limit), atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="return_attn=True"):
        net.attn_qk_clip_(net(x, return_intermediates=True)[1])

    twin = stack_of("plain")
    vectors = noise(2, 6, 32)
    lowest = first_of(seen(twin, vectors)).amax(dim=(0, 2, 3)).min().item()
    twin.attn_qk_clip_(seen(twin, vectors), tau=lowest)
    clipped = first_of(seen(twin, vectors)).amax(dim=(0, 2, 3))
    torch.testing.assert_close(clipped, torch.full((4,), lowest))
