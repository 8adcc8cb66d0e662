"""``/v1/infill``, and ``/v1/completions`` of a model that fills masks, beside one that does not."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
from pathlib import Path

import openai
import pytest
from nar_server import MASK, TOKENIZER, filler, filling_engine, filling_model
from openai.types import Completion as OpenAICompletion
from tiny_server import MAX_SEQ_LEN, Http, events, save_tiny

from xtdist.checkpoint.chat_template import ChatTemplate
from xtdist.cli.main import main
from xtdist.config import derive_seed
from xtdist.decode.text import FILL, Settings, TextGenerator
from xtdist.serve.auth import LiveKeys
from xtdist.serve.backend import Backend
from xtdist.serve.config import AppConfig, LimitsConfig, ServedModel
from xtdist.serve.engine_thread import EngineThread
from xtdist.serve.gate import Gate
from xtdist.serve.loading import load_served
from xtdist.serve.routes import make_app
from xtdist.serve.served import Served

CONFIGS = Path(__file__).parents[2] / "jobs" / "configs"
INFILL, COMPLETIONS = "/v1/infill", "/v1/completions"
TEXT = ["def ", {"mask": 6}, " return ", {"mask": 4}, "!"]
ROW = [*b"def ", *[MASK] * 6, *b" return ", *[MASK] * 4, *b"!"]


@pytest.fixture(scope="module")
def model():
    return filler(steps=5, self_cond=True, can_mask_prev_unmasked=True)


@pytest.fixture(scope="module")
def direct(model):
    """``direct(row, n=, …)``: the rows that the engine makes of one, called directly."""

    def run(row, n=1, seed=None, **params):
        engine = filling_engine(model)
        seeds = [seed, *(derive_seed(seed, "choice", i) for i in range(1, n))]
        asked = [dataclasses.replace(model.filling, seed=s, **params) for s in seeds]
        choices = [engine.generate([row], p)[0].choices[0] for p in asked]
        return [list(c.token_ids) for c in choices], [c.text for c in choices]

    return run


@pytest.fixture(scope="module")
def both(make_engine, model):
    """One server with both kinds: ``both.post(path, …)`` asks the one that fills masks."""
    tiny = Served(
        name="tiny",
        thread=EngineThread(make_engine(), name="tiny"),
        tokenizer=TOKENIZER,
        digest="0123456789abcdef" * 4,
        max_seq_len=MAX_SEQ_LEN,
        contrastive=True,
    )
    served = filling_model(model)
    limits = LimitsConfig(max_tokens=32, max_sequences=8)
    http = Http(make_app(Backend(models=[tiny, served], limits=limits, gate=Gate(LiveKeys()))))

    async def ask(path, **body):
        return await http.arequest("POST", path, json={"model": "filler", **body})

    http.ask = ask
    http.post = lambda path, **body: http.runner.run(ask(path, **body))
    yield http
    http.runner.close()
    for thread in (served.thread, tiny.thread):
        thread.stop()


SETTINGS = [
    {},
    {"steps": 2, "temperature": 0.0, "schedule": "linear", "remask": False},
    {"steps": 50, "anneal": False, "top_k": 5, "order": "random", "noise": 0.0},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_filled_sequences_equal_the_engine_called_directly_alone_and_under_load(
    both, direct, settings
):
    ids, texts = direct(ROW, n=3, seed=11, **settings)
    body = {"text": TEXT, "seed": 11, "n": 3, "return_token_ids": True, **settings}
    alone = both.post(INFILL, **body).json()
    assert [c["token_ids"] for c in alone["choices"]] == ids
    assert [c["text"] for c in alone["choices"]] == texts
    assert alone["usage"] == {"prompt_tokens": 13, "completion_tokens": 30, "total_tokens": 43}

    async def crowd():
        others = [both.ask(INFILL, text=["x" * k, {"mask": 9}], steps=k) for k in range(1, 6)]
        others.append(both.ask(COMPLETIONS, model="tiny", prompt="beside", max_tokens=30))
        reply, *rest = await asyncio.gather(both.ask(INFILL, **body), *others)
        assert {r.status_code for r in rest} == {200}
        return reply.json()

    assert both.runner.run(crowd())["choices"] == alone["choices"]


def test_the_three_forms_mean_the_same_and_given_tokens_never_change(both):
    forms = [
        {"prompt": "ab", "suffix": "yz", "max_tokens": 5},
        {"prompt": [97, 98], "suffix": [121, 122], "max_tokens": 5},
        {"text": ["a", "b", {"mask": 2}, {"mask": 3}, "yz"]},
        {"tokens": [97, 98, {"mask": 5}, 121, 122]},
    ]
    replies = [both.post(INFILL, seed=4, return_token_ids=True, **f).json() for f in forms]
    assert len({str(r["choices"]) for r in replies}) == 1
    (choice,) = replies[0]["choices"]
    ids = choice["token_ids"]
    assert (ids[:2], ids[-2:], len(ids)) == ([97, 98], [121, 122], 9)
    assert MASK not in ids
    middle = b"".join(TOKENIZER.token_bytes(i) for i in ids[2:7]).decode(errors="replace")
    assert choice["fills"] == [middle]


def test_a_stream_shows_every_step_and_its_frames_make_up_the_sequence(both, direct):
    (ids,), (text,) = direct(ROW, seed=3)
    options = {"stream": True, "stream_options": {"include_usage": True}, "return_token_ids": True}
    *frames, usage, done = events(both.post(INFILL, text=TEXT, seed=3, **options))
    assert done == "[DONE]"
    assert usage["usage"]["completion_tokens"] == 10
    row, steps, shown = list(ROW), [], []
    for frame in frames:
        assert frame["object"] == "infill.chunk"
        (choice,) = frame["choices"]
        steps.append(choice["step"])
        for change in choice["filled"]:
            assert ROW[change["position"]] == MASK
            token = change["token_id"]
            row[change["position"]] = MASK if token is None else token
        shown += choice["token_ids"]
        assert choice["so_far"].count("░") == row.count(MASK)
    assert row == shown == ids
    assert steps == sorted(set(steps))
    assert steps[-1] == 5
    assert "".join(f["choices"][0]["text"] for f in frames) == text
    assert (choice["finish_reason"], len(choice["fills"])) == ("stop", 2)


def test_completions_with_a_suffix_are_what_the_command_line_makes(both, model):
    generator = TextGenerator(
        model,
        TOKENIZER,
        filling=model.filling,
        eos_id=TOKENIZER.eot_id,
        banned_ids=(MASK, TOKENIZER.pad_id),
    )
    wanted = [
        generator(p, FILL, Settings(max_tokens=7, temperature=0.8, seed=5), suffix="end")
        for p in ("ab", "")
    ]
    body = {"prompt": ["ab", ""], "suffix": "end", "max_tokens": 7, "temperature": 0.8, "seed": 5}
    whole = both.post(COMPLETIONS, **body).json()
    OpenAICompletion.model_validate(whole)
    assert [c["text"] for c in whole["choices"]] == wanted
    assert whole["usage"]["completion_tokens"] == 14
    texts = ["", ""]
    *chunks, _ = events(both.post(COMPLETIONS, stream=True, **body))
    for chunk in chunks:
        OpenAICompletion.model_validate(chunk)
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["text"]
    assert texts == wanted
    echoed = both.post(COMPLETIONS, prompt="ab", max_tokens=7, seed=5, echo=True).json()
    assert echoed["choices"][0]["text"].startswith("ab")


def test_the_openai_client_gets_a_middle(both):
    async def ask():
        import httpx

        transport = httpx.ASGITransport(app=both.app)
        http = httpx.AsyncClient(transport=transport)
        async with openai.AsyncOpenAI(
            api_key="x", base_url="http://here/v1", http_client=http
        ) as client:
            return await client.completions.create(
                model="filler", prompt="a", suffix="b", max_tokens=3, seed=1
            )

    reply = both.runner.run(ask())
    whole = both.post(INFILL, prompt="a", suffix="b", max_tokens=3, seed=1).json()
    assert [reply.choices[0].text] == whole["choices"][0]["fills"]


@pytest.mark.parametrize(
    ("path", "body", "param", "said"),
    [
        (INFILL, {"model": "tiny", "text": TEXT}, "model", "/v1/completions"),
        (COMPLETIONS, {"model": "tiny", "prompt": "a", "suffix": "b"}, "suffix", "fills masks"),
        (COMPLETIONS, {"model": "tiny", "prompt": "a", "steps": 2}, "steps", "fills masks"),
        (COMPLETIONS, {"prompt": "a", "top_p": 0.5}, "top_p", "/v1/infill"),
        (COMPLETIONS, {"prompt": "a", "stop": "x"}, "stop", "/v1/infill"),
        (COMPLETIONS, {"prompt": "a", "logprobs": 1}, "logprobs", "/v1/infill"),
        (COMPLETIONS, {"prompt": "a", "max_tokens": 0, "echo": True}, "max_tokens", "at least 1"),
        ("/v1/chat/completions", {"messages": []}, "messages", "at least 1"),
        (INFILL, {"text": TEXT, "order": "critic"}, "order", "has none"),
        (INFILL, {"text": TEXT, "setps": 3}, "setps", "'steps'"),
        (INFILL, {"text": TEXT, "steps": 0}, "steps", "greater"),
        (INFILL, {"text": TEXT, "n": 9}, "n", "at most 8"),
        (INFILL, {"text": ["only"]}, None, "nothing to fill"),
        (INFILL, {"text": ["a", {"mask": 0}]}, "text.1.mask", "greater than or equal to 1"),
        (INFILL, {"tokens": [1, True]}, "tokens.1", "valid integer"),
        (INFILL, {"text": TEXT, "prompt": "x"}, None, "either prompt"),
        (INFILL, {"prompt": "x"}, None, "either prompt"),
        (INFILL, {"text": [{"mask": 33}]}, "mask", "at most 32"),
        (INFILL, {"text": ["x" * 90, {"mask": 9}]}, "max_tokens", "positions"),
        (INFILL, {"tokens": [MASK, {"mask": 1}]}, "tokens", "{'mask': 1}"),
        (INFILL, {"tokens": [259, {"mask": 1}]}, "tokens", "0 to 258"),
        (INFILL, {"text": TEXT, "stream_options": {}}, "stream_options", "stream=true"),
    ],
)
def test_what_can_not_be_filled_is_refused_by_name(both, path, body, param, said):
    reply = both.post(path, **body)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, param)
    assert said in error["message"]


def test_conversations_are_not_for_a_model_that_fills_masks(both):
    messages = [{"role": "user", "content": "hi"}]
    error = both.post("/v1/chat/completions", messages=messages).json()["error"]
    assert "/v1/infill" in error["message"]


def test_health_fills_a_mask_and_the_list_says_who_fills(both):
    assert both.request("GET", "/health").status_code == 200
    cards = both.request("GET", "/v1/models").json()["data"]
    assert {c["id"]: c["fills"] for c in cards} == {"tiny": False, "filler": True}


def test_weights_of_a_filler_are_served_as_they_were_trained_to_be_asked(tmp_path):
    folder = save_tiny(tmp_path / "nar", seed=2, objective="nonautoregressive")
    spec = ServedModel(name="nar", weights=str(folder))
    served = load_served(spec, AppConfig(models=(spec,)))
    try:
        assert served.fills
        assert served.filling.steps == 18
        assert asyncio.run(served.healthy(20.0))
        assert served.thread.steps == 1
    finally:
        served.thread.stop()


@pytest.mark.parametrize("name", ["serve_chat", "serve_infill"])
def test_the_example_config_passes_the_check(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for run, kind in (("demo-ar", "autoregressive"), ("demo-nar", "nonautoregressive")):
        save_tiny(tmp_path / "runs" / run, seed=1, objective=kind)
    shutil.copytree(CONFIGS, tmp_path / "jobs" / "configs")
    assert main(["serve", "--check", "--config", str(CONFIGS / f"{name}.yaml")]) == 0
    assert "sequences of at most 96 tokens" in capsys.readouterr().out
    (tmp_path / "jobs" / "configs" / "chatml.jinja").write_text("{% if %}")
    code = main(["serve", "--check", "--config", str(CONFIGS / f"{name}.yaml")])
    assert code == (2 if name == "serve_chat" else 0)


def test_the_example_template_makes_chatml():
    template = ChatTemplate.read(CONFIGS / "chatml.jinja", where="here")
    try:
        made = template.render([{"role": "user", "content": " Hi\n"}])
    finally:
        template.close()
    assert made.parts == ("<|im_start|>user\n Hi\n<|im_end|>\n<|im_start|>assistant\n",)
    assert made.stop == ("<|im_end|>",)
