"""A Slurm of two nodes that are both this machine: `srun` and `scontrol` as shell scripts that note
how they were called."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "cluster" / "slurm" / "train.sbatch"
SRUN = """#!/bin/bash
# Options end where the command begins. EXTRA_HEAD and EXTRA_WORKER keep two Ray nodes of one
# machine from each other's ports.
echo "srun $(tr '\n' ' ' <<<"$*")" >>"$CALLS"
while [[ $1 == --* ]]; do shift; done
case "$*" in
  "ray start --head"*) exec "$@" $EXTRA_HEAD ;;
  bash*worker*) exec "$@" $EXTRA_WORKER ;;
  *) exec "$@" ;;
esac
"""
SCONTROL = """#!/bin/bash
echo "scontrol $*" >>"$CALLS"
case $1 in
  show) printf 'node1\\nnode2\\n' ;;
esac
"""


@dataclass
class Slurm:
    """``folder`` holds the programs that stand for Slurm's (and others, by :meth:`program`).
    ``environment`` is what sbatch is called with, beside the tests' own."""

    folder: Path
    job: int
    environment: dict[str, str] = field(default_factory=dict)
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        (self.folder / "bin").mkdir()
        self.program("srun", SRUN)
        self.program("scontrol", SCONTROL)

    def program(self, name: str, text: str) -> None:
        path = self.folder / "bin" / name
        path.write_text(text)
        path.chmod(0o755)

    @property
    def calls(self) -> list[str]:
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def state(self) -> Path:
        return self.folder / f".xtdist-{self.job}"

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def start(self, *words: str, **env: str) -> subprocess.Popen[bytes]:
        """``sbatch train.sbatch WORDS``, on this allocation."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "SLURM_"))}
        kept |= {
            "PATH": f"{self.folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "CALLS": str(self.folder / "calls"),
            "SLURM_JOB_ID": str(self.job),
            "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_SUBMIT_DIR": str(self.folder),
            "SLURM_CPUS_PER_TASK": "1",
            "OMP_NUM_THREADS": "1",
        }
        with open(self.folder / "log", "w") as log:
            child = subprocess.Popen(
                [str(SCRIPT), *words],
                env=kept | self.environment | env,
                cwd=self.folder,
                stdout=log,  # a pipe would be held open by what the script leaves
                stderr=subprocess.STDOUT,
                start_new_session=True,  # what it leaves can be told by its session
            )
        self.started.append(child)
        return child

    def run(self, *words: str, timeout_s: float = 60, **env: str) -> int:
        """The job's exit code."""
        return self.start(*words, **env).wait(timeout_s)

    def end(self) -> None:
        """Kill what is left of all jobs."""
        for child in self.started:
            for pid in processes_of(child.pid):
                os.kill(pid, signal.SIGKILL)
            child.wait()


def processes_of(session: int) -> dict[int, str]:
    """What runs in a session, and its command line. Ray's processes stay in that of ray start."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, _, _, of = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
                if int(of) == session and state not in "ZX":
                    found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
            except OSError:
                continue
    return found
