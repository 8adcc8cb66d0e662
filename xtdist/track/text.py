"""Numbers and durations as people read them."""

from __future__ import annotations

import math


def human(number: float) -> str:
    """Three digits and a power of 1000: ``12.3k``, ``4.56M``, ``789``."""
    if not math.isfinite(number):
        return str(number)
    for power, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= 0.9995 * power:
            scaled = number / power
            digits = 2 if abs(scaled) < 9.995 else 1 if abs(scaled) < 99.95 else 0
            return f"{scaled:.{digits}f}{suffix}"
    return f"{number:.0f}" if abs(number) >= 99.5 or number == int(number) else f"{number:.1f}"


def duration(seconds: float) -> str:
    """``48s``, ``1m 12s``, ``3h 05m``, ``2d 04h``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d {whole % 86400 // 3600:02d}h"
