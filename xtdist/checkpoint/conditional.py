"""Creating an object only if there is none: the one atomic step that an object store offers.

pyarrow has no conditional put, so this is a signed request of its own (AWS Signature Version 4,
path style). Where no keys are at hand, or the store does not know ``If-None-Match``, the object is
put, and after a while read again: the last of several writers has it.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import http.client
import os
import time
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, urlsplit

from xtdist.data.storage.location import Location
from xtdist.data.storage.retry import Backoff, TransferError, retry
from xtdist.data.storage.write import read_if_there

TIMEOUT_S = 10.0
SETTLE_S = 2.0
PATIENCE = Backoff(tries=5, total_s=60.0)


class _UnsupportedError(Exception):
    """No keys for a request of our own, or a store that can't do it."""


@dataclass(frozen=True)
class _Keys:
    access: str
    secret: str
    token: str | None


def put_if_absent(url: str, folder: Location, name: str, data: bytes) -> bool:
    """Create the object ``name`` of ``folder``, which ``url`` (with its options) stands for; False
    if another one is there. ``data`` tells writers apart: finding it there counts as ours, since
    a request may have worked whose answer was lost.

    Raises:
        DataError: see ``retry``.
    """
    where = folder.join(name)

    def once() -> bool:
        status = _put(url, where, data)
        if status in (409, 412):
            return read_if_there(folder, name) == data
        if status == 501:
            raise _UnsupportedError
        if status != 200:
            raise OSError(f"HTTP status {status}")
        return True

    try:
        return retry(once, what=where.name, backoff=PATIENCE)
    except _UnsupportedError:
        return _put_and_see(folder, name, data)


def _put_and_see(folder: Location, name: str, data: bytes) -> bool:
    if (there := read_if_there(folder, name)) is not None:
        return there == data
    where = folder.join(name)

    def once() -> None:
        with where.filesystem.open_output_stream(where.path, compression=None) as out:
            out.write(data)

    retry(once, what=where.name, backoff=PATIENCE)
    time.sleep(SETTLE_S)
    return read_if_there(folder, name) == data


def _put(url: str, where: Location, data: bytes) -> int:
    """The status of one conditional put."""
    keys, (secure, host, region) = _keys(), _endpoint(url, where)
    path = "/" + quote(where.path, safe="/-_.~")
    payload = hashlib.sha256(data).hexdigest()
    now = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
    headers = {
        "host": host,
        "if-none-match": "*",
        "x-amz-content-sha256": payload,
        "x-amz-date": now,
        **({"x-amz-security-token": keys.token} if keys.token else {}),
    }
    signed = ";".join(sorted(headers))
    lines = "".join(f"{k}:{headers[k]}\n" for k in sorted(headers))
    scope = f"{now[:8]}/{region}/s3/aws4_request"
    request = hashlib.sha256(f"PUT\n{path}\n\n{lines}\n{signed}\n{payload}".encode()).hexdigest()
    key = b"AWS4" + keys.secret.encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{request}".encode(), "sha256")
    headers["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={keys.access}/{scope}, SignedHeaders={signed}, "
        f"Signature={signature.hex()}"
    )
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    connection = kind(host, timeout=TIMEOUT_S)
    try:
        connection.request("PUT", path, body=data, headers=headers)
        answer = connection.getresponse()
        answer.read()
        return answer.status
    except http.client.HTTPException as e:
        raise TransferError(f"{type(e).__name__}: {e}") from None
    finally:
        connection.close()


def _endpoint(url: str, where: Location) -> tuple[bool, str, str]:
    """(https, host, region), as ``locate`` finds them."""
    parts = urlsplit(url)
    if parts.scheme != "s3":
        raise _UnsupportedError
    options = dict(parse_qsl(parts.query))
    given = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    scheme, found, host = given.partition("://")
    if "endpoint_override" in options:
        scheme, host = options.get("scheme", "https"), options["endpoint_override"]
    elif not found:
        scheme, host = options.get("scheme", "https"), given
    region = str(where.filesystem.region)
    return scheme == "https", host.rstrip("/") or f"s3.{region}.amazonaws.com", region


def _keys() -> _Keys:
    access, secret = os.environ.get("AWS_ACCESS_KEY_ID"), os.environ.get("AWS_SECRET_ACCESS_KEY")
    if access and secret:
        return _Keys(access, secret, os.environ.get("AWS_SESSION_TOKEN"))
    try:  # profiles and the machine's role, where boto is installed
        from botocore.session import get_session  # type: ignore[import-untyped]
    except ImportError:
        raise _UnsupportedError from None
    found = get_session().get_credentials()
    if found is None:
        raise _UnsupportedError
    frozen = found.get_frozen_credentials()
    return _Keys(frozen.access_key, frozen.secret_key, frozen.token)
