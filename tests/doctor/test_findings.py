"""What a check found, for people and for programs."""

from __future__ import annotations

import json

import pytest

from xtdist.doctor import Finding, as_json, as_text, exit_code
from xtdist.doctor.finding import amber, green, on_node, red


def test_red_without_a_fix_is_not_a_finding() -> None:
    with pytest.raises(ValueError, match="what mends it"):
        Finding("red", "disk", "full")


def test_only_red_fails() -> None:
    assert exit_code([green("a", "x"), amber("b", "y")]) == 0
    assert exit_code([green("a", "x"), red("b", "y", "do it")]) == 1


def test_every_red_line_has_its_command_below_and_equal_nodes_stand_together() -> None:
    found = [*on_node([red("disk", "full", "rm it")], "n1"), *on_node([green("gpu", "8")], "n1")]
    found += on_node([red("disk", "full", "rm it")], "n2")
    text = as_text(found, colour=False)
    assert text.count("full") == 1
    assert "[n1, n2]" in text
    assert "fix: rm it" in text
    assert "\x1b" not in text
    assert "\x1b[31m" in as_text(found, colour=True)


def test_json_holds_every_finding() -> None:
    tree = json.loads(as_json([green("a", "x"), red("b", "y", "do it")]))
    assert (tree["ok"], tree["counts"]) == (False, {"green": 1, "amber": 0, "red": 1})
    assert tree["findings"][1] == {
        "level": "red",
        "check": "b",
        "what": "y",
        "fix": "do it",
        "node": None,
    }
