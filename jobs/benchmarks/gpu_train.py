"""Training on one GPU with our stepper and DeepSpeed: is it right, does it resume, how fast is it,
how much memory does it need. Ray is not needed, only DeepSpeed."""

from __future__ import annotations

import atexit
import copy
import gc
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import common
import numpy as np
import torch
from gpu_checks import Row
from gpu_speed import LOADS, QUICK, Load, seconds_of, step_flops
from torch import Tensor, nn

from xtdist.config import from_mapping, to_mapping
from xtdist.model import build_model
from xtdist.model.presets import PRESETS, preset
from xtdist.objective import AutoregressiveWrapper

NEEDED = ("deepspeed", "psutil", "pyarrow", "rich", "safetensors")
STAGES = (0, 1, 2, 3)
MFU_GOAL = 0.5
CPU = {"kind": "cpu"}
CLOSE = 0.02  # of losses: some roundings of bf16, 0.4 % each
TOKENIZER: Any = SimpleNamespace(mask_id=1, pad_id=0)


def missing() -> str | None:
    """What is not installed here; None: nothing."""
    lacks = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    return f"not run: {', '.join(lacks)} not installed" if lacks else None


def settle(device: str) -> torch.device:
    """A process group of this process alone, as a worker has one, until the process ends."""
    from xtdist.train.deepspeed import prepare_process

    gpu = device.startswith("cuda")
    if not torch.distributed.is_initialized():
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        index = torch.device(device).index or 0
        place = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": index, "MASTER_PORT": port}
        os.environ.update({k: str(v) for k, v in place.items()}, MASTER_ADDR="127.0.0.1")
        if gpu:
            torch.cuda.set_device(index)
        prepare_process(gpu=gpu)
        atexit.register(_leave)
    return torch.device("cuda", torch.cuda.current_device()) if gpu else torch.device("cpu")


def _leave() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A load with settings of the engine and of the model."""

    load: Load
    engine: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)

    def spec(self) -> Any:
        """The run's spec; there is no data."""
        from xtdist.train import RunSpec

        load = self.load
        made = preset(load.name, num_tokens=_vocabulary(load), max_seq_len=load.seq_len)
        tokens = load.batch * load.seq_len
        tree = {
            "name": "gpu",
            "data": {"path": "/none", "seq_len": load.seq_len},
            "model": to_mapping(made) | self.model,
            "optim": {"lr": 1e-3, "schedule": {"kind": "constant", "warmup_steps": 1}},
            "batch": {"tokens_per_step": tokens, "micro_batch_tokens": tokens},
            "engine": {"zero_stage": 2, "precision": "bf16"} | self.engine,
            "loop": {"steps": 1000},
        }
        return from_mapping(RunSpec, tree)

    def tokens(self) -> Tensor:
        """One batch, the same every time."""
        shape = (self.load.batch, self.load.seq_len + 1)
        generator = torch.Generator().manual_seed(0)
        return torch.randint(0, _vocabulary(self.load), shape, generator=generator)


def _vocabulary(load: Load) -> int:
    return PRESETS[load.name].num_tokens


class Training:
    """Our stepper on one batch, again and again. ``close`` frees the device's memory."""

    def __init__(self, variant: Variant, device: torch.device) -> None:
        from xtdist.objective import build_objective
        from xtdist.train.deepspeed import build_engine
        from xtdist.train.in_force import check, facts_of
        from xtdist.train.meters import Phases
        from xtdist.train.step import Stepper, TrainModule

        spec = self.spec = variant.spec()
        net = build_model(spec.model, generator=torch.Generator().manual_seed(0))
        objective = build_objective(
            spec.objective, net, mask_id=TOKENIZER.mask_id, pad_id=TOKENIZER.pad_id
        )
        module = TrainModule(objective)
        self.parameters = sum(p.numel() for p in module.parameters())
        self.engine = build_engine(spec, module, split=spec.split(1), device=device)
        check(facts_of(self.engine, spec))
        self.stepper = Stepper(
            engine=self.engine, objective=objective, spec=spec, device=device, phases=Phases(device)
        )
        self.batch = variant.tokens().to(device)
        self.done = 0

    @property
    def fused(self) -> bool:
        inner = getattr(self.engine.optimizer, "optimizer", self.engine.optimizer)
        return all(group["fused"] for group in inner.param_groups)

    def step(self) -> float:
        """The loss of one step."""
        from xtdist.data.loader import StepBatch
        from xtdist.optim import set_lr

        rows = np.arange(len(self.batch))
        batch = StepBatch(
            step=self.done,
            data_step=self.done,
            step_rows=len(rows),
            tokens=self.batch,
            sample_ids=rows,
            corpus=np.zeros_like(rows),
            windows=rows,
            wait_s=0.0,
        )
        set_lr(self.engine.optimizer, self.spec.optim.lr)
        result = self.stepper.step(batch, stop_wanted=False)
        self.stepper.phases.lap(step=self.done)
        self.done += 1
        return result.loss

    def close(self) -> None:
        self.engine.destroy()
        del self.engine, self.stepper, self.batch
        free()


def free() -> None:
    """Give back what nobody holds."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def trained(device: str, *, quick: bool) -> Iterator[Row]:
    """Losses in bf16 at each stage of ZeRO against those of a plain loop that keeps its weights in
    fp32 beside; AdamW is torch's fused kernel."""
    if (reason := missing()) is not None:
        yield Row("DeepSpeed", reason)
        return
    place = settle(device)
    load = QUICK[0] if quick else Load(name="llama-125m", batch=8, seq_len=256)
    steps = 6 if quick else 20
    wanted = plain_losses(Variant(load=load), place, steps=steps)
    for stage in STAGES:
        training = Training(Variant(load=load, engine={"zero_stage": stage}), place)
        found = [training.step() for _ in range(steps)]
        fused = training.fused
        training.close()
        off = max(abs(a - b) / b for a, b in zip(found, wanted, strict=True))
        text = f"{steps} losses {found[0]:.3f} … {found[-1]:.3f}, off by at most {off:.2%}"
        fell = found[-1] < 0.95 * found[0]
        yield Row(
            f"ZeRO {stage}, bf16, {load.name}",
            f"{text}; AdamW {'fused' if fused else 'NOT fused'}",
            off > CLOSE or not fused or not fell,
        )


def plain_losses(variant: Variant, device: torch.device, *, steps: int) -> list[float]:
    """Of a loop of plain torch: weights in bf16, which follow copies of them in fp32."""
    import train_bare

    spec = variant.spec()
    net = build_model(spec.model, generator=torch.Generator().manual_seed(0))
    model = AutoregressiveWrapper(net).to(device, torch.bfloat16)
    master = copy.deepcopy(model).float()
    optimizer = train_bare.adamw(spec, master)
    pairs = list(zip(master.parameters(), model.parameters(), strict=True))
    tokens = variant.tokens().to(device)
    losses = []
    for _ in range(steps):
        loss = model(tokens)
        losses.append(loss.item())
        loss.backward()
        for ours, low in pairs:
            assert low.grad is not None
            ours.grad, low.grad = low.grad.float(), None
        nn.utils.clip_grad_norm_(master.parameters(), spec.optim.grad_clip)
        optimizer.step()
        with torch.no_grad():
            for ours, low in pairs:
                low.copy_(ours)
    return losses


def speed(device: str, *, quick: bool) -> Iterator[Row]:
    """Whole steps of ours in bf16: tokens per second, and the share of the GPU's rate twice: as
    runs log it (perf/mfu: every token reads all keys), and with causal attention counted as half of
    that."""
    if (reason := missing()) is not None:
        yield Row("DeepSpeed", reason)
        return
    place = settle(device)
    for load in QUICK[:1] if quick else [load for load in LOADS if load.name.startswith("llama")]:
        stages = STAGES if load.name == "llama-125m" else (2,)
        modes: list[tuple[dict[str, Any], str]] = [
            ({"zero_stage": stage}, f"ZeRO {stage}") for stage in stages
        ]
        if not quick:
            compiled = {"zero_stage": 2, "compile": {"mode": "default"}}
            modes.append((compiled, "ZeRO 2, compiled"))
        for engine, name in modes:
            torch.compiler.reset()
            yield _speed_row(Variant(load=load, engine=engine), name, place, runs=2 if quick else 7)


def _speed_row(variant: Variant, name: str, device: torch.device, *, runs: int) -> Row:
    from xtdist.train.meters.flops import flops_per_token, peak_tflops

    load, cuda = variant.load, device.type == "cuda"
    training = Training(variant, device)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    seconds = seconds_of(training.step, device=device.type, runs=runs)
    memory = f", {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if cuda else ""
    model, size = training.spec.model, training.parameters
    training.close()
    tokens = load.batch * load.seq_len
    peak = peak_tflops(torch.cuda.get_device_name()) if cuda else None
    whole = (flops_per_token(model, load.seq_len) or 0.0) * tokens
    half = step_flops(model, parameters=size, tokens=tokens, seq_len=load.seq_len)
    share = ""
    if peak is not None:
        mfu, strict = (done / seconds / peak / 1e12 for done in (whole, half))
        share = f", MFU {mfu:.1%} (attention halved: {strict:.1%})"
        if load.name == "llama-1b":
            share += f", goal at least {MFU_GOAL:.0%}: {'reached' if mfu >= MFU_GOAL else 'MISSED'}"
    return Row(
        f"{load.name}, {load.batch} × {load.seq_len}, {name}",
        f"{1e3 * seconds:.1f} ms, {tokens / seconds:,.0f} tokens/s{share}{memory}",
    )


PLAN_CLOSE = 0.1
MEMORY: tuple[tuple[str, dict[str, Any], dict[str, Any]], ...] = (
    ("plain", {}, {}),
    ("feed-forwards computed again", {}, {"recompute": {"only": "feedforward"}}),
    ("all computed again", {}, {"recompute": {"blocks": 1}}),
    ("optimizer on the CPU", {"offload_optimizer": CPU}, {}),
    (
        "ZeRO 3, all on the CPU",
        {"zero_stage": 3, "offload_optimizer": CPU, "offload_parameters": CPU},
        {"recompute": {"blocks": 1}},
    ),
)


def memory(device: str, *, quick: bool) -> Iterator[Row]:
    """The most that steps hold on the GPU, against what `xtdist plan` says before a run starts:
    off by more than a tenth is a failure."""
    if (reason := missing()) is not None:
        yield Row("DeepSpeed", reason)
        return
    from xtdist.plan import Device, make_plan

    place = settle(device)
    cuda = place.type == "cuda"
    load = QUICK[0] if quick else Load(name="llama-125m", batch=16, seq_len=1024)
    for name, engine, model in MEMORY:
        variant = Variant(load=load, engine=engine, model=model)
        whole = Device("this", 2**50, cuda=cuda)
        found = make_plan(variant.spec(), TOKENIZER, whole, alone=True).chosen.memory
        text = (
            f"planned {found.peak / common.MIB:,.0f} MiB, of them a forward and backward pass "
            f"{found.activations / common.MIB:,.0f}"
        )
        training = Training(variant, place)
        if not cuda:
            losses = [training.step() for _ in range(2)]
            training.close()
            yield Row(name, f"{text}; not measured on a CPU", not np.isfinite(losses).all())
            continue
        training.step()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        for _ in range(2):
            training.step()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated()
        training.close()
        text += f"; held at most {peak / common.MIB:,.0f} MiB = {peak / found.peak:.0%} of that"
        off = abs(found.peak / peak - 1)
        yield Row(f"{load.name}, {load.batch} × {load.seq_len}, {name}", text, off > PLAN_CLOSE)


def resumed(device: str, *, quick: bool) -> Iterator[Row]:
    """A run that ends after 4 steps and goes on from its checkpoint to 8 is, to the bit, the one
    that was never interrupted: losses, norms, and every file of the last checkpoint."""
    if (reason := missing()) is not None:
        yield Row("DeepSpeed", reason)
        return
    place = settle(device)
    _name_packages()
    with tempfile.TemporaryDirectory(prefix="xtdist-gpu-") as folder:
        root = Path(folder)
        dataset = _dataset(root)
        for stage in (2,) if quick else STAGES:
            for precision in ("bf16",) if quick else ("bf16", "fp32"):
                name = f"zero-{stage}-{precision}"
                outcomes = [
                    _run(root / kind / name, dataset, name, stops, place)
                    for kind, stops in (("whole", (8,)), ("parts", (4, 8)))
                ]
                (losses, files), (others, other_files) = outcomes
                same = losses == others and files == other_files and len(losses) == 8
                fell = losses[-1][0] < losses[0][0]
                text = f"{len(losses)} steps, {len(files)} files of the last checkpoint: "
                text += "the same bits" if same else "NOT the same"
                yield Row(f"ZeRO {stage}, {precision}", text, not (same and fell))
                free()


def _run(
    folder: Path, dataset: Path, name: str, stops: tuple[int, ...], device: torch.device
) -> tuple[list[tuple[float, float]], dict[str, str]]:
    """Loss and norm of every step, and the digests of the last checkpoint's tensors."""
    from xtdist.data import load_tokenizer
    from xtdist.train import RunSpec, fit_to_data
    from xtdist.train.loop import train
    from xtdist.train.run import WorkerJob

    _, stage, precision = name.split("-")
    vocabulary = load_tokenizer(dataset / "tokenizer.json").vocab_size
    small = {"persist_below": 0} if stage == "3" else {}  # a tiny model is cut too
    folder.mkdir(parents=True)
    for steps in stops:
        tree = {
            "name": name,
            "output": str(folder.parent),
            "data": {"path": str(dataset), "seq_len": 32},
            "model": to_mapping(preset("llama-tiny", num_tokens=vocabulary, max_seq_len=32)),
            "optim": {"lr": 1e-3, "schedule": {"kind": "constant", "warmup_steps": 1}},
            "batch": {"tokens_per_step": 256, "micro_batch_tokens": 128},
            "loop": {"steps": steps, "valid_every": 0},
            "checkpoint": {"every": 4},
            "engine": {"zero_stage": int(stage), "precision": precision, **small},
            "stability": {"preemption_poll_s": 0},
        }
        spec = fit_to_data(from_mapping(RunSpec, tree), vocab_size=vocabulary)
        gpu = device.type == "cuda"
        train(WorkerJob(spec=spec, folder=str(folder), mlflow=None, gpu=gpu))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [(r["train/loss"], r["train/grad_norm"]) for r in rows if "train/loss" in r]
    (last,) = (folder / "checkpoints").glob("step_00000008-*")
    files = {
        str(path.relative_to(last)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(last.rglob("*.safetensors"))
    }
    return losses, files


def _dataset(root: Path) -> Path:
    """Random words as bytes."""
    from xtdist.data import ByteTokenizerConfig, FilesSource, PrepareConfig, prepare

    (root / "text").mkdir()
    words = np.random.default_rng(0).choice(["def", "return", "x", "(", ")", ":"], size=(20, 300))
    for i, line in enumerate(words):
        (root / "text" / f"{i}.txt").write_text(" ".join(line))
    prepare(
        PrepareConfig(
            output=str(root / "dataset"),
            source=FilesSource(path=str(root / "text")),
            tokenizer=ByteTokenizerConfig(),
            valid_fraction=0.2,
        )
    )
    return root / "dataset"


def _name_packages() -> None:
    """A checkpoint names the versions of packages, of which two need not be installed here: what
    is missing gets the version 0."""
    for name in ("xtdist", "ray"):
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            folder = tempfile.mkdtemp(prefix="xtdist-names-")
            info = Path(folder) / f"{name}-0.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0\n")
            sys.path.append(folder)
