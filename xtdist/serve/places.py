"""Where weights lie, and whether a model could be served from there.

A place is a path, an ``s3://`` URL, or ``models:/…`` of MLflow's registry. A run and an alias move
on to newer weights; what :func:`locate` makes of them does not.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from xtdist.checkpoint.chat_template import CHAT_TEMPLATE, ChatTemplate
from xtdist.checkpoint.layout import read_manifest, verify
from xtdist.checkpoint.weights import (
    CONFIG,
    TENSORS,
    TOKENIZER,
    WeightsConfig,
    find_weights,
    locate_weights,
    read_config,
)
from xtdist.config import CheckpointError, digest
from xtdist.data.storage.location import is_remote
from xtdist.data.tokenizer import load_tokenizer
from xtdist.serve.config import ServedModel
from xtdist.track.registry import fetch_artifacts, find_version, is_registered


@dataclass(frozen=True)
class Found:
    """One weights folder that could be served.

    Args:
        place: where it lies, for ever the same weights; see :func:`locate`.
        digest: of its manifest.
    """

    place: str
    folder: Path
    digest: str
    config: WeightsConfig
    tokenizer: str

    @property
    def step(self) -> int | None:
        """Of the training run, if it is from one."""
        step = self.config.meta.get("step")
        return step if isinstance(step, int) else None


def places_of(spec: ServedModel) -> list[str]:
    """The places of the model and of its amateur."""
    return [spec.weights] if spec.amateur is None else [spec.weights, spec.amateur]


def at(spec: ServedModel, places: list[str]) -> ServedModel:
    """The same model, from other places."""
    amateur = places[1] if spec.amateur is not None else None
    return dataclasses.replace(spec, weights=places[0], amateur=amateur)


def locate(spec: ServedModel, *, registry: str | None = None) -> ServedModel:
    """The same model with the places that its paths, URLs and aliases mean now. They go on meaning
    these weights; nothing is fetched.

    Raises:
        CheckpointError: there are none.
        ConfigError: a model that is not in the registry.
        DataError, ResourceError: a store or the registry does not answer.
    """
    return at(spec, [_locate(p, registry) for p in places_of(spec)])


def _locate(place: str, registry: str | None) -> str:
    if is_registered(place):
        return find_version(place, registry=registry).uri
    return locate_weights(place)


def absolute(place: str) -> str:
    """``place`` as it is understood from every working directory."""
    if is_registered(place) or is_remote(place):
        return place
    return str(Path(place).resolve())


def check_served(spec: ServedModel, *, registry: str | None = None) -> list[Found]:
    """Whether a model could be served, without reading its tensors: what was found of it, and of
    its amateur.

    Raises:
        CheckpointError: see :func:`load_served`.
    """
    where = f"models.{spec.name}"
    places = places_of(locate(spec, registry=registry))
    found = [_check_folder(_fetch(p, registry), place=p) for p in places]
    chat_template(spec, found[0].folder)
    filling = [f for f in found if f.config.objective.kind != "autoregressive"]
    if filling and len(found) > 1:
        raise CheckpointError(
            f"{where}: {filling[0].folder} holds a {filling[0].config.objective.kind} model, which "
            "fills masks; contrast needs two that are autoregressive: leave out the amateur"
        )
    if len({f.tokenizer for f in found}) > 1:
        raise CheckpointError(
            f"{where}: the amateur {spec.amateur} has another tokenizer than {spec.weights}; "
            "contrast needs the same vocabulary"
        )
    return found


def chat_template(spec: ServedModel, folder: Path) -> ChatTemplate | None:
    """What makes prompts of conversations for a model with the weights in ``folder``, if anything
    does. One that does not belong to the folder's manifest does not count.

    Raises:
        ConfigError: it can't be read or compiled.
        CheckpointError: it was changed since it was saved.
    """
    where = f"models.{spec.name}.chat_template"
    if spec.chat_template is not None:
        return ChatTemplate.read(spec.chat_template, where=where)
    manifest = read_manifest(folder)
    if CHAT_TEMPLATE not in manifest.files:
        return None
    verify(folder, manifest, names=(CHAT_TEMPLATE,))
    return ChatTemplate.read(folder / CHAT_TEMPLATE, where=where)


def _fetch(place: str, registry: str | None) -> Path:
    """The weights folder of a place on this host, with the digest that the registry noted."""
    if not is_registered(place):
        return find_weights(place).resolve()
    version = find_version(place, registry=registry)
    source = version.source.removeprefix("file://")
    if not source.startswith(("/", "s3://", "gs://")):
        source = str(fetch_artifacts(version, registry=registry))
    folder = find_weights(source).resolve()
    given = digest(read_manifest(folder))
    if version.digest not in (None, given):
        raise CheckpointError(
            f"{place}: {folder} has the digest {given[:16]}, but {str(version.digest)[:16]} was "
            "registered: it was changed since; register it again"
        )
    return folder


def _check_folder(folder: Path, *, place: str) -> Found:
    """A weights folder whose small files are in order."""
    manifest = read_manifest(folder)
    missing = sorted({CONFIG, TOKENIZER, TENSORS} - manifest.files.keys())
    if missing:
        raise CheckpointError(
            f"{folder}: its manifest does not list {', '.join(missing)}; nothing vouches for what "
            "is loaded: export the weights again"
        )
    verify(folder, manifest, names=(CONFIG, TOKENIZER))
    return Found(
        place=place,
        folder=folder,
        digest=digest(manifest),
        config=read_config(folder),
        tokenizer=str(load_tokenizer(folder / TOKENIZER).sha256),
    )
