"""One denoising step of many sequences: predict, draw, keep the best, say what is new.

Shapes: b sequences, n positions (padded at the end), m positions whose logits are read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from xtdist.decode.denoiser import Denoiser
from xtdist.decode.fill_request import FillRequest
from xtdist.decode.maskpredict import Filling
from xtdist.decode.noise import gumbel
from xtdist.decode.outputs import Output, RequestFailed
from xtdist.decode.params import GREEDY_BELOW
from xtdist.decode.runner import evaluating
from xtdist.decode.sampling import not_numbers
from xtdist.decode.stopping import Release

Drawn = tuple[Tensor, Tensor | None]
"""Of one sequence: a token for each position, and how sure it is."""


class Denoising:
    """Takes requests to fill masks a step further with a denoiser.

    Args:
        banned_ids: ids that are never filled in; neither is a request's mask.
        eos_ids: ids that show no text.
    """

    def __init__(
        self, denoiser: Denoiser, *, eos_ids: tuple[int, ...], banned_ids: Iterable[int]
    ) -> None:
        self.denoiser, self.eos_ids = denoiser, eos_ids
        self.banned = torch.tensor(sorted(banned_ids), dtype=torch.long, device=denoiser.device)

    def advance(self, requests: Sequence[FillRequest]) -> list[Output]:
        """One step for each of them. A finished one loses its sequence."""
        full = [r for r in requests if r.filling.done]  # there was nothing to fill
        requests = [r for r in requests if not r.filling.done]
        fresh = [r for r in requests if r.filling.previous is None]
        going = [r for r in requests if r.filling.previous is not None]
        outputs = [self._shown(r, ()) for r in full]
        module: Any = self.denoiser
        with evaluating(module):
            for group in (fresh, going):  # the first step conditions on nothing
                if not group:
                    continue
                drawn = self._criticised([r.filling for r in group], self._draw(group))
                outputs += [self._accept(r, d) for r, d in zip(group, drawn, strict=True)]
        return outputs

    def _draw(self, requests: Sequence[FillRequest]) -> list[Drawn]:
        """A token for each mask, and where the order asks for it the log-probability of each
        candidate: its own, also where it stood there before."""
        fillings = [r.filling for r in requests]
        ids, real = self._padded([f.ids for f in fillings])
        predicted = [f.predicted for f in fillings]
        logits, hidden = self.denoiser.denoise(
            ids,
            rows=pad(predicted, value=False).flatten().nonzero()[:, 0].to(ids.device),
            mask=real,
            previous=joined_previous(fillings),
        )
        positions = [p.nonzero()[:, 0] for p in predicted]
        tokens, sureness = self._choose(logits.float(), fillings, positions)
        counts = [len(p) for p in positions]
        drawn: list[Drawn] = []
        for i, (filling, places, ours, sure) in enumerate(
            zip(fillings, positions, tokens.split(counts), sureness.split(counts), strict=True)
        ):
            if bool(sure.isnan().any()):
                raise not_numbers(requests[i].id)
            if hidden is not None:
                filling.previous = hidden[i, : len(filling.ids)]
            ids_now, sure_now = filling.ids.clone(), torch.zeros(len(filling.ids))
            ids_now[places], sure_now[places] = ours, sure
            drawn.append((ids_now, sure_now if filling.params.order == "confidence" else None))
        return drawn

    def _choose(
        self,
        logits: Float[Tensor, "m v"],
        fillings: Sequence[Filling],
        positions: Sequence[Int[Tensor, " k"]],
    ) -> tuple[Int[Tensor, " m"], Float[Tensor, " m"]]:
        """A token for each of the positions, and its log-probability; on the CPU."""
        places = list(zip(fillings, positions, strict=True))

        def per_row(values: Iterable[Any], dtype: torch.dtype) -> Tensor:
            rows = [
                torch.full((len(p),), v, dtype=dtype)
                for v, p in zip(values, positions, strict=True)
            ]
            return torch.cat(rows).to(logits.device)

        logits = logits.index_fill(1, self.banned, -math.inf)
        logits.scatter_(1, per_row((f.mask_id for f in fillings), torch.long)[:, None], -math.inf)
        chosen = draw(
            best(logits, per_row((f.params.top_k for f in fillings), torch.long)),
            temperature=per_row((f.temperature for f in fillings), torch.float32),
            keys=torch.cat([f.keys("token", p) for f, p in places]).to(logits.device),
        )
        masked = torch.cat([f.masked[p] for f, p in places]).to(logits.device)
        there = torch.cat([f.ids[p] for f, p in places]).to(logits.device)
        tokens = torch.where(masked, chosen, there)
        sureness = logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
        return tokens.cpu(), sureness.cpu()

    def _criticised(self, fillings: Sequence[Filling], drawn: list[Drawn]) -> list[Drawn]:
        """``drawn`` with the critic's view of all tokens together, where the order is its."""
        asked = [
            i for i, f in enumerate(fillings) if f.params.order == "critic" and not f.last_step
        ]
        if not asked:
            return drawn
        ids, real = self._padded([drawn[i][0] for i in asked])
        wrong = self.denoiser.criticise(ids, mask=real)
        assert wrong is not None, "a denoiser with a critic gave no scores"
        judged = dict(zip(asked, -wrong.float().cpu(), strict=True))
        return [
            (tokens, judged[i][: len(tokens)] if i in judged else sure)
            for i, (tokens, sure) in enumerate(drawn)
        ]

    def _padded(
        self, rows: Sequence[Int[Tensor, " n"]]
    ) -> tuple[Int[Tensor, "b n"], Bool[Tensor, "b n"] | None]:
        """One batch, and which of it is real (None: all)."""
        device = self.denoiser.device
        ids = pad(rows, value=0).to(device)
        if all(len(row) == ids.shape[1] for row in rows):
            return ids, None
        return ids, pad([torch.ones(len(r), dtype=torch.bool) for r in rows], value=False).to(
            device
        )

    def _accept(self, request: FillRequest, drawn: Drawn) -> Output:
        changed = request.filling.accept(*drawn)
        return self._shown(request, changed)

    def _shown(self, request: FillRequest, changed: tuple[tuple[int, int], ...]) -> Output:
        """What is new: tokens up to the first mask, if they can't be masked again any more."""
        filling, sequence = request.filling, request.sequences[0]
        sequence.tokens = filling.ids.tolist()
        stop = len(sequence.tokens) if filling.done else request.shown
        if not filling.params.remask and not filling.done:
            stop = int(filling.masked.nonzero()[0])
        release = Release()
        try:
            for token in sequence.tokens[request.shown : stop]:
                release += sequence.stream.push(token, visible=token not in self.eos_ids)
            if filling.done:
                release += sequence.stream.finish()
        except Exception as e:  # the tokenizer's
            raise RequestFailed(request.id) from e
        request.shown = stop
        if filling.done:
            request.sequences.remove(sequence)
        return Output(
            request_id=request.id,
            index=0,
            token_ids=release.token_ids,
            text=release.text,
            finish_reason="stop" if filling.done else None,
            filled=changed,
        )


def best(scores: Float[Tensor, "m v"], count: Int[Tensor, " m"]) -> Float[Tensor, "m v"]:
    """The ``count`` best of each row (0: all); the others become -inf."""
    most = min(int(count.max()), scores.shape[-1])
    if not most:
        return scores
    ranked = scores.topk(most).values
    last = ranked.gather(1, (count - 1).clamp(0, most - 1)[:, None])
    return scores.masked_fill((scores < last) & (count > 0)[:, None], -math.inf)


def draw(
    scores: Float[Tensor, "m v"], *, temperature: Float[Tensor, " m"], keys: Int[Tensor, "m 2"]
) -> Int[Tensor, " m"]:
    """A token per row, drawn with its temperature; at 0 the best."""
    drawn = temperature >= GREEDY_BELOW
    if not bool(drawn.any()):
        return scores.argmax(-1)
    ids = torch.arange(scores.shape[-1], device=scores.device)[None]
    noisy = scores / temperature[:, None].clamp(min=GREEDY_BELOW) + gumbel(keys, ids)
    return torch.where(drawn[:, None], noisy, scores).argmax(-1)


def pad(rows: Sequence[Tensor], *, value: float) -> Tensor:
    """Rows of different lengths as one batch, padded at the end."""
    return nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value)


def joined_previous(fillings: Sequence[Filling]) -> Float[Tensor, "b n d"] | None:
    """What they condition on; either all have something or none has."""
    found = [f.previous for f in fillings if f.previous is not None]
    assert len(found) in (0, len(fillings)), "a first step was batched with a later one"
    return pad(found, value=0.0) if found else None
