"""One HTML page about a run, from what its folder holds."""

from xtdist.report.page import write_report

__all__ = ["write_report"]
