"""A folder of Hugging Face's as weights of ours. Nothing is downloaded and no code of it is run."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from xtdist.checkpoint.bounds import (
    MOST_CONFIG_BYTES,
    Shapes,
    check_numbers,
    check_room,
    read_bounded,
    saved_shapes,
)
from xtdist.checkpoint.huggingface.check import QK_EPS
from xtdist.checkpoint.huggingface.configs import from_tree
from xtdist.checkpoint.huggingface.families import Family, family
from xtdist.checkpoint.huggingface.tensors import to_ours
from xtdist.checkpoint.huggingface.tokenizers import (
    check_fits,
    notes_on,
    read_chat_template,
    read_tokenizer,
)
from xtdist.checkpoint.weights import MANIFEST, WeightsConfig, save_weights
from xtdist.config import CheckpointError, ConfigError, ResourceError, from_mapping
from xtdist.model.config import ModelConfig
from xtdist.model.wrapper import TransformerWrapper
from xtdist.objective.config import AutoregressiveConfig

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
DTYPES = {torch.float32, torch.float16, torch.bfloat16}
_BUFFERS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """``roles``: names of the tokens eot, mask and pad, where they are not the usual ones.
    ``max_seq_len``: shorter than the model's own; None = as it is."""

    roles: Mapping[str, str] = field(default_factory=dict)
    max_seq_len: int | None = None


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What was taken over; ``notes``: what was not, one sentence each."""

    config: ModelConfig
    family: Family
    notes: tuple[str, ...] = ()


def take_over(
    source: str | Path, folder: str | Path, options: ImportOptions | None = None
) -> Imported:
    """Write a weights folder with the model, the tensors as they are, and the tokenizer.

    Raises:
        CheckpointError: no folder of that kind, a setting or a tensor that is not known here, or
            more than its tensors account for.
        DataError: a tokenizer that can't be used.
        ResourceError: the folder is there already, or can't be written.
    """
    options, source, folder = options or ImportOptions(), Path(source), Path(folder)
    where = str(source / "config.json")
    tree = read_tree(source)
    kind = family(tree.get("model_type"), where=where)
    files = tensor_files(source)
    config = _config(tree, kind, saved_shapes(files), where=where)
    config = _shortened(config, options.max_seq_len)
    tokenizer = read_tokenizer(source, tree, options.roles)
    check_fits(tokenizer, config.num_tokens, where=str(source))
    chat, note = read_chat_template(source, tokenizer)
    state = to_ours(_tensors(files, config, kind), config, kind, where=str(source))
    _check_free(folder)
    meta = {"run": source.resolve().name, "step": 0, "xtdist": version("xtdist"), "from": kind.name}
    written = WeightsConfig(model=config, objective=AutoregressiveConfig(), meta=meta)
    with tempfile.TemporaryDirectory() as scratch:
        file, template = Path(scratch, "tokenizer.json"), Path(scratch, "chat_template.jinja")
        tokenizer.save(file)
        template.write_text(chat or "")
        try:
            save_weights(
                folder, state, written, tokenizer=file, chat_template=template if chat else None
            )
        except OSError as e:
            raise ResourceError(f"--output: {folder} can't be written ({e.strerror})") from None
    notes = [*([note] if note else []), *notes_on(source, tree)]
    return Imported(config=config, family=kind, notes=tuple(notes))


def _check_free(folder: Path) -> None:
    """Raises ResourceError for an output that is there, or that no name can be."""
    try:
        taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    except OSError as e:
        raise ResourceError(f"--output: {folder!s:.80} can't be written ({e.strerror})") from None
    if taken:
        raise ResourceError(f"--output: {folder} is there already; remove it, or give another name")


def read_tree(folder: Path) -> dict[str, Any]:
    """The config.json of a folder.

    Raises:
        CheckpointError: there is none, or it is no JSON object; or the folder is one of ours.
    """
    if (folder / MANIFEST).is_file():
        raise CheckpointError(f"{folder}: holds weights of xtdist already; use it as it is")
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(
            f"{folder}: no config.json there; give a folder of Hugging Face's with config.json, "
            "safetensors and tokenizer.json (nothing is downloaded here)"
        )
    try:
        tree = json.loads(read_bounded(path, MOST_CONFIG_BYTES))
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path}: not JSON") from None
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    return tree


def tensor_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder.

    Raises:
        CheckpointError: there are none, or the index names something else than a file beside it.
    """
    if (folder / SINGLE).exists():
        return [folder / SINGLE]
    if not (folder / INDEX).exists():
        pickled = next((p.name for p in sorted(folder.glob("*.bin"))), None)
        reason = f"{pickled} is a pickle, which can run code and is never read" if pickled else ""
        raise CheckpointError(
            f"{folder}: no {SINGLE} there{f'; {reason}' if reason else ''}; write one with "
            "transformers: AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(OTHER)"
        )
    try:
        places = json.loads(read_bounded(folder / INDEX, MOST_CONFIG_BYTES))["weight_map"]
        names = sorted(set(places.values()))
        plain = all(Path(name).name == name and name.endswith(".safetensors") for name in names)
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{folder / INDEX}: not an index of safetensors files") from None
    if not plain or not names:
        raise CheckpointError(f"{folder / INDEX}: names something else than files beside it")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"{folder}: {missing[0]} is missing, which {INDEX} names")
    return [folder / name for name in names]


def _config(tree: dict[str, Any], kind: Family, shapes: Shapes, *, where: str) -> ModelConfig:
    """The model, whose every number the tensors account for."""
    plain = from_tree(tree, where=where)
    noted = tree.get("xtdist")
    if isinstance(noted, dict) and noted.get("pairs") == "interleaved" and kind.name != "gpt2":
        plain["position"]["layout"] = "interleaved"  # as the model was trained that it comes from
    if kind.name == "qwen3" and plain["norm"]["eps"] != QK_EPS:
        raise CheckpointError(f"{where}: rms_norm_eps is {plain['norm']['eps']!r}; only {QK_EPS}")
    try:
        check_numbers(plain, "model", shapes)
        config = from_mapping(ModelConfig, plain)
    except (ConfigError, ValueError) as e:
        raise CheckpointError(f"{where}: {e}") from None
    check_room(lambda: TransformerWrapper.from_config(config), shapes, where=Path(where))
    return config


def _shortened(config: ModelConfig, longest: int | None) -> ModelConfig:
    if longest is None:
        return config
    if config.position.kind == "learned" or not 0 < longest <= config.max_seq_len:
        raise ConfigError(
            f"--max-seq-len: got {longest}; this model has {config.max_seq_len} positions"
            + (", a learned vector for each" if config.position.kind == "learned" else "")
        )
    return replace(config, max_seq_len=longest)


def _tensors(files: Iterable[Path], config: ModelConfig, kind: Family) -> dict[str, Tensor]:
    """All of them, by the names that the architecture gives them; buffers that say nothing, and a
    head that is the embedding, left out."""
    found: dict[str, Tensor] = {}
    for file in files:
        try:
            tensors = load_file(file)
        except (OSError, ValueError, SafetensorError) as e:
            raise CheckpointError(f"{file}: no safetensors file, or a damaged one: {e}") from None
        twice = found.keys() & tensors.keys()
        if twice:
            raise CheckpointError(f"{file}: {min(twice)!r:.200} is in another file too")
        found |= tensors
    found = {name: t for name, t in found.items() if not name.endswith(_BUFFERS)}
    stem = "transformer." if kind.name == "gpt2" else "model."
    if not any(name.startswith(stem) for name in found):  # of the model without its head
        found = {name if name == "lm_head.weight" else stem + name: t for name, t in found.items()}
    dtypes = {t.dtype for t in found.values()}
    if len(dtypes) != 1 or not dtypes <= DTYPES:
        several = ", ".join(sorted(str(d) for d in dtypes))
        raise CheckpointError(
            f"{file.parent}: tensors of {several}; here all are float32, float16 or bfloat16"
        )
    if config.tie_embedding and "lm_head.weight" in found:
        embedding = found.get(f"{stem}{'wte' if stem[0] == 't' else 'embed_tokens'}.weight")
        head = found.pop("lm_head.weight")
        if embedding is None or not head.equal(embedding):
            raise CheckpointError(
                f"{file.parent}: lm_head.weight is not the embedding, as tie_word_embeddings in "
                "config.json says; set that to false"
            )
    return found
