"""Training without any of our training code: one process, one batch, fp32."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from xtdist.config import derive_seed
from xtdist.data import Order, TokenDataset
from xtdist.model import TransformerWrapper, build_model
from xtdist.train import RunSpec


def plain_loop(
    spec: RunSpec, *, parts: int = 1, make_optimizer: Callable[..., Any] | None = None
) -> dict[str, list[float]]:
    """The losses and norms that ``spec`` must have on any number of workers. Auxiliary losses are
    of ``parts`` equal parts of the batch each: what a worker sees at once. ``make_optimizer`` gets
    the optimizer's config and the network; None: torch's AdamW."""
    data = TokenDataset.open(spec.data.sources["data"], "train")
    seq_len = spec.data.seq_len
    order = Order(
        config=spec.data,
        counts={"data": windows_in(data, seq_len)},
        seq_len=seq_len,
        global_batch=1,  # samples one by one: how many a step has is counted below
        seed=spec.seed,
    )
    generator = torch.Generator().manual_seed(derive_seed(spec.seed, "init"))
    net = build_model(spec.model, generator=generator)
    optim = spec.optim
    optimizer = adamw(spec, net) if make_optimizer is None else make_optimizer(optim, net)

    out: dict[str, list[float]] = {"train/loss": [], "train/grad_norm": [], "eval/valid/loss": []}
    first = 0
    for step in range(spec.loop.steps):
        for group in optimizer.param_groups:
            group["lr"] = optim.lr * min(1.0, (step + 1) / optim.schedule.warmup_steps)
        optimizer.zero_grad()
        size, length = spec.batch.tokens_per_step // seq_len, seq_len
        for stage in reversed(spec.batch.warmup):
            size = stage.tokens_per_step // seq_len if step < stage.until_step else size
        for shorter in reversed(spec.batch.seq_len_warmup):
            length = shorter.seq_len if step < shorter.until_step else length
        windows = order.samples_between(first, first + size).index[:, 0]
        parts_of = np.arange(seq_len // length)
        short = (windows[:, None] * (seq_len // length) + parts_of).flatten()
        tokens = rows_of(data, short, length)
        first += size
        loss = torch.stack([train_loss(net, part) for part in tokens.chunk(parts)]).mean()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(net.parameters(), optim.grad_clip or math.inf)
        optimizer.step()
        out["train/loss"].append(loss.item())
        out["train/grad_norm"].append(float(norm))
        if (step + 1) % spec.loop.valid_every == 0:
            out["eval/valid/loss"].append(valid_loss(spec, net))
            net.train()
    return out


def adamw(spec: RunSpec, net: TransformerWrapper) -> torch.optim.AdamW:
    optim = spec.optim
    decay = [p for n, p in net.named_parameters() if p.ndim == 2 and "embedding" not in n]
    ids = {id(p) for p in decay}
    rest = [p for p in net.parameters() if id(p) not in ids]
    return torch.optim.AdamW(
        [
            {"params": decay, "weight_decay": optim.weight_decay},
            {"params": rest, "weight_decay": 0},
        ],
        lr=1.0,
        betas=optim.betas,
        eps=optim.eps,
    )


@torch.no_grad()
def valid_loss(spec: RunSpec, net: TransformerWrapper) -> float:
    """The mean over evenly spread windows of the validation split; leaves ``net`` in eval mode."""
    valid = TokenDataset.open(spec.data.sources["data"], "valid")
    last = windows_in(valid, spec.data.seq_len) - 1
    count = min(spec.loop.valid_windows, last + 1)
    numbers = sorted({int(i * last / (count - 1)) for i in range(count)})
    return float(cross_entropy(net.eval(), rows_of(valid, numbers, spec.data.seq_len)))


def cross_entropy(net: TransformerWrapper, tokens: torch.Tensor) -> torch.Tensor:
    logits = net(tokens[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def train_loss(net: TransformerWrapper, tokens: torch.Tensor) -> torch.Tensor:
    out = net.run(tokens[:, :-1])
    aux = sum(part.scale * part.sum / part.weight for part in out.aux)
    if out.exit_logits:
        return looped_loss(net, out, tokens[:, 1:]) + aux
    return cross_entropy(net, tokens) + aux


def looped_loss(net: TransformerWrapper, out: Any, targets: torch.Tensor) -> torch.Tensor:
    """Of two passes: what leaves after the first, the rest after the second, and the gate."""
    first, second = (
        F.cross_entropy(net.to_logits(h).transpose(1, 2), targets, reduction="none")
        for h in (out.pass_hiddens[0], out.hidden)
    )
    gate = out.exit_logits[0][..., 0].sigmoid()
    leaves = gate.detach()
    should = (50 * (0.05 - (first - second).detach())).sigmoid()
    return (leaves * first + (1 - leaves) * second).mean() + F.binary_cross_entropy(gate, should)


def rows_of(data: TokenDataset, windows: Any, seq_len: int) -> torch.Tensor:
    return torch.from_numpy(
        np.stack([data.read(int(w) * seq_len, (int(w) + 1) * seq_len + 1) for w in windows])
    ).long()


def windows_in(data: TokenDataset, seq_len: int) -> int:
    return (data.total_tokens - 1) // seq_len
