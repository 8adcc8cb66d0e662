"""``ray job submit`` with its traps removed: absolute paths, and the job's real outcome.

The Ray command line exits 0 for a job that was stopped; the status of the job itself decides here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

from xtdist.config import ResourceError

ROOT = Path(__file__).resolve().parents[2]


def submit(address: str, entrypoint: list[str], *, name: str) -> int:
    """Run ``entrypoint`` (as in ``["python", "jobs/train.py", "x.yaml"]``) as a Ray job and follow
    its output. The job sees this source tree as its working directory.

    Returns:
        0 when the job succeeded, 2 when it ended with a user's mistake, else 1.

    Raises:
        ResourceError: nothing answers at ``address``.
    """
    client = _client(address)
    job_id = f"{name}-{uuid.uuid4().hex[:6]}"
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "--logging-level", "error", "job", "submit"),
        *("--log-color", "false", "--address", address, "--submission-id", job_id),
        *("--working-dir", str(ROOT), "--runtime-env-json", json.dumps(_runtime_env())),
        *("--", *entrypoint),
    ]
    child = subprocess.Popen(command, env=_environment())
    try:
        child.wait()
    except KeyboardInterrupt:
        client.stop_job(job_id)
        child.wait()
    return _exit_code(client, job_id)


def _runtime_env() -> dict[str, object]:
    # The slash ties a name to the top: without it "data" would take the package xtdist/data along.
    return {"excludes": ["/.git", "/.venv", "/.demo", "/runs", "/data", "/tests"]}


def _environment() -> dict[str, str]:
    return {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONUNBUFFERED": "1"}


def _client(address: str) -> Any:
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError) as e:
        raise ResourceError(f"no Ray job server at {address}: {e}") from None


def _exit_code(client: Any, job_id: str) -> int:
    info = client.get_job_info(job_id)
    if info.status == "SUCCEEDED":
        return 0
    return 2 if info.driver_exit_code == 2 else 1
