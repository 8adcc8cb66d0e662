"""Weights as the beginning of another run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import nn

from xtdist.checkpoint.huggingface.check import ONLY_TRAINING
from xtdist.checkpoint.layout import read_manifest, verify
from xtdist.checkpoint.weights import TENSORS, find_weights, load_state, read_config
from xtdist.config import CheckpointError, DataError, to_mapping
from xtdist.data import Tokenizer, load_tokenizer
from xtdist.model.config import ModelConfig
from xtdist.nn.position.config import LearnedConfig


def check_start(folder: str, model: ModelConfig, tokenizer: Tokenizer) -> None:
    """Whether a run of ``model`` on data of ``tokenizer`` can begin with the weights in ``folder``
    (as for ``find_weights``).

    Raises:
        CheckpointError: there are none, or those of another model; every setting that differs is
            named, with both values.
        DataError: the data has another tokenizer.
    """
    path = find_weights(folder)
    theirs = read_config(path).model
    may = (*ONLY_TRAINING, *(() if isinstance(model.position, LearnedConfig) else ("max_seq_len",)))
    rows = [
        f"  model.{place}: the weights' {a!r}, this run's {b!r}"
        for place, a, b in _differences(to_mapping(theirs), to_mapping(model))
        if not any(f"{place}.".startswith(f"{free}.") for free in may)
    ]
    if rows:
        raise CheckpointError(
            f"checkpoint.start_from: {path} holds another model:\n"
            + "\n".join(rows)
            + f"\nPut these in the config, or take all of it: model.preset=weights:{folder}"
        )
    if load_tokenizer(path / "tokenizer.json").sha256 != tokenizer.sha256:
        raise DataError(
            f"checkpoint.start_from: the tokenizer of {path} is not the dataset's; prepare the "
            "data with it (tokenizer.kind=huggingface, path: the model's original tokenizer.json; "
            "for a run of xtdist, the dataset that it was trained with)"
        )


def start_from(net: nn.Module, folder: str | Path) -> None:
    """Put saved weights into a network that is about to be trained, in the network's own type.

    Raises:
        CheckpointError: there are none, they were changed, or are another model's.
    """
    path = find_weights(folder)
    verify(path, read_manifest(path))
    dtype = next(net.parameters()).dtype
    state = {name: tensor.to(dtype) for name, tensor in load_file(path / TENSORS).items()}
    load_state(net, state, where=path)


def _differences(a: Any, b: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in sorted({*a, *b}):
            here = f"{path}.{key}" if path else key
            yield from _differences(a.get(key), b.get(key), here)
    elif a != b:
        yield path, a, b
