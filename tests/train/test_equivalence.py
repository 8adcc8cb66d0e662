"""The trajectory of a run depends on neither workers, accumulation nor ZeRO stage, and is that of
a plain loop written here."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ranks import run_ranks
from runs import records

from xtdist.config import derive_seed
from xtdist.data import Order, TokenDataset
from xtdist.model import build_model
from xtdist.train import RunSpec


def plain_loop(spec: RunSpec) -> dict[str, list[float]]:
    """The same training without any of our training code: one process, one batch, fp32."""
    data = TokenDataset.open(spec.data.path, "train")
    valid = TokenDataset.open(spec.data.path, "valid")
    seq_len = spec.data.seq_len
    order = Order(
        num_windows=data.num_windows(seq_len), global_batch=spec.global_batch, seed=spec.seed
    )
    generator = torch.Generator().manual_seed(derive_seed(spec.seed, "init"))
    net = build_model(spec.model, generator=generator)
    decay = [p for n, p in net.named_parameters() if p.ndim == 2 and "embedding" not in n]
    ids = {id(p) for p in decay}
    rest = [p for p in net.parameters() if id(p) not in ids]
    optim = spec.optim
    optimizer = torch.optim.AdamW(
        [
            {"params": decay, "weight_decay": optim.weight_decay},
            {"params": rest, "weight_decay": 0},
        ],
        lr=1.0,
        betas=optim.betas,
        eps=optim.eps,
    )

    def mean_loss(windows: Any) -> torch.Tensor:
        rows = [data.window(int(w), seq_len).astype(np.int64) for w in windows]
        return cross_entropy(net, torch.from_numpy(np.stack(rows)))

    out: dict[str, list[float]] = {"train/loss": [], "train/grad_norm": [], "eval/valid/loss": []}
    for step in range(spec.loop.steps):
        for group in optimizer.param_groups:
            group["lr"] = optim.lr * min(1.0, (step + 1) / optim.schedule.warmup_steps)
        optimizer.zero_grad()
        loss = mean_loss(order.windows(order.sample_ids(step)))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(net.parameters(), optim.grad_clip or math.inf)
        optimizer.step()
        out["train/loss"].append(loss.item())
        out["train/grad_norm"].append(float(norm))
        if (step + 1) % spec.loop.valid_every == 0:
            last = valid.num_windows(seq_len) - 1
            count = min(spec.loop.valid_windows, last + 1)
            numbers = sorted({int(i * last / (count - 1)) for i in range(count)})
            rows = [valid.window(i, seq_len).astype(np.int64) for i in numbers]
            with torch.no_grad():
                out["eval/valid/loss"].append(
                    float(cross_entropy(net, torch.from_numpy(np.stack(rows))))
                )
    return out


def cross_entropy(net: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    logits = net(tokens[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_losses_and_norms_are_those_of_a_plain_loop_for_any_stage_and_accumulation(
    make_spec: Any, workers: int
) -> None:
    """8 sequences a step: 3 workers get 3, 3 and 2; the last of 9 validation windows leaves two
    of them without one."""
    base = {"workers.count": workers, "loop.steps": 8}
    four = {"batch.micro_batch_tokens": 32 if workers == 1 else 16}
    stages = range(4)
    accumulating = stages if workers == 2 else [2]
    specs = [
        *(make_spec(f"zero{z}-{workers}", base | {"engine.zero_stage": z}) for z in stages),
        *(
            make_spec(f"acc{z}-{workers}", base | four | {"engine.zero_stage": z})
            for z in accumulating
        ),
    ]
    assert specs[4].accumulation == {1: 4, 2: 4, 3: 3}[workers]
    outcomes = run_ranks(specs)
    want = plain_loop(specs[0])
    for spec, outcome in zip(specs, outcomes, strict=True):
        assert outcome.ok, outcome.printed
        for key, values in want.items():
            tolerance = 1e-6 if "loss" in key else 1e-4
            assert records(spec, key) == pytest.approx(values, rel=tolerance), (spec.name, key)
    assert outcomes[0].printed == ""
    first, last = want["train/loss"][0], want["train/loss"][-1]
    assert last < first - 0.5  # or the comparison would say little


@pytest.mark.slow
def test_other_models_and_no_clipping_agree_with_the_plain_loop_too(make_spec: Any) -> None:
    untied = {
        "model.tie_embedding": False,
        "model.position": {"kind": "learned"},
        "model.norm": {"kind": "layernorm"},
        "model.attention": {"dim_head": 16, "qk_rmsnorm": True},
        "model.feedforward": {"kind": "glu"},
        "optim.grad_clip": 0.0,
        "loop.steps": 4,
    }
    specs = [make_spec(f"other{z}", untied | {"engine.zero_stage": z}) for z in range(4)]
    want = plain_loop(specs[0])
    for spec, outcome in zip(specs, run_ranks(specs), strict=True):
        assert outcome.ok, outcome.printed
        for key, values in want.items():
            assert records(spec, key) == pytest.approx(values, rel=1e-6 if "loss" in key else 1e-4)
