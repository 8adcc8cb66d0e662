"""A stack by itself, on vectors: what its forward pass can be given, against x-transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from xtdist.model import CrossAttender, Decoder, Encoder, PrefixDecoder, TransformerWrapper
from xtdist.model.compat_weights import from_x_transformers

xt = pytest.importorskip("x_transformers")

SIZE: dict[str, Any] = {"dim": 32, "depth": 3, "heads": 4, "attn_dim_head": 16}
N = 10
STACKS = {c.__name__: c for c in (Decoder, Encoder, PrefixDecoder, CrossAttender)}


def both(kind: str, **options: Any) -> tuple[Any, Any]:
    """Their stack and ours with the same weights."""
    torch.manual_seed(0)
    names = {"num_tokens": 7, "max_seq_len": 16}
    stack = getattr(xt.x_transformers, kind)(**SIZE, **options, verbose=False)
    theirs = xt.TransformerWrapper(**names, attn_layers=stack)
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    ours = TransformerWrapper(**names, attn_layers=STACKS[kind](**SIZE, **options))
    ours.load_state_dict(from_x_transformers(theirs.state_dict(), ours.config))
    return theirs.attn_layers.eval(), ours.layers.eval()


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def bits(*shape: int, seed: int = 0) -> Tensor:
    """About two thirds True, the diagonal always."""
    made = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) > 0.33
    return made | torch.eye(shape[-2], shape[-1], dtype=torch.bool)


KEYS = [(draw(2, 4, 3, 16, seed=i), draw(2, 4, 3, 16, seed=i + 9)) for i in range(2)]
GIVEN: dict[str, dict[str, Any]] = {
    "nothing": {},
    "attention mask (i j)": {"attn_mask": bits(N, N)},
    "attention mask (h i j)": {"attn_mask": bits(4, N, N)},
    "attention mask (b h i j)": {"attn_mask": bits(2, 4, N, N)},
    "attention bias": {"attn_bias": draw(1, 4, N, N)},
    "keys to leave out": {"self_attn_kv_mask": bits(2, N)[:, None][:, 0]},
    "a condition in attention": {"in_attn_cond": draw(2, 32)},
    "a condition for each token": {"in_attn_cond": draw(2, N, 32)},
    "another order": {"layers_execute_order": (0, 1, 4, 5, 2, 3)},
    "a block run twice": {"repeat_blocks": (1, 2)},
    "blocks run again": {"repeat_blocks": (((0, 1), 2), (2, 3))},
    "keys and values for the last layers": {"self_attn_additional_kv": KEYS},
    "keys and values with a mask": {
        "self_attn_additional_kv": KEYS,
        "additional_kv_mask": torch.tensor([[True, True, False], [True, True, True]]),
    },
}


@pytest.mark.parametrize(
    "options", [{}, {"rotary_pos_emb": True}, {"alibi_pos_bias": True}], ids=str
)
@pytest.mark.parametrize("name", GIVEN)
@pytest.mark.parametrize("kind", ["Decoder", "Encoder"])
def test_what_a_stack_is_given_does_what_it_does_there(
    kind: str, name: str, options: dict[str, Any]
) -> None:
    given = GIVEN[name]
    if options.get("alibi_pos_bias") and (
        "attn_bias" in given or "self_attn_additional_kv" in given
    ):
        pytest.skip("x-transformers takes one bias, and pads none for added keys")
    theirs, ours = both(kind, **options)
    x = draw(2, N, 32)
    torch.testing.assert_close(ours(x, **given), theirs(x, **given), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("options", [{}, {"rotary_pos_emb": True}], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_memories_stand_before_the_tokens(options: dict[str, Any], masked: bool) -> None:
    theirs, ours = both("Decoder", **options)
    x, mems = draw(2, N, 32), [draw(2, 4, 32, seed=i) for i in range(3)]
    given: dict[str, Any] = {"mems": mems}
    if masked:
        given["mem_masks"] = [torch.tensor([[False, True, True, True], [True] * 4])] * 3
    torch.testing.assert_close(ours(x, **given), theirs(x, **given), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("options", [{}, {"rotary_pos_emb": True}, {"rel_pos_bias": True}], ids=str)
def test_a_prefix_sees_itself_and_the_rest_its_past(options: dict[str, Any]) -> None:
    theirs, ours = both("PrefixDecoder", **options)
    x = draw(2, N, 32)
    for prefix in (None, 4, torch.tensor([0, 7])):
        got, want = ours(x, prefix_attn_len=prefix), theirs(x, prefix_attn_len=prefix)
        torch.testing.assert_close(got, want, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["CrossAttender", "Decoder", "Encoder"])
@pytest.mark.parametrize("options", [{}, {"cross_attn_dim_context": 24}], ids=str)
def test_cross_attention_reads_the_real_tokens_of_its_context(
    kind: str, options: dict[str, Any]
) -> None:
    crosses = {} if kind == "CrossAttender" else {"cross_attend": True}
    theirs, ours = both(kind, **crosses, **options)
    x, context = draw(2, N, 32), draw(2, 6, options.get("cross_attn_dim_context", 32), seed=5)
    mask = torch.arange(6) < torch.tensor([[6], [3]])
    for given in ({}, {"context_mask": mask}):
        got, want = ours(x, context=context, **given), theirs(x, context=context, **given)
        torch.testing.assert_close(got, want, atol=2e-4, rtol=1e-4)
    changed = context.clone()
    changed[1, 3:] += 1
    got = ours(x, context=changed, context_mask=mask)
    assert torch.equal(got, ours(x, context=context, context_mask=mask))


def test_positions_of_a_context_rotate_its_keys() -> None:
    theirs, ours = both("Decoder", cross_attend=True, rotary_pos_emb=True)
    x, context = draw(2, N, 32), draw(2, 6, 32, seed=5)
    given = {"context": context, "pos": torch.arange(N) + 3, "context_pos": torch.arange(6) * 2}
    torch.testing.assert_close(ours(x, **given), theirs(x, **given), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["use_adaptive_layernorm", "use_adaptive_rmsnorm"])
def test_a_condition_sets_the_gains(name: str) -> None:
    options = {name: True, "use_adaptive_layerscale": True, "dim_condition": 12}
    theirs, ours = both("Encoder", **options, adaptive_condition_mlp=True)
    x = draw(2, N, 32)
    for condition in (draw(2, 12), draw(2, N, 12)):
        got, want = ours(x, condition=condition), theirs(x, condition=condition)
        torch.testing.assert_close(got, want, atol=2e-4, rtol=1e-4)


def test_hidden_states_on_the_way_are_those_of_x_transformers() -> None:
    theirs, ours = both("Decoder", rotary_pos_emb=True)
    x = draw(2, N, 32)
    (got, on_our_way), (want, on_their_way) = (m(x, return_hiddens=True) for m in (ours, theirs))
    torch.testing.assert_close(got, want, atol=2e-4, rtol=1e-4)
    for mine, other in zip(on_our_way.hiddens, on_their_way.hiddens, strict=True):
        torch.testing.assert_close(mine, other, atol=2e-4, rtol=1e-4)
    for mine, other in zip(on_our_way.attentions, on_their_way.attn_intermediates, strict=True):
        torch.testing.assert_close(mine.weights, other.post_softmax_attn, atol=2e-4, rtol=1e-4)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "float mask": ({"attn_mask": torch.ones(N, N)}, "attn_mask: got torch.float32"),
    "mask shape": ({"attn_mask": bits(N, N + 1)}, r"attn_mask: got \(10, 11\)"),
    "bias shape": ({"attn_bias": draw(N, N)}, "attn_bias: got"),
    "a context": ({"context": draw(2, 3, 32)}, "without cross attention"),
    "a condition": ({"condition": draw(2, 32)}, "without adaptive"),
    "a prefix": ({"prefix_attn_len": 3}, "only a PrefixDecoder"),
    "no such sublayer": ({"layers_execute_order": (0, 9)}, "there are 6 sublayers"),
    "no such block": ({"repeat_blocks": (5, 2)}, "3 blocks"),
    "documents as floats": ({"documents": draw(2, N)}, "documents: got"),
    "documents with memories": (
        {"documents": torch.zeros(2, N, dtype=torch.long), "mems": [draw(2, 4, 32)] * 3},
        "belong to no document",
    ),
    "vectors of another width": ({"x": draw(2, N, 31)}, r"vectors \(b, n, 32\)"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_a_stack_can_not_take_is_one_clear_error(name: str) -> None:
    given, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        Decoder(**SIZE)(**{"x": draw(2, N, 32), **given})


def test_an_unknown_input_is_named_with_what_is_known() -> None:
    with pytest.raises(TypeError, match=r"unknown keyword 'masks'.*mask"):
        Decoder(**SIZE)(draw(2, N, 32), masks=None)


def test_cross_attention_without_a_context_and_adaptive_norms_without_a_condition_say_so() -> None:
    with pytest.raises(ValueError, match="context: missing"):
        Decoder(**SIZE, cross_attend=True)(draw(2, N, 32))
    with pytest.raises(ValueError, match="condition: missing"):
        Decoder(**SIZE, use_adaptive_rmsnorm=True)(draw(2, N, 32))
