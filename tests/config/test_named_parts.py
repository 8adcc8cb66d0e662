"""A part of a config that names a preset: what comes on top, and what a mistake says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from xtdist.config import ConfigError, PositiveInt, configclass, load, to_mapping

SHAPES: dict[str, Any] = {
    "small": {"depth": 2, "head": {"dim": 4, "heads": 2}},
    "large": {"depth": 9},
}


def expand(net: Mapping[str, Any]) -> dict[str, Any]:
    own = {k: v for k, v in net.items() if k != "preset"}
    if "preset" not in net:
        return own
    if net["preset"] not in SHAPES:
        raise ConfigError(f"preset: got {net['preset']!r}; there are small and large")
    whole: dict[str, Any] = {**SHAPES[net["preset"]], **own}
    if own.get("head") and "head" in SHAPES[net["preset"]]:
        whole["head"] = {**SHAPES[net["preset"]]["head"], **own["head"]}
    return whole


@configclass
class Head:
    dim: PositiveInt = 8
    heads: PositiveInt = 1


@configclass
class Net:
    depth: PositiveInt
    head: Head = Head()


@configclass
class Tree:
    presets: ClassVar[Mapping[str, Any]] = {"net": expand}
    net: Net
    steps: PositiveInt = 1


@pytest.fixture
def yaml_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text("steps: 3\nnet:\n  preset: small\n  head: {dim: 5}\n")
    return path


def test_a_file_names_a_preset_and_changes_parts_of_it(yaml_file: Path) -> None:
    loaded = load(Tree, yaml_file)
    assert loaded.config == Tree(steps=3, net=Net(depth=2, head=Head(dim=5, heads=2)))
    assert "preset" not in to_mapping(loaded.config)["net"]
    assert loaded.sources["net.head.dim"] == f"{yaml_file}:4"
    assert loaded.sources["net.depth"] == loaded.sources["net.head.heads"] == "preset 'small'"


@pytest.mark.parametrize(
    ("overrides", "net"),
    [
        (["net.depth=7"], Net(depth=7, head=Head(dim=5, heads=2))),
        (["net.preset=large"], Net(depth=9)),
        (["net.preset=large", "net.head.dim=3"], Net(depth=9, head=Head(dim=3))),
        (["net.head.dim=3", "net.preset=large"], Net(depth=9, head=Head(dim=3))),
        (["net={preset: large, depth: 4}"], Net(depth=4)),
        (["net={depth: 4}"], Net(depth=4, head=Head(dim=5, heads=2))),
    ],
)
def test_a_preset_that_an_override_names_replaces_what_the_file_says_of_the_part(
    yaml_file: Path, overrides: list[str], net: Net
) -> None:
    assert load(Tree, yaml_file, overrides).config.net == net


def test_what_a_preset_dropped_is_noted(yaml_file: Path) -> None:
    notes = load(Tree, yaml_file, ["net.preset=large", "net.depth=3"]).notes
    assert notes == (
        f"override 'net.preset=large' replaces all of net in {yaml_file}:2: net.preset, "
        "net.head.dim",
    )
    assert load(Tree, yaml_file, ["net.depth=3"]).notes == ()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["net.preset=huge"], ["override 'net.preset=huge'", "net.preset: got 'huge'; there are"]),
        (["net.depth=0"], ["override 'net.depth=0'", "net.depth: got 0"]),
        (["net.pre_set=small"], ["unknown key 'pre_set'", "did you mean 'preset'"]),
        (["net={presset: small}"], ["net.presset", "did you mean 'preset'"]),
        (["net={preset: large, dpth: 3}"], ["net.dpth", "did you mean 'depth'"]),
        (["preset=small"], ["unknown key 'preset'"]),
        (["net.head.preset=small"], ["unknown key 'preset'"]),
        (["net=3"], ["net: got 3"]),
        (["net=small"], ['net: got "small"; it should be an object: {preset: small}']),
    ],
)
def test_a_bad_override_says_what_where_and_what_is_allowed(
    yaml_file: Path, overrides: list[str], words: list[str]
) -> None:
    assert_refused(yaml_file, overrides, words)


@pytest.mark.parametrize(
    ("net", "words"),
    [
        ("  depth: 3\n  preset: huge", [":3", "net.preset: got 'huge'; there are small and large"]),
        ("  preset: small\n  head: {dim: 0}", [":3", "net.head.dim: got 0"]),
        ("  preset: small\n  dpth: 1", [":3", "did you mean 'depth'"]),
        ("  depth: 3\n  presett: small", [":3", "net.presett", "did you mean 'preset'"]),
        ("  preset: small\n  head: null", [":3", "net.head: got null"]),
    ],
)
def test_a_mistake_in_a_file_is_placed_by_line(tmp_path: Path, net: str, words: list[str]) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"net:\n{net}\n")
    assert_refused(path, [], [str(path), *words])


def assert_refused(path: Path, overrides: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(Tree, path, overrides)
    assert all(word in str(caught.value) for word in words), caught.value
