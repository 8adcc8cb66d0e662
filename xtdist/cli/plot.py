"""xtdist plot RUN [RUN ...] [--output FOLDER]"""

from __future__ import annotations

import argparse
from pathlib import Path

from xtdist.config import ConfigError
from xtdist.track import read_goodput
from xtdist.track.curves import read_runs
from xtdist.track.plots import loss_html, loss_png


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", help="run folders; several are overlaid")
    parser.add_argument(
        "--output", help="folder of loss.png and loss.html (default: the first run)"
    )


def run(args: argparse.Namespace) -> int:
    runs = [Path(r) for r in args.runs]
    for folder in runs:
        if not (folder / "metrics.jsonl").is_file():
            raise ConfigError(f"{folder}: no metrics.jsonl there; give the folder of a run")
    read_runs(runs)
    output = Path(args.output) if args.output else runs[0]
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ConfigError(
            f"--output: {output} can't be a folder ({e.strerror}); give another"
        ) from None
    print(loss_png(runs, output / "loss.png"))
    print(loss_html(runs, output / "loss.html"))
    for folder in runs:
        goodput = read_goodput(folder)
        if goodput.elapsed:
            print(f"{folder.resolve().name}: {goodput.text()}")
    return 0
