"""A Slurm of two nodes that are both this machine: `srun` and `scontrol` as shell scripts that note
how they were called."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
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
    """``folder`` holds the programs that stand for Slurm's (and others, by :meth:`program`)."""

    folder: Path
    job: int

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

    def start(self, *words: str, **env: str) -> subprocess.Popen[str]:
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
        return subprocess.Popen(
            [str(SCRIPT), *words],
            env=kept | env,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
