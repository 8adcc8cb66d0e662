"""What callers hand to the engine: unwrapped, or refused under the name that they know it by."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from decode_models import VOCABULARY, make_model
from torch import nn

from xtdist.config import ConfigError
from xtdist.decode import (
    ContrastiveParams,
    Engine,
    EngineConfig,
    GenerationParams,
    MaskPredictParams,
    generate,
    mask_predict,
    stream,
)
from xtdist.decode.given import (
    as_ids,
    as_made,
    as_net,
    as_prompts,
    check_tokenizer,
    of_prompt,
)
from xtdist.model import Decoder, TransformerWrapper


class Around(nn.Module):
    """As a training wrapper: a network and a config of another kind."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net, self.config = net, EngineConfig()


class Words:
    vocab_size = VOCABULARY

    def token_bytes(self, token_id: int, /) -> bytes:
        return b"ab"[token_id % 2 :][:1]


class Nameless:
    vocab_size = VOCABULARY


@pytest.fixture(scope="module")
def model() -> TransformerWrapper:
    return make_model(1)


def test_a_network_is_found_in_its_wrapper(model: TransformerWrapper) -> None:
    assert as_net(model) is as_net(Around(model)) is model


@pytest.mark.parametrize(
    "other", [None, "llama", nn.Linear(2, 2), Around(nn.Linear(2, 2)), {"net": 3}]
)
def test_what_is_no_network_is_refused_by_name(other: Any) -> None:
    with pytest.raises(ConfigError, match=r"^amateur: got .*; give a TransformerWrapper.*`\.net`"):
        as_net(other, name="amateur")


def test_layers_alone_are_no_network() -> None:
    layers = Decoder(dim=16, depth=1, heads=2, attn_dim_head=8)
    with pytest.raises(ConfigError, match=r"^model: got a Decoder"):
        as_net(layers)


def test_parameters_of_another_kind_are_refused_with_how_to_make_them() -> None:
    params = GenerationParams()
    assert as_made(params, GenerationParams, name="params") is params
    with pytest.raises(ConfigError, match=r"^params: got a dict; .*GenerationParams\(\*\*params\)"):
        as_made({"max_tokens": 7}, GenerationParams, name="params")
    for wrong in (None, EngineConfig(), MaskPredictParams(), GenerationParams):
        with pytest.raises(ConfigError, match=r"^params: got .*; it is causal: give Generation"):
            as_made(wrong, GenerationParams, name="params", why="it is causal")


@pytest.mark.parametrize(
    "ids",
    [
        [1, 2],
        (1, 2),
        torch.tensor([1, 2]),
        torch.tensor([1, 2], dtype=torch.uint8),
        np.array([1, 2], dtype=np.uint32),
        [np.int64(1), torch.tensor(2)],
        (i for i in (1, 2)),
    ],
)
def test_ids_are_taken_from_any_row_of_whole_numbers(ids: Any) -> None:
    found = as_ids(ids, name="prompt")
    assert found == (1, 2)
    assert {type(i) for i in found} == {int}


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ("hi", "prompt: got 'hi'; give token ids (tokenizer.encode(text))"),
        (0, "prompt: got 0; give a list of token ids, like [0]"),
        (None, "prompt: got None; give token ids"),
        (torch.tensor(3), "prompt: got torch.int64 (); give"),
        (torch.zeros(1, 2), "prompt: got torch.float32 (1, 2); give token ids"),
        ([1.0], "prompt: got 1.0 among the token ids; give whole numbers"),
        ([True], "prompt: got True among"),
        (["1"], "prompt: got '1' among"),
        ([[1, 2]], "prompt: got a list among"),
        (torch.tensor([True]), "prompt: got True among"),
    ],
)
def test_what_are_no_ids_is_refused_by_name(ids: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        as_ids(ids, name="prompt")


def test_one_prompt_alone_is_not_several() -> None:
    several: list[Any] = [[[1, 2]], [torch.tensor([1])], torch.ones(2, 3), np.ones((2, 3)), []]
    for prompts in several:
        assert as_prompts(prompts) is prompts
    for one in ([1, 2], torch.tensor([1, 2]), np.array([1, 2]), "hi", 3, None):
        with pytest.raises(ConfigError, match=r"^prompts: got .*; give a list of prompts"):
            as_prompts(one)


def test_a_tokenizer_must_have_what_decoding_calls() -> None:
    words = Words()
    assert check_tokenizer(words) is words
    assert check_tokenizer(None) is None
    with pytest.raises(ConfigError, match=r"^tokenizer: got 'gpt2', .*no vocab_size.*token_bytes"):
        check_tokenizer("gpt2")
    with pytest.raises(ConfigError, match=r"^tokenizer: got a Nameless, .*has no token_bytes"):
        check_tokenizer(Nameless())


def test_the_number_of_a_wrong_prompt_is_said_among_several() -> None:
    for count, said in ((3, "prompts[2]: prompt: it is empty"), (1, "prompt: it is empty")):
        with pytest.raises(ConfigError, match="^" + re.escape(said)), of_prompt(2, count=count):
            raise ConfigError("prompt: it is empty")
    with pytest.raises(ConfigError, match=r"^n: got 9"), of_prompt(2, count=3):
        raise ConfigError("n: got 9")


def test_every_way_in_takes_a_training_wrapper_for_its_network(model: TransformerWrapper) -> None:
    around, params = Around(model), GenerationParams(max_tokens=3, temperature=0.0)
    expected = generate(model, [[1, 2]], params)
    assert generate(around, [[1, 2]], params) == expected
    assert Engine(around).generate([[1, 2]], params) == expected
    streamed = stream(around, [1, 2], params)
    assert tuple(t for o in streamed for t in o.token_ids) == expected[0].choices[0].token_ids
    contrast = GenerationParams(max_tokens=3, temperature=0.0, contrastive=ContrastiveParams())
    weaker = make_model(2)
    for amateurs in (Around(weaker), [Around(weaker)], nn.ModuleList([Around(weaker)])):
        assert generate(model, [[1, 2]], contrast, amateur=amateurs) == generate(
            model, [[1, 2]], contrast, amateur=weaker
        )
    with pytest.raises(ConfigError, match=r"^amateur 1: got a Linear"):
        Engine(model, amateur=[weaker, nn.Linear(2, 2)])


def test_masks_are_filled_by_a_wrapped_network_also_by_generate() -> None:
    net = make_model(1, causal=False)
    tokens = torch.tensor([[1, 5, 5, 2], [5, 5, 5, 5]])
    params = MaskPredictParams(mask_id=5, seed=3, temperature=0.0, noise=0.0)
    filled = mask_predict(Around(net), tokens, params=params)
    assert torch.equal(filled, mask_predict(net, tokens, params=params))
    rows = [c.choices[0].token_ids for c in generate(net, tokens.tolist(), params)]
    assert torch.equal(torch.tensor(rows), filled)


def test_filling_masks_refuses_causal_networks_and_other_parameters(
    model: TransformerWrapper,
) -> None:
    tokens = torch.tensor([[1, 5]])
    for causal in (model, Around(model)):
        with pytest.raises(ConfigError, match=r"^model: it is causal"):
            mask_predict(causal, tokens, params=MaskPredictParams(mask_id=5))
    with pytest.raises(ConfigError, match=r"^model: got a Linear; give a TransformerWrapper"):
        mask_predict(nn.Linear(2, 2), tokens)
    net, other = make_model(1, causal=False), GenerationParams()
    with pytest.raises(ConfigError, match=r"^params: got a GenerationParams; give MaskPredict"):
        mask_predict(net, tokens, params=other)  # type: ignore[arg-type]


def test_a_pool_of_less_than_a_page_says_what_is_enough(model: TransformerWrapper) -> None:
    with pytest.raises(ConfigError, match=r"^pool_tokens: got 3, .* 8 tokens; give at least that"):
        Engine(model, config=EngineConfig(pool_tokens=3, page_tokens=8))


def test_the_engine_refuses_what_it_can_not_be_made_of(model: TransformerWrapper) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"config": {"max_sequences": 3}}, r"^config: got a dict; .*EngineConfig\(\*\*config\)"),
        ({"config": {}}, r"^config: got a dict"),
        ({"config": GenerationParams()}, r"^config: got a GenerationParams; give EngineConfig"),
        ({"eos_ids": 0}, r"^eos_ids: got 0; give a list of token ids, like \[0\]"),
        ({"banned_ids": "</s>"}, r"^banned_ids: got '</s>'; give token ids"),
        ({"tokenizer": "gpt2"}, r"^tokenizer: got 'gpt2'"),
        ({"tokenizer": Nameless()}, r"^tokenizer: .* token_bytes"),
    ]
    for options, message in wrong:
        with pytest.raises(ConfigError, match=message):
            Engine(model, **options)


def test_the_engine_refuses_wrong_requests_by_name(model: TransformerWrapper) -> None:
    engine, params = Engine(model), GenerationParams(max_tokens=2)
    for odd in (None, {"max_tokens": 7}, MaskPredictParams()):
        for call in (
            lambda odd=odd: engine.add([1], odd),
            lambda odd=odd: generate(model, [[1]], odd),
        ):
            with pytest.raises(ConfigError, match=r"^params: got .* is causal: give Generation"):
                call()
    with pytest.raises(ConfigError, match=r"^params: got a GenerationParams; .* fills masks: give"):
        generate(make_model(1, causal=False), [[1]], params)
    with pytest.raises(ConfigError, match=r"^prompts: got 'hi'"):
        generate(model, "hi", params)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"^prompts: got one prompt; .*like \[\[1, 2\]"):
        generate(model, [1, 2], params)  # type: ignore[list-item]
    with pytest.raises(ConfigError, match=r"^prompt: got 'hi'; .*tokenizer.encode"):
        generate(model, ["hi"], params)  # type: ignore[list-item]
    with pytest.raises(ConfigError, match=r"^prompts\[1\]: prompt: token id 99"):
        generate(model, [[1], [99], [2]], params)
    with pytest.raises(ConfigError, match=r"^prompts\[2\]: prompt: it is empty"):
        engine.generate([[1], [2], []], params)
    assert not engine.has_work
