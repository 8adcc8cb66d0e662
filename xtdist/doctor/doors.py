"""Whether a cluster of Ray lets in who has no token."""

from __future__ import annotations

import importlib
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xtdist.doctor.finding import Finding, amber, green, red

LIMIT_S = 5.0
_LISTEN = "0A"
_FIX = "export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=…; stop the cluster and start it again"


@dataclass(frozen=True)
class Doors:
    """What came without a token: ``dashboard``: the HTTP status (None: there is none); ``gcs``:
    whether the head told its nodes (None: it did not answer). ``everywhere``: the dashboard listens
    on all interfaces (None: on another machine, which can't be seen from here)."""

    dashboard: int | None
    gcs: bool | None
    everywhere: bool | None


def read_doors(gcs: str, dashboard: str | None) -> Doors:
    """``gcs``, ``dashboard``: as host:port."""
    everywhere = listens_everywhere(int(dashboard.rpartition(":")[2])) if dashboard else None
    return Doors(jobs_without_token(dashboard) if dashboard else None, _open_gcs(gcs), everywhere)


def jobs_without_token(dashboard: str) -> int | None:
    """The status of a list of jobs; None: no answer. Past any proxy, as Ray's own nodes."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"http://{dashboard}/api/jobs/", timeout=LIMIT_S) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as e:
        return e.code
    except (OSError, ValueError):
        return None


def _open_gcs(address: str) -> bool | None:
    grpc: Any = importlib.import_module("grpc")  # it has no types
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

    with grpc.insecure_channel(address) as channel:
        stub = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
        try:
            stub.GetAllNodeInfo(gcs_service_pb2.GetAllNodeInfoRequest(), timeout=LIMIT_S)
        except grpc.RpcError as e:
            refused = e.code() in (
                grpc.StatusCode.UNAUTHENTICATED,
                grpc.StatusCode.PERMISSION_DENIED,
            )
            return False if refused else None
    return True


def listens_everywhere(port: int, proc: Path = Path("/proc/net")) -> bool | None:
    """Whether ``port`` of this machine listens on all interfaces; None: nothing listens here."""
    found: list[bool] = []
    for name in ("tcp", "tcp6"):
        try:
            rows = (proc / name).read_text().splitlines()[1:]
        except OSError:
            continue
        for row in rows:
            words = row.split()
            host, _, number = words[1].partition(":")
            if words[3] == _LISTEN and int(number, 16) == port:
                found.append(not int(host, 16))
    return any(found) if found else None


def judge_doors(d: Doors) -> list[Finding]:
    found: list[Finding] = []
    if d.gcs:
        what = "the head answers without a token: who reaches it runs code"
        found.append(red("ray auth", what, _FIX))
    if d.dashboard is not None and d.dashboard not in (401, 403):
        what = f"the job server answers {d.dashboard} without a token: who reaches it runs code"
        found.append(red("ray auth", what, _FIX))
    if d.everywhere:
        fix = "ray start --head --dashboard-host 127.0.0.1 (Kubernetes: a NetworkPolicy)"
        found.append(amber("dashboard", "listens on all interfaces, without encryption", fix))
    if d.gcs is None:
        found.append(amber("ray auth", "the head gave no answer to a call without a token"))
    return found or [green("ray auth", "head and job server refuse calls without a token")]
