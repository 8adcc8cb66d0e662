"""What a resumed optimizer takes from the checkpoint, and what from the config."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from xtdist.checkpoint.layout import write_manifest
from xtdist.train.state import restore


def test_settings_are_the_configs_and_state_is_the_checkpoints(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    saved = torch.optim.AdamW([weight], lr=0.5, weight_decay=500.0, betas=(0.1, 0.2))
    weight.sum().backward()
    saved.step()
    now = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.01, betas=(0.9, 0.95))
    write_manifest(tmp_path, {}, {"step": 1, "tokens": 8})

    def load_checkpoint(path: str, **kwargs: Any) -> tuple[str, dict[str, int]]:
        now.load_state_dict(saved.state_dict())  # as DeepSpeed does: groups come with the state
        return path, {"step": 1}

    engine = SimpleNamespace(optimizer=now, load_checkpoint=load_checkpoint)
    assert restore(engine, tmp_path).step == 1
    group = now.param_groups[0]
    assert (group["lr"], group["weight_decay"], group["betas"]) == (0.1, 0.01, (0.9, 0.95))
    assert group["params"] == [weight]
    assert torch.equal(now.state[weight]["exp_avg"], saved.state[weight]["exp_avg"])
