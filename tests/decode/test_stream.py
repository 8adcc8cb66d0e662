from __future__ import annotations

import gc
from typing import Any

import pytest
from decode_models import VOCABULARY, make_model

from xtdist.config import ConfigError
from xtdist.decode import (
    Engine,
    EngineConfig,
    GenerationParams,
    MaskPredictParams,
    Output,
    QueueFull,
    stream,
)
from xtdist.decode.outputs import collect
from xtdist.model import TransformerWrapper

MASK = VOCABULARY - 1
PARAMS = GenerationParams(max_tokens=9, seed=1, temperature=1.5)


class Pieces:
    """Ids are bytes of a text with characters of several bytes."""

    vocab_size = VOCABULARY

    def token_bytes(self, token: int) -> bytes:
        return ("aé€🙂b".encode() * 4)[token : token + 1]


@pytest.fixture
def engine(expert: TransformerWrapper) -> Engine:
    return Engine(expert, tokenizer=Pieces(), config=EngineConfig(seed=3, page_tokens=4))


def idle(engine: Engine) -> bool:
    return not engine.has_work and len(engine.pool.free_pages) == engine.pool.num_pages


@pytest.mark.parametrize(
    "params",
    [
        PARAMS,
        GenerationParams(max_tokens=9, seed=1, n=3),
        GenerationParams(max_tokens=9, num_beams=3, n=2),
        GenerationParams(max_tokens=30, seed=2, stop=("b",)),
    ],
)
def test_deltas_joined_are_the_whole(engine: Engine, params: GenerationParams) -> None:
    whole = engine.generate([[1, 2, 3]], params)[0]
    outputs = list(engine.stream([1, 2, 3], params))
    assert collect(outputs) == whole
    for index, choice in enumerate(whole.choices):
        mine = [o for o in outputs if o.index == index]
        assert "".join(o.text for o in mine) == choice.text
        assert [o.finish_reason for o in mine[:-1]] == [None] * (len(mine) - 1)
    assert idle(engine)


def test_the_first_tokens_come_before_the_last_ones_are_computed(engine: Engine) -> None:
    outputs = engine.stream([1, 2], GenerationParams(max_tokens=5))
    first = next(outputs)
    assert len(first.token_ids) <= 1
    assert engine.knows(outputs.request_id)
    assert sum(len(o.token_ids) for o in outputs) + len(first.token_ids) == 5
    assert not engine.knows(outputs.request_id)


def test_leaving_the_loop_aborts_the_request(engine: Engine) -> None:
    for _ in engine.stream([1, 2], PARAMS):
        break
    gc.collect()
    assert idle(engine)


def test_a_consumer_that_fails_leaves_nothing_behind(engine: Engine) -> None:
    def consume() -> None:
        for _ in engine.stream([1, 2], PARAMS):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        consume()
    assert idle(engine)


def test_a_stream_that_was_never_read_leaves_nothing_behind(engine: Engine) -> None:
    outputs = engine.stream([1, 2], PARAMS)
    assert engine.has_work
    del outputs
    assert idle(engine)


def test_a_generator_around_a_stream_closes_it(engine: Engine) -> None:
    def texts() -> Any:
        with engine.stream([1, 2], PARAMS) as outputs:
            for output in outputs:
                yield output.text

    generator = texts()
    next(generator)
    assert engine.has_work
    generator.close()  # raises GeneratorExit at the yield
    assert idle(engine)


def test_a_closed_stream_ends_and_may_be_closed_again(engine: Engine) -> None:
    outputs = engine.stream([1, 2], PARAMS)
    next(outputs)
    outputs.close()
    outputs.close()
    assert list(outputs) == []


def test_closing_an_old_stream_leaves_a_new_request_of_that_name_alone(engine: Engine) -> None:
    outputs = engine.stream([1, 2], PARAMS)
    name = outputs.request_id
    outputs.close()
    engine.add([3], PARAMS, request_id=name)
    outputs.close()
    del outputs
    assert engine.knows(name)


@pytest.mark.parametrize("order", ["abab", "aaab", "baba", "bbba"])
def test_streams_of_one_engine_may_be_read_in_any_order(engine: Engine, order: str) -> None:
    prompts = {"a": [1, 2, 3], "b": [7]}
    alone = {k: list(engine.stream(p, PARAMS)) for k, p in prompts.items()}
    streams = {k: engine.stream(p, PARAMS) for k, p in prompts.items()}
    read: dict[str, list[Output]] = {"a": [], "b": []}
    for name in order:
        read[name].append(next(streams[name]))
    for name, rest in streams.items():
        read[name] += rest
    tokens = {k: [o.token_ids for o in v] for k, v in read.items()}
    assert tokens == {k: [o.token_ids for o in v] for k, v in alone.items()}
    assert idle(engine)


def test_a_stream_takes_no_output_from_requests_that_are_stepped_by_hand(engine: Engine) -> None:
    name = engine.add([5], GenerationParams(max_tokens=3))
    whole = list(engine.stream([1, 2], PARAMS))
    assert not engine.knows(name)
    assert engine.has_work  # its outputs are not read yet
    outputs = engine.step()
    assert sum(len(o.token_ids) for o in outputs) == 3
    assert {o.request_id for o in outputs} == {name}
    assert not engine.has_work
    assert whole[-1].finish_reason is not None


def test_neither_does_generate_nor_a_step_from_a_stream(engine: Engine) -> None:
    outputs = engine.stream([1, 2], PARAMS)
    kept = engine.add([5], GenerationParams(max_tokens=2))
    engine.generate([[4], [6, 7]], PARAMS)
    assert {o.request_id for o in engine.step()} == {kept}
    assert collect(list(outputs)) == engine.generate([[1, 2]], PARAMS)[0]


def test_outputs_of_an_aborted_request_are_not_given_any_more(engine: Engine) -> None:
    name = engine.add([5], GenerationParams(max_tokens=8))
    outputs = engine.stream([1, 2], GenerationParams(max_tokens=3))
    list(outputs)
    engine.abort(name)
    assert engine.step() == []
    assert idle(engine)


def test_an_error_in_a_step_ends_the_stream(engine: Engine) -> None:
    outputs = engine.stream([1, 2], PARAMS)

    def broken() -> None:
        raise RuntimeError("device")

    engine.pump = broken  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="device"):
        next(outputs)
    assert not engine.knows(outputs.request_id)


def test_what_can_not_be_honoured_is_refused_when_the_stream_is_made(
    expert: TransformerWrapper,
) -> None:
    engine = Engine(expert, config=EngineConfig(max_waiting=1))
    with pytest.raises(ConfigError, match="prompt"):
        engine.stream([], PARAMS)
    first = engine.stream([1], PARAMS)
    with pytest.raises(QueueFull):
        engine.stream([1], PARAMS)
    first.close()
    assert idle(engine)


def test_a_stream_of_a_model_alone(expert: TransformerWrapper) -> None:
    outputs = list(stream(expert, [1, 2], PARAMS, tokenizer=Pieces()))
    whole = Engine(expert, tokenizer=Pieces()).generate([[1, 2]], PARAMS)[0]
    assert collect(outputs) == whole


def test_masks_are_streamed_as_text_from_the_left() -> None:
    model = make_model(4, causal=False)
    engine = Engine(model, tokenizer=Pieces(), eos_ids=(5,))
    params = MaskPredictParams(steps=12, mask_id=MASK, seed=1)
    outputs = list(engine.stream([MASK] * 12, params))
    whole = engine.generate([[MASK] * 12], params)[0].choices[0]
    assert "".join(o.text for o in outputs) == whole.text
    assert tuple(t for o in outputs for t in o.token_ids) == whole.token_ids
    assert sum(bool(o.token_ids) for o in outputs) > 1
    data = b"".join(Pieces().token_bytes(t) for t in whole.token_ids if t != 5)
    assert whole.text == data.decode(errors="replace")


def test_a_stream_of_masks_that_is_closed_is_aborted() -> None:
    engine = Engine(make_model(4, causal=False))
    with engine.stream([MASK] * 6, MaskPredictParams(mask_id=MASK)) as outputs:
        next(outputs)
        assert engine.has_work
    assert not engine.has_work


def test_streaming_takes_no_step_that_generating_does_not(engine: Engine) -> None:
    steps: list[None] = []
    pump = engine.pump

    def counted() -> None:
        steps.append(None)
        pump()

    engine.pump = counted  # type: ignore[method-assign]
    list(engine.stream([1, 2], PARAMS))
    assert len(steps) == PARAMS.max_tokens
