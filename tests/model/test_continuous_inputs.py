"""What is given to a net on vectors: packed documents, and one clear error for what can't be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from xtdist.model import (
    ContinuousTransformerWrapper,
    Decoder,
    Encoder,
    TransformerWrapper,
)

STACK: dict[str, Any] = {"dim": 32, "depth": 2, "heads": 4, "attn_dim_head": 8}
N = 16


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def perturbed(net: Any) -> Any:
    with torch.no_grad():
        for seed, weight in enumerate(net.parameters()):
            weight.add_(0.1 * noise(*weight.shape, seed=seed))
    return net.eval()


def net_of(cls: Any = Decoder, *, stack: Any = None, **keywords: Any) -> Any:
    torch.manual_seed(0)
    layers = cls(**STACK, **(stack or {}))
    sizes = {"max_seq_len": 24, **keywords}
    return perturbed(ContinuousTransformerWrapper(attn_layers=layers, **sizes))


X = noise(2, N, 32, seed=1)
DOCUMENTS = torch.tensor([[0] * 7 + [1] * 9, [5] * 2 + [3] * 14])
SPANS = ((0, slice(0, 7)), (0, slice(7, 16)), (1, slice(0, 2)), (1, slice(2, 16)))


@pytest.mark.parametrize(
    ("keywords", "stack"),
    [
        ({}, {}),
        ({"scaled_sinu_pos_emb": True}, {}),
        ({"num_memory_tokens": 2}, {}),
        ({}, {"rotary_pos_emb": True}),
    ],
)
def test_each_packed_document_is_as_if_alone(
    keywords: dict[str, Any], stack: dict[str, Any]
) -> None:
    net = net_of(stack=stack, **keywords)
    got = net(X, documents=DOCUMENTS)
    for row, span in SPANS:
        want = net(X[row : row + 1, span])
        torch.testing.assert_close(got[row : row + 1, span], want, atol=1e-5, rtol=1e-4)


def models() -> dict[str, tuple[Any, Tensor]]:
    torch.manual_seed(0)
    tokens = perturbed(
        TransformerWrapper(num_tokens=40, max_seq_len=24, attn_layers=Decoder(**STACK))
    )
    return {"vectors": (net_of(), X), "tokens": (tokens, torch.arange(32).view(2, N))}


@pytest.mark.parametrize("kind", ["vectors", "tokens"])
def test_left_padding_moves_the_first_document_alone(kind: str) -> None:
    net, x = models()[kind]
    start = torch.tensor([4, 0])
    got = net(x, documents=DOCUMENTS, seq_start_pos=start)
    for row, span in ((0, slice(4, 7)), *SPANS[1:]):
        want = net(x[row : row + 1, span])
        torch.testing.assert_close(got[row : row + 1, span], want, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("stack", [{}, {"rotary_pos_emb": True}])
def test_left_padding_changes_nothing_behind_memory_tokens(stack: dict[str, Any]) -> None:
    net = net_of(stack=stack, num_memory_tokens=2)
    got = net(X, seq_start_pos=torch.tensor([5, 0]))
    torch.testing.assert_close(got[:1, 5:], net(X[:1, 5:]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(got[1:], net(X[1:]), atol=1e-5, rtol=1e-4)


def numbers(*values: int) -> Tensor:
    return torch.tensor(values)


def yes(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.bool)


FIVE = noise(2, 5, 32)
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "lens of one row": ({"lens": numbers(9)}, r"lens: got torch.int64 \(1,\); .* \(2,\)"),
    "lens of three rows": ({"lens": numbers(9, 9, 9)}, "lens: got"),
    "lens beyond": ({"lens": numbers(9, 99)}, "lens: got 99; .* from 0 to 16"),
    "lens below": ({"lens": numbers(-1, 9)}, "lens: got -1"),
    "lens as floats": ({"lens": torch.tensor([9.0, 9.0])}, "lens: got torch.float32"),
    "lens as a mask": ({"lens": yes(2)}, "lens: got torch.bool"),
    "lens as a list": ({"lens": [9, 9]}, "lens: got a list"),
    "lens of two axes": ({"lens": numbers(9, 9)[None]}, "lens: got"),
    "start of one row": ({"seq_start_pos": numbers(3)}, "seq_start_pos: got"),
    "start beyond": ({"seq_start_pos": numbers(3, 17)}, "seq_start_pos: got 17"),
    "start as a list": ({"seq_start_pos": [3, 3]}, "seq_start_pos: got a list"),
    "prepended mask too short": (
        {"prepend_embeds": FIVE, "prepend_mask": yes(2, 4)},
        r"prepend_mask: got .*\(2, 4\); give bool \(2, 5\)",
    ),
    "prepended mask as floats": (
        {"prepend_embeds": FIVE, "prepend_mask": torch.ones(2, 5)},
        "prepend_mask: got torch.float32",
    ),
    "prepended integers": ({"prepend_embeds": torch.ones_like(FIVE).long()}, "prepend_embeds: got"),
    "prepended width": ({"prepend_embeds": noise(2, 5, 31)}, r"give float \(b, p, 32\)"),
    "sum of one": ({"sum_embeds": noise(2, 1, 32)}, r"sum_embeds: got .* give float \(2, 16, 32\)"),
    "sum too short": ({"sum_embeds": FIVE}, "sum_embeds: got"),
    "sum of integers": ({"sum_embeds": torch.ones_like(X).long()}, "sum_embeds: got torch.int64"),
    "pos beyond": ({"pos": torch.arange(20, 36)}, "pos: got 35; .* from 0 to 23"),
    "pos below": ({"pos": torch.arange(-1, 15)}, "pos: got -1"),
    "pos as floats": ({"pos": torch.arange(16.0)}, "pos: got torch.float32"),
    "pos too long": ({"pos": torch.arange(17)}, "pos: got"),
    "documents too short": ({"documents": numbers(0, 0)[:, None]}, "documents: got"),
    "x as a list": ({"x": [[0.0] * 32]}, "x: got a list"),
    "no x": ({"x": None}, "x: got a NoneType"),
    "x of another type": ({"x": X.double()}, r"x: got torch.float64 .*x.to\(torch.float32\)"),
    "mask as a list": ({"mask": [[True] * N] * 2}, "mask: got a list"),
    "mask of one row": ({"mask": yes(1, N)}, "mask: got"),
}


@pytest.mark.parametrize("cls", [Decoder, Encoder])
@pytest.mark.parametrize("name", WRONG)
def test_a_net_on_vectors_names_what_it_can_not_take(name: str, cls: Any) -> None:
    given, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        net_of(cls)(**{"x": X, **given})


def test_a_type_is_that_of_the_weights_unless_autocast_casts_it() -> None:
    for keywords in ({}, {"dim_in": 32, "dim_out": 32}):
        net = net_of(**keywords)
        with pytest.raises(ValueError, match=r"give torch.float32, the type of the weights"):
            net(X.bfloat16())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = net(X.bfloat16())
            with pytest.raises(ValueError, match=r"x: got torch.float64"):
                net(X.double())
        assert (half - net(X)).norm() < 0.05 * net(X).norm()
        assert net.double()(X.double()).dtype == torch.float64


def test_vectors_beside_the_sequence_may_have_another_type() -> None:
    net, half = net_of().bfloat16(), X.bfloat16()
    got = net(half, sum_embeds=X, prepend_embeds=FIVE)
    want = net(half, sum_embeds=half, prepend_embeds=FIVE.bfloat16())
    assert torch.equal(got, want)


def test_all_lengths_and_starts_that_can_be_are_taken() -> None:
    net = net_of()
    for name, lens in (("lens", numbers(0, 16)), ("seq_start_pos", numbers(0, 16))):
        for kind in (torch.int64, torch.int32, torch.int16):
            out = net(X, **{name: lens.to(kind)})
            row = 1 if name == "lens" else 0
            torch.testing.assert_close(out[row], net(X)[row], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["vectors", "tokens"])
def test_positions_may_be_of_any_integer_type(kind: str) -> None:
    net, x = models()[kind]
    for dtype in (torch.int16, torch.uint8, torch.int32):
        assert torch.equal(net(x, pos=torch.arange(N, dtype=dtype)), net(x))
