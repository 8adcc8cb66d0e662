"""Tensors in, tensors out: what the ``generate`` methods of the public wrappers share."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from xtdist.config import ConfigError
from xtdist.decode.engine import Engine
from xtdist.decode.outputs import Completion
from xtdist.decode.params import EngineConfig, GenerationParams
from xtdist.decode.processors import LogitsProcessor
from xtdist.model.tensors import check_shape, check_tensor, is_integer, seen
from xtdist.nn.attention.cache import CacheSpec

MOST_AT_ONCE = 64


class BatchGenerator:
    """Continues the rows of a batch with one model; a row costs nothing once it has ended.

    Args:
        model: as for ``Engine``, and so is ``amateur``.
        eos_token: ends a row; the positions after it become ``pad_value``.
        cached: without, every step runs over the whole sequences: the same tokens, slowly.
        beyond: sequences may be longer than the model's ``max_seq_len``, where its positions go on.
    """

    def __init__(
        self,
        model: Any,
        params: GenerationParams,
        *,
        eos_token: int | None = None,
        pad_value: int = 0,
        amateur: Any = None,
        cached: bool = True,
        beyond: bool = False,
    ) -> None:
        amateurs = list(amateur) if isinstance(amateur, Sequence) else [amateur]
        models: list[Any] = [model, *(a for a in amateurs if a is not None)]
        models = models if cached else [Uncached(m) for m in models]
        self.model, self.amateurs = models[0], models[1:]
        self.params = replace(params, seed=None)  # the engine gives each row its own
        self.seed = params.seed
        self.eos_ids = () if eos_token is None else (token_id(eos_token, name="eos_token"),)
        self.pad_value, self.beyond = pad_value, beyond

    def __call__(
        self,
        prompts: Int[Tensor, "b n"] | Int[Tensor, " n"] | Sequence[Int[Tensor, " n"]],
        *,
        prompt_lens: Int[Tensor, " b"] | None = None,
        contexts: Sequence[Float[Tensor, "j d"]] | None = None,
        processor: LogitsProcessor | None = None,
    ) -> Int[Tensor, "b m"]:
        """The new tokens of each row, m <= ``max_tokens``; (m,) for a single prompt (n,).

        prompt_lens: real tokens of each row of a padded batch; the rest is at the end.
        contexts: what cross attention reads, one for each row. processor: as for ``Engine.add``.

        Raises:
            ConfigError: what the engine can't honour, or several continuations of one row.
        """
        if self.params.n != 1:
            raise ConfigError(
                f"n: got {self.params.n}; a batch has one continuation for each row: repeat the "
                "rows, or use xtdist.decode.generate"
            )
        completions = self.complete(
            prompts, prompt_lens=prompt_lens, contexts=contexts, processor=processor
        )
        found = padded([c.choices[0].token_ids for c in completions], self.pad_value)
        return like(prompts, found)

    def complete(
        self,
        prompts: Tensor | Sequence[Tensor],
        *,
        prompt_lens: Int[Tensor, " b"] | None = None,
        contexts: Sequence[Float[Tensor, "j d"]] | None = None,
        processor: LogitsProcessor | None = None,
    ) -> list[Completion]:
        """The same as completions: ``n`` choices for each row."""
        rows = as_rows(prompts, prompt_lens)
        longest = max(map(len, rows)) + self.params.max_tokens
        if not self.beyond:
            longest = min(longest, self.model.max_seq_len)
        engine = self._engine(len(rows), longest)
        return engine.generate(rows, self.params, contexts=contexts, processor=processor)

    def _engine(self, rows: int, longest: int) -> Engine:
        """Room for these rows; without a seed, draws follow torch's default generator."""
        width = self.params.width
        at_once = max(width, min(rows * width, MOST_AT_ONCE))
        config = EngineConfig(
            max_sequences=at_once,
            max_sequence_tokens=longest,
            seed=int(torch.randint(2**62, ())) if self.seed is None else self.seed,
        )
        amateur = self.amateurs or None
        return Engine(
            self.model,
            amateur=amateur,
            eos_ids=self.eos_ids,
            banned_ids=without_embedding(self.model),
            config=config,
        )


class Uncached(nn.Module):
    """A model that keeps no keys and values."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **inputs: Any) -> Any:
        return self.model(*args, **inputs)

    def cache_spec(self) -> CacheSpec:
        return replace(cast(Any, self.model).cache_spec(), refused="cache_kv=False")

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)


def without_embedding(model: Any) -> range:
    """Ids that the model can predict and not read (``logits_dim`` > ``num_tokens``)."""
    tokens = model.config.num_tokens
    return range(tokens, model.config.head.dim or tokens)


def token_id(value: Any, *, name: str) -> int:
    """``value`` as a number.

    Raises:
        ConfigError: something else than one whole number.
    """
    wrong = isinstance(value, bool) or (isinstance(value, Tensor) and not is_integer(value))
    try:
        if not wrong:
            return operator.index(value)
    except TypeError:
        pass
    got = seen(value) if isinstance(value, Tensor) else repr(value)
    raise ConfigError(f"{name}: got {got}; give one token id, a whole number")


def padded(rows: Sequence[Sequence[int]], value: int) -> Int[Tensor, "b m"]:
    """Rows of one length, those that are shorter filled up with ``value``."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows], dtype=torch.long)


def like(prompts: Tensor | Sequence[Tensor], found: Tensor) -> Tensor:
    """What was ``found`` for ``prompts`` (… b …, b last but one), on their device, and without a
    batch axis for a single prompt (n,)."""
    device = prompts.device if isinstance(prompts, Tensor) else prompts[0].device
    single = isinstance(prompts, Tensor) and prompts.ndim == 1
    return (found.squeeze(-2) if single else found).to(device)


def as_rows(
    prompts: Tensor | Sequence[Tensor], prompt_lens: Int[Tensor, " b"] | None
) -> list[list[int]]:
    """The prompts as lists of ids.

    Raises:
        ConfigError: not a tensor (n,) or (b, n), nor a list of tensors (n,); or empty.
        ValueError: lengths that are not one whole number for each row.
    """
    tensors: list[Any]
    if isinstance(prompts, Tensor):
        tensors = [prompts] if prompts.ndim < 2 else list(prompts)
    else:
        tensors = list(prompts) if isinstance(prompts, Sequence) else [prompts]
    for tensor in tensors:
        if not isinstance(tensor, Tensor) or tensor.ndim != 1 or not is_integer(tensor):
            raise ConfigError(
                f"prompts: got {seen(tensor)}; give token ids (b, n) or (n,), or a list of (n,)"
            )
    if not tensors:
        raise ConfigError("prompts: there are none; give at least one row")
    rows = [tensor.tolist() for tensor in tensors]
    if prompt_lens is None:
        return rows
    if not isinstance(prompts, Tensor):
        raise ConfigError("prompt_lens: a list of prompts has lengths of its own; leave it out")
    what = ", the real tokens of each row"
    check_shape(prompt_lens, name="prompt_lens", kind="integer", shapes=[(len(rows),)], what=what)
    lengths = prompt_lens.tolist()
    if not all(0 <= n <= len(row) for n, row in zip(lengths, rows, strict=True)):
        raise ConfigError(
            f"prompt_lens: got {lengths}; give {len(rows)} lengths of at most {len(rows[0])}"
        )
    return [row[:n] for row, n in zip(rows, lengths, strict=True)]


def unpadded(
    context: Float[Tensor, "b j d"] | None, mask: Bool[Tensor, "b j"] | None
) -> list[Float[Tensor, "_ d"]] | None:
    """The real vectors of each row; None without any context.

    Raises:
        ValueError: other types or shapes, or a mask of nothing.
    """
    if context is None:
        if mask is not None:
            raise ConfigError("context_mask: given without context; give that too")
        return None
    if check_tensor(context, name="context").ndim != 3 or not context.is_floating_point():
        raise ConfigError(f"context: got {seen(context)}; give floats (b, j, d)")
    if mask is None:
        return list(context)
    shapes, what = [tuple(context.shape[:2])], ", True = a real vector"
    check_shape(mask, name="context_mask", kind="bool", shapes=shapes, what=what)
    return [row[real] for row, real in zip(context, mask, strict=True)]
