"""xtdist demo: every stage through the command that a user would give alone."""

from __future__ import annotations

import argparse
import os
import shlex
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xtdist.checkpoint import CheckpointStore
from xtdist.config import ResourceError, UserError
from xtdist.launch.submit import ROOT
from xtdist.serve.client import Client
from xtdist.track.describe import describe_run

PROMPT = "import os\n\nclass Reader:\n    def __init__(self, path):\n        self"
RUN = "demo-ar"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--folder", default=".demo", help="where everything goes")
    parser.add_argument(
        "--set",
        nargs="*",
        default=[],
        dest="overrides",
        metavar="key.path=value",
        help="changes to jobs/configs/demo_ar.yaml, as loop.steps=50",
    )


def run(args: argparse.Namespace) -> int:
    demo = Demo(Path(args.folder).resolve(), tuple(args.overrides))
    demo.folder.mkdir(parents=True, exist_ok=True)
    demo.prepare()
    with demo.cluster():
        demo.train()
        demo.tracking()
        demo.evaluate()
        demo.generate()
        demo.serve()
    demo.summary()
    return 0


class StageFailedError(UserError):
    """A stage's own command has already said what was wrong."""


@dataclass
class Demo:
    """The stages, in order. ``env``: of the commands, so that they find the cluster."""

    folder: Path
    overrides: tuple[str, ...]
    env: dict[str, str] = field(default_factory=lambda: dict(os.environ))
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def run_folder(self) -> Path:
        return self.folder / "runs" / RUN

    def prepare(self) -> None:
        with self.stage("prepare"):
            self.xtdist("prepare", "jobs/configs/prepare_demo.yaml", f"output={self.data}")

    @contextmanager
    def cluster(self) -> Iterator[None]:
        """A local Ray cluster with dashboard and job server; it ends with the demo."""
        state = self.folder / "ray"
        script = [str(ROOT / "cluster" / "local.sh")]
        self.env["RAY_BIN"] = str(Path(sys.executable).parent / "ray")
        try:
            with self.stage("cluster"):
                out = subprocess.run(
                    [*script, "up", str(state)], env=self.env, capture_output=True, text=True
                )
                if out.returncode:
                    raise ResourceError(f"the local Ray cluster did not start: {out.stderr}")
                words = shlex.split(out.stdout.replace("export", ""))
                self.env |= dict(w.split("=", 1) for w in words)
                print(f"dashboard and job server: {self.env['RAY_API_SERVER_ADDRESS']}")
            yield
        finally:
            subprocess.run([*script, "down", str(state)], env=self.env, check=False)

    def train(self) -> None:
        with self.stage("train"):
            address = self.env["RAY_API_SERVER_ADDRESS"]
            places = (f"data.path={self.data}", f"output={self.folder / 'runs'}")
            config = "jobs/configs/demo_ar.yaml"
            self.xtdist("train", config, *self.overrides, *places, "--submit", address)

    def tracking(self) -> None:
        with self.stage("tracking"):
            print(describe_run(self.run_folder))

    def evaluate(self) -> None:
        with self.stage("evaluate"):
            target = str(self.run_folder / "evaluation.json")
            self.xtdist(
                "evaluate", str(self.run_folder), "--data", str(self.data), "--json", target
            )

    def generate(self) -> None:
        with self.stage("generate"):
            words = ("--prompt", PROMPT, "--max-tokens", "48", "--amateur", str(self.amateur()))
            self.xtdist("generate", str(self.run_folder), *words)

    def amateur(self) -> Path:
        """The run's earliest checkpoint: a weaker model of the same kind, to contrast with."""
        store = CheckpointStore(self.run_folder / "checkpoints")
        return store.root / store.names()[0]

    def serve(self) -> None:
        """Start the endpoint, ask it, stop it."""
        with self.stage("serve"):
            port = _free_port()
            words = [str(self.run_folder), "--amateur", str(self.amateur()), "--port", str(port)]
            command = [*_xtdist("serve"), *words]
            print("$", shlex.join(["xtdist", *command[3:]]))
            log = self.folder / "serve.log"
            with log.open("w") as out:
                child = subprocess.Popen(command, env=self.env, cwd=ROOT, stdout=out, stderr=out)
            try:
                url = f"http://127.0.0.1:{port}"
                _wait_for(f"{url}/health", child, log)
                _ask(url)
            finally:
                child.terminate()
                child.wait(timeout=60)

    def summary(self) -> None:
        print("\n=== done")
        for name, seconds in self.seconds.items():
            print(f"  {name:<10} {seconds:6.1f} s")
        runs = self.run_folder
        rows = {
            "the loss": f"{runs / 'loss.png'}  (or loss.html, in a browser)",
            "MLflow": f".venv/bin/mlflow ui --backend-store-uri sqlite:///{runs}/mlflow.db",
            "serve it for good": f".venv/bin/xtdist serve {runs} --amateur {self.amateur()}",
            "your own cluster": "xtdist train jobs/configs/demo_ar.yaml --submit http://HEAD:8265",
        }
        for what, how in rows.items():
            print(f"  {what + ':':<19}{how}")

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        print(f"\n=== {name}", flush=True)
        start = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - start

    def xtdist(self, *words: str) -> None:
        """One public command, shown as the user would type it."""
        print("$", shlex.join(["xtdist", *words]), flush=True)
        code = subprocess.run([*_xtdist(words[0]), *words[1:]], env=self.env, cwd=ROOT).returncode
        if code:
            raise StageFailedError(f"the demo stops here: `xtdist {words[0]}` ended with {code}")


def _xtdist(verb: str) -> list[str]:
    return [sys.executable, "-m", "xtdist.cli.main", verb]


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
    return port


def _wait_for(
    url: str, child: subprocess.Popen[bytes], log: Path, *, timeout_s: float = 180
) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if child.poll() is not None:
            raise StageFailedError(
                f"the demo stops here: `xtdist serve` ended with {child.poll()}\n{log.read_text()}"
            )
        try:
            with urllib.request.urlopen(url, timeout=20):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise ResourceError(f"{url} did not answer in {timeout_s:.0f} s")


def _ask(url: str) -> None:
    """Sampling (streamed), beams and contrastive decoding over HTTP."""
    with Client(url) as client:
        names = ", ".join(card["id"] for card in client.models())
        print(f"models: {names}\n--- sample, streamed\n{PROMPT}", end="")
        for piece in client.stream(PROMPT, max_tokens=32, temperature=0.8, seed=0):
            print(piece.text, end="", flush=True)
        print()
        asked: dict[str, dict[str, Any]] = {
            "beam search (4)": {"num_beams": 4},
            "contrastive": {"temperature": 0.0, "contrastive": {"alpha": 0.1, "beta": 0.5}},
        }
        for name, params in asked.items():
            answer = client.complete(PROMPT, max_tokens=32, **params)
            print(f"--- {name}\n{PROMPT}{answer.text}")
