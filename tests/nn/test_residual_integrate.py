"""Layers that read all earlier ones, against x-transformers' own modules."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from x_transformers import x_transformers as theirs

from xtdist.config import ConfigError
from xtdist.nn.linear import initialize
from xtdist.nn.residual import AttentionResidualConfig, LIMeConfig, build_integrator

DIM, B, N, LAYERS = 8, 2, 5, 4
LIME = {
    "to_weights.0.g": "norm.gain",
    "to_weights.1.weight": "to_weights.weight",
    "to_weights.1.bias": "to_weights.bias",
}
ATTENTION = {
    "to_keys.weight": "key_norm.gain",
    "to_query.0.weight": "delta_norm.gain",
    "to_query.1.down.weight": "down.weight",
    "to_query.1.up.weight": "up.weight",
    "norm.weight": "query_norm.gain",
}
CONFIGS = [
    LIMeConfig(),
    LIMeConfig(weights="relu"),
    AttentionResidualConfig(rank=3),
    AttentionResidualConfig(rank=3, activation="silu"),
]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def history() -> list[Tensor]:
    return [noise(B, N, DIM, seed=seed) * (seed + 0.1) for seed in range(LAYERS)]


def randomize(module: nn.Module) -> None:
    with torch.no_grad():
        for seed, weight in enumerate(module.parameters()):
            weight.copy_(noise(*weight.shape, seed=seed + 10) * 0.5)


@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize("config", CONFIGS)
def test_it_equals_x_transformers(config: Any, views: int) -> None:
    if config.kind == "lime":
        softmax = config.weights == "softmax"
        oracle: nn.Module = theirs.DynamicLIMe(DIM, LAYERS, views, use_softmax=softmax)
    else:
        activation = F.silu if config.activation == "silu" else None
        oracle = theirs.AttentionResidual(DIM, views, lora_rank=3, lora_activation=activation)
    ours = build_integrator(DIM, config, layers=LAYERS, views=views)
    randomize(oracle)
    names = LIME if config.kind == "lime" else ATTENTION
    ours.load_state_dict({names[name]: value for name, value in oracle.state_dict().items()})
    hiddens = history()
    got = ours(hiddens[-1], hiddens)
    assert got.shape == ((B, N, DIM) if views == 1 else (views, B, N, DIM))
    torch.testing.assert_close(got, oracle(hiddens[-1], hiddens), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize("config", CONFIGS)
def test_it_is_initialized_copied_compiled_and_gives_every_gradient(
    config: Any, views: int
) -> None:
    with torch.device("meta"):
        module = build_integrator(DIM, config, layers=LAYERS, views=views)
    module = module.to_empty(device="cpu")
    for weight in module.parameters():
        nn.init.constant_(weight, math.nan)
    initialize(module, torch.Generator().manual_seed(0))
    hiddens = [hidden.requires_grad_() for hidden in history()]
    want = module(hiddens[-1], hiddens)
    for same in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(same(hiddens[-1], hiddens), want)
    torch._dynamo.reset()
    got = torch.compile(module, fullgraph=True, backend="aot_eager")(hiddens[-1], hiddens)
    torch.testing.assert_close(got, want)
    got.square().sum().backward()
    for tensor in (*hiddens, *module.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()


@pytest.mark.parametrize("config", CONFIGS)
def test_only_the_same_token_is_read(config: Any) -> None:
    module = build_integrator(DIM, config, layers=LAYERS, views=3)
    randomize(module)
    hiddens = history()
    changed = [torch.cat((h[:, :3], h[:, 3:] + 1), dim=1) for h in hiddens]
    one, other = module(hiddens[-1], hiddens), module(changed[-1], changed)
    assert torch.equal(one[:, :, :3], other[:, :, :3])
    assert not torch.equal(one[:, :, 3:], other[:, :, 3:])


@pytest.mark.parametrize("config", CONFIGS)
def test_in_bf16_it_is_close_and_keeps_no_copy_of_the_history(config: Any) -> None:
    module = build_integrator(DIM, config, layers=LAYERS)
    randomize(module)
    hiddens = history()
    want = module(hiddens[-1], hiddens)
    module, hiddens = module.bfloat16(), [h.bfloat16().requires_grad_() for h in hiddens]
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        got = module(hiddens[-1], hiddens)
    torch.testing.assert_close(got.float(), want, rtol=0.05, atol=0.1)
    known = {h.untyped_storage().data_ptr() for h in hiddens}
    fresh = {t.untyped_storage().data_ptr(): t.numel() for t in kept}
    own = sum(n for where, n in fresh.items() if where not in known and n >= hiddens[0].numel())
    assert own <= 8 * hiddens[0].numel()
    assert not any(t.numel() >= LAYERS * hiddens[0].numel() for t in kept)


def test_lime_refuses_another_number_of_layers() -> None:
    module = build_integrator(DIM, LIMeConfig(), layers=3)
    with pytest.raises(ValueError, match=r"hiddens: got 4 for a layer that mixes 3"):
        module(noise(B, N, DIM), history())


def test_a_rank_as_large_as_the_width_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"integrator.rank: got 8 with dim=8"):
        build_integrator(DIM, AttentionResidualConfig(rank=8), layers=1)
