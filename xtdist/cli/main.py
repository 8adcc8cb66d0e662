"""``xtdist <verb>``. Each verb is a file; a user's mistake is one message and exit code 2."""

from __future__ import annotations

import argparse
import importlib
import keyword
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from xtdist.config import UserError

VERBS = {
    "prepare": "text to Arrow shards of tokens",
    "data": "check, show and copy datasets; which documents a batch holds",
    "plan": "what a run needs: memory by ZeRO stage, time, disk; starts nothing",
    "train": "train a model on Ray",
    "sweep": "many runs of one config, to find the best",
    "evaluate": "validation loss beside a bigram model and xz",
    "export": "weights as a Hugging Face folder, or what prevents it",
    "import": "a Hugging Face folder as weights",
    "generate": "continue a prompt: greedy, sampling, beams, contrastive, mask-predict",
    "serve": "an OpenAI-compatible endpoint on Ray Serve",
    "register": "give weights a name in MLflow's registry, for models:/name@alias",
    "plot": "curves of runs, overlaid: a PNG and one HTML page",
    "report": "one HTML page about a run",
    "config": "the resolved config and where each value comes from",
    "doctor": "is this machine, or each node of a cluster, fit for a run",
    "demo": "all of the above on a small model",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code."""
    try:
        return _run(sys.argv[1:] if argv is None else argv)
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _module(verb: str) -> Any:
    """The file of a verb; one whose name Python keeps for itself has a line behind it."""
    return importlib.import_module(f"xtdist.cli.{verb}{'_' * keyword.iskeyword(verb)}")


def _is_override(word: str) -> bool:
    return "=" in word and not word.startswith("-")


def _is_dashed(word: str) -> bool:
    return word.startswith("--") and _is_override(word.lstrip("-"))


def _run(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="xtdist", description="Distributed training and serving of transformers on Ray."
    )
    parser.add_argument("--version", action="version", version=f"xtdist {version('xtdist')}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, summary in VERBS.items():
        sub = verbs.add_parser(verb, help=summary, description=summary)
        if list(words[:1]) == [verb]:  # only the verb in use is imported: --help stays quick
            _module(verb).add_arguments(sub)
    args, more = parser.parse_known_args(words)
    if more and hasattr(args, "overrides") and all(_is_override(word) for word in more):
        args.overrides += more  # those that stand behind a flag
    elif more and hasattr(args, "overrides") and all(map(_is_dashed, more)):
        plain = " ".join(word.lstrip("-") for word in more)
        parser.error(f"unrecognized arguments: {' '.join(more)}; overrides have no dashes: {plain}")
    elif more:
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    code: int = _module(args.verb).run(args)
    return code


if __name__ == "__main__":
    sys.exit(main())
