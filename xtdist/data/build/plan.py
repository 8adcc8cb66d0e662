"""What a build reads, in which units, with which settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from xtdist.config import to_mapping
from xtdist.data.build.config import PrepareConfig
from xtdist.data.build.extend import Old
from xtdist.data.build.vocabulary import Vocabulary
from xtdist.data.manifest import FORMAT_VERSION
from xtdist.data.sources import Input, Unit, inputs, plan_units


@dataclass(frozen=True, kw_only=True)
class Plan:
    """``settings`` shape the dataset, besides the text; two builds with equal ``digest`` can go on
    from each other."""

    settings: dict[str, Any]
    inputs: Sequence[Input]
    units: Sequence[Unit]
    digest: str


def make_plan(config: PrepareConfig, vocabulary: Vocabulary, old: Old | None) -> Plan:
    """Cut the source into units.

    Raises:
        DataError, ConfigError: nothing there to read, see ``plan_units``.
    """
    settings = {
        "tokenizer": vocabulary.identity,
        "valid_fraction": config.valid_fraction,
        "shard_tokens": config.shard_tokens,
        "unit_bytes": config.unit_bytes,
        "extends": old.manifest.dataset_id if old else None,
    }
    given = inputs(config.source)
    content = hashlib.sha256()
    for part in ([FORMAT_VERSION, settings, to_mapping(config.source)], *given):
        content.update(json.dumps(part, sort_keys=True).encode() + b"\n")
    return Plan(
        settings=settings,
        inputs=given,
        units=plan_units(config.source, config.unit_bytes),
        digest=content.hexdigest(),
    )
