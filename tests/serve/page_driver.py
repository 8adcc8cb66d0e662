"""A server for the playground, and what one does with the page in a browser."""

from __future__ import annotations

import json
import time
from html.parser import HTMLParser

import httpx
import torch
from tiny_server import MAX_SEQ_LEN, tiny_model

from xtdist.data.tokenizer import byte_tokenizer
from xtdist.decode import Engine, EngineConfig
from xtdist.decode.denoiser import PlainDenoiser
from xtdist.decode.maskpredict import MaskPredictParams
from xtdist.model.config import ModelConfig
from xtdist.model.wrapper import build_model
from xtdist.serve.engine_thread import EngineThread
from xtdist.serve.served import Served

HOSTILE = '<img src=x onerror="hacked=1"><b>&amp;'


class SlowEngine(Engine):
    """One whose steps take as long as those of a real model, if ``pause_s`` says so."""

    pause_s = 0.0

    def step(self):
        time.sleep(self.pause_s)
        return super().step()


def served(engine, name, **fields):
    thread = EngineThread(engine, name=name)
    tokenizer = byte_tokenizer()
    fields = {"digest": "0123456789abcdef" * 4, "max_seq_len": MAX_SEQ_LEN, **fields}
    return Served(name=name, thread=thread, tokenizer=tokenizer, **fields)


def engine_of(model, **options):
    tokenizer = byte_tokenizer()
    return SlowEngine(
        model,
        tokenizer=tokenizer,
        banned_ids=(tokenizer.mask_id, tokenizer.pad_id),
        config=EngineConfig(max_sequences=8, max_waiting=16, seed=7),
        **options,
    )


def make_models():
    """One that continues, one with a hostile name, one that fills gaps."""
    config = ModelConfig(
        dim=32, depth=2, heads=2, num_tokens=259, max_seq_len=MAX_SEQ_LEN, causal=False
    )
    filler = build_model(config, generator=torch.Generator().manual_seed(3)).eval()
    eos = (byte_tokenizer().eot_id,)
    engine = engine_of(tiny_model(1), amateur=tiny_model(2), eos_ids=eos)
    return [
        served(engine, "tiny", contrastive=True, step=1234),
        served(engine_of(tiny_model(1)), f"{HOSTILE}/model", contrastive=False),
        served(
            engine_of(PlainDenoiser(filler)),
            "filler",
            contrastive=False,
            filling=MaskPredictParams(steps=6),
        ),
    ]


def open_page(browser, url):
    browser.open(url + "/")
    browser.wait("document.querySelector('#card')?.textContent")


def check_quiet(browser, url):
    events = [(e["method"], e["params"]) for e in browser.events]
    assert not [p for name, p in events if name == "Runtime.exceptionThrown"]
    assert not [p for name, p in events if name == "Runtime.consoleAPICalled"]
    logged = [p["entry"] for name, p in events if name == "Log.entryAdded"]
    # What a browser itself says of every status above 399 is no error of the page.
    assert not [
        e for e in logged if e["level"] in ("error", "warning") and e["source"] != "network"
    ]
    asked = [p["request"]["url"] for name, p in events if name == "Network.requestWillBeSent"]
    assert asked
    assert not [u for u in asked if not u.startswith((url + "/", "data:image/svg+xml,"))]


def choose(page, mode):
    page.js(f"document.querySelector('input[name=mode][value={mode}]').click()")


def generate(page):
    """Have an answer made, whole."""
    page.click("#run")
    page.wait(
        "document.querySelector('#run').disabled === false && !document.querySelector('.busy')"
    )
    page.wait("document.querySelector('.pane footer button, .alert')")
    page.js("new Promise(requestAnimationFrame)")


def texts(page):
    return page.js("[...document.querySelectorAll('.answer')].map(e => e.textContent)")


def bodies(page):
    """Of the requests for answers."""
    sent = [
        e["params"]["request"] for e in page.events if e["method"] == "Network.requestWillBeSent"
    ]
    return [json.loads(r["postData"]) for r in sent if r["method"] == "POST"]


def asked_directly(url, body, path="/v1/completions"):
    """The whole answer to what the page asked for as a stream."""
    body = {k: v for k, v in body.items() if k not in ("stream", "stream_options")}
    answer = httpx.post(url + path, json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"]


class Inline(HTMLParser):
    """Texts of scripts and styles, and everything that is an address."""

    def __init__(self, html):
        super().__init__()
        self.open, self.found, self.addresses = "", {"script": [], "style": []}, []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.open = tag
        self.addresses += [v for k, v in attrs if k in ("src", "href", "action", "data", "srcset")]

    def handle_data(self, data):
        if self.open in self.found:
            self.found[self.open].append(data)

    def handle_endtag(self, tag):
        self.open = ""


def luminance(colour):
    """Of ``rgb(r, g, b)``, as WCAG 2 defines it."""
    parts = [int(x) / 255 for x in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
