"""Whether an x-transformers module is the one that a config describes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from xtdist.config import CheckpointError
from xtdist.model.compat_back import keywords_of
from xtdist.model.config import LayersConfig, ModelConfig

LIBRARY = "x_transformers"
IGNORED = frozenset(
    {
        "training",
        "p",
        "dropout",
        "attn_dropout",
        "layer_dropouts",
        "cross_attn_tokens_dropout",
        "emb_frac_gradient",
        "max_seq_len",
        "flash",
        "flash_pack_seq",
        "sdp_kwargs",
        "sdp_context_manager",
        "init_type",
        "disable_abs_pos_emb",
        "pre_norm",
    }
)
"""Attributes that change nothing of what is computed outside of training, or that show in the
modules (positions, norms) where they do."""
STACKS = ("", "attn_layers")
"""Where classes may differ: what a Decoder is shows in its settings."""
Plain = (bool, int, float, str)


def check_same_model(theirs: nn.Module, config: LayersConfig) -> None:
    """Compare ``theirs``, a TransformerWrapper of x-transformers or its layers, with what the
    keywords of ``config`` build there: modules, and their numbers and switches.

    Raises:
        CheckpointError: they differ in a way that changes what is computed, with the first place.
    """
    built = _built(theirs, config)
    if built is None:
        return
    difference = next(_differences(theirs, built), "")
    if difference:
        raise CheckpointError(
            f"{difference}; so the same weights would give other logits. Set the config as the "
            "model was built, or give its state_dict() to take the weights all the same"
        )


def _built(theirs: nn.Module, config: LayersConfig) -> nn.Module | None:
    """The module of the same library that ``config`` describes, without numbers; None where there
    is none: another library, or a model that it can't build."""
    library = sys.modules.get(LIBRARY)
    if library is None or not any(c.__module__.startswith(LIBRARY) for c in type(theirs).__mro__):
        return None
    layers, wrapper = keywords_of(config)
    name = "PrefixDecoder" if config.prefix else "Decoder" if config.causal else "Encoder"
    with torch.random.fork_rng(devices=()), torch.device("meta"):
        try:
            stack: nn.Module = getattr(library, name)(**layers, verbose=False)
            if not isinstance(config, ModelConfig):
                return stack
            for place, part in (("embedding", "token_emb"), ("head", "to_logits")):
                if getattr(config, place).given:
                    wrapper[part] = getattr(theirs, part)
            whole: nn.Module = library.TransformerWrapper(**wrapper, attn_layers=stack)
            return whole
        except Exception:  # its own mistakes are none of the user's
            return None


def _differences(theirs: nn.Module, built: nn.Module) -> Iterator[str]:
    mine, others = dict(theirs.named_modules()), dict(built.named_modules())
    for name in sorted(mine.keys() | others.keys()):
        a, b = mine.get(name), others.get(name)
        shown = name or type(theirs).__name__
        if a is None or b is None:
            if not _is_dropout(a) and not _is_dropout(b):
                yield f"{shown}: the model has {_kind(a)} there, the config gives {_kind(b)}"
        elif name not in STACKS and _kind(a) != _kind(b):
            if not _is_dropout(a) or not _is_dropout(b):
                yield f"{shown}: the model has {_kind(a)} there, the config gives {_kind(b)}"
        else:
            yield from _settings(shown, a, b)


def _settings(shown: str, a: nn.Module, b: nn.Module) -> Iterator[str]:
    mine, others = _plain(a), _plain(b)
    for name in sorted(mine.keys() & others.keys()):
        if mine[name] != others[name]:
            yield (
                f"{shown}.{name}: the model has {mine[name]!r}, the config gives {others[name]!r}"
            )


def _plain(module: nn.Module) -> dict[str, Any]:
    return {
        name: _shown(value)
        for name, value in vars(module).items()
        if name not in IGNORED and not name.startswith("_") and _is_plain(_shown(value))
    }


def _shown(value: Any) -> Any:
    """Functions by their names and what is bound of their arguments."""
    if isinstance(value, partial):
        bound = ", ".join(f"{k}={v!r}" for k, v in sorted(value.keywords.items()))
        return f"{_shown(value.func)}({bound})"
    return getattr(value, "__name__", value) if callable(value) else value


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(_is_plain(v) for v in value)
    return value is None or isinstance(value, Plain)


def _kind(module: nn.Module | None) -> str:
    """The name of the library's class that it is, or of its own."""
    if module is None:
        return "nothing"
    own = [c for c in type(module).__mro__ if c.__module__.partition(".")[0] in (LIBRARY, "torch")]
    return (own or [type(module)])[0].__name__


def _is_dropout(module: nn.Module | None) -> bool:
    return isinstance(module, (nn.Dropout, nn.Identity))
