"""``<run>/environment.jsonl``: what a run was started with, one line per start of its driver."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shlex
import socket
import subprocess
import sys
import time
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from xtdist.files import append_line

FILE = "environment.jsonl"
_SECRET = re.compile(r"(?<=://)[^/\s@]+@")
_NAMED = re.compile(r"(?i)((?:token(?!s)|secret|password|passwd|api[_-]?key)[\w.]*[= ])\S+")


def write_environment(run_folder: str | Path) -> None:
    """Append this process's command, packages, host, and the commit of this program's source if
    that is a git checkout. A disk that takes none loses it."""
    line = json.dumps({"time": round(time.time(), 3), **environment()})
    with contextlib.suppress(OSError):
        append_line(Path(run_folder) / FILE, line)


def environment() -> dict[str, Any]:
    """Of this process; credentials in the command are left out."""
    packages = {d.metadata["Name"]: d.version for d in distributions() if d.metadata["Name"]}
    return {
        "command": without_secrets(shlex.join(sys.argv)),
        "folder": os.getcwd(),
        "host": socket.gethostname(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        **_commit(),
        "packages": dict(sorted(packages.items(), key=lambda item: item[0].lower())),
    }


def without_secrets(text: str) -> str:
    """``text`` without the users and passwords of its addresses, and what is named a secret."""
    return _NAMED.sub(r"\1***", _SECRET.sub("***@", text))


def _commit() -> dict[str, Any]:
    """``git`` and whether files differ from it (``changed``); both None outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return {"git": None, "changed": None}
    sha = _git(root, "rev-parse", "HEAD")
    state = _git(root, "status", "--porcelain", "--untracked-files=no")
    return {"git": sha, "changed": None if state is None else bool(state)}


def _git(root: Path, *words: str) -> str | None:
    command = ["git", "-C", str(root), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
