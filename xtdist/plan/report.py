"""A plan as people read it."""

from __future__ import annotations

from collections import Counter

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from xtdist.plan.devices import GIB
from xtdist.plan.make import Row, RunPlan
from xtdist.track.text import duration, human

_RECOMPUTE = {None: "as set", "none": "-", "feedforward": "feed-forward", "all": "blocks"}
_OFFLOAD = ("-", "optimizer", "all")


def report(plan: RunPlan) -> RenderableType:
    """Parameters, memory by variant, arithmetic, time and disk."""
    return Group(*_lines(plan), Text(), _table(plan), *_verdict(plan), *_notes(plan))


def _lines(plan: RunPlan) -> list[Text]:
    p, spec, split = plan.parameters, plan.spec, plan.spec.split(plan.world)
    parts = ", ".join(f"{name} {human(n)}" for name, n in p.parts.items() if n)
    active = "" if p.active == p.total else f", {human(p.active)} of them for each token"
    epochs = f", {plan.tokens / plan.data_tokens:.2f} epochs" if plan.data_tokens else ""
    size = plan.checkpoint_bytes / 1e9
    layers = Counter(p.layers)
    each = ", ".join(f"{n} x {name} {human(size)}" for (name, size), n in layers.items())
    frozen = f", {human(p.total - p.trained)} not trained" if p.trained < p.total else ""
    lines = {
        "model": f"{p.total:,} parameters{active}{frozen}: {parts}",
        "layers": each or "none",
        "device": f"{plan.world} x {plan.device.name}, {_gib(plan.device.bytes)} GiB for a worker"
        + (f", {plan.device.tflops:g} TFLOP/s" if plan.device.tflops else ""),
        "step": f"{spec.batch.tokens_per_step:,} tokens = {spec.global_batch} sequences of "
        f"{spec.data.seq_len}: {split.accumulation} x {split.micro_batch} sequences a worker",
        "run": f"{spec.loop.steps:,} steps, {human(plan.tokens)} tokens{epochs}",
        "compute": _compute(plan),
        "disk": f"{_short(size)} GB a checkpoint, {plan.kept} at most: "
        f"{_short(size * plan.kept)} GB",
    }
    return [Text(f"{name:<8} {value}") for name, value in lines.items()]


def _compute(plan: RunPlan) -> str:
    if plan.flops_per_token is None or plan.flops is None:
        return "not known: how long the contexts are is the data's"
    text = f"{human(plan.flops_per_token)}FLOP a token (6 x weights + 12 x channels x keys: "
    text += f"2204.02311 B), {plan.flops:.3g} in all"
    if plan.read_flops_per_token is not None:
        text += f"; {human(plan.read_flops_per_token)}FLOP by the keys that are really read"
    if plan.seconds is None:
        lacking = f"the device's peak at {plan.spec.engine.precision} is not known"
        return f"{text}; {lacking}: give --peak-tflops for the time"
    text += f"; {duration(plan.seconds)} at an MFU of {plan.mfu:g}"
    return text if plan.cost is None else f"{text}, cost {plan.cost:,.0f}"


def _table(plan: RunPlan) -> Table:
    """Plain text: nothing in it but letters, and the colours of a terminal."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("", "ZeRO", "offload", "recompute"):
        table.add_column(name)
    for name in ("weights", "grads", "optimizer", "activations", "buffers", "peak", "host"):
        table.add_column(name, justify="right")
    table.add_column("GiB")
    for row in plan.rows:
        table.add_row(*_cells(row), style="bold" * row.chosen if row.fits else "red")
    return table


def _cells(row: Row) -> list[str]:
    m, v = row.memory, row.variant
    sizes = (m.weights, m.gradients, m.optimizer, m.activations, m.buffers, m.peak, m.host)
    return [
        ">" if row.chosen else "",
        str(v.stage),
        _OFFLOAD[v.offload],
        _RECOMPUTE[v.recompute],
        *map(_gib, sizes),
        "fits" if row.fits else "TOO MUCH",
    ]


def _verdict(plan: RunPlan) -> list[Text]:
    if plan.chosen.fits:
        return []
    lack = plan.chosen.memory.peak - plan.device.bytes
    lines = [Text(f"does not fit: {_gib(lack)} GiB too much for a worker", style="red")]
    if plan.cure is None:
        lines.append(Text("nothing that was tried fits: take a smaller model or larger devices"))
    else:
        now = plan.chosen.variant.overrides
        change = {k: v for k, v in plan.cure.variant.overrides.items() if now.get(k) != v}
        words = " ".join(f"{k}={'null' if v is None else v}" for k, v in change.items())
        lines.append(Text(f"fits with: {words}  ({_gib(plan.cure.memory.peak)} GiB)"))
    return lines


def _notes(plan: RunPlan) -> list[Text]:
    return [Text(f"note: {note}") for note in plan.notes]


def _gib(count: int) -> str:
    return _short(count / GIB)


def _short(size: float) -> str:
    return f"{size:.4f}" if 0 < size < 0.1 else f"{size:.2f}" if size < 100 else f"{size:.0f}"
