"""A tiny model by first principles: it can have a window, a cross attention, or refuse a cache."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from xtdist.nn.attention.cache import CacheSpec
from xtdist.nn.position.config import LearnedConfig

VOCABULARY = 24
DIM, HEADS = 16, 2


class Double(nn.Module):
    """h + attention(h), h + cross attention(h, context), h + tanh(W h), twice; float64, so that
    summing in another order changes no token.

    ``window``: keys that a query reaches back, itself excluded. ``context_dim``: of what cross
    attention reads. ``refused``: why a cache may not be given. ``projections`` counts contexts that
    were projected, ``lengths`` the tokens of each call.
    """

    def __init__(
        self,
        seed: int,
        *,
        window: int | None = None,
        context_dim: int | None = None,
        refused: str = "",
        max_seq_len: int = 64,
        depth: int = 2,
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def weight(*shape: int) -> nn.Parameter:
            values = torch.randn(*shape, generator=generator, dtype=torch.float64)
            return nn.Parameter(values * 1.3 / shape[-1] ** 0.5)

        self.config = SimpleNamespace(
            causal=True,
            prefix=False,
            position=LearnedConfig(),
            norm=SimpleNamespace(needs_condition=False),
            embedding=SimpleNamespace(tables=()),
            branch_scale=None,
            pool=None,
            num_tokens=VOCABULARY,
            head=SimpleNamespace(dim=None, output="logits", heads=1),
            dim=DIM,
            dim_context=context_dim,
            cross_attention=None if context_dim is None else "yes",
        )
        self.window, self.context_dim, self.refused = window, context_dim, refused
        self.max_seq_len, self.depth = max_seq_len, depth
        self.tokens, self.places = weight(VOCABULARY, DIM), weight(max_seq_len, DIM)
        self.qkv = nn.ParameterList(weight(3 * DIM, DIM) for _ in range(depth))
        self.mix = nn.ParameterList(weight(DIM, DIM) for _ in range(depth))
        self.cross_q = nn.ParameterList(weight(DIM, DIM) for _ in range(depth))
        self.cross_kv = nn.ParameterList(weight(2 * DIM, context_dim or DIM) for _ in range(depth))
        self.projections = 0
        self.lengths: list[int] = []

    def cache_spec(self) -> CacheSpec:
        kind = (HEADS, DIM // HEADS)
        return CacheSpec(
            layers=((kind, kind),) * self.depth, window=self.window, refused=self.refused
        )

    def forward(
        self,
        x: Tensor,
        *,
        pos: Tensor | None = None,
        cache: Any = None,
        logit_rows: Tensor | None = None,
        context: Tensor | None = None,
    ) -> Tensor:
        assert cache is None or (context is None and not self.refused)
        assert not self.training
        self.lengths.append(x.shape[1])
        where = torch.arange(x.shape[1])[None] if pos is None else pos
        h = self.tokens[x] * 3 + self.places[where] * 3
        for layer in range(self.depth):
            h = h + self._attend(layer, h, where, cache)
            if self.context_dim is not None:
                h = h + self._cross(layer, h, context, cache)
            h = h + torch.tanh(h @ self.mix[layer].T)
        logits = (h / h.norm(dim=-1, keepdim=True)) @ self.tokens.T * 8
        return logits if logit_rows is None else logits.flatten(0, 1)[logit_rows]

    def _attend(self, layer: int, h: Tensor, where: Tensor, cache: Any) -> Tensor:
        q, k, v = (split(t) for t in (h @ self.qkv[layer].T).chunk(3, dim=-1))
        if cache is None:
            return joined(self._read(q, k, v, where, where))
        outs = []
        for read in cache.update(layer, (k, v)):
            old = read.first + torch.arange(read.kept[0].shape[2])[None]
            here = where[:, read.rows]
            assert old[0, -1] == here[0, -1]
            outs.append(self._read(q[:, :, read.rows], *read.kept, here, old))
        return joined(torch.cat(outs, dim=2))

    def _read(self, q: Tensor, k: Tensor, v: Tensor, here: Tensor, old: Tensor) -> Tensor:
        back = here[..., :, None] - old[..., None, :]
        seen = (back >= 0) & (back <= (self.window if self.window is not None else 10**9))
        scores = (q @ k.mT).masked_fill(~seen[:, None], -torch.inf)
        return scores.softmax(-1) @ v

    def _cross(self, layer: int, h: Tensor, context: Tensor | None, cache: Any) -> Tensor:
        q = split(h @ self.cross_q[layer].T)

        def project(rows: Tensor) -> tuple[Tensor, ...]:
            self.projections += 1
            return tuple(split(t) for t in (rows @ self.cross_kv[layer].T).chunk(2, dim=-1))

        if cache is None:
            assert context is not None
            k, v = project(context)
            return joined((q @ k.mT).softmax(-1) @ v)
        outs = []
        for read in cache.context(layer, project):
            k, v = read.kept
            outs.append((q[:, :, read.rows] @ k.mT).softmax(-1) @ v)
        return joined(torch.cat(outs, dim=2))


def split(x: Tensor) -> Tensor:
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)
