"""From weights folders to models that answer. Only safetensors and JSON are read, never pickle."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TypeVar

import torch

from xtdist.checkpoint.weights import load_weights
from xtdist.config import CheckpointError
from xtdist.decode.engine import Engine
from xtdist.objective import NonAutoregressiveWrapper
from xtdist.serve.auth import load_keys
from xtdist.serve.config import AppConfig, ServedModel
from xtdist.serve.engine_thread import EngineThread
from xtdist.serve.places import absolute, at, chat_template, check_served, places_of
from xtdist.serve.served import Served
from xtdist.track.registry import absolute_address

C = TypeVar("C", bound=AppConfig)


def resolve(config: C) -> C:
    """The config with the places that its paths mean now, everything in them checked: all replicas
    load the same weights, even while a training run writes newer ones. What is followed stays a
    run or an alias.

    Raises:
        ConfigError: a key file that can not be read.
        CheckpointError: weights that can not be served.
    """
    load_keys(config.api_keys_file, config.api_keys_env)
    keys = config.api_keys_file
    return dataclasses.replace(
        config,
        models=tuple(_resolved(m, config.registry) for m in config.models),
        api_keys_file=str(Path(keys).resolve()) if keys is not None else None,
        registry=absolute_address(config.registry),
    )


def load_served(spec: ServedModel, config: AppConfig) -> Served:
    """Load weights and build the engine.

    Raises:
        CheckpointError: missing or damaged weights, an amateur with another tokenizer or of a model
            that fills masks.
        ConfigError: a chat template that is none.
    """
    found = check_served(spec, registry=config.registry)
    device = "cuda" if config.gpus else "cpu"
    dtype = None if config.dtype == "saved" else getattr(torch, config.dtype)
    expert = load_weights(found[0].folder, dtype=dtype, device=device)
    amateur = None
    if spec.amateur is not None:
        amateur = load_weights(found[1].folder, dtype=dtype, device=device).model
    for model, of in zip((expert.model, amateur), found, strict=False):
        if model is not None and not all(torch.isfinite(p).all() for p in model.parameters()):
            raise CheckpointError(f"{of.folder}: holds NaN or infinity: its training failed")
    tokenizer = expert.tokenizer
    trained = expert.trained
    filler = trained if isinstance(trained, NonAutoregressiveWrapper) else None
    engine = Engine(
        filler or expert.model,
        amateur=amateur,
        tokenizer=tokenizer,
        eos_ids=(tokenizer.eot_id,),
        banned_ids=(tokenizer.mask_id, tokenizer.pad_id),
        config=config.engine,
    )
    return Served(
        name=spec.name,
        thread=EngineThread(
            engine,
            name=spec.name,
            max_unread_tokens=config.limits.max_unread_tokens,
            max_wait_s=config.limits.max_wait_s or math.inf,
        ),
        tokenizer=tokenizer,
        digest=expert.digest,
        step=found[0].step,
        max_seq_len=engine.longest,
        contrastive=amateur is not None,
        filling=filler.filling if filler is not None else None,
        chat_template=chat_template(spec, found[0].folder),
    )


def _resolved(spec: ServedModel, registry: str | None) -> ServedModel:
    found = check_served(spec, registry=registry)
    places = [absolute(p) for p in places_of(spec)] if spec.follow else [f.place for f in found]
    if spec.chat_template is not None:
        spec = dataclasses.replace(spec, chat_template=str(Path(spec.chat_template).resolve()))
    return at(spec, places)
