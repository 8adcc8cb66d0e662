"""What works with what, as a page: made of the declarations alone."""

from __future__ import annotations

from collections.abc import Iterable

from xtdist.model.options.base import Option, Row
from xtdist.model.options.examples import written
from xtdist.model.options.left_out import LEFT_OUT, LEFT_OUT_CLASSES, LEFT_OUT_OF_FORWARD
from xtdist.model.options.resolver import FASTEST_FIRST
from xtdist.model.options.table import OPTIONS

HEAD = """# Options of the model

Made by `python -m xtdist.model.options > xtdist/model/OPTIONS.md`; a test compares the two.
Keywords are those of x-transformers 2.31 (`Decoder(…)`, `TransformerWrapper(…)`), and only they.
A YAML file has the places "in a config" instead, each with a value to write: `norm.kind=rmsnorm` is
`norm: {kind: rmsnorm}` below `model`, `model.norm.kind=rmsnorm` on the command line and
`norm=RMSNormConfig()` of `ModelConfig`. `attn_…` holds for cross attention too, where
`cross_attn_…` does not say otherwise. What can't work together is an error when the model is built.
"""
GIVEN = {"given embedding": "token_emb", "given head": "to_logits"}
"""Arguments of ``TransformerWrapper`` that are modules, so there is no row for them."""
COLUMNS = (
    "option | what it does | keywords | in a config | paper | tier | attention by | stacks | "
    "cache | packing | other order | not with"
)


def matrix() -> str:
    """The page, as Markdown."""
    parts = [HEAD, _table(COLUMNS.split(" | "), (_cells(option) for option in OPTIONS))]
    parts.append("## Different from x-transformers\n")
    parts.append("".join(f"- {o.name}: {o.differs}\n" for o in OPTIONS if o.differs))
    parts.append("## Keywords that xtdist leaves out\n")
    rows = ([f"`{keyword}`", why] for keyword, why in sorted(LEFT_OUT.items()))
    parts.append(_table(["keyword", "why"], rows))
    parts.append("## Arguments of forward that xtdist leaves out\n")
    rows = ([f"`{keyword}`", why] for keyword, why in sorted(LEFT_OUT_OF_FORWARD.items()))
    parts.append(_table(["argument", "why"], rows))
    parts.append("## Classes that xtdist leaves out\n")
    rows = ([f"`{name}`", why] for name, why in sorted(LEFT_OUT_CLASSES.items()))
    parts.append(_table(["class", "instead"], rows))
    return "\n".join(parts)


def _cells(option: Option) -> list[str]:
    rows = [row for row in (*option.rows, *option.wrapper) if isinstance(row, Row)]
    keywords = dict.fromkeys(f"`{row.keyword}`" for row in rows)
    if option.name in GIVEN:
        keywords[f"`{GIVEN[option.name]}`"] = None
    return [
        option.name,
        option.about,
        " ".join(keywords) or "-",
        " ".join(f"`{text}`" for text in written(option)) or "-",
        option.paper or "-",
        str(option.tier),
        ", ".join(b for b in FASTEST_FIRST if b in option.backends),
        option.causal,
        f"no: {option.uncacheable}" if option.uncacheable else "yes",
        f"no: {option.unpackable}" if option.unpackable else "yes",
        f"no: {option.fixed_order}" if option.fixed_order else "yes",
        "; ".join(f"{name} ({why})" for name, why in _excluded(option)) or "-",
    ]


def _excluded(option: Option) -> Iterable[tuple[str, str]]:
    """Both ways."""
    yield from option.excludes.items()
    for other in OPTIONS:
        if option.name in other.excludes:
            yield other.name, other.excludes[option.name]


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(c.replace('|', '/') for c in line)} |\n" for line in lines)
