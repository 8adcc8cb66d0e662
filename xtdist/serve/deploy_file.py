"""Ray Serve's YAML, the one of ``serve deploy``, read before Ray does: it reports success whatever
stands in ``args``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xtdist.config import ConfigError, from_mapping, load, to_mapping
from xtdist.config.load import read_yaml
from xtdist.serve.check import HA_PROXY
from xtdist.serve.config import AppConfig, LiveConfig, ServeConfig

BUILDER, DEPLOYMENT = "xtdist.serve.app:build", "replica"
_APPLICATION = ("name", "route_prefix", "import_path", "args", "deployments")
_HTTP = ("host", "port", "ssl_certfile", "ssl_keyfile")


def read_endpoint(path: str | Path, overrides: Sequence[str] = ()) -> ServeConfig:
    """The endpoint that a file describes: a :class:`ServeConfig`, or a Ray Serve YAML with one
    application of ours.

    Args:
        overrides: ``key.path=value`` for a ServeConfig.

    Raises:
        ConfigError: what is wrong, with its place; or what only ``serve deploy`` can do.
    """
    tree, _ = read_yaml(Path(path))
    if "applications" not in tree:
        return load(ServeConfig, path, overrides).config
    if overrides:
        raise ConfigError(
            f"serve: {path} is a Ray Serve YAML; key.path=value changes a ServeConfig: write it "
            "into the file"
        )
    _check_for_ray(tree, str(path))
    ours = [a for a in tree["applications"] if a.get("import_path") == BUILDER]
    if len(ours) != 1 or len(tree["applications"]) != 1:
        raise ConfigError(
            f"{path}: applications: {len(tree['applications'])}, {len(ours)} of them with "
            f"import_path {BUILDER}; give one application of ours, or use 'serve deploy'"
        )
    return _endpoint(tree, ours[0], str(path))


def _check_for_ray(tree: dict[str, Any], path: str) -> None:
    """What Ray would say to the file, as one line."""
    from pydantic import ValidationError
    from ray.serve.schema import ServeDeploySchema

    try:
        ServeDeploySchema.model_validate(tree)
    except ValidationError as e:
        first = e.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{path}: {place}: {first['msg']} (says Ray Serve)") from None


def _endpoint(tree: dict[str, Any], application: dict[str, Any], path: str) -> ServeConfig:
    http = tree.get("http_options") or {}
    if "host" not in http:
        raise ConfigError(
            f"{path}: http_options.host: missing; Ray would listen on every interface: write "
            "127.0.0.1, or another address and keys"
        )
    args = to_mapping(from_mapping(AppConfig, application.get("args") or {}, where=f"{path}: args"))
    for deployment in application.get("deployments") or []:
        _only(deployment, ("name", "user_config"), f"{path}: deployments")
        if deployment["name"] != DEPLOYMENT:
            raise ConfigError(f"{path}: deployments: there is one, {DEPLOYMENT!r}")
        live = from_mapping(LiveConfig, deployment.get("user_config") or {}, where="user_config")
        models = live.of(from_mapping(AppConfig, args).models)
        args["models"] = [to_mapping(model) for model in models]
    _only(http, _HTTP, f"{path}: http_options")
    _only(application, _APPLICATION, f"{path}: applications")
    place = {
        "app": application.get("name", "default"),
        "route_prefix": application.get("route_prefix", "/"),
        "proxy": "haproxy" if os.environ.get(HA_PROXY) == "1" else "ray",
        "port": 8000,
    }
    return from_mapping(ServeConfig, {**args, **place, **http})


def _only(part: dict[str, Any], keys: tuple[str, ...], where: str) -> None:
    for key in part.keys() - set(keys):
        raise ConfigError(
            f"{where}: {key}: 'xtdist serve' does not have it; use 'serve deploy', or leave it out"
        )
