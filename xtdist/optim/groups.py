"""Which parameters are decayed."""

from __future__ import annotations

from typing import Any

from torch import nn

from xtdist.config import ConfigError
from xtdist.optim.config import OptimConfig


def param_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """The trainable parameters in at most two groups, ``decay`` and ``no_decay``.

    Decayed: matrices. Not decayed: biases, norm gains and whatever else is a vector (all axes but
    one have length 1), and the weights of embeddings (``nn.Embedding``, or a module that says
    ``is_embedding``) unless ``decay_embeddings``: rows of rare tokens get hardly any gradient and
    would only shrink (https://arxiv.org/abs/2501.00656, section 3.4.2). A weight tied to an
    embedding counts as that embedding.

    Each group has the keys ``params``, ``name``, ``weight_decay`` and ``lr_scale``, by which
    :func:`xtdist.optim.set_lr` multiplies the rate. Empty groups are left out; the order follows
    ``named_parameters``.

    Raises:
        ConfigError: no parameter is trainable.
    """
    embeddings = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, nn.Embedding) or getattr(module, "is_embedding", False)
    }
    decay: list[nn.Parameter] = []
    no_decay: list[nn.Parameter] = []
    for _, p in model.named_parameters():
        if not p.requires_grad:
            continue
        is_vector = sum(size > 1 for size in _shape(p)) < 2
        exempt = is_vector or (id(p) in embeddings and not config.decay_embeddings)
        (no_decay if exempt else decay).append(p)
    groups = [
        _group("decay", decay, config.weight_decay),
        _group("no_decay", no_decay, 0.0),
    ]
    groups = [g for g in groups if g["params"]]
    if not groups:
        raise ConfigError("the model has no trainable parameter; unfreeze at least one")
    return groups


def _shape(p: nn.Parameter) -> tuple[int, ...]:
    """The full shape, also when ZeRO-3 has cut the parameter and left an empty tensor here."""
    return tuple(getattr(p, "ds_shape", p.shape))


def _group(name: str, params: list[nn.Parameter], weight_decay: float) -> dict[str, Any]:
    return {"name": name, "params": params, "weight_decay": weight_decay, "lr_scale": 1.0}
