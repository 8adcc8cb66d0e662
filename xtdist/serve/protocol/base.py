"""What all wire types share: strictness, and refusals that a client can act on.

Requests are strict: a key that we do not know is an error that names the nearest one, because a
misspelt sampling parameter is a quality bug that nobody sees.
"""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from xtdist.serve.errors import ApiError, invalid


class Wire(BaseModel):
    """Base of everything that is sent or received."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ErrorObject(Wire):
    """``code``: a stable word that programs can test."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(Wire):
    """Every answer but a good one, and the last frame of a stream that fails."""

    error: ErrorObject


class Usage(Wire):
    """Tokens of one answer; of several prompts, all of them. Of ``best_of`` and beams, those of the
    choices that are given."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, prompt: int, completion: int) -> Usage:
        return cls(
            prompt_tokens=prompt,
            completion_tokens=completion,
            total_tokens=prompt + completion,
        )


class StreamOptions(Wire):
    """``continuous_usage_stats``: with ``include_usage``, the count so far in every chunk."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


class StreamRequest(Wire):
    """A request whose answer comes whole or as a stream.

    Attributes:
        request_id: becomes the end of the answer's id.
        cache_salt: requests with another one share no work with this one.
    """

    model: str
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, max_length=256)
    request_id: str | None = Field(None, pattern=r"^[A-Za-z0-9_.:-]{1,64}$")
    cache_salt: str | None = Field(None, min_length=1, max_length=256)

    @property
    def counts_usage(self) -> bool:
        """Whether the tokens used are told: of a stream only when asked for."""
        options = self.stream_options
        return not self.stream or (options is not None and options.include_usage)

    @property
    def counts_always(self) -> bool:
        """Whether they are told in every chunk."""
        options = self.stream_options
        return self.counts_usage and options is not None and options.continuous_usage_stats


W = TypeVar("W", bound=Wire)


def parse(form: type[W], tree: Mapping[str, Any]) -> W:
    """Check a parsed body. Null means the default.

    Raises:
        ApiError: 400 naming the key, what is allowed, and the nearest name of an unknown key.
    """
    given = {k: v for k, v in tree.items() if v is not None}
    try:
        return form.model_validate(given)
    except ValidationError as e:
        raise _describe(form, given, e.errors(include_url=False)[0]) from None


def _describe(form: type[Wire], given: Mapping[str, Any], err: ErrorDetails) -> ApiError:
    loc = _steps(given, err)
    if loc[:1] == ["logit_bias"]:
        del loc[1:]  # its keys are the client's own
    path = ".".join(loc)[:80]
    if err["type"] == "extra_forbidden":
        owner = _owner(form, loc[:-1])
        near = difflib.get_close_matches(loc[-1][:80], owner.model_fields if owner else [], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return invalid(f"{path!r}: unknown key{hint}", param=path, code="unknown_parameter")
    if err["type"] == "missing":
        return invalid(f"{path}: required key is missing", param=path, code="missing_parameter")
    problem = str(err["ctx"]["error"]) if err["type"] == "value_error" else err["msg"]
    problem = re.sub(r"^\w+ should", "it should", problem)
    message = f"{path}: {problem}" if path else problem
    return invalid(message[:300], param=path or None, code="invalid_value")


def _steps(given: Any, err: ErrorDetails) -> list[str]:
    """The keys and positions that lead to the mistake, without pydantic's names of the branches of
    a union: those are no keys of what was given."""
    steps, here = [], given
    missing = err["type"] == "missing"
    for i, step in enumerate(err["loc"]):
        last = missing and i == len(err["loc"]) - 1
        found = isinstance(here, dict) and step in here
        found = found or (isinstance(here, list) and isinstance(step, int) and step < len(here))
        if not found and not last:
            continue
        steps.append(str(step))
        here = here[step] if found else None
    return steps


def _owner(form: type[Wire], path: list[str]) -> type[Wire] | None:
    """The type of the object at ``path``; None where it is not one of ours alone."""
    here: type[Wire] | None = form
    for key in path:
        if here is None or key not in here.model_fields:
            return None
        here = _wire_in(here.model_fields[key].annotation)
    return here


def _wire_in(annotation: Any) -> type[Wire] | None:
    args = typing.get_args(annotation) if not isinstance(annotation, type) else (annotation,)
    if isinstance(annotation, types.UnionType):
        args = annotation.__args__
    found = [a for a in args if isinstance(a, type) and issubclass(a, Wire)]
    return found[0] if len(found) == 1 else None
