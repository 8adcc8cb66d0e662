"""A client that repeats what is safe to repeat, and never shows half an answer as a whole one."""

from xtdist.serve.client.aio import AsyncClient
from xtdist.serve.client.answer import Answer, Choice
from xtdist.serve.client.errors import (
    ClientError,
    RequestError,
    StreamBroken,
    Unreachable,
    WeightsChanged,
)
from xtdist.serve.client.model import RemoteModel
from xtdist.serve.client.retry import Retry
from xtdist.serve.client.stream import AsyncStream
from xtdist.serve.client.sync import Client, Stream

__all__ = [
    "Answer",
    "AsyncClient",
    "AsyncStream",
    "Choice",
    "Client",
    "ClientError",
    "RemoteModel",
    "RequestError",
    "Retry",
    "Stream",
    "StreamBroken",
    "Unreachable",
    "WeightsChanged",
]
