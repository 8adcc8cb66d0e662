"""How much arithmetic a model needs, and how much a GPU can do."""

from __future__ import annotations

import torch
from torch import nn

from xtdist.model import TransformerWrapper
from xtdist.model.config import ModelConfig
from xtdist.nn.attention.projection import HeadSizes
from xtdist.nn.feedforward import GLUConfig
from xtdist.nn.feedforward.config import inner_dim
from xtdist.nn.feedforward.moe import MoE

# Dense 16-bit matrix products with 32-bit sums, 10¹² operations a second, from the makers' data
# sheets. The longest name that a device's name holds is the one that counts.
PEAK_TFLOPS = {
    "A10": 125.0,
    "A10G": 70.0,
    "A100": 312.0,
    "A30": 165.0,
    "A40": 149.7,
    "A6000": 154.8,
    "A800": 312.0,
    "B200": 2250.0,
    "GB200": 2500.0,
    "GH200": 989.4,
    "H100 NVL": 835.5,
    "H100 PCIe": 756.0,
    "H100": 989.4,
    "H20": 148.0,
    "H200": 989.4,
    "H800": 989.4,
    "L4": 121.0,
    "L40": 181.0,
    "L40S": 362.0,
    "MI250X": 383.0,
    "MI300X": 1307.4,
    "RTX 3090": 71.0,
    "RTX 4090": 165.2,
    "T4": 65.0,
    "V100": 125.0,
}


def peak_tflops(device_name: str) -> float | None:
    """The 16-bit peak of a GPU by the name that CUDA gives it, in capitals or not; None for one not
    in the table."""
    words = device_name.lower().replace("-", " ").split()
    best = ""
    for name in PEAK_TFLOPS:
        if all(word in words for word in name.lower().split()) and len(name) > len(best):
            best = name
    return PEAK_TFLOPS.get(best)


def flops_per_token(model: ModelConfig, seq_len: int) -> float | None:
    """Operations that a training step needs for one token of a sequence of ``seq_len``: 6 for each
    weight of a matrix product that the token goes through (2 forward, 4 backward; of a mixture's
    experts the chosen ones), and 12 · heads · channels · keys for each self attention, as if every
    token read all keys up to the window (PaLM, 2204.02311, appendix B).

    What a run computes again (``recompute``), a second pass of an objective, and everything that is
    no matrix product count nothing, so a share of the peak by this is of useful work.

    None for a model that attends to a context too, whose length is the data's.
    """
    if "c" in model.kinds:
        return None
    with torch.device("meta"):
        net = TransformerWrapper.from_config(model)
    runs = [model.execution.count(i) for i in range(len(model.kinds))]
    weights = float(model.num_tokens * model.emb_dim if model.tie_embedding else 0)
    for name, module in net.named_modules():
        parts = name.split(".")
        in_stack = parts[:2] == ["layers", "sublayers"] and len(parts) > 2
        weights += _weights(module, name) * (runs[int(parts[2])] if in_stack else 1)
    attention = sum(
        runs[i] * _reading(model, seq_len) for i, kind in enumerate(model.kinds) if kind == "a"
    )
    passes = model.loop.max_steps if model.loop is not None and model.loop.kind == "looped" else 1
    return passes * (6 * weights + 3 * attention)


def _weights(module: nn.Module, name: str) -> float:
    """The weights of a module's own matrix products, for one token."""
    if isinstance(module, MoE):
        expert = module.config.expert
        inner = inner_dim(expert, module.router.in_features)
        wide = inner * (3 if isinstance(expert, GLUConfig) else 2)
        return float(module.config.top_k * module.router.in_features * wide)
    if isinstance(module, nn.Linear) or name == "head":
        own = module.parameters(recurse=False)
        return float(sum(p.numel() for p in own if p.ndim > 1))
    return 0.0


def _reading(model: ModelConfig, seq_len: int) -> float:
    """Forward operations of one self attention's scores and reading, for one token."""
    config, sizes = model.attention, HeadSizes.of(model.heads, model.attention)
    keys = seq_len if config.window is None else min(seq_len, config.window + 1)
    keys += config.memory_kv + int(config.zero_kv)
    return 2.0 * sizes.heads * (sizes.dim + sizes.value_dim) * keys
