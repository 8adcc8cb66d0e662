"""xtdist generate WEIGHTS --prompt TEXT [--method NAME ...]; --url URL in the place of WEIGHTS"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from xtdist.checkpoint import load_weights
from xtdist.config import CheckpointError, ConfigError
from xtdist.decode.text import FILL, METHODS, SEARCH, Settings, TextGenerator
from xtdist.objective import NonAutoregressiveWrapper
from xtdist.serve.client import RemoteModel

KEY = "XTDIST_API_KEY"
_CONTINUING = tuple(m for m in METHODS if m != FILL)
_USED_BY = {
    "temperature": ("sample", FILL),
    "top_k": ("sample", SEARCH),
    "top_p": ("sample",),
    "min_p": ("sample",),
    "repetition_penalty": _CONTINUING,
    "num_beams": ("beam",),
    "length_penalty": ("beam",),
    "alpha": ("contrastive",),
    "beta": ("contrastive",),
    "penalty_alpha": (SEARCH,),
    "stop": _CONTINUING,
    "steps": (FILL,),
    "suffix": (FILL,),
}
_DEFAULT_TOKENS = 64
Pieces = Iterable[str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "weights",
        nargs="?",
        help="a run folder, a checkpoint, or a weights folder; RUN/weights-ema: averaged weights",
    )
    parser.add_argument("--prompt", required=True)
    parser.add_argument(
        "--method",
        nargs="+",
        choices=METHODS,
        default=None,
        help=f"default: all that the model can do, but for {SEARCH}",
    )
    _add_places(parser)
    _add_settings(parser)


def _add_places(parser: argparse.ArgumentParser) -> None:
    """Where the model is."""
    parser.add_argument(
        "--amateur", help="weaker model for contrastive decoding: a folder as above"
    )
    parser.add_argument(
        "--dtype",
        choices=("saved", "float32", "bfloat16", "int8"),
        help="of the weights in memory (saved); int8: a byte for each weight of a matrix",
    )
    parser.add_argument("--url", help="ask this server instead, as http://127.0.0.1:8000")
    parser.add_argument("--model", help="the server's name of the model; needed if it has several")
    parser.add_argument("--api-key-file", help=f"a file with the server's key; or set {KEY}")


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """What is asked of it; the defaults are those of ``Settings``."""
    usual = Settings()

    def add(name: str, kind: Callable[[str], Any], text: str = "") -> None:
        own = getattr(usual, name, None)
        text = text or f"of {', '.join(_USED_BY[name])} ({own})"
        parser.add_argument("--" + name.replace("_", "-"), type=kind, help=text)

    add("max_tokens", int, f"default: {_DEFAULT_TOKENS}, less where there is no room")
    add("temperature", float)
    add("top_k", int, f"of sample (0: all); of {SEARCH}: its candidates (4)")
    add("top_p", float)
    add("min_p", float)
    add("repetition_penalty", float, f"of all methods but {FILL} (1.0)")
    add("num_beams", int)
    add("length_penalty", float)
    add("alpha", float, "of contrastive: least share of the best token's probability (0.1)")
    add("beta", float, "of contrastive: how much of the amateur is taken off (0.5)")
    add("penalty_alpha", float)
    add("steps", int, f"of {FILL}; default: as in the model's config")
    parser.add_argument("--seed", type=int, default=usual.seed)
    parser.add_argument("--stop", action="append", help="a text that ends it; may be given often")
    parser.add_argument("--suffix", help=f"of {FILL}: what comes after the text to be filled in")
    parser.add_argument(
        "--stream",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="show the text as it is found",
    )


def run(args: argparse.Namespace) -> int:
    if bool(args.url) == bool(args.weights):
        raise ConfigError("generate: give either weights or --url, the server that has them")
    _refuse_elsewhere(args)
    if args.url:
        _ask(args)
    else:
        _generate(args)
    return 0


def _generate(args: argparse.Namespace) -> None:
    """With weights from a folder, in this process."""
    generator = _load(args)
    known = [generator.tokenizer.encode(text) for text in (args.prompt, args.suffix or "")]
    settings = _settings(args, room=generator.longest - sum(map(len, known)))
    for method in _methods(args, generator.methods()):
        pieces = generator.stream(args.prompt, method, settings, suffix=args.suffix or "")
        try:
            _show(args, method, pieces)
        except FloatingPointError as e:
            raise CheckpointError(f"{args.weights}: {e}") from None


def _load(args: argparse.Namespace) -> TextGenerator:
    dtype = None if args.dtype in (None, "saved") else getattr(torch, args.dtype)
    expert = load_weights(args.weights, dtype=dtype)
    amateur = load_weights(args.amateur, dtype=dtype) if args.amateur else None
    if amateur is not None and amateur.tokenizer.sha256 != expert.tokenizer.sha256:
        raise ConfigError(f"--amateur: {amateur.folder} has another tokenizer than {expert.folder}")
    tokenizer = expert.tokenizer
    trained = expert.trained
    filler = trained if isinstance(trained, NonAutoregressiveWrapper) else None
    return TextGenerator(
        filler or expert.model,
        tokenizer,
        filling=filler.filling if filler else None,
        amateur=amateur.model if amateur else None,
        eos_id=tokenizer.eot_id,
        banned_ids=(tokenizer.mask_id, tokenizer.pad_id),
    )


def _ask(args: argparse.Namespace) -> None:
    """A server."""
    with RemoteModel(args.url, api_key=_api_key(args), name=args.model) as model:
        known = args.prompt + (args.suffix or "")
        room = model.room(known) if args.max_tokens is None else 0
        settings = _settings(args, room=room)
        for method in _methods(args, model.methods()):
            options = {"suffix": args.suffix or "", "live": args.stream}
            _show(args, method, model.stream(args.prompt, method, settings, **options))


def _settings(args: argparse.Namespace, *, room: int) -> Settings:
    names = [f.name for f in dataclasses.fields(Settings)]
    given = {n: getattr(args, n) for n in names if getattr(args, n) is not None}
    if "stop" in given:
        given["stop"] = tuple(given["stop"])
    return Settings(**{"max_tokens": max(min(_DEFAULT_TOKENS, room), 1), **given})


def _methods(args: argparse.Namespace, able: Sequence[str]) -> Sequence[str]:
    """Those that were asked for.

    Raises:
        ConfigError: an option that none of them uses.
    """
    methods: Sequence[str] = args.method or able
    for name, users in _USED_BY.items():
        if getattr(args, name) is not None and not set(users) & set(methods):
            option = "--" + name.replace("_", "-")
            raise ConfigError(
                f"{option}: {', '.join(methods)} would not use it; leave it out, or add --method "
                f"{' or '.join(users)}"
            )
    return methods


def _refuse_elsewhere(args: argparse.Namespace) -> None:
    """Raises ConfigError for an option that belongs to the other place."""
    here, there = ("amateur", "dtype"), ("model", "api_key_file")
    for name in here if args.url else there:
        if getattr(args, name) is not None:
            option = "--" + name.replace("_", "-")
            why = "the server decides that" if args.url else "it is for --url"
            raise ConfigError(f"{option}: {why}; leave it out")


def _api_key(args: argparse.Namespace) -> str | None:
    if args.api_key_file is None:
        return os.environ.get(KEY) or None
    try:
        key = Path(args.api_key_file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"--api-key-file: {args.api_key_file} can't be read") from None
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(f"--api-key-file: {args.api_key_file} should hold one key and no more")
    return key


def _show(args: argparse.Namespace, method: str, pieces: Pieces) -> None:
    print(f"--- {method}")
    _write(args.prompt)
    for piece in pieces if args.stream else ["".join(pieces)]:
        _write(piece)
    _write((args.suffix or "") + "\n")


def _write(text: str) -> None:
    """To a terminal, without the control characters that would steer it."""
    if sys.stdout.isatty():
        text = "".join(_visible(c) for c in text)
    sys.stdout.write(text)
    sys.stdout.flush()


def _visible(char: str) -> str:
    plain = char in "\n\t" or unicodedata.category(char) != "Cc"
    return char if plain else char.encode("unicode_escape").decode()
