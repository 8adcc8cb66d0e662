"""What a name that is not ours is called here: keywords of x-transformers and other customary names
in a config; places of a config and customary names among the keywords."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from xtdist.config.fields import nearest
from xtdist.model.options.base import Row
from xtdist.model.options.left_out import ELSEWHERE, LEFT_OUT
from xtdist.model.options.table import layers_rows, wrapper_rows

CUSTOMARY: Mapping[str, tuple[str, str]] = {
    "n_heads": ("heads", "heads"),
    "n_head": ("heads", "heads"),
    "num_heads": ("heads", "heads"),
    "num_attention_heads": ("heads", "heads"),
    "kv_heads": ("attn_kv_heads", "attention.kv_heads"),
    "num_kv_heads": ("attn_kv_heads", "attention.kv_heads"),
    "num_key_value_heads": ("attn_kv_heads", "attention.kv_heads"),
    "head_dim": ("attn_dim_head", "attention.dim_head"),
    "d_model": ("dim", "dim"),
    "hidden_size": ("dim", "dim"),
    "n_layers": ("depth", "depth"),
    "num_layers": ("depth", "depth"),
    "num_hidden_layers": ("depth", "depth"),
    "vocab_size": ("num_tokens", "num_tokens"),
    "window": ("attn_max_attend_past", "attention.window"),
    "attn_window": ("attn_max_attend_past", "attention.window"),
    "sliding_window": ("attn_max_attend_past", "attention.window"),
    "flash": ("attn_flash=True", "attention.backend=sdpa"),
    "rmsnorm": ("use_rmsnorm=True", "norm.kind=rmsnorm"),
    "swiglu": ("ff_glu=True, ff_swish=True", "feedforward={kind: glu, activation: silu}"),
    "geglu": ("ff_glu=True", "feedforward={kind: glu, activation: gelu}"),
    "rope": ("rotary_pos_emb=True", "position.kind=rotary"),
    "rope_theta": ("", "position.theta"),
    "rope_scaling": ("", "position.scaling"),
    "alibi": ("alibi_pos_bias=True", "position_bias={kind: alibi}"),
}
"""Names that other libraries use: the keywords here, and the place in a config."""
MOST = 6


def explain_key(key: str) -> str:
    """Where a config has what ``key`` is elsewhere; empty if that is not known."""
    if key in LEFT_OUT:
        return f"xtdist leaves out x-transformers' {key}: {LEFT_OUT[key]}"
    places = [_place(row) for row in _rows() if row.keyword == key]
    if places:
        return f"x-transformers' {key} is {' and '.join(dict.fromkeys(places))} here"
    return f"it is {CUSTOMARY[key][1]} here" if key in CUSTOMARY else ""


def explain_keyword(keyword: str, value: Any, known: Iterable[str]) -> str:
    """Which of the keywords ``known`` is meant by one that is not among them."""
    known = list(known)
    if keyword in CUSTOMARY:
        ours, place = CUSTOMARY[keyword]
        if ours and ours.partition("=")[0] in known:
            return f"it is {ours} here"
        if not ours:
            return f"it has no keyword: it is {place} in a ModelConfig or YAML"
    found = [f"attn_{keyword}", f"ff_{keyword}", f"use_{keyword}"]
    found = [name for name in found if name in known]
    if found:
        return f"did you mean {' or '.join(map(repr, found))}?"
    said = _of_part(keyword, value, known)
    if said:
        return said
    near = nearest(keyword, known)
    return f"did you mean {near!r}?" if near else ELSEWHERE


def _of_part(place: str, value: Any, known: list[str]) -> str:
    """The keywords of a part of a config that was given as a keyword."""
    wanted = tuple(f"{place}.{key}" for key in value) if isinstance(value, Mapping) else ()
    rows = [row for row in _rows() if f"{row.place}.".startswith(f"{place}.")]
    narrow = [row for row in rows if row.place in wanted]
    chosen = [row for row in rows if row.values and value in _values(row)]
    names = dict.fromkeys(r.keyword for r in narrow or chosen or rows if r.keyword in known)
    if not names:
        return ""
    some = ", ".join([*list(names)[:MOST], *(["…"] if len(names) > MOST else [])])
    return f"{place} is a part of a ModelConfig; its keywords here: {some}"


def _values(row: Row) -> list[Any]:
    placed = (row.values or {}).values()
    return [v.get("kind") if isinstance(v, Mapping) else v for v in placed]


def _rows() -> list[Row]:
    return [row for row in (*layers_rows(), *wrapper_rows()) if isinstance(row, Row)]


def _place(row: Row) -> str:
    """The place of a keyword, with the value that switches it on."""
    value = (row.values or {}).get(True)
    if isinstance(value, Mapping):
        inner = ", ".join(f"{k}: {v}" for k, v in value.items())
        return f"{row.place}={{{inner}}}" if inner else row.place
    return row.place if value is None else f"{row.place}={value}"
