from __future__ import annotations

import pytest
import torch
from decode_models import VOCABULARY, contrastive_logprobs, greedy, make_model, next_logits
from x_transformers.autoregressive_wrapper import contrastive_decode_fn

from xtdist.config import ConfigError
from xtdist.decode import ContrastiveParams, Engine, EngineConfig, GenerationParams
from xtdist.decode.contrastive import contrast
from xtdist.model import TransformerWrapper

PROMPTS = ([1, 2, 3, 4], [5], [20, 21, 22, 23, 24, 25])
SETTINGS = (
    ContrastiveParams(),
    ContrastiveParams(alpha=0.3, beta=1.0, temperature=0.5),
    ContrastiveParams(alpha=0.0, beta=0.2, temperature=2.0),
)


@pytest.mark.parametrize("page_tokens", [0, 4])
@pytest.mark.parametrize("setting", SETTINGS)
def test_greedy_with_both_caches_equals_the_definition_without_any(
    expert: TransformerWrapper,
    amateur: TransformerWrapper,
    setting: ContrastiveParams,
    page_tokens: int,
) -> None:
    params = GenerationParams(max_tokens=15, temperature=0.0, contrastive=setting)
    config = EngineConfig(page_tokens=page_tokens, max_step_tokens=8)
    engine = Engine(expert, amateur=amateur, config=config)
    for prompt, completion in zip(PROMPTS, engine.generate(list(PROMPTS), params), strict=True):
        tokens = list(prompt)
        for _ in range(15):
            scores = contrastive_logprobs((expert, amateur), tokens, setting)
            tokens.append(int(scores.argmax()))
        assert completion.choices[0].token_ids == tuple(tokens[len(prompt) :])


def test_the_formula_equals_that_of_x_transformers() -> None:
    generator = torch.Generator().manual_seed(0)
    expert, amateur = torch.randn(2, 64, 50, generator=generator) * 3
    for setting in (ContrastiveParams(), ContrastiveParams(alpha=0.4, beta=1.5)):
        ours = contrast(expert, amateur, setting)
        theirs = contrastive_decode_fn(expert, amateur, beta=setting.beta, alpha=setting.alpha)
        kept = ours.isfinite()
        assert torch.equal(kept, theirs > torch.finfo(torch.float32).min)
        assert torch.allclose(ours[kept], theirs[kept], atol=1e-5)


@pytest.mark.parametrize("setting", SETTINGS[:2])
def test_beams_rank_by_the_summed_objective(setting: ContrastiveParams) -> None:
    expert, amateur = make_model(6, num_tokens=5), make_model(7, num_tokens=5, depth=1)
    prompt, length = [1, 2], 3
    sums: dict[tuple[int, ...], float] = {(): 0.0}
    for _ in range(length):
        grown = {}
        for tokens, total in sums.items():
            scores = contrastive_logprobs((expert, amateur), [*prompt, *tokens], setting)
            for token, score in enumerate(scores.tolist()):
                if score > float("-inf"):
                    grown[(*tokens, token)] = total + score
        sums = grown
    params = GenerationParams(
        max_tokens=length,
        num_beams=5**length,
        n=min(3, len(sums)),
        length_penalty=0.0,
        contrastive=setting,
    )
    engine = Engine(expert, amateur=amateur, config=EngineConfig(max_sequences=5**length))
    found = engine.generate([prompt], params)[0].choices
    best = sorted(sums, key=lambda t: -sums[t])[: params.n]
    assert [c.token_ids for c in found] == best
    assert [c.score for c in found] == pytest.approx([sums[t] for t in best], abs=1e-4)


@pytest.mark.parametrize("beams", [1, 3])
def test_an_amateur_equal_to_the_expert_changes_nothing(
    expert: TransformerWrapper, beams: int
) -> None:
    engine = Engine(expert, amateur=expert)
    plain = GenerationParams(max_tokens=10, temperature=0.0, num_beams=beams)
    same = GenerationParams(
        max_tokens=10,
        temperature=0.0,
        num_beams=beams,
        contrastive=ContrastiveParams(alpha=0.0, beta=2.0),
    )
    for a, b in zip(
        engine.generate(list(PROMPTS), plain), engine.generate(list(PROMPTS), same), strict=True
    ):
        assert a.choices[0].token_ids == b.choices[0].token_ids
        if beams > 1:
            assert a.choices[0].score == pytest.approx(b.choices[0].score, abs=1e-4)


def test_alpha_one_is_greedy_and_beta_zero_samples_the_expert_under_the_mask(
    expert: TransformerWrapper, amateur: TransformerWrapper
) -> None:
    engine = Engine(expert, amateur=amateur, config=EngineConfig(max_sequences=50))
    only = GenerationParams(max_tokens=12, seed=0, contrastive=ContrastiveParams(alpha=1.0))
    assert engine.generate([[1, 2]], only)[0].choices[0].token_ids == greedy(expert, [1, 2], 12)
    masked = ContrastiveParams(alpha=0.2, beta=0.0)
    params = GenerationParams(max_tokens=1, seed=4, n=50, contrastive=masked)
    probabilities = next_logits(expert, [1, 2]).softmax(-1)
    plausible = (probabilities >= 0.2 * probabilities.max()).nonzero()[:, 0].tolist()
    seen = {c.token_ids[0] for c in engine.generate([[1, 2]], params)[0].choices}
    assert seen <= set(plausible)
    plain = GenerationParams(max_tokens=1, seed=4, n=50, min_p=0.2)
    for a, b in zip(
        engine.generate([[1, 2]], params)[0].choices,
        engine.generate([[1, 2]], plain)[0].choices,
        strict=True,
    ):
        assert a.token_ids == b.token_ids


def test_contrastive_and_plain_requests_share_a_batch(
    expert: TransformerWrapper, amateur: TransformerWrapper
) -> None:
    plain = GenerationParams(max_tokens=9, seed=2)
    contrastive = GenerationParams(max_tokens=9, seed=2, contrastive=ContrastiveParams())
    alone = [
        Engine(expert, amateur=amateur).generate([[3, 4]], p)[0].choices[0].token_ids
        for p in (plain, contrastive)
    ]
    engine = Engine(expert, amateur=amateur)
    names = [engine.add([3, 4], p) for p in (plain, contrastive, plain, contrastive)]
    found: dict[str, list[int]] = {name: [] for name in names}
    while engine.has_work:
        for output in engine.step():
            found[output.request_id] += output.token_ids
    assert [tuple(found[n]) for n in names] == alone * 2
    assert alone[0] != alone[1]


def test_an_amateur_of_another_vocabulary_is_refused(expert: TransformerWrapper) -> None:
    with pytest.raises(ConfigError, match="same tokenizer"):
        Engine(expert, amateur=make_model(1, num_tokens=VOCABULARY + 1))


def test_a_shorter_amateur_bounds_contrastive_requests_only(expert: TransformerWrapper) -> None:
    engine = Engine(expert, amateur=make_model(1, max_seq_len=16))
    engine.add([1] * 10, GenerationParams(max_tokens=20))
    with pytest.raises(ConfigError, match="16"):
        engine.add([1] * 10, GenerationParams(max_tokens=20, contrastive=ContrastiveParams()))
