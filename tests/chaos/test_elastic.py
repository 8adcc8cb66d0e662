"""A run that loses a node goes on with what is left, and grows when a node comes."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

sys.path.append(str(Path(__file__).parent))
from harness import HERE, Run, World, prepare_text

from xtdist.checkpoint import CheckpointStore

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(900)]
STEPS = 400


class Nodes:
    """The cluster of ``nodes.py``. ``env``: what a driver on it needs."""

    def __init__(self, log: IO[str]) -> None:
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | token
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "nodes.py")],
            env=kept,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        self.env = token | {"RAY_ADDRESS": self._answer()}

    def tell(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        assert self._answer() == "done"

    def _answer(self) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(("done", "127.", "10.", "172.", "192.")) or ":" in line[:22]:
                return line.strip()
        raise AssertionError("the cluster did not start")

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    with (tmp_path_factory.mktemp("nodes") / "log").open("w") as log:
        running = Nodes(log)
        yield running
        running.close()


@pytest.fixture(scope="module")
def run(nodes: Nodes, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two workers, one, two."""
    root = tmp_path_factory.mktemp("elastic")
    prepare_text(root)
    made = World(root, nodes.env).run(
        "elastic", steps=STEPS, workers={"min_count": 1, "grow_after_s": 2}
    )
    made.start()
    made.wait(lambda: made.step() >= 20, what="step 20")
    nodes.tell("remove")
    made.wait(lambda: made.started()[1:] == [1], what="one worker")
    step = made.step()
    made.wait(lambda: made.step() > step + 5, what="steps of one worker")
    nodes.tell("add")
    made.wait(lambda: made.started()[1:] == [1, 2], what="two workers again")
    assert made.finish() == 0, made.log
    return made


def test_it_is_told_who_was_lost_and_who_came(run):
    assert run.started() == [2, 1, 2]
    assert run.kinds()[1:] == ["resized", "done"]
    assert run.kinds()[0] in (
        "node lost",
        "worker killed",
        "connection lost",
    )  # who noticed it first
    assert "there is room for more workers" in run.log
    assert "Traceback" not in run.log


def test_no_step_is_left_out_and_growing_repeats_none(run):
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").open()]
    steps = [row["step"] for row in rows if "train/loss" in row]
    assert sorted(set(steps)) == list(range(1, STEPS + 1))
    falls = [i for i in range(1, len(steps)) if steps[i] != steps[i - 1] + 1]
    assert len(falls) <= 1  # the loss of the node


def test_a_step_has_the_same_loss_with_any_number_of_workers(run):
    repeated = [values for values in run.losses().values() if len(values) > 1]
    for values in repeated:
        assert max(values) == pytest.approx(min(values), rel=1e-4)


def test_the_last_checkpoint_is_whole(run):
    newest = CheckpointStore(run.folder / "checkpoints").newest_valid()
    assert newest is not None
    assert newest.step == STEPS
