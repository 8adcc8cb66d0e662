"""What a run was made of: its settings, data and model."""

from __future__ import annotations

import dataclasses
import shlex
from typing import Any

import torch

from xtdist.config import UserError, to_mapping
from xtdist.config.defaults import other_than_default
from xtdist.config.load import leaves
from xtdist.data import TokenDataset
from xtdist.data.storage.location import is_remote
from xtdist.model import TransformerWrapper
from xtdist.objective import build_objective
from xtdist.plan.parameters import count_parameters
from xtdist.report.folder import Missing, RunFolder
from xtdist.track.environment import without_secrets
from xtdist.train.spec import RunSpec


def settings(folder: RunFolder) -> list[dict[str, Any]] | Missing:
    """A row for each setting: its path, value, whether it differs from the default, and source."""
    if isinstance(folder.tree, Missing):
        return folder.tree
    spec, given = folder.spec, _given(folder)
    if isinstance(spec, Missing):
        rows, changed = leaves(folder.tree), None
    else:
        rows, changed = leaves(to_mapping(spec)), set(other_than_default(spec))
    return [
        {
            "path": path,
            "value": without_secrets(str(value)),
            "changed": changed is not None and path in changed,
            "source": _source(path, given, differs=changed is None or path in changed),
        }
        for path, value in rows
    ]


def _given(folder: RunFolder) -> list[str]:
    """The command of the last start, in words."""
    try:
        return shlex.split(str(folder.environments[-1]["command"])) if folder.environments else []
    except (ValueError, KeyError):
        return []


def _source(path: str, command: list[str], *, differs: bool) -> str:
    if not differs:
        return "default"
    names = [word.lstrip("-").partition("=")[0] for word in command if "=" in word]
    if any(path == n or path.startswith(f"{n}.") for n in names):
        return "command line"
    return "config file or preset, or settled at the start" if command else "not recorded"


def data(folder: RunFolder, *, remote: bool) -> dict[str, Any] | Missing:
    """The datasets of the training split, as their manifests say, and how much was read."""
    spec = folder.spec
    if isinstance(spec, Missing):
        return spec
    rows = [_corpus(name, path, spec, remote) for name, path in spec.data.sources.items()]
    seen = folder.last("train/tokens")
    known = [row["tokens"] for row in rows if "tokens" in row]
    total = sum(known) if len(known) == len(rows) else None
    return {
        "corpora": rows,
        "seq_len": spec.data.seq_len,
        "documents": spec.data.documents,
        "tokens_seen": seen[0] if seen else None,
        "total": total,
        "epochs": seen[0] / total if seen and total else None,
    }


def _corpus(name: str, path: str, spec: RunSpec, remote: bool) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name, "path": without_secrets(path)}
    if is_remote(path) and not remote:
        return row | {"missing": "in an object store, not looked at"}
    try:
        dataset = TokenDataset.open(path, "train", "size", spec.data.cache)
    except UserError as e:
        return row | {"missing": f"can't be read now: {str(e)[:200]}"}
    ratio = dataset.text_bytes / dataset.total_tokens if dataset.total_tokens else None
    return row | {
        "dataset_id": dataset.dataset_id,
        "documents": dataset.num_documents,
        "tokens": dataset.total_tokens,
        "bytes_per_token": ratio,
        "vocabulary": dataset.manifest.vocab_size,
    }


def model(folder: RunFolder) -> dict[str, Any] | Missing:
    """Parameters by part, counted without allocating the model."""
    spec = folder.spec
    if isinstance(spec, Missing):
        return spec
    size = spec.model.num_tokens
    if size is None:
        return Missing("the vocabulary is not in config.yaml, so the model can't be counted")
    try:
        with torch.device("meta"):
            built = build_objective(
                spec.objective,
                TransformerWrapper.from_config(spec.model),
                mask_id=size - 1,
                pad_id=size - 1,
            )
        counts = count_parameters(built, kinds=spec.model.kinds)
    except (UserError, RuntimeError) as e:
        return Missing(f"it can't be built by this version: {str(e)[:200]}")
    return {
        **dataclasses.asdict(counts),
        "causal": spec.model.causal,
        "kind": spec.objective.kind,
        "shape": f"{spec.model.depth} layers of width {spec.model.dim}, {spec.model.heads} heads, "
        f"vocabulary {size:,}, at most {spec.model.max_seq_len:,} tokens",
    }
