"""What the next-token objective can be given is honoured in runs, the same on any number of
workers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from plain import rows_of, windows_in
from ranks import run_ranks
from runs import folder_of, records

from xtdist.checkpoint.weights import load_weights
from xtdist.data import TokenDataset
from xtdist.train import RunSpec

END = 256
HIDING = {
    "objective": {
        "kind": "autoregressive",
        "label_smoothing": 0.1,
        "mask_prob": 0.2,
        "mask_token_prob": 0.15,
    },
    "data.documents": "masked",
    "loop.valid_every": 4,
    "loop.valid_windows": 999,
    "loop.steps": 4,
}
TERMS = {
    "objective": {"kind": "autoregressive", "add_attn_z_loss": True},
    "loop.steps": 4,
    "model.head": {"next_embedding": True},
    "model.loop": {"kind": "looped", "max_steps": 2},
    "model.norm_position": "pre_and_post",
    "model.tie_embedding": False,
}


@pytest.mark.slow
def test_noise_and_terms_do_not_depend_on_workers_accumulation_or_stage(make_spec: Any) -> None:
    """8 sequences a step; the z-loss is a mean of the parts that a worker sees at once, so its run
    has parts of one size everywhere."""
    four = {"batch.micro_batch_tokens": 64}
    alone = {"workers.count": 1}
    two = [make_spec(f"hiding{z}", HIDING | {"engine.zero_stage": z}) for z in (0, 3)]
    two += [make_spec("terms2", TERMS | four), make_spec("plain", {})]
    one = [make_spec("hiding1", HIDING | alone), make_spec("parts", HIDING | alone | four)]
    one += [make_spec("terms1", TERMS | alone | four)]
    for outcome in [*run_ranks(two), *run_ranks(one)]:
        assert outcome.ok, outcome.printed
    hiding = [two[0], two[1], one[0], one[1]]
    for other in hiding[1:]:
        for key in ("train/loss", "eval/valid/loss"):
            assert records(other, key) == pytest.approx(records(hiding[0], key), rel=1e-5)
    for key in ("train/loss", "train/aux/attention_z", "train/aux/next_embedding"):
        assert records(one[2], key) == pytest.approx(records(two[2], key), rel=1e-5)
    assert records(two[2], "train/aux/exit_gate")
    assert records(hiding[0], "train/loss") != records(two[3], "train/loss")
    assert records(hiding[0], "eval/valid/loss") == pytest.approx([valid_loss(two[0])], rel=1e-4)


@torch.no_grad()
def valid_loss(spec: RunSpec) -> float:
    """Plain cross-entropy inside documents, of the run's last weights on its validation windows."""
    model = load_weights(folder_of(spec)).model
    valid = TokenDataset.open(spec.data.sources["data"], "valid")
    count = windows_in(valid, spec.data.seq_len)
    numbers = np.unique(np.linspace(0, count - 1, min(999, count)).astype(np.int64))
    tokens = rows_of(valid, numbers, spec.data.seq_len)
    assert (tokens[:, 1:-1] == END).any()
    total, targets = 0.0, 0
    for row in tokens:
        for part in np.split(row.numpy(), np.flatnonzero(row.numpy() == END) + 1):
            if len(part) > 1:
                x = torch.from_numpy(part)[None]
                total += F.cross_entropy(model(x[:, :-1])[0], x[0, 1:], reduction="sum").item()
                targets += len(part) - 1
    return total / targets
