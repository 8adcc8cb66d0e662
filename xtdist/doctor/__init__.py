"""Is this machine, or every node of a cluster, fit for a run? Facts are read in one place and
judged in another, so that each judgement can be tested with facts that were made up."""

from xtdist.doctor.finding import Finding, exit_code
from xtdist.doctor.text import as_json, as_text

__all__ = ["Finding", "as_json", "as_text", "exit_code"]
