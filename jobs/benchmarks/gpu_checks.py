"""What must hold on a GPU: it computes what the CPU computes, whatever the backend, and compiled,
cached or sharded too."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import itertools
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from xtdist.config import ConfigError, from_mapping, to_mapping
from xtdist.decode import Engine, EngineConfig, GenerationParams
from xtdist.model import ModelConfig, TransformerWrapper, build_model
from xtdist.model.presets import PRESETS, preset

TINY = {"dim": 32, "depth": 2, "heads": 4, "attn_dim_head": 16}
SIZES = {"num_tokens": 40, "max_seq_len": 24}
LENGTH = 16


@dataclass(frozen=True)
class Row:
    """One line of a table; ``failed`` when a check does not hold."""

    name: str
    value: str
    failed: bool = False


def option_configs() -> Iterator[tuple[str, ModelConfig, tuple[str, ...]]]:
    """(name, tiny config, what it must be given) of every sample of every option."""
    from xtdist.model.compat import layers_config, model_config
    from xtdist.model.options import OPTIONS
    from xtdist.model.options.places import put

    for option in OPTIONS:
        for i, sample in enumerate(option.samples):
            for causal in (True, False):
                try:
                    layers = layers_config({**TINY, **sample.layers}, causal=causal, name="Layers")
                    tree = to_mapping(model_config(layers, {**SIZES, **sample.wrapper}))
                    for place, value in sample.config.items():
                        put(tree, place, value)
                    config = from_mapping(ModelConfig, tree)
                    with torch.device("meta"):
                        TransformerWrapper.from_config(config)
                except ConfigError:
                    if not causal:
                        raise
                    continue  # some are for encoders alone
                yield f"{option.name} {i + 1}", config, sample.inputs
                break


def perturbed(config: ModelConfig) -> TransformerWrapper:
    """A model in eval mode, away from its start values, which can hide errors."""
    generator = torch.Generator().manual_seed(0)
    model = build_model(config, generator=generator)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    return model.eval()


def tokens_of(config: ModelConfig, *, rows: int = 2, length: int = LENGTH) -> Tensor:
    """Token ids (rows, length)."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, config.num_tokens, (rows, length), generator=generator)


def distance(a: Tensor, b: Tensor) -> float:
    """‖a − b‖ / ‖b‖ in fp32 on the CPU; infinite where a is not finite."""
    a, b = a.detach().float().cpu(), b.detach().float().cpu()
    if not torch.isfinite(a).all():
        return float("inf")
    return float((a - b).norm() / b.norm().clamp_min(1e-12))


def _logits(
    model: nn.Module, x: Tensor, given: dict[str, Tensor], device: str, dtype: torch.dtype
) -> Tensor:
    there = copy.deepcopy(model).to(device, dtype)
    inputs = {
        name: value.to(device, dtype if value.is_floating_point() else None)
        for name, value in given.items()
    }
    torch.manual_seed(0)
    with torch.no_grad():
        out: Tensor = there(x.to(device), **inputs)
    return out


def parity(device: str) -> Iterator[Row]:
    """The GPU's logits are the CPU's: in fp32 up to rounding; in bf16 as close to the exact ones as
    the CPU's own bf16. Options that draw in a forward pass are left out."""
    count, worst, worst_half = 0, 0.0, 0.0
    for name, config, inputs in option_configs():
        model, x = perturbed(config), tokens_of(config)
        shapes = {"context": (2, 7, config.dim), "condition": (2, config.dim)}
        generator = torch.Generator().manual_seed(2)
        given = {
            key: torch.randn(shapes[key], generator=generator)
            if key in shapes
            else torch.tensor([5, 2])  # prefix_attn_len
            for key in inputs
        }
        with torch.no_grad():
            exact = model(x, **given)
            if not torch.equal(exact, model(x, **given)):
                continue
        error = distance(_logits(model, x, given, device, torch.float32), exact)
        half = distance(_logits(model, x, given, device, torch.bfloat16), exact)
        own = distance(_logits(model, x, given, "cpu", torch.bfloat16), exact)
        count, worst, worst_half = count + 1, max(worst, error), max(worst_half, half)
        if error > 1e-3 or half > 2 * own + 0.02:
            yield Row(name, f"fp32 off by {error:.1e}, bf16 {half:.1e} (CPU {own:.1e})", True)
    yield Row("samples of options", str(count), failed=count == 0)
    yield Row("largest distance", f"fp32 {worst:.1e}, bf16 {worst_half:.1e}")


SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"name": "llama-tiny"},
    "llama, gqa": {"name": "llama-tiny", "attention": {"kv_heads": 1}},
    "llama, window": {"name": "llama-tiny", "attention": {"window": 7}},
    "gpt2": {"name": "gpt2-tiny"},
    "alibi": {
        "name": "llama-tiny",
        "position": {"kind": "none"},
        "position_bias": {"kind": "alibi"},
    },
}


def small(name: str, **changes: Any) -> ModelConfig:
    """A tiny preset ready to be built."""
    shape = {**SHAPES[name], **changes}
    given = PRESETS[shape["name"]]
    return preset(**{"num_tokens": given.num_tokens, "max_seq_len": 128, **shape})


def _outcome(
    model: nn.Module, x: Tensor, forward: Callable[[Tensor], Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Logits, and the gradient of their mean square in the first parameter."""
    for parameter in model.parameters():
        parameter.grad = None
    logits = model(x) if forward is None else forward(x)
    logits.float().square().mean().backward()
    grad = next(iter(model.parameters())).grad
    assert grad is not None
    return logits.detach(), grad.clone()


def backends(device: str) -> Iterator[Row]:
    """Every backend of attention gives the logits and gradients of the written-out formula."""
    for name in SHAPES:
        model = perturbed(small(name)).to(device)
        x = tokens_of(model.config, length=64).to(device)
        exact: tuple[Tensor, Tensor] | None = None
        for backend in ("eager", "sdpa", "flex"):
            config = small(name, attention={**_part(name), "backend": backend})
            other = build_model(config).to(device).eval()
            other.load_state_dict(model.state_dict())
            if backend == "flex" and device == "cpu":  # has no gradients there
                with torch.no_grad():
                    found = other(x), torch.zeros(())
            else:
                found = _outcome(other, x)
            if exact is None:
                exact = found
                continue
            off, text = distance(found[0], exact[0]), ""
            if found[1].ndim:
                text = f", gradients {distance(found[1], exact[1]):.1e}"
                off = max(off, distance(found[1], exact[1]))
            text = f"logits off by {distance(found[0], exact[0]):.1e}{text}"
            yield Row(f"{name}, {backend}", text, off > 1e-3)


def _part(name: str) -> dict[str, Any]:
    return dict(SHAPES[name].get("attention", {}))


def compiled(device: str, *, compiler: str) -> Iterator[Row]:
    """torch.compile without a graph break gives the same logits and gradients."""
    for name in SHAPES:
        torch.compiler.reset()
        model = perturbed(small(name)).to(device)
        x = tokens_of(model.config, length=64).to(device)
        plain = _outcome(model, x)
        fast = _outcome(model, x, torch.compile(model, fullgraph=True, backend=compiler))
        off, grad_off = (distance(b, a) for a, b in zip(plain, fast, strict=True))
        text = f"logits off by {off:.1e}, gradients {grad_off:.1e}"
        yield Row(name, text, max(off, grad_off) > 2e-3)


def decoding(device: str, *, compiles: bool) -> Iterator[Row]:
    """Greedy text of the engine, cached and batched, is the best next token of a full forward pass
    each time (a tie within rounding counts). ``compiles``: of compiled steps too."""
    plain = EngineConfig(max_sequences=4, max_step_tokens=32)
    configs = {"": plain}
    if compiles:
        configs[", compiled"] = dataclasses.replace(plain, compile_sequences=3)
    for name, (suffix, config) in itertools.product(SHAPES, configs.items()):
        model = perturbed(small(name)).to(device)
        prompts = [tokens_of(model.config, rows=1, length=n)[0].tolist() for n in (3, 17, 40)]
        try:
            engine = Engine(model, config=config)
        except ConfigError as e:  # a window lies in several pages
            yield Row(f"{name}{suffix}", f"refused: {e}")
            continue
        done = engine.generate(prompts, GenerationParams(max_tokens=24, temperature=0.0))
        short = 0.0
        for prompt, completion in zip(prompts, done, strict=True):
            new = list(completion.choices[0].token_ids)
            ids = torch.tensor([[*prompt, *new]], device=device)
            with torch.no_grad():
                logits = model(ids)[0, len(prompt) - 1 : -1].float()
            chosen = logits.gather(1, ids[0, len(prompt) :, None])[:, 0]
            short = max(short, float((logits.amax(dim=-1) - chosen).max()))
        text = f"chosen logit below the best by at most {short:.1e}"
        yield Row(f"{name}{suffix}", text, short > 1e-3)


def sharded(device: str) -> Iterator[Row]:
    """A few steps of DeepSpeed, ZeRO 2 and 3, on one worker are those of plain torch."""
    if importlib.util.find_spec("deepspeed") is None:
        yield Row("deepspeed", "not installed")
        return
    from xtdist.objective import AutoregressiveWrapper

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_PORT": port}
    os.environ.update({key: str(value) for key, value in place.items()}, MASTER_ADDR="127.0.0.1")
    os.environ.setdefault("DS_ACCELERATOR", device.split(":")[0])
    import deepspeed

    deepspeed.utils.logger.setLevel("ERROR")
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="nccl" if device.startswith("cuda") else "gloo")
    start = perturbed(small("llama, gqa"))
    x = tokens_of(start.config, length=33).to(device)
    plain = AutoregressiveWrapper(copy.deepcopy(start)).to(device).train()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3)
    wanted = []
    for _ in range(4):
        loss = plain(x)
        wanted.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for stage in (2, 3):
        model = AutoregressiveWrapper(copy.deepcopy(start)).to(device).train()
        settings = {
            "train_micro_batch_size_per_gpu": len(x),
            "zero_optimization": {"stage": stage},
            "zero_allow_untested_optimizer": True,
            "gradient_clipping": 0.0,
            "steps_per_print": 10**9,
        }
        engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=torch.optim.AdamW(model.parameters(), lr=1e-3),
            config=settings,
        )
        losses = []
        for _ in range(4):
            loss = engine(x)
            losses.append(loss.item())
            engine.backward(loss)
            engine.step()
        off = max(abs(a - b) for a, b in zip(losses, wanted, strict=True))
        yield Row(f"ZeRO {stage}", f"losses off by {off:.1e}", off > 1e-3)
    torch.distributed.destroy_process_group()
