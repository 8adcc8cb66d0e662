"""The weight of what was, in an exponential moving average, as a closed form of the step."""

from __future__ import annotations

from xtdist.optim.config import EmaConfig


def ema_decay(config: EmaConfig, step: int) -> float | None:
    """What the average is multiplied by after ``step`` finished steps, before 1 minus that times
    the weights is added; None: it stays as it is after this step.

    Example:
        >>> config = EmaConfig(decay=0.5, every=2)
        >>> [ema_decay(config, step) for step in (1, 2, 3, 4)]  # 1/2 : 1 becomes 1/3 : 2/3
        [None, 0.0, None, 0.3333333333333333]
    """
    if step % config.every:
        return None
    n = step // config.every
    if n == 1:
        return 0.0
    match config.warmup:
        case "debias":
            return config.decay * (1 - config.decay ** (n - 1)) / (1 - config.decay**n)
        case "ramp":
            return min(config.decay, n / (n + 9))
        case "none":
            return config.decay
