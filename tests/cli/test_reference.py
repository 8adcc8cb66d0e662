"""The page of all keys is that of the types, and hangs together."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from xtdist.cli.reference import ROOTS, reference
from xtdist.train.spec import EngineSpec, RunSpec

PAGE = Path(__file__).resolve().parents[2] / "jobs" / "configs" / "REFERENCE.md"


def anchor(heading: str) -> str:
    """As GitHub makes it of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_the_page_is_that_of_the_types():
    again = "python -m xtdist.cli.reference > jobs/configs/REFERENCE.md"
    assert PAGE.read_text() == reference(), again


def test_every_link_of_the_page_leads_somewhere():
    page = reference()
    anchors = [anchor(h) for h in re.findall(r"^### (.*)$", page, re.MULTILINE)]
    assert len(anchors) == len(set(anchors))
    links = set(re.findall(r"\]\(#([^)]*)\)", page))
    assert len(links) > 50
    assert links <= set(anchors)


def test_every_key_of_the_roots_is_there_with_its_default():
    page = reference()
    for root in (*ROOTS.values(), EngineSpec):
        part = re.split(rf"^### {root.__name__}\b.*$", page, maxsplit=1, flags=re.MULTILINE)[1]
        table = part.split("### ")[0]
        keys = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
        assert keys == [f.name for f in dataclasses.fields(root)]
    needed = re.findall(r"^\| `(\w+)` \|.*\*\*needed\*\* \|$", page, re.MULTILINE)
    fields = dataclasses.fields(RunSpec)
    required = [f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING]
    assert set(required) <= set(needed)
    assert "| `zero_stage` | `0` or `1` or `2` or `3` | `2` |" in page
