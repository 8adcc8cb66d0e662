"""What would be served, and what it needs; nothing is started and no tensor is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import torch

from xtdist.checkpoint.weights import TENSORS, TOKENIZER
from xtdist.config import ResourceError
from xtdist.data.tokenizer import load_tokenizer
from xtdist.decode.admission import Admission
from xtdist.decode.sizing import make_pool, shared_window
from xtdist.model.wrapper import TransformerWrapper, build_model
from xtdist.serve.auth import load_keys
from xtdist.serve.config import AppConfig, ServeConfig, ServedModel
from xtdist.serve.places import Found, check_served

_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Plan:
    """One model as it would be served.

    Args:
        found: its weights, and its amateur's.
        parameters: of each of them.
        weight_bytes: of all of them in memory.
        pages, page_tokens: of the KV pool.
        pool_bytes: of all of it, once it has been used.
        longest: tokens that a sequence may have.
    """

    spec: ServedModel
    found: list[Found]
    parameters: list[int]
    weight_bytes: int
    pages: int
    page_tokens: int
    pool_bytes: int
    longest: int

    @property
    def bytes(self) -> int:
        return self.weight_bytes + self.pool_bytes


def plan_of(spec: ServedModel, config: AppConfig) -> Plan:
    """What a model needs. Its tensors are not read.

    Raises:
        CheckpointError: weights that can not be served.
        ConfigError: models or sizes that do not go together.
    """
    found = check_served(spec, registry=config.registry)
    with torch.device("meta"):
        models = [build_model(f.config.model) for f in found]
    itemsizes = [_itemsize(f, m, config) for f, m in zip(found, models, strict=True)]
    parameters = [sum(p.numel() for p in m.parameters()) for m in models]
    pages, page_tokens, pool_bytes, longest = 0, 0, 0, models[0].max_seq_len
    if models[0].config.causal:
        tokenizer = load_tokenizer(found[0].folder / TOKENIZER)
        admission = Admission.check_models(
            models[0], models[1:], tokenizer=tokenizer, config=config.engine
        )
        longest = admission.longest(admission.expert)
        specs = [m.cache for m in admission.models if not m.cache.refused]
        engine = config.engine
        pool = make_pool(  # of one sequence: all of it may be more than this machine can hold
            dataclasses.replace(engine, max_sequences=1, pool_tokens=0),
            longest=longest,
            window=shared_window(specs, longest=longest),
            models=len(models),
            on_cpu=not config.gpus,
        )
        page_tokens = pool.page_tokens
        pages = engine.max_sequences * len(pool.references)
        if engine.pool_tokens:
            pages = min(pages, engine.pool_tokens // page_tokens)
        kept = [sum(h * c for layer in s.layers for h, c in layer) for s in specs]
        size = 4 if config.dtype == "int8" else 2 if config.dtype == "bfloat16" else 4
        pool_bytes = pages * page_tokens * size * sum(kept)
    return Plan(
        spec=spec,
        found=found,
        parameters=parameters,
        weight_bytes=int(sum(n * size for n, size in zip(parameters, itemsizes, strict=True))),
        pages=pages,
        page_tokens=page_tokens,
        pool_bytes=pool_bytes,
        longest=longest,
    )


def _itemsize(found: Found, model: TransformerWrapper, config: AppConfig) -> float:
    """Bytes of a parameter in memory, on average."""
    count = sum(p.numel() for p in model.parameters())
    if config.dtype == "saved":
        return (found.folder / TENSORS).stat().st_size / max(count, 1)
    if config.dtype == "int8":
        matrices = sum(p.numel() for p in model.parameters() if p.ndim > 1)
        return (matrices + 4 * (count - matrices)) / max(count, 1)
    return getattr(torch, config.dtype).itemsize


def check_memory(plans: Sequence[Plan], config: AppConfig) -> tuple[int, int | None]:
    """Whether one replica fits into what is free here: bytes of the models, and those that are
    free. These are None where the replicas have GPUs and this machine has none.

    Raises:
        ResourceError: it does not.
    """
    need = sum(p.bytes for p in plans)
    if any(p.spec.follow for p in plans):
        need += max(p.bytes for p in plans)  # of the next weights, beside those that serve
    free = _free_bytes(on_gpu=config.gpus > 0)
    if free is not None and need > free:
        raise ResourceError(
            f"engine: one replica needs {size(need)} (weights "
            f"{size(sum(p.weight_bytes for p in plans))}, KV pools "
            f"{size(sum(p.pool_bytes for p in plans))}) and {size(free)} are free here; lower "
            "engine.max_sequences, engine.max_sequence_tokens or engine.pool_tokens, take dtype "
            "bfloat16, or fewer models"
        )
    return need, free


def _free_bytes(*, on_gpu: bool) -> int | None:
    if on_gpu:
        return int(torch.cuda.mem_get_info()[0]) if torch.cuda.is_available() else None
    free = int(psutil.virtual_memory().available)
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        free = min(free, limit - int((_CGROUP / "memory.current").read_text()))
    except (OSError, ValueError):  # no container, or "max"
        pass
    return free


def report(config: ServeConfig) -> str:
    """What ``config`` would serve, for people.

    Raises:
        UserError: see :func:`check`.
    """
    plans = [plan_of(spec, config) for spec in config.models]
    need, free = check_memory(plans, config)
    keys = len(load_keys(config.api_keys_file, config.api_keys_env).keys)
    limits, engine = config.limits, config.engine
    longest = min(limits.max_tokens, max(p.longest for p in plans))
    lines = [line for plan in plans for line in _lines(plan, config)]
    replicas = f"{config.replicas}"
    if config.autoscaling is not None:
        replicas = f"{config.autoscaling.min_replicas} to {config.autoscaling.max_replicas}"
    return "\n".join(
        [
            *lines,
            f"memory: {size(need)} for each replica, "
            + ("not compared: no GPU here" if free is None else f"{size(free)} free here"),
            f"replicas: {replicas}, each with {config.cpus} CPUs and {config.gpus:g} GPUs",
            f"limits: {engine.max_sequences} sequences at once and {engine.max_waiting} waiting, "
            f"{longest} new tokens, {limits.max_sequences} sequences of one request, "
            f"{limits.request_timeout_s:g} s",
            f"keys: {keys}" if keys else "keys: none, whoever reaches it may use it",
            f"address: {config.url}/v1 (proxy {config.proxy})",
        ]
    )


def _lines(plan: Plan, config: AppConfig) -> list[str]:
    first, spec = plan.found[0], plan.spec
    step = "" if first.step is None else f"step {first.step}, "
    follow = ", followed" if spec.follow else ""
    lines = [
        f"{spec.name}: {first.place}{follow}",
        f"  {first.config.objective.kind}, {plan.parameters[0]:,} parameters, {config.dtype}; "
        f"{step}digest {first.digest[:16]}",
    ]
    if len(plan.found) > 1:
        amateur = plan.found[1]
        lines.append(
            f"  amateur: {amateur.place}, {plan.parameters[1]:,} parameters, "
            f"digest {amateur.digest[:16]}"
        )
    pool = f"KV pool of {plan.pages} pages of {plan.page_tokens} tokens {size(plan.pool_bytes)}; "
    lines.append(
        f"  weights {size(plan.weight_bytes)}; {pool if plan.pages else ''}"
        f"sequences of at most {plan.longest} tokens"
    )
    return lines


def size(count: int) -> str:
    """Bytes for people: ``3.1 MB``."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} bytes"
