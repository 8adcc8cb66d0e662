"""Types of parameters that say what they want as a caller would write it."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    TypeAdapter,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import PydanticCustomError

from xtdist.config import NonNegativeInt


def wanted(text: str, *, whole: bool = False, lone: type | None = None) -> WrapValidator:
    """Says ``text`` where a value is none of its type; what is wrong with an item of it is said of
    the item, unless ``whole``. A ``lone`` item counts as a list of one."""

    def check(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        given = (value,) if lone is not None and isinstance(value, lone) else value
        try:
            return handler(tuple(given) if isinstance(given, list) else given)
        except ValidationError as e:
            if not whole and any(error["loc"] for error in e.errors(include_url=False)):
                raise
        raise _refusal(text)

    return WrapValidator(check)


def part(made: type, text: str, *, several: bool = False) -> BeforeValidator:
    """Says ``text`` where a value is neither a ``made``, nor a mapping of its fields, nor, with
    ``several``, a list of these; what is wrong with a field is said of the field."""

    def check(value: Any) -> Any:
        if value is None or isinstance(value, made):
            return value
        if isinstance(value, Mapping):
            with contextlib.suppress(TypeError):  # no plain data
                return _adapter(made).validate_json(json.dumps(dict(value)))
        if several and isinstance(value, list | tuple) and value:
            return tuple(check(item) for item in value)
        raise _refusal(text)

    return BeforeValidator(check)


@functools.cache
def _adapter(made: Any) -> TypeAdapter[Any]:
    return TypeAdapter(made)


def _refusal(text: str) -> PydanticCustomError:
    return PydanticCustomError("wanted", "Input should be {text}", {"text": text})


TokenIds = Annotated[tuple[NonNegativeInt, ...], wanted("a list of token ids, like [3, 4]")]
StopString = Annotated[
    str, Field(min_length=1, max_length=256), wanted("a text of 1 to 256 characters")
]
StopStrings = Annotated[
    tuple[StopString, ...],
    Field(max_length=16),
    wanted("a text, or a list of up to 16 texts", lone=str),
]
SomeTokenIds = Annotated[
    tuple[NonNegativeInt, ...],
    Field(min_length=1),
    wanted("a list of at least one token id, like [3, 4]"),
]
BadWord = Annotated[
    tuple[NonNegativeInt, ...],
    Field(min_length=1, max_length=256),
    wanted("a list of 1 to 256 token ids, like [3, 4]", whole=True),
]
BadWords = Annotated[
    tuple[BadWord, ...],
    Field(max_length=1024),
    wanted("a list of up to 1024 words, each a list of token ids, like [[3, 4], [5]]"),
]
Logprobs = Annotated[
    int,
    Field(ge=0, le=20),
    wanted("a whole number from 0 to 20: how many of the best tokens to list"),
]
EarlyStopping = Annotated[
    bool | Literal["never"] | None, wanted("true, false or 'never'", whole=True)
]
Layers = Annotated[
    Literal["low", "high"] | Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] | None,
    wanted("'low', 'high' or a list of layer numbers from 0 on", whole=True),
]
