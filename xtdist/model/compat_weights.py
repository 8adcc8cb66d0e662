"""x-transformers' weights in our layout and back: the same logits from the same numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from xtdist.config import CheckpointError, ConfigError
from xtdist.model.compat_back import keywords_of, their_form
from xtdist.model.compat_rules import Step, check_convertible, derived, fill, steps, whose
from xtdist.model.config import LayersConfig, ModelConfig
from xtdist.model.layers import Layers
from xtdist.model.wrapper import TransformerWrapper

WRAPPERS = ("net", "module", "_orig_mod")
"""Modules around a model: AutoregressiveWrapper's, DistributedDataParallel's, torch.compile's."""

STACK, OURS = "attn_layers.", "layers."
"""How names of the layers begin, theirs and ours."""


def from_x_transformers(theirs: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
    """The state dict of ``build_model(config)`` from that of an x-transformers TransformerWrapper
    with the same keywords. Tensors may be shared with ``theirs``.

    Query heads are reordered where they share keys: there, head i reads key/value head
    i mod kv_heads; here, i // (heads // kv_heads). Names may begin with ``net.`` or ``module.``,
    as those of its AutoregressiveWrapper or of DistributedDataParallel do. Biases that the config
    does not have are left out if they are zero.

    With the config of a stack alone, the names are those of its layers: as a stack by itself has
    them, and so are those of the result, or from ``attn_layers.`` on, and those of the result begin
    with ``layers.``. Of a model with an embedding or head that was given as an object, the layers
    alone are checked.

    Raises:
        TypeError: ``config`` is no config of a model.
        CheckpointError: a weight that is missing, of another shape, not of a floating type or of
            an option that the config does not have; a config whose model x-transformers lacks.
    """
    _check_config(config)
    form = _their_form(config)
    left = _unwrapped(theirs)
    bare = _is_bare(left, config, begin=STACK)
    left = {STACK + name: tensor for name, tensor in left.items()} if bare else left
    for name in derived(form):
        left.pop(name, None)
    there = _converted(_expected(form), form)
    _check_theirs(left, there, form)
    ours: dict[str, Tensor] = {}
    for step in steps(form):
        for numbers in list(step.numbered(left, ours=False)):
            tensors = []
            for name, part in zip(step.theirs, step.rule.parts, strict=True):
                tensor = left.pop(fill(name, numbers))
                for transform in part.transforms:
                    tensor = transform.into(tensor, step.place.context)
                tensors.append(tensor)
            merged = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
            ours[fill(step.ours, numbers)] = merged
    for name in _lacking(config, form):
        _check_zero(name, ours.pop(name))
    return {name.removeprefix(OURS) if bare else name: tensor for name, tensor in ours.items()}


def to_x_transformers(
    ours: nn.Module | Mapping[str, Tensor], config: Any = None
) -> dict[str, Tensor]:
    """The state dict that an x-transformers TransformerWrapper, or its layers by themselves, with
    the keywords ``keywords_of(config)`` loads (``strict=True``); the way back of
    ``from_x_transformers``. Biases that theirs has and the config does not are zero.

    ours: a model or a stack of layers (or an objective around a model), which has its config; or a
        state dict with its ``config``.

    Raises:
        TypeError: ``config`` is no config of a model.
        CheckpointError: a model that x-transformers can't compute; a weight that is missing, of
            another shape or none of the config's, or that x-transformers has no place for.
    """
    if isinstance(ours, nn.Module):
        module = unwrapped(ours)
        config = getattr(module, "config", None) if config is None else config
        ours = module.state_dict()
    _check_config(config)
    form = _their_form(config)
    state = _tensors(ours)
    bare = _is_bare(state, config, begin=OURS)
    state = {OURS + name: tensor for name, tensor in state.items()} if bare else state
    here = _expected(config)
    if not _is_given(config):
        for name in state.keys() - here.keys():
            raise CheckpointError(
                f"{name}: x-transformers has no such weight, nor has a model of this config"
            )
    _check_present(state, here)
    for name, like in _lacking(config, form).items():
        state[name] = torch.zeros(like.shape, dtype=next(iter(state.values())).dtype)
    theirs = {**derived(form), **_converted(state, form)}
    return {name.removeprefix(STACK) if bare else name: tensor for name, tensor in theirs.items()}


def unwrapped(module: nn.Module) -> nn.Module:
    """The model inside of an objective, DistributedDataParallel or torch.compile."""
    inner = next((w for name in WRAPPERS if (w := getattr(module, name, None)) is not None), None)
    return unwrapped(inner) if isinstance(inner, nn.Module) else module


def _their_form(config: LayersConfig) -> LayersConfig:
    """The config whose weights are theirs, with all biases that they have.

    Raises:
        CheckpointError: x-transformers' model with the same keywords is another one, or it has no
            keywords for this model.
    """
    check_convertible(config)
    try:
        keywords_of(config)
    except ConfigError as e:
        raise CheckpointError(f"no weights to convert: {e}") from None
    return their_form(config)


def _lacking(config: LayersConfig, form: LayersConfig) -> dict[str, Tensor]:
    """Biases that theirs has and a model of ``config`` does not."""
    if config.feedforward == form.feedforward:
        return {}
    have = _expected(config)
    return {name: like for name, like in _expected(form).items() if name not in have}


def _check_zero(name: str, bias: Tensor) -> None:
    if bias.is_meta or bool(bias.any()):
        raise CheckpointError(
            f"{name}: the weights have this bias and the config does not (x-transformers' gated "
            "feed-forwards always have one); set feedforward.bias_in=true (bias_out=true)"
        )


def _is_bare(names: Mapping[str, Any], config: Any, *, begin: str) -> bool:
    """Whether ``names`` are those of a stack by itself, and its config is given."""
    stack = not isinstance(config, ModelConfig)
    return stack and bool(names) and not any(name.startswith(begin) for name in names)


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
