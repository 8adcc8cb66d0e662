"""Every option of the model, declared once; how to add one stands at the top of ``base.py``."""

from xtdist.model.options.base import Option, Row, Sample
from xtdist.model.options.resolver import (
    Resolved,
    cache_refused,
    documents_refused,
    is_active,
    resolve,
)
from xtdist.model.options.table import OPTIONS

__all__ = [
    "OPTIONS",
    "Option",
    "Resolved",
    "Row",
    "Sample",
    "cache_refused",
    "documents_refused",
    "is_active",
    "resolve",
]
