"""What the training loop holds: one object to log to, on rank 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from xtdist.track.mlflow import MlflowRun
from xtdist.track.notes import write_note
from xtdist.track.ray_metrics import RayMetrics
from xtdist.track.records import MetricLog
from xtdist.track.shipper import MlflowWriter


class Tracker:
    """Metrics of one run: into ``<run_folder>/metrics.jsonl`` and from there to MLflow; in a
    process of Ray also into Ray's metrics.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, Tracker(folder) as tracker:
        ...     tracker.log(1, {"train/loss": 5.5})

    Raises:
        ResourceError: the folder can't be written.
    """

    def __init__(self, run_folder: str | Path, run: MlflowRun | None = None) -> None:
        self._file = MetricLog(run_folder)
        self._folder = Path(run_folder)
        self._writer = MlflowWriter(run) if run is not None else None
        self._ray = RayMetrics.connect(self._folder.resolve().name)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log numbers (no tensors on a device: reading them would wait for it) after ``step``
        finished optimizer steps. Costs one short write; never raises, never waits for MLflow."""
        self._file.append(step, metrics)
        if self._ray is not None:
            self._ray.log(step, metrics)

    def ranks(self, seconds: Sequence[float]) -> None:
        """What each rank's own work took in a step; only Ray's metrics have it."""
        if self._ray is not None:
            self._ray.ranks(seconds)

    def note(self, step: int, text: str) -> None:
        """A warning or an intervention, for the run's ``notes.jsonl`` and the console."""
        write_note(self._folder, step, text)
        if self._ray is not None:
            self._ray.note()

    def flush(self, timeout_s: float = 10.0) -> bool:
        """Wait until MLflow has everything, as after a checkpoint; False if not in time."""
        return self._writer is None or self._writer.flush(timeout_s)

    def close(self, timeout_s: float = 10.0) -> bool:
        """Send the rest and stop; False if MLflow lacks some (it is sent on the next resume)."""
        self._file.close()
        return self._writer is None or self._writer.close(timeout_s)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
