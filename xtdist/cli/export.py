"""xtdist export WEIGHTS --output FOLDER, or --check: a model for transformers, vLLM, llama.cpp."""

from __future__ import annotations

import argparse
from pathlib import Path

from xtdist.checkpoint.huggingface.check import blocking
from xtdist.checkpoint.huggingface.export import ExportOptions, chosen, export
from xtdist.checkpoint.huggingface.families import FAMILIES
from xtdist.checkpoint.huggingface.tokenizers import blocking_tokenizer
from xtdist.checkpoint.weights import find_weights, read_config
from xtdist.config import ConfigError, load
from xtdist.data import load_tokenizer
from xtdist.model.config import ModelConfig
from xtdist.train.spec import RunSpec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "weights",
        help="a run, a checkpoint or a weights folder (RUN/weights-ema: averaged weights); with "
        "--check also the YAML of a run that has not begun",
    )
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="of a YAML")
    parser.add_argument("--output", metavar="FOLDER", help="a folder that is not there yet")
    parser.add_argument(
        "--format", choices=tuple(FAMILIES), help="the architecture; by default what the model is"
    )
    parser.add_argument(
        "--dtype", choices=("saved", "float32", "bfloat16", "float16"), default="saved"
    )
    parser.add_argument("--max-shard-gb", type=float, default=5.0, help="of one file (5)")
    parser.add_argument(
        "--check", action="store_true", help="only say what prevents it; exit code 1 if something"
    )


def run(args: argparse.Namespace) -> int:
    is_config = args.weights.endswith((".yaml", ".yml"))
    if args.check:
        if args.output:
            raise ConfigError("--output: --check writes nothing; leave one of the two out")
        return _check(args, is_config=is_config)
    if is_config or args.overrides:
        raise ConfigError(f"{args.weights}: only --check reads a config; give weights")
    if not args.output:
        raise ConfigError("--output: missing; give a folder that is not there yet, or --check")
    options = ExportOptions(format=args.format, dtype=args.dtype, max_shard_gb=args.max_shard_gb)
    tree = export(args.weights, args.output, options)
    print(f"{args.output}: a {tree['architectures'][0]} in {tree['torch_dtype']}")
    return 0


def _check(args: argparse.Namespace, *, is_config: bool) -> int:
    """What prevents an export, line by line."""
    model, others = _of_config(args) if is_config else _of_weights(args)
    kind = chosen(model, args.format)
    lines = others + [p.line() for p in blocking(model, kind)]
    if not lines:
        print(f"{args.weights}: exactly a {kind.architecture}")
        return 0
    print(f"{args.weights}: not exactly a {kind.architecture}; what prevents it:")
    print("\n".join(f"  {line}" for line in lines))
    return 1


def _of_config(args: argparse.Namespace) -> tuple[ModelConfig, list[str]]:
    spec = load(RunSpec, args.weights, args.overrides).config
    wrong = []
    if spec.objective.kind != "autoregressive":
        wrong = [f"objective.kind: got {spec.objective.kind}, must be autoregressive"]
    return spec.model, wrong


def _of_weights(args: argparse.Namespace) -> tuple[ModelConfig, list[str]]:
    if args.overrides:
        raise ConfigError(f"{args.overrides[0]}: only a YAML can be changed, not weights")
    folder: Path = find_weights(args.weights)
    refused = blocking_tokenizer(load_tokenizer(folder / "tokenizer.json"))
    return read_config(folder).model, [refused] if refused else []
