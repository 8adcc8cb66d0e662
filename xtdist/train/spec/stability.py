"""What a run does about steps that go wrong, hang, or are about to be cut off."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from xtdist.config import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, configclass

Watched = Literal["loss", "grad_norm"]


@configclass
class NonFiniteSpec:
    """A nan or infinite loss or gradient, which is never applied. The run goes back to the newest
    checkpoint and repeats the step, which heals what was no more than a flipped bit.

    Attributes:
        retries: of the same step.
        then: ``stop`` with an error, or ``skip``: leave the step's data out.
        most: times that a run goes back for this, retries and skips together.
    """

    retries: NonNegativeInt = 1
    then: Literal["stop", "skip"] = "stop"
    most: PositiveInt = 20


@configclass
class SpikesOff:
    """Spikes stay as they are. The default: a spike, unlike a nan, is a guess from statistics,
    most of them pass, and going back changes which data the run is trained on."""

    kind: Literal["off"] = "off"


@configclass
class SpikeRollback:
    """As for PaLM (2204.02311, section 5.1): go back to before the spike and leave out the data
    around it.

    Attributes:
        sigmas: a step is a spike if its value is this many robust standard deviations above the
            median of the last ``window`` steps.
        watch: which values; one of them is enough.
        lasting: steps in a row that have to be spikes, so that one odd batch is none.
        back_steps: a checkpoint at least this much before the spike is taken, and the data from
            there on left out. The oldest one is taken if there is none that old.
        skip_steps: steps of data left out, at least to the end of the spike.
        lr_factor: on the learning rate, from the checkpoint on.
        most: times; the spike after that stops the run.
    """

    kind: Literal["rollback"] = "rollback"
    sigmas: PositiveFloat = 6.0
    window: Annotated[int, Field(ge=8, le=2**20)] = 128
    watch: Annotated[tuple[Watched, ...], Field(min_length=1)] = ("loss",)
    lasting: PositiveInt = 3
    back_steps: NonNegativeInt = 100
    skip_steps: PositiveInt = 200
    lr_factor: Annotated[float, Field(gt=0, le=1)] = 1.0
    most: PositiveInt = 10


SpikeSpec = Annotated[SpikesOff | SpikeRollback, Field(discriminator="kind")]


@configclass
class WatchdogSpec:
    """When workers that get nowhere are ended, so that they are started again.

    Attributes:
        stuck_s: without progress in a step; 5 times what the slowest 1 % of the last steps took,
            where that is more. 0: no watchdog.
        pause_s: the same while the run starts (and compiles), evaluates or saves. A process that
            has stopped altogether is found after ``stuck_s`` also then.
    """

    stuck_s: NonNegativeFloat = 45.0
    pause_s: PositiveFloat = 1800.0


@configclass
class StabilitySpec:
    """``preemption_poll_s``: how often Ray is asked whether a node is about to be taken away; the
    run then saves and starts again elsewhere. 0: never."""

    non_finite: NonFiniteSpec = NonFiniteSpec()
    spike: SpikeSpec = SpikesOff()
    watchdog: WatchdogSpec = WatchdogSpec()
    preemption_poll_s: NonNegativeFloat = 5.0
