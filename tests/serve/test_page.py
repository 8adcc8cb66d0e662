"""The playground in a real browser: what it asks the server for, what it shows of the answer."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import math
import subprocess

import httpx
import pytest
from chromium import Browser, find_chromium
from faulty import serving
from page_driver import (
    HOSTILE,
    Inline,
    asked_directly,
    bodies,
    check_quiet,
    choose,
    generate,
    luminance,
    make_models,
    open_page,
    texts,
)

from xtdist.serve.auth import LiveKeys, new_key
from xtdist.serve.backend import Backend
from xtdist.serve.config import LimitsConfig
from xtdist.serve.gate import Gate
from xtdist.serve.routes import make_app

PROMPT = 'The "house" of\nMr. O\'Hara – £5 \\ 😀'


@pytest.fixture(scope="module")
def models():
    found = make_models()
    yield found
    for model in found:
        model.thread.stop()


@pytest.fixture(scope="module")
def site(models):
    """The server's URL."""
    backend = Backend(models=models, limits=LimitsConfig(), gate=Gate(LiveKeys()))
    with serving(make_app(backend)) as url:
        yield url


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    program = find_chromium()
    if program is None:
        pytest.skip("there is no Chromium on this machine")
    found = Browser(program, tmp_path_factory.mktemp("chromium"))
    yield found
    found.close()


@pytest.fixture
def page(browser, site):
    """The page, ready. At the end: nothing failed in it, and it spoke to its server only."""
    open_page(browser, site)
    yield browser
    check_quiet(browser, site)


def test_the_page_is_one_file_under_a_policy_that_lets_nothing_else_in(http):
    answer = http.request("GET", "/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    rules = dict(r.split(" ", 1) for r in answer.headers["content-security-policy"].split("; "))
    inline = Inline(answer.text)
    for tag, parts in inline.found.items():
        digest = hashlib.sha256("".join(parts).encode()).digest()
        assert rules[f"{tag}-src"] == f"'sha256-{base64.b64encode(digest).decode()}'"
    assert rules["default-src"] == rules["frame-ancestors"] == rules["base-uri"] == "'none'"
    assert rules["connect-src"] == "'self'"
    assert [a.split("%")[0] for a in inline.addresses] == ["data:image/svg+xml,", "#prompt"]


def test_a_text_appears_as_it_is_made_and_can_be_stopped(page, models):
    engine = models[0].thread.engine
    page.fill("#prompt", PROMPT)
    page.fill("#s-max_tokens", 50)
    engine.pause_s = 0.03
    try:
        page.press("Enter", ctrl=True)
        page.wait("document.querySelectorAll('.tok').length > 3")
        assert page.js("document.querySelector('.busy .answer').textContent")
        page.press("Escape")
        page.wait("document.querySelector('.pane footer button')")
    finally:
        engine.pause_s = 0.0
    page.js("new Promise(requestAnimationFrame)")
    assert 3 < page.js("document.querySelectorAll('.tok').length") < 50
    assert "stopped" in page.js("document.querySelector('.pane header').textContent")
    assert page.js("document.querySelector('#stop').hidden")


def test_every_token_tells_its_probability_and_what_else_was_likely(page, site):
    page.fill("#prompt", PROMPT)
    page.fill("#s-max_tokens", 24)
    page.fill("#s-seed", 5)
    page.fill("#s-logprobs", 4)
    generate(page)
    (body,) = bodies(page)
    assert (body["prompt"], body["seed"], body["logprobs"]) == (PROMPT, 5, 4)
    (choice,) = asked_directly(site, body)
    told = choice["logprobs"]
    spans = page.js("[...document.querySelectorAll('.tok:not(.end)')].map(e => e.textContent)")
    assert "".join(spans) == choice["text"]
    assert "24 tokens" in page.js("document.querySelector('.figures').innerText")
    page.hover(".tok:nth-child(1)")
    rows = page.js("[...document.querySelectorAll('#tip tr')].map(r => r.cells[2].textContent)")
    first = max(told["top_logprobs"][0].values())
    assert len(rows) == len(told["top_logprobs"][0])
    assert float(rows[0].removesuffix(" %")) == pytest.approx(100 * math.exp(first), rel=0.06)
    page.js("document.querySelector('.answer').focus()")
    page.press("End")
    now = page.js("[...document.querySelectorAll('.tok')].findIndex(e => e.matches('.now'))")
    assert now == page.js("document.querySelectorAll('.tok').length") - 1
    assert "Likely:" in page.js("document.querySelector('#say').textContent")
    page.press("Escape")
    assert page.js("document.querySelector('#tip').hidden")


def test_a_stream_may_come_in_any_pieces_and_with_several_tokens_in_one(page):
    tokens = {
        "tokens": ["a", "bytes:\\xc2", "bytes:\\xa3", "😀"],
        "token_logprobs": [-0.5, -1.0, -1.5, -3.0],
        "top_logprobs": [{"a": -0.5}, {}, {}, {"x": -0.25, "😀": -3.0}],
        "text_offset": [0, 1, 1, 2],
    }
    choice = {"index": 0, "text": "a£😀", "logprobs": tokens, "finish_reason": "length"}
    chunk = json.dumps({"choices": [choice]}, ensure_ascii=False)
    frames = json.dumps(f"data: {chunk}\n\ndata: [DONE]\n\n")
    page.js(f"""void (window.fetch = async () => new Response(new ReadableStream({{start(out) {{
        const all = new TextEncoder().encode({frames});
        for (const byte of all) out.enqueue(new Uint8Array([byte]));
        out.close(); }} }})))""")
    generate(page)
    look = "[...document.querySelectorAll('.tok')].map(e => [e.textContent, e.className])"
    # e^-0.5, e^-2.5 of both bytes together, e^-3
    assert page.js(look) == [["a", "tok h1"], ["£", "tok h3"], ["😀", "tok h4"]]
    page.hover(".tok:nth-child(3)")
    rows = page.js("[...document.querySelectorAll('#tip tr')].map(r => r.innerText.split('\\t'))")
    assert [(r[0], r[-1]) for r in rows] == [("x", "77.9 %"), ("😀", "5.0 %")]


def test_beams_stand_side_by_side_with_their_scores(page, site):
    choose(page, "beam")
    page.fill("#prompt", "abc")
    page.fill("#s-num_beams", 3)
    page.fill("#s-max_tokens", 12)
    page.fill("#s-length_penalty", 0.5)
    generate(page)
    (body,) = bodies(page)
    assert (body["num_beams"], body["n"], body["length_penalty"]) == (3, 3, 0.5)
    beams = asked_directly(site, body)
    assert texts(page) == [b["text"] for b in beams]
    notes = page.js("[...document.querySelectorAll('.pane header span')].map(e => e.textContent)")
    assert [n.split(" · ")[0] for n in notes] == [f"score {b['score']:.3f}" for b in beams]


def test_several_answers_grow_side_by_side(page, site):
    page.fill("#prompt", "abc")
    page.fill("#s-max_tokens", 10)
    page.fill("#s-n", 3)
    page.js("document.querySelector('#more').open = true")
    page.click("#s-ignore_eos")
    generate(page)
    (body,) = bodies(page)
    assert texts(page) == [c["text"] for c in asked_directly(site, body)]
    assert len(set(texts(page))) == 3


def test_contrast_is_compared_with_none_from_the_same_seed(page, site):
    page.fill("#prompt", "abc")
    page.fill("#s-max_tokens", 20)
    page.js("document.querySelector('#contrast').open = true")
    page.click("#s-contrastive")
    page.fill("#s-beta", 1.5)
    page.click("#s-compare")
    generate(page)
    on, off = sorted(bodies(page), key=lambda b: "contrastive" not in b)
    assert on.pop("contrastive") == {"alpha": 0.1, "beta": 1.5, "temperature": 1}
    assert on == off
    assert isinstance(on["seed"], int)
    (without,) = asked_directly(site, off)
    (with_it,) = asked_directly(site, {**on, "contrastive": {"beta": 1.5}})
    ends = ".answer .end"
    page.js(f"document.querySelectorAll('{ends}').forEach(e => e.remove())")
    assert texts(page) == [with_it["text"], without["text"]]
    assert with_it["text"] != without["text"]
    assert page.js("document.querySelectorAll('.differs').length") == 2


def test_contrastive_search_and_greedy_ask_for_what_they_are(page, site):
    page.fill("#prompt", "abc")
    page.fill("#s-max_tokens", 6)
    choose(page, "search")
    generate(page)
    choose(page, "greedy")
    generate(page)
    search, greedy = bodies(page)
    assert (search["penalty_alpha"], search["top_k"]) == (0.6, 4)
    assert greedy["temperature"] == 0
    assert "seed" not in search | greedy
    (choice,) = asked_directly(site, greedy)
    assert page.js("document.querySelector('.answer').textContent").startswith(choice["text"])


def test_a_gap_is_filled_step_by_step_and_can_be_looked_at_again(page, site):
    page.fill("#model", "filler")
    page.fill("#prompt", "before £")
    page.fill("#suffix", "after")
    page.fill("#s-max_tokens", 12)
    generate(page)
    (body,) = bodies(page)
    assert (body["suffix"], body["max_tokens"], "steps" in body) == ("after", 12, False)
    (choice,) = asked_directly(site, body, "/v1/infill")
    shown = texts(page)[0]
    assert shown == choice["text"]
    last = int(page.js("document.querySelector('.replay input').max"))
    assert 2 <= last <= 6  # the model's own steps; on a busy machine two come as one piece
    left = []
    for step in range(last + 1):
        page.fill(".replay input", step)
        left.append(texts(page)[0].count("░"))
    frames = httpx.post(site + "/v1/infill", json=body, timeout=60).text.split("\n\n")
    choices = [c for f in frames if f[6:7] == "{" for c in json.loads(f[6:])["choices"]]
    told = [12, *(c["so_far"].count("░") for c in choices)]
    assert left == told if len(told) == len(left) else left == sorted(left, reverse=True)
    assert (left[0], left[-1]) == (12, 0)
    assert texts(page)[0] == shown
    assert page.js("document.querySelector('#tip').hidden")


def test_what_the_server_refuses_is_shown_as_it_says_it(page, site):
    page.fill("#prompt", "abc")
    page.fill("#s-max_tokens", 20)
    page.fill("#s-top_p", 7)
    generate(page)
    (body,) = bodies(page)
    error = httpx.post(site + "/v1/completions", json=body).json()["error"]
    assert page.js("document.querySelector('.alert p').textContent") == error["message"]
    assert page.js("document.querySelector('.alert b').textContent") == f"400 · {error['code']}"
    assert page.js("document.querySelector('#s-top_p').getAttribute('aria-invalid')") == "true"
    page.fill("#s-top_p", 1)
    generate(page)
    assert not page.js("document.querySelector('.alert')")
    assert not page.js("document.querySelector('[aria-invalid]')")


def test_a_stream_that_breaks_keeps_its_text_and_says_why(browser, models):
    engine = models[0].thread.engine
    backend = Backend(
        models=models, limits=LimitsConfig(request_timeout_s=0.5), gate=Gate(LiveKeys())
    )
    with serving(make_app(backend)) as url:
        open_page(browser, url)
        browser.fill("#prompt", "abc")
        browser.fill("#s-max_tokens", 90)
        engine.pause_s = 0.03
        try:
            generate(browser)
        finally:
            engine.pause_s = 0.0
        assert browser.js("document.querySelectorAll('.tok').length") > 3
        assert "broken off" in browser.js("document.querySelector('.pane header').textContent")
        assert browser.js("document.querySelector('.alert b').textContent") == "deadline_exceeded"
        assert "0.5 s" in browser.js("document.querySelector('.alert p').textContent")
        check_quiet(browser, url)


def test_a_key_is_asked_for_and_goes_nowhere_but_into_the_header(browser, models, tmp_path):
    key, line = new_key("alice")
    (tmp_path / "keys").write_text(line + "\n")
    gate = Gate(LiveKeys(str(tmp_path / "keys")))
    backend = Backend(models=models, limits=LimitsConfig(), gate=gate)
    with serving(make_app(backend)) as url:
        open_page(browser, url)
        browser.wait("document.querySelector('#key').getAttribute('aria-invalid')")
        refused = httpx.get(url + "/v1/models").json()["error"]["message"]
        assert refused in browser.js("document.querySelector('#card').textContent")
        browser.fill("#key", key)
        browser.wait("document.querySelectorAll('#model option').length === 3")
        browser.fill("#prompt", "abc")
        generate(browser)
        assert browser.js("document.querySelectorAll('.tok').length")
        browser.click("#code")
        code = browser.js("document.querySelector('#snippet').textContent")
        assert "$XTDIST_API_KEY" in code
        assert key not in code
        kept = "JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])"
        assert key not in browser.js(kept)
        check_quiet(browser, url)
        assert not [b for b in bodies(browser) if key in json.dumps(b)]


def test_text_of_the_model_is_never_markup(page, site):
    page.fill("#prompt", HOSTILE)
    page.fill("#s-max_tokens", 50)
    page.js("document.querySelector('#more').open = true")
    page.fill("#s-form", "choice")
    page.fill("#s-form_text", HOSTILE)
    generate(page)
    spans = page.js("[...document.querySelectorAll('.tok:not(.end)')].map(e => e.textContent)")
    assert "".join(spans) == HOSTILE
    for number in (1, 11, 24):
        page.hover(f".tok:nth-child({number})")
    page.click("#code")
    page.click("#close")
    assert page.js("document.querySelectorAll('img, b:not(.figures b)').length") == 0
    assert page.js("typeof hacked") == "undefined"
    assert page.js("document.querySelectorAll('#model option')[1].value").startswith(HOSTILE)
    check_quiet(page, site)
    # And where the page's own code were wrong, the browser would not let it.
    attempt = "(() => { try { document.body.innerHTML = '<b>x' } catch (e) { return e.name } })()"
    assert page.js(attempt) == "TypeError"
    open_page(page, site)  # the browser has logged that


def test_the_code_that_it_gives_asks_for_the_same_answer(page, monkeypatch):
    page.fill("#prompt", PROMPT)
    page.fill("#s-max_tokens", 20)
    page.fill("#s-top_k", 12)
    page.js("document.querySelector('#more').open = true")
    page.fill("#s-stop", "zz'\\n\nq\"")
    generate(page)
    page.js("document.querySelectorAll('.answer .end').forEach(e => e.remove())")
    (text,) = texts(page)
    page.click("#code")
    page.click("input[value=python]")
    code = page.js("document.querySelector('#snippet').textContent")
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(code, "snippet", "exec"), {})
    assert said.getvalue() == text
    page.click("input[value=curl]")
    code = page.js("document.querySelector('#snippet').textContent")
    sent = subprocess.run(["bash", "-c", code], capture_output=True, timeout=60, check=True)
    frames = [json.loads(f[6:]) for f in sent.stdout.decode().split("\n\n") if f[6:7] == "{"]
    assert "".join(c["text"] for f in frames for c in f["choices"]) == text
    assert bodies(page)[0]["stop"] == ["zz'\n", 'q"']


@pytest.mark.parametrize("width", [360, 1280])
def test_every_control_has_a_name_and_nothing_is_wider_than_the_screen(page, width):
    page.call(
        "Emulation.setDeviceMetricsOverride",
        width=width,
        height=800,
        deviceScaleFactor=1,
        mobile=False,
    )
    try:
        page.js("document.querySelectorAll('details').forEach(d => { d.open = true })")
        page.fill("#prompt", "x" * 60)
        page.fill("#s-max_tokens", 20)
        page.js("document.querySelector('#s-contrastive').click()")
        page.js("document.querySelector('#s-compare').click()")
        generate(page)
        nodes = page.call("Accessibility.getFullAXTree")["nodes"]
        roles = {"button", "textbox", "spinbutton", "checkbox", "radio", "combobox", "slider"}
        controls = [n for n in nodes if n.get("role", {}).get("value") in roles]
        assert len(controls) > 40
        assert not [n for n in controls if not n.get("name", {}).get("value")]
        assert page.js("document.documentElement.scrollWidth") <= width
    finally:
        page.call("Emulation.clearDeviceMetricsOverride")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_on_every_colour(page, scheme):
    media = {"name": "prefers-color-scheme", "value": scheme}
    page.call("Emulation.setEmulatedMedia", features=[media])
    page.fill("#prompt", "abc")
    page.fill("#s-max_tokens", 4)
    generate(page)
    look = """(() => { const e = document.querySelector('.tok'), found = [];
        for (const [kind, on] of [['tok h0', 'pane'], ['tok h1'], ['tok h2'], ['tok h3'],
                                  ['tok h4'], ['tok h5'], ['blank'], ['given', 'pane']]) {
            e.className = kind;
            const back = getComputedStyle(on ? document.querySelector('.' + on) : e);
            found.push([getComputedStyle(e).color, back.backgroundColor]);
        }
        return found; })()"""
    for ink, paper in page.js(look):
        light, dark = sorted((luminance(ink), luminance(paper)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, paper)
