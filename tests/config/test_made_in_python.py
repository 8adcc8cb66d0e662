"""Configs that are made in Python: checked as those from YAML, with the same words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal

import pytest
from pydantic import Field

from xtdist.config import (
    ConfigError,
    Elsewhere,
    PositiveFloat,
    PositiveInt,
    Probability,
    configclass,
    from_mapping,
    to_mapping,
    within,
)


def explain(key: str) -> str:
    return "it is norm here" if key == "normalization" else ""


@configclass
class Plain:
    kind: Literal["plain"] = "plain"
    eps: PositiveFloat = 1e-6


@configclass
class Scaled:
    kind: Literal["scaled"] = "scaled"
    factor: PositiveFloat
    streams: PositiveInt = 1


Norm = Annotated[
    Plain | Scaled, Field(discriminator="kind"), Elsewhere({"batch": "that is batch_norm"})
]


@configclass
class Table:
    name: str
    tokens: PositiveInt


@configclass
class Memory:
    tokens: PositiveInt


@configclass
class Heads:
    count: PositiveInt = 2
    groups: PositiveInt = 1

    def __post_init__(self) -> None:
        if self.count % self.groups:
            raise ConfigError(f"groups: got {self.groups} with count={self.count}")


@configclass
class Net:
    explain_key: ClassVar[Callable[[str], str]] = explain

    dim: PositiveInt
    causal: bool = True
    dropout: Probability | tuple[Probability, ...] = 0.0
    norm: Norm = Plain()
    extra: Norm | None = None
    heads: Heads = Heads()
    memory: Memory | None = None
    tables: tuple[Table, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.norm, Scaled) and self.norm.streams > self.dim:
            raise ConfigError(f"norm.streams: got {self.norm.streams} with dim={self.dim}")


@configclass
class Tree:
    presets: ClassVar[Mapping[str, Any]] = {"net": dict}
    net: Net


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "range": ({"dim": 0}, "dim: got 0; it should be greater than 0"),
    "type": ({"dim": "2"}, 'dim: got "2"; it should be a valid integer'),
    "switch": ({"causal": "no"}, 'causal: got "no"; it should be a valid boolean'),
    "one or many": ({"dropout": 1.5}, "dropout: got 1.5; it should be less than 1, or a valid arr"),
    "null": ({"norm": None}, "norm: got null; it should be an object"),
    "unknown": ({"dims": 3}, "dims: unknown key; did you mean 'dim'?"),
    "known elsewhere": ({"normalization": 3}, "normalization: unknown key; it is norm here"),
    "key of a part": ({"groups": 3}, "groups: unknown key; did you mean heads.groups?"),
    "not alike": ({"kindled": 3}, "kindled: unknown key; allowed here: causal, dim, dropout"),
    "word": ({"norm": "plain"}, 'norm: got "plain"; it should be an object: {kind: plain}'),
    "word, nearly": ({"norm": "plane"}, 'norm: got "plane"; it should be an object: {kind: plain}'),
    "word, elsewhere": (
        {"norm": "batch"},
        "an object; that is batch_norm; kinds here: 'plain'",
    ),
    "number": ({"memory": 4}, "memory: got 4; it should be an object: {tokens: 4}"),
    "number of a kind": (
        {"extra": 0.5},
        "extra: got 0.5; it should be an object: {kind: plain, eps: 0.5} or "
        "{kind: scaled, factor: 0.5}",
    ),
    "on": ({"heads": True}, "heads: got true; it should be an object: {count: 2}"),
    "off": ({"memory": False}, "memory: got false; it should be an object or null"),
    "kind": (
        {"norm": {"kind": "plan"}},
        "norm.kind: got \"plan\"; did you mean 'plain'? Kinds: 'plain', 'scaled'",
    ),
    "kind, elsewhere": ({"norm": {"kind": "batch"}}, 'norm.kind: got "batch"; that is batch_norm'),
    "no kind": ({"norm": {}}, "norm.kind: required key is missing; give one of 'plain', 'scaled'"),
    "missing in a part": ({"norm": {"kind": "scaled"}}, "norm.factor: required key is missing"),
    "key of a kind": (
        {"norm": {"kind": "plain", "factor": 1.0}},
        "norm.factor: unknown key; not a key of kind 'plain'; kind 'scaled' has it",
    ),
    "in a list": ({"tables": [{"name": "a", "tokens": 0}]}, "tables.0.tokens: got 0; it should be"),
    "check of a part": ({"heads": {"count": 3, "groups": 2}}, "heads.groups: got 2 with count=3"),
    "check of the whole": (
        {"norm": {"kind": "scaled", "factor": 1, "streams": 9}},
        "norm.streams: got 9 with dim=4",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_says_the_same_in_python_and_in_plain_data(name: str) -> None:
    fields, message = WRONG[name]
    with pytest.raises(ConfigError) as made:
        Net(**{"dim": 4, **fields})
    assert message in str(made.value)
    with pytest.raises(ConfigError) as read:
        from_mapping(Net, {"dim": 4, **fields})
    assert str(read.value) == str(made.value)
    with pytest.raises(ConfigError) as inner:
        from_mapping(Tree, {"net": {"dim": 4, **fields}})
    key = message.partition(": ")[0] if ": " in message else next(iter(fields))
    if not key.startswith("an object"):
        assert str(inner.value).startswith(f"net.{key}: ")


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        Net(causal=1, heads={"count": 0, "group": 1})  # type: ignore[arg-type, call-arg]
    lines = sorted(line.split(":")[0] for line in str(caught.value).splitlines())
    assert lines == ["causal", "dim", "heads.count", "heads.group"]


def test_a_part_may_be_a_config_a_mapping_or_hold_both() -> None:
    made = Net(
        dim=4,
        norm={"kind": "scaled", "factor": 2},  # type: ignore[arg-type]
        heads=Heads(count=4),
        tables=[Table(name="a", tokens=1), {"name": "b", "tokens": 2}],  # type: ignore[arg-type]
        dropout=[0.1, 0.2],  # type: ignore[arg-type]
    )
    again = from_mapping(Net, to_mapping(made))
    assert made == again
    assert made.norm == Scaled(factor=2.0)
    assert made.tables == (Table(name="a", tokens=1), Table(name="b", tokens=2))


def test_a_part_of_another_class_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"heads: got Plain.*; it should be Heads, or a mapping"):
        Net(dim=4, heads=Plain())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"dim: got Plain.*; it should be plain data"):
        Net(dim=Plain())  # type: ignore[arg-type]


def test_what_is_no_plain_data_is_named() -> None:
    odd = object()
    with pytest.raises(ConfigError, match=r"dim: got <object.*; it should be a valid integer"):
        Net(dim=odd)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"where: not plain data: heads.count=.* is a object"):
        from_mapping(Net, {"dim": 3, "heads": {"count": odd}}, where="where")


def test_a_named_part_given_as_a_word_says_how_it_is_named() -> None:
    with pytest.raises(ConfigError, match=r'net: got "x"; it should be an object: {preset: x}$'):
        from_mapping(Tree, {"net": "x"})


def test_a_check_from_outside_is_told_with_the_place_of_the_part() -> None:
    with pytest.raises(ConfigError, match=r"^net.heads.groups: got 3$"), within(Tree, "net"):
        raise ConfigError("heads.groups: got 3")
    with pytest.raises(ConfigError, match=r"^net: they differ$"), within(Tree, "net"):
        raise ConfigError("they differ")
    with pytest.raises(ConfigError, match=r"^net.dim: x and y differ$"), within(Tree, "net"):
        raise ConfigError("x and y differ", place="dim")
