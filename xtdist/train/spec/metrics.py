"""Settings that wait for a metric."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xtdist.config import ConfigError

if TYPE_CHECKING:
    from xtdist.train.spec.run import RunSpec


def check_metrics(spec: RunSpec) -> None:
    """Refuse to wait for a metric that the run never measures.

    Raises:
        ConfigError: naming the setting, and the metrics that there are.
    """
    loop, checkpoint = spec.loop, spec.checkpoint
    measured = measured_metrics(spec)
    if loop.early_stop is not None and loop.early_stop.metric not in measured:
        raise _unknown("loop.early_stop.metric", loop.early_stop.metric, measured)
    if not checkpoint.keep_best:
        return
    if checkpoint.metric not in (*measured, "train/loss"):
        raise _unknown("checkpoint.metric", checkpoint.metric, [*measured, "train/loss"])
    if checkpoint.metric in measured and not loop.valid_every:
        raise ConfigError(
            f"checkpoint.keep_best: got {checkpoint.keep_best}, by {checkpoint.metric}, but "
            "loop.valid_every is 0: validate every so many steps, or set checkpoint.keep_best to 0"
        )


def measured_metrics(spec: RunSpec) -> list[str]:
    """Those of the validations of ``spec``."""
    corpora = list(spec.data.corpora) if len(spec.data.corpora) > 1 else []
    ema = spec.optim.ema
    kinds = ["", "ema_"] if ema is not None and ema.evaluate else [""]
    return [
        f"eval/{name}/{kind}{value}"
        for name in ["valid", *corpora]
        for kind in kinds
        for value in ("loss", "bits_per_byte")
    ]


def _unknown(key: str, metric: str, measured: list[str]) -> ConfigError:
    return ConfigError(
        f"{key}: got {metric!r}, which this run never measures; give one of {', '.join(measured)}"
    )
