"""What is in force in a run: read from the live engine and module, not from the config, and
compared with what the config asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from xtdist.model.layers import Layers
from xtdist.nn.attention.module import Attention
from xtdist.train.spec import RunSpec
from xtdist.train.state.flats import Flat, flats

DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class Fact:
    """One setting. ``wanted``: what the config asks for; None = it leaves that open."""

    name: str
    found: Any
    wanted: Any = None


def check(facts: list[Fact]) -> None:
    """Raises RuntimeError, naming every setting that is not what was asked for."""
    wrong = [
        f"  {fact.name}: asked for {fact.wanted!r}, in force is {fact.found!r}"
        for fact in facts
        if fact.wanted is not None and fact.found != fact.wanted
    ]
    if wrong:
        raise RuntimeError(
            "the engine is not what the config says (an error of this program, not yours):\n"
            + "\n".join(wrong)
        )


def facts_of(engine: Any, spec: RunSpec) -> list[Fact]:
    """What is in force on this rank; ``spec`` as it was resolved for the device. All ranks call it
    together, and get the same but for what differs between them."""
    held, module, want = flats(engine), engine.module, spec.engine
    weights = [p for p in module.parameters() if p.requires_grad]
    trained = sum(_numel(p) for p in weights)
    groups, world = group_facts(engine, held), dist.get_world_size()
    split, micro = spec.split(world), engine.train_micro_batch_size_per_gpu()
    low = want.zero_stage == 0 and want.precision == "fp32"
    return [
        Fact("device", str(engine.device.type)),
        Fact("world", engine.world_size, world),
        Fact("sequences in a micro-batch", micro, split.micro_batch),
        Fact("micro-batches in a step", split.accumulation),
        Fact("zero stage", int(engine.zero_optimization_stage()), want.zero_stage),
        Fact("engine's optimizer", type(engine.optimizer).__name__),
        Fact("optimizer", type(_inner(engine)).__name__.lower(), spec.optim.kind),
        Fact("optimizer groups", groups),
        Fact("optimized parameters", sum(g["parameters"] for g in groups), trained),
        Fact(
            "weights", _dtypes(p for p in module.parameters() if p.requires_grad), [want.precision]
        ),
        Fact("master weights", _dtypes(flat.master for flat in held), ["fp32"]),
        Fact("optimizer offloaded to", _optimizer_place(engine), _kind(want.offload_optimizer)),
        Fact("parameters offloaded to", _parameter_place(engine), _kind(want.offload_parameters)),
        Fact("gradients clipped at", _clipping(engine, spec), float(spec.optim.grad_clip)),
        Fact("overlapping reduction", *_overlap(engine, spec)),
        Fact("compiled", is_compiled(module), want.compile is not None),
        Fact("attention", *_attention(module, spec)),
        Fact("recomputed", *_recompute(module, spec)),
        Fact("weights are the master weights", _same_storage(held, module), True if low else None),
    ]


def group_facts(engine: Any, held: list[Flat]) -> list[dict[str, Any]]:
    """Settings of each parameter group with its number of parameters over all ranks."""
    found = _inner(engine).param_groups
    counts = torch.zeros(len(found), dtype=torch.float64, device=engine.device)
    place = {id(group): i for i, group in enumerate(found)}
    for flat in held:
        counts[place[id(flat.group)]] += sum(piece.numel for piece in flat.own())
    dist.all_reduce(counts)
    shown = ("name", "algorithm", "lr_scale", "weight_decay", "betas", "eps", "momentum", "fused")
    return [
        {"parameters": int(count)} | {k: group[k] for k in shown if group.get(k) is not None}
        for count, group in zip(counts.tolist(), found, strict=True)
    ]


def is_compiled(module: nn.Module) -> bool:
    """Whether a call of ``module`` goes through torch.compile."""
    return module._compiled_call_impl is not None


def lines(facts: list[Fact]) -> list[str]:
    """The facts in a few lines."""
    known = {fact.name: fact.found for fact in facts}
    groups = ", ".join(
        f"{g.get('name', '?')} {g['parameters']:,} (decay {g.get('weight_decay', 0):g})"
        for g in known["optimizer groups"]
    )
    backends = sorted(set(known["attention"]))
    places = {name: known[f"{name} offloaded to"] for name in ("optimizer", "parameters")}
    away = ", ".join(f"{n} on {p}" for n, p in places.items() if p != "nothing") or "nothing"
    return [
        f"ZeRO-{known['zero stage']}, weights {'/'.join(known['weights'])}, master weights "
        f"{'/'.join(known['master weights'])}, {known['world']} workers, "
        f"{known['micro-batches in a step']} micro-batches of "
        f"{known['sequences in a micro-batch']}, offloaded: {away}",
        f"{known['optimizer']}: {groups}; clipped at {known['gradients clipped at']:g}",
        f"attention {'/'.join(backends) or 'none'} in {len(known['attention'])} layers, "
        f"{'compiled' if known['compiled'] else 'not compiled'}, recomputed: "
        f"{known['recomputed'] or 'nothing'}",
    ]


def _inner(engine: Any) -> torch.optim.Optimizer:
    """The torch optimizer within DeepSpeed's."""
    inner: torch.optim.Optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
    return inner


def _numel(p: Any) -> int:
    return int(getattr(p, "ds_numel", p.numel()))


def _dtypes(tensors: Any) -> list[str]:
    return sorted({DTYPES.get(t.dtype, str(t.dtype)) for t in tensors})


def _kind(offload: Any) -> str:
    return "nothing" if offload is None else offload.kind


def _optimizer_place(engine: Any) -> str:
    optimizer = engine.optimizer
    if getattr(optimizer, "swap_optimizer", False):
        return "nvme"
    away = getattr(optimizer, "cpu_offload", False) or getattr(optimizer, "offload_optimizer", None)
    on_cpu = all(flat.master.device.type == "cpu" for flat in flats(engine))
    return "cpu" if away and on_cpu else "nothing"


def _parameter_place(engine: Any) -> str:
    if not getattr(engine.optimizer, "offload_param", False):
        return "nothing"
    return "nvme" if engine.optimizer.params_in_nvme_and_cpu else "cpu"


def _clipping(engine: Any, spec: RunSpec) -> float:
    """DeepSpeed's wrappers clip; without one, and in canonical reduction, step.py does."""
    if spec.engine.reduction == "canonical":
        return float(spec.optim.grad_clip)
    return float(getattr(engine.optimizer, "clip_grad", spec.optim.grad_clip))


def _overlap(engine: Any, spec: RunSpec) -> tuple[bool, bool | None]:
    """Found and wanted."""
    wanted = spec.engine.overlap_comm
    optimizer = engine.optimizer
    if not hasattr(optimizer, "overlap_comm"):  # stage 3 keeps no more than the config
        return bool(engine.zero_overlap_comm()) and engine.zero_optimization_stage() == 3, None
    return bool(optimizer.overlap_comm), None if wanted == "auto" else wanted


def _attention(module: nn.Module, spec: RunSpec) -> tuple[list[str], list[str] | None]:
    """The backend of each attention, and what the config asks for."""
    found = [m.backend for m in module.modules() if isinstance(m, Attention)]
    wanted = spec.model.attention.backend
    own = len([m for m in module.modules() if isinstance(m, Layers)]) == 1
    return found, [wanted] * len(found) if wanted != "auto" and own else None


def _recompute(module: nn.Module, spec: RunSpec) -> tuple[str, str | None]:
    stacks = [m for m in module.modules() if isinstance(m, Layers)]
    found = {_recomputed(m.config.recompute) for m in stacks} - {""}
    wanted = _recomputed(spec.model.recompute)
    return ", ".join(sorted(found)), wanted if len(stacks) == 1 else None


def _recomputed(config: Any) -> str:
    return "" if config is None else f"{config.only} of every {config.blocks}. block"


def _same_storage(held: list[Flat], module: nn.Module) -> bool:
    masters = {flat.master.data_ptr() for flat in held}
    return all(p.data_ptr() in masters for p in module.parameters() if p.requires_grad)
