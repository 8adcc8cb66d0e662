"""Generation from the wrapper: sizes, what stays, what is never there, how it is asked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from nets import VOCABULARY, make_net, some_ids

from xtdist.config import ConfigError
from xtdist.decode.denoiser import Denoiser
from xtdist.objective import NonAutoregressiveWrapper
from xtdist.objective.filling import top_count

MASK = VOCABULARY - 1


def make(net: Any = None, **keywords: Any) -> NonAutoregressiveWrapper:
    return NonAutoregressiveWrapper(net or make_net(causal=False), mask_id=MASK, **keywords)


ALL = {"self_cond": True, "self_token_critic": True, "can_mask_prev_unmasked": True}


@pytest.mark.parametrize("keywords", [{}, {"self_cond": True}, {"self_token_critic": True}, ALL])
def test_sequences_have_the_asked_size_and_no_masks(keywords: dict[str, Any]) -> None:
    wrapper = make(steps=5, **keywords)
    assert isinstance(wrapper, Denoiser)
    assert wrapper.generate().shape == (16,)
    assert wrapper.generate(1).shape == (1, 16)
    out = wrapper.generate(64, seq_len=9, filter_thres=None, start_temperature=5.0)
    assert out.shape == (64, 9)
    assert (out != MASK).all()
    assert len(out.unique()) > VOCABULARY / 2
    assert wrapper.training
    assert all(part.training for part in wrapper.modules())


@pytest.mark.parametrize("keywords", [{}, ALL])
def test_what_is_given_stays_wherever_it_stands(keywords: dict[str, Any]) -> None:
    wrapper, prompt = make(**keywords), some_ids(3, 10)
    holes = torch.zeros(3, 10, dtype=torch.bool)
    holes[:, [2, 3, 7]] = True
    out = wrapper.generate(prompt=prompt.masked_fill(holes, MASK), seq_len=13)
    assert out.shape == (3, 13)
    assert torch.equal(out[:, :10][~holes], prompt[~holes])
    assert (out != MASK).all()
    one = wrapper.generate(prompt=prompt[0].masked_fill(holes[0], MASK))
    assert one.shape == (10,)
    assert torch.equal(wrapper.generate(prompt=prompt), prompt)
    several = wrapper.generate(4, prompt=prompt[0], seq_len=16, start_temperature=3.0)
    assert (several[:, :10] == prompt[0]).all()
    assert len({tuple(row.tolist()) for row in several}) > 1


def test_padding_is_neither_read_nor_filled() -> None:
    wrapper = make(**ALL)
    prompt = torch.full((2, 8), MASK)
    prompt[:, :3] = some_ids(2, 3)
    mask = torch.ones(2, 8, dtype=torch.bool)
    mask[1, 6:] = False
    out = wrapper.generate(prompt=prompt, mask=mask, seed=5)
    assert (out[1, 6:] == MASK).all()  # as it was given
    assert (out[mask] != MASK).all()
    prompt[1, 6:] = 2
    assert torch.equal(wrapper.generate(prompt=prompt, mask=mask, seed=5)[mask], out[mask])


def test_a_seed_repeats_and_torchs_generator_is_used_without_one() -> None:
    wrapper = make(self_token_critic=True)
    first = wrapper.generate(3, seed=1)
    assert torch.equal(wrapper.generate(3, seed=1), first)
    assert not torch.equal(wrapper.generate(3, seed=2), first)
    torch.manual_seed(3)
    drawn = wrapper.generate(3)
    torch.manual_seed(3)
    assert torch.equal(wrapper.generate(3), drawn)


def counted(wrapper: NonAutoregressiveWrapper, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What ``denoise`` is called with as ``previous``."""
    calls: list[Any] = []
    denoise = wrapper.denoise

    def spy(ids: torch.Tensor, **given: Any) -> Any:
        calls.append(given["previous"])
        return denoise(ids, **given)

    monkeypatch.setattr(wrapper, "denoise", spy)
    return calls


def test_steps_are_those_of_the_call_or_of_the_wrapper_and_never_more_than_masks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wrapper = make(steps=6)
    calls = counted(wrapper, monkeypatch)
    for given, want in (({}, 6), ({"steps": 2}, 2), ({"steps": 50, "seq_len": 7}, 7)):
        calls.clear()
        wrapper.generate(2, **given)
        assert len(calls) == want


def test_each_step_after_the_first_is_conditioned_on_the_one_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wrapper = make(steps=4, self_cond=True)
    calls = counted(wrapper, monkeypatch)
    wrapper.generate(2)
    assert calls[0] is None
    assert [c.shape for c in calls[1:]] == [(2, 16, 32)] * 3


@pytest.mark.parametrize("schedule", ["linear", "cosine", lambda t: (1 - t) ** 3])
def test_masks_are_left_as_the_training_schedule_says(
    schedule: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapper, left = make(steps=4, schedule=schedule), []
    denoise = wrapper.denoise

    def spy(ids: torch.Tensor, **given: Any) -> Any:
        left.append(int((ids == MASK).sum()))
        return denoise(ids, **given)

    monkeypatch.setattr(wrapper, "denoise", spy)
    wrapper.generate()
    fraction = wrapper.masking.schedule.fraction
    want = [16] + [int(16 * fraction(i / 4) + 1e-3) for i in (1, 2, 3)]
    assert left == pytest.approx(want[: len(left)], abs=1)
    assert sum(want[len(left) :]) == 0


def test_a_critic_decides_what_is_drawn_again() -> None:
    """One that finds every 7 wrong: in the end there are hardly any."""
    net = make_net(causal=False)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()  # every token is as likely
    wrapper = make(net, steps=16, can_mask_prev_unmasked=True, self_token_critic=True)
    plain = (wrapper.generate(200, filter_thres=None, noise_level_scale=0.0, seed=0) == 7).sum()
    wrapper.criticise = lambda ids, **_: (ids == 7).float() * 20  # type: ignore[method-assign]
    judged = (wrapper.generate(200, filter_thres=None, noise_level_scale=0.0, seed=0) == 7).sum()
    assert judged < plain / 5


def test_inputs_of_the_network_are_those_of_each_row() -> None:
    net = make_net(causal=False, cross_attention={"dim_head": 16}, position={"kind": "learned"})
    wrapper = make(net, steps=3, self_cond=True)
    context = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(0)) * 3
    lengths = torch.tensor([5, 2, 4])
    real = torch.arange(5) < lengths[:, None]
    given = {"start_temperature": 0.0, "noise_level_scale": 0.0, "seed": 0}
    out = wrapper.generate(3, context=context, context_mask=real, **given)
    for i in range(3):
        alone = wrapper.generate(1, context=context[i : i + 1, : lengths[i]], **given)
        assert torch.equal(out[i : i + 1], alone)
    losses = wrapper(some_ids(3, 9), context=context, context_mask=real)
    assert losses.loss.isfinite()


def test_documents_are_filled_as_alone() -> None:
    wrapper = make(steps=1, self_cond=True)
    prompt = torch.full((2, 10), MASK)
    prompt[:, [0, 3, 6, 9]] = some_ids(2, 4)
    documents = (torch.arange(10) >= 5).long().expand(2, 10)
    out = wrapper.generate(prompt=prompt, documents=documents, start_temperature=0.0)
    for part in (slice(0, 5), slice(5, 10)):
        alone = wrapper.generate(prompt=prompt[:, part], start_temperature=0.0)
        assert torch.equal(out[:, part], alone)


@pytest.mark.parametrize(
    ("given", "error", "problem"),
    [
        ({"seq_len": 17}, ConfigError, "seq_len: got 17"),
        ({"seq_len": 0}, ConfigError, "seq_len: got 0"),
        ({"batch_size": 0}, ConfigError, "batch_size: got 0"),
        ({"batch_size": 3, "prompt": torch.zeros(2, 4).long()}, ConfigError, "has 2 rows"),
        ({"prompt": torch.zeros(2, 4)}, ConfigError, "prompt: got torch.float32"),
        ({"prompt": torch.zeros(2, 4).long(), "seq_len": 3}, ConfigError, "for a prompt of 4"),
        ({"filter_thres": 1.0}, ConfigError, "filter_thres: got 1.0"),
        ({"steps": 0}, ConfigError, "steps"),
        ({"start_temperature": float("nan")}, ConfigError, "temperature"),
        ({"attn_mask": torch.ones(4, 4)}, TypeError, "unknown keyword 'attn_mask'"),
    ],
    ids=str,
)
def test_what_can_not_be_honoured_is_refused(
    given: dict[str, Any], error: type[Exception], problem: str
) -> None:
    with pytest.raises(error, match=problem):
        make().generate(**given)


@pytest.mark.parametrize(("dropped", "left"), [(0.7, 6), (0.9, 2), (0.0, 20), (None, 0)])
def test_the_filter_drops_that_part_of_the_vocabulary(dropped: float | None, left: int) -> None:
    assert top_count(dropped, 20) == left


def test_noise_and_random_order_make_rows_differ_without_a_critic() -> None:
    """A network that draws the likeliest tokens: only the order in which they stay can differ."""
    wrapper = make(make_net(causal=False, position={"kind": "learned"}), steps=16)
    with torch.no_grad():
        for parameter in wrapper.parameters():
            parameter.mul_(2)

    def rows(**given: Any) -> int:
        drawn = wrapper.generate(24, start_temperature=0.0, seed=0, **given)
        return len({tuple(row) for row in drawn.tolist()})

    assert rows(noise_level_scale=0.0) == 1
    assert rows(noise_level_scale=5.0) > 12
    assert rows(order="random") > 12
    assert rows(order="confidence", noise_level_scale=0.0) == 1
    with pytest.raises(ConfigError, match="order: got 'critic', but there is none"):
        rows(order="critic")
    with pytest.raises(ConfigError, match='order: got "sure"'):
        rows(order="sure")
