"""xtdist serve WEIGHTS [--amateur WEIGHTS], or xtdist serve --config FILE [key.path=value ...],
or xtdist serve --new-key NAME [--api-keys-file FILE]"""

from __future__ import annotations

import argparse
import sys

from xtdist.config import ConfigError, load
from xtdist.serve.auth import add_key, new_key
from xtdist.serve.config import ServeConfig, ServedModel
from xtdist.serve.server import run as serve


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("weights", nargs="?", help="a run folder, a checkpoint, a weights folder")
    parser.add_argument("--amateur", help="weaker model for contrastive decoding")
    parser.add_argument("--name", help="what clients call the model (xtdist)")
    parser.add_argument("--host", help="address to listen at (127.0.0.1)")
    parser.add_argument("--port", type=int, help="port to listen at (8000)")
    parser.add_argument(
        "--api-keys-file", help="who may ask; --new-key adds a line to it, also while it is served"
    )
    parser.add_argument("--new-key", metavar="NAME", help="make an API key, show it once, and end")
    parser.add_argument("--config", help="YAML of an endpoint (instead of the above)")
    parser.add_argument("--set", nargs="*", default=[], metavar="key.path=value", dest="overrides")


def run(args: argparse.Namespace) -> int:
    if args.new_key is not None:
        return _new_key(args)
    if bool(args.config) == bool(args.weights):
        raise ConfigError("serve: give either a weights folder or --config FILE")
    if args.config:
        _refuse_beside_config(args)
        config = load(ServeConfig, args.config, args.overrides).config
    else:
        name = "xtdist" if args.name is None else args.name
        model = ServedModel(name=name, weights=args.weights, amateur=args.amateur)
        if args.overrides:
            raise ConfigError("serve: --set changes a --config FILE; there is none")
        config = ServeConfig(
            models=(model,),
            host="127.0.0.1" if args.host is None else args.host,
            port=8000 if args.port is None else args.port,
            api_keys_file=args.api_keys_file,
        )
    with serve(config, block=False) as server:
        print(f"serving at {server.url}/v1 until Ctrl-C", flush=True)
        server.wait()
    return 0


def _new_key(args: argparse.Namespace) -> int:
    """The key goes to the standard output, alone; its line into the file, or beside it."""
    if args.config or args.weights or args.overrides:
        raise ConfigError("serve: --new-key serves nothing; give it alone or with --api-keys-file")
    if args.api_keys_file is not None:
        print(add_key(args.new_key, args.api_keys_file))
    else:
        key, line = new_key(args.new_key)
        print(key)
        print(f"line for the file of keys:\n{line}", file=sys.stderr)
    print("the key is not kept anywhere: note it now", file=sys.stderr)
    return 0


def _refuse_beside_config(args: argparse.Namespace) -> None:
    """Raises ConfigError for an option that the file of ``--config`` would silently override."""
    for name in ("amateur", "name", "host", "port", "api_keys_file"):
        if getattr(args, name) is not None:
            option = "--" + name.replace("_", "-")
            raise ConfigError(
                f"serve: {option} does not go with --config; write it in the file, or use --set"
            )
