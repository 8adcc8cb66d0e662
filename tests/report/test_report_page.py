"""Pages of runs: what they say is what the folder holds, and nothing in it can run."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_runs import HOSTILE, give_config, losses

from xtdist.cli.main import main
from xtdist.report import try_report, write_report
from xtdist.track.environment import without_secrets
from xtdist.track.plots import loss_html


class Parsed(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[str, str] = {}
        self.text = ""
        self._at = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.data = json.loads(self.inside["data"])

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._at = dict(attrs).get("id") or tag

    def handle_endtag(self, tag):
        self._at = ""
        self.text += " "

    def handle_data(self, data):
        self.inside[self._at] = self.inside.get(self._at, "") + data
        if self._at not in ("script", "style", "data"):
            self.text += data


def said(page: Parsed) -> str:
    return " ".join(page.text.split())


def recorded(run: Path, metric: str) -> dict[int, float | str]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row[metric] for row in rows if metric in row}


def test_a_page_holds_what_was_recorded_and_says_where_it_is_broken(run, tmp_path):
    series = Parsed(loss_html([run], tmp_path / "p.html")).data["runs"][0]["series"]
    truth = recorded(run, "train/loss")
    train = series["train/loss"]
    assert train["x"] == list(truth)
    for value, told in zip(truth.values(), train["y"], strict=True):
        assert told is None if value == "nan" else told == pytest.approx(value, rel=1e-5)
    assert train["k"] == [512.0 * step for step in truth]
    parts = dict(zip(train["x"], train["g"], strict=True))
    assert parts[40] == parts[1] != parts[50] == parts[80]
    tries = dict(zip(train["x"], train["a"], strict=True))
    assert (tries[30], tries[31]) == (0, 1)
    times = dict(zip(train["x"], train["t"], strict=True))
    assert (times[30], times[31]) == (40.0, 141.0)
    assert series["eval/valid/loss"]["x"] == [20, 40, 60, 80]
    assert "s" not in series["eval/valid/loss"]


def test_restarts_and_interventions_are_marked_where_they_were(run, tmp_path):
    (data,) = Parsed(loss_html([run], tmp_path / "p.html")).data["runs"]
    assert [(m["kind"], m["step"], m["tokens"], m["time"]) for m in data["marks"]] == [
        ("restart", 30, 512.0 * 30, 130.0),
        ("intervention", 60, 512.0 * 60, 170.0),
    ]
    assert "worker killed (rank 1 ended)" in data["marks"][0]["text"]


@pytest.mark.parametrize("make", ["plot", "report"])
def test_a_page_needs_nothing_and_lets_nothing_in(run, tmp_path, make):
    give_config(run, name=HOSTILE)
    out = tmp_path / "page.html"
    page = Parsed(loss_html([run], out) if make == "plot" else write_report(run, out))
    policy = next(a["content"] for _, a in page.tags if "http-equiv" in a)
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    for tag in ("style", "script"):
        digest = hashlib.sha256(page.inside[tag].encode()).digest()
        assert rules[f"{tag}-src"] == f"'sha256-{base64.b64encode(digest).decode()}'"
    assert not [
        a for _, a in page.tags if {"src", "srcset", "style", "onerror", "onclick"} & set(a)
    ]
    assert all(a["href"].startswith("#") for _, a in page.tags if "href" in a)
    assert "img" not in {tag for tag, _ in page.tags}
    text = out.read_text()
    own = text.replace("http://www.w3.org/2000/svg", "")  # the name of SVG, never fetched
    assert not re.search(r"https?://|url\((?!#)|@import", own)
    assert HOSTILE in (
        said(page) if make == "report" else json.dumps(page.data).replace('\\"', '"')
    )


def test_a_report_says_what_the_run_is_and_what_became_of_it(run, tmp_path):
    give_config(run)
    page = Parsed(write_report(run, tmp_path / "r.html"))
    text = said(page)
    assert "finished at step 80 of 80" in text
    assert f"{losses(80)[-1]:.5g}" in text
    assert "attempt 1 ended: worker killed rank 1 ended" in text
    assert "steps whose result was kept 40s 88.9 %" in text
    assert "40,960; epochs: not known" in text
    assert "model.dim 16" in text
    assert "Missing: evaluation.json is not in the folder" in text
    bars = [a for t, a in page.tags if t == "rect" and a.get("height") == "30"]
    assert sum(float(a["width"]) for a in bars) == pytest.approx(1000, abs=0.01)


def _killed(run: Path) -> None:
    first = (run / "attempts.jsonl").read_text().splitlines()[0]
    (run / "attempts.jsonl").write_text(first + "\n{torn")


def _failed(run: Path) -> None:
    rows = (run / "attempts.jsonl").read_text().splitlines()[:2]
    (run / "attempts.jsonl").write_text("\n".join(rows) + "\n")


def _only_config(run: Path) -> None:
    for path in run.iterdir():
        path.unlink()
    give_config(run)


def _remote(run: Path) -> None:
    give_config(run, checkpoint={"url": "s3://nowhere/at-all"})


def _broken_config(run: Path) -> None:
    (run / "config.yaml").write_text("model: [")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_killed, "killed or cut off: step 80"),
        (_failed, "failed at step 80 of 80: worker killed: rank 1 ended"),
        (_only_config, "Missing: no loss has been recorded"),
        (_remote, "Missing: they lie at s3://nowhere/at-all/run, which was not looked at"),
        (_broken_config, "Missing: config.yaml can't be read"),
    ],
)
def test_a_run_of_any_state_has_a_report(run, tmp_path, change, words):
    give_config(run)
    change(run)
    assert words in said(Parsed(write_report(run, tmp_path / "r.html", remote=False)))


def test_a_report_that_can_not_be_made_fails_no_run(tmp_path, caplog):
    assert try_report(tmp_path) is None
    assert "no report was written" in caplog.text


@pytest.mark.parametrize("verb", ["plot", "report"])
def test_a_folder_that_is_no_run_is_one_message(tmp_path, capsys, verb):
    assert main([verb, str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path}: ")
    assert len(error.splitlines()) == 1


def test_what_is_secret_in_a_command_is_left_out():
    told = without_secrets(
        "train a.yaml x=https://me:pw@host/x api_key=k1 --token t2 batch.tokens_per_step=512"
    )
    assert (
        told
        == "train a.yaml x=https://***@host/x api_key=*** --token *** batch.tokens_per_step=512"
    )


def errors_of(browser) -> list[dict]:
    bad = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
    return [e for e in browser.events if e["method"] in bad]


def test_a_browser_draws_the_page_and_its_switches_work(run, tmp_path, browser):
    give_config(run, name=HOSTILE)
    other = tmp_path / "other"
    other.mkdir()
    (other / "metrics.jsonl").write_bytes((run / "metrics.jsonl").read_bytes())
    browser.open(loss_html([run, other], tmp_path / "plot.html").as_uri())
    browser.wait("document.querySelectorAll('#charts .panel path').length")
    count = (
        "document.querySelectorAll('#charts .panel:first-child path[stroke-width=\"1.8\"]').length"
    )
    ticks = "[...document.querySelectorAll('#charts svg text')].map(e => e.textContent).join()"
    assert browser.js(count) == 4
    assert browser.js("document.querySelectorAll('.broken').length") == 2
    along_steps = browser.js(ticks)
    browser.js("document.querySelector('#runs button').click()")
    assert browser.js(count) == 2
    browser.js("document.querySelector('#runs button').click()")
    for axis in ("tokens", "time"):
        browser.js(f"document.querySelector('input[value={axis}]').click()")
        assert browser.js(ticks) != along_steps
    before = browser.js(ticks)
    browser.js("document.querySelector('#log').click()")
    assert browser.js(ticks) != before
    browser.js("document.querySelector('#charts .panel:first-child > svg').focus()")
    browser.press("ArrowRight")
    assert "11 s" in browser.js("document.querySelector('#told').textContent")
    browser.open(write_report(run, tmp_path / "report.html").as_uri())
    browser.wait("document.querySelectorAll('#charts .panel path').length")
    assert browser.js("typeof hacked") == "undefined"
    assert browser.js("document.querySelector('h1').textContent") == HOSTILE
    assert errors_of(browser) == []
