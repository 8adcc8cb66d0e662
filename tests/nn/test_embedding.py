"""Embeddings, the tables beside them and learned tokens."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from xtdist.nn.embedding import DeepEmbedding, TokenEmbedding
from xtdist.nn.linear import initialize
from xtdist.nn.memory import LearnedTokens


def test_a_token_embedding_is_a_head_when_given_vectors() -> None:
    table, x = TokenEmbedding(7, 4), torch.randn(2, 3, 4)
    assert torch.equal(table(torch.tensor([[1, 6]]))[0, 1], table.weight[6])
    torch.testing.assert_close(table(x), x @ table.weight.T)


def test_unit_vectors_do_not_depend_on_the_size_of_the_weight() -> None:
    table, x = TokenEmbedding(7, 4, unit=True), torch.arange(7)[None]
    want = F.normalize(table.weight.double(), dim=-1).float()
    torch.testing.assert_close(table(x)[0], want)
    with torch.no_grad():
        table.weight.mul_(1000)
    torch.testing.assert_close(table(x)[0], want)
    assert table.bfloat16()(x).dtype == torch.bfloat16


def test_each_feed_forward_has_its_own_factor_for_a_token() -> None:
    deep = DeepEmbedding(5, 3, 4)
    assert torch.equal(deep(torch.zeros(2, 6, dtype=torch.long)), torch.ones(3, 2, 6, 4))
    with torch.no_grad():
        deep.weight.copy_(torch.arange(60.0).view(5, 12))
    assert deep(torch.tensor([[4]]))[2, 0, 0].tolist() == [56.0, 57.0, 58.0, 59.0]


def test_learned_tokens_are_the_same_for_each_sequence_and_drawn_from_the_generator() -> None:
    drawn = []
    for _ in range(2):
        tokens = LearnedTokens(3, 4)
        initialize(tokens, torch.Generator().manual_seed(1))
        drawn.append(tokens(2))
    assert drawn[0].shape == (2, 3, 4)
    assert torch.equal(drawn[0][0], drawn[0][1])
    assert torch.equal(drawn[0], drawn[1])
