"""Every sample of every option as a tiny model, and the legal pairs of them."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from xtdist.config import ConfigError, from_mapping, to_mapping
from xtdist.model import ModelConfig, TransformerWrapper, build_model
from xtdist.model.compat import layers_config, model_config
from xtdist.model.options import OPTIONS, Sample
from xtdist.model.options.places import put

LAYERS: dict[str, Any] = {"dim": 32, "depth": 2, "heads": 4, "attn_dim_head": 16}
WRAPPER: dict[str, Any] = {"num_tokens": 40, "max_seq_len": 24}
BATCH, LENGTH = 2, 16


@dataclass(frozen=True, eq=False)
class Case:
    """Settings of one or two samples together. Each is equal to itself alone."""

    name: str
    options: tuple[str, ...]
    layers: dict[str, Any] = field(default_factory=dict)
    wrapper: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    inputs: frozenset[str] = frozenset()
    tier: int = 1
    broken: str = ""

    def __str__(self) -> str:
        return self.name


def single_cases() -> list[Case]:
    """One case for each sample, and the smallest model."""
    cases = []
    for option in OPTIONS:
        for i, sample in enumerate(option.samples):
            name = option.name if len(option.samples) == 1 else f"{option.name} {i + 1}"
            cases.append(_case(name, option.name, sample, option.tier))
    return cases


def pair_cases(count: int, *, seed: int, needed: Callable[[Case], bool]) -> list[Case]:
    """``count`` pairs of samples of different options that don't contradict each other and that
    ``needed`` accepts, drawn from ``seed``; all if there are fewer."""
    pairs = [
        merged
        for a, b in itertools.combinations(single_cases(), 2)
        if a.options != b.options and (merged := _merge(a, b)) is not None
    ]
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed)).tolist()
    return list(itertools.islice((pairs[i] for i in order if needed(pairs[i])), count))


def as_params(cases: Sequence[Case], *, rare: Sequence[Case]) -> list[Any]:
    """``cases`` for parametrize; those that are ``rare`` are left to the long run."""
    names = {str(case) for case in rare}
    return [pytest.param(c, marks=pytest.mark.long) if str(c) in names else c for c in cases]


def _case(name: str, option: str, sample: Sample, tier: int) -> Case:
    return Case(
        name=name,
        options=(option,),
        layers=dict(sample.layers),
        wrapper=dict(sample.wrapper),
        config=dict(sample.config),
        inputs=frozenset(sample.inputs),
        tier=tier,
        broken=sample.broken,
    )


def _merge(a: Case, b: Case) -> Case | None:
    for ours, theirs in ((a.layers, b.layers), (a.wrapper, b.wrapper), (a.config, b.config)):
        if any(key in theirs and theirs[key] != value for key, value in ours.items()):
            return None
    return Case(
        name=f"{a.name} + {b.name}",
        options=a.options + b.options,
        layers={**a.layers, **b.layers},
        wrapper={**a.wrapper, **b.wrapper},
        config={**a.config, **b.config},
        inputs=a.inputs | b.inputs,
        tier=max(a.tier, b.tier),
        broken=a.broken or b.broken,
    )


def config_of(case: Case, *, causal: bool = True) -> ModelConfig:
    """Raises ConfigError where the options of ``case`` refuse each other."""
    stack = layers_config({**LAYERS, **case.layers}, causal=causal, name="Layers")
    config = model_config(stack, {**WRAPPER, **case.wrapper})
    if case.config:
        tree = to_mapping(config)
        for place, value in case.config.items():
            put(tree, place, value)
        config = from_mapping(ModelConfig, tree)
    return config


@functools.cache
def refusal(case: Case, *, causal: bool) -> str:
    """Why ``case`` can't be built, or nothing."""
    try:
        build_model(config_of(case, causal=causal), generator=torch.Generator().manual_seed(0))
    except ConfigError as e:
        return str(e)
    return ""


def build(case: Case, *, causal: bool = True) -> TransformerWrapper:
    """The model of ``case`` in eval mode, every parameter moved away from its start value."""
    model = build_model(config_of(case, causal=causal), generator=torch.Generator().manual_seed(3))
    perturb(model)
    return model.eval()


@torch.no_grad()
def perturb(model: torch.nn.Module, *, seed: int = 4) -> None:
    """Add noise to all parameters: a gain of one or a gate of zero hides errors."""
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        weight.add_(0.1 * torch.randn(weight.shape, generator=generator))


def ids(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 40, shape, generator=torch.Generator().manual_seed(seed))


def inputs_of(case: Case, *, batch: int = BATCH, seed: int = 5) -> dict[str, Tensor]:
    """What a forward pass of ``case`` needs beside the tokens."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"context": (batch, 7, LAYERS["dim"]), "condition": (batch, LAYERS["dim"])}
    inputs = {
        name: torch.randn(*shapes[name], generator=generator)
        for name in sorted(case.inputs & shapes.keys())
    }
    if "prefix_attn_len" in case.inputs:
        inputs["prefix_attn_len"] = torch.tensor([7, 5])[:batch]
    return inputs


def rows(inputs: dict[str, Tensor], which: slice) -> dict[str, Tensor]:
    """The inputs of some sequences of the batch."""
    return {name: tensor[which] for name, tensor in inputs.items()}
