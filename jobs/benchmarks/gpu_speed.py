"""How fast it is on a GPU: tokens per second, the share of the GPU's rate, and others beside it."""

from __future__ import annotations

import gc
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import common
import torch
from gpu_checks import Row
from nano import PlainGPT
from torch import Tensor, nn

from xtdist.decode import Engine, EngineConfig, GenerationParams
from xtdist.model import ModelConfig, build_model
from xtdist.model.presets import PRESETS, preset
from xtdist.objective import AutoregressiveWrapper

NOMINAL = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}
"""Dense bf16 operations per second that makers state."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is trained: a preset's name, how many sequences of what length."""

    name: str
    batch: int
    seq_len: int


LOADS = (
    Load(name="llama-125m", batch=32, seq_len=1024),
    Load(name="gpt2-125m", batch=32, seq_len=1024),
    Load(name="llama-1b", batch=8, seq_len=2048),
)
QUICK = (
    Load(name="llama-tiny", batch=2, seq_len=32),
    Load(name="gpt2-tiny", batch=2, seq_len=32),
)


def compiler(*, quick: bool) -> str:
    """What torch.compile uses: where only the script is tried out, tracing without C++."""
    return "aot_eager" if quick else "inductor"


def measured_peak(device: str) -> float:
    """Operations per second of one large bf16 matrix product."""
    n = 8192 if device.startswith("cuda") else 256
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    seconds = min(common.timed(lambda: a @ b, device=device)[0] for _ in range(10))
    return 2 * n**3 / seconds


def step_flops(config: ModelConfig, *, parameters: int, tokens: int, seq_len: int) -> float:
    """Operations of forward and backward: 6 for each weight that multiplies and token, and causal
    attention's two products, 6 · depth · inner · n for each token. Tables that are only looked up
    don't multiply."""
    lookups = 0 if config.tie_embedding else config.num_tokens * config.dim
    if config.position.kind == "learned":
        lookups += config.max_seq_len * config.dim
    inner = config.heads * config.attention.dim_head
    return tokens * (6.0 * (parameters - lookups) + 6.0 * config.depth * inner * seq_len)


def train_step(module: nn.Module, loss: Callable[[Tensor], Tensor], tokens: Tensor) -> Any:
    """One optimizer step, to be called again and again."""
    fused = tokens.is_cuda
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, fused=fused)

    def step() -> None:
        loss(tokens).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def seconds_of(step: Callable[[], Any], *, device: str, runs: int) -> float:
    """The median of ``runs`` timed steps after three others."""
    for _ in range(3):
        step()
    times = sorted(common.timed(step, device=device)[0] for _ in range(runs))
    return times[len(times) // 2]


def throughput(device: str, *, quick: bool) -> Iterator[Row]:
    """Whole training steps (loss, gradients, AdamW) in bf16: tokens per second and MFU."""
    peak = measured_peak(device)
    title = torch.cuda.get_device_name() if device.startswith("cuda") else "CPU"
    nominal = next((rate for key, rate in NOMINAL.items() if key in title), None)
    yield Row("one bf16 matrix product", f"{peak / 1e12:.1f} TFLOP/s")
    for load in QUICK if quick else LOADS:
        config = preset(
            load.name, num_tokens=PRESETS[load.name].num_tokens, max_seq_len=load.seq_len
        )
        generator = torch.Generator().manual_seed(0)
        shape = (load.batch, load.seq_len + 1)
        tokens = torch.randint(0, config.num_tokens, shape, generator=generator).to(device)
        for mode in ("eager", "compiled"):
            torch.compiler.reset()
            model = AutoregressiveWrapper(build_model(config)).to(device, torch.bfloat16)
            loss = (
                torch.compile(model, backend=compiler(quick=quick)) if mode == "compiled" else model
            )
            step = train_step(model, loss, tokens)
            if device.startswith("cuda"):
                torch.cuda.reset_peak_memory_stats()
            seconds = seconds_of(step, device=device, runs=2 if quick else 7)
            count = load.batch * load.seq_len
            size = sum(p.numel() for p in model.parameters())
            done = step_flops(config, parameters=size, tokens=count, seq_len=load.seq_len)
            rate = done / seconds
            share = f"{rate / nominal:.1%} of nominal, " if nominal else ""
            memory = ""
            if device.startswith("cuda"):
                memory = f", {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
            yield Row(
                f"{load.name}, {load.batch} × {load.seq_len}, {mode}",
                f"{count / seconds:,.0f} tokens/s, {1e3 * seconds:.1f} ms, {rate / 1e12:.1f} "
                f"TFLOP/s = {share}{rate / peak:.1%} of the product's{memory}",
            )
            del model, loss, step
            gc.collect()
            if device.startswith("cuda"):
                torch.cuda.empty_cache()


def measured_bandwidth(device: str) -> float:
    """Bytes per second of copying a large tensor: read and written."""
    big = torch.empty(2**30 if device.startswith("cuda") else 2**22, dtype=torch.uint8)
    big = big.to(device)
    other = torch.empty_like(big)
    seconds = min(common.timed(lambda: other.copy_(big), device=device)[0] for _ in range(10))
    return 2 * big.numel() / seconds


def decoding_speed(device: str, *, quick: bool) -> Iterator[Row]:
    """Greedy decoding by the engine: tokens per second, and the share of what reading the weights
    and all cached keys and values once for each step would allow. Prompts don't count. Plain steps
    are launched kernel by kernel, compiled ones by inductor; there is no CUDA graph."""
    rate = measured_bandwidth(device)
    yield Row("copying", f"{rate / 1e9:.0f} GB/s")
    name, prompt, new = ("llama-tiny", 8, 6) if quick else ("llama-125m", 128, 128)
    longest = prompt + new
    made = preset(name, num_tokens=PRESETS[name].num_tokens, max_seq_len=longest)
    model = build_model(made).to(device, torch.bfloat16).eval()
    weights = sum(p.nbytes for p in model.parameters())
    if not made.tie_embedding:
        weights -= model.token_embedding.weight.nbytes
    sizes = [heads * width for layer in model.cache_spec().layers for heads, width in layer]
    kept = 2 * sum(sizes)
    generator = torch.Generator().manual_seed(0)
    for batch, compiled in [(1, 0), (8, 0), (64, 0), *([] if quick else [(1, 1), (8, 8)])]:
        ids = torch.randint(0, made.num_tokens, (batch, prompt), generator=generator).tolist()
        config = EngineConfig(max_sequences=batch, compile_sequences=compiled)
        engine = Engine(model, config=config)

        def run(tokens: int, engine: Engine = engine, ids: Any = ids) -> None:
            engine.generate(ids, GenerationParams(max_tokens=tokens, temperature=0.0))

        whole, first = (
            seconds_of(lambda n=n: run(n), device=device, runs=1 if quick else 5) for n in (new, 1)
        )
        step = max(whole - first, 1e-9) / (new - 1)
        limit = (weights + batch * (prompt + new / 2) * kept) / rate
        yield Row(
            f"{name}, bf16, batch {batch}{', compiled' if compiled else ''}",
            f"{batch / step:,.0f} tokens/s, {1e3 * step:.2f} ms a step = {limit / step:.1%} of the "
            "limit",
        )


def _gradients(module: nn.Module, loss: Callable[[Tensor], Tensor], tokens: Tensor) -> Any:
    def step() -> None:
        for parameter in module.parameters():
            parameter.grad = None
        loss(tokens).backward()

    return step


def _text(timing: common.Timing, memory: float) -> str:
    return (
        f"{1e3 * timing.ours:.1f} ms, theirs / ours {timing.ratio:.2f}; "
        f"peak memory ours / theirs {memory:.2f}"
    )


def against_plain(device: str, *, quick: bool) -> Iterator[Row]:
    """Loss and gradients in bf16 against a plain GPT-2 of the same shape."""
    name, batch = ("gpt2-tiny", 2) if quick else ("gpt2-125m", 16)
    n = 32 if quick else 1024
    given = PRESETS[name]
    config = preset(name, num_tokens=given.num_tokens, max_seq_len=n)
    tokens = torch.randint(0, config.num_tokens, (batch, n + 1), device=device)
    for mode in ("eager", "compiled"):
        torch.compiler.reset()
        ours = AutoregressiveWrapper(build_model(config)).to(device, torch.bfloat16)
        shape = {"num_tokens": config.num_tokens, "max_seq_len": n}
        plain = PlainGPT(**shape, dim=config.dim, depth=config.depth).to(device, torch.bfloat16)
        both = [
            _gradients(
                m,
                torch.compile(m, backend=compiler(quick=quick)) if mode == "compiled" else m,
                tokens,
            )
            for m in (ours, plain)
        ]
        timing = common.compare(*both, device=device, pairs=1 if quick else 9)
        peaks = [common.peak_bytes(step, device=device) for step in both]
        yield Row(f"{name}, {mode}", _text(timing, peaks[0] / peaks[1]))


def against_x_transformers(device: str, *, quick: bool) -> Iterator[Row]:
    """Loss and gradients in bf16 against x-transformers with the same weights."""
    if importlib.util.find_spec("x_transformers") is None:
        yield Row("x-transformers", "not installed")
        return
    import model as cpu_script
    import x_transformers as xt

    size = "quick" if quick else "base"
    wanted = ("flash", "llama flash", "alibi flash", "flash, padding mask")
    for case in cpu_script.cases(size):
        if case.name.removeprefix(f"{size}: ") not in wanted:
            continue
        mine, other = common.build_pair(case, device=device, dtype=torch.bfloat16)
        x = torch.randint(0, case.vocabulary, (case.batch, case.seq_len), device=device)
        full, short = cpu_script.masks(case, device=device)
        ours, theirs = AutoregressiveWrapper(mine), xt.AutoregressiveWrapper(other)
        both = [
            _gradients(ours, lambda t, m=ours, g=short: m(t, **g), x),
            _gradients(theirs, lambda t, m=theirs, g=full: m(t, **g), x),
        ]
        try:
            both[1]()
        except RuntimeError as e:
            yield Row(case.name, f"x-transformers can't: {str(e).splitlines()[0][:90]}")
            continue
        timing = common.compare(*both, device=device, pairs=1 if quick else 9)
        peaks = [common.peak_bytes(step, device=device) for step in both]
        yield Row(case.name, _text(timing, peaks[0] / peaks[1]))
