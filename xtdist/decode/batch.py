"""Tensors in, tensors out: what the ``generate`` methods of the public wrappers share."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from xtdist.config import ConfigError
from xtdist.decode.engine import Engine
from xtdist.decode.params import EngineConfig, GenerationParams

MOST_AT_ONCE = 64


class BatchGenerator:
    """Continues the rows of a batch with one model; a row costs nothing once it has ended.

    Args:
        model: as for ``Engine``, and so is ``amateur``.
        eos_token: ends a row; the positions after it become ``pad_value``.
    """

    def __init__(
        self,
        model: Any,
        params: GenerationParams,
        *,
        eos_token: int | None = None,
        pad_value: int = 0,
        amateur: Any = None,
    ) -> None:
        """Raises ConfigError for several continuations of one row."""
        if params.n != 1:
            raise ConfigError(
                f"n: got {params.n}; a batch has one continuation for each row: repeat the rows, "
                "or use xtdist.decode.generate"
            )
        self.model, self.amateur = model, amateur
        self.params = dataclasses.replace(params, seed=None)  # the engine gives each row its own
        self.seed = params.seed
        self.eos_ids = () if eos_token is None else (eos_token,)
        self.pad_value = pad_value

    def __call__(
        self,
        prompts: Int[Tensor, "b n"] | Int[Tensor, " n"] | Sequence[Int[Tensor, " n"]],
        *,
        prompt_lens: Int[Tensor, " b"] | None = None,
        contexts: Sequence[Float[Tensor, "j d"]] | None = None,
    ) -> Int[Tensor, "b m"]:
        """The new tokens of each row, m <= ``max_tokens``; (m,) for a single prompt (n,).

        prompt_lens: real tokens of each row of a padded batch; the rest is at the end.

        Raises:
            ConfigError: what the engine can't honour.
        """
        rows = as_rows(prompts, prompt_lens)
        longest = max(map(len, rows)) + self.params.max_tokens
        engine = self._engine(len(rows), longest)
        completions = engine.generate(rows, self.params, contexts=contexts)
        found = [list(c.choices[0].token_ids) for c in completions]
        width = max(map(len, found))
        padded = [row + [self.pad_value] * (width - len(row)) for row in found]
        single = isinstance(prompts, Tensor) and prompts.ndim == 1
        device = prompts.device if isinstance(prompts, Tensor) else prompts[0].device
        return torch.tensor(padded[0] if single else padded, dtype=torch.long, device=device)

    def _engine(self, rows: int, longest: int) -> Engine:
        """Room for these rows; without a seed, draws follow torch's default generator."""
        width = self.params.width
        at_once = max(width, min(rows * width, MOST_AT_ONCE))
        config = EngineConfig(
            max_sequences=at_once,
            max_sequence_tokens=longest,
            seed=int(torch.randint(2**62, ())) if self.seed is None else self.seed,
        )
        return Engine(self.model, amateur=self.amateur, eos_ids=self.eos_ids, config=config)


def as_rows(
    prompts: Tensor | Sequence[Tensor], prompt_lens: Int[Tensor, " b"] | None
) -> list[list[int]]:
    """The prompts as lists of ids.

    Raises:
        ConfigError: not a tensor (n,) or (b, n), nor a list of tensors (n,); or empty.
    """
    single = isinstance(prompts, Tensor) and prompts.ndim == 1
    tensors: list[Any] = [prompts] if single else list(prompts)
    for tensor in tensors:
        if not isinstance(tensor, Tensor) or tensor.ndim != 1 or tensor.is_floating_point():
            raise ConfigError("prompts: give token ids (b, n) or (n,), or a list of (n,)")
    if not tensors:
        raise ConfigError("prompts: there are none; give at least one row")
    rows = [tensor.tolist() for tensor in tensors]
    if prompt_lens is None:
        return rows
    lengths = prompt_lens.tolist()
    if len(lengths) != len(rows) or not all(
        0 <= n <= len(row) for n, row in zip(lengths, rows, strict=True)
    ):
        raise ConfigError(
            f"prompt_lens: got {lengths}; give {len(rows)} lengths of at most {len(rows[0])}"
        )
    return [row[:n] for row, n in zip(rows, lengths, strict=True)]


def unpadded(
    context: Float[Tensor, "b j d"], mask: Bool[Tensor, "b j"] | None
) -> list[Float[Tensor, "_ d"]]:
    """The real vectors of each row."""
    if mask is None:
        return list(context)
    return [row[real] for row, real in zip(context, mask, strict=True)]
