"""An OpenAI-compatible endpoint on Ray Serve over the decode engine."""

from xtdist.serve.auth import new_key
from xtdist.serve.check import check
from xtdist.serve.client import AsyncClient, Client
from xtdist.serve.config import AppConfig, LimitsConfig, ServeConfig, ServedModel
from xtdist.serve.server import Server, run

__all__ = [
    "AppConfig",
    "AsyncClient",
    "Client",
    "LimitsConfig",
    "ServeConfig",
    "ServedModel",
    "Server",
    "check",
    "new_key",
    "run",
]
