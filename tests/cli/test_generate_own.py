"""Generation uses what an objective has beside the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from xtdist.checkpoint import WeightsConfig, save_weights
from xtdist.config import from_mapping
from xtdist.data import byte_tokenizer
from xtdist.model import build_model
from xtdist.objective import NonAutoregressiveWrapper, build_objective


def test_a_critic_and_self_conditioning_are_asked_as_often_as_the_config_says(
    xtdist: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = from_mapping(
        WeightsConfig,
        {
            "model": {"dim": 16, "depth": 1, "heads": 2, "attention": {"dim_head": 8}}
            | {"num_tokens": 259, "max_seq_len": 32, "causal": False},
            "objective": {"kind": "nonautoregressive", "steps": 5}
            | {"self_cond": True, "self_token_critic": True},
            "meta": {},
        },
    )
    tokenizer = byte_tokenizer()
    tokenizer.save(tmp_path / "tokenizer.json")
    net = build_model(config.model, generator=torch.Generator().manual_seed(0))
    state = build_objective(
        config.objective, net, mask_id=tokenizer.mask_id, pad_id=tokenizer.pad_id
    ).state_dict()
    own = {n: t for n, t in state.items() if not n.startswith("net.")}
    source = tmp_path / "tokenizer.json"
    save_weights(tmp_path / "w", net.state_dict(), config, tokenizer=source, own=own)

    conditioned, judged = [], []
    denoise, criticise = NonAutoregressiveWrapper.denoise, NonAutoregressiveWrapper.criticise

    def spy(self: Any, ids: torch.Tensor, **given: Any) -> Any:
        conditioned.append(given["previous"] is not None)
        return denoise(self, ids, **given)

    def judge(self: Any, ids: torch.Tensor, **given: Any) -> Any:
        judged.append(ids)
        return criticise(self, ids, **given)

    monkeypatch.setattr(NonAutoregressiveWrapper, "denoise", spy)
    monkeypatch.setattr(NonAutoregressiveWrapper, "criticise", judge)
    first = xtdist("generate", tmp_path / "w", "--prompt", "ab", "--max-tokens", 12)
    assert first.code == 0
    assert conditioned == [False, True, True, True, True]
    assert len(judged) == 4  # the last step keeps all
    conditioned.clear()
    xtdist("generate", tmp_path / "w", "--prompt", "ab", "--max-tokens", 12, "--steps", 2)
    assert conditioned == [False, True]
