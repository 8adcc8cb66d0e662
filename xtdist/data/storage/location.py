"""A path or URI as a pyarrow filesystem and a path in it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from xtdist.config import ConfigError

SCHEMES = ("s3", "gs")
OPTIONS = ("endpoint_override", "scheme", "region", "anonymous")
NO_CREDENTIALS = (
    "credentials come only from the environment (for S3: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, "
    "AWS_SESSION_TOKEN, AWS_PROFILE or ~/.aws; for Google: GOOGLE_APPLICATION_CREDENTIALS) or the "
    "machine's own role"
)


@dataclass(frozen=True, kw_only=True)
class Location:
    """``path`` within ``filesystem`` (a ``pyarrow.fs.FileSystem``).

    ``name`` is what messages call it: the path or URI as given, without options.
    """

    name: str
    filesystem: Any
    path: str
    remote: bool

    def join(self, name: str) -> Location:
        """The location of ``name`` below this one."""
        return Location(
            name=f"{self.name}/{name}",
            filesystem=self.filesystem,
            path=f"{self.path}/{name}",
            remote=self.remote,
        )


def is_remote(path: str | Path) -> bool:
    """Whether ``path`` is a URI, not a path of this machine."""
    return "://" in str(path)


def locate(path: str | Path) -> Location:
    """Where ``path`` is: a local path (``~`` is the home folder), ``s3://bucket/path`` or
    ``gs://bucket/path``. Reads the environment; opens no connection except to find the region of an
    S3 bucket when neither the URI nor the environment names one.

    A URI may carry options: ``s3://bucket/path?endpoint_override=127.0.0.1:9000&scheme=http``
    (also ``region=``, ``anonymous=true``). The environment's AWS_ENDPOINT_URL works as well.

    Raises:
        ConfigError: an unknown scheme or option, no bucket, or credentials in the URI.
    """
    from pyarrow import fs

    if not is_remote(path):
        local = os.path.abspath(os.path.expanduser(path))
        return Location(name=str(path), filesystem=fs.LocalFileSystem(), path=local, remote=False)
    uri = str(path)
    scheme, bucket, key, options = _parts(uri)
    make = _s3 if scheme == "s3" else _google
    filesystem = make(bucket, options, os.environ)
    inner = f"{bucket}/{key}" if key else bucket
    return Location(name=f"{scheme}://{inner}", filesystem=filesystem, path=inner, remote=True)


def check_uri(uri: str) -> None:
    """Check how a URI is written, without opening a connection.

    Raises:
        ConfigError: see ``locate``.
    """
    _parts(uri)


def _parts(uri: str) -> tuple[str, str, str, dict[str, str]]:
    """Scheme, bucket, key and options of a URI, checked."""
    parts = urlsplit(uri)
    shown = re.sub(r"//[^/@]*@", "//…@", uri.partition("?")[0])  # a message must not leak a secret
    if parts.scheme not in SCHEMES:
        raise ConfigError(
            f"{shown}: unknown scheme {parts.scheme!r}; give a local path, s3://bucket/path or "
            "gs://bucket/path"
        )
    if "@" in parts.netloc or ":" in parts.netloc:
        raise ConfigError(f"{shown}: holds credentials or a port; {NO_CREDENTIALS}")
    if not parts.netloc:
        raise ConfigError(f"{shown}: names no bucket; give {parts.scheme}://bucket/path")
    if parts.fragment:
        raise ConfigError(f"{shown}: '#' is not allowed in a URI; write it as %23")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    for key in options:
        if re.search("key|secret|token|password", key, re.IGNORECASE):
            raise ConfigError(f"{shown}: option {key!r} is not allowed; {NO_CREDENTIALS}")
        if key not in OPTIONS:
            raise ConfigError(f"{shown}: unknown option {key!r}; allowed: {', '.join(OPTIONS)}")
    if options.get("scheme", "https") not in ("http", "https"):
        raise ConfigError(f"{shown}: scheme={options['scheme']}; allowed: http, https")
    if options.get("anonymous", "true") not in ("true", "false"):
        raise ConfigError(f"{shown}: anonymous={options['anonymous']}; allowed: true, false")
    key = "/".join(part for part in unquote(parts.path).split("/") if part)
    return parts.scheme, parts.netloc, key, options


def _s3(bucket: str, options: dict[str, str], env: Mapping[str, str]) -> Any:
    from pyarrow import fs

    endpoint, scheme = options.get("endpoint_override"), options.get("scheme")
    if endpoint is None:
        url = env.get("AWS_ENDPOINT_URL_S3") or env.get("AWS_ENDPOINT_URL") or ""
        before, found, after = url.partition("://")
        endpoint, scheme = (after, before) if found else (url, scheme)
    region = options.get("region") or env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION")
    if region is None:
        region = "us-east-1" if endpoint else _region(bucket)
    return fs.S3FileSystem(
        anonymous=options.get("anonymous") == "true",
        region=region,
        endpoint_override=endpoint.rstrip("/") or None,
        scheme=scheme,
        connect_timeout=10,
        allow_delayed_open=True,  # a small object is one request instead of three
        # Of single requests; retry.py repeats what consists of many.
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=3),
    )


def _region(bucket: str) -> str:
    from pyarrow import fs

    from xtdist.data.storage.retry import retry

    return retry(lambda: str(fs.resolve_s3_region(bucket)), what=f"s3://{bucket}")


def _google(bucket: str, options: dict[str, str], env: Mapping[str, str]) -> Any:
    from datetime import timedelta

    from pyarrow import fs

    if "region" in options:
        raise ConfigError(f"gs://{bucket}: option 'region' is for S3 only")
    return fs.GcsFileSystem(
        anonymous=options.get("anonymous") == "true",
        endpoint_override=options.get("endpoint_override"),
        scheme=options.get("scheme"),
        retry_time_limit=timedelta(seconds=5),  # beyond it: retry.py
    )
