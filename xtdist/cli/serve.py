"""xtdist serve WEIGHTS, or --model NAME=WEIGHTS …, or --config FILE [key.path=value ...]; with
--check nothing is started; --new-key makes an API key."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from xtdist.config import ConfigError, from_mapping
from xtdist.connect import ADDRESS
from xtdist.serve.auth import add_key, new_key
from xtdist.serve.check import check, check_port
from xtdist.serve.config import ServeConfig
from xtdist.serve.deploy_file import read_endpoint
from xtdist.serve.plan import report
from xtdist.serve.server import check_cluster
from xtdist.serve.server import run as serve

_OPTIONS = ("host", "port", "api_keys_file", "proxy", "registry")  # and keys of a ServeConfig
_OF_ONE = ("amateur", "name", "follow")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "weights",
        nargs="?",
        help="a run, a checkpoint, a weights folder (path or s3:// URL), or models:/name@alias",
    )
    parser.add_argument("--amateur", help="weaker model for contrastive decoding")
    parser.add_argument("--name", help="what clients call the model (xtdist)")
    parser.add_argument(
        "--follow", action="store_true", default=None, help="serve newer checkpoints as they come"
    )
    parser.add_argument(
        "--model",
        action="append",
        metavar="NAME=WEIGHTS[,amateur=WEIGHTS][,follow]",
        dest="models",
        help="instead of WEIGHTS; give it once for each of several models",
    )
    parser.add_argument("--host", help="address to listen at (127.0.0.1)")
    parser.add_argument("--port", type=int, help="port to listen at (8000)")
    parser.add_argument(
        "--api-keys-file", help="who may ask; --new-key adds a line to it, also while it is served"
    )
    parser.add_argument("--proxy", choices=("ray", "haproxy"), help="what listens (ray)")
    parser.add_argument("--registry", help="MLflow's address, for models:/ (MLFLOW_TRACKING_URI)")
    parser.add_argument("--new-key", metavar="NAME", help="make an API key, show it once, and end")
    parser.add_argument(
        "--check", action="store_true", help="say what would be served, or what is wrong, and end"
    )
    parser.add_argument(
        "--config", help="YAML of an endpoint, or of Ray Serve (instead of the above)"
    )
    parser.add_argument("--set", nargs="*", default=[], metavar="key.path=value", dest="overrides")


def run(args: argparse.Namespace) -> int:
    if args.new_key is not None:
        return _new_key(args)
    config = _config(args)
    if args.check:
        return _check(config)
    with serve(config, block=False) as server:
        print(f"serving at {server.url}/v1 until Ctrl-C", flush=True)
        server.wait()
        print("stopping; streams may finish …", flush=True)
    return 0


def _config(args: argparse.Namespace) -> ServeConfig:
    if sum(map(bool, (args.config, args.weights, args.models))) != 1:
        raise ConfigError("serve: give one of: weights, --model NAME=WEIGHTS, --config FILE")
    if args.config:
        _refuse_beside(args, (*_OPTIONS, *_OF_ONE), "--config; write it in the file, or use --set")
        return read_endpoint(args.config, args.overrides)
    if args.overrides:
        raise ConfigError("serve: --set changes a --config FILE; there is none")
    if args.models:
        _refuse_beside(args, _OF_ONE, "--model, which has it in its value")
        models = [_model(text) for text in args.models]
    else:
        one = {"name": args.name or "xtdist", "weights": args.weights, "amateur": args.amateur}
        models = [{**one, "follow": bool(args.follow)}]
    given = {key: getattr(args, key) for key in _OPTIONS}
    return from_mapping(
        ServeConfig, {"models": models, **{k: v for k, v in given.items() if v is not None}}
    )


def _model(text: str) -> dict[str, Any]:
    """``NAME=WEIGHTS[,amateur=WEIGHTS][,follow]`` as a ServedModel."""
    first, *rest = text.split(",")
    name, _, weights = first.partition("=")
    model: dict[str, Any] = {"name": name, "weights": weights}
    for word in rest:
        key, equals, value = word.partition("=")
        if word == "follow":
            model["follow"] = True
        elif key == "amateur" and equals and "amateur" not in model:
            model["amateur"] = value
        else:
            name = ""
    if not (name and weights):
        raise ConfigError(
            f"serve: --model {text!r}: write it as NAME=WEIGHTS[,amateur=WEIGHTS][,follow]; paths "
            "with a comma go into a --config FILE"
        )
    return model


def _check(config: ServeConfig) -> int:
    """All that can be known without starting anything; a cluster is asked if one is named."""
    config = check(config)
    if ADDRESS in os.environ:
        check_cluster(config)
    else:
        check_port(config.host, config.port)
    print(report(config))
    return 0


def _new_key(args: argparse.Namespace) -> int:
    """The key goes to the standard output, alone; its line into the file, or beside it."""
    if args.config or args.weights or args.models or args.overrides:
        raise ConfigError("serve: --new-key serves nothing; give it alone or with --api-keys-file")
    if args.api_keys_file is not None:
        print(add_key(args.new_key, args.api_keys_file))
    else:
        key, line = new_key(args.new_key)
        print(key)
        print(f"line for the file of keys:\n{line}", file=sys.stderr)
    print("the key is not kept anywhere: note it now", file=sys.stderr)
    return 0


def _refuse_beside(args: argparse.Namespace, names: tuple[str, ...], what: str) -> None:
    """Raises ConfigError for an option that would silently be overridden."""
    for name in names:
        if getattr(args, name) is not None:
            raise ConfigError(f"serve: --{name.replace('_', '-')} does not go with {what}")
