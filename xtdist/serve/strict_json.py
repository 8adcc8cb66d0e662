"""JSON as the standard means it: what Python's reader silently accepts is refused here.

Refused: NaN and Infinity, numbers that overflow (1e999, 5000 digits), duplicate keys, lone
surrogates, deep nesting, anything that is not UTF-8. Messages never repeat the input.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

import numpy as np

from xtdist.serve.errors import ApiError, invalid

_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)  # linear: no step back
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_MAX_DIGITS = 40


def parse_object(raw: bytes, *, max_depth: int) -> dict[str, Any]:
    """The JSON object in ``raw``.

    Raises:
        ApiError: 400 with code ``invalid_json``.
    """
    if _depth(raw) > max_depth:
        raise _bad(f"nested deeper than {max_depth} levels")
    try:
        text = raw.decode("utf-8")
        tree = json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_float=_float,
            parse_int=_int,
        )
        if "\\u" in text:
            json.dumps(tree, ensure_ascii=False).encode("utf-8")
    except UnicodeError:
        raise _bad("not UTF-8 text") from None
    except (ValueError, RecursionError):
        raise _bad("not valid JSON") from None
    if not isinstance(tree, dict):
        raise _bad("not an object")
    return tree


def _depth(raw: bytes) -> int:
    brackets = np.frombuffer(_STRING.sub(b"", raw).translate(None, _NOT_BRACKETS), np.uint8)
    opens = (brackets == ord("[")) | (brackets == ord("{"))
    return int(np.where(opens, 1, -1).cumsum().max(initial=0))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise _bad("a key occurs twice in one object")
    return out


def _constant(_: str) -> float:
    raise _bad("NaN and Infinity are not JSON")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _bad("a number is out of range")
    return value


def _int(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise _bad("a number is out of range")
    return int(text)


def _bad(problem: str) -> ApiError:
    return invalid(f"the request body is refused: {problem}", code="invalid_json")
