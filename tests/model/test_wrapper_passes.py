"""Stacks that run several times: recycling and looping."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
from option_grid import ids
from torch import Tensor
from wrapper_pairs import both, close, ours, vectors

from xtdist.config import ConfigError
from xtdist.model.loops import Recycling, first_exits
from xtdist.model.parts import RecyclingConfig
from xtdist.nn.attention.cache import Kept, Read

pytest.importorskip("x_transformers")

LOOPED = {"looped": True, "max_looped_steps": 3}
NORMS = {"pre_and_post_norm": True, "rotary_pos_emb": True}


@pytest.mark.parametrize("steps", [1, 3])
def test_recycling_is_x_transformers_own(steps: int) -> None:
    theirs, model = both({"recycling": True, "num_memory_tokens": 2})
    close(model(ids(2, 9), recycle_steps=steps), theirs(ids(2, 9), recycle_steps=steps))
    close(model(ids(2, 9)), theirs(ids(2, 9), recycle_steps=4))


def test_recycling_uses_every_parameter_however_often_it_recycles() -> None:
    model = ours({"recycling": True}).train()
    for steps in (1, 2):
        model.zero_grad(set_to_none=True)
        model(ids(2, 9), recycle_steps=steps).square().mean().backward()
        assert all(weight.grad is not None for weight in model.parameters())
    assert model.loop.proj.weight.grad.abs().sum() > 0


def test_the_number_of_passes_is_drawn_from_torch_alone() -> None:
    model = ours({"recycling": True, "train_max_recycle_steps": 6}).train()
    runs = []
    for _ in range(2):
        torch.manual_seed(0)
        runs.append([model.loop.draw(torch.device("cpu")) for _ in range(40)])
    assert runs[0] == runs[1]
    assert set(runs[0]) == {1, 2, 3, 4, 5, 6}


def draws_of_rank(rank: int, folder: Path, found: Any) -> None:
    """Numbers of passes that one of two ranks draws, each from another seed."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    recycling = Recycling(4, RecyclingConfig(max_steps=50))
    torch.manual_seed(rank)
    found.put((rank, [recycling.draw(torch.device("cpu")) for _ in range(5)]))
    torch.distributed.destroy_process_group()


def test_all_ranks_make_the_same_number_of_passes(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    found = context.Queue()
    ranks = [
        context.Process(target=draws_of_rank, args=(rank, tmp_path, found)) for rank in range(2)
    ]
    for rank in ranks:
        rank.start()
    draws = dict(found.get(timeout=60) for _ in ranks)
    for rank in ranks:
        rank.join()
    torch.manual_seed(0)
    assert draws[0] == draws[1] == [int(torch.randint(1, 51, ())) for _ in range(5)]


def test_looping_is_x_transformers_own() -> None:
    theirs, model = both(LOOPED, NORMS)
    for net in (theirs, model):
        net.train()
    got, inter = model(ids(2, 9), return_intermediates=True)
    want, theirs_inter = theirs(ids(2, 9), return_intermediates=True)
    close(got, want)
    for a, b in zip(inter.exit_logits, theirs_inter.exit_logits, strict=True):
        close(a, b)
    for a, b in zip(inter.all_pred_logits, theirs_inter.all_pred_logits, strict=True):
        close(a, b)
    close(model.eval()(ids(2, 9), looped_steps=2), theirs.eval()(ids(2, 9), looped_steps=2))


def test_looping_takes_prepended_vectors_and_memory_tokens() -> None:
    model = ours({**LOOPED, "num_memory_tokens": 2}, NORMS).train()
    given = {"prepend_embeds": vectors(2, 4, 32), "return_intermediates": True}
    got, inter = model(ids(2, 9), **given)
    assert [tuple(t.shape) for t in (got, *inter.all_pred_logits)] == [(2, 13, 40)] * 4
    assert inter.exit_logits[0].shape == (2, 13, 1)


def test_each_token_leaves_at_its_own_pass() -> None:
    logits = [torch.tensor([[-9.0, 0.0, 9.0]])[..., None]] * 3
    assert first_exits(logits, 0.7).tolist() == [[2, 1, 0]]
    model = ours(LOOPED, NORMS)
    with torch.no_grad():
        model.loop.exit_gate.weight.mul_(8)
    x = ids(4, 9)
    got, inter = model(
        x, looped_inference=True, looped_exit_prob_threshold=0.6, return_intermediates=True
    )
    assert len(inter.exit_indices.unique()) > 1
    for passes in range(3):
        here = inter.exit_indices == passes
        close(got[here], model(x, looped_steps=passes + 1)[here])
    close(got[:1], model(x[:1], looped_inference=True, looped_exit_prob_threshold=0.6))


class OneSequence:
    """A KVCache that keeps one sequence in lists."""

    def __init__(self) -> None:
        self.store: dict[int, Kept] = {}

    def update(self, layer: int, new: Kept) -> list[Read]:
        old = self.store.get(layer, tuple(t[:, :, :0] for t in new))
        kept = tuple(torch.cat(both, dim=2) for both in zip(old, new, strict=True))
        self.store[layer] = kept
        return [Read(rows=slice(None), kept=kept)]


def test_a_looped_model_decodes_with_a_cache_as_without() -> None:
    model, x, cache = ours(LOOPED, NORMS), ids(1, 9), OneSequence()
    pieces: list[Tensor] = []
    for at in range(9):
        pieces.append(model(x[:, at : at + 1], pos=torch.tensor([[at]]), cache=cache))
    close(torch.cat(pieces, dim=1), model(x))
    assert len(cache.store) == len(model.cache_spec().layers) == 6


def test_what_can_not_loop_is_one_clear_error() -> None:
    with pytest.raises(ConfigError, match="needs pre_and_post_norm=True"):
        ours(LOOPED)
    with pytest.raises(ConfigError, match="both choose loop"):
        ours({**LOOPED, "recycling": True}, NORMS)
    with pytest.raises(ValueError, match="recycle_steps: given to a model that is not recycling"):
        ours({})(ids(1, 4), recycle_steps=2)
