"""The per-worker training loop."""

from xtdist.train.spec import RunSpec, fit_to_data

__all__ = ["RunSpec", "fit_to_data"]
