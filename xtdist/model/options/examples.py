"""What to write in a config to turn an option on: made of its declaration."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

from xtdist.config import ConfigError, from_mapping, to_mapping
from xtdist.model.compat import layers_config, model_config
from xtdist.model.config import ModelConfig
from xtdist.model.options.base import REQUIRED, Option, Row, Sample
from xtdist.model.options.places import find, put
from xtdist.model.options.resolver import is_active
from xtdist.model.options.table import OPTIONS

LAYERS: Mapping[str, Any] = {"dim": 32, "depth": 2, "heads": 4}
WRAPPER: Mapping[str, Any] = {"num_tokens": 40, "max_seq_len": 24}
MOST = 6
"""Examples of one option without keywords."""


def written(option: Option) -> list[str]:
    """``place=value`` for every place of an option, in the words of a YAML file."""
    rows = [r for r in (*option.rows, *option.wrapper) if isinstance(r, Row)]
    found = {row.place: _value(row, _trees(option)) for row in rows}
    texts = [p if value is REQUIRED else f"{p}={_yaml(value)}" for p, value in found.items()]
    examples = [f"{p}={_yaml(v)}" for s in option.samples for p, v in s.config.items()]
    said = list(dict.fromkeys([*texts, *examples[:MOST]]))
    return [*said, *_from_condition(option, said)]


def _value(row: Row, trees: list[dict[str, Any]]) -> Any:
    """What samples put at a row's place, other than where there are none; else its default."""
    literal = (row.values or {}).get(True)
    usual = find(tree_of(Sample()), row.place)
    values = [find(tree, row.place) for tree in trees]
    others = [v for v in values if v is not None and v != usual]
    changed = next((v for v in others if v is not False), others[0] if others else None)
    if row.keyword in LAYERS or (changed is row.default is False and not row.values):
        return REQUIRED if row.keyword in LAYERS else True
    if isinstance(literal, Mapping) and (changed is None or isinstance(changed, Mapping)):
        return literal
    if changed is not None:
        return changed
    if row.values is None and row.into is None:
        usual_alone = not trees and not isinstance(row.default, bool)
        return True if row.default is False else REQUIRED if usual_alone else row.default
    present = [v for v in values if v is not None]
    return literal if literal is not None else present[0] if present else REQUIRED


def _from_condition(option: Option, texts: list[str]) -> list[str]:
    """What the option is recognised by, where ``texts`` do not say it: without any whatever it is,
    else one value of one place."""
    condition = option.active if isinstance(option.active, str) else ""
    place, equals, value = condition.partition("=")
    if not condition or place.endswith(".given"):  # a module stands in no config
        return []
    said = (f"{place}=", f"{place.rpartition('.')[0]}={{")
    if texts and (not equals or any(text.startswith(said) for text in texts)):
        return []
    return [f"{place}={value or 'true'}"]


def _trees(option: Option) -> list[dict[str, Any]]:
    """Configs that have the option: of its samples, or of others'."""
    own = [tree for sample in option.samples if (tree := tree_of(sample))]
    return own or [tree for tree in _all_trees() if is_active(option, _config(tree))]


@functools.cache
def _all_trees() -> tuple[dict[str, Any], ...]:
    return tuple(tree for o in OPTIONS for s in o.samples if (tree := tree_of(s)))


def _config(tree: Mapping[str, Any]) -> ModelConfig:
    return from_mapping(ModelConfig, tree)


def tree_of(sample: Sample) -> dict[str, Any]:
    """The config of a sample; empty where no stack has it."""
    for causal in (True, False):
        try:
            stack = layers_config({**LAYERS, **sample.layers}, causal=causal, name="Layers")
            tree = to_mapping(model_config(stack, {**WRAPPER, **sample.wrapper}))
            for place, value in sample.config.items():
                put(tree, place, value)
            return to_mapping(_config(tree))
        except ConfigError:
            continue
    return {}


def _yaml(value: Any) -> str:
    """In one line, as YAML reads it back."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {_yaml(v)}" for k, v in value.items() if v is not None) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    if isinstance(value, float):
        return str(round(value, 4))
    return value if isinstance(value, str) and value else json.dumps(value)
