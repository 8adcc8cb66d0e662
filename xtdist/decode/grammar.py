"""Structured output: only tokens that a grammar allows next, an end exactly where it accepts. Text
that the grammar leaves no choice about comes in the tokenizer's own spelling.

Grammars are compiled by llguidance (extra ``structured``) for one tokenizer, before a request is
queued. A step then costs a few microseconds of parsing.
"""

from __future__ import annotations

import contextlib
import json
import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from xtdist.config import ConfigError
from xtdist.decode.params import GenerationParams, GrammarParams
from xtdist.decode.stopping import Tokenizer

MOST_COMPILED = 64
FIRST_FUEL, STEP_FUEL, MOST_STATES, MOST_ITEMS = 300_000, 50_000, 50_000, 1_000
"""llguidance's units: no grammar may hold a step up for more than some 50 ms."""
MOST_MULTIPLE_DIGITS = 4
"""Of a ``multipleOf``, as a whole number: each remainder is a state that no limit counts."""


@dataclass(eq=False)
class Grammars:
    """Compiles grammars for one tokenizer and keeps the last ones. Any thread may use it.

    ``end_ids`` end a text and are no part of it, whatever bytes they have.
    """

    tokenizer: Tokenizer
    end_ids: frozenset[int] = frozenset()
    _known: OrderedDict[GrammarParams, Any] = field(default_factory=OrderedDict, repr=False)
    _vocabulary: Any = field(default=None, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def compile(self, params: GrammarParams) -> Any:
        """The matcher of an empty text, to be copied.

        Raises:
            ConfigError: no valid grammar, one that matches nothing, or llguidance is missing.
        """
        with self._lock:
            known = self._known.get(params)
        if known is None:
            known = self._compile(params)  # not under the lock: others need not wait for it
        with self._lock:
            self._known[params] = known
            self._known.move_to_end(params)
            while len(self._known) > MOST_COMPILED:
                self._known.popitem(last=False)
        return known

    def processor(self, params: GenerationParams, *, ends: tuple[int, ...]) -> GrammarProcessor:
        """The hook of one request, that ends with one of ``ends``. Raises as ``compile``."""
        assert params.grammar is not None
        if not ends:
            raise ConfigError(
                "grammar: nothing can end the text; give the engine eos_ids or set stop_token_ids"
            )
        root = self.compile(params.grammar)
        states = (params.draft_tokens + 2) * params.width + 8
        return GrammarProcessor(root, ends, self.tokenizer.vocab_size, states)

    def _compile(self, params: GrammarParams) -> Any:
        library = _llguidance()
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = _vocabulary(library, self.tokenizer, self.end_ids)
        limits = library.LLParserLimits(
            initial_lexer_fuel=FIRST_FUEL,
            step_lexer_fuel=STEP_FUEL,
            max_lexer_states=MOST_STATES,
            max_items_in_row=MOST_ITEMS,
        )
        what = f"grammar: this {params.kind} can't be used"
        if params.kind == "json_schema" and _has_large_multiple(params.value):
            raise ConfigError(f"{what}: multipleOf has more than {MOST_MULTIPLE_DIGITS} digits")
        if params.kind == "lark" and "%json" in params.value:  # whose bounds nobody would see
            raise ConfigError(f"{what}: %json; give the schema as a json_schema instead")
        try:
            source = getattr(library.LLMatcher, f"grammar_from_{params.kind}")(params.value)
            wrong, messages = library.LLMatcher.validate_grammar_with_warnings(
                source, self._vocabulary, limits=limits
            )
        except ValueError as e:
            wrong, messages = True, [str(e)]
        if wrong:
            raise ConfigError(f"{what}: {' '.join(messages[0].split()):.200}")
        matcher = library.LLMatcher(self._vocabulary, source, log_level=0, limits=limits)
        root = _State(matcher, self.tokenizer.vocab_size)
        if not (root.accepts or root.allowed.any()):
            raise ConfigError(f"{what}: no text that this tokenizer can write matches it")
        return matcher


class _State:
    """Where a text stands: whether it may end, and which ids may come next."""

    def __init__(self, matcher: Any, tokens: int) -> None:
        self.matcher = matcher
        self.accepts: bool = not matcher.is_error() and matcher.is_accepting()
        bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        self.allowed: NDArray[np.bool_] = np.unpackbits(
            bits, count=tokens, bitorder="little"
        ).astype(bool)


@dataclass(eq=False)
class GrammarProcessor:
    """A ``LogitsProcessor``. ``ends`` are allowed exactly where the grammar accepts.

    It keeps the last ``most`` states, enough for every choice or beam; others are parsed again.
    """

    root: Any
    ends: tuple[int, ...]
    num_tokens: int
    most: int
    _states: OrderedDict[tuple[int, ...], _State] = field(default_factory=OrderedDict, repr=False)

    def __call__(
        self, tokens: Sequence[int], scores: Float[Tensor, " v"], /
    ) -> Float[Tensor, " v"]:
        allowed = torch.zeros(scores.shape, dtype=torch.bool)
        state = self._state(tuple(tokens))
        known = torch.from_numpy(state.allowed)[: len(allowed)]
        allowed[: len(known)] = known
        allowed[list(self.ends)] = state.accepts
        return scores.masked_fill_(~allowed.to(scores.device), -math.inf)

    def _state(self, tokens: tuple[int, ...]) -> _State:
        state = self._states.get(tokens)
        if state is None:
            parent = self._states.get(tokens[:-1])
            matcher = (self.root if parent is None else parent.matcher).deep_copy()
            matcher.consume_tokens(list(tokens if parent is None else tokens[-1:]))
            state = self._states[tokens] = _State(matcher, self.num_tokens)
        self._states.move_to_end(tokens)
        while len(self._states) > self.most:
            self._states.popitem(last=False)
        return state


def _has_large_multiple(schema: str) -> bool:
    """Whether a ``multipleOf`` has more remainders than may be told apart."""
    found = False

    def look(pairs: list[tuple[str, Any]]) -> None:
        nonlocal found
        for key, value in pairs:
            if key == "multipleOf" and isinstance(value, Decimal):
                _, digits, exponent = value.as_tuple()
                size = len(digits) + max(exponent, 0) if isinstance(exponent, int) else math.inf
                found = found or size > MOST_MULTIPLE_DIGITS

    with contextlib.suppress(ValueError, RecursionError):  # llguidance says what is wrong with it
        json.loads(schema, object_pairs_hook=look, parse_float=Decimal, parse_int=Decimal)
    return found


def _vocabulary(library: Any, tokenizer: Tokenizer, end_ids: frozenset[int]) -> Any:
    """The tokenizer as llguidance wants it. The id behind the last one plays the end, so that which
    ids may end a text stays our own matter."""
    last = tokenizer.vocab_size
    pieces = [b"" if i in end_ids else tokenizer.token_bytes(i) for i in range(last)]

    class Wrapped:
        eos_token_id, bos_token_id = last, None
        special_token_ids = (last,)
        tokens = (*pieces, b"")
        __call__ = staticmethod(_Spelling(tokenizer, pieces))

    return library.LLTokenizer(
        library.TokenizerWrapper(Wrapped()), n_vocab=last + 1, eos_token=last
    )


class _Spelling:
    """The ids of a text that a grammar leaves no choice about: as the tokenizer encodes it, or, if
    it can't, by the longest piece at every place."""

    def __init__(self, tokenizer: Tokenizer, pieces: Sequence[bytes]) -> None:
        self.encode = getattr(tokenizer, "encode", None)
        self.pieces = pieces
        self.ids = {piece: i for i, piece in reversed(list(enumerate(pieces))) if piece}
        self.longest = max(map(len, pieces))

    def __call__(self, text: bytes) -> list[int]:
        if self.encode is not None:
            with contextlib.suppress(UnicodeDecodeError):
                ids = [int(i) for i in self.encode(text.decode())]
                if b"".join(self.pieces[i] for i in ids) == text:
                    return ids
        ids, place = [], 0
        while place < len(text):
            ends = range(min(len(text), place + self.longest), place, -1)
            stop = next((e for e in ends if text[place:e] in self.ids), None)
            if stop is None:
                return []  # no piece has this byte
            ids.append(self.ids[text[place:stop]])
            place = stop
        return ids


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError:
        raise ConfigError(
            "grammar: structured output needs llguidance; install it with "
            "pip install 'xtdist[structured]'"
        ) from None
    return llguidance
