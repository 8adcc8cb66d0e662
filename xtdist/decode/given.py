"""What callers hand to the engine, under the names that they know it by."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from torch import Tensor, nn

from xtdist.config import ConfigError
from xtdist.decode.stopping import Tokenizer
from xtdist.model.tensors import is_integer, seen

T = TypeVar("T")
NET = ("causal", "num_tokens", "head")
"""Fields by which the config of a network is known from others."""
PER_ROW = ("prompt", "tokens", "context")
"""What begins a message about one prompt, not about the parameters of all."""


def as_net(model: Any, *, name: str = "model") -> Any:
    """The network that predicts tokens: ``model``, or what a training wrapper has as ``net``.

    Raises:
        ConfigError: neither.
    """
    for net in (model, getattr(model, "net", None)):
        config = getattr(net, "config", None)
        if all(hasattr(config, field) for field in NET):
            return net
    raise ConfigError(
        f"{name}: got {_kind(model)}; give a TransformerWrapper, which is `.net` of an "
        "AutoregressiveWrapper, or `.decoder.net` of an XTransformer"
    )


def as_made(value: Any, kind: type[T], *, name: str, why: str = "") -> T:
    """``value``, made by ``kind``; ``why`` it must be that.

    Raises:
        ConfigError: something else, a mapping of the fields included.
    """
    if isinstance(value, kind):
        return value
    wanted = f"{why}: give {kind.__name__}" if why else f"give {kind.__name__}"
    how = f", as in {kind.__name__}(**{name})" if isinstance(value, dict) else ""
    raise ConfigError(f"{name}: got {_kind(value)}; {wanted}{how}")


def as_ids(given: Any, *, name: str) -> tuple[int, ...]:
    """Token ids of any iterable, a tensor or an array (n,) included.

    Raises:
        ConfigError: text, one id alone, rows of ids, or something that is no whole number.
    """
    hint = "give token ids (tokenizer.encode(text))" if isinstance(given, str) else ""
    if not hint and not (isinstance(given, Iterable) and getattr(given, "ndim", 1) == 1):
        hint = f"give a list of token ids, like [{given}]" if _is_id(given) else "give token ids"
    if hint:
        raise ConfigError(f"{name}: got {_kind(given)}; {hint}")
    ids = given.tolist() if hasattr(given, "tolist") else list(given)
    wrong = next((i for i in ids if not _is_id(i)), None)
    if wrong is not None:
        raise ConfigError(f"{name}: got {_kind(wrong)} among the token ids; give whole numbers")
    return tuple(map(operator.index, ids))


def as_prompts(given: Any) -> Sequence[Any]:
    """Several prompts, each of which is still to be checked.

    Raises:
        ConfigError: one prompt alone, or something else.
    """
    several = isinstance(given, Sequence) and not isinstance(given, str | bytes)
    if not several and getattr(given, "ndim", 0) != 2:
        got = _kind(given)
    elif len(given) and _is_id(given[0]):
        got = "one prompt"
    else:
        prompts: Sequence[Any] = given
        return prompts
    raise ConfigError(f"prompts: got {got}; give a list of prompts, like [[1, 2], [3]]")


def check_tokenizer(tokenizer: Any) -> Tokenizer | None:
    """``tokenizer``, if it has what a ``Tokenizer`` must have.

    Raises:
        ConfigError: naming what it lacks.
    """
    if tokenizer is None:
        return None
    size = getattr(tokenizer, "vocab_size", None)
    lacks = [] if _is_id(size) else ["vocab_size (a whole number)"]
    if not callable(getattr(tokenizer, "token_bytes", None)):
        lacks.append("token_bytes(token_id) -> bytes")
    if lacks:
        raise ConfigError(
            f"tokenizer: got {_kind(tokenizer)}, which has no {' and no '.join(lacks)}; give an "
            "xtdist.data tokenizer, or an object with both (xtdist.decode.Tokenizer)"
        )
    made: Tokenizer = tokenizer
    return made


@contextlib.contextmanager
def of_prompt(number: int, *, count: int) -> Iterator[None]:
    """What is wrong with one of several prompts is said with its number."""
    try:
        yield
    except ConfigError as e:
        if count == 1 or not str(e).startswith(PER_ROW):
            raise
        raise ConfigError(f"prompts[{number}]: {e}") from None


def as_nets(model: nn.Module, amateur: nn.Module | Sequence[nn.Module] | None) -> tuple[Any, ...]:
    """The networks of a model and of any amateurs. Raises ConfigError for what is none."""
    if amateur is None:
        return (as_net(model),)
    several = tuple(amateur) if isinstance(amateur, Sequence | nn.ModuleList) else (amateur,)
    names = [f"amateur {i}" if len(several) > 1 else "amateur" for i in range(len(several))]
    weaker = (as_net(a, name=name) for a, name in zip(several, names, strict=True))
    return (as_net(model), *weaker)


def fresh_seed() -> int:
    """62 bits from the operating system."""
    low, high = np.random.SeedSequence().generate_state(2)
    return (int(high) << 30) ^ int(low)


def _is_id(value: Any) -> bool:
    if isinstance(value, bool) or getattr(value, "ndim", None):
        return False
    if isinstance(value, Tensor):
        return is_integer(value)
    return hasattr(value, "__index__")


def _kind(value: Any) -> str:
    """What was given, in a few words."""
    if value is None or isinstance(value, str | int | float):
        return repr(value)[:80]
    return seen(value)
