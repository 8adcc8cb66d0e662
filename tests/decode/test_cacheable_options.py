"""Every option of the model through the engine: a cache changes no token and no logit, and neither
does the company of other sequences. What the options declare decides which of it is meant."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from xtdist.config import ConfigError
from xtdist.decode import Engine, EngineConfig, GenerationParams, Output
from xtdist.decode.outputs import collect
from xtdist.model import TransformerWrapper
from xtdist.model.options import OPTIONS, cache_refused

sys.path.append(str(Path(__file__).parents[1] / "model"))

from option_grid import Case, build, inputs_of, refusal, single_cases

PROMPTS = ((5, 17, 2, 9, 30, 11, 8), (3,), (21, 4, 4, 38))
PARAMS = GenerationParams(max_tokens=6, seed=1, logprobs=3)
TIGHT = EngineConfig(max_sequences=2, max_step_tokens=6, page_tokens=4, pool_tokens=48)
NOISY = {"gumbel attention"}
"""Their noise comes from torch's default generator, so no two passes agree."""
REFUSED = {"no head": "no head"}
CAUSAL = [
    case
    for case in single_cases()
    if not refusal(case, causal=True) and case.options[0] not in NOISY
]


def model_of(case: Case) -> TransformerWrapper:
    """In float64, so that the order of sums changes no token."""
    return build(case).double()


def contexts_of(case: Case) -> list[Tensor] | None:
    found = inputs_of(case, batch=len(PROMPTS)).get("context")
    return None if found is None else list(found.double())


@torch.no_grad()
def uncached(model: TransformerWrapper, tokens: Sequence[int], **inputs: Any) -> Tensor:
    return model(torch.tensor([list(tokens)]), **inputs)[0, -1].float().log_softmax(-1)


def run(engine: Engine, contexts: list[Tensor] | None) -> list[list[Output]]:
    """All prompts at once; the second one comes late, so that rows of all ages share a step."""
    outputs: dict[str, list[Output]] = {}
    for i, prompt in enumerate(PROMPTS):
        context = None if contexts is None else contexts[i]
        outputs[engine.add(prompt, PARAMS, context=context)] = []
        for output in engine.step():
            outputs[output.request_id].append(output)
    while engine.has_work:
        for output in engine.step():
            outputs[output.request_id].append(output)
    assert len(engine.pool.free_pages) == engine.pool.num_pages
    return list(outputs.values())


@pytest.mark.parametrize("case", CAUSAL, ids=str)
def test_the_engine_decodes_every_option_as_full_forward_passes_do_or_refuses_it(
    case: Case,
) -> None:
    model, contexts = model_of(case), contexts_of(case)
    refused = "condition" if "condition" in case.inputs else REFUSED.get(case.options[0])
    if refused is not None:
        with pytest.raises(ConfigError, match=refused):
            Engine(model)
        return
    engine = Engine(model, config=TIGHT)
    assert engine.recomputes == cache_refused(model.config)
    completions = [collect(parts) for parts in run(engine, contexts)]
    for i, (prompt, completion) in enumerate(zip(PROMPTS, completions, strict=True)):
        tokens, choice = list(prompt), completion.choices[0]
        inputs: dict[str, Any] = {} if contexts is None else {"context": contexts[i][None]}
        if "prefix_attn_len" in case.inputs:
            inputs["prefix_attn_len"] = len(prompt)
        for token, logprob in zip(choice.token_ids, choice.logprobs, strict=True):
            want = uncached(model, tokens, **inputs)
            assert logprob.logprob == pytest.approx(float(want[token]), abs=2e-5)
            assert [t for t, _ in logprob.top] == want.topk(3).indices.tolist()
            tokens.append(token)
        alone = Engine(model).generate(
            [prompt], PARAMS, contexts=None if contexts is None else [contexts[i]]
        )
        assert alone[0].choices[0].token_ids == choice.token_ids


def test_options_with_and_without_a_cache_are_among_them() -> None:
    uncacheable = {option.name for option in OPTIONS if option.uncacheable}
    reasons = {case.options[0]: cache_refused(model_of(case).config) for case in CAUSAL}
    recomputed = {name for name, reason in reasons.items() if reason}
    assert all(any(name in reasons[r] for name in uncacheable) for r in recomputed)
    assert len(recomputed & uncacheable) > 3
    assert len(reasons.keys() - recomputed) > 40
