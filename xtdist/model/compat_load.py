"""Weights of an x-transformers module or file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xtdist.config import CheckpointError
from xtdist.model.compat_modules import check_same_model
from xtdist.model.compat_weights import from_x_transformers, unwrapped
from xtdist.model.config import LayersConfig


def load_x_transformers(
    source: nn.Module | Mapping[str, Tensor] | str | Path, config: Any
) -> dict[str, Tensor]:
    """The state dict of ``build_model(config)`` from an x-transformers TransformerWrapper, its
    state dict, or a file of that: ``.safetensors``, or what ``torch.save`` wrote (read without
    running code).

    A module also shows what it computes, and has to be the one that the config describes; dropouts
    and what only makes it fast may differ. Of a state dict, names and shapes are all there is.

    Layers by themselves: ``load_x_transformers(theirs.attn_layers, ours.layers.config)`` is what
    ``ours.layers`` loads, of any wrapper; so with the encoder and ``decoder.net`` of an
    XTransformer.

    Raises:
        TypeError: ``config`` is no config of a model.
        CheckpointError: another kind of source, a file that can't be read, a module that computes
            something else, or as ``from_x_transformers``.
    """
    if isinstance(source, nn.Module):
        module = unwrapped(source)
        _check_kind(module, config)
        ours = from_x_transformers(module.state_dict(), config)
        check_same_model(module, config)
        return ours
    if isinstance(source, Mapping):
        return from_x_transformers(source, config)
    if not isinstance(source, (str, Path)):
        raise CheckpointError(
            f"source: got {type(source).__name__}; give an x-transformers module, its state dict, "
            "or the path of a file that holds one"
        )
    return from_x_transformers(_read(Path(source)), config)


def _check_kind(module: nn.Module, config: Any) -> None:
    """Models around layers other than a TransformerWrapper have configs of other kinds."""
    if isinstance(config, LayersConfig) or not hasattr(module, "attn_layers"):
        return
    raise TypeError(
        f"config: got {type(config).__name__} for a {type(module).__name__}; weights are converted "
        "of a TransformerWrapper, and of layers by themselves: give theirs.attn_layers with "
        "ours.layers.config, load the result into ours.layers, and copy what is around them"
    )


def _read(path: Path) -> Mapping[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # every reader has errors of its own
        if "weights_only" in str(e):
            raise CheckpointError(
                f"{path}: can't be read as weights: it holds objects, whose reading runs code that "
                "the file brings along; save model.state_dict() instead of the model, or, if you "
                "trust the file, give torch.load(path, weights_only=False)"
            ) from None
        reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise CheckpointError(f"{path}: can't be read as weights ({reason})") from None
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise CheckpointError(f"{path}: holds no state dict; save model.state_dict()")
    return state
