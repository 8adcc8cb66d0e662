"""The yardsticks against counting by hand and against lzma itself."""

from __future__ import annotations

import lzma
import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from xtdist.data import TokenDataset
from xtdist.evaluate import baselines
from xtdist.evaluate.baselines import CONCENTRATIONS, fit_bigram, score_bigram, xz_bits_per_byte


class Counted:
    """The bigram model from plain dictionaries."""

    def __init__(self, tokens: list[int], vocab: int) -> None:
        self.vocab = vocab
        self.pairs = Counter(pairwise(tokens))
        self.firsts = Counter(tokens[:-1])
        self.seconds = Counter(tokens[1:])
        self.total = len(tokens) - 1

    def log_prob(self, a: int, b: int, c: float) -> float:
        unigram = (self.seconds[b] + 1) / (self.total + self.vocab)
        return math.log((self.pairs[a, b] + c * unigram) / (self.firsts[a] + c))

    def score(self, tokens: list[int], c: float) -> float:
        return sum(self.log_prob(a, b, c) for a, b in pairwise(tokens))


@pytest.fixture(params=[None, 7, 64], ids=["one-block", "blocks-of-7", "blocks-of-64"])
def block(request, monkeypatch):
    """How many tokens are counted at a time must not matter."""
    if request.param is not None:
        monkeypatch.setattr(baselines, "BLOCK_TOKENS", request.param)
    return request.param


def test_the_bigram_model_is_the_one_counted_by_hand(dataset, block):
    train, valid = TokenDataset.open(dataset, "train"), TokenDataset.open(dataset, "valid")
    vocab = train.tokenizer.vocab_size
    tokens = train.read(0, train.total_tokens).tolist()
    cut = len(tokens) - len(tokens) // 20
    held = tokens[cut:] if block is None else tokens[cut:][: block // 4]
    part, whole = Counted(tokens[:cut], vocab), Counted(tokens, vocab)
    c = max(CONCENTRATIONS, key=lambda c: part.score(held, c))
    bigram = fit_bigram(train)
    assert bigram.concentration == c
    target = valid.read(0, valid.total_tokens).tolist()
    score = score_bigram(bigram, valid)
    assert score.nats == pytest.approx(-whole.score(target, c), rel=1e-10)
    assert score.tokens == len(target) - 1
    assert score.text_bytes == valid.text_bytes


def test_the_bigram_model_is_a_distribution_after_every_token(dataset):
    train = TokenDataset.open(dataset, "train")
    bigram, everything = fit_bigram(train), np.arange(train.tokenizer.vocab_size)
    for first in everything:  # most of them were never seen
        log_prob = bigram.log_prob(np.full_like(everything, first), everything)
        assert np.exp(log_prob).sum() == pytest.approx(1.0, abs=1e-12)


def test_the_bigram_model_beats_knowing_nothing(dataset):
    train, valid = TokenDataset.open(dataset, "train"), TokenDataset.open(dataset, "valid")
    assert score_bigram(fit_bigram(train), valid).loss < math.log(train.tokenizer.vocab_size) / 2


@pytest.mark.parametrize("folder", ["dataset", "bpe_dataset"])
def test_xz_is_that_of_the_documents_in_a_row(folder, request):
    valid = TokenDataset.open(request.getfixturevalue(folder), "valid")
    text = b"".join(valid.tokenizer.decode(d).encode() for d in valid.documents())
    assert len(text) == valid.text_bytes
    size = len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME))
    assert xz_bits_per_byte(valid) == pytest.approx(8 * size / len(text))
