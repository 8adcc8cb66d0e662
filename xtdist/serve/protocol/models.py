"""The wire format of ``/v1/models``."""

from __future__ import annotations

from typing import Literal

from xtdist.serve.protocol.base import Wire


class ModelCard(Wire):
    """One model, and what a client needs to know before it asks it.

    Attributes:
        max_model_len: tokens that prompt and answer may have together.
        contrastive: whether it has an amateur to be contrasted with.
        fills: whether it fills masks (``/v1/infill``) and does not continue a prompt.
        chat: whether it has a template for ``/v1/chat/completions``.
        digest: of the weights.
        step: of the training run that they are from.
    """

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "xtdist"
    max_model_len: int
    contrastive: bool
    fills: bool = False
    chat: bool = False
    digest: str = ""
    step: int | None = None


class ModelList(Wire):
    object: Literal["list"] = "list"
    data: list[ModelCard]
