"""A plain GPT-2 in the least code that trains well: what our model is measured against.

Pre-norm blocks, fused attention, learned positions, GELU, biases, tied embedding; the loss is
torch's cross-entropy over all logits at once.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class PlainBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.to_qkv, self.to_out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """(b, n, d) ↦ (b, n, d)."""
        qkv = self.to_qkv(self.norm_1(x))
        q, k, v = rearrange(qkv, "b n (three h d) -> three b h n d", three=3, h=self.heads)
        read = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.to_out(rearrange(read, "b h n d -> b n (h d)"))
        return x + self.mlp(self.norm_2(x))


class PlainGPT(nn.Module):
    """Token ids (b, n + 1) ↦ mean cross-entropy of the next tokens."""

    def __init__(self, *, num_tokens: int, max_seq_len: int, dim: int, depth: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_tokens, dim)
        self.position = nn.Embedding(max_seq_len, dim)
        self.blocks = nn.ModuleList(PlainBlock(dim, max(1, dim // 64)) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        for table in (self.embedding, self.position):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """The loss."""
        x, targets = tokens[:, :-1], tokens[:, 1:]
        h = self.embedding(x) + self.position(torch.arange(x.shape[1], device=x.device))
        for block in self.blocks:
            h = block(h)
        logits = F.linear(self.norm(h), self.embedding.weight)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
