"""xtdist import FOLDER --output WEIGHTS: a model from Hugging Face's world."""

from __future__ import annotations

import argparse

from xtdist.checkpoint.huggingface.take_over import ImportOptions, take_over


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder",
        help="config.json, safetensors and tokenizer.json of a Llama, Mistral, Mixtral, "
        "Qwen2, Qwen3 or GPT-2; nothing is downloaded",
    )
    parser.add_argument("--output", required=True, metavar="FOLDER", help="not there yet")
    parser.add_argument("--max-seq-len", type=int, help="shorter than the model's own")
    for role, what in (("eot", "ends a document"), ("mask", "is a mask"), ("pad", "is padding")):
        parser.add_argument(f"--{role}", metavar="TOKEN", help=f"the special token that {what}")


def run(args: argparse.Namespace) -> int:
    roles = {r: getattr(args, r) for r in ("eot", "mask", "pad") if getattr(args, r) is not None}
    options = ImportOptions(roles=roles, max_seq_len=args.max_seq_len)
    found = take_over(args.folder, args.output, options)
    for note in found.notes:
        print(f"note: {note}")
    print(
        f"{args.output}: weights of a {found.family.architecture}; generate, evaluate, serve and "
        "checkpoint.start_from take them"
    )
    return 0
