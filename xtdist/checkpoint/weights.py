"""Weights folder: what generation, evaluation and serving read.

    model.safetensors   one tensor per parameter of the network
    objective.safetensors   the same of the objective's own, where it has some (a critic …)
    config.json         the model, the objective, and where they come from
    tokenizer.json      the tokenizer of the training data
    chat_template.jinja     how conversations become text, where the run was given one
    manifest.json       sizes and digests, written last

Every checkpoint of a run holds one under ``weights/`` (and, with ``optim.ema``, one of the averaged
weights under ``weights-ema/``); copied elsewhere it works alone. No pickle.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from xtdist.checkpoint.bounds import Shapes, check_room, read_config_tree, saved_shapes
from xtdist.checkpoint.chat_template import CHAT_TEMPLATE
from xtdist.checkpoint.layout import (
    MANIFEST,
    hash_file,
    read_manifest,
    safe_join,
    verify,
    write_manifest,
)
from xtdist.checkpoint.naming import NAME
from xtdist.checkpoint.storage import place_of
from xtdist.checkpoint.store import CheckpointStore
from xtdist.config import (
    CheckpointError,
    ConfigError,
    configclass,
    digest,
    from_mapping,
    to_mapping,
)
from xtdist.data import Tokenizer, load_tokenizer
from xtdist.data.storage.location import is_remote
from xtdist.model.config import ModelConfig
from xtdist.model.wrapper import TransformerWrapper, build_model
from xtdist.nn.layout import by_columns
from xtdist.nn.quantize import quantize_int8
from xtdist.objective import Objective, build_objective
from xtdist.objective.config import ObjectiveConfig

WEIGHTS = "weights"  # the folder in a checkpoint
TENSORS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"
OWN_TENSORS = "objective.safetensors"
NET_PREFIX = "net."
AVERAGED = "weights-ema"


@configclass
class WeightsConfig:
    """Content of ``config.json``. ``meta``: run, step, dataset_id, xtdist version."""

    model: ModelConfig
    objective: ObjectiveConfig
    meta: dict[str, Any]


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode and what belongs to it: ``trained`` is the model with what its objective
    has beside it. ``digest`` identifies the weights."""

    model: TransformerWrapper
    objective: ObjectiveConfig
    trained: Objective
    tokenizer: Tokenizer
    meta: dict[str, Any]
    digest: str
    folder: Path


def save_weights(
    folder: Path,
    state: Mapping[str, Tensor],
    config: WeightsConfig,
    *,
    tokenizer: Path,
    own: Mapping[str, Tensor] | None = None,
    chat_template: Path | None = None,
) -> None:
    """Write a weights folder. ``state`` is the model's state_dict, whole, on any device; tensors
    that share memory (tied embeddings) are written once. ``own``: the same of what the objective
    has beside the model (the rest of its state_dict). ``chat_template``: a file."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(_distinct(state), folder / TENSORS)
    if own:
        save_file(_distinct(own), folder / OWN_TENSORS)
    (folder / CONFIG).write_text(json.dumps(to_mapping(config), indent=1))
    shutil.copyfile(tokenizer, folder / TOKENIZER)
    names = [TENSORS, CONFIG, TOKENIZER, *([OWN_TENSORS] if own else [])]
    if chat_template is not None:
        shutil.copyfile(chat_template, folder / CHAT_TEMPLATE)
        names.append(CHAT_TEMPLATE)
    files = {n: hash_file(folder / n) for n in names}
    write_manifest(folder, files, {"kind": "weights", **config.meta})


def load_weights(
    folder: str | Path, *, dtype: torch.dtype | None = None, device: str = "cpu"
) -> LoadedModel:
    """Read a weights folder; ``folder`` may also be a checkpoint, or a run (its newest checkpoint),
    see :func:`find_weights`.

    Args:
        dtype: cast the parameters; None keeps them as saved, torch.int8 quantises the matrices
            of an fp32 model (``xtdist.nn.quantize``).

    Raises:
        CheckpointError: nothing there, a file was changed, or it does not fit its own config.
        ConfigError: torch.int8 for a model or a device that can't have it.
    """
    path = find_weights(folder)
    manifest = read_manifest(path)
    missing = {TENSORS, CONFIG, TOKENIZER} - manifest.files.keys()
    if missing:
        raise CheckpointError(
            f"{path / MANIFEST}: does not list {', '.join(sorted(missing))}, so they can't be "
            "checked; use weights as they were saved"
        )
    verify(path, manifest)
    own_files = [path / OWN_TENSORS] if OWN_TENSORS in manifest.files else []
    shapes = saved_shapes([path / TENSORS, *own_files])
    config = read_config(path, shapes)
    try:
        state = load_file(path / TENSORS, device=device)
        own = load_file(path / OWN_TENSORS) if own_files else {}
    except (OSError, ValueError, SafetensorError) as e:
        raise CheckpointError(f"{path}: not weights that this version can read: {e}") from None
    tokenizer = load_tokenizer(path / TOKENIZER)

    def build() -> Objective:
        net = build_model(config.model)
        return build_objective(
            config.objective, net, mask_id=tokenizer.mask_id, pad_id=tokenizer.pad_id
        )

    check_room(build, shapes, where=path)
    trained = build().to(device).eval()
    load_state(trained, {**{NET_PREFIX + n: t for n, t in state.items()}, **own}, where=path)
    model = trained.net
    if dtype is torch.int8:
        model = quantize_int8(trained.float().net)
    elif dtype is not None:
        trained = trained.to(dtype)
    if torch.device(device).type == "cpu":
        by_columns(model)
    return LoadedModel(
        model=model,
        objective=config.objective,
        trained=trained,
        tokenizer=tokenizer,
        meta=config.meta,
        digest=digest(manifest),
        folder=path,
    )


def read_config(path: Path, shapes: Shapes | None = None) -> WeightsConfig:
    """The config of a weights folder, whose numbers its tensors can account for. ``shapes``: of all
    its tensors, if they are known already.

    Raises:
        CheckpointError: of another version, or hostile.
    """
    if shapes is None:
        names = (TENSORS, OWN_TENSORS)
        shapes = saved_shapes([safe_join(path, n) for n in names if (path / n).exists()])
    try:
        return from_mapping(WeightsConfig, read_config_tree(path / CONFIG, shapes))
    except ConfigError as e:
        raise CheckpointError(f"{path}: not weights that this version can read: {e}") from None


def find_weights(folder: str | Path) -> Path:
    """The weights folder meant by ``folder``: itself, a checkpoint's, or a run's newest one. Of an
    ``s3://`` URL (a checkpoint, or where a run's lie) the weights are fetched to this host. With
    ``/weights-ema`` behind any of these, the averaged weights there.

    Raises:
        CheckpointError: there are none.
        DataError: the store can't be read.
    """
    path, mark, options = str(folder).partition("?") if is_remote(folder) else (str(folder), "", "")
    if Path(path).name != AVERAGED or (Path(path) / MANIFEST).is_file():
        return _find(folder, WEIGHTS)
    found = _find(path.removesuffix(AVERAGED).rstrip("/") + mark + options, AVERAGED)
    if not (found / MANIFEST).is_file():
        raise CheckpointError(
            f"{found}: no averaged weights there: the run was without optim.ema; leave out "
            f"/{AVERAGED}"
        )
    return found


def locate_weights(folder: str | Path) -> str:
    """What :func:`find_weights` would find now, as a place that does not move on to a newer
    checkpoint: an absolute path, or a checkpoint's URL. Nothing is fetched.

    Raises:
        CheckpointError: there are none.
        DataError: the store can't be read.
    """
    path, mark, options = str(folder).partition("?") if is_remote(folder) else (str(folder), "", "")
    averaged = path.rstrip("/").endswith(f"/{AVERAGED}")
    run = path.rstrip("/").removesuffix(f"/{AVERAGED}") if averaged else path
    place = f"{run}{mark}{options}"
    if not is_remote(place):
        place = place_of(_checkpoint_url(Path(run)), Path(run))
    if not is_remote(place):
        return str(find_weights(folder).resolve())
    path, mark, options = _checkpoint_at(place)
    return f"{path}{f'/{AVERAGED}' if averaged else ''}{mark}{options}"


def _find(folder: str | Path, wanted: str) -> Path:
    """The folder ``wanted`` of a checkpoint, or of a run's newest one."""
    if is_remote(folder):
        return _fetch_weights(str(folder), wanted)
    folder = Path(folder)
    if (folder / TENSORS).is_file() and (folder / MANIFEST).is_file():
        return folder
    if (folder / WEIGHTS / MANIFEST).is_file():
        return folder / wanted
    place = place_of(_checkpoint_url(folder), folder)
    if is_remote(place):
        return _fetch_weights(place, wanted)
    names = CheckpointStore(place).names()
    if names:
        return Path(place) / names[-1] / wanted
    also = "; names of the registry are for xtdist serve" * (folder.parts[:1] == ("models:",))
    raise CheckpointError(
        f"{folder}: no weights there; give a run folder, a checkpoint in its checkpoints/, "
        f"or a folder with {TENSORS}{also}"
    )


def _checkpoint_url(run: Path) -> str | None:
    """``checkpoint.url`` of the run in a folder, if it is one and has it."""
    try:
        tree = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        url = tree["checkpoint"]["url"]
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
        return None
    return url if isinstance(url, str) else None


def _checkpoint_at(url: str) -> tuple[str, str, str]:
    """The URL of a checkpoint, or of a run's newest one: its path, ``?`` and options."""
    path, mark, options = url.rstrip("/").partition("?")
    path = path.removesuffix(f"/{WEIGHTS}")
    if not NAME.fullmatch(path.rpartition("/")[2]):  # the run's
        names = CheckpointStore(f"{path}{mark}{options}").names()
        if not names:
            raise CheckpointError(f"{url}: no checkpoints there")
        path = f"{path}/{names[-1]}"
    return path, mark, options


def _fetch_weights(url: str, wanted: str) -> Path:
    path, mark, options = _checkpoint_at(url)
    parent, _, name = path.rpartition("/")
    store = CheckpointStore(f"{parent}{mark}{options}")
    files = [n for n in store.manifest(name).files if n.startswith(f"{wanted}/")]
    return store.open(name, files).path / wanted


def load_state(trained: torch.nn.Module, state: Mapping[str, Tensor], *, where: Path) -> None:
    """Put ``state`` (each shared tensor once, or more often) into an objective and its network, in
    the saved dtype.

    Raises:
        CheckpointError: tensors are missing, unknown or of another shape; the first is named.
    """
    own = trained.state_dict()
    first = {id_: name for name, id_ in reversed([(n, _key(t)) for n, t in own.items()])}
    full = {n: state[n] if n in state else state.get(first[_key(t)]) for n, t in own.items()}
    missing = [n for n, t in full.items() if t is None]
    unknown = sorted(set(state) - set(own))
    wrong = [n for n, t in full.items() if t is not None and t.shape != own[n].shape]
    for what, names in (("missing", missing), ("unknown", unknown), ("of another shape", wrong)):
        if names:
            raise CheckpointError(
                f"{where}: {len(names)} tensors {what}, {names[0]!r} first: of another model"
            )
    dtypes = {t.dtype for t in state.values() if t.is_floating_point()}
    if len(dtypes) == 1:
        trained.to(dtypes.pop())
    trained.load_state_dict({n: t for n, t in full.items() if t is not None})


def _key(tensor: Tensor) -> tuple[int, tuple[int, ...]]:
    return (tensor.data_ptr(), tuple(tensor.shape))


def own_state(module: torch.nn.Module) -> dict[str, Tensor]:
    """The tensors of ``module`` on the CPU, those that share memory once."""
    return _distinct(module.state_dict())


def _distinct(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    seen: set[tuple[int, tuple[int, ...]]] = set()
    out = {}
    for name, tensor in state.items():
        key = _key(tensor)
        if tensor.numel() and key in seen:
            continue
        seen.add(key)
        out[name] = tensor.detach().cpu().contiguous()
    return out
