"""xtdist prepare CONFIG [key.path=value ...]"""

from __future__ import annotations

import argparse
from contextlib import ExitStack

from xtdist.config import load
from xtdist.connect import connect, disconnect
from xtdist.data import PrepareConfig, PrepareReport, Progress, prepare
from xtdist.track.console import progress_bar


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="YAML of the dataset, as jobs/configs/prepare_demo.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")


def run(args: argparse.Namespace) -> int:
    config = load(PrepareConfig, args.config, args.overrides).config
    with ExitStack() as open_bar:
        bars = {}

        def show(now: Progress) -> None:
            """One bar per stage, in MB."""
            if now.stage not in bars:
                open_bar.close()
                bar = progress_bar(now.total_bytes or None, "B", label=now.stage)
                bars[now.stage] = open_bar.enter_context(bar)
            bars[now.stage].update(now.done_bytes)

        started = config.runner.kind == "ray" and connect()
        try:
            report = prepare(config, progress=show)
        finally:
            if started:
                disconnect()
    print(_summary(report))
    return 0


def _summary(report: PrepareReport) -> str:
    verb = "found, nothing to do" if report.reused else f"made in {report.seconds:.1f} s"
    rows = [f"dataset {report.dataset_id[:12]} in {report.folder}: {verb}"]
    for name, s in report.splits.items():
        rows.append(
            f"  {name:<6} {s.documents:>7,} documents {s.tokens:>12,} tokens "
            f"{s.text_bytes / 1e6:>8.2f} MB in {s.shards} shards "
            f"({s.text_bytes / max(s.tokens, 1):.2f} bytes a token)"
        )
    known = f"{report.known} known, " if report.known else ""
    rows.append(
        f"  left out: {report.duplicates} duplicates, {known}{report.empty} empty, "
        f"{report.unreadable} unreadable; vocabulary {report.vocab_size}"
    )
    rows.append(f"  more in {report.folder}/report.json, lengths.png and inputs.jsonl")
    return "\n".join(rows)
