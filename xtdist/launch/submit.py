"""``ray job submit`` with its traps removed: absolute paths, and the job's real outcome.

The Ray command line exits 0 for a job that was stopped; the status of the job itself decides here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from xtdist.config import ResourceError

STOP_WAIT_S = 120  # what a stopped job may take to save a checkpoint; Ray's default is 3
ADDRESS = "RAY_API_SERVER_ADDRESS"
ROOT = Path(__file__).resolve().parents[2]


def submit(address: str, entrypoint: list[str], *, name: str) -> int:
    """Run ``entrypoint`` (as in ``["python", "jobs/train.py", "x.yaml"]``) as a Ray job and follow
    its output. The job sees this source tree as its working directory.

    Returns:
        0 when the job succeeded, 2 when it ended with a user's mistake, 130 when it was stopped
        (Ctrl-C stops it), else 1.

    Raises:
        ResourceError: nothing answers at ``address``.
    """
    with _addressed(address):
        return _follow(address, entrypoint, name=name)


def _follow(address: str, entrypoint: list[str], *, name: str) -> int:
    client = _client(address)
    job_id = f"{name}-{uuid.uuid4().hex[:6]}"
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "--logging-level", "error", "job", "submit"),
        *("--log-color", "false", "--address", address, "--submission-id", job_id),
        *("--working-dir", str(ROOT), "--runtime-env-json", json.dumps(_runtime_env())),
        *("--", *entrypoint),
    ]
    # In a group of its own, Ctrl-C leaves it to show how the job ends.
    child = subprocess.Popen(command, env=_environment(), process_group=0)
    try:
        try:
            child.wait()
        except KeyboardInterrupt:
            print(f"\nstopping job {job_id} (once more: without waiting for it)", flush=True)
            client.stop_job(job_id)
            child.wait()
    finally:
        child.kill()
    return _exit_code(client, job_id)


@contextmanager
def _addressed(address: str) -> Iterator[None]:
    """Mean ``address``: where this variable is set, Ray takes it and forgets what it was given."""
    before = os.environ.get(ADDRESS)
    os.environ[ADDRESS] = address
    try:
        yield
    finally:
        del os.environ[ADDRESS]
        if before is not None:
            os.environ[ADDRESS] = before


def _runtime_env() -> dict[str, object]:
    # The slash ties a name to the top: a bare "data" would exclude the package xtdist/data too.
    return {
        "excludes": ["/.git", "/.venv", "/.demo", "/runs", "/data", "/tests"],
        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)},
    }


def _environment() -> dict[str, str]:
    return {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONUNBUFFERED": "1"}


def _client(address: str) -> Any:
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except AuthenticationError:
        raise ResourceError(
            f"the job server at {address} refuses the token; set RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN_PATH to the file of that cluster's token"
        ) from None
    except (ConnectionError, RuntimeError) as e:
        raise ResourceError(f"no Ray job server at {address}: {e}") from None


def _exit_code(client: Any, job_id: str) -> int:
    info = client.get_job_info(job_id)
    if info.status in ("SUCCEEDED", "STOPPED"):
        return 0 if info.status == "SUCCEEDED" else 130
    return 2 if info.driver_exit_code == 2 else 1
