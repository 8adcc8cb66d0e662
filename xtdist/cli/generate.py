"""xtdist generate WEIGHTS --prompt TEXT [--method NAME ...]"""

from __future__ import annotations

import argparse

import torch

from xtdist.checkpoint import load_weights
from xtdist.config import ConfigError
from xtdist.decode.text import METHODS, Settings, TextGenerator
from xtdist.objective import NonAutoregressiveWrapper


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "weights",
        help="a run folder, a checkpoint, or a weights folder; RUN/weights-ema: averaged weights",
    )
    parser.add_argument("--prompt", required=True)
    parser.add_argument(
        "--method",
        nargs="+",
        choices=METHODS,
        default=None,
        help="default: all that the model can do",
    )
    parser.add_argument(
        "--amateur", help="weaker model for contrastive decoding: a folder as above"
    )
    parser.add_argument(
        "--dtype",
        choices=("saved", "float32", "bfloat16", "int8"),
        default="saved",
        help="of the weights in memory; int8: a byte for each weight of a matrix",
    )
    parser.add_argument("--max-tokens", type=int, help="default: 64, less where there is no room")
    parser.add_argument("--temperature", type=float, default=0.8, help="of method sample")
    parser.add_argument("--top-p", type=float, default=0.95, help="of method sample")
    parser.add_argument("--num-beams", type=int, default=4)
    parser.add_argument(
        "--steps", type=int, help="of a mask-predict model; default: as in its config"
    )
    parser.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> int:
    dtype = None if args.dtype == "saved" else getattr(torch, args.dtype)
    expert = load_weights(args.weights, dtype=dtype)
    amateur = load_weights(args.amateur, dtype=dtype) if args.amateur else None
    if amateur is not None and amateur.tokenizer.sha256 != expert.tokenizer.sha256:
        raise ConfigError(f"--amateur: {amateur.folder} has another tokenizer than {expert.folder}")
    tokenizer = expert.tokenizer
    trained = expert.trained
    filler = trained if isinstance(trained, NonAutoregressiveWrapper) else None
    generator = TextGenerator(
        filler or expert.model,
        tokenizer,
        filling=filler.filling if filler else None,
        amateur=amateur.model if amateur else None,
        eos_id=tokenizer.eot_id,
        banned_ids=(tokenizer.mask_id, tokenizer.pad_id),
    )
    room = expert.model.max_seq_len - len(tokenizer.encode(args.prompt))
    max_tokens = max(min(64, room), 1) if args.max_tokens is None else args.max_tokens
    settings = Settings(
        max_tokens=max_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        num_beams=args.num_beams,
        steps=args.steps,
        seed=args.seed,
    )
    for method in args.method or generator.methods():
        print(f"--- {method}")
        print(args.prompt + generator(args.prompt, method, settings))
    return 0
