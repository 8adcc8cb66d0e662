"""Yardsticks beside a model's loss: a bigram model of the same tokens, xz of the same text."""

from __future__ import annotations

import lzma
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from xtdist.data import TokenDataset
from xtdist.evaluate.perplexity import Score

BLOCK_TOKENS = 1 << 22
CONCENTRATIONS = tuple(float(2**k) for k in range(-2, 12))


@dataclass(frozen=True)
class Bigram:
    """p(b | a) = (count(a, b) + c · p(b)) / (count(a) + c): counts smoothed towards the unigram
    distribution (a hierarchical Dirichlet prior), which is itself add-one smoothed."""

    vocab_size: int
    pairs: np.ndarray
    counts: np.ndarray
    firsts: np.ndarray
    unigram: np.ndarray
    concentration: float

    def log_prob(self, first: np.ndarray, second: np.ndarray, c: float | None = None) -> np.ndarray:
        """Natural log of p(second | first), elementwise."""
        c = self.concentration if c is None else c
        keys = first.astype(np.int64) * self.vocab_size + second
        at = np.minimum(np.searchsorted(self.pairs, keys), max(len(self.pairs) - 1, 0))
        hit = np.where(self.pairs[at] == keys, self.counts[at], 0) if len(self.pairs) else 0
        return np.log((hit + c * self.unigram[second]) / (self.firsts[first] + c))


def fit_bigram(data: TokenDataset) -> Bigram:
    """Count all pairs of neighbours in ``data``. How much to smooth is chosen on its last
    twentieth, held out for that; then all of it is counted."""
    vocab, total = data.tokenizer.vocab_size, data.total_tokens
    cut = total - max(total // 20, 2)
    part = _count(data, 0, cut, vocab)
    held = data.read(cut, total).astype(np.int64)
    held = held[: BLOCK_TOKENS // 4]
    best = max(CONCENTRATIONS, key=lambda c: part.log_prob(held[:-1], held[1:], c).sum())
    full = _count(data, 0, total, vocab)
    return Bigram(vocab, full.pairs, full.counts, full.firsts, full.unigram, best)


def score_bigram(bigram: Bigram, data: TokenDataset) -> Score:
    """Score every token of ``data`` but the first: the targets that a model is scored on."""
    nats = 0.0
    for a, b in _neighbours(data, 0, data.total_tokens):
        nats -= float(bigram.log_prob(a, b).sum())
    return Score(nats=nats, tokens=data.total_tokens - 1, text_bytes=data.text_bytes)


def xz_bits_per_byte(data: TokenDataset) -> float:
    """``xz -9e`` over the documents of ``data`` in a row, in bits per byte of text."""
    compressor = lzma.LZMACompressor(preset=9 | lzma.PRESET_EXTREME)
    size = text = 0
    for document in data.documents():
        raw = data.tokenizer.decode_bytes(document)
        text += len(raw)
        size += len(compressor.compress(raw))
    size += len(compressor.flush())
    return 8 * size / max(text, 1)


def _count(data: TokenDataset, start: int, stop: int, vocab: int) -> Bigram:
    pairs, counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
    firsts, seconds = np.zeros(vocab, np.int64), np.zeros(vocab, np.int64)
    for a, b in _neighbours(data, start, stop):
        firsts += np.bincount(a, minlength=vocab)
        seconds += np.bincount(b, minlength=vocab)
        keys, n = np.unique(a * vocab + b, return_counts=True)
        merged, inverse = np.unique(np.concatenate([pairs, keys]), return_inverse=True)
        counts = np.bincount(inverse, weights=np.concatenate([counts, n]), minlength=len(merged))
        pairs = merged
    unigram = (seconds + 1) / (seconds.sum() + vocab)
    return Bigram(vocab, pairs, counts, firsts, unigram, concentration=1.0)


def _neighbours(
    data: TokenDataset, start: int, stop: int
) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    for at in range(start, stop - 1, BLOCK_TOKENS):
        tokens = data.read(at, min(at + BLOCK_TOKENS + 1, stop)).astype(np.int64)
        yield tokens[:-1], tokens[1:]
