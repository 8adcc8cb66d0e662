"""Validations and samples by a task of their own (``loop.aside``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from xtdist.config import ConfigError, PositiveFloat, PositiveInt, configclass

if TYPE_CHECKING:
    from xtdist.train.spec.run import RunSpec


@configclass
class AsideSpec:
    """What a Ray task beside the workers gets. It reads the weights of a committed checkpoint,
    while the workers go on; one task runs at a time, on the newest checkpoint when it starts.

    cpus, gpus: of the task, beside those of all workers. With gpus (1, or a part of one) it
        computes there.
    minutes: a task that takes longer, waiting for these included, is given up: a warning.
    """

    cpus: PositiveInt = 1
    gpus: Annotated[float, Field(ge=0, le=1)] = 0.0
    minutes: PositiveFloat = 30.0

    @property
    def resources(self) -> str:
        """In words."""
        return f"{self.cpus} CPU" + (f" and {self.gpus:g} GPU" if self.gpus else "")


def check_aside(spec: RunSpec) -> None:
    """Refuse what can't be had from a task that looks at checkpoints after they are committed.

    Raises:
        ConfigError: naming the setting.
    """
    loop, checkpoint = spec.loop, spec.checkpoint
    if loop.aside is None:
        return
    if loop.valid_every % checkpoint.every:
        most = max(loop.valid_every // checkpoint.every, 1) * checkpoint.every
        raise ConfigError(
            f"loop.valid_every: got {loop.valid_every} with loop.aside, which validates "
            f"checkpoints, and checkpoint.every is {checkpoint.every}; give a multiple of that, "
            f"{most} for example, or leave out loop.aside"
        )
    if checkpoint.keep_best and checkpoint.metric.startswith("eval/"):
        raise ConfigError(
            f"checkpoint.keep_best: got {checkpoint.keep_best} with loop.aside, whose "
            f"{checkpoint.metric} is known only after a checkpoint was saved; set it to 0, or "
            "leave out loop.aside"
        )
