"""What is around a process and bites without a word: variables, proxies, what earlier clusters
left, ports, tokens."""

from __future__ import annotations

import re
import socket
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from xtdist.doctor.finding import Finding, amber, green, red

PORTS = {6379: "Ray's head", 8265: "Ray's dashboard", 10001: "Ray's client", 8000: "Ray Serve"}
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")
_HARMLESS = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_TMPDIR", "RAY_USAGE_STATS_ENABLED")
_OWN = ("RAY_CLIENT_MODE",)  # set by the import of ray
_HARMLESS_STARTS = ("RAY_AUTH_", "RAY_TRAIN_", "RAY_SERVE_", "RAY_JOB_")


@dataclass(frozen=True)
class Surroundings:
    """Names of variables, never values that may hold a password. ``token_mode``: the bits of the
    token file that can be reached; None: there is none. ``stale``: an earlier cluster's address
    file, with nothing at that address. ``dead_address``: RAY_ADDRESS, if nothing answers there."""

    proxies: tuple[str, ...]
    proxy_spares_local: bool
    leftovers: tuple[str, ...]
    dead_address: str | None
    sessions: int
    stale: str | None
    auth_mode: str | None
    token_mode: int | None
    token_missing: bool
    ports_taken: tuple[int, ...]


def read_surroundings(env: Mapping[str, str], *, temp: Path = Path("/tmp/ray")) -> Surroundings:
    spared = {name for key in ("no_proxy", "NO_PROXY") for name in env.get(key, "").split(",")}
    token = env.get("RAY_AUTH_TOKEN_PATH")
    path = Path(token) if token else Path("~/.ray/auth_token").expanduser()
    given = env.get("RAY_ADDRESS")
    return Surroundings(
        proxies=tuple(k for k in env if k.lower() in _PROXIES and env[k]),
        proxy_spares_local="*" in spared or {"127.0.0.1", "localhost"} <= spared,
        leftovers=tuple(sorted(k for k in env if k.startswith("RAY_") and not _known(k))),
        dead_address=given if given and not answers(given) else None,
        sessions=len(list(temp.glob("session_2*"))) if temp.is_dir() else 0,
        stale=_stale(temp / "ray_current_cluster"),
        auth_mode=env.get("RAY_AUTH_MODE"),
        token_mode=_reachable_mode(path) if path.is_file() else None,
        token_missing=token is not None and not path.is_file(),
        ports_taken=tuple(port for port in PORTS if answers(f"127.0.0.1:{port}")),
    )


def _reachable_mode(path: Path) -> int:
    """The file's bits, less those of people who can't enter a folder above it."""
    mode = stat.S_IMODE(path.stat().st_mode)
    for folder in path.resolve().parents:
        enter = stat.S_IMODE(folder.stat().st_mode)
        mode &= 0o700 | (0o070 if enter & 0o010 else 0) | (0o007 if enter & 0o001 else 0)
    return mode


def _known(name: str) -> bool:
    return name in (*_HARMLESS, *_OWN) or name.startswith(_HARMLESS_STARTS)


def answers(address: str, *, seconds: float = 3.0) -> bool:
    """Whether something listens at ``host:port``; True for what is no such address."""
    host, colon, port = address.rpartition(":")
    if "://" in address or not (colon and host and port.isdigit()):
        return True
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=seconds).close()
    except (OSError, OverflowError):
        return False
    return True


def _stale(file: Path) -> str | None:
    try:
        address = file.read_text().strip()
    except OSError:
        return None
    return str(file) if re.fullmatch(r"\S+:\d+", address) and not answers(address) else None


def judge_surroundings(s: Surroundings, *, cluster: bool) -> list[Finding]:
    """``cluster``: one runs here, so that its ports are taken."""
    found = [judge_proxies(s), judge_variables(s), judge_sessions(s), judge_token(s)]
    return found if cluster else [*found, judge_ports(s.ports_taken)]


def judge_proxies(s: Surroundings) -> Finding:
    if s.proxies and not s.proxy_spares_local:
        what = f"{', '.join(s.proxies)} without NO_PROXY: Ray's own calls go to the proxy"
        return amber("proxies", what, "export NO_PROXY=127.0.0.1,localhost,$(hostname -i)")
    return green("proxies", "none in the way of Ray")


def judge_variables(s: Surroundings) -> Finding:
    if s.dead_address is not None:
        what = f"RAY_ADDRESS={s.dead_address}, where nothing answers"
        return red("variables", what, "unset RAY_ADDRESS (or start the cluster it names)")
    if s.leftovers:
        what = f"{', '.join(s.leftovers)} change how Ray works here"
        return amber("variables", what, f"unset {' '.join(s.leftovers)}")
    return green("variables", "none left over from another cluster")


def judge_sessions(s: Surroundings) -> Finding:
    if s.stale is not None:
        what = f"{s.stale} names a cluster that is gone; address=auto would wait for it"
        return amber("old sessions", what, f"rm {s.stale}")
    if s.sessions > 20:
        fix = "ls -td /tmp/ray/session_2* | tail -n +3 | xargs rm -rf (while no cluster runs)"
        return amber("old sessions", f"{s.sessions} folders of earlier clusters in /tmp/ray", fix)
    return green("old sessions", f"{s.sessions} in /tmp/ray")


def judge_token(s: Surroundings) -> Finding:
    if s.token_missing:
        fix = 'eval "$(cluster/local.sh env)", or mount the Secret with the token'
        return red("ray token", "RAY_AUTH_TOKEN_PATH names a file that is not there", fix)
    if s.auth_mode not in (None, "token"):
        what = f"RAY_AUTH_MODE={s.auth_mode}: whoever reaches a port of Ray runs code here"
        return red("ray token", what, "export RAY_AUTH_MODE=token")
    if s.token_mode is not None and s.token_mode & 0o077:
        what = f"the token's file can be read by others (mode {s.token_mode:o})"
        return red("ray token", what, 'chmod 600 "${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}"')
    if s.auth_mode is None:
        what = "RAY_AUTH_MODE is not set: `ray start` may run open"
        return amber("ray token", what, "export RAY_AUTH_MODE=token")
    return green("ray token", "RAY_AUTH_MODE=token")


def judge_ports(taken: Sequence[int]) -> Finding:
    if taken:
        what = ", ".join(f"{port} ({PORTS.get(port, 'needed')})" for port in taken)
        fix = f"ss -ltnp 'sport = :{taken[0]}' (or other ports: see cluster/local.sh)"
        return amber("ports", f"in use: {what}", fix)
    return green("ports", f"free: {', '.join(map(str, PORTS))}")
