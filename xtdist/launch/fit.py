"""One attempt: the workers of a run under Ray Train, until they end in whatever way."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable
from typing import Any

from xtdist.launch.preflight import Plan
from xtdist.track.console import follow

Worker = Callable[[dict[str, Any]], None]


def fit(
    plan: Plan, payload: dict[str, Any], worker: Worker, *, count: int, over: threading.Event
) -> BaseException | None:
    """Run ``count`` workers in a thread, so that this one can show progress and take signals.

    Ray restarts nothing by itself: what follows a failure is decided in one place, the driver.

    over: set when the attempt has ended; who sets it before that leaves it to itself.

    Returns:
        what ``TorchTrainer.fit`` raised, None if all workers came to their end.
    """
    caught: list[BaseException] = []
    timeout = plan.spec.workers.start_timeout_s
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(timeout)

    def target() -> None:
        try:
            _trainer(plan, payload, worker, count=count).fit()
        except BaseException as e:
            caught.append(e)
        finally:
            over.set()

    thread = threading.Thread(target=target, name="ray-train", daemon=True)
    thread.start()
    follow(plan.folder, plan.spec.loop.steps, stop=over)
    return caught[0] if caught else None


def _trainer(plan: Plan, payload: dict[str, Any], worker: Worker, *, count: int) -> Any:
    import ray.train
    from ray.train.torch import TorchTrainer

    from xtdist.launch.hosts import HostsConfig

    workers, gpu = plan.spec.workers, bool(plan.gpus_per_worker)
    return TorchTrainer(
        worker,
        train_loop_config=payload,
        torch_config=HostsConfig(backend="nccl" if gpu else "gloo", timeout_s=600),
        scaling_config=ray.train.ScalingConfig(
            num_workers=count,
            use_gpu=gpu,
            resources_per_worker={"CPU": workers.cpus} | ({"GPU": 1} if gpu else {}),
            placement_strategy=workers.placement.upper(),
        ),
        run_config=ray.train.RunConfig(
            name=f"attempt-{uuid.uuid4().hex[:8]}",
            storage_path=str(plan.folder / "ray"),
            failure_config=ray.train.FailureConfig(
                max_failures=0, max_preemption_failures=0, controller_failure_limit=0
            ),
        ),
    )
