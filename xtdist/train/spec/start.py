"""The model of a run by the name of a preset, or as weights that there are have it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xtdist.checkpoint.weights import find_weights, read_config
from xtdist.config import ConfigError, UserError, to_mapping
from xtdist.model.presets import expand, merged

SCHEME = "weights:"


def expand_model(model: Mapping[str, Any]) -> dict[str, Any]:
    """A plain mapping with ``preset: NAME`` or ``preset: weights:FOLDER`` as the full one; what
    else it holds comes on top.

    Raises:
        ConfigError: an unknown name, or no weights there.
    """
    name = model.get("preset")
    if not isinstance(name, str) or not name.startswith(SCHEME):
        return expand(model)
    try:
        config = read_config(find_weights(name.removeprefix(SCHEME))).model
    except UserError as e:
        raise ConfigError(f"preset: got {name!r}; {e}") from None
    changes = {key: value for key, value in model.items() if key != "preset"}
    return merged(to_mapping(config), changes)
