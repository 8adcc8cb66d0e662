"""The metrics of every step."""

from __future__ import annotations

from xtdist.train.callbacks.base import Callback
from xtdist.train.run import Run
from xtdist.train.step import StepResult


class Log(Callback):
    """One record a step, in metrics.jsonl and MLflow."""

    def started(self, run: Run) -> None:
        run.phases.lap(step=run.position.step)

    def stepped(self, run: Run, result: StepResult) -> None:
        lap = run.phases.lap(step=run.position.step)
        seconds = lap.total - lap.host.get("checkpoint", 0.0) - lap.host.get("evaluate", 0.0)
        run.log(
            {
                "train/loss": result.loss,
                "train/lr": run.stepper.engine.optimizer.param_groups[0]["lr"],
                "train/grad_norm": result.grad_norm,
                "train/tokens": float(run.position.tokens),
                "perf/tokens_per_s": run.spec.batch.tokens_per_step / seconds,
                "perf/step_s": seconds,
                "perf/data_wait_s": result.wait_s,
                "perf/data_wait_share": result.wait_s / seconds,
                **{f"train/{name}": value for name, value in result.metrics.items()},
            }
        )
