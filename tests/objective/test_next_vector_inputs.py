"""Next-vector prediction: what is given along with vectors, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from xtdist.model import ContinuousTransformerWrapper, Decoder
from xtdist.objective.continuous import ContinuousAutoregressiveWrapper

STACK: dict[str, Any] = {"dim": 32, "depth": 2, "heads": 4, "attn_dim_head": 8}
CONDITIONED: dict[str, Any] = {"use_adaptive_rmsnorm": True, "dim_condition": 6}
N = 9


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def wrapper_of(stack: dict[str, Any] | None = None, **keywords: Any) -> Any:
    torch.manual_seed(0)
    layers = Decoder(**STACK, **(stack or {}))
    sizes = {"dim_in": 6, "dim_out": 6, "max_seq_len": 16, **keywords}
    wrapper = ContinuousAutoregressiveWrapper(
        ContinuousTransformerWrapper(attn_layers=layers, **sizes)
    )
    with torch.no_grad():
        for weight in wrapper.parameters():
            weight.add_(0.2 * torch.randn(weight.shape))
    return wrapper


X = noise(2, N, 6, seed=1)
TABLE = torch.eye(N, dtype=torch.bool)


def test_packed_documents_are_the_weighted_mean_of_each_alone() -> None:
    wrapper = wrapper_of()
    documents = torch.tensor([[0] * 4 + [1] * 5, [2] * 9])
    got = wrapper.losses(X, documents=documents)
    parts = [(X[:1, :4], 3), (X[:1, 4:], 4), (X[1:], 8)]
    want = sum(wrapper(x) * n for x, n in parts) / 15
    assert float(got.weight) == 15
    torch.testing.assert_close(got.mean, want)


@pytest.mark.parametrize(
    ("given", "stack"),
    [
        ({"sum_embeds": noise(2, N, 32)}, {}),
        ({"pos": torch.arange(N) + 2}, {}),
        ({"attn_mask": TABLE}, {}),
        ({"condition": noise(2, N, 6)}, CONDITIONED),
    ],
)
@pytest.mark.parametrize("rollout_steps", [1, 2])
def test_inputs_may_be_as_long_as_the_vectors(
    given: dict[str, Tensor], stack: dict[str, Any], rollout_steps: int
) -> None:
    wrapper = wrapper_of(stack)
    name, value = next(iter(given.items()))
    if name == "attn_mask":
        short = value[:-1, :-1]
    else:
        short = value[:-1] if name == "pos" else value[:, :-1]
    losses = []
    for each in (value, short):
        torch.manual_seed(3)
        losses.append(wrapper(X, rollout_steps=rollout_steps, **{name: each}))
    assert torch.equal(*losses)
    if name != "condition":
        torch.manual_seed(3)
        assert not torch.allclose(losses[0], wrapper(X, rollout_steps=rollout_steps))


def test_a_row_may_be_padding_alone() -> None:
    wrapper = wrapper_of()
    got = wrapper.losses(X, seq_start_pos=torch.tensor([0, N]))
    assert float(got.weight) == N - 1
    torch.testing.assert_close(got.mean, wrapper(X[:1]))


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "x as a list": ({"x": [1.0]}, "x: got a list"),
    "steps as a text": ({"rollout_steps": "2"}, "rollout_steps: got '2'"),
    "half a step": ({"rollout_steps": 2.5}, "rollout_steps: got 2.5"),
    "steps as a flag": ({"rollout_steps": True}, "rollout_steps: got True"),
    "no step": ({"rollout_steps": 0}, "rollout_steps: got 0"),
    "lens of one row": ({"lens": torch.tensor([4])}, "lens: got"),
    "lens beyond": ({"lens": torch.tensor([4, 10])}, "lens: got 10; .* from 0 to 9"),
    "lens beyond, in a rollout": (
        {"lens": torch.tensor([4, 10]), "rollout_steps": 2},
        "lens: got 10",
    ),
    "lens as a list, in a rollout": ({"lens": [4, 9], "rollout_steps": 2}, "lens: got a list"),
    "lens of one row, in a rollout": (
        {"lens": torch.tensor([4]), "rollout_steps": 2},
        "lens: got",
    ),
    "mask as a list": ({"mask": [[True] * N] * 2}, "mask: got a list"),
    "start beyond": ({"seq_start_pos": torch.tensor([0, 10])}, "seq_start_pos: got 10"),
    "sum as a list": ({"sum_embeds": [1.0]}, "sum_embeds: got a list"),
    "documents without the last": ({"documents": torch.zeros(2, N - 1).long()}, "documents: got"),
    "documents in a rollout": (
        {"documents": torch.zeros(2, N).long(), "rollout_steps": 2},
        "rollout_steps: can't be combined with documents",
    ),
    "a rollout that starts late": (
        {"seq_start_pos": torch.tensor([0, 1]), "rollout_steps": 2},
        "rollout_steps: can't be combined with seq_start_pos",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_loss_names_what_it_can_not_take(name: str) -> None:
    given, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        wrapper_of()(**{"x": X, **given})


@pytest.mark.parametrize("width", [1, 4])
def test_a_net_must_predict_what_it_reads(width: int) -> None:
    wrapper = wrapper_of(dim_out=width)
    message = f"6 channels, but the net predicts {width}"
    for steps in (1, 2):
        with pytest.raises(ValueError, match=f"x: vectors of {message}"):
            wrapper(X, rollout_steps=steps)
    with pytest.raises(ValueError, match=f"start_tokens: vectors of {message}"):
        wrapper.generate(X, 2)


GENERATE: dict[str, tuple[dict[str, Any], str]] = {
    "start as a list": ({"start_tokens": [[1.0] * 6]}, "start_tokens: got a list"),
    "start of another type": ({"start_tokens": X.double()}, "x: got torch.float64"),
    "fewer than none": ({"seq_len": -1}, "seq_len: got -1"),
    "half a vector": ({"seq_len": 2.5}, "seq_len: got 2.5"),
    "a temperature of nothing": ({"temperature": 0.5}, "temperature: got 0.5, but the net"),
    "a temperature below 0": ({"temperature": -1.0}, "temperature: got -1.0; give a finite"),
    "a temperature of nan": ({"temperature": float("nan")}, "temperature: got nan; give a finite"),
    "endless temperature": ({"temperature": float("inf")}, "temperature: got inf; give a finite"),
    "a sum": ({"sum_embeds": noise(2, N, 32)}, "sum_embeds: new vectors have none"),
    "a context as a list": ({"context": [1.0]}, "context: got a list"),
    "a sum for each vector": ({"in_attn_cond": noise(2, N, 32)}, "in_attn_cond: new vectors have"),
}


@pytest.mark.parametrize("name", GENERATE)
def test_generation_names_what_it_can_not_take(name: str) -> None:
    given, message = GENERATE[name]
    with pytest.raises(ValueError, match=message):
        wrapper_of().generate(**{"start_tokens": X, "seq_len": 2, **given})


def test_generation_does_not_know_other_keywords() -> None:
    with pytest.raises(TypeError, match=r"unknown keyword 'top_k'; known: .*context"):
        wrapper_of().generate(X, 2, top_k=3)


@pytest.mark.parametrize("temperature", [-1.0, float("nan"), float("inf"), "1"])
def test_no_temperature_makes_numbers_of_another_kind(temperature: Any) -> None:
    wrapper = wrapper_of(probabilistic=True)
    with pytest.raises(ValueError, match="temperature: got"):
        wrapper.generate(X, 2, temperature=temperature)


def test_a_condition_is_one_for_all_vectors() -> None:
    wrapper = wrapper_of(CONDITIONED)
    condition = noise(2, 6)
    want = wrapper.generate(X, 3, condition=condition)
    assert torch.equal(wrapper.generate(X, 3, condition=condition[:, None]), want)
    with pytest.raises(ValueError, match="condition: new vectors have none"):
        wrapper.generate(X, 3, condition=noise(2, N, 6))


def test_generation_evaluates_modules_that_train_inside_an_evaluating_net() -> None:
    wrapper = wrapper_of(emb_dropout=0.5, stack={"attn_dropout": 0.5, "ff_dropout": 0.5})
    want = wrapper.eval().generate(X, 3)
    wrapper.net.layers.train()
    modes = [m.training for m in wrapper.modules()]
    assert torch.equal(wrapper.generate(X, 3), want)
    assert [m.training for m in wrapper.modules()] == modes
