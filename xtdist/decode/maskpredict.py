"""Generation by filling masks: all positions at once, the surest first (Mask-Predict,
https://arxiv.org/abs/1904.09324; MaskGIT, https://arxiv.org/abs/2202.04200; with random order and
constant temperature 1 the sampler of masked diffusion, https://arxiv.org/abs/2406.07524).

Any set of positions may be given: a prompt, a suffix, or both (infilling). Shapes: b rows,
n positions, m masked positions of all rows together, v vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from xtdist.config import ConfigError, NonNegativeFloat, PositiveInt, configclass
from xtdist.decode.noise import gumbel, mix, noise_key
from xtdist.decode.params import GREEDY_BELOW, Seed, check_fields
from xtdist.decode.runner import evaluating


@configclass
class MaskPredictParams:
    """How to fill the masks.

    After step s of ``steps``, ``schedule``(s / steps) of the masks are left: 1 - t, or
    cos(t * pi / 2), which starts slower. ``order``: keep the tokens that the model is surest of
    (plus Gumbel noise times ``noise``, which falls to 0), or those at random positions. The
    ``temperature`` of the draw falls linearly towards 0 if ``anneal``; 0 takes the best token.
    """

    steps: PositiveInt = 18
    temperature: NonNegativeFloat = 1.0
    anneal: bool = True
    schedule: Literal["linear", "cosine"] = "cosine"
    order: Literal["confidence", "random"] = "confidence"
    noise: NonNegativeFloat = 1.0
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_fields(self)

    def masked_fraction(self, t: float) -> float:
        """Share of the masks that is left at time ``t`` in [0, 1]."""
        return 1.0 - t if self.schedule == "linear" else math.cos(t * math.pi / 2)


class MaskPredict:
    """A batch that is being filled; ``step`` is one denoising step, so a caller may show progress
    or stop in between.

    Args:
        model: a bidirectional model.
        tokens: (b, n) ids; ``mask_id`` marks the positions to fill, all others stay as they are.
        mask_id: the mask token; it is never generated, and neither are ``banned_ids``.
        mask: True = real position, False = padding, which is neither read nor filled.

    Raises:
        ConfigError: a causal model, or tokens that the model can't take.
    """

    def __init__(
        self,
        model: Any,
        tokens: Int[Tensor, "b n"],
        *,
        mask_id: int,
        params: MaskPredictParams | None = None,
        banned_ids: Iterable[int] = (),
        mask: Bool[Tensor, "b n"] | None = None,
    ) -> None:
        check_inputs(model, tokens, mask_id)
        self.model = model
        self.params = params or MaskPredictParams()
        self.tokens = tokens.long().clone(memory_format=torch.contiguous_format)
        self.mask = mask
        self.to_fill = self.tokens == mask_id
        if mask is not None:
            self.to_fill &= mask
        self.total = self.to_fill.sum(dim=1)
        self.steps = min(self.params.steps, int(self.total.max()))
        self.taken = 0
        self._banned = torch.tensor(sorted({mask_id, *banned_ids}), device=tokens.device)

    @property
    def done(self) -> bool:
        return self.taken >= self.steps

    @torch.no_grad()
    def step(self) -> Int[Tensor, "b n"]:
        """Fill some more positions; returns the tokens so far. Does nothing when all are filled."""
        if self.done:
            return self.tokens
        places = self.to_fill.flatten().nonzero()[:, 0]
        with evaluating(self.model):
            logits = self.model(self.tokens, mask=self.mask, logit_rows=places).float()
        logits.index_fill_(1, self._banned, -math.inf)
        progress = self.taken / self.steps
        chosen = self._draw(logits, places, 1.0 - progress if self.params.anneal else 1.0)
        sureness = logits.log_softmax(-1).gather(1, chosen[:, None])[:, 0]
        keep = self._surest(self._rank_by(sureness, places, 1.0 - progress), places)
        flat = self.tokens.flatten()
        flat[places[keep]] = chosen[keep]
        self.tokens = flat.view_as(self.tokens)
        self.to_fill.view(-1)[places[keep]] = False
        self.taken += 1
        return self.tokens

    def _draw(
        self, logits: Float[Tensor, "m v"], places: Int[Tensor, " m"], anneal: float
    ) -> Int[Tensor, " m"]:
        temperature = self.params.temperature * anneal
        if temperature < GREEDY_BELOW:
            return logits.argmax(-1)
        ids = torch.arange(logits.shape[-1], device=logits.device)[None]
        return (logits / temperature + gumbel(self._keys(places, "token"), ids)).argmax(-1)

    def _rank_by(
        self, sureness: Float[Tensor, " m"], places: Int[Tensor, " m"], anneal: float
    ) -> Float[Tensor, " m"]:
        """What decides which positions are kept: higher first."""
        scale = 1.0 if self.params.order == "random" else self.params.noise * anneal
        if self.params.order == "confidence" and scale == 0:
            return sureness
        zero = torch.zeros(1, 1, dtype=torch.long, device=places.device)
        noise = gumbel(self._keys(places, "order"), zero)[:, 0] * scale
        return noise if self.params.order == "random" else sureness + noise

    def _surest(self, score: Float[Tensor, " m"], places: Int[Tensor, " m"]) -> Bool[Tensor, " m"]:
        """The positions to keep now: at least one per unfinished row, and all in the last step."""
        t = (self.taken + 1) / self.steps
        left = self.to_fill.sum(dim=1)
        target = torch.floor(self.total * self.params.masked_fraction(t) + 1e-6).long()
        if self.taken + 1 == self.steps:
            target = torch.zeros_like(target)
        count = left - torch.minimum(target, (left - 1).clamp(min=0))
        grid = torch.full(self.tokens.shape, -math.inf, device=score.device)
        grid.view(-1)[places] = score
        order = grid.argsort(dim=1, descending=True, stable=True)
        return (order.argsort(dim=1) < count[:, None]).view(-1)[places]

    def _keys(self, places: Int[Tensor, " m"], purpose: str) -> Int[Tensor, "m 2"]:
        """A noise key per masked position, from (seed, purpose, step, row, position)."""
        rows, length = self.tokens.shape
        labels = (purpose, self.taken)
        keys = [noise_key(self.params.seed, *labels, row) for row in range(rows)]
        by_row = torch.tensor(keys, dtype=torch.int32, device=places.device)[places // length]
        by_row[:, 0] = mix(by_row[:, 0] ^ (places % length).to(torch.int32))
        return by_row


def mask_predict(
    model: Any,
    tokens: Int[Tensor, "b n"],
    *,
    mask_id: int,
    params: MaskPredictParams | None = None,
    banned_ids: Iterable[int] = (),
    mask: Bool[Tensor, "b n"] | None = None,
) -> Int[Tensor, "b n"]:
    """``tokens`` with every ``mask_id`` filled in; arguments as for ``MaskPredict``."""
    job = MaskPredict(
        model, tokens, mask_id=mask_id, params=params, banned_ids=banned_ids, mask=mask
    )
    while not job.done:
        job.step()
    return job.tokens


def check_inputs(model: Any, tokens: Tensor, mask_id: int) -> None:
    if model.config.causal:
        raise ConfigError(
            "model: it is causal, so it can't see what comes after a mask; use Engine to continue "
            "text with it, or train a non-autoregressive model"
        )
    if tokens.ndim != 2 or tokens.is_floating_point() or 0 in tokens.shape:
        raise ConfigError(f"tokens: got {tokens.dtype} {tuple(tokens.shape)}; give ids (b, n)")
    if tokens.shape[1] > model.max_seq_len:
        raise ConfigError(
            f"tokens: {tokens.shape[1]} positions, the model has {model.max_seq_len}; shorten them"
        )
    low, high = int(tokens.min()), int(tokens.max())
    vocabulary = model.config.num_tokens
    if low < 0 or max(high, mask_id) >= vocabulary:
        wrong = low if low < 0 else max(high, mask_id)
        raise ConfigError(f"tokens: id {wrong} is not in the vocabulary of {vocabulary}")
