"""Findings for people and for programs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence

from xtdist.doctor.finding import LEVELS, Finding, Level, exit_code

_MARK: dict[Level, str] = {"green": "ok  ", "amber": "warn", "red": "FAIL"}
_COLOUR: dict[Level, str] = {"green": "32", "amber": "33", "red": "31"}


def as_text(findings: Iterable[Finding], *, colour: bool) -> str:
    """One line each, what mends it below; what is the same on several nodes stands once."""
    merged = _merge(findings)
    width = max((len(f.check) for f, _ in merged), default=0)
    lines: list[str] = []
    for found, nodes in merged:
        mark = _MARK[found.level]
        if colour:
            mark = f"\x1b[{_COLOUR[found.level]}m{mark}\x1b[0m"
        where = f" [{', '.join(nodes)}]" if nodes else ""
        lines.append(f"{mark}  {found.check:<{width}}  {found.what}{where}")
        if found.fix and found.level != "green":
            lines.append(f"{'':<{width + 8}}fix: {found.fix}")
    counts = _counts([f for f, _ in merged])
    return "\n".join([*lines, ", ".join(f"{n} {level}" for level, n in counts.items())])


def as_json(findings: Iterable[Finding]) -> str:
    """``{"ok": bool, "counts": {level: n}, "findings": [{level, check, what, fix, node}]}``."""
    every = list(findings)
    tree = {
        "ok": exit_code(every) == 0,
        "counts": _counts(every),
        "findings": [dataclasses.asdict(found) for found in every],
    }
    return json.dumps(tree, indent=2)


def _merge(findings: Iterable[Finding]) -> list[tuple[Finding, list[str]]]:
    """Alike but for the node, together; in the order in which they came."""
    found: dict[Finding, list[str]] = {}
    for each in findings:
        nodes = found.setdefault(dataclasses.replace(each, node=None), [])
        nodes += [] if each.node is None else [each.node]
    return list(found.items())


def _counts(findings: Sequence[Finding]) -> dict[Level, int]:
    return {level: sum(f.level == level for f in findings) for level in LEVELS}
