"""What a worker leaves for the driver when it ends with an error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from xtdist.config import DataError, UnreachableError, UserError, to_mapping
from xtdist.train import loop


@pytest.mark.parametrize(
    ("error", "left"),
    [
        (DataError("shard 3 is damaged"), {"kind": "DataError", "message": "shard 3 is damaged"}),
        (UnreachableError("s3://b/k: failed 8 times"), None),  # the driver starts it again
    ],
    ids=["a mistake", "a store that is away"],
)
def test_only_a_mistake_is_left_for_the_driver(
    make_spec: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: UserError,
    left: dict[str, str] | None,
) -> None:
    def train(job: loop.WorkerJob) -> None:
        raise error

    monkeypatch.setattr(loop, "prepare_process", lambda *, gpu: None)
    monkeypatch.setattr(loop, "train", train)
    payload = {"spec": to_mapping(make_spec("away")), "folder": str(tmp_path), "mlflow": None}
    with pytest.raises(type(error)):
        loop.train_worker({**payload, "epoch": 5})
    path = tmp_path / loop.ERROR_FILE
    assert path.exists() == (left is not None)
    if left is not None:
        assert json.loads(path.read_text()) == left | {"epoch": 5}
