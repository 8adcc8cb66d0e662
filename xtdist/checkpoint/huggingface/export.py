"""A model of ours as a folder that transformers, vLLM, llama.cpp and CTranslate2 load."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from xtdist.checkpoint.chat_template import CHAT_TEMPLATE
from xtdist.checkpoint.huggingface.check import blocking, family_of
from xtdist.checkpoint.huggingface.configs import to_tree
from xtdist.checkpoint.huggingface.families import FAMILIES, Family
from xtdist.checkpoint.huggingface.tensors import check_finite, to_theirs
from xtdist.checkpoint.huggingface.tokenizers import (
    blocking_tokenizer,
    note_roles,
    write_tokenizer,
)
from xtdist.checkpoint.weights import LoadedModel, load_weights, own_state
from xtdist.config import CheckpointError, ConfigError, ResourceError
from xtdist.model.config import ModelConfig
from xtdist.model.mup import without_mup
from xtdist.model.wrapper import TransformerWrapper
from xtdist.nn.position.config import RotaryConfig

Dtype = Literal["saved", "float32", "bfloat16", "float16"]
GB = 10**9
STAGING = ".export-"


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """``format``: a family's name, None = what the model is. ``dtype`` of the tensors.
    ``max_shard_gb``: of one file; no tensor is cut."""

    format: str | None = None
    dtype: Dtype = "saved"
    max_shard_gb: float = 5.0


def chosen(config: ModelConfig, name: str | None) -> Family:
    """The family called ``name``, or what ``config`` is. Raises ConfigError for an unknown name."""
    if name is None:
        return family_of(config)
    if name not in FAMILIES:
        raise ConfigError(f"--format: got {name!r}; give one of {', '.join(FAMILIES)}")
    return FAMILIES[name]


def check_exportable(config: ModelConfig, kind: Family, *, where: str) -> None:
    """Raises CheckpointError naming everything that prevents it."""
    found = [f"  {problem.line()}" for problem in blocking(config, kind)]
    if found:
        raise CheckpointError(
            f"{where}: not exactly a {kind.architecture}, so there is nothing to export:\n"
            + "\n".join(found)
        )


def export(
    weights: str | Path, folder: str | Path, options: ExportOptions | None = None
) -> dict[str, Any]:
    """Write the folder of ``weights`` (as for ``load_weights``); returns its config.json.

    Raises:
        CheckpointError: nothing to load, or a model that transformers has no code for.
        ResourceError: the folder is there already, or can't be written.
    """
    options, folder = options or ExportOptions(), Path(folder)
    if not 0 < options.max_shard_gb < 1e6:
        raise ConfigError(
            f"--max-shard-gb: got {options.max_shard_gb}; give more than 0, and less than a million"
        )
    loaded = _plain(load_weights(weights))
    config = loaded.model.config
    kind = chosen(config, options.format)
    check_exportable(config, kind, where=str(loaded.folder))
    refused = blocking_tokenizer(loaded.tokenizer)
    if refused is not None:
        raise CheckpointError(f"{loaded.folder}: {refused}")
    tensors = to_theirs(own_state(loaded.model), config, kind)
    if options.dtype != "saved":
        tensors = {name: t.to(getattr(torch, options.dtype)) for name, t in tensors.items()}
    check_finite(
        tensors,
        where=str(loaded.folder),
        hint="its training failed, or its numbers are too large for that type (--dtype bfloat16 "
        "has room for them)",
    )
    return _write(folder, loaded, kind, tensors, most_bytes=int(options.max_shard_gb * GB))


def _plain(loaded: LoadedModel) -> LoadedModel:
    """What muP says, in the weights: nobody else knows of it."""
    if loaded.model.config.mup is None:
        return loaded
    config, weights = without_mup(loaded.model.config, own_state(loaded.model))
    with torch.device("meta"):
        model = TransformerWrapper.from_config(config)
    model.load_state_dict(weights, assign=True)
    return replace(loaded, model=model)


def _write(
    folder: Path,
    loaded: LoadedModel,
    kind: Family,
    tensors: dict[str, Tensor],
    *,
    most_bytes: int,
) -> dict[str, Any]:
    """All of it, and only then under its name."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ResourceError(f"--output: {folder} is there already; remove it, or give another name")
    part = folder.parent / f"{STAGING}{folder.name}"
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        save_shards(part, tensors, most_bytes=most_bytes)
        tree = _write_words(part, loaded, kind, dtype=next(iter(tensors.values())).dtype)
        if folder.is_dir():
            folder.rmdir()
        part.rename(folder)
    except OSError as e:
        raise ResourceError(f"--output: {folder} can't be written ({e.strerror})") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return tree


def _write_words(
    folder: Path, loaded: LoadedModel, kind: Family, *, dtype: torch.dtype
) -> dict[str, Any]:
    """Configs and tokenizer."""
    config, tokenizer = loaded.model.config, loaded.tokenizer
    template = loaded.folder / CHAT_TEMPLATE
    chat = template.read_text() if template.is_file() else None
    ids = write_tokenizer(folder, tokenizer, config, chat=chat)
    position = config.position
    tree = to_tree(config, kind) | ids
    tree |= {
        "torch_dtype": str(dtype).removeprefix("torch."),
        "use_cache": True,
        "xtdist": {
            "version": version("xtdist"),
            "weights": loaded.digest,
            "step": loaded.meta.get("step", 0),
            "pairs": position.layout if isinstance(position, RotaryConfig) else "halves",
            "roles": note_roles(tokenizer),
        },
    }
    never = [i for i in (tokenizer.mask_id, tokenizer.pad_id) if i < config.num_tokens]
    generation = {**ids, "do_sample": False, **({"suppress_tokens": never} if never else {})}
    for name, content in (("config.json", tree), ("generation_config.json", generation)):
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return tree


def save_shards(folder: Path, tensors: Mapping[str, Tensor], *, most_bytes: int) -> None:
    """One file, or several with an index."""
    shards = list(_shards(tensors, most_bytes))
    if len(shards) == 1:
        save_file(shards[0], folder / "model.safetensors", metadata={"format": "pt"})
        return
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        places |= dict.fromkeys(shard, name)
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _shards(tensors: Mapping[str, Tensor], most_bytes: int) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors.items():
        own = tensor.numel() * tensor.element_size()
        if shard and size + own > most_bytes:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor
        size += own
    yield shard
