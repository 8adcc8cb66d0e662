"""Small random models, and the slow, plain ways to compute what the engine computes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from xtdist.decode import ContrastiveParams
from xtdist.model import ModelConfig, TransformerWrapper, build_model
from xtdist.nn.attention.config import AttentionConfig

VOCABULARY = 40


def make_model(seed: int, **overrides: object) -> TransformerWrapper:
    """A random causal model whose distribution is peaked enough to be interesting."""
    sizes: dict[str, object] = {
        "dim": 32,
        "depth": 2,
        "heads": 4,
        "num_tokens": VOCABULARY,
        "max_seq_len": 64,
        "attention": AttentionConfig(dim_head=8, kv_heads=2),
    }
    config = ModelConfig(**{**sizes, **overrides})  # type: ignore[arg-type]
    model = build_model(config, generator=torch.Generator().manual_seed(seed)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
    return model


@torch.no_grad()
def next_logits(model: TransformerWrapper, tokens: Sequence[int]) -> torch.Tensor:
    """Logits after ``tokens``, by a full forward without a cache."""
    return model(torch.tensor([list(tokens)]))[0, -1].float()


def greedy(model: TransformerWrapper, prompt: Sequence[int], count: int) -> tuple[int, ...]:
    """Greedy continuation by full recomputation."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(next_logits(model, tokens).argmax()))
    return tuple(tokens[len(prompt) :])


def contrastive_logprobs(
    models: tuple[TransformerWrapper, TransformerWrapper],
    tokens: Sequence[int],
    params: ContrastiveParams,
) -> torch.Tensor:
    """The definition, in probabilities: log of p_e^(1+b) / p_a^b where p_e >= a max p_e."""
    p_expert = next_logits(models[0], tokens).double().softmax(-1)
    p_amateur = (next_logits(models[1], tokens).double() / params.temperature).softmax(-1)
    score = (p_expert ** (1 + params.beta) / p_amateur**params.beta).log()
    return torch.where(p_expert >= params.alpha * p_expert.max(), score, -torch.inf)
