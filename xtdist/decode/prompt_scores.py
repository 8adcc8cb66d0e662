"""What a model thinks of a prompt: the log-probability of each of its tokens after those before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from xtdist.decode.outputs import TokenLogprob
from xtdist.decode.sampling import not_numbers

AT_ONCE = 128
"""Positions whose logits are in memory at the same time."""


@dataclass(eq=False)
class PromptScores:
    """Of one request; ``top``: how many of the best tokens to list for each position.

    It grows with the hidden states of the prompt, and what it has it keeps, also when the pages are
    lost and computed again.
    """

    request_id: str
    prompt: tuple[int, ...]
    top: int
    found: list[TokenLogprob | None] = field(default_factory=lambda: [None])

    def see(
        self,
        start: int,
        hidden: Float[Tensor, "n d"],
        to_logits: Callable[[Float[Tensor, "n d"]], Float[Tensor, "n v"]],
    ) -> None:
        """Hidden states of the tokens from ``start`` on; each tells of the token after it.

        Raises:
            RequestFailed: the scores are nan.
        """
        stop = min(start + len(hidden), len(self.prompt) - 1)
        while (first := len(self.found) - 1) < stop:
            upto = min(first + AT_ONCE, stop)
            logprobs = to_logits(hidden[first - start : upto - start]).float().log_softmax(-1)
            if bool(logprobs.isnan().any()):
                raise not_numbers(self.request_id)
            self.found += self._read(logprobs, self.prompt[first + 1 : upto + 1])

    def _read(self, logprobs: Float[Tensor, "n v"], ids: tuple[int, ...]) -> list[TokenLogprob]:
        own = logprobs[range(len(ids)), ids].tolist()
        best = logprobs.topk(min(self.top, logprobs.shape[-1]))
        rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [
            TokenLogprob(token, logprob, tuple(zip(*row, strict=True)))
            for token, logprob, row in zip(ids, own, rows, strict=True)
        ]
