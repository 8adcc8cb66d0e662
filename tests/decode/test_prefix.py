"""A prefix decoder reads its prompt as the prefix: every token of it sees all of it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from decode_models import make_model
from torch import Tensor

from xtdist.decode import ContrastiveParams, Engine, EngineConfig, GenerationParams
from xtdist.model import TransformerWrapper

PROMPTS = ([1, 2, 3, 4, 5, 6, 7], [8], [9, 10, 11])


@torch.no_grad()
def logprobs(model: TransformerWrapper, tokens: Sequence[int], prefix: int) -> Tensor:
    logits = model(torch.tensor([list(tokens)]), prefix_attn_len=prefix)[0, -1]
    return logits.double().log_softmax(dim=-1)


def greedy(model: TransformerWrapper, prompt: list[int], count: int) -> tuple[int, ...]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(logprobs(model, tokens, len(prompt)).argmax()))
    return tuple(tokens[len(prompt) :])


def beams(model: TransformerWrapper, prompt: list[int], width: int, count: int) -> list[int]:
    """The best continuation of fixed length, by beam search over plain forward passes."""
    held = [(0.0, list(prompt))]
    for _ in range(count):
        grown = [
            (score + float(p), [*tokens, i])
            for score, tokens in held
            for i, p in enumerate(logprobs(model, tokens, len(prompt)))
        ]
        held = sorted(grown, key=lambda pair: -pair[0])[:width]
    return held[0][1][len(prompt) :]


def test_the_prompt_is_the_prefix_for_as_long_as_a_sequence_grows() -> None:
    model, causal = make_model(3, prefix=True), make_model(3)
    engine = Engine(model, config=EngineConfig(max_step_tokens=3, max_sequences=2))
    assert "prefix" in engine.recomputes
    params = GenerationParams(max_tokens=10, temperature=0.0)
    got = [c.choices[0].token_ids for c in engine.generate(list(PROMPTS), params)]
    assert got == [greedy(model, prompt, 10) for prompt in PROMPTS]
    without = [c.choices[0].token_ids for c in Engine(causal).generate(list(PROMPTS), params)]
    assert got != without, "the prefix changes nothing: the test can't fail"


def test_beams_share_the_prefix_of_their_prompt() -> None:
    model = make_model(4, prefix=True)
    params = GenerationParams(max_tokens=5, num_beams=3, length_penalty=0.0)
    got = [list(c.choices[0].token_ids) for c in Engine(model).generate(list(PROMPTS), params)]
    assert got == [beams(model, prompt, 3, 5) for prompt in PROMPTS]


@pytest.mark.parametrize("which", [(True, False), (False, True), (True, True)])
def test_in_contrastive_decoding_each_model_reads_its_own_prefix(which: tuple[bool, bool]) -> None:
    expert, amateur = make_model(5, prefix=which[0]), make_model(6, prefix=which[1])
    setting = ContrastiveParams(alpha=0.05, beta=0.7)
    params = GenerationParams(max_tokens=8, temperature=0.0, contrastive=setting)
    got = Engine(expert, amateur=amateur).generate([PROMPTS[0]], params)[0].choices[0].token_ids
    tokens = list(PROMPTS[0])
    for _ in range(8):
        strong, weak = (
            logprobs(model, tokens, len(PROMPTS[0]))
            if prefix
            else model(torch.tensor([tokens]))[0, -1].detach().double().log_softmax(dim=-1)
            for model, prefix in zip((expert, amateur), which, strict=True)
        )
        score = 1.7 * strong - 0.7 * weak
        plausible = strong.exp() >= 0.05 * strong.exp().max()
        tokens.append(int(torch.where(plausible, score, -torch.inf).argmax()))
    assert got == tuple(tokens[len(PROMPTS[0]) :])
