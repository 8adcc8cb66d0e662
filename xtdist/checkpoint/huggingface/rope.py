"""Rotary positions in transformers' words, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xtdist.config import CheckpointError
from xtdist.nn.position.config import Llama3Config, RotaryConfig, YarnConfig

Tree = dict[str, Any]
LAYOUTS = ("interleaved", "halves")


def to_rope(position: Any, dim_head: int) -> Tree:
    """``rope_theta`` and, where wavelengths are changed, ``rope_scaling`` (both read by old and new
    versions of transformers, and by vLLM, llama.cpp and CTranslate2)."""
    if not isinstance(position, RotaryConfig):
        return {"rope_theta": 10_000.0}
    scaling = _scaling(position)
    tree: Tree = {"rope_theta": based(position, dim_head)}
    return tree if scaling is None else {**tree, "rope_scaling": scaling}


def based(position: RotaryConfig, dim_head: int) -> float:
    """theta with its rescaling in it."""
    dim = position.dim or dim_head
    if position.theta_rescale == 1:
        return position.theta
    return float(position.theta * position.theta_rescale ** (dim / (dim - 2)))


def _scaling(position: RotaryConfig) -> Tree | None:
    scaling = position.scaling
    if isinstance(scaling, YarnConfig):
        return {
            "rope_type": "yarn",
            "factor": scaling.factor,
            "original_max_position_embeddings": scaling.original_max_len,
            "beta_fast": scaling.beta_fast,
            "beta_slow": scaling.beta_slow,
            "attention_factor": scaling.amplitude,
        }
    if isinstance(scaling, Llama3Config):
        return {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_len,
        }
    if position.interpolation != 1:
        return {"rope_type": "linear", "factor": position.interpolation}
    return None


def from_rope(tree: Mapping[str, Any], *, theta: float | None, longest: int, where: str) -> Tree:
    """The position of a config of ours. ``tree``: the keys ``rope_theta``, ``rope_scaling`` and
    ``rope_parameters`` of a config.json; ``theta`` where it has none.

    Raises:
        CheckpointError: a kind of scaling that is not known here, or a key of it.
    """
    new = tree.get("rope_parameters") or {}
    old = tree.get("rope_scaling") or {}
    if not isinstance(new, dict) or not isinstance(old, dict):
        raise CheckpointError(f"{where}: rope_scaling or rope_parameters is no mapping")
    if new and old and _without_theta(new) != _without_theta(old):
        raise CheckpointError(
            f"{where}: rope_scaling and rope_parameters say different things; remove one of them"
        )
    given = dict(new or old)
    theta = given.pop("rope_theta", tree.get("rope_theta", theta))
    if theta is None:
        raise CheckpointError(f"{where}: rope_theta is missing; add it")
    if tree.get("rope_theta", theta) != theta:
        raise CheckpointError(
            f"{where}: rope_theta is {tree['rope_theta']!r} and {theta!r} in rope_parameters; "
            "remove one of them"
        )
    position = {"kind": "rotary", "theta": theta, "layout": "halves"}
    kinds = [given.pop(key) for key in ("rope_type", "type") if given.get(key) is not None]
    if not all(isinstance(kind, str) for kind in kinds):
        raise CheckpointError(f"{where}: rope_type is {kinds[0]!r:.80}; it must be a name")
    if len(set(kinds)) > 1:
        raise CheckpointError(f"{where}: rope_type and type differ; remove one of them")
    kind = kinds[0] if kinds else "default"
    if given.pop("partial_rotary_factor", 1) not in (1, None):
        raise CheckpointError(f"{where}: partial_rotary_factor: only whole heads are turned here")
    return position | _from_scaling(kind, given, longest=longest, where=where)


def _without_theta(tree: Mapping[str, Any]) -> Tree:
    return {key: value for key, value in tree.items() if key not in ("rope_theta", "type")}


def _from_scaling(kind: str, given: Tree, *, longest: int, where: str) -> Tree:
    """What a kind of scaling adds; every key of it is used."""
    given = {key: value for key, value in given.items() if value is not None}
    found: Tree = {}
    if kind == "linear":
        found = {"interpolation": _take(given, "factor", where)}
    elif kind == "llama3":
        names = ("factor", "low_freq_factor", "high_freq_factor")
        scaling = {name: _take(given, name, where) for name in names}
        original = _take(given, "original_max_position_embeddings", where)
        found = {"scaling": {"kind": "llama3", **scaling, "original_max_len": original}}
    elif kind == "yarn":
        if given.pop("truncate", True) is not True:
            raise CheckpointError(f"{where}: rope_scaling.truncate: only true is known here")
        names = ("beta_fast", "beta_slow", "attention_factor")
        scaling = {name: given.pop(name) for name in names if name in given}
        original = given.pop("original_max_position_embeddings", longest)
        factor = _take(given, "factor", where)
        scaling |= {"factor": factor, "original_max_len": original}
        found = {"scaling": {"kind": "yarn", **scaling}}
    elif kind != "default":
        raise CheckpointError(
            f"{where}: rope_type {kind!r:.80}: default, linear, yarn and llama3 are known here"
        )
    if given:
        raise CheckpointError(
            f"{where}: rope_scaling.{next(iter(given))!s:.80}: {kind} has no such key here"
        )
    return found


def _take(given: Tree, name: str, where: str) -> Any:
    if name not in given:
        raise CheckpointError(f"{where}: rope_scaling.{name} is missing; add it")
    return given.pop(name)
