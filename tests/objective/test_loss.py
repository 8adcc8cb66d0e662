"""Chunked cross-entropy against torch's own, and the algebra of (sum, weight)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from xtdist.objective import LossOutput
from xtdist.objective.loss import cross_entropy_of


def plain(
    hidden: Tensor, weight: Tensor, targets: Tensor, shares: Tensor, smoothing: float = 0.0
) -> Tensor:
    logits = (hidden @ weight.T).float()
    each = F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
    return (each * shares).sum()


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(37, 16, generator=g).to(dtype).requires_grad_()
    weight = torch.randn(50, 16, generator=g).to(dtype).requires_grad_()
    targets = torch.randint(0, 50, (37,), generator=g)
    shares = torch.rand(37, generator=g) * (torch.rand(37, generator=g) > 0.3)
    return hidden, weight, targets, shares


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("rows", [1, 7, 37, 100, None])
def test_chunks_of_any_size_give_the_plain_loss_and_gradients(
    rows: int | None, smoothing: float
) -> None:
    hidden, weight, targets, shares = inputs()
    want = plain(hidden, weight, targets, shares, smoothing)
    want_grads = torch.autograd.grad(want * 3, (hidden, weight))
    loss = cross_entropy_of(targets, shares, smoothing=smoothing, chunk_rows=rows)
    got = loss(hidden, weight)
    got_grads = torch.autograd.grad(got * 3, (hidden, weight))
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(got_grads, want_grads)


def test_only_the_gradients_asked_for_are_given() -> None:
    hidden, weight, targets, shares = inputs()
    cross_entropy_of(targets, shares)(hidden, weight.detach()).backward()
    assert hidden.grad is not None
    hidden, weight, targets, shares = inputs()
    cross_entropy_of(targets, shares)(hidden.detach(), weight).backward()
    assert weight.grad is not None
    with torch.no_grad():
        assert not cross_entropy_of(targets, shares)(hidden, weight).requires_grad


def test_each_cross_entropy_is_told() -> None:
    hidden, weight, targets, shares = inputs()
    each = torch.empty(37)
    cross_entropy_of(targets, shares, smoothing=0.2, each=each, chunk_rows=10)(hidden, weight)
    logits = hidden @ weight.T
    want = F.cross_entropy(logits, targets, reduction="none", label_smoothing=0.2)
    torch.testing.assert_close(each, want.detach())


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gradients_are_as_good_as_the_type_allows(
    dtype: torch.dtype, smoothing: float
) -> None:
    hidden, weight, targets, shares = inputs(dtype)
    exact = [t.detach().double().requires_grad_() for t in (hidden, weight)]
    logits = exact[0] @ exact[1].T
    each = F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
    want = torch.autograd.grad((each * shares).sum(), exact)
    function = cross_entropy_of(targets, shares, smoothing=smoothing, chunk_rows=10)
    loss = function(hidden, weight)
    got = torch.autograd.grad(loss, (hidden, weight))
    limit = 4 * torch.finfo(dtype).eps
    for g, w in zip(got, want, strict=True):
        assert g.dtype == dtype
        assert (g.double() - w).norm() < limit * w.norm()


def test_the_full_logits_are_never_kept_for_the_backward_pass() -> None:
    saved: list[int] = []
    hidden, weight, targets, shares = inputs()

    def remember(t: Tensor) -> Tensor:
        saved.append(t.numel())
        return t

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda t: t):
        cross_entropy_of(targets, shares, chunk_rows=8)(hidden, weight)
    assert saved
    assert max(saved) < 37 * 50


def test_no_rows_at_all_is_a_loss_of_zero_with_zero_gradients() -> None:
    hidden, weight, targets, shares = inputs()
    loss = cross_entropy_of(targets[:0], shares[:0])(hidden[:0], weight)
    loss.backward()
    assert loss.item() == 0
    assert weight.grad is not None
    assert weight.grad.abs().sum() == 0


def test_the_mean_of_nothing_is_zero() -> None:
    assert LossOutput(torch.tensor(0.0), torch.tensor(0.0)).mean.item() == 0
    assert LossOutput(torch.tensor(3.0), torch.tensor(2.0)).mean.item() == 1.5


def test_without_gradients_none_are_computed() -> None:
    hidden, weight = torch.randn(6, 4), torch.randn(10, 4, requires_grad=True)
    targets, weights = torch.zeros(6, dtype=torch.long), torch.ones(6)
    loss = cross_entropy_of(targets, weights, chunk_rows=3)
    products = 0

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal products
            products += "mm" in str(func)
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Count():
        loss(hidden, weight)
    assert products == 2
