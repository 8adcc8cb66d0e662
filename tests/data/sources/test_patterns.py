"""Patterns of file names against pathlib's."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xtdist.config import DataError
from xtdist.data import FilesSource
from xtdist.data.sources import inputs
from xtdist.data.sources.patterns import matcher

NAMES = ["a.txt", "b.txt", ".c.txt", "x/a.txt", "x/y/a.md", "x/y/z/ab.txt", "y/a[1].txt", "{a}.x"]
PIECES = st.sampled_from(["**", "*", "a*", "?", "x", "y", "*.txt", "[ab].txt", "[!a]*", ".*"])


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    for name in NAMES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x")
    return root


@settings(max_examples=300, deadline=None)
@given(folders=st.lists(PIECES, max_size=3), last=PIECES.filter(lambda p: p != "**"))
def test_a_pattern_matches_what_pathlib_matches(tree: Path, folders: list[str], last: str) -> None:
    pattern = "/".join([*folders, last])
    expected = {p.relative_to(tree).as_posix() for p in tree.glob(pattern) if p.is_file()}
    matches = matcher(pattern)
    assert {name for name in NAMES if matches(name)} == expected


def test_braces_are_alternatives_also_within_each_other() -> None:
    matches = matcher("{a,b/**}/*.{txt,json{,l}}")
    yes = ("a/x.txt", "b/x.json", "b/c/d/x.jsonl")
    assert [n for n in (*yes, "c/x.txt", "a/x.jsonx", "a/b/x.txt") if matches(n)] == list(yes)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("*.md", r"no file in .* matches '\*\.md'"),
        ("../*", "leaves the folder"),
        ("{a,..}/*", "leaves the folder"),
        ("/etc/*", "not a usable pattern"),
        ("", "not a usable pattern"),
        ("a//b", "not a usable pattern"),
        ("**.txt", r"\*\* stands for whole folders"),
        ("{a,b", "a brace has no partner"),
        ("a}", "a brace has no partner"),
    ],
)
def test_a_pattern_that_finds_nothing_is_refused(
    tmp_path: Path, pattern: str, message: str
) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match=message):
        inputs(FilesSource(path=str(tmp_path), pattern=pattern))
