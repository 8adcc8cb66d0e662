"""Weights folders to export, and models of transformers to import; both small and random."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xtdist.checkpoint.weights import LoadedModel, WeightsConfig, own_state, save_weights
from xtdist.data import Tokenizer, byte_tokenizer
from xtdist.decode.engine import Engine
from xtdist.decode.params import GenerationParams
from xtdist.model.presets import preset
from xtdist.model.wrapper import build_model
from xtdist.objective.config import AutoregressiveConfig

LENGTH = 48
EPS = {"kind": "rmsnorm", "eps": 1e-6}
MOE = {"kind": "moe", "experts": 4, "top_k": 2, "expert": {"kind": "glu", "mult": 1.0}}
QWEN3 = {"qk_rmsnorm": True, "shared_norm_gain": True}
YARN = {"kind": "yarn", "factor": 4, "original_max_len": 16, "attention_factor": 1.2}
LLAMA3 = {"kind": "llama3", "factor": 8, "original_max_len": 32}


def randomize(module: nn.Module) -> None:
    """Numbers everywhere, also where training would start from zeros."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))


def write_weights(
    folder: Path,
    name: str = "llama-tiny",
    *,
    tokenizer: Tokenizer | None = None,
    chat: Path | None = None,
    **changes: Any,
) -> Path:
    """A weights folder with a random model of the preset."""
    tokenizer = tokenizer or byte_tokenizer()
    sizes = {"num_tokens": tokenizer.vocab_size, "max_seq_len": LENGTH, "depth": 2, "dim": 64}
    if not isinstance(changes.get("attention"), dict) or "dim_head" not in changes["attention"]:
        changes["attention"] = {"dim_head": 16, **changes.get("attention", {})}
    changes.setdefault("heads", 64 // changes["attention"]["dim_head"])
    config = preset(name, **{**sizes, **changes})
    model = build_model(config, generator=torch.Generator().manual_seed(0))
    randomize(model)
    folder.mkdir(parents=True)
    tokenizer.save(folder / "tokenizer.json.part")
    meta = {"run": "test", "step": 7}
    save_weights(
        folder,
        own_state(model),
        WeightsConfig(model=config, objective=AutoregressiveConfig(), meta=meta),
        tokenizer=folder / "tokenizer.json.part",
        chat_template=chat,
    )
    (folder / "tokenizer.json.part").unlink()
    return folder


def some_ids(count: int, *, rows: int = 2) -> Tensor:
    return torch.randint(0, count, (rows, LENGTH), generator=torch.Generator().manual_seed(2))


def relative(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, as a share of the largest number."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def greedy(loaded: LoadedModel, prompt: list[int], count: int) -> list[int]:
    """What our engine goes on with."""
    t = loaded.tokenizer
    engine = Engine(
        loaded.model, tokenizer=t, eos_ids=(t.eot_id,), banned_ids=(t.mask_id, t.pad_id)
    )
    params = GenerationParams(max_tokens=count, temperature=0)
    return list(engine.generate([prompt], params)[0].choices[0].token_ids)
