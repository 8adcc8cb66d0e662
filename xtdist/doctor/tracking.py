"""Whether an MLflow server answers, lets us in, and takes a run. By its REST interface: it says
what a client of MLflow hides behind minutes of retries."""

from __future__ import annotations

import base64
import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import unquote, urlsplit

from xtdist.doctor.finding import Finding, amber, green, red
from xtdist.doctor.limited import limited

LIMIT_S, WHOLE_S = 10.0, 20.0
"""Of one read, and of all that is read."""
MAX_BYTES = 10_000_000
EXPERIMENT = "xtdist-doctor"
MOST_SKEW_S = 60.0


@dataclass(frozen=True)
class TrackingFacts:
    """``status``: of HTTP; None: nothing answered. ``failed``: what of ``read`` and ``write`` went
    wrong. ``ahead_s``: of the server's clock, ours is by so much."""

    uri: str
    status: int | None = None
    failed: str | None = None
    error: str | None = None
    ahead_s: float | None = None


def read_tracking(uri: str, env: Mapping[str, str], *, write: bool) -> TrackingFacts:
    """Ask for an experiment; ``write``: also make a run in ``xtdist-doctor``, and delete it."""
    try:
        server = _Server(uri, env)
    except ValueError as e:
        return TrackingFacts("MLFLOW_TRACKING_URI", None, "read", f"no address: {e}")
    uri = server.uri
    doing = "read"
    try:
        limited(lambda: server.call("experiments/search", {"max_results": 1}), seconds=WHOLE_S)
        if write:
            doing = "write"
            limited(server.try_run, seconds=WHOLE_S)
    except urllib.error.HTTPError as e:
        return TrackingFacts(uri, e.code, doing, f"HTTP {e.code}", server.ahead_s)
    except (OSError, ValueError, http.client.HTTPException) as e:
        reason = getattr(e, "reason", None)
        return TrackingFacts(uri, None, doing, str(reason or e) or type(e).__name__, None)
    except (AttributeError, KeyError, TypeError):
        return TrackingFacts(uri, None, doing, "what answers there is not MLflow", None)
    return TrackingFacts(uri, 200, ahead_s=server.ahead_s)


class _Stay(urllib.request.HTTPRedirectHandler):
    """The user and password are for this server, not for one that it names."""

    def redirect_request(self, *_: Any) -> None:
        return None


class _Server:
    """``uri``: without the user and password that it may hold.

    Raises:
        ValueError: it is no address.
    """

    def __init__(self, uri: str, env: Mapping[str, str]) -> None:
        url = urlsplit(uri)
        self._open = urllib.request.build_opener(_Stay).open
        self.uri = url._replace(netloc=url.netloc.rpartition("@")[2]).geturl().rstrip("/")
        self.ahead_s: float | None = None
        self._headers = {"Content-Type": "application/json"}
        user, token = env.get("MLFLOW_TRACKING_USERNAME"), env.get("MLFLOW_TRACKING_TOKEN")
        password = env.get("MLFLOW_TRACKING_PASSWORD", "")
        if user is None and url.username is not None:
            user, password = unquote(url.username), unquote(url.password or "")
        if user is not None:
            pair = f"{user}:{password}"
            self._headers["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
        elif token is not None:
            self._headers["Authorization"] = f"Bearer {token}"

    def call(self, what: str, body: dict[str, Any]) -> dict[str, Any]:
        """POST; the answer's tree."""
        request = urllib.request.Request(
            f"{self.uri}/api/2.0/mlflow/{what}", json.dumps(body).encode(), self._headers
        )
        with self._open(request, timeout=LIMIT_S) as reply:
            date = reply.headers.get("Date")
            if date:
                self.ahead_s = time.time() - parsedate_to_datetime(date).timestamp()
            tree = json.loads(reply.read(MAX_BYTES))
        if not isinstance(tree, dict):
            raise TypeError("an answer that is no mapping")
        return tree

    def try_run(self) -> None:
        found = self.call(
            "experiments/search", {"max_results": 1, "filter": f"name = '{EXPERIMENT}'"}
        ).get("experiments")
        made = found[0] if found else self.call("experiments/create", {"name": EXPERIMENT})
        begun = {"experiment_id": made["experiment_id"], "start_time": int(time.time() * 1000)}
        run = self.call("runs/create", begun)["run"]["info"]["run_id"]
        self.call("runs/log-metric", {"run_id": run, "key": "x", "value": 1, "timestamp": 0})
        self.call("runs/delete", {"run_id": run})


def judge_tracking(f: TrackingFacts, *, user: bool) -> list[Finding]:
    """``user``: a name or token is set."""
    if f.status in (401, 403):
        has = "is refused" if user else "is not set"
        fix = "export MLFLOW_TRACKING_USERNAME=… MLFLOW_TRACKING_PASSWORD=… (a user who may write)"
        return [red("mlflow", f"{f.uri}: {f.error} at {f.failed}; the user {has}", fix)]
    if f.failed is not None:
        fix = (
            f"curl -i {f.uri}/health; mlflow server --host 127.0.0.1 --port 5000, or fix track.uri"
        )
        return [red("mlflow", f"{f.uri}: {f.failed} failed: {f.error}", fix)]
    found = [green("mlflow", f"{f.uri} answers and lets us in")]
    if f.ahead_s is not None and abs(f.ahead_s) > MOST_SKEW_S:
        what = f"this machine's is {f.ahead_s:+.0f} s beside the MLflow server's"
        found.append(amber("clock", what, "chronyc makestep (or: timedatectl set-ntp true)"))
    return found
