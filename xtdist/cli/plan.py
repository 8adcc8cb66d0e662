"""xtdist plan CONFIG [key.path=value ...] [--gpus 64 --gpu h100]"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from dataclasses import dataclass

import psutil  # type: ignore[import-untyped]
import torch
from rich.console import Console

from xtdist.config import ConfigError, DataError, load
from xtdist.launch.datasets import check_datasets, corpora_of, known_data
from xtdist.launch.preflight import preflight, resolve
from xtdist.optim import check_schedule
from xtdist.plan import Data, Device, RunPlan, known_device, make_plan
from xtdist.plan.devices import RESERVED, peak_at
from xtdist.plan.report import report
from xtdist.train.spec import RunSpec, fit_to_data
from xtdist.train.trace import Ids

ASSUMED_VOCABULARY = 32_000
EPILOG = """Exit code 1: what was asked for does not fit. What would is looked for in this order: a
smaller micro-batch, recomputation of feed-forwards and of whole blocks, a higher ZeRO stage, the
optimizer offloaded, all of these together, more GPUs, the weights offloaded too."""
OPTIONS = ("gpus", "gpu", "memory_gb", "peak_tflops", "mfu", "price_per_gpu_hour", "json")
MFU = 0.4
LIMITS = {
    "gpus": (1, 1e6),
    "mfu": (1e-3, 1),
    "memory_gb": (0.1, 1e5),
    "peak_tflops": (1e-3, 1e6),
    "price_per_gpu_hour": (1e-6, 1e6),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("config", help="YAML of a run")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    add_options(parser)


def add_options(parser: argparse.ArgumentParser) -> None:
    """What ``train --dry-run`` takes too."""
    parser.add_argument("--gpus", type=int, metavar="N", help="instead of workers.count")
    parser.add_argument("--gpu", metavar="NAME", help="h100, a100-80, … or cpu")
    parser.add_argument(
        "--memory-gb", type=float, metavar="GB", help="of one device, as it is sold (2**30 bytes)"
    )
    parser.add_argument(
        "--peak-tflops",
        type=float,
        metavar="T",
        help="dense peak of one device at the run's precision; the table's are of 16 bits",
    )
    parser.add_argument("--mfu", type=float, help=f"share of the peak reached ({MFU})")
    parser.add_argument("--price-per-gpu-hour", type=float, metavar="P", help="for the cost")
    parser.add_argument("--json", action="store_true", help="numbers instead of a table")


def run(args: argparse.Namespace) -> int:
    loaded = load(RunSpec, args.config, args.overrides)
    for note in loaded.notes:
        print(f"note: {note}", file=sys.stderr)
    return show(loaded.config, args)


def show(spec: RunSpec, args: argparse.Namespace, *, checks: bool = False) -> int:
    """Print the plan of ``spec``; 1 if it does not fit. ``checks``: see :func:`plan_of`."""
    plan = plan_of(spec, args, checks=checks)
    if args.json:
        print(json.dumps(plan.tree(), indent=2))
    else:
        wide = None if sys.stdout.isatty() else 120
        Console(width=wide, highlight=False).print(report(plan))
    return 0 if plan.chosen.fits else 1


def plan_of(spec: RunSpec, args: argparse.Namespace, *, checks: bool = False) -> RunPlan:
    """Of ``spec`` on the device that the arguments name. ``checks``: what else a run would be
    refused for, as far as it can be known without a cluster."""
    _check_numbers(args)
    if args.gpus is not None:
        workers = dataclasses.replace(spec.workers, count=args.gpus, min_count=None)
        spec = dataclasses.replace(spec, workers=workers)
    device = _device(spec, args)
    notes: list[str] = []
    tokens = documents = None
    ids: Ids
    try:
        spec, ids, tokens, documents = _with_data(spec)
        if checks:
            preflight(spec, cluster_gpus=spec.workers.count if device.cuda else 0)
    except DataError as e:
        spec, ids = _without_data(spec, notes, why=str(e))
    plan = make_plan(
        spec,
        ids,
        device,
        data=None if tokens is None or documents is None else Data(tokens, documents),
        mfu=args.mfu or MFU,
        price_per_hour=args.price_per_gpu_hour,
    )
    return dataclasses.replace(plan, notes=(*notes, *plan.notes))


def _check_numbers(args: argparse.Namespace) -> None:
    for name, (least, most) in LIMITS.items():
        value = getattr(args, name)
        if value is not None and not least <= value <= most:
            flag = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{flag}: got {value:g}; give a number from {least:g} to {most:g}")


@dataclass(frozen=True)
class _Ids:
    """Of a tokenizer that is not there: which ids these are changes no size."""

    vocab_size: int

    @property
    def mask_id(self) -> int:
        return self.vocab_size - 1

    @property
    def pad_id(self) -> int:
        return self.vocab_size - 1


def _with_data(spec: RunSpec) -> tuple[RunSpec, Ids, int, int]:
    tokenizer = check_datasets(spec.data)
    spec = resolve(spec)
    corpora = corpora_of(known_data(spec))
    return spec, tokenizer, sum(c.tokens for c in corpora), sum(c.documents for c in corpora)


def _without_data(spec: RunSpec, notes: list[str], *, why: str) -> tuple[RunSpec, Ids]:
    """``spec`` with a vocabulary from elsewhere."""
    size = spec.model.num_tokens
    notes.append(f"the dataset is not there ({why}), so nothing about it was checked")
    if size:
        notes.append(f"vocabulary: model.num_tokens, {size}")
    else:
        size = ASSUMED_VOCABULARY
        notes.append(f"vocabulary: {size} ASSUMED; give model.num_tokens=N")
    check_schedule(spec.optim.schedule, total_steps=spec.loop.steps)
    return fit_to_data(spec, vocab_size=size), _Ids(size)


def _device(spec: RunSpec, args: argparse.Namespace) -> Device:
    precision, wanted = spec.engine.precision, spec.workers.device
    peak = args.peak_tflops or spec.track.peak_tflops
    if args.gpu is not None or args.memory_gb is not None:
        device = known_device(
            args.gpu or "gpu", precision=precision, memory_gib=args.memory_gb, tflops=peak
        )
        if wanted != "auto" and device.cuda != (wanted == "gpu"):
            raise ConfigError(
                f"--gpu: got {device.name!r}, but workers.device is {wanted!r}; set "
                f"workers.device={'gpu' if device.cuda else 'cpu'}"
            )
        return device
    if torch.cuda.is_available() and wanted != "cpu":
        name, whole = torch.cuda.get_device_name(), torch.cuda.mem_get_info()[1]
        return Device(name, int(whole * (1 - RESERVED)), peak or peak_at(precision, name))
    if wanted == "gpu":
        raise ConfigError("workers.device: got 'gpu'; this machine has none, name one: --gpu h100")
    share = psutil.virtual_memory().total // spec.workers.count
    return Device("share of this machine's memory", share, peak, cuda=False)
