import pytest
import torch

from xtdist.optim import EmaConfig
from xtdist.optim.ema import ema_decay


def averages(config: EmaConfig, values: list[float]) -> list[float]:
    """Of values[0] after step 1 and so on; before that it is 100."""
    average, out = 100.0, []
    for step, value in enumerate(values, start=1):
        decay = ema_decay(config, step)
        if decay is not None:
            average = decay * average + (1 - decay) * value
        out.append(average)
    return out


VALUES = [3.0, -1.0, 4.0, 1.0, -5.0, 9.0, 2.0]


def test_debias_is_the_bias_correction_of_adam() -> None:
    want, sum_ = [], 0.0
    for n, value in enumerate(VALUES, start=1):
        sum_ = 0.8 * sum_ + 0.2 * value
        want.append(sum_ / (1 - 0.8**n))
    assert averages(EmaConfig(decay=0.8), VALUES) == pytest.approx(want)


def test_none_is_the_average_of_torch() -> None:
    peer = torch.optim.swa_utils.AveragedModel(
        p := torch.nn.Linear(1, 1, bias=False),
        multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.8),
    )
    want = []
    for value in VALUES:
        torch.nn.init.constant_(p.weight, value)
        peer.update_parameters(p)
        want.append(peer.module.weight.item())
    assert averages(EmaConfig(decay=0.8, warmup="none"), VALUES) == pytest.approx(want, rel=1e-5)


def test_ramp_rises_to_the_decay_and_stays() -> None:
    config = EmaConfig(decay=0.5, warmup="ramp")
    decays = [ema_decay(config, step) for step in (1, 2, 3, 8, 9, 10, 1000)]
    assert decays == pytest.approx([0, 2 / 11, 3 / 12, 8 / 17, 0.5, 0.5, 0.5])


def test_every_other_step_is_the_average_of_every_other_value() -> None:
    for warmup in ("debias", "ramp", "none"):
        thin = averages(EmaConfig(decay=0.8, warmup=warmup, every=3), VALUES)
        dense = averages(EmaConfig(decay=0.8, warmup=warmup), VALUES[2::3])
        assert [thin[2], thin[5]] == dense
        assert thin == [100.0, 100.0, *[thin[2]] * 3, *[thin[5]] * 2]
