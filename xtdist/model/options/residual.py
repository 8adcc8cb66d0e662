"""Options of residual connections: how a branch's output joins the stream, and what it reads."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from xtdist.config import ConfigError
from xtdist.model.options.base import SKIP, Fixed, Option, Row, Sample, elsewhere
from xtdist.model.options.weights import SCALAR, Rule


def counted(streams: Any) -> int:
    """A number of streams.

    Raises:
        ConfigError: none.
    """
    if isinstance(streams, bool) or not isinstance(streams, int) or streams < 1:
        raise ConfigError(f"num_residual_streams: got {streams!r}; give a number from 1")
    return streams


def many(streams: int, given: Mapping[str, Any]) -> Any:
    """More than one stream are hyper-connections, unless they are gated."""
    return "hyper" if counted(streams) > 1 and not given["gated_multi_residual"] else SKIP


def how_many(streams: int, given: Mapping[str, Any]) -> Any:
    """One stream is what every other residual has."""
    return streams if counted(streams) > 1 or given["gated_multi_residual"] else SKIP


def views(on: bool, given: Mapping[str, Any]) -> Any:
    """``qkv_receive_diff_residuals``; with integrated layers they always do."""
    return SKIP if given["integrate_layers"] else on


def from_kwargs(value: Mapping[str, Any], given: Mapping[str, Any], *, name: str) -> Any:
    """One of ``residual_fn_kwargs`` or ``attn_aggregated_residual_kwargs``."""
    return value.get(name, SKIP)


def into_kwargs(value: Any, tree: Mapping[str, Any], *, name: str, default: Any) -> Any:
    """The way back: the dictionaries of all rows are joined."""
    return SKIP if value == default else {name: value}


TAKERS = {
    "residual_fn_kwargs": "mv_split_residual|gated_multi_residual",
    "attn_aggregated_residual_kwargs": "attn_aggregated_residuals",
}


def kwarg(keyword: str, place: str, name: str, default: Any) -> Row:
    """The row of one entry of a dictionary."""
    return Row(
        keyword,
        place,
        {},
        into=partial(from_kwargs, name=name),
        back=partial(into_kwargs, name=name, default=default),
        needs=TAKERS[keyword],
    )


def is_constant(config: Any) -> bool:
    """A constant other than one."""
    return bool(getattr(config.residual, "constant", 1.0) != 1.0)


RESIDUALS: tuple[Option, ...] = (
    Option(
        name="residual",
        about="stream + branch",
        active="residual.kind=plain",
        paper="1512.03385",
        rows=(Fixed("residual.kind", "plain"),),
    ),
    Option(
        name="scaled residual",
        about="a learned gain on the stream",
        active="residual.learned_scale",
        tier=2,
        rows=(Row("scale_residual", "residual.learned_scale", False),),
        samples=(Sample({"scale_residual": True}),),
        weights=(Rule("residual", "residual_scale", "scale"),),
    ),
    Option(
        name="constant residual",
        about="a constant gain on the stream",
        active=is_constant,
        tier=2,
        rows=(Row("scale_residual_constant", "residual.constant", 1.0),),
        samples=(Sample({"scale_residual_constant": 0.7}),),
    ),
    Option(
        name="GRU residual",
        about="a GRU joins stream and branch",
        active="residual.kind=gru",
        paper="1910.06764",
        tier=2,
        rows=(Row("gate_residual", "residual.kind", False, {True: "gru"}),),
        samples=(
            Sample({"gate_residual": True}),
            Sample({"gate_residual": True, "scale_residual": True}),
        ),
        weights=(
            Rule("residual", "gru.weight_ih", "weight_branch"),
            Rule("residual", "gru.weight_hh", "weight_stream"),
            Rule("residual", "gru.bias_ih", "bias_branch"),
            Rule("residual", "gru.bias_hh", "bias_stream"),
        ),
    ),
    Option(
        name="hyper-connections",
        about="several residual streams, mixed by each token",
        active="residual.kind=hyper",
        paper="2409.19606, 2512.24880",
        tier=3,
        rows=(
            Row("num_residual_streams", "residual.kind", 1, into=many, back=elsewhere),
            Row("num_residual_streams", "residual.streams", 1, into=how_many),
            Row("qkv_receive_diff_residuals", "residual.qkv_views", False, into=views),
            Row("hyper_conn_sinkhorn_iters", "residual.sinkhorn_iters", 5),
            Fixed("residual.mixing", "sum"),
        ),
        samples=(
            Sample({"num_residual_streams": 2}),
            Sample({"num_residual_streams": 3, "qkv_receive_diff_residuals": True}),
        ),
        weights=(
            Rule("layers", "stream_emb", "streams.embedding"),
            Rule("residual", "norm.weight", "norm.gain"),
            Rule("residual", "static_beta", "static_beta"),
            Rule("residual", "static_alpha", "static_alpha"),
            Rule("residual", "dynamic_alpha_fn", "dynamic_alpha"),
            Rule("residual", "dynamic_alpha_scale", "dynamic_alpha_scale", (SCALAR,)),
            Rule("residual", "dynamic_beta_fn", "dynamic_beta"),
            Rule("residual", "dynamic_beta_scale", "dynamic_beta_scale", (SCALAR,)),
        ),
        differs="residual.mixing=sinkhorn mixes streams as the paper says (there: all summed)",
    ),
)

LEAKY: tuple[Option, ...] = (
    Option(
        name="orthogonal residual",
        about="adds only the part of a branch that is orthogonal to the stream",
        active="residual.kind=orthogonal",
        paper="2505.11881",
        tier=3,
        samples=(Sample(config={"residual": {"kind": "orthogonal", "over": "token"}}),),
    ),
    Option(
        name="orthogonal residual over the sequence",
        about="that, with all tokens of a sample as one vector",
        active="residual.over=sequence",
        paper="2505.11881",
        tier=3,
        rows=(
            Row("orthog_residual", "residual.kind", False, {True: "orthogonal"}),
            Fixed("residual.over", "sequence", needs="orthog_residual"),
        ),
        samples=(Sample({"orthog_residual": True, "scale_residual": True}),),
        causal="bidirectional only",
        uncacheable="every token changes all others",
        unpackable="every token changes all others",
        differs="refused in a Decoder, where it shows tokens their future",
    ),
    Option(
        name="mean-variance split residual",
        about="means over the sequence join apart from the rest",
        active="residual.kind=mv_split",
        paper="2605.06169",
        tier=3,
        rows=(
            Row("mv_split_residual", "residual.kind", False, {True: "mv_split"}),
            kwarg("residual_fn_kwargs", "residual.init_alpha", "init_alpha", 0.0),
            kwarg("residual_fn_kwargs", "residual.init_beta", "init_beta", 0.03),
            kwarg("residual_fn_kwargs", "residual.learned", "learned", False),
        ),
        samples=(
            Sample({"mv_split_residual": True}),
            Sample({"mv_split_residual": True, "residual_fn_kwargs": {"learned": True}}),
        ),
        weights=(
            Rule("residual", "alpha", "alpha"),
            Rule("residual", "beta", "beta"),
            Rule("residual", "to_alpha.weight", "to_alpha.weight"),
            Rule("residual", "to_alpha.bias", "to_alpha.bias"),
            Rule("residual", "to_beta.weight", "to_beta.weight"),
            Rule("residual", "to_beta.bias", "to_beta.bias"),
        ),
        causal="bidirectional only",
        uncacheable="every token changes all others",
        unpackable="every token changes all others",
        differs="refused in a Decoder, where it shows tokens their future",
    ),
    Option(
        name="gated multi-residual",
        about="several streams with an elementwise read gate",
        active="residual.kind=gated_multi",
        tier=3,
        rows=(
            Row("gated_multi_residual", "residual.kind", False, {True: "gated_multi"}),
            kwarg("residual_fn_kwargs", "residual.read_gate_rank", "read_gate_rank", None),
        ),
        samples=(
            Sample(
                {
                    "gated_multi_residual": True,
                    "num_residual_streams": 2,
                    "residual_fn_kwargs": {"read_gate_rank": 8},
                }
            ),
        ),
        weights=(
            Rule("layers", "stream_emb", "streams.embedding"),
            Rule("residual", "read_gain", "read_gain"),
            Rule("residual", "static_read_logit", "static_read"),
            Rule("residual", "static_write_logit", "static_write"),
            Rule("residual", "to_bottleneck.weight", "to_bottleneck.weight"),
            Rule("residual", "to_read_gate.weight", "to_read.weight"),
            Rule("residual", "to_write_gate.weight", "to_write.weight"),
            Rule("residual", "dynamic_gate_scale", "dynamic_scale", (SCALAR,)),
        ),
        excludes={"sandwich norm": "its read gate replaces the pre-norm; leave one of the two out"},
    ),
)

OPTIONS: tuple[Option, ...] = (*RESIDUALS, *LEAKY)
