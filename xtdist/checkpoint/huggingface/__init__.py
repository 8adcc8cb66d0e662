"""Hugging Face's folders: a model written as one, and one taken over as ours."""

from xtdist.checkpoint.huggingface.check import Problem, blocking, family_of
from xtdist.checkpoint.huggingface.export import ExportOptions, export
from xtdist.checkpoint.huggingface.take_over import ImportOptions, take_over

__all__ = [
    "ExportOptions",
    "ImportOptions",
    "Problem",
    "blocking",
    "export",
    "family_of",
    "take_over",
]
