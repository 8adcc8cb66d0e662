"""x-transformers' weights in our layout and back: the same logits from the same numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xtdist.config import CheckpointError
from xtdist.model.compat_rules import Step, check_convertible, derived, fill, steps, whose
from xtdist.model.config import LayersConfig, ModelConfig
from xtdist.model.layers import Layers
from xtdist.model.wrapper import TransformerWrapper

WRAPPERS = ("net", "module", "_orig_mod")
"""Modules around a model: AutoregressiveWrapper's, DistributedDataParallel's, torch.compile's."""

STACK = "attn_layers."
"""How names of their layers begin."""


def from_x_transformers(theirs: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
    """The state dict of ``build_model(config)`` from that of an x-transformers TransformerWrapper
    with the same keywords. Tensors may be shared with ``theirs``.

    Query heads are reordered where they share keys: there, head i reads key/value head
    i mod kv_heads; here, i // (heads // kv_heads). Names may begin with ``net.`` or ``module.``,
    as those of its AutoregressiveWrapper or of DistributedDataParallel do. With the config of a
    stack alone, the names are those of its layers, from ``attn_layers.`` on. Of a model with an
    embedding or head that was given as an object, the layers alone are checked.

    Raises:
        TypeError: ``config`` is no config of a model.
        CheckpointError: a weight that is missing, of another shape, not of a floating type or of
            an option that the config does not have; a config whose model x-transformers lacks.
    """
    _check_config(config)
    check_convertible(config)
    left = _unwrapped(theirs)
    for name in derived(config):
        left.pop(name, None)
    here = _expected(config)
    there = _converted(here, config)
    _check_theirs(left, there, config)
    ours: dict[str, Tensor] = {}
    for step in steps(config):
        for numbers in list(step.numbered(left, ours=False)):
            tensors = []
            for name, part in zip(step.theirs, step.rule.parts, strict=True):
                tensor = left.pop(fill(name, numbers))
                for transform in part.transforms:
                    tensor = transform.into(tensor, step.place.context)
                tensors.append(tensor)
            merged = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
            ours[fill(step.ours, numbers)] = merged
    return ours


def to_x_transformers(ours: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
    """The state dict that an x-transformers TransformerWrapper with the same keywords loads
    (``strict=True``); the way back of ``from_x_transformers``.

    Raises:
        TypeError: ``config`` is no config of a model.
        CheckpointError: a weight that is missing, of another shape or none of the config's, or
            that x-transformers has no place for.
    """
    _check_config(config)
    check_convertible(config)
    here = _expected(config)
    state = _tensors(ours)
    if not _is_given(config):
        for name in state.keys() - here.keys():
            raise CheckpointError(
                f"{name}: x-transformers has no such weight, nor has a model of this config"
            )
    _check_present(state, here)
    return {**derived(config), **_converted(state, config)}


def load_x_transformers(
    source: nn.Module | Mapping[str, Tensor] | str | Path, config: Any
) -> dict[str, Tensor]:
    """The state dict of ``build_model(config)`` from an x-transformers module, its state dict, or
    a file of that: ``.safetensors``, or what ``torch.save`` wrote (read without running code).

    Raises:
        TypeError: ``config`` is no config of a model.
        CheckpointError: another kind of source, a file that can't be read, or as
            ``from_x_transformers``.
    """
    if isinstance(source, nn.Module):
        return from_x_transformers(source.state_dict(), config)
    if isinstance(source, Mapping):
        return from_x_transformers(source, config)
    if not isinstance(source, (str, Path)):
        raise CheckpointError(
            f"source: got {type(source).__name__}; give an x-transformers module, its state dict, "
            "or the path of a file that holds one"
        )
    path = Path(source)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # every reader has errors of its own
        reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise CheckpointError(f"{path}: can't be read as weights ({reason})") from None
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise CheckpointError(f"{path}: holds no state dict; save model.state_dict()")
    return from_x_transformers(state, config)


def _check_config(config: Any) -> None:
    if not isinstance(config, LayersConfig):
        raise TypeError(
            f"config: got {type(config).__name__}; give the config of a model or of its layers "
            "(model.config)"
        )


def _tensors(state: Any) -> dict[str, Tensor]:
    if not isinstance(state, Mapping):
        raise CheckpointError(f"got {type(state).__name__}; give a state dict: names and tensors")
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(f"{name}: got {type(tensor).__name__}, no tensor with a name")
    return dict(state)


def _unwrapped(theirs: Any) -> dict[str, Tensor]:
    """``theirs`` without what modules around the model put before its names."""
    state = _tensors(theirs)
    found = [re.match(r"((?:\w+\.)*?)(?:token_emb|attn_layers)\.", name) for name in state]
    prefixes = sorted({match[1] for match in found if match})
    if not prefixes or prefixes == [""]:
        return state
    if len(prefixes) > 1:
        listed = ", ".join(prefix or "nothing" for prefix in prefixes)
        raise CheckpointError(
            f"the weights of several models, whose names begin with {listed}; give those of one, "
            "without what their names begin with"
        )
    prefix = prefixes[0]
    other = next((name for name in state if not name.startswith(prefix)), None)
    known = all(part in WRAPPERS for part in prefix.rstrip(".").split("."))
    if known and other is None:
        return {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    beside = "" if other is None else f", and leave out others, like {other}"
    raise CheckpointError(
        f"names of weights begin with {prefix}; strip that (name.removeprefix({prefix!r})){beside}"
    )


def _is_given(config: Any) -> bool:
    """Whether a part of the model is an object that no config describes."""
    return isinstance(config, ModelConfig) and bool(config.embedding.given or config.head.given)


def _expected(config: Any) -> dict[str, Tensor]:
    """Names of our weights, and tensors without numbers; of the layers alone where the config
    can't say the rest."""
    whole = isinstance(config, ModelConfig) and not _is_given(config)
    with torch.device("meta"):
        if whole:
            return TransformerWrapper.from_config(config).state_dict()
        stack = Layers(config.layers if isinstance(config, ModelConfig) else config)
        return stack.state_dict(prefix="layers.")


def _converted(ours: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
    theirs: dict[str, Tensor] = {}
    left = dict(ours)
    for step in steps(config):
        for numbers in list(step.numbered(left, ours=True)):
            merged = left.pop(fill(step.ours, numbers))
            for name, tensor in _split(step, merged):
                theirs[fill(name, numbers)] = tensor
    if left:
        raise CheckpointError(f"{next(iter(left))}: x-transformers has no such weight")
    return theirs


def _check_theirs(found: Mapping[str, Tensor], needed: Mapping[str, Tensor], config: Any) -> None:
    """Raises CheckpointError where names, shapes or types are not those of the config."""
    _check_depth(found, needed)
    strange = [name for name in found if name not in needed]
    if _is_given(config):
        strange = [name for name in strange if name.startswith(STACK)]
    reasons = {name: whose(name, config) for name in strange}
    for name, reason in reasons.items():
        if reason:
            raise CheckpointError(f"{name}: {reason}")
    _check_present(found, needed)
    if strange:
        raise CheckpointError(
            f"{strange[0]}: the weight of an x-transformers option that xtdist lacks or the "
            "config does not have"
        )


def _check_depth(found: Mapping[str, Tensor], needed: Mapping[str, Tensor]) -> None:
    have, want = _depth(found), _depth(needed)
    if have > want:
        raise CheckpointError(
            f"{STACK}layers.{want}: the weights have more layers than the config: {have} "
            f"attentions and feed-forwards, and the config's depth gives {want}"
        )


def _depth(names: Mapping[str, Any]) -> int:
    """The attentions and feed-forwards of the stack."""
    found = [re.match(rf"{re.escape(STACK)}layers\.(\d+)\.", name) for name in names]
    return max((int(match[1]) + 1 for match in found if match), default=0)


def _check_present(found: Mapping[str, Tensor], needed: Mapping[str, Tensor]) -> None:
    missing = [name for name in needed if name not in found]
    if missing:
        more = f" ({len(missing) - 1} more are missing)" if len(missing) > 1 else ""
        raise CheckpointError(
            f"no weight {missing[0]}: the config needs one of shape "
            f"{tuple(needed[missing[0]].shape)}{more}"
        )
    for name, want in needed.items():
        got = found[name]
        if got.shape != want.shape:
            raise CheckpointError(
                f"{name}: its shape is {tuple(got.shape)}, the config needs {tuple(want.shape)}"
            )
        if want.is_floating_point() and not got.is_floating_point():
            raise CheckpointError(
                f"{name}: its type is {got.dtype}, the config needs a floating type"
            )


def _split(step: Step, merged: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The parts of one tensor of ours, as theirs."""
    context, parts = step.place.context, step.rule.parts
    rows = [part.rows(context) if part.rows else None for part in parts]
    rest = len(merged) - sum(n for n in rows if n is not None) if merged.ndim else 0
    sizes = [rest if n is None else n for n in rows]
    pieces = [merged] if len(parts) == 1 else list(merged.split(sizes))
    for name, part, piece in zip(step.theirs, parts, pieces, strict=True):
        tensor = piece
        for transform in reversed(part.transforms):
            tensor = transform.back(tensor, context)
        yield name, tensor.clone()
