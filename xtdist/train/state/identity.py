"""What a checkpoint belongs to, and the refusal of another run's."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from xtdist.checkpoint import WeightsConfig
from xtdist.config import CheckpointError, ConfigError, from_mapping, to_mapping
from xtdist.data import View
from xtdist.model.config import ModelConfig
from xtdist.objective.config import ObjectiveConfig
from xtdist.train.spec import RunSpec

FREE = ("model.recompute.",)
"""Changes how much memory a step takes, and no number: what one wants to change after it was too
much."""


def identity(spec: RunSpec, data: View, *, precision: str, step: int) -> dict[str, Any]:
    """What a checkpoint of ``step`` belongs to; a run resumes only where all of this is the same.
    Settings stand at their place in the config, so that a refusal names them as the user writes
    them. Of the data it is what came before ``step``: what comes later may change. The number of
    workers, the ZeRO stage and offloading are not in it: any of them may change."""
    return {
        "model": to_mapping(spec.model),
        "objective": to_mapping(spec.objective),
        "seed": spec.seed,
        "data": _data_identity(data, step),
        "batch": _batch_identity(data, step) | _rows_identity(spec, data, step),
        "engine": {"precision": precision},
        "optim": {"kind": spec.optim.kind},
    }


def _batch_identity(data: View, step: int) -> dict[str, Any]:
    past = data.order.past(step)
    sizes: dict[str, Any] = {"tokens_per_step": past["global_batch"] * data.seq_len}
    if past.get("warmup"):
        sizes["warmup"] = [[until, size * data.seq_len] for until, size in past["warmup"]]
    return sizes


def _rows_identity(spec: RunSpec, data: View, step: int) -> dict[str, Any]:
    """The lengths of rows so far, each with the step of data from which on it was."""
    batch, seq_len = spec.batch, data.seq_len
    end = data.order.data_step(step - 1) + 1 if step else 0
    starts = [0, *(s.until_step for s in batch.seq_len_warmup)] if end else []
    rows: list[list[int]] = []
    for start in starts:
        length = batch.row_len(start, seq_len=seq_len)
        if start < end and [length] != [row[1] for row in rows[-1:]]:
            rows.append([start, length])
    return {} if rows in ([], [[0, seq_len]]) else {"seq_len_warmup": rows}


def _data_identity(data: View, step: int) -> dict[str, Any]:
    found = data.identity(step)
    ids, weights = found.pop("datasets"), found.pop("weights")
    for elsewhere in ("seed", "global_batch", "warmup"):
        found.pop(elsewhere, None)
    if data.config.path is not None:
        (found["dataset_id"],) = ids.values()
        return found
    corpora = {n: {"dataset_id": i, "weight": weights.get(n, 0.0)} for n, i in ids.items()}
    return {**found, "corpora": corpora}


def check_identity(saved: dict[str, Any], now: dict[str, Any], where: Path) -> None:
    """Refuse to resume another run's checkpoint.

    Raises:
        CheckpointError: naming every field that differs, with both values.
    """
    a, b = _flatten(_completed(saved)), _flatten(now)
    rows = [
        f"  {key}: checkpoint {a.get(key)!r}, config {b.get(key)!r}"
        for key in sorted(set(a) | set(b))
        if a.get(key) != b.get(key) and not f"{key}.".startswith(FREE)
    ]
    if rows:
        raise CheckpointError(
            f"{where} is of another run; it differs in\n"
            + "\n".join(rows)
            + "\nGive the run another name, put these keys back, or go back to a checkpoint from "
            "before the change: remove the newer ones."
        )


def _completed(saved: dict[str, Any]) -> dict[str, Any]:
    """With the defaults of settings that came after it was saved: it had what these mean."""
    found = dict(saved)
    parts: dict[str, Any] = {"model": ModelConfig, "objective": ObjectiveConfig}
    for key, cls in parts.items():
        try:
            found[key] = to_mapping(from_mapping(cls, saved[key]))
        except (ConfigError, KeyError):  # settings that are no more: told as they are
            continue
    return found


@dataclass(frozen=True, kw_only=True)
class Record:
    """What every checkpoint of a run says about itself."""

    spec: RunSpec
    data: View
    precision: str
    mlflow_run_id: str | None

    def identity(self, step: int) -> dict[str, Any]:
        """See :func:`identity`."""
        return identity(self.spec, self.data, precision=self.precision, step=step)

    def weights(self, *, step: int) -> WeightsConfig:
        ids = {name: dataset.dataset_id for name, dataset in self.data.datasets.items()}
        meta = {
            "run": self.spec.name,
            "step": step,
            "dataset_id": ids if self.spec.data.corpora else next(iter(ids.values())),
            "documents": self.spec.data.documents,
            "mlflow_run_id": self.mlflow_run_id,
            "xtdist": version("xtdist"),
        }
        return WeightsConfig(model=self.spec.model, objective=self.spec.objective, meta=meta)


def _flatten(tree: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {path: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{path}.{key}" if path else key)
    return flat
