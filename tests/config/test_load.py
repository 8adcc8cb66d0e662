"""Config files: what is read, and what a mistake says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from xtdist.config import (
    ConfigError,
    PositiveFloat,
    PositiveInt,
    configclass,
    derive_seed,
    digest,
    from_mapping,
    load,
    to_mapping,
)


@configclass
class Rotary:
    kind: Literal["rotary"] = "rotary"
    theta: PositiveFloat = 10000.0


@configclass
class Alibi:
    kind: Literal["alibi"] = "alibi"
    heads: PositiveInt = 8


@configclass
class Net:
    depth: PositiveInt = 2
    sizes: tuple[int, ...] = ()
    position: Annotated[Rotary | Alibi, Field(discriminator="kind")] = Rotary()


@configclass
class Tree:
    net: Net = Net()
    lr: PositiveFloat = 1e-3
    name: str | None = None

    def __post_init__(self) -> None:
        if self.name == "bad":
            raise ConfigError("name: got 'bad'; give a good one")


@pytest.fixture
def yaml_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text("lr: 3e-4\nnet:\n  depth: 4\n  position:\n    kind: alibi\n    heads: 2\n")
    return path


def error(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(Tree, path, overrides)
    return str(caught.value)


def test_a_file_is_read_with_numbers_in_scientific_notation(yaml_file: Path) -> None:
    config = load(Tree, yaml_file).config
    assert config == Tree(lr=3e-4, net=Net(depth=4, position=Alibi(heads=2)))


def test_every_value_remembers_where_it_came_from(yaml_file: Path) -> None:
    loaded = load(Tree, yaml_file, ["net.depth=7"])
    assert loaded.sources["lr"] == f"{yaml_file}:1"
    assert loaded.sources["net.position.heads"] == f"{yaml_file}:6"
    assert loaded.sources["net.depth"] == "override 'net.depth=7'"


@pytest.mark.parametrize(
    ("override", "check"),
    [
        ("net.depth=8", lambda c: c.net.depth == 8),
        ("net.sizes=[1, 2]", lambda c: c.net.sizes == (1, 2)),
        ("name=on", lambda c: c.name == "on"),
        ("name=null", lambda c: c.name is None),
        ("name='a #b'", lambda c: c.name == "a #b"),
        ("name=a#b", lambda c: c.name == "a#b"),
        ("net.depth=1_000", lambda c: c.net.depth == 1000),
        ("net.sizes=[0, -3, +4]", lambda c: c.net.sizes == (0, -3, 4)),
        ("lr=2", lambda c: c.lr == 2.0),
        ("net.position={kind: rotary}", lambda c: c.net.position == Rotary()),
        ("net.position={heads: 5}", lambda c: c.net.position == Alibi(heads=5)),
        ("net.position={kind: alibi}", lambda c: c.net.position == Alibi(heads=2)),
    ],
)
def test_an_override_changes_one_place(yaml_file: Path, override: str, check: object) -> None:
    assert callable(check)
    assert check(load(Tree, yaml_file, [override]).config)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("net.dpth=8", ["unknown key 'dpth'", "did you mean 'depth'"]),
        ("net.depth=eight", ["net.depth", '"eight"', "integer", "override"]),
        ("net.depth=0", ["net.depth", "0", "greater than 0"]),
        ("net.depth=true", ["net.depth", "true", "integer"]),
        ("net.depth=2.0", ["net.depth", "2.0", "integer"]),
        ("lr=.inf", ["lr"]),
        ("net.position.kind=learned", ["net.position.kind: got", "'rotary', 'alibi'", "override"]),
        ("net.position=3", ["override 'net.position=3'", "{kind: rotary, theta: 3}"]),
        (
            "net.position.theta=1.0",
            ["net.position.theta: unknown key; not a key of kind 'alibi'; kind 'rotary' has it"],
        ),
        ("net.depth=010", ["net.depth", '"010"', "integer"]),
        ("net.depth=1:30", ["net.depth", '"1:30"', "integer"]),
        ("lr=010", ["lr", '"010"', "number"]),
        ("net.sizes=" + "[" * 3000, ["not a YAML value"]),
        ("name=a #b", ["comment", "quote"]),
        ("name=#b", ["comment", "quote"]),
        ("name=bad", ["give a good one"]),
        ("depth", ["key.path=value"]),
        ("lr=[", ["not a YAML value"]),
    ],
)
def test_a_bad_override_says_what_where_and_what_is_allowed(
    yaml_file: Path, override: str, words: list[str]
) -> None:
    message = error(yaml_file, override)
    assert all(word in message for word in words), message


@configclass
class Shared:
    width: PositiveInt = 4
    parts: PositiveInt = 2

    def __post_init__(self) -> None:
        if self.width % self.parts:
            raise ConfigError(f"parts: got {self.parts} with width={self.width}")


@configclass
class Outer:
    shared: Shared = Shared()
    position: Annotated[Rotary | Alibi, Field(discriminator="kind")] | None = None


@pytest.mark.parametrize("override", ["shared.width=3", "shared.parts=3"])
def test_the_override_that_brought_a_contradiction_is_named(tmp_path: Path, override: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("shared:\n  width: 4\n  parts: 2\n")
    with pytest.raises(ConfigError) as caught:
        load(Outer, path, [override])
    assert str(caught.value).startswith(f"override '{override}': shared.parts: got ")


def test_a_part_that_an_override_began_is_blamed_on_it(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("shared: {}\n")
    with pytest.raises(ConfigError, match=r"^override 'position.heads=3': position.kind: required"):
        load(Outer, path, ["position.heads=3"])


def test_a_mistake_in_a_file_is_placed_by_line_and_the_nearest_name_is_given(
    yaml_file: Path,
) -> None:
    yaml_file.write_text("net:\n  position:\n    kind: rotary\n    teta: 5.0\n")
    message = error(yaml_file)
    assert f"{yaml_file}:4" in message
    assert "net.position.teta" in message
    assert "did you mean 'theta'" in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lr: 1.0\nlr: 2.0\n", ["duplicate key 'lr'", ":2"]),
        ("net: &a {depth: 1}\nname: *a\n", ["aliases", ":2"]),
        ("- 1\n", ["mapping"]),
        ("lr: [1\n", ["run.yaml"]),
        ("<<: {lr: 2.0}\n", ["<<: unk"]),
        ("lr: " + "[" * 3000, ["run.yaml", "nested too deeply"]),
        ("lr: !!python/name:os.system\n", ["run.yaml"]),
    ],
)
def test_a_file_that_is_not_a_plain_tree_is_refused(
    yaml_file: Path, text: str, words: list[str]
) -> None:
    yaml_file.write_text(text)
    message = error(yaml_file)
    assert all(word in message for word in words), message


def test_a_missing_file_and_a_binary_one_are_named(tmp_path: Path) -> None:
    assert "nowhere.yaml" in error(tmp_path / "nowhere.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    assert "UTF-8" in error(tmp_path / "b.yaml")


def test_configs_are_frozen() -> None:
    with pytest.raises(AttributeError):
        Net().depth = 3  # type: ignore[misc]


@given(
    depth=st.integers(1, 99),
    lr=st.floats(1e-9, 1e9),
    name=st.one_of(st.none(), st.text(max_size=8).filter(lambda s: s != "bad")),
    position=st.one_of(
        st.builds(Rotary, theta=st.floats(1e-3, 1e9)), st.builds(Alibi, heads=st.integers(1, 64))
    ),
)
def test_plain_data_and_back_is_the_same_config(
    depth: int, lr: float, name: str | None, position: Rotary | Alibi
) -> None:
    config = Tree(net=Net(depth=depth, position=position), lr=lr, name=name)
    again = from_mapping(Tree, to_mapping(config))
    assert again == config
    assert digest(again) == digest(config)


@given(st.integers(0, 2**32), st.lists(st.one_of(st.integers(), st.text(max_size=5)), max_size=3))
def test_seeds_depend_on_every_label_and_its_type(seed: int, labels: list[int | str]) -> None:
    one = derive_seed(seed, *labels)
    assert one == derive_seed(seed, *labels)
    assert 0 <= one < 2**63
    assert one != derive_seed(seed + 1, *labels)
    assert one != derive_seed(seed, *labels, 0)
    assert derive_seed(seed, 1) != derive_seed(seed, "1")
