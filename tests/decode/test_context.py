from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from decode_double import VOCABULARY, Double
from decode_models import make_model
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from xtdist.config import ConfigError
from xtdist.decode import Completion, ContrastiveParams, Engine, EngineConfig, GenerationParams
from xtdist.decode.scheduler import Scheduler
from xtdist.model import TransformerWrapper
from xtdist.model.order import OrderConfig
from xtdist.nn.attention.config import AttentionConfig
from xtdist.nn.position.config import NoPositionConfig

PROMPTS = ([1, 2, 3, 4, 5, 6, 7], [8], [9, 10, 11], [1, 2, 3, 4, 5, 6, 7])
WIDTH = 10


def contexts(*lengths: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(9)
    return [torch.randn(n, WIDTH, generator=generator, dtype=torch.float64) for n in lengths]


CONTEXTS = contexts(5, 1, 12, 7)


def make(seed: int, **options: Any) -> Double:
    return Double(seed, context_dim=WIDTH, **options).eval()


def make_real(seed: int, **overrides: Any) -> TransformerWrapper:
    cross = AttentionConfig(dim_head=8, kv_heads=2)
    model = make_model(seed, **{"cross_attention": cross, "dim_context": WIDTH, **overrides})
    return model.double()


@torch.no_grad()
def next_logprobs(model: nn.Module, tokens: list[int], context: Tensor) -> Tensor:
    return model(torch.tensor([tokens]), context=context[None])[0, -1].log_softmax(-1)


def greedy(model: nn.Module, prompt: list[int], count: int, context: Tensor) -> tuple[int, ...]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(next_logprobs(model, tokens, context).argmax()))
    return tuple(tokens[len(prompt) :])


def tokens_of(completions: list[Completion]) -> list[list[tuple[int, ...]]]:
    return [[choice.token_ids for choice in c.choices] for c in completions]


@pytest.mark.parametrize("options", [{}, {"window": 4}, {"refused": "it is"}])
@pytest.mark.parametrize("config", [EngineConfig(), EngineConfig(page_tokens=3, max_step_tokens=8)])
def test_each_sequence_reads_its_own_context(options: dict[str, Any], config: EngineConfig) -> None:
    model = make(1, **options)
    params = GenerationParams(max_tokens=20, temperature=0.0)
    engine = Engine(model, config=config)
    found = tokens_of(engine.generate(list(PROMPTS), params, contexts=CONTEXTS))
    expected = [[greedy(model, p, 20, c)] for p, c in zip(PROMPTS, CONTEXTS, strict=True)]
    assert found == expected
    assert found[0] != found[3]


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"depth": 3, "position": NoPositionConfig()},
        {"attention": AttentionConfig(dim_head=8, window=4)},
        {"cross_attention": AttentionConfig(dim_head=8, qk_rmsnorm=True, memory_kv=2)},
        {"order": OrderConfig(macaron=True)},
        {"shift_tokens": 1},
    ],
)
@pytest.mark.parametrize("page_tokens", [0, 3])
def test_real_models_read_each_sequence_its_own_context(
    overrides: dict[str, Any], page_tokens: int
) -> None:
    model = make_real(1, **overrides)
    params = GenerationParams(max_tokens=20, temperature=0.0)
    engine = Engine(model, config=EngineConfig(page_tokens=page_tokens))
    found = tokens_of(engine.generate(list(PROMPTS), params, contexts=CONTEXTS))
    assert found == [[greedy(model, p, 20, c)] for p, c in zip(PROMPTS, CONTEXTS, strict=True)]
    assert found[0] != found[3]
    assert bool(engine.recomputes) == ("shift_tokens" in overrides)


@pytest.mark.parametrize("params", [GenerationParams(n=4, seed=2), GenerationParams(num_beams=4)])
def test_a_context_is_projected_once_per_request_layer_and_model(params: GenerationParams) -> None:
    model = make(1)
    Engine(model).generate(list(PROMPTS[:2]), params, contexts=CONTEXTS[:2])
    assert model.projections == 2 * model.depth


def test_what_was_projected_goes_with_the_request() -> None:
    engine = Engine(make(1))
    name = engine.add([1, 2], GenerationParams(n=2), context=CONTEXTS[0])
    engine.step()
    request = engine._requests[name]
    assert request.context is not None
    assert len(request.context.projected) == 2
    engine.abort(name)
    assert not engine.has_work
    assert len(engine.pool.free_pages) == engine.pool.num_pages


class TransformersView(PreTrainedModel, GenerationMixin):
    """The model over one context, seen by transformers: a full forward for every step."""

    config_class = PretrainedConfig
    main_input_name = "input_ids"

    def __init__(self, model: nn.Module, context: Tensor) -> None:
        vocabulary = model.config.num_tokens
        super().__init__(PretrainedConfig(vocab_size=vocabulary, is_decoder=True))
        self.model, self.context = model, context

    def forward(self, input_ids: Tensor, **_: Any) -> CausalLMOutput:
        rows = self.context.expand(len(input_ids), -1, -1)
        return CausalLMOutput(logits=self.model(input_ids, context=rows))


@pytest.mark.parametrize("num_beams", [2, 4])
@pytest.mark.parametrize("model", [make(2), make(2, refused="it is"), make_real(2)])
def test_beams_equal_those_of_transformers(num_beams: int, model: nn.Module) -> None:
    params = GenerationParams(max_tokens=10, num_beams=num_beams, n=num_beams)
    engine = Engine(model, eos_ids=(3, 7))
    completions = engine.generate(list(PROMPTS), params, contexts=CONTEXTS)
    for prompt, context, completion in zip(PROMPTS, CONTEXTS, completions, strict=True):
        config = GenerationConfig(
            num_beams=num_beams,
            num_return_sequences=num_beams,
            max_new_tokens=10,
            eos_token_id=[3, 7],
            pad_token_id=0,
            do_sample=False,
            use_cache=False,
            return_dict_in_generate=True,
            output_scores=True,
        )
        view = TransformersView(model, context)
        result = view.generate(torch.tensor([prompt]), generation_config=config)
        for choice, row, score in zip(
            completion.choices, result.sequences, result.sequences_scores, strict=True
        ):
            tokens = row[len(prompt) :].tolist()[: len(choice.token_ids)]
            assert choice.token_ids == tuple(tokens)
            assert choice.score == pytest.approx(float(score), rel=1e-5)


def test_a_beam_as_wide_as_all_sequences_finds_the_best_for_its_context() -> None:
    model, length = make(3), 2
    params = GenerationParams(
        max_tokens=length, num_beams=VOCABULARY**length, n=3, length_penalty=0.0
    )
    engine = Engine(model, config=EngineConfig(max_sequences=VOCABULARY**length))
    best = []
    for context in CONTEXTS[:2]:
        sums = {}
        first = next_logprobs(model, [1, 2], context)
        for a, b in itertools.product(range(VOCABULARY), repeat=2):
            if b == 0:
                second = next_logprobs(model, [1, 2, a], context)
            sums[a, b] = float(first[a] + second[b])
        best.append(sorted(sums, key=lambda t: -sums[t])[:3])
    found = engine.generate([[1, 2], [1, 2]], params, contexts=CONTEXTS[:2])
    assert tokens_of(found) == best


def test_preempted_requests_keep_their_context(monkeypatch: pytest.MonkeyPatch) -> None:
    params = GenerationParams(max_tokens=20, num_beams=3, n=3)
    model = make(4)
    roomy = tokens_of(Engine(model).generate(list(PROMPTS), params, contexts=CONTEXTS))
    preempted: list[Any] = []
    preempt = Scheduler._preempt
    monkeypatch.setattr(Scheduler, "_preempt", lambda s, r: (preempted.append(r), preempt(s, r))[1])
    tight = EngineConfig(max_sequences=9, max_step_tokens=10, page_tokens=2, pool_tokens=84)
    model.projections = 0
    found = Engine(model, config=tight).generate(list(PROMPTS), params, contexts=CONTEXTS)
    assert tokens_of(found) == roomy
    assert preempted
    assert model.projections == len(PROMPTS) * model.depth


@pytest.mark.parametrize("amateur_reads", [True, False])
def test_an_amateur_may_read_the_context_or_not(amateur_reads: bool) -> None:
    """One that does not is what the text would be without the context."""
    expert = make(5)
    amateur = make(6) if amateur_reads else Double(6).eval()
    setting = ContrastiveParams(alpha=0.05)
    params = GenerationParams(max_tokens=9, temperature=0.0, contrastive=setting)
    engine = Engine(expert, amateur=amateur)
    found = engine.generate(list(PROMPTS), params, contexts=CONTEXTS)
    for prompt, context, completion in zip(PROMPTS, CONTEXTS, found, strict=True):
        tokens = list(prompt)
        for _ in range(9):
            p = next_logprobs(expert, tokens, context).exp()
            with torch.no_grad():
                read = {"context": context[None]} if amateur_reads else {}
                q = amateur(torch.tensor([tokens]), **read)[0, -1].softmax(-1)
            score = p ** (1 + setting.beta) / q**setting.beta
            tokens.append(int(score.where(p >= 0.05 * p.max(), score.new_zeros(())).argmax()))
        assert completion.choices[0].token_ids == tuple(tokens[len(prompt) :])


@pytest.mark.parametrize(
    ("context", "named"),
    [
        (None, "cross attention"),
        (torch.zeros(3, WIDTH + 1), "(j, 10)"),
        (torch.zeros(1, 3, WIDTH), "(1, 3, 10)"),
        (torch.zeros(0, WIDTH), "j >= 1"),
        (torch.zeros(3, WIDTH, dtype=torch.long), "int64"),
        ([[0.0] * WIDTH], "list"),
    ],
)
def test_a_context_that_does_not_fit_is_refused(context: Any, named: str) -> None:
    engine = Engine(make(1))
    with pytest.raises(ConfigError, match="context") as error:
        engine.add([1], GenerationParams(), context=context)
    assert named in str(error.value)
    assert not engine.has_work


def test_a_context_that_nothing_reads_is_refused() -> None:
    with pytest.raises(ConfigError, match="leave it out"):
        Engine(Double(1).eval()).add([1], GenerationParams(), context=CONTEXTS[0])


def test_a_context_in_another_type_is_read_in_the_type_of_the_model() -> None:
    model = make(1)
    params = GenerationParams(max_tokens=5, temperature=0.0)
    context = CONTEXTS[0].float().requires_grad_()
    found = Engine(model).generate([[1]], params, contexts=[context])
    assert tokens_of(found) == [[greedy(model, [1], 5, context.detach().double())]]


def test_there_is_one_context_for_each_prompt() -> None:
    with pytest.raises(ConfigError, match="2 for 1 prompts"):
        Engine(make(1)).generate([[1]], GenerationParams(), contexts=CONTEXTS[:2])
