"""Versions: as this project pins them, and the same on every node."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, metadata, requires, version

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from xtdist.doctor.finding import Finding, green, red

PACKAGES = ("torch", "ray", "deepspeed", "pyarrow", "mlflow")
Versions = dict[str, str | None]


def read_versions() -> Versions:
    """Python, this project and what it stands on; None: not installed."""
    found: Versions = {"python": platform.python_version()}
    for name in ("xtdist", *PACKAGES):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def wanted_versions() -> dict[str, str]:
    """The ranges that this project's own metadata states."""
    given = [Requirement(text) for text in requires("xtdist") or ()]
    plain = {r.name: str(r.specifier) for r in given if r.marker is None}
    python = {"python": metadata("xtdist")["Requires-Python"]}
    return python | {name: plain[name] for name in PACKAGES if name in plain}


def judge_versions(found: Versions, wanted: Mapping[str, str]) -> list[Finding]:
    """One finding for each version that is not in its range; one for all that are."""
    wrong: list[Finding] = []
    for name, allowed in wanted.items():
        have = found.get(name)
        if have is not None and SpecifierSet(allowed).contains(have, prereleases=True):
            continue
        what = f"{name} {have or 'is not installed'}; xtdist is made for {allowed}"
        fix = f"pip install -c constraints.txt '{name}{allowed}'"
        if name == "python":
            fix = (
                "python3.11 -m venv .venv && .venv/bin/pip install -c constraints.txt -e '.[serve]'"
            )
        wrong.append(red("versions", what, fix))
    shown = ", ".join(f"{name} {found.get(name)}" for name in ("python", *PACKAGES))
    return wrong or [green("versions", shown)]


def judge_same(nodes: Mapping[str, Versions]) -> list[Finding]:
    """Whether all nodes have the same: what one writes, another reads."""
    differ: list[Finding] = []
    for name in dict.fromkeys(name for found in nodes.values() for name in found):
        by: dict[str, list[str]] = {}
        for node, found in nodes.items():
            by.setdefault(str(found.get(name)), []).append(node)
        if len(by) > 1:
            each = "; ".join(f"{have} on {', '.join(where)}" for have, where in by.items())
            fix = "start all nodes from one image, or run `make install` on each of them"
            differ.append(red("same versions", f"{name} differs: {each}", fix))
    return differ or [green("same versions", f"{len(nodes)} nodes have the same")]
