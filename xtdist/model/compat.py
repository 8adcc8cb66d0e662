"""x-transformers' keywords as data: one table, keyword ↔ place in our config.

The defaults are x-transformers' (2.31); our own defaults stand in the configs and apply to YAML.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from xtdist.config import ConfigError, from_mapping, to_mapping
from xtdist.model.config import LayersConfig, ModelConfig

REQUIRED = object()


@dataclasses.dataclass(frozen=True)
class Row:
    """``keyword`` lies at ``place``; ``values`` translates its values where they are not the same.
    ``needs`` is another keyword that must be on for this one to mean anything."""

    keyword: str
    place: str
    default: Any
    values: Mapping[Any, Any] | None = None
    needs: str | None = None


LAYERS: tuple[Row, ...] = (
    Row("dim", "dim", REQUIRED),
    Row("depth", "depth", REQUIRED),
    Row("heads", "heads", 8),
    Row("attn_dim_head", "attention.dim_head", 64),
    Row("attn_kv_heads", "attention.kv_heads", None),
    Row("attn_qk_rmsnorm", "attention.qk_rmsnorm", False),
    Row("attn_dropout", "attention.dropout", 0.0),
    Row("attn_flash", "attention.backend", False, {False: "auto", True: "sdpa"}),
    Row("rotary_pos_emb", "position.kind", False, {False: "learned", True: "rotary"}),
    Row("rotary_emb_dim", "position.dim", None, needs="rotary_pos_emb"),
    Row("disable_abs_pos_emb", "position.kind", None, {True: "none"}),
    Row("use_rmsnorm", "norm.kind", False, {False: "layernorm", True: "rmsnorm"}),
    Row("norm_add_unit_offset", "norm.unit_offset", True),
    Row("ff_mult", "feedforward.mult", 4.0),
    Row("ff_glu", "feedforward.kind", False, {False: "mlp", True: "glu"}),
    Row("ff_swish", "feedforward.activation", False, {False: "gelu", True: "silu"}),
    Row("ff_no_bias", "feedforward.bias_out", False, {False: True, True: False}),
    Row("ff_dropout", "feedforward.dropout", 0.0),
)

WRAPPER: tuple[Row, ...] = (
    Row("num_tokens", "num_tokens", REQUIRED),
    Row("max_seq_len", "max_seq_len", REQUIRED),
    Row("emb_dropout", "emb_dropout", 0.0),
    Row("tie_embedding", "tie_embedding", False),
    Row("tie_embedding_scale", "logit_scale", None, needs="tie_embedding"),
    Row("use_abs_pos_emb", "position.kind", True, {False: "none"}),
)


def layers_config(keywords: Mapping[str, Any], *, causal: bool, name: str) -> LayersConfig:
    """The config of ``Decoder(**keywords)`` or ``Encoder(**keywords)``.

    Raises:
        TypeError: a keyword that is unknown (with the nearest one) or missing.
        ConfigError: a value that is not allowed.
    """
    given = _checked(LAYERS, keywords, name)
    tree = _placed(LAYERS, given, {"causal": causal})
    # There, a gated layer's input projection has a bias even without biases, RMSNorm divides by
    # the bare norm, and half of each head is rotated.
    tree["feedforward"]["bias_in"] = tree["feedforward"]["bias_out"] or given["ff_glu"]
    tree["feedforward"]["multiple_of"] = 1
    if given["use_rmsnorm"]:
        tree["norm"]["eps"] = 1e-12
    if given["rotary_pos_emb"]:
        if given["disable_abs_pos_emb"] is False:
            raise ConfigError(
                f"{name}: rotary_pos_emb=True with disable_abs_pos_emb=False asks for rotary and "
                "learned positions together, which xtdist does not have; leave out one of the two"
            )
        tree["position"]["kind"] = "rotary"
        tree["position"]["dim"] = given["rotary_emb_dim"] or given["attn_dim_head"] // 2
    return from_mapping(LayersConfig, tree, where=name)


def model_config(layers: LayersConfig, keywords: Mapping[str, Any]) -> ModelConfig:
    """The config of ``TransformerWrapper(attn_layers=…, **keywords)``; raises as above."""
    given = _checked(WRAPPER, keywords, "TransformerWrapper")
    tree = to_mapping(layers)
    _placed(WRAPPER, given, tree)
    if layers.position.kind != "learned":
        tree["position"] = to_mapping(layers.position)
    if given["tie_embedding"] and given["tie_embedding_scale"] is None:
        tree["logit_scale"] = layers.dim**-0.5
    return from_mapping(ModelConfig, tree, where="TransformerWrapper")


def keywords_of(config: ModelConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keywords of the layers and of the wrapper that give ``config``, those at their default
    left out: the way back.

    Raises:
        ConfigError: x-transformers has no keywords for this model.
    """
    layers = _keywords(LAYERS, to_mapping(config))
    wrapper = _keywords(WRAPPER, to_mapping(config))
    if config.position.kind == "none":
        layers.pop("disable_abs_pos_emb", None)
    again = model_config(layers_config(layers, causal=config.causal, name="Layers"), wrapper)
    theirs, ours = _flat(to_mapping(again)), _flat(to_mapping(config))
    theirs["attention.backend"] = ours["attention.backend"]
    odd = [f"{key}={value!r}" for key, value in ours.items() if theirs.get(key, value) != value]
    if odd:
        raise ConfigError(f"x-transformers has no keyword for {', '.join(odd)}")
    return layers, wrapper


def _checked(rows: Sequence[Row], keywords: Mapping[str, Any], name: str) -> dict[str, Any]:
    """All keywords with their values, given or default."""
    known = {row.keyword: row for row in rows}
    for keyword in keywords:
        if keyword not in known:
            near = difflib.get_close_matches(keyword, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise TypeError(f"{name}: unknown keyword {keyword!r}; {hint}")
    missing = [row.keyword for row in rows if row.default is REQUIRED]
    missing = [keyword for keyword in missing if keyword not in keywords]
    if missing:
        raise TypeError(f"{name}: missing keyword {', '.join(map(repr, missing))}")
    given = {row.keyword: keywords.get(row.keyword, row.default) for row in rows}
    for row in rows:
        if row.needs and given[row.keyword] != row.default and not given[row.needs]:
            raise ConfigError(
                f"{name}: {row.keyword}={given[row.keyword]!r} has no effect without "
                f"{row.needs}=True; set that too, or leave it out"
            )
    return given


def _placed(rows: Sequence[Row], given: Mapping[str, Any], tree: dict[str, Any]) -> dict[str, Any]:
    """``tree`` with every keyword's value at its place."""
    for row in rows:
        value = given[row.keyword]
        if row.values is not None:
            if not isinstance(value, bool) and value is not None:
                raise ConfigError(f"{row.keyword}: got {value!r}; give True or False")
            if value not in row.values:
                continue
            value = row.values[value]
        elif row.needs and value is None:
            continue
        *path, leaf = row.place.split(".")
        node = tree
        for key in path:
            node = node.setdefault(key, {})
        if row.place == "position.kind" and value != node.get("kind"):
            node.clear()
        node[leaf] = value
    return tree


def _keywords(rows: Sequence[Row], tree: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords that say what stands in ``tree``, where they differ from the defaults."""
    flat = _flat(tree)
    found: dict[str, Any] = {}
    for row in rows:
        if row.place not in flat:
            continue
        value = flat[row.place]
        if row.values is not None:
            back = {place: keyword for keyword, place in row.values.items()}
            value = back.get(value, row.default)
        if row.needs and not found.get(row.needs):
            continue
        if value != row.default:
            found[row.keyword] = value
    return found


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` as ``{"a.b": 1}``."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        inner = _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {}
        flat.update(inner or {f"{prefix}{key}": value})
    return flat
