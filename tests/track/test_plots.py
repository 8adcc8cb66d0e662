import html.parser
import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from xtdist.config import DataError
from xtdist.track import Series, Tracker, loss_html, loss_png
from xtdist.track.plots import smooth, thin


def make_run(folder: Path, steps: int = 60, *, seed: int = 0) -> Path:
    rng = random.Random(seed)
    with Tracker(folder) as tracker:
        for step in range(1, steps + 1):
            loss = math.nan if step == 7 else 2 + 6 * math.exp(-step / 20) + rng.gauss(0, 0.1)
            tracker.log(step, {"train/loss": loss, "train/lr": 1e-3, "train/grad_norm": 1.0})
            if step % 20 == 0:
                tracker.log(step, {"eval/valid/loss": loss + 0.1, "eval/valid/bits_per_byte": 1.5})
    return folder


class Page(html.parser.HTMLParser):
    """Collects what a browser would load, the title, the headline and the data."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.text: dict[str, str] = {}
        self._in = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.data = json.loads(self.text["data"])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.loads += [str(v) for k, v in attrs if k in ("src", "href", "srcset")]
        self._in = named.get("id") or tag

    def handle_data(self, data: str) -> None:
        self.text[self._in] = self.text.get(self._in, "") + data

    def handle_endtag(self, tag: str) -> None:
        self._in = ""


def test_losses_of_different_tokens_are_not_compared_without_a_word(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name) for name in ("a", "b")]
    note = "tokenizers differ: compare bits per byte"
    for texts, said in ((("x", "x"), False), (("x", "y"), True)):
        for run, text in zip(runs, texts, strict=True):
            (run / "tokenizer.json").write_text(text)
        page = loss_html(runs, tmp_path / "plot.html").read_text(encoding="utf-8")
        assert (note in page) == said


def test_the_png_is_a_picture_with_a_line_in_each_panel(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    path = loss_png([run], tmp_path / "plots" / "loss.png")
    pixels = imread(path)[..., :3]
    height, width, _ = pixels.shape
    assert (height, width) == (1050, 1500)
    blue = np.abs(pixels - np.array([0x32, 0x66, 0xC9]) / 255).sum(-1) < 0.3
    orange = np.abs(pixels - np.array([0xD9, 0x64, 0x2A]) / 255).sum(-1) < 0.3
    left = np.arange(width) < 0.62 * width
    top = np.arange(height) < 0.62 * height
    right = np.arange(width) > 0.7 * width
    assert blue[np.ix_(top, left)].sum() > 500
    assert orange[np.ix_(top, left)].sum() > 200
    assert blue[: height // 3, right].any()
    assert blue[height // 3 : int(0.62 * height), right].any()
    assert blue[~top][:, : width // 3].any()
    assert not orange[:, right].any()


def test_the_page_holds_every_metric_of_every_run_and_loads_nothing(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, seed=i) for i, name in enumerate(["one", "two"])]
    page = Page(loss_html(runs, tmp_path / "loss.html"))
    assert page.loads == []
    assert "@import" not in page.text["style"]
    assert "url(" not in page.text["style"]
    assert [run["name"] for run in page.data["runs"]] == ["one", "two"]
    train = page.data["runs"][0]["series"]["train/loss"]
    assert train["x"] == list(range(1, 61))
    assert train["y"][6] is None
    assert train["y"][0] == pytest.approx(2 + 6 * math.exp(-1 / 20), abs=0.5)
    assert [[m["name"] for m in p["metrics"]] for p in page.data["panels"]] == [
        ["train/loss", "eval/valid/loss"],
        ["eval/valid/bits_per_byte"],
        ["train/lr"],
        ["train/grad_norm"],
    ]


def test_a_hostile_run_name_stays_text(tmp_path: Path) -> None:
    name = "_$\\frac{$<b>&'\"{{data}}{% x %}<!--<script>alert(1)<"
    run = make_run(tmp_path / name)
    page = Page(loss_html([run], tmp_path / "loss.html"))
    assert page.data["runs"][0]["name"] == name
    assert page.text["h1"] == page.text["title"] == name
    loss_png([run, run], tmp_path / "loss.png")


def test_runs_of_any_shape_can_be_drawn(tmp_path: Path) -> None:
    for i, records in enumerate(
        [
            [(1, {"train/loss": 3.0})],
            [(5, {"perf/tokens_per_s": 3.0})],
            [(1, {"train/loss": math.nan}), (2, {"train/loss": math.inf})],
            [(s, {"train/loss": 2.0}) for s in range(1, 40)],
            [(1, {"eval/valid/loss": 1.0})],
        ]
    ):
        with Tracker(tmp_path / str(i)) as tracker:
            for step, values in records:
                tracker.log(step, values)
        loss_png([tmp_path / str(i)], tmp_path / "loss.png")
        assert Page(loss_html([tmp_path / str(i)], tmp_path / "loss.html")).data["runs"]


def test_a_folder_without_metrics_is_refused_by_name(tmp_path: Path) -> None:
    for draw in (loss_png, loss_html):
        with pytest.raises(DataError, match=r"gone/metrics\.jsonl: no metrics"):
            draw([tmp_path / "gone"], tmp_path / "out")
        with pytest.raises(DataError, match="no run to plot"):
            draw([], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_thinning_keeps_the_ends_and_every_spike_and_gap() -> None:
    n = 100_000
    values = [math.sin(i / 5000) for i in range(n)]
    values[12_345], values[54_321], values[77_777] = 50.0, -50.0, math.nan
    values[88_888] = math.inf
    series = thin(Series(steps=list(range(n)), values=values, times=[0.0] * n), 2000)
    assert len(series.steps) <= 2000
    assert series.steps == sorted(set(series.steps))
    assert {0, 12_345, 54_321, 77_777, 88_888, n - 1} <= set(series.steps)
    short = Series(steps=[1, 2], values=[1.0, 2.0], times=[0.0, 0.0])
    assert thin(short, 2000) is short


def test_smoothing_keeps_a_constant_lags_little_and_averages_noise() -> None:
    assert smooth([3.0] * 50, 20) == pytest.approx([3.0] * 50)
    rng = np.random.default_rng(0)
    noise = smooth(list(rng.normal(size=5000)), 100)
    assert np.std(noise[1000:]) == pytest.approx(1 / math.sqrt(100), rel=0.3)
    steep = [math.exp(-i / 50) for i in range(500)]
    lag = max(abs(a - b) for a, b in zip(smooth(steep, 100), steep, strict=True))
    assert lag < 0.08
    gap = smooth([1.0, math.nan, math.inf, 1.0], 5)
    assert [math.isnan(v) for v in gap] == [False, True, True, False]
