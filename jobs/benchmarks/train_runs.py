"""The runs that the training benchmarks start: their configs, their processes, their records."""

from __future__ import annotations

import json
import math
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import train_bare
import yaml

from xtdist.config import from_mapping
from xtdist.data import ByteTokenizerConfig, FilesSource, PrepareConfig, load_tokenizer, prepare
from xtdist.train import RunSpec, fit_to_data

WARM_STEPS = 5
TIMEOUT_S = 900.0
FOREIGN = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")
WORDS = ["def", "return", "class", "self", "for", "in", "None", "x", "y", "0", "(", ")", ":", "="]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A model of the Llama kind on bytes, and the length of its sequences."""

    dim: int
    depth: int
    seq_len: int

    def tree(self) -> dict[str, Any]:
        """The config's parts of it."""
        model = {
            "dim": self.dim,
            "depth": self.depth,
            "heads": max(self.dim // 64, 1),
            "attention": {"dim_head": min(self.dim, 64)},
            "position": {"kind": "rotary"},
            "norm": {"kind": "rmsnorm"},
            "feedforward": {"kind": "glu"},
            "tie_embedding": True,
        }
        return {"model": model, "data": {"seq_len": self.seq_len}}


SMALL = Shape(dim=256, depth=6, seq_len=256)
LARGE = Shape(dim=512, depth=6, seq_len=128)


@dataclass(frozen=True, kw_only=True)
class Place:
    """A folder with a dataset, for runs; ``step_s``: about what a step of one worker shall take,
    None: it has one sequence, however fast that is."""

    folder: Path
    step_s: float | None

    @property
    def dataset(self) -> Path:
        return self.folder / "dataset"

    def make_dataset(self, *, documents: int) -> None:
        """Random words as bytes, the same every time."""
        rng = np.random.default_rng(0)
        text = self.folder / "text"
        text.mkdir()
        for i in range(documents):
            (text / f"{i}.txt").write_text(" ".join(rng.choice(WORDS, size=2000)))
        prepare(
            PrepareConfig(
                output=str(self.dataset),
                source=FilesSource(path=str(text)),
                tokenizer=ByteTokenizerConfig(),
                valid_fraction=0.2,
            )
        )

    def tree(self, name: str, shape: Shape, *, rows: int, workers: int) -> dict[str, Any]:
        """The config of a run of ``workers`` which each take ``rows`` sequences a step."""
        tree = shape.tree()
        tree["data"]["path"] = str(self.dataset)
        tokens = rows * shape.seq_len
        return tree | {
            "name": name,
            "output": str(self.folder / "runs"),
            "seed": 1,
            # Calm: rounding is not blown up, so that losses can be compared.
            "optim": {"lr": 2e-4, "schedule": {"kind": "constant", "warmup_steps": 10}},
            "batch": {"tokens_per_step": workers * tokens, "micro_batch_tokens": tokens},
            "engine": {"precision": "fp32", "zero_stage": 2},
            "loop": {"steps": 10, "valid_every": 0},
            "workers": {"count": workers, "device": "cpu"},
        }

    def rows(self, shape: Shape) -> int:
        """Sequences for a step of ``step_s`` of the bare loop on this machine."""
        if self.step_s is None:
            return 1
        tries = 4
        tree = self.tree(f"try-{shape.dim}", shape, rows=tries, workers=1)
        taken = train_bare.bare_steps(spec_of(tree), world=1, folder=self.folder).seconds
        return max(1, math.ceil(tries * self.step_s / statistics.median(taken[2:])))


def spec_of(tree: dict[str, Any]) -> RunSpec:
    """The run's spec as its workers get it."""
    spec = from_mapping(RunSpec, tree)
    tokenizer = load_tokenizer(f"{spec.data.path}/tokenizer.json")
    return fit_to_data(spec, vocab_size=tokenizer.vocab_size)


def write_config(tree: Mapping[str, Any], folder: Path) -> Path:
    """The YAML file of a run, in ``folder``."""
    path = folder / f"{tree['name']}.yaml"
    path.write_text(yaml.safe_dump(dict(tree)))
    return path


def environment() -> dict[str, str]:
    """Of a driver with a Ray cluster of its own, whose workers have no lower priority than the
    bare loop (Ray's default is to be nice)."""
    kept = {k: v for k, v in os.environ.items() if k not in FOREIGN}
    return kept | {"RAY_worker_niceness": "0", "OMP_NUM_THREADS": "1"}


@contextmanager
def running(config: Path) -> Iterator[subprocess.Popen[bytes]]:
    """``xtdist train CONFIG`` on a local cluster that comes and goes with it; what it prints goes
    into a file beside the config. It does not outlive this script.

    Raises:
        RuntimeError: at the end, which must be a good one.
    """
    path = config.with_suffix(".log")
    with path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "xtdist.cli.main", "train", str(config)],
            env=environment(),
            cwd=config.parent,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield process
        code = process.wait(TIMEOUT_S)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if code:
        raise RuntimeError(f"{config.stem} ended with {code}:\n{path.read_text()[-2000:]}")


def records(folder: Path, key: str = "train/loss") -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl that have ``key``, as they were written."""
    try:
        lines = (folder / "metrics.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return []
    found = (json.loads(line) for line in lines if line.endswith("}"))
    return [record for record in found if key in record]


def attempts(folder: Path, event: str) -> list[dict[str, Any]]:
    """The starts, or ends, of a run's workers."""
    try:
        lines = (folder / "attempts.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return []
    rows = (json.loads(line) for line in lines if line.endswith("}"))
    return [row for row in rows if row["event"] == event]
