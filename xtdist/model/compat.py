"""x-transformers' keywords as data: keyword → place in our config; ``compat_back`` is the way back.

The table is made of the options (``model/options``). Its defaults are x-transformers' (2.31); our
own defaults stand in the configs and apply to YAML.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from xtdist.config import ConfigError, from_mapping, to_mapping
from xtdist.model.config import LayersConfig, ModelConfig
from xtdist.model.hints import explain_keyword
from xtdist.model.options.base import INHERIT, REQUIRED, SKIP, AnyRow, Fixed, Row
from xtdist.model.options.left_out import LEFT_OUT
from xtdist.model.options.places import exists, find, put
from xtdist.model.options.table import layers_rows, wrapper_rows

T = TypeVar("T")


def layers_config(
    keywords: Mapping[str, Any], *, causal: bool, name: str, prefix: bool = False
) -> LayersConfig:
    """The config of ``Decoder(**keywords)``, ``Encoder(**keywords)`` and so on.

    Raises:
        TypeError: a keyword that is unknown (with the nearest one), left out here, or missing.
        ConfigError: a value that is not allowed.
    """
    rows = layers_rows()
    given = _checked(rows, {k: v for k, v in keywords.items() if k != "verbose"}, name)
    tree: dict[str, Any] = {"causal": causal, "prefix": prefix}
    _Placing(LayersConfig, tree, given, name, keywords).place(rows)
    return _build(LayersConfig, tree, rows, keywords, name=name)


def model_config(layers: LayersConfig, keywords: Mapping[str, Any]) -> ModelConfig:
    """The config of ``TransformerWrapper(attn_layers=…, **keywords)``; raises as above."""
    rows, name = wrapper_rows(), "TransformerWrapper"
    if keywords.get("scaled_sinu_pos_emb") and keywords.get("use_abs_pos_emb") is False:
        raise ConfigError(
            f"{name}: scaled_sinu_pos_emb=True has no effect with use_abs_pos_emb=False; leave one "
            "out"
        )
    tree = to_mapping(layers)
    given = {**tree, **_checked(rows, keywords, name)}
    _Placing(ModelConfig, tree, given, name, keywords).place(rows)
    return _build(ModelConfig, tree, rows, keywords, name=name)


def _build(
    cls: type[T],
    tree: dict[str, Any],
    rows: Sequence[AnyRow],
    keywords: Mapping[str, Any],
    *,
    name: str,
) -> T:
    """The config of ``tree``; an error also names the keyword that was written."""
    try:
        return from_mapping(cls, tree, where=name)
    except ConfigError as e:
        lines = [_with_keyword(line, rows, keywords, name) for line in str(e).splitlines()]
        raise ConfigError("\n".join(dict.fromkeys(lines))) from None


def _with_keyword(line: str, rows: Sequence[AnyRow], keywords: Mapping[str, Any], name: str) -> str:
    """An error about a place of the config, led by the keyword that put something there."""
    text = line.removeprefix(f"{name}: ")
    for place in PLACE.findall(text):
        found = [
            (len(row.place), not row.chooses, row.keyword in keywords, keyword)
            for row in rows
            if isinstance(row, Row) and f"{place}.".startswith(f"{row.place}.")
            for keyword in _written(row, keywords)
        ]
        if found:
            keyword = max(found)[-1]
            if text.startswith(f"{keyword}:"):
                return line
            shown = repr(keywords[keyword])[:60]
            return f"{name}: {keyword}={shown}: {text}"
    return line


def _written(row: Row, keywords: Mapping[str, Any]) -> list[str]:
    """The keyword of a row, or the one that it takes its value from, where it was written."""
    names = [row.keyword]
    if row.default is INHERIT:
        names.append(row.keyword.removeprefix("cross_"))
    return [name for name in names if name in keywords]


PLACE = re.compile(r"[a-z_]+(?:\.[a-z_0-9]+)*(?=[:=])")


def _check_entries(row: Row, rows: Sequence[AnyRow], value: Any, name: str) -> None:
    """A keyword that takes a mapping got one, with names that are known."""
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"{name}: {row.keyword}: got {value!r}; give a mapping of names to values"
        )
    known = [_entry(r) for r in rows if isinstance(r, Row) and r.keyword == row.keyword]
    unknown = [] if "" in known else [key for key in value if key not in known]
    if unknown:
        raise ConfigError(
            f"{name}: {row.keyword}: unknown name {unknown[0]!r}; known: {', '.join(known)}"
        )


def _entry(row: Row) -> str:
    """The entry of a mapping that a row is about; empty where it takes the whole value."""
    return row.into.keywords.get("name", "") if isinstance(row.into, partial) else ""


def _checked(rows: Sequence[AnyRow], keywords: Mapping[str, Any], name: str) -> dict[str, Any]:
    """All keywords with their values, given or default."""
    known = {row.keyword: row for row in rows if isinstance(row, Row)}
    for keyword in keywords:
        if keyword in known:
            continue
        if keyword in LEFT_OUT:
            raise TypeError(f"{name}: xtdist leaves out {keyword!r}: {LEFT_OUT[keyword]}")
        hint = explain_keyword(keyword, keywords[keyword], known)
        raise TypeError(f"{name}: unknown keyword {keyword!r}; {hint}")
    missing = [k for k, row in known.items() if row.default is REQUIRED and k not in keywords]
    if missing:
        raise TypeError(f"{name}: missing keyword {', '.join(map(repr, missing))}")
    given = {k: keywords.get(k, row.default) for k, row in known.items()}
    for keyword in keywords:
        if isinstance(known[keyword].default, Mapping):
            _check_entries(known[keyword], rows, keywords[keyword], name)
    return {k: given[k.removeprefix("cross_")] if v is INHERIT else v for k, v in given.items()}


class _Placing:
    """Writes keywords into a tree of plain data, row by row."""

    def __init__(
        self,
        cls: type,
        tree: dict[str, Any],
        given: dict[str, Any],
        name: str,
        written: Mapping[str, Any],
    ) -> None:
        self.cls, self.tree, self.given, self.name = cls, tree, given, name
        self.written = written
        self.chosen: dict[str, tuple[Row, Any]] = {}
        self.nowhere: dict[tuple[str, str], Row] = {}  # given, and no place for it yet
        self.landed: set[tuple[str, str]] = set()

    def place(self, rows: Sequence[AnyRow]) -> None:
        """All of them."""
        for row in rows:
            if isinstance(row, Fixed):
                self._fix(row)
            else:
                self._set(row)
        for row in self.nowhere.values():
            raise self._error(row, f"has no effect on {self._parent(row)}; leave")

    def _fix(self, row: Fixed) -> None:
        if self._needed(row) and exists(self.cls, self.tree, row.place):
            put(self.tree, row.place, row.value(self.given) if callable(row.value) else row.value)

    def _set(self, row: Row) -> None:
        value = self.given[row.keyword]
        key = row.keyword, _entry(row)
        changed = self._changed(row, value)
        if not self._needed(row):
            if changed:
                needs = " or ".join(f"{k}=True" for k in row.needs.split("|"))
                raise self._error(row, f"has no effect without {needs}; set that too, or leave")
            return
        placed = self._translate(row, value)
        if placed is SKIP:
            return
        if not exists(self.cls, self.tree, row.place):
            if changed and key not in self.landed:
                self.nowhere[key] = row
            return
        if changed:
            self._check_choice(row, placed)
        self.landed.add(key)
        self.nowhere.pop(key, None)
        put(self.tree, row.place, placed)

    def _changed(self, row: Row, value: Any) -> bool:
        """Whether a keyword says something other than its default."""
        if row.default is not INHERIT:
            return bool(value != row.default)
        if row.keyword in self.written and not self.given["cross_attend"]:
            raise self._error(
                row, "has no effect without cross_attend=True; set that too, or leave"
            )
        return (
            row.keyword in self.written and value != self.given[row.keyword.removeprefix("cross_")]
        )

    def _needed(self, row: AnyRow) -> bool:
        return not row.needs or any(self.given[keyword] for keyword in row.needs.split("|"))

    def _translate(self, row: Row, value: Any) -> Any:
        if row.into is not None:
            try:
                return row.into(value, self.given)
            except (ConfigError, TypeError) as e:
                raise type(e)(f"{self.name}: {e}") from None
        if row.values is None:
            return list(value) if isinstance(value, tuple) else value
        if value is not None and not isinstance(value, type(next(iter(row.values)))):
            allowed = "True or False" if True in row.values else " or ".join(map(repr, row.values))
            raise ConfigError(f"{self.name}: {row.keyword}: got {value!r}; give {allowed}")
        return row.values.get(value, SKIP)

    def _check_choice(self, row: Row, placed: Any) -> None:
        """Two keywords can't choose differently at one place."""
        first, chosen = self.chosen.setdefault(row.place, (row, placed))
        if first is not row and first.keyword not in row.needs.split("|") and chosen != placed:
            raise ConfigError(
                f"{self.name}: {first.keyword}={self.given[first.keyword]!r} and "
                f"{row.keyword}={self.given[row.keyword]!r} both choose {row.place}; leave out one"
            )

    def _parent(self, row: Row) -> str:
        parent = row.place.rpartition(".")[0]
        node = find(self.tree, parent)
        kind = node.get("kind") if isinstance(node, Mapping) else node
        return f"{parent}={kind}"

    def _error(self, row: Row, text: str) -> ConfigError:
        return ConfigError(f"{self.name}: {row.keyword}={self.given[row.keyword]!r} {text} it out")
