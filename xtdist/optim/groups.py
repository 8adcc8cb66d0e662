"""Which parameters are optimized how: decayed or not, by AdamW or by Muon."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from typing import Any, Protocol

from torch import Tensor, nn

from xtdist.config import ConfigError
from xtdist.optim.config import AdamWConfig, GroupConfig, MuonConfig


class Matrices(Protocol):
    """A parameter that is matrices side by side along ``axis``, their outputs; with three axes the
    first numbers experts (``xtdist.model.MuonMatrix`` is one)."""

    @property
    def parameter(self) -> Tensor: ...
    @property
    def sizes(self) -> tuple[int, ...]: ...
    @property
    def axis(self) -> int: ...


def param_groups(
    model: nn.Module, config: AdamWConfig | MuonConfig, matrices: Sequence[Matrices] = ()
) -> list[dict[str, Any]]:
    """The trainable parameters in groups: ``muon`` (of ``matrices``, if that is the kind of
    ``config``), ``decay``, ``no_decay``, and then those of ``config.groups``.

    Decayed: matrices. Not decayed: biases, norm gains and whatever else is a vector (all axes but
    one have length 1), and the weights of embeddings (``nn.Embedding``, or a module that says
    ``is_embedding``) unless ``decay_embeddings``: rows of rare tokens get hardly any gradient and
    would only shrink (https://arxiv.org/abs/2501.00656, section 3.4.2). A weight tied to an
    embedding counts as that embedding.

    Where modules say how much wider the inputs of their parameters are than in a base model
    (``fan_in_growth``, muP), the rate of those is divided by that (of AdamW; by its root of Muon
    with ``adamw_rms``, whose update grows with the width), and the decay multiplied, so that rate
    times decay stays (https://arxiv.org/abs/2405.13698).

    Each group has the keys ``params``, ``name``, ``algorithm``, ``weight_decay``, ``tensors`` and
    ``elements`` (how many it has, also after ZeRO has cut them), and ``lr_scale``, by which
    :func:`xtdist.optim.set_lr` multiplies the rate. Empty groups are left out; within a group the
    order follows ``named_parameters``.

    Raises:
        ConfigError: no parameter is trainable, one of ``config.groups`` matches none, or there is
            no matrix for Muon.
    """
    muon = {id(m.parameter) for m in matrices} if isinstance(config, MuonConfig) else set()
    exempt = set() if config.decay_embeddings else _embeddings(model)
    growth = _fan_in_growth(model)
    members: dict[tuple[int, str, float], list[nn.Parameter]] = {}
    names: list[str] = []
    for full_name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        names.append(shown_name(full_name))
        rule = _rule_of(names[-1], config.groups)
        own = config.groups[rule] if rule >= 0 else GroupConfig(match="*")
        treatment = _treatment(p, own, muon, exempt)
        factor = _width_factor(config, treatment, growth.get(id(p), 1.0))
        members.setdefault((rule, treatment, factor), []).append(p)
    _check(config.groups, names)
    if isinstance(config, MuonConfig) and not any(kind == "muon" for _, kind, _ in members):
        raise ConfigError(
            "optim.kind: got 'muon', but no parameter is a hidden matrix for it (all are frozen, "
            "or optim.groups gives them to AdamW); set optim.kind to adamw"
        )
    kinds = ("muon", "decay", "no_decay")
    order = sorted(members, key=lambda key: (key[0], kinds.index(key[1]), -key[2]))
    return [_group(config, *key, members[key]) for key in order]


def shown_name(name: str) -> str:
    """A parameter's name as in the checkpoint's weights, without the wrappers around the net."""
    return name.removeprefix("objective.").removeprefix("net.")


def _treatment(p: nn.Parameter, own: GroupConfig, muon: set[int], exempt: set[int]) -> str:
    if id(p) in muon and own.optimizer is None:
        return "muon"
    is_vector = sum(size > 1 for size in _shape(p)) < 2
    return "no_decay" if is_vector or id(p) in exempt else "decay"


def _group(
    config: AdamWConfig | MuonConfig,
    rule: int,
    treatment: str,
    factor: float,
    params: list[nn.Parameter],
) -> dict[str, Any]:
    """``factor``: of the rate, by the width."""
    own = config.groups[rule] if rule >= 0 else GroupConfig(match="*")
    adamw_decay, adamw_scale = config.weight_decay, 1.0
    if isinstance(config, MuonConfig):
        adamw_decay = config.adamw_weight_decay
        adamw_scale = (config.adamw_lr or config.lr) / config.lr
    muon = treatment == "muon"
    decay = {"muon": config.weight_decay, "decay": adamw_decay, "no_decay": 0.0}[treatment]
    name = f"{own.match} {treatment}" if rule >= 0 else treatment
    group = {
        "params": params,
        "name": name if factor == 1 else f"{name} x{factor:.4g}",
        "algorithm": "muon" if muon else "adamw",
        "weight_decay": (decay if own.weight_decay is None else own.weight_decay) / factor,
        "lr_scale": own.lr_scale * (1.0 if muon else adamw_scale) * factor,
        "tensors": len(params),
        "elements": sum(_numel(p) for p in params),
    }
    if muon and isinstance(config, MuonConfig):
        for key in ("momentum", "nesterov", "scale", "ns_steps", "ns_precision"):
            group[key] = getattr(config, key)
    return group


def _fan_in_growth(model: nn.Module) -> dict[int, float]:
    """By the id of a parameter, where a module says so."""
    return {
        id(getattr(module, name)): growth
        for module in model.modules()
        for name, growth in getattr(module, "fan_in_growth", {}).items()
    }


def _width_factor(config: AdamWConfig | MuonConfig, treatment: str, growth: float) -> float:
    if treatment != "muon" or not isinstance(config, MuonConfig):
        return 1 / growth
    return float(growth**-0.5) if config.scale == "adamw_rms" else 1.0


def _rule_of(name: str, rules: Sequence[GroupConfig]) -> int:
    """The number of the first that matches; -1: none."""
    found = (i for i, rule in enumerate(rules) if fnmatchcase(name, rule.match))
    return next(found, -1)


def _check(rules: Sequence[GroupConfig], names: Collection[str]) -> None:
    if not names:
        raise ConfigError("the model has no trainable parameter; unfreeze at least one")
    used = {_rule_of(name, rules) for name in names}
    for i, rule in enumerate(rules):
        if i in used:
            continue
        hidden = any(fnmatchcase(name, rule.match) for name in names)
        why = (
            "every parameter that it matches is in an earlier group; put it before those"
            if hidden
            else f"no trainable parameter has such a name; they are like {', '.join(_some(names))}"
        )
        raise ConfigError(f"optim.groups.{i}.match: got {rule.match!r}; {why}")


def _some(names: Collection[str]) -> list[str]:
    """A few names, of different kinds."""
    kinds = {name.rsplit(".", 2)[-2:][0] + name.rsplit(".", 1)[-1]: name for name in names}
    return sorted(kinds.values())[:6]


def _embeddings(model: nn.Module) -> set[int]:
    return {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, nn.Embedding) or getattr(module, "is_embedding", False)
    }


def _shape(p: nn.Parameter) -> tuple[int, ...]:
    """The full shape, also when ZeRO-3 has cut the parameter and left an empty tensor here."""
    return tuple(getattr(p, "ds_shape", p.shape))


def _numel(p: nn.Parameter) -> int:
    return int(getattr(p, "ds_numel", p.numel()))
