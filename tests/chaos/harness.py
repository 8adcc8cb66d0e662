"""Training runs to do harm to: on some Ray cluster, or with an S3 and an MLflow server beside."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE), str(HERE.parent / "ray")]

from cluster_tools import FOREIGN, Cluster, local_sh, parse_exports, workers_of  # noqa: E402
from services import BUCKET, ObjectStore, Tracker  # noqa: E402

from xtdist.data import ByteTokenizerConfig, FilesSource, PrepareConfig, prepare  # noqa: E402

WAIT_S = 400.0
CHECKPOINT_EVERY = 6


@dataclass
class World:
    """What runs of one test share: a folder with a dataset, and how a driver finds its cluster."""

    root: Path
    env: dict[str, str]

    def run(self, name: str, *, steps: int, **parts: dict[str, Any]) -> Run:
        """A run that has not begun. ``parts``: of its config, to add to."""
        tree: dict[str, Any] = {
            "name": name,
            "output": str(self.root / "runs"),
            "seed": 3,
            "data": {"path": str(self.root / "dataset"), "seq_len": 32},
            "model": {"dim": 32, "depth": 2, "heads": 2, "attention": {"dim_head": 16}},
            "optim": {"lr": 3e-3, "schedule": {"kind": "constant", "warmup_steps": 2}},
            "batch": {"tokens_per_step": 256, "micro_batch_tokens": 64},
            "loop": {"steps": steps, "valid_every": 0},
            "checkpoint": {"every": CHECKPOINT_EVERY},
            "engine": {"zero_stage": 2, "precision": "fp32"},
            "workers": {"count": 2, "max_failures": 5, "wait_minutes": 5},
            "stability": {"watchdog": {"stuck_s": 60}},
        }
        for part, values in parts.items():
            tree[part] = tree.get(part, {}) | values
        path = self.root / f"{name}.yaml"
        path.write_text(yaml.safe_dump(tree))
        return Run(self, path, self.root / "runs" / name, steps)


@dataclass
class Services(World):
    """A world with servers: runs keep their checkpoints on an object store and their metrics on a
    tracker. ``close`` ends what ``open_services`` started."""

    store: ObjectStore
    tracker: Tracker
    cluster: Cluster

    def trouble(self, name: str, *, steps: int) -> Trouble:
        """A run that has not begun."""
        url = f"s3://{BUCKET}/runs"
        run = self.run(
            name,
            steps=steps,
            checkpoint={"url": url, "max_misses": 1000},
            track={"uri": self.tracker.uri},
        )
        return Trouble(self, run.config, run.folder, steps)

    def close(self) -> None:
        local_sh("down", str(self.cluster.state))
        self.tracker.stop()
        self.store.stop()


def open_services(root: Path) -> Services:
    prepare_text(root)
    store, tracker = ObjectStore(), Tracker(root / "tracker")
    os.environ.update(store.environment)  # the cluster's processes inherit it
    tracker.start()
    up = local_sh("up", str(root / "cluster"), cpus=2)
    assert up.returncode == 0, up.stderr
    cluster = Cluster(root / "cluster", parse_exports(up.stdout))
    return Services(root, cluster.env, store, tracker, cluster)


def prepare_text(root: Path) -> None:
    """A dataset of bytes in ``root/dataset``."""
    rng = np.random.default_rng(0)
    (root / "text").mkdir()
    for i in range(40):
        words = rng.choice(["def", "return", "x", "y", "0", "(", ")", ":", "="], size=120)
        (root / "text" / f"{i}.txt").write_text(" ".join(words))
    prepare(
        PrepareConfig(
            output=str(root / "dataset"),
            source=FilesSource(path=str(root / "text")),
            tokenizer=ByteTokenizerConfig(),
            valid_fraction=0.2,
        )
    )


@dataclass
class Run:
    """A run and its driver. ``log`` is what all its drivers printed."""

    world: World
    config: Path
    folder: Path
    steps: int
    driver: subprocess.Popen[bytes] | None = None
    marked: int = 0

    @property
    def log(self) -> str:
        return self.config.with_suffix(".log").read_text()

    def start(self) -> None:
        env = {k: v for k, v in os.environ.items() if k not in FOREIGN} | self.world.env
        (self.folder / "chaos").mkdir(parents=True, exist_ok=True)
        with self.config.with_suffix(".log").open("ab") as log:
            self.driver = subprocess.Popen(
                [sys.executable, str(HERE / "drive.py"), str(self.config)],
                env=env,
                cwd=self.world.root,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def step(self) -> int:
        """The highest step that was done."""
        return max(self.losses(), default=0)

    def losses(self) -> dict[int, set[float]]:
        """Every loss that was recorded for a step."""
        found: dict[int, set[float]] = {}
        for step, loss in self._recorded():
            found.setdefault(step, set()).add(loss)
        return found

    def mark(self) -> None:
        """From now on, ``goes_on`` says whether a step was done after this."""
        self.marked = len(self._recorded())

    def goes_on(self) -> bool:
        return len(self._recorded()) > self.marked

    def _recorded(self) -> list[tuple[int, float]]:
        try:
            lines = (self.folder / "metrics.jsonl").read_text().splitlines()
        except FileNotFoundError:
            return []
        records = [json.loads(line) for line in lines if line.endswith("}")]
        return [(r["step"], r["train/loss"]) for r in records if "train/loss" in r]

    def wait(self, condition: Callable[[], bool], *, what: str) -> None:
        """Poll ``condition`` while the driver runs."""
        until = time.monotonic() + WAIT_S
        while not condition():
            assert self.driver is not None
            ended = self.driver.poll()
            assert ended is None, f"the driver ended with {ended} before {what}:\n{self.log}"
            assert time.monotonic() < until, f"it did not come to {what}:\n{self.log}"
            time.sleep(0.05)

    def finish(self) -> int:
        assert self.driver is not None
        try:
            return self.driver.wait(WAIT_S)
        except subprocess.TimeoutExpired:
            self.driver.kill()
            raise AssertionError(f"it did not end:\n{self.log}") from None

    def kinds(self) -> list[str]:
        """How its attempts ended."""
        return [row["kind"] for row in self._attempts() if row["event"] == "ended"]

    def started(self) -> list[int]:
        """With how many workers its attempts began."""
        return [row["workers"] for row in self._attempts() if row["event"] == "started"]

    def _attempts(self) -> list[dict[str, Any]]:
        try:
            lines = (self.folder / "attempts.jsonl").read_text().splitlines()
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines if line.endswith("}")]


@dataclass
class Trouble(Run):
    """A run with services, all of which can be harmed."""

    world: Services

    def kill(self) -> None:
        """SIGKILL to the driver; its workers must end by themselves."""
        assert self.driver is not None
        assert self.driver.poll() is None, f"the driver has ended already:\n{self.log}"
        os.killpg(self.driver.pid, signal.SIGKILL)
        self.driver.wait()
        until = time.monotonic() + 60
        while workers_of(self.world.cluster):
            assert time.monotonic() < until, "workers outlived their driver"
            time.sleep(0.1)

    def commits(self) -> list[str]:
        """The folders of its committed checkpoints in the bucket, oldest first."""
        import pyarrow.fs as fs

        selector = fs.FileSelector(f"{BUCKET}/runs/{self.folder.name}", recursive=True)
        found = self.world.store.files().get_file_info(selector)
        files = [f.path.rpartition("/") for f in found if f.path.count("/") == 4]
        inside = {folder for folder, _, name in files if name == "manifest.json"}
        return sorted(inside - {folder for folder, _, name in files if name == "damaged.json"})

    def weights(self) -> str:
        """The digest of the newest checkpoint's weights."""
        path = f"{self.commits()[-1]}/weights/model.safetensors"
        with self.world.store.files().open_input_stream(path) as file:
            return hashlib.sha256(file.read()).hexdigest()
