"""Options of the stack: its size, order, norms and residual connections."""

from __future__ import annotations

from xtdist.model.options.base import REQUIRED, Fixed, Option, Row, Sample
from xtdist.model.options.weights import Rule

OPTIONS: tuple[Option, ...] = (
    Option(
        name="layers",
        about="a stack of attention and feed-forward layers",
        active="dim",
        rows=(
            Row("dim", "dim", REQUIRED),
            Row("depth", "depth", REQUIRED),
            Row("heads", "heads", 8),
        ),
    ),
    Option(
        name="layernorm",
        about="LayerNorm without bias",
        active="norm.kind=layernorm",
        paper="1607.06450",
        rows=(
            Fixed("norm.kind", "layernorm"),
            Row("norm_add_unit_offset", "norm.unit_offset", True),
        ),
        samples=(Sample(), Sample({"norm_add_unit_offset": False})),
        weights=(Rule("norm", "gamma", "gain"),),
    ),
    Option(
        name="rmsnorm",
        about="RMSNorm",
        active="norm.kind=rmsnorm",
        paper="1910.07467",
        rows=(
            Row("use_rmsnorm", "norm.kind", False, {True: "rmsnorm"}),
            Fixed("norm.eps", 1e-12, needs="use_rmsnorm"),
        ),
        samples=(
            Sample({"use_rmsnorm": True}),
            Sample({"use_rmsnorm": True, "norm_add_unit_offset": False}),
        ),
        weights=(Rule("norm", "g", "gain"),),
    ),
)
