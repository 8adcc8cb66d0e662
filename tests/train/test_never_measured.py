"""Settings that could never take effect are refused when the config is read."""

from __future__ import annotations

from typing import Any

import pytest

from xtdist.config import ConfigError

STOP, BEST = "loop.early_stop", "checkpoint.keep_best"
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({STOP: {"metric": "eval/nosuch/loss"}}, "loop.early_stop.metric: got 'eval/nosuch/loss'"),
    ({BEST: 1, "checkpoint.metric": "eval/vaild/loss"}, "checkpoint.metric: got 'eval/vaild/loss'"),
    ({BEST: 1, "checkpoint.metric": "eval/valid/ema_loss"}, "checkpoint.metric: got 'eval/valid/e"),
    ({BEST: 1, "loop.valid_every": 0}, "checkpoint.keep_best: got 1"),
    ({"engine": {"zero_stage": 3, "hpz_partition_size": 3}}, "engine.hpz_partition_size: got 3"),
    (
        {"engine": {"zero_stage": 3, "hpz_partition_size": 2}, "workers.min_count": 1},
        "workers.min_count: got 1",
    ),
]


@pytest.mark.parametrize(("changes", "said"), REFUSED, ids=str)
def test_what_could_never_take_effect_is_refused(
    make_spec: Any, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError) as error:
        make_spec("refused", changes)
    assert said in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        {STOP: {"metric": "eval/valid/bits_per_byte"}},
        {BEST: 1, "checkpoint.metric": "train/loss", "loop.valid_every": 0},
        {BEST: 1, "checkpoint.metric": "eval/valid/ema_loss", "optim.ema": {"decay": 0.9}},
        {"engine": {"zero_stage": 3, "hpz_partition_size": 2}},
    ],
    ids=str,
)
def test_what_is_measured_can_be_waited_for(make_spec: Any, changes: dict[str, Any]) -> None:
    make_spec("kept", changes)
