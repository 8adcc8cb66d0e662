"""One HTML page about a run, from what its folder holds."""

from xtdist.report.page import try_report, write_report

__all__ = ["try_report", "write_report"]
