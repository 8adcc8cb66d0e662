"""API keys: a file of names and digests. The keys themselves are never stored.

One key a line, ``<name> sha256:<64 hex digits>``; ``#`` starts a comment. Keys are random and
long, so a plain digest can not be searched backwards. :func:`new_key` makes a key and its line.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

from xtdist.config import ConfigError
from xtdist.serve.errors import ApiError

_LINE = re.compile(r"^(?P<name>[\w.@-]{1,64})\s+sha256:(?P<digest>[0-9a-f]{64})$")
_MAX_KEY_CHARS = 256


@dataclass(frozen=True)
class KeyRing:
    """The keys that may use the server: digest → name. Empty: everybody may."""

    names: dict[str, str]

    def authenticate(self, header: str | None) -> str:
        """The name of the key in an ``Authorization`` header.

        Every stored digest is compared, each in constant time, so the time taken tells nothing.

        Raises:
            ApiError: 401, the same for a missing, malformed and unknown key.
        """
        if not self.names:
            return "anonymous"
        scheme, _, key = (header or "").partition(" ")
        usable = scheme.lower() == "bearer" and len(key) <= _MAX_KEY_CHARS
        given = _digest(key.strip() if usable else "")
        found = None
        for digest, name in self.names.items():
            if hmac.compare_digest(digest, given):
                found = name
        if found is None or not usable:
            raise ApiError(
                401,
                "no valid API key; send it as 'Authorization: Bearer <key>'",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return found


def load_keys(path: str | None) -> KeyRing:
    """Read a key file; None means no keys.

    Raises:
        ConfigError: unreadable, a line of another form, a name or key twice, or no key in it.
    """
    if path is None:
        return KeyRing({})
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"api_keys_file: {path}: can't be read; give a file of keys") from None
    names: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        text = line.split("#", 1)[0].strip()
        if not text:
            continue
        match = _LINE.match(text)
        if match is None:
            raise ConfigError(f"{path}:{number}: write it as '<name> sha256:<64 hex digits>'")
        if match["digest"] in names or match["name"] in names.values():
            raise ConfigError(f"{path}:{number}: this name or key is there already")
        names[match["digest"]] = match["name"]
    if not names:
        raise ConfigError(f"{path}: no key in it; leave api_keys_file out to serve without keys")
    return KeyRing(names)


def new_key(name: str) -> tuple[str, str]:
    """A fresh random key (256 bits) and its line for the key file."""
    key = f"xt-{secrets.token_urlsafe(32)}"
    line = f"{name} sha256:{_digest(key)}"
    if _LINE.match(line) is None:
        raise ConfigError(f"key name {name!r}: use 1 to 64 letters, digits, '.', '_', '@' or '-'")
    return key, line


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
