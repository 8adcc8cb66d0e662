"""A beam search with one beam, and what a search reads beside the prompt."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from nets import some_ids
from objective_peers import LAYERS, SIZES, both
from torch import Tensor

from xtdist.config import ConfigError
from xtdist.model import Decoder, TransformerWrapper
from xtdist.objective import AutoregressiveWrapper


@pytest.mark.parametrize("amateur", [False, True])
@pytest.mark.parametrize(
    "keywords",
    [{"logit_bias": {3: 2.0}, "repetition_penalty": 1.3}, {"length_penalty": 0.6}],
    ids=str,
)
def test_one_beam_is_scored_as_the_same_sequence_among_several(
    keywords: dict[str, Any], amateur: bool
) -> None:
    ours, _ = both()
    if amateur:
        keywords = {**keywords, "amateur_model": both("learned", seed=5)[0]}
    prompt = some_ids(1, 4)
    one, score = ours.beam_search(prompt, 3, beams=1, return_beams_and_scores=True, **keywords)
    several, scores = ours.beam_search(
        prompt, 3, beams=24, return_beams_and_scores=True, **keywords
    )
    at = several[:, 0].tolist().index(one[0, 0].tolist())
    torch.testing.assert_close(score[0], scores[at])


def test_one_drawn_beam_is_scored_by_what_it_was_drawn_from() -> None:
    from x_transformers.autoregressive_wrapper import top_k

    ours, _ = both()
    prompt = some_ids(1, 4)
    keywords: dict[str, Any] = {"temperature": 0.5, "filter_logits_fn": "top_k", "seed": 1}
    found, score = ours.beam_search(
        prompt, 6, beams=1, stochastic=True, return_beams_and_scores=True, **keywords
    )
    whole = torch.cat((prompt, found[0]), dim=1)
    logits = ours.net.eval()(whole[:, :-1])[0, 3:]
    logp = (top_k(logits) / 0.5).log_softmax(dim=-1).gather(1, found[0, 0, :, None])
    torch.testing.assert_close(score[0, 0], logp.sum())


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize(
    ("keywords", "named"),
    [
        ({"temperature": 0.5}, "temperature: got 0.5"),
        ({"top_p": 0.5}, "top_p: got 0.5"),
        ({"filter_logits_fn": "top_k"}, "top_k: got"),
        ({"best_of": 5}, "best_of: got 5 with beams"),
        ({"draft_tokens": 2}, "draft_tokens: got 2 with beams"),
    ],
)
def test_one_beam_takes_what_several_take(beams: int, keywords: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        both()[0].beam_search(some_ids(2, 4), 3, beams=beams, **keywords)


@pytest.mark.parametrize("beams", [0, -1, 2.0, True, None])
def test_beams_are_a_number(beams: Any) -> None:
    with pytest.raises(ConfigError, match="beams: got"):
        both()[0].beam_search(some_ids(2, 4), 3, beams=beams)


@pytest.mark.parametrize("method", ["generate", "beam_search"])
@pytest.mark.parametrize(
    ("mask", "context"),
    [
        (torch.tensor([[1, 1, 1, 0]]), True),
        (torch.ones(1, 3).bool(), True),
        (torch.ones(1, 4).bool(), False),
    ],
)
def test_a_context_mask_is_one_of_a_context(method: str, mask: Tensor, context: bool) -> None:
    stack = Decoder(**LAYERS, cross_attend=True)
    ours = AutoregressiveWrapper(TransformerWrapper(**SIZES, attn_layers=stack))
    read = torch.zeros(1, 4, 32) if context else None
    with pytest.raises(ValueError, match="context_mask"):
        getattr(ours, method)(some_ids(1, 2), 3, context=read, context_mask=mask)
