"""Maximal update parametrization: what of a model follows its width.

Table 8 of https://arxiv.org/abs/2203.03466, the form that allows a tied embedding: with m the width
over that of the base,

                     start values   multiplier   AdamW's rate   Muon's rate
    vectors, embeddings, head    1       head: 1/m        1              -
    hidden matrices          fan_in^-1/2     1           1/m     as below
    scores of attention          -      1/dim_head        -              -

A matrix whose outputs do not grow (a router) starts with fan_in^-1, and learns as hidden ones
do. An orthogonal update of spectral norm √(fan_out / fan_in) is right at any width
(https://arxiv.org/abs/2310.17813), so Muon needs a factor only where its own scale grows:
m^-1/2 for ``adamw_rms``, 1 for ``original``. The rates themselves are applied by
``xtdist.optim.groups``, from the ``fan_in_growth`` that modules say here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from xtdist.config import ConfigError
from xtdist.model.config import ModelConfig
from xtdist.nn.attention.module import Attention
from xtdist.nn.attention.projection import JointProjection
from xtdist.nn.embedding import Head, TokenEmbedding
from xtdist.nn.feedforward.moe import MoE, Router
from xtdist.nn.linear import Linear
from xtdist.nn.position.learned import LearnedPosition


def apply_mup(model: nn.Module, config: ModelConfig) -> None:
    """Give the modules of a model that was just built what ``config.mup`` says: factors of their
    start values, which are applied to those that were drawn, the scale of scores, and
    ``fan_in_growth``: how much wider the inputs of which of their parameters are.

    Raises:
        ConfigError: a parameter of which it is not known how it follows the width.
    """
    if config.mup is None:
        return
    growth = config.dim / config.mup.base_width
    for name, module in model.named_modules():
        if isinstance(module, Attention):
            module.scale *= _score_factor(config)
        _follow(name, module, growth)


def _follow(name: str, module: nn.Module, growth: float) -> None:
    if type(module) in (Linear, JointProjection, Router):
        module.fan_in_growth = {"weight": growth}  # type: ignore[assignment]
        if isinstance(module, Router):
            _scale_start(module, growth**-0.5)
    elif type(module) in (Head, TokenEmbedding, LearnedPosition):
        _scale_start(module, growth**0.5)
    elif type(module) is MoE:
        module.fan_in_growth = {"proj_in": growth, "proj_out": growth}  # type: ignore[assignment]
    else:
        for own, p in module.named_parameters(recurse=False):
            if sum(size > 1 for size in p.shape) > 1:
                raise ConfigError(
                    f"mup: how start values and rate of {name}.{own} {tuple(p.shape)} follow the "
                    "width is not known; leave out that part, or mup"
                )


@torch.no_grad()
def _scale_start(module: nn.Module, factor: float) -> None:
    module.init_gain = module.init_gain * factor  # type: ignore[operator, assignment]
    module.weight.mul_(factor)  # type: ignore[operator]


def _score_factor(config: ModelConfig) -> float:
    """What scores are multiplied with beside dim_head^-1/2."""
    assert config.mup is not None
    dim_head = config.attention.dim_head
    return math.sqrt((config.mup.base_dim_head or dim_head) / dim_head)


def at_width(config: ModelConfig, width: int) -> ModelConfig:
    """The same model with another ``dim`` and, in proportion, more or fewer heads.

    Raises:
        ConfigError: there would be no whole number of heads.
    """
    heads = _in_proportion("heads", config.heads, config.dim, width)
    attention = config.attention
    if attention.kv_heads is not None:
        kv_heads = _in_proportion("attention.kv_heads", attention.kv_heads, config.dim, width)
        attention = dataclasses.replace(attention, kv_heads=kv_heads)
    return dataclasses.replace(config, dim=width, heads=heads, attention=attention)


def _in_proportion(place: str, heads: int, dim: int, width: int) -> int:
    if heads * width % dim:
        raise ConfigError(
            f"{place}: {heads} at dim={dim} would be {heads * width / dim:g} at {width}; choose "
            "widths with whole numbers of heads"
        )
    return heads * width // dim


def plain_config(config: ModelConfig) -> ModelConfig:
    """The config of a model without ``mup`` that computes the same, with the weights that
    :func:`without_mup` makes.

    Raises:
        ConfigError: queries are normed, so that no weight can scale them.
    """
    if config.mup is None:
        return config
    if _score_factor(config) != 1 and config.attention.qk_rmsnorm:
        raise ConfigError(
            "mup.base_dim_head: scores have a scale of their own, which queries behind a norm "
            "(attention.qk_rmsnorm) can't take over; keep the model as it is"
        )
    apart = config.output_scale != 1
    tied = config.tie_embedding and not apart
    return dataclasses.replace(config, mup=None, logit_scale=1.0, tie_embedding=tied)


def without_mup(
    config: ModelConfig, weights: Mapping[str, Tensor]
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """A model without ``mup`` that computes the same, for those who know nothing of it: the scale
    of scores goes into the queries' weights, that of the logits into the head's, which then is a
    matrix of its own. To be trained on it is another model.

    Raises:
        ConfigError: as ``plain_config``.
    """
    plain = plain_config(config)
    if config.mup is None:
        return config, dict(weights)
    folded = dict(weights)
    if not plain.tie_embedding:
        own = "token_embedding.weight" if config.tie_embedding else "head.weight"
        folded["head.weight"] = weights[own] * config.output_scale
    factor, rows = _score_factor(config), config.heads * config.attention.dim_head
    for name in weights if factor != 1 else ():
        if name.endswith((".projection.weight", ".projection.bias")):
            whole = weights[name].clone()
            whole[:rows] *= factor
            folded[name] = whole
    return plain, folded
