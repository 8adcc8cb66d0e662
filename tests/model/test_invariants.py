"""What must hold for every option and for pairs of them, whatever the option is."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cloudpickle
import pytest
import torch
from option_grid import (
    LENGTH,
    Case,
    as_params,
    build,
    config_of,
    ids,
    inputs_of,
    pair_cases,
    perturb,
    refusal,
    rows,
    single_cases,
)
from torch import Tensor

from xtdist.model import TransformerWrapper
from xtdist.model.config import RecomputeConfig
from xtdist.model.options import OPTIONS, cache_refused, documents_refused, is_active
from xtdist.nn.attention.cache import Kept, Read

PAIRS, OFTEN = 60, 20
"""Of pairs: all, and those that every run has."""
DISCONTINUOUS = {"hard attention", "top-k attention", "gumbel attention", "mixture of experts"}
"""A rounding error can make them choose another key or expert."""
IDLE = ("layers.sublayers.0.integrator.",)
"""A choice among one thing moves nothing."""
OTHER_LOSSES = ("loop.exit_gate.", "next_embedding.")
"""What the loss of the logits does not reach; its own loss does."""
BESIDE = {True: {"interspersed memory tokens"}, False: {"memory tokens"}}
"""What would carry one document into another, in a causal stack and in others."""
CHANGE = 10
"""The first token that is changed."""
PLACES = [torch.arange(11), torch.arange(3, LENGTH), torch.tensor([*range(5), *range(8, LENGTH)])]
"""Of the real tokens: padding is behind them, before them, among them."""


def legal(case: Case) -> bool:
    return not refusal(case, causal=True) or not refusal(case, causal=False)


SINGLE = single_cases()
PAIRED = pair_cases(PAIRS, seed=1, needed=legal)
GRID = SINGLE + PAIRED
CAUSAL = [case for case in GRID if not refusal(case, causal=True)]
RARE = PAIRED[OFTEN:]
TIER_1 = {case.options: case for case in CAUSAL if case.tier == 1 and len(case.options) == 1}
"""One sample of each option: compiling takes seconds."""
every = pytest.mark.parametrize("case", as_params(GRID, rare=RARE), ids=str)
every_causal = pytest.mark.parametrize("case", as_params(CAUSAL, rare=RARE), ids=str)


def directions(case: Case) -> list[bool]:
    """Causal, bidirectional or both."""
    return [causal for causal in (True, False) if not refusal(case, causal=causal)]


def has(case: Case, names: set[str]) -> bool:
    config = config_of(case, causal=directions(case)[0])
    return any(option.name in names and is_active(option, config) for option in OPTIONS)


def windows_count_memory(case: Case) -> bool:
    """A window ends at so many places, those of memory tokens among them."""
    return has(case, {"memory tokens"}) and has(case, {"sliding window"})


@torch.no_grad()
def logits(model: TransformerWrapper, x: Tensor, **inputs: Any) -> Tensor:
    """The noise of noisy options is the same each time."""
    torch.manual_seed(0)
    return model(x, **inputs)


def close(got: Tensor, want: Tensor, *, to: float = 1e-4) -> None:
    torch.testing.assert_close(got, want, atol=to, rtol=to)


class OneSequence:
    """A KVCache of one sequence in lists, and of its context."""

    def __init__(self, context: Tensor | None) -> None:
        self.store: dict[int, Kept] = {}
        self.states, self.projected = context, dict[int, Kept]()

    def update(self, layer: int, new: Kept) -> list[Read]:
        old = self.store.get(layer, tuple(t[:, :, :0] for t in new))
        kept = tuple(torch.cat(both, dim=2) for both in zip(old, new, strict=True))
        self.store[layer] = kept
        return [Read(rows=slice(0, new[0].shape[2]), kept=kept)]

    def context(self, layer: int, project: Callable[[Tensor], Kept]) -> list[Read]:
        assert self.states is not None
        if layer not in self.projected:
            self.projected[layer] = project(self.states)
        return [Read(rows=slice(None), kept=self.projected[layer])]


OUTSIDE = {
    "further embeddings": "test_wrapper_embedding.py",
    "given embedding": "test_wrapper_embedding.py",
    "given head": "test_wrapper_embedding.py",
    "recycling": "test_wrapper_passes.py",
    "several heads": "test_wrapper_returns.py",
    "class tokens": "test_wrapper_returns.py",
    "mean pooling": "test_wrapper_returns.py",
    "attention pooling": "test_wrapper_pool.py",
}
"""Options that need more inputs, or that have no logits for each token, and where they are
tested."""


def test_every_option_is_on_somewhere_in_the_grid() -> None:
    configs = [config_of(case, causal=directions(case)[0]) for case in single_cases()]
    seen = {o.name for o in OPTIONS if any(is_active(o, config) for config in configs)}
    assert {option.name for option in OPTIONS} - seen == OUTSIDE.keys()


@every
def test_an_option_can_be_built_in_some_stack(case: Case) -> None:
    assert directions(case), (refusal(case, causal=True), refusal(case, causal=False))


@every_causal
def test_changing_later_tokens_leaves_earlier_logits_bit_identical(case: Case) -> None:
    model, x, inputs = build(case), ids(2, LENGTH), inputs_of(case)
    y = x.clone()
    y[:, CHANGE:] = (y[:, CHANGE:] + 7) % 40
    a, b = logits(model, x, **inputs), logits(model, y, **inputs)
    assert torch.equal(a[:, :CHANGE], b[:, :CHANGE])
    assert not torch.allclose(a[:, CHANGE:], b[:, CHANGE:])


@every_causal
def test_a_cache_fed_in_pieces_gives_the_logits_of_the_whole(case: Case) -> None:
    model, x, inputs = build(case), ids(1, 12), inputs_of(case, batch=1)
    reason = cache_refused(model.config)
    assert model.cache_spec().refused == reason
    if reason:
        assert any(o.uncacheable and o.name in reason for o in OPTIONS)
        pytest.skip(reason)
    want = logits(model, x, **inputs)
    context = inputs.pop("context", None)
    for cuts in ([7, 1, 1, 3], [1] * 12):
        cache, pieces, at = OneSequence(context), [], 0
        for cut in cuts:
            pos = torch.arange(at, at + cut)[None]
            pieces.append(logits(model, x[:, at : at + cut], pos=pos, cache=cache, **inputs))
            at += cut
        close(torch.cat(pieces, dim=1), want)
    assert len(cache.store) + len(cache.projected) == len(model.cache_spec().layers)
    for layer, kept in cache.store.items():
        spec = model.cache_spec().layers[layer]
        assert [(t.shape[1], t.shape[3]) for t in kept] == list(spec)


@every
def test_padding_changes_nothing_for_real_tokens(case: Case) -> None:
    if has(case, {"gumbel attention"}):
        pytest.skip("its noise depends on the shape")
    for causal in directions(case):
        model, x, inputs = build(case, causal=causal), ids(2, LENGTH), inputs_of(case)
        real = torch.ones(2, LENGTH, dtype=torch.bool)
        for which in PLACES:
            if not causal and which.diff().max() > 1 and has(case, {"sliding window"}):
                continue  # it counts places there
            real[0] = False
            real[0, which] = True
            # Positions that are given are not counted anew, here and below.
            inside = has(case, {"interspersed memory tokens"})
            places = {} if inside or len(which) == 11 else {"pos": torch.arange(LENGTH)}
            got = logits(model, x, mask=real, **inputs, **places)
            assert got.isfinite().all()
            first, second = rows(inputs, slice(0, 1)), rows(inputs, slice(1, 2))
            if len(which) != 11:
                if has(case, {"interspersed memory tokens"}) or windows_count_memory(case):
                    continue  # memory stands at other places then
                first["pos"] = which
                if "prefix_attn_len" in first:
                    first["prefix_attn_len"] = (which < first["prefix_attn_len"]).sum()[None]
            close(got[:1, which], logits(model, x[:1, which], **first))
            close(got[1:], logits(model, x[1:], **second))


@every
def test_documents_in_one_sequence_do_not_see_each_other(case: Case) -> None:
    if has(case, {"gumbel attention"}):
        pytest.skip("its noise depends on the shape")
    if windows_count_memory(case):
        pytest.skip("a later document is farther from the memory than it would be alone")
    for causal in directions(case):
        model = build(case, causal=causal)
        x, inputs = ids(1, LENGTH), inputs_of(case, batch=1)
        documents = (torch.arange(LENGTH) >= 6).long()[None]
        pos = torch.cat((torch.arange(6), torch.arange(LENGTH - 6)))
        if documents_refused(model.config) or has(case, BESIDE[causal]):
            with pytest.raises(ValueError, match="documents: "):
                model(x, documents=documents, pos=pos, **inputs)
            continue
        got = logits(model, x, documents=documents, pos=pos, **inputs)
        close(got[:, :6], logits(model, x[:, :6], **inputs))
        close(got[:, 6:], logits(model, x[:, 6:], **inputs))


@every
def test_a_document_in_the_midst_of_another_changes_nothing_for_it(case: Case) -> None:
    if has(case, {"gumbel attention"}):
        pytest.skip("its noise depends on the shape")
    for causal in directions(case):
        model, x, inputs = build(case, causal=causal), ids(2, LENGTH), inputs_of(case)
        if documents_refused(model.config) or has(case, BESIDE[causal]):
            continue
        documents = torch.zeros(2, LENGTH, dtype=torch.long)
        documents[:, 5:8] = 1
        y = torch.where(documents == 1, (x + 7) % 40, x)
        a, b = (logits(model, tokens, documents=documents, **inputs) for tokens in (x, y))
        close(a[documents == 0], b[documents == 0], to=1e-6)
        assert not torch.allclose(a[documents == 1], b[documents == 1])


def reached(model: TransformerWrapper) -> list[tuple[str, Tensor]]:
    """The parameters that the logits depend on; an order of execution may leave sublayers out."""
    idle = [i for i in range(len(model.config.kinds)) if i not in model.config.execution]
    unused = (*OTHER_LOSSES, *(f"layers.sublayers.{i}." for i in idle))
    return [(name, w) for name, w in model.named_parameters() if not name.startswith(unused)]


@every
def test_every_parameter_gets_a_finite_gradient_at_every_step(case: Case) -> None:
    model = build(case, causal=directions(case)[0]).train()
    torch.manual_seed(0)
    moved: set[str] = set()
    for step in range(3):
        model.zero_grad(set_to_none=True)
        model(ids(2, LENGTH, seed=step), **inputs_of(case)).square().mean().backward()
        for name, weight in reached(model):
            assert weight.grad is not None, name
            assert weight.grad.isfinite().all(), name
            if weight.grad.abs().sum() > 0:
                moved.add(name)
    still = {name for name, _ in reached(model) if not name.startswith(IDLE)} - moved
    assert not still


@every
def test_activations_computed_again_give_the_same_gradients(case: Case) -> None:
    causal, grads = directions(case)[0], []
    for recompute in (None, RecomputeConfig()):
        model = build(case, causal=causal).train()
        model.layers.config = replace(model.layers.config, recompute=recompute)
        torch.manual_seed(0)
        model(ids(2, LENGTH), **inputs_of(case)).square().mean().backward()
        grads.append([w.grad for _, w in reached(model)])
    for plain, again in zip(*grads, strict=True):
        torch.testing.assert_close(again, plain, atol=1e-6, rtol=1e-5)


@every
def test_parameters_are_read_inside_their_own_modules_alone(case: Case) -> None:
    """ZeRO-3 gathers the parameters of a module when it is called, and lets them go afterwards; it
    can't broadcast one without dimensions."""
    model = build(case, causal=directions(case)[0])
    x, inputs = ids(2, LENGTH), inputs_of(case)
    want = logits(model, x, **inputs)
    gather_while_called(model)
    assert torch.equal(logits(model, x, **inputs), want)
    assert all(weight.ndim for weight in model.parameters())


def gather_while_called(model: torch.nn.Module) -> None:
    """Makes every parameter NaN but while a module that owns it is called."""
    values = {weight: weight.data for weight in model.parameters()}
    calls = dict.fromkeys(values, 0)

    def gather(module: torch.nn.Module, args: Any) -> None:
        for weight in module.parameters(recurse=False):
            calls[weight] += 1
            weight.data = values[weight]

    def release(module: torch.nn.Module, args: Any, output: Any) -> None:
        for weight in module.parameters(recurse=False):
            calls[weight] -= 1
            if not calls[weight]:
                weight.data = torch.full_like(values[weight], float("nan"))

    for module in model.modules():
        module.register_forward_pre_hook(gather)
        module.register_forward_hook(release)
    for weight in values:
        weight.data = torch.full_like(weight, float("nan"))


@every
def test_a_state_dict_holds_the_whole_model(case: Case) -> None:
    causal = directions(case)[0]
    model, other = build(case, causal=causal), build(case, causal=causal)
    perturb(other, seed=9)
    x, inputs = ids(2, LENGTH), inputs_of(case)
    want = logits(model, x, **inputs)
    assert not torch.equal(logits(other, x, **inputs), want)
    other.load_state_dict(model.state_dict())
    assert torch.equal(logits(other, x, **inputs), want)


@every
def test_copies_are_equal_and_independent(case: Case) -> None:
    model = build(case, causal=directions(case)[0])
    x, inputs = ids(2, LENGTH), inputs_of(case)
    want = logits(model, x, **inputs)
    copies = [
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        cloudpickle.loads(cloudpickle.dumps(model)),
    ]
    perturb(model, seed=9)
    for twin in copies:
        assert torch.equal(logits(twin, x, **inputs), want)
        perturb(twin, seed=9)
        assert torch.equal(logits(twin, x, **inputs), logits(model, x, **inputs))


@every
def test_a_model_in_bf16_stays_close_to_fp32(case: Case) -> None:
    if has(case, DISCONTINUOUS):
        pytest.skip("discontinuous")
    model = build(case, causal=directions(case)[0])
    x, inputs = ids(2, LENGTH), inputs_of(case)
    want = logits(model, x, **inputs)
    half = {name: t.bfloat16() if t.is_floating_point() else t for name, t in inputs.items()}
    got = logits(model.bfloat16(), x, **half)
    assert got.dtype == torch.bfloat16
    assert (got.float() - want).abs().mean() < 0.06 * want.abs().mean()


@pytest.mark.parametrize("case", TIER_1.values(), ids=str)
def test_the_compiled_model_is_one_graph_and_gives_the_same(case: Case) -> None:
    model, x, inputs = build(case), ids(2, LENGTH), inputs_of(case)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    close(logits(compiled, x, **inputs), logits(model, x, **inputs), to=1e-6)
