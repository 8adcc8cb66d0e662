"""From weights folders to models that answer. Only safetensors and JSON are read, never pickle."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TypeVar

import torch

from xtdist.checkpoint.layout import read_manifest, verify
from xtdist.checkpoint.weights import (
    CONFIG,
    TENSORS,
    TOKENIZER,
    WeightsConfig,
    find_weights,
    load_weights,
)
from xtdist.config import CheckpointError, ConfigError, from_mapping
from xtdist.data.tokenizer import load_tokenizer
from xtdist.decode.engine import Engine
from xtdist.serve.auth import load_keys
from xtdist.serve.config import AppConfig, ServedModel
from xtdist.serve.engine_thread import EngineThread
from xtdist.serve.served import Served

C = TypeVar("C", bound=AppConfig)


def resolve(config: C) -> C:
    """The config with the absolute paths that its paths mean now, everything in them checked: all
    replicas load the same weights, even while a training run writes newer ones.

    Raises:
        ConfigError: a key file that can not be read.
        CheckpointError: weights that can not be served.
    """
    load_keys(config.api_keys_file)
    keys = config.api_keys_file
    return dataclasses.replace(
        config,
        models=tuple(check_served(m) for m in config.models),
        api_keys_file=str(Path(keys).resolve()) if keys is not None else None,
    )


def load_served(spec: ServedModel, config: AppConfig) -> Served:
    """Load weights and build the engine.

    Raises:
        CheckpointError: missing or damaged weights, a non-autoregressive model, an amateur with
            another tokenizer.
    """
    spec = check_served(spec)
    device = "cuda" if config.gpus else "cpu"
    dtype = None if config.dtype == "saved" else getattr(torch, config.dtype)
    expert = load_weights(spec.weights, dtype=dtype, device=device)
    amateur = None
    if spec.amateur is not None:
        amateur = load_weights(spec.amateur, dtype=dtype, device=device).model
    tokenizer = expert.tokenizer
    engine = Engine(
        expert.model,
        amateur=amateur,
        tokenizer=tokenizer,
        eos_ids=(tokenizer.eot_id,),
        banned_ids=(tokenizer.mask_id, tokenizer.pad_id),
        config=config.engine,
    )
    return Served(
        name=spec.name,
        thread=EngineThread(engine, name=spec.name),
        tokenizer=tokenizer,
        digest=expert.digest,
        max_seq_len=engine.longest,
        contrastive=amateur is not None,
    )


def check_served(spec: ServedModel) -> ServedModel:
    """Whether a model could be served, without reading its tensors.

    Returns:
        The same model with the absolute folders that its paths mean now.

    Raises:
        CheckpointError: see :func:`load_served`.
    """
    where = f"models.{spec.name}"
    folders = [find_weights(f).resolve() for f in (spec.weights, spec.amateur) if f is not None]
    tokenizers = [_check_folder(f, where) for f in folders]
    if len(set(tokenizers)) > 1:
        raise CheckpointError(
            f"{where}: the amateur {spec.amateur} has another tokenizer than {spec.weights}; "
            "contrast needs the same vocabulary"
        )
    amateur = str(folders[1]) if spec.amateur is not None else None
    return dataclasses.replace(spec, weights=str(folders[0]), amateur=amateur)


def _check_folder(folder: Path, where: str) -> str:
    """The digest of the tokenizer in a weights folder whose small files are in order."""
    manifest = read_manifest(folder)
    missing = sorted({CONFIG, TOKENIZER, TENSORS} - manifest.files.keys())
    if missing:
        raise CheckpointError(
            f"{folder}: its manifest does not list {', '.join(missing)}; nothing vouches for what "
            "is loaded: export the weights again"
        )
    verify(folder, manifest, names=(CONFIG, TOKENIZER))
    try:
        config = from_mapping(WeightsConfig, json.loads((folder / CONFIG).read_text()))
    except (ConfigError, OSError, ValueError) as e:
        raise CheckpointError(f"{folder / CONFIG}: not of this version: {e}") from None
    if config.objective.kind != "autoregressive":
        raise CheckpointError(
            f"{where}: {folder} holds a {config.objective.kind} model; /v1/completions needs an "
            "autoregressive one"
        )
    return str(load_tokenizer(folder / TOKENIZER).sha256)
