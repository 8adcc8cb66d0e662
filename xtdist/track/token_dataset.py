"""Our datasets as a class of ``mlflow.data``; imports MLflow, so import it where it is used."""

from __future__ import annotations

import json
from typing import Any

from mlflow.data.dataset import Dataset
from mlflow.data.dataset_source_registry import resolve_dataset_source
from mlflow.data.sources import LocalArtifactDatasetSource
from mlflow.types import ColSpec, DataType, Schema

from xtdist.track.datasets import TokenData


class TokenDatasetForMlflow(Dataset):
    """For ``mlflow.log_input(dataset, context=…)`` and ``mlflow.log_metrics(dataset=…)``. MLflow
    itself has datasets of pandas, NumPy, Hugging Face, Spark … only."""

    def __init__(self, data: TokenData) -> None:
        self._data = data
        remote = "://" in data.path
        source = resolve_dataset_source(data.path) if remote else None
        source = source or LocalArtifactDatasetSource(data.path)
        super().__init__(source=source, name=data.title, digest=data.digest)

    def _compute_digest(self) -> str:
        return self._data.digest

    @property
    def profile(self) -> dict[str, Any]:
        return self._data.profile

    @property
    def schema(self) -> Schema:
        """One column of token ids."""
        return Schema([ColSpec(DataType.integer, "token_ids")])

    def to_dict(self) -> dict[str, str]:
        schema = json.dumps({"mlflow_colspec": self.schema.to_dict()})
        return {**super().to_dict(), "schema": schema, "profile": json.dumps(self.profile)}
