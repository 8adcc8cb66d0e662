"""Datasets of tokens as MLflow knows them: inputs of a run, and what models were measured on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from xtdist.config import configclass

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

Context = Literal["training", "validation"]
_DIGEST_CHARS = 32  # MLflow takes 36
_SPLITS: dict[Context, str] = {"training": "train", "validation": "valid"}


@configclass
class TokenData:
    """One split of a dataset that a run reads.

    Args:
        name: of the corpus, as in the names of its metrics; empty for the only one.
        dataset_id: sha256 of the dataset's manifest, which holds the digests of its shards.
        tokens, documents: of the split.
    """

    path: str
    dataset_id: str
    context: Context
    tokens: int
    documents: int
    name: str = ""

    @property
    def title(self) -> str:
        """MLflow's name for it; the two splits have the same digest, so their names differ."""
        return f"{Path(self.path).name}/{_SPLITS[self.context]}"

    @property
    def digest(self) -> str:
        """MLflow's digest: the start of ``dataset_id``."""
        return self.dataset_id[:_DIGEST_CHARS]

    @property
    def profile(self) -> dict[str, Any]:
        return {
            "dataset_id": self.dataset_id,
            "split": _SPLITS[self.context],
            "tokens": self.tokens,
            "documents": self.documents,
        }


@dataclass(frozen=True)
class Measured:
    """Which dataset a metric of a validation speaks of."""

    data: tuple[TokenData, ...]

    def of(self, metric: str) -> TokenData | None:
        """That of ``eval/<set>/…``; None for other metrics and for the mean over a mixture."""
        parts = metric.split("/")
        valid = [d for d in self.data if d.context == "validation"]
        if parts[0] != "eval" or len(parts) < 3:
            return None
        if parts[1] == "valid" and len(valid) == 1:
            return valid[0]
        return next((d for d in valid if d.name == parts[1]), None)


def dataset_input(data: TokenData) -> DatasetInput:
    """The input of a run that ``data`` is."""
    from mlflow.entities import DatasetInput, InputTag

    from xtdist.track.token_dataset import TokenDatasetForMlflow

    tags = [InputTag("mlflow.data.context", data.context)]
    if data.name:
        tags.append(InputTag("xtdist.corpus", data.name))
    return DatasetInput(TokenDatasetForMlflow(data)._to_mlflow_entity(), tags)
