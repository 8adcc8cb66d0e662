"""Folders as runs leave them, and a browser to look at pages with."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from report_runs import HOSTILE, lines, losses

SERVE = Path(__file__).parents[1] / "serve" / "chromium.py"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """One that was killed once and went on; with an intervention, a NaN and a hole in the log."""
    folder = tmp_path / "run"
    folder.mkdir()
    t0 = 1_700_000_000.0
    rows = []
    for step, loss in enumerate(losses(80), 1):
        if 40 < step < 50:
            continue
        at = t0 + 10 + step + (100 if step > 30 else 0)
        shown = "nan" if step == 20 else loss
        rows.append({"step": step, "time": at, "train/loss": shown, "train/lr": 1e-3})
        rows[-1] |= {"train/tokens": 512.0 * step, "perf/tokens_per_s": 500.0 + step}
        if step % 20 == 0:
            rows.append({"step": step, "time": at, "eval/valid/loss": loss + 0.1})
            rows[-1]["eval/valid/bits_per_byte"] = loss
    lines(folder / "metrics.jsonl", rows)
    attempts = [
        {"event": "started", "attempt": 1, "time": t0, "workers": 2, "step": 0},
        {"event": "ended", "attempt": 1, "time": t0 + 45, "seconds": 45, "kind": "worker killed"}
        | {"step": 30, "text": "rank 1 ended", "ranks": [1]},
        {"event": "started", "attempt": 2, "time": t0 + 130, "workers": 1, "step": 30},
        {"event": "ended", "attempt": 2, "time": t0 + 200, "seconds": 70, "kind": "done"}
        | {"step": 80, "text": "", "ranks": []},
    ]
    lines(folder / "attempts.jsonl", attempts)
    skip = {"what": "skip", "why": "spike", "step": 60, "data_step": 60, "text": HOSTILE}
    lines(folder / "interventions.jsonl", [skip | {"time": t0 + 170}])
    lines(folder / "samples.jsonl", [{"step": 40, "prompt": "a", "text": HOSTILE}])
    spent = {"productive": 40.0, "data_wait": 5.0}
    goodput = [
        {"event": "start", "time": t0, "step": 0, "attempt": True},
        {"event": "spent", "time": t0 + 45, "since": t0, "step": 30, "first": 0, "seconds": spent},
    ]
    lines(folder / "goodput.jsonl", goodput)
    return folder


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    found = importlib.util.spec_from_file_location("report_chromium", SERVE)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    program = module.find_chromium()
    if program is None:
        pytest.skip("there is no Chromium on this machine")
    opened = module.Browser(program, tmp_path_factory.mktemp("chromium"))
    yield opened
    opened.close()
