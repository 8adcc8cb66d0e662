"""What a check found."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

Level = Literal["green", "amber", "red"]
LEVELS: tuple[Level, ...] = ("green", "amber", "red")


@dataclass(frozen=True)
class Finding:
    """``level``: green, amber (a run may suffer), red (a run fails). ``fix``: the command that
    mends it; one that is red has one. ``node``: where; None: of the whole."""

    level: Level
    check: str
    what: str
    fix: str | None = None
    node: str | None = None

    def __post_init__(self) -> None:
        if self.level == "red" and not self.fix:
            raise ValueError(f"{self.check}: a red finding says what mends it")


def green(check: str, what: str) -> Finding:
    return Finding("green", check, what)


def amber(check: str, what: str, fix: str | None = None) -> Finding:
    return Finding("amber", check, what, fix)


def red(check: str, what: str, fix: str) -> Finding:
    return Finding("red", check, what, fix)


def on_node(findings: Iterable[Finding], node: str) -> list[Finding]:
    """The same, of this node."""
    return [replace(finding, node=node) for finding in findings]


def exit_code(findings: Iterable[Finding]) -> int:
    """1 if anything is red."""
    return int(any(finding.level == "red" for finding in findings))
