"""The wire format of ``/v1/infill``: sequences with masks, and how they are filled."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from xtdist.config import ConfigError, derive_seed
from xtdist.decode.maskpredict import MaskPredictParams
from xtdist.serve.errors import invalid
from xtdist.serve.protocol.base import StreamRequest, Usage, Wire, parse
from xtdist.serve.protocol.decoding import TokenId, refused

_INT64 = 2**63
_MOST = 2**31
_FORMS = "either prompt, suffix and max_tokens, or text, or tokens"
_IDS = Annotated[list[TokenId], Field(min_length=0)]


class Mask(Wire):
    """So many masks in a row."""

    mask: int = Field(ge=1, lt=_MOST)


def _kind(value: Any) -> str:
    return "mask" if isinstance(value, dict | Mask) else "given"


_OR_MASK = Discriminator(_kind)  # so that a mistake is told of the one that was meant
TextPart = Annotated[Annotated[str, Tag("given")] | Annotated[Mask, Tag("mask")], _OR_MASK]
TokenPart = Annotated[Annotated[TokenId, Tag("given")] | Annotated[Mask, Tag("mask")], _OR_MASK]


class InfillRequest(StreamRequest):
    """Body of ``POST /v1/infill``. What is to be filled is given in one of three forms. What is
    left out of the others is as the model was made to be asked.

    Attributes:
        prompt, suffix: text or ids, around ``max_tokens`` masks.
        text: parts in order, strings and masks.
        tokens: ids and masks.
        steps: denoising steps at most; never more than masks.
        order: which tokens stay after a step.
        remask: tokens of earlier steps may be masked again.
    """

    prompt: str | _IDS | None = None
    suffix: str | _IDS | None = None
    max_tokens: int | None = Field(None, ge=1)
    text: list[TextPart] | None = Field(None, min_length=1)
    tokens: list[TokenPart] | None = Field(None, min_length=1)
    steps: int | None = Field(None, ge=1, lt=_MOST)
    schedule: Literal["linear", "cosine"] | None = None
    temperature: float | None = Field(None, ge=0, le=100)
    anneal: bool | None = None
    top_k: int | None = Field(None, ge=-1, lt=_MOST)
    order: Literal["confidence", "critic", "random"] | None = None
    noise: float | None = Field(None, ge=0, le=1e4)
    remask: bool | None = None
    seed: int | None = Field(None, ge=-_INT64, lt=_INT64)
    n: int = Field(1, ge=1)
    return_token_ids: bool = False

    @model_validator(mode="after")
    def _one_form(self) -> InfillRequest:
        around = self.prompt is not None or self.suffix is not None or self.max_tokens is not None
        if around + (self.text is not None) + (self.tokens is not None) != 1:
            raise ValueError(f"it should have {_FORMS}")
        if around and (self.max_tokens is None or (self.prompt is None and self.suffix is None)):
            raise ValueError(f"it should have {_FORMS}")
        if not around and not self.masks:
            raise ValueError("there is nothing to fill: put {'mask': 8} where text is wanted")
        return self

    @property
    def parts(self) -> list[str | list[int] | Mask]:
        """What is given and what is to be filled, in order."""
        if self.text is not None:
            return [*self.text]
        if self.tokens is not None:
            return [t if isinstance(t, Mask) else [t] for t in self.tokens]
        assert self.max_tokens is not None
        return [self.prompt or [], Mask(mask=self.max_tokens), self.suffix or []]

    @property
    def masks(self) -> int:
        """Tokens to be filled."""
        if self.max_tokens is not None:
            return self.max_tokens
        parts = self.text if self.text is not None else self.tokens or []
        return sum(p.mask for p in parts if isinstance(p, Mask))


def parse_infill(tree: Mapping[str, Any]) -> InfillRequest:
    """Check a parsed body.

    Raises:
        ApiError: 400 naming the key, what is allowed, and the nearest name of an unknown key.
    """
    r = parse(InfillRequest, tree)
    if r.stream_options is not None and not r.stream:
        raise invalid("stream_options: only with stream=true", param="stream_options")
    return r


def fill_params(r: Any, usual: MaskPredictParams, *, mask_id: int) -> tuple[MaskPredictParams, ...]:
    """The engine's parameters of each choice of a checked request: what it says, and otherwise what
    the model's own config does. The first choice has the request's seed, the others seeds that are
    derived from it.

    Raises:
        ApiError: 400 for values that the engine does not take.
    """
    names = [f.name for f in dataclasses.fields(MaskPredictParams) if f.name != "mask_id"]
    given = {n: getattr(r, n) for n in names if getattr(r, n, None) is not None}
    if "top_k" in given:
        given["top_k"] = max(given["top_k"], 0)
    try:
        first = dataclasses.replace(usual, mask_id=mask_id, **given)
    except ConfigError as e:
        raise refused(e) from None
    return tuple(
        first
        if i == 0 or first.seed is None
        else dataclasses.replace(first, seed=derive_seed(first.seed, "choice", i))
        for i in range(r.n)
    )


class Filled(Wire):
    """One position that a step has changed. ``token_id`` and ``text`` are null where it was masked
    again."""

    position: int
    token_id: int | None
    text: str | None


class InfillChoice(Wire):
    """A filled sequence or, in a stream, how far it is.

    Attributes:
        text: of the whole sequence, what was given included; in a stream what is new of it, as soon
            as nothing before it can change any more.
        token_ids: the same as ids.
        step: how many denoising steps were made.
        filled: what has changed since the last frame.
        so_far: the whole sequence as it is; every mask that is left is shown as ``░``.
        fills: what stands in each row of masks, in order; in a stream at its end.
    """

    index: int
    text: str
    token_ids: list[int] | None = None
    step: int
    filled: list[Filled] | None = None
    so_far: str | None = None
    fills: list[str] | None = None
    finish_reason: Literal["stop"] | None = None


class Infill(Wire):
    """A whole answer, or one frame of a stream. ``system_fingerprint`` names the weights."""

    id: str
    object: Literal["infill", "infill.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[InfillChoice]
    usage: Usage | None = None
