from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from xtdist.decode import GenerationParams, RequestFailed
from xtdist.decode.penalties import adjust
from xtdist.decode.sampling import Row

VOCABULARY, PROMPT = 12, 3


def test_penalties_equal_their_formulas() -> None:
    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(3))
    tokens = [1, 2, 2, 5, 5, 5, 7]
    params = GenerationParams(
        repetition_penalty=1.7,
        presence_penalty=0.5,
        frequency_penalty=0.25,
        logit_bias={4: 2.0, 11: -1.5},
        min_tokens=5,
    )
    scores = logits.clone()
    adjust(scores, [Row(params, 0, tokens, 3, ends=(9,))], torch.tensor([0]))
    expected = logits.clone()
    expected[0, 4] += 2.0
    expected[0, 11] -= 1.5
    expected = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([tokens]), expected)
    expected[0, 5] -= 0.5 + 0.25 * 3
    expected[0, 7] -= 0.5 + 0.25
    expected[0, 0] = expected[0, 9] = -torch.inf
    assert torch.allclose(scores, expected)


TOKENS = st.lists(st.integers(0, VOCABULARY - 1), min_size=PROMPT, max_size=12)
WORDS = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4).map(tuple), max_size=5)


@given(
    TOKENS,
    WORDS,
    st.dictionaries(st.integers(0, VOCABULARY - 1), st.floats(-5, 5, width=32), max_size=4),
    st.sampled_from([1.0, 0.5, 1.7]),
    st.integers(0, 6),
)
def test_bans_bias_and_repetition_equal_transformers(
    tokens: list[int],
    words: list[tuple[int, ...]],
    bias: dict[int, float],
    repetition: float,
    least: int,
) -> None:
    logits = torch.randn(2, VOCABULARY, generator=torch.Generator().manual_seed(len(tokens)))
    params = GenerationParams(
        bad_words=tuple(words),
        logit_bias=bias,
        repetition_penalty=repetition,
        min_tokens=least,
    )
    ours = logits.clone()
    rows = [Row(params, 0, tokens, PROMPT, ends=(9, 4)), Row(GenerationParams(), 0, tokens, PROMPT)]
    adjust(ours, rows, None)
    chain = LogitsProcessorList()
    if least:
        ends = torch.tensor([9, 4])
        chain.append(MinNewTokensLengthLogitsProcessor(PROMPT, least, ends))
    if words:
        chain.append(NoBadWordsLogitsProcessor([list(w) for w in dict.fromkeys(words)]))
    if bias:
        chain.append(SequenceBiasLogitsProcessor({(token,): b for token, b in bias.items()}))
    if repetition != 1.0:
        chain.append(RepetitionPenaltyLogitsProcessor(repetition))
    theirs = chain(torch.tensor([tokens]), logits[:1].clone())
    assert torch.allclose(ours[:1], theirs)
    assert torch.equal(ours[1:], logits[1:])


@pytest.mark.parametrize("forbidden", [-torch.inf, torch.nan])
def test_a_hook_can_forbid_but_not_permit(forbidden: float) -> None:
    def hook(tokens: object, scores: torch.Tensor) -> torch.Tensor:
        assert tokens == [5, 6]
        scores[2] = forbidden
        scores[3:5] = torch.inf
        return scores

    scores = torch.zeros(1, VOCABULARY)
    row = Row(GenerationParams(), 0, [1, 5, 6], 1, processors=(hook,))
    adjust(scores, [row], torch.tensor([3]))
    assert scores[0].isneginf().nonzero().flatten().tolist() == [2, 3]
    assert scores[0, 4].isfinite()
    assert int(scores[0].argmax()) == 4


def test_a_hook_that_changes_the_shape_is_refused() -> None:
    row = Row(GenerationParams(), 0, [1, 5, 6], 1, processors=(lambda tokens, scores: scores[:3],))
    with pytest.raises(RequestFailed) as e:
        adjust(torch.zeros(1, VOCABULARY), [row], None)
    assert isinstance(e.value.__cause__, ValueError)
    assert "keep the shape" in str(e.value.__cause__)
