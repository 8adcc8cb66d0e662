"""What became of a run: scores, checkpoints, samples, time, events, files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from xtdist.checkpoint import CheckpointStore
from xtdist.checkpoint.naming import step_of
from xtdist.checkpoint.storage import place_of
from xtdist.config import UserError, from_mapping
from xtdist.data.storage.location import is_remote
from xtdist.evaluate.report import Report
from xtdist.report.folder import Missing, RunFolder, moment
from xtdist.track.environment import without_secrets
from xtdist.track.events import number, read_rows
from xtdist.track.goodput import BUCKETS, read_goodput
from xtdist.track.text import duration

MOST_SAMPLES = 60
MOST_FILES = 200
BUCKET_WORDS = {
    "productive": "steps whose result was kept",
    "wasted_progress": "steps that were done again after a restart",
    "program_start": "processes, libraries, model and data, until the first step",
    "data_wait": "waiting for data",
    "checkpoint_save": "saving checkpoints, as far as steps waited",
    "checkpoint_restore": "loading a checkpoint",
    "evaluation": "validation and samples",
    "infrastructure_recovery": "from an attempt's last sign to the next one's start",
    "other": "between steps, and between a stop and the next start",
}


def losses(folder: RunFolder) -> list[dict[str, Any]]:
    """The last value of each loss, and what it means."""
    rows = []
    for name in sorted(folder.run.series, key=lambda n: (n != "train/loss", n)):
        if name == "train/loss" or (name.startswith("eval/") and name.endswith("loss")):
            last = folder.last(name)
            assert last is not None
            bits = folder.last(name[: -len("loss")] + "bits_per_byte")
            rows.append(
                {
                    "name": name,
                    "step": last[1],
                    "loss": last[0],
                    "perplexity": math.exp(last[0]) if last[0] < 700 else math.inf,
                    "bits": bits[0] if bits and bits[1] == last[1] else None,
                }
            )
    return rows


def evaluation(folder: RunFolder) -> dict[str, Any] | Missing:
    """The scores beside the yardsticks', and a sentence about each."""
    report = folder.read_json("evaluation.json", lambda tree: from_mapping(Report, tree))
    if isinstance(report, Missing):
        return report
    bound = report.objective != "autoregressive"
    bits = report.model.bits_per_byte
    yards = (("bigram model", report.bigram.bits_per_byte), ("xz -9e", report.xz_bits_per_byte))
    told = [f"{'below' if bits < other else 'not below'} the {name}'s" for name, other in yards]
    rows = [
        (f"model at step {report.step}", report.model.loss, report.model.perplexity, bits),
        ("bigram model", report.bigram.loss, report.bigram.perplexity, yards[0][1]),
        ("xz -9e", None, None, report.xz_bits_per_byte),
    ]
    return {
        "rows": rows,
        "tokens": report.model.tokens,
        "dataset": report.dataset,
        "seq_len": report.seq_len,
        "bound": bound,
        "meaning": f"In bits per byte the model is {' and '.join(told)}.",
    }


def checkpoints(folder: RunFolder, *, remote: bool) -> dict[str, Any] | Missing:
    """What lies where they are kept, newest first, with what each weighs and why it stays."""
    spec = folder.spec
    url = None if isinstance(spec, Missing) else spec.checkpoint.url
    place = place_of(url, folder.path)
    shown = without_secrets(place.partition("?")[0])
    if is_remote(place) and not remote:
        return Missing(f"they lie at {shown}, which was not looked at")
    try:
        store = CheckpointStore(place)
        names = store.names()
    except (UserError, OSError) as e:
        return Missing(f"{shown} can't be read: {without_secrets(str(e))[:200]}")
    if not names:
        return Missing(f"none at {shown}")
    rows = [_checkpoint(store, name) for name in names]
    rated = [row for row in rows if row.get("metric") is not None]
    if not isinstance(spec, Missing) and rated:
        lower = spec.checkpoint.retention.lower_is_better
        best = (min if lower else max)(rated, key=lambda row: row["metric"])
        best["role"] = f"best by {spec.checkpoint.metric}"
    rows[-1]["role"] = ", ".join(filter(None, ("newest", rows[-1]["role"])))
    keep = None
    if not isinstance(spec, Missing):
        c = spec.checkpoint
        keep = f"the newest {c.keep}, the best {c.keep_best} by {c.metric}" + (
            f", every {c.keep_every} steps" if c.keep_every else ""
        )
    return {"place": shown, "rows": rows[::-1], "keep": keep}


def _checkpoint(store: CheckpointStore, name: str) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name, "step": step_of(name), "role": "", "metric": None}
    try:
        manifest = store.manifest(name)
    except UserError as e:
        return row | {"problem": without_secrets(str(e))[:200]}
    metric = number(manifest.meta.get("metric"), math.nan)
    return row | {
        "bytes": sum(entry.bytes for entry in manifest.files.values()),
        "metric": None if math.isnan(metric) else metric,
        "environment": manifest.meta.get("environment"),
    }


def samples(folder: RunFolder) -> dict[str, Any] | Missing:
    """The texts by step, newest first."""
    rows = [
        {k: row.get(k) for k in ("step", "prompt", "text")}
        for row in read_rows(folder.path / "samples.jsonl")
    ]
    if rows:
        return {"rows": rows[::-1][:MOST_SAMPLES], "count": len(rows)}
    asked = None if isinstance(folder.spec, Missing) else folder.spec.loop.sample_prompts
    return Missing("none were asked for (loop.sample_prompts)" if asked == () else "none yet")


def goodput(folder: RunFolder) -> dict[str, Any] | Missing:
    """Where the time went, over all attempts. ``at`` and ``share`` are in percent."""
    found = read_goodput(folder.path)
    if not found.elapsed:
        return Missing("goodput.jsonl is not in the folder, or empty")
    rows, at = [], 0.0
    for bucket in BUCKETS:
        share = 100 * found.seconds[bucket] / found.elapsed
        words = {"name": bucket, "words": BUCKET_WORDS[bucket]}
        time = duration(found.seconds[bucket]) if found.seconds[bucket] >= 0.5 else "< 1s"
        time = time if share else "-"
        rows.append(
            {**words, "seconds": found.seconds[bucket], "time": time, "at": at, "share": share}
        )
        at += share
    return {"rows": rows, "share": 100 * found.share, "elapsed": duration(found.elapsed)}


def attempts(folder: RunFolder) -> list[dict[str, Any]]:
    """A row for each start of the workers and how it ended."""
    rows: dict[Any, dict[str, Any]] = {}
    for row in folder.attempts:
        mine = rows.setdefault(str(row.get("attempt")), {"number": row.get("attempt")})
        if row.get("event") == "started":
            mine |= {"start": moment(number(row.get("time"))), "workers": row.get("workers")}
            mine["first"] = row.get("step")
        else:
            took = duration(number(row.get("seconds")))
            mine |= {"last": row.get("step"), "took": took, "kind": row.get("kind")}
            mine["text"] = without_secrets(str(row.get("text") or ""))
    return list(rows.values())


def timeline(folder: RunFolder) -> list[dict[str, Any]]:
    """Restarts, interventions, failures and notes by time."""
    rows: list[dict[str, Any]] = [
        {"time": m.time, "step": m.step, "kind": m.kind, "text": m.text} for m in folder.run.marks
    ]
    for row in folder.attempts:
        if row.get("event") == "ended":
            bad = row.get("kind") not in ("done", "stopped")
            text = f"attempt {row.get('attempt')} ended: {row.get('kind')} {row.get('text') or ''}"
            kind = "failure" if bad else "end"
            rows.append({"time": number(row.get("time")), "step": row.get("step"), "kind": kind})
            rows[-1]["text"] = text.strip()
    for row in read_rows(folder.path / "notes.jsonl"):
        rows.append({"time": number(row.get("time")), "step": row.get("step"), "kind": "note"})
        rows[-1]["text"] = str(row.get("text"))
    rows.sort(key=lambda row: row["time"])
    return [r | {"when": moment(r["time"]), "text": without_secrets(r["text"])} for r in rows]


def files(folder: RunFolder) -> list[tuple[str, int, int]]:
    """Name, number of files and bytes of what lies in the folder."""
    rows = []
    try:
        found = sorted(p for p in folder.path.iterdir() if not p.name.startswith("."))
    except OSError:
        return []
    for path in found[:MOST_FILES]:
        inside = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
        rows.append((path.name + "/" * path.is_dir(), len(inside), sum(map(_size, inside))))
    return rows


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
