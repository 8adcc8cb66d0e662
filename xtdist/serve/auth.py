"""API keys: names and digests, from a file or an environment variable. Never the keys themselves.

One key a line, ``<name> sha256:<64 hex digits>``; ``#`` starts a comment. Words behind the digest
change what this key may use (:class:`xtdist.serve.config.QuotaConfig`), or switch it off::

    alice sha256:0f…9c
    batch sha256:a1…7e requests_per_min=600 concurrent_requests=8 tokens_per_min=none
    leaver sha256:33…0b disabled

In a variable, ``;`` may stand for the end of a line. The digest is plain SHA-256: keys have 256
random bits, so there is no list to try and nothing that a salt or a slow hash would make harder.
That is why a key should come from :func:`new_key` and not from a person.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from xtdist.config import ConfigError
from xtdist.files import append_line
from xtdist.serve.config import QuotaConfig
from xtdist.serve.errors import ApiError

log = logging.getLogger(__name__)
_LINE = re.compile(r"(?P<name>[\w.@-]{1,64})\s+sha256:(?P<digest>[0-9a-f]{64})(?P<rest>(\s+\S+)*)")
_FORM = "<name> sha256:<64 hex digits> [disabled] [requests_per_min=N] …"
_BOUNDS = tuple(f.name for f in fields(QuotaConfig))
_MAX_KEY_CHARS = 256
_NOTHING = hashlib.sha256(b"").hexdigest()


@dataclass(frozen=True)
class Key:
    """Whose key it is. ``quota``: what its line says about bounds; None is no bound."""

    name: str
    quota: Mapping[str, int | None] = field(default_factory=dict)
    disabled: bool = False


ANYBODY = Key("anonymous")


@dataclass(frozen=True)
class KeyRing:
    """The keys that may use the server: digest → key. Empty: everybody may."""

    keys: Mapping[str, Key] = field(default_factory=dict)

    def authenticate(self, header: str | None) -> Key:
        """The key in an ``Authorization`` header.

        Every stored digest is compared, each in constant time, so the time taken tells nothing.

        Raises:
            ApiError: 401, the same for a missing, malformed and unknown key; 403 for a known one
                that is switched off.
        """
        if not self.keys:
            return ANYBODY
        scheme, _, secret = (header or "").partition(" ")
        usable = scheme.lower() == "bearer" and len(secret) <= _MAX_KEY_CHARS
        given = _digest(secret.strip()) if usable else _NOTHING
        found = None
        for digest, key in self.keys.items():
            if hmac.compare_digest(digest, given):
                found = key
        if found is None or given == _NOTHING:
            raise ApiError(
                401,
                "no valid API key; send it as 'Authorization: Bearer <key>'",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        if found.disabled:
            raise ApiError(403, "this API key is switched off", code="api_key_disabled")
        return found


class LiveKeys:
    """The keys as they are now: the file is read again when it has changed. A file that can't be
    read or has a mistake in it changes nothing: the keys stay as they were, and the log says so.

    Args:
        file, env: of the keys; of both, all. Neither: no keys.
        environ: where the variable is looked up, once.

    Raises:
        ConfigError: see :func:`load_keys`.
    """

    def __init__(
        self,
        file: str | None = None,
        env: str | None = None,
        *,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self._file, self._env, self._environ = file, env, environ
        self._seen = self._state()
        self._ring = load_keys(file, env, environ=environ)

    def ring(self) -> KeyRing:
        """The keys of this moment; costs one ``stat`` while nothing changes."""
        state = self._state()
        if state != self._seen:
            self._seen = state
            try:
                self._ring = load_keys(self._file, self._env, environ=self._environ)
            except ConfigError as e:
                log.error("the API keys stay as they were: %s", e)
            else:
                log.info("read %d API keys again", len(self._ring.keys))
        return self._ring

    def _state(self) -> tuple[int, ...]:
        """Differs when the file has been changed or replaced."""
        if self._file is None:
            return ()
        try:
            s = os.stat(self._file)
        except OSError:
            return ()
        return (s.st_mtime_ns, s.st_ctime_ns, s.st_size, s.st_ino)


def load_keys(
    file: str | None = None, env: str | None = None, *, environ: Mapping[str, str] = os.environ
) -> KeyRing:
    """Read keys from a file, an environment variable, or both; of neither there are none.

    Raises:
        ConfigError: unreadable or not set, a line of another form, a name or key twice, or no key.
    """
    keys: dict[str, Key] = {}
    if file is not None:
        try:
            lines = Path(file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as e:
            reason = getattr(e, "strerror", None) or "no UTF-8 text"
            raise ConfigError(
                f"api_keys_file: {file}: can't be read ({reason}); make one with "
                f"'xtdist serve --new-key NAME --api-keys-file {file}'"
            ) from None
        _read(lines, f"{file}", into=keys)
    if env is not None:
        if not environ.get(env):
            raise ConfigError(
                f"api_keys_env: the environment variable {env} is not set; put lines of keys into "
                "it, wherever a replica starts"
            )
        _read(re.split(r"[;\n]", environ[env]), f"${env}", into=keys)
    return KeyRing(keys)


def _read(lines: Iterable[str], where: str, *, into: dict[str, Key]) -> None:
    before = len(into)
    for number, line in enumerate(lines, 1):
        text = line.split("#", 1)[0].strip()
        if not text:
            continue
        match = _LINE.fullmatch(text)
        if match is None:
            raise ConfigError(f"{where}:{number}: write it as '{_FORM}'")
        name, digest = match["name"], match["digest"]
        if digest in into or name in {k.name for k in into.values()}:
            raise ConfigError(f"{where}:{number}: this name or key is there already")
        words = match["rest"].split()
        quota = dict(_bound(word, f"{where}:{number}") for word in words if word != "disabled")
        into[digest] = Key(name, quota, disabled="disabled" in words)
    if len(into) == before:
        raise ConfigError(f"{where}: no key in it; give none to serve without keys")


def _bound(word: str, where: str) -> tuple[str, int | None]:
    """``name=number`` or ``name=none``."""
    name, _, value = word.partition("=")
    if name not in _BOUNDS:
        allowed = ", ".join(f"{b}=N" for b in _BOUNDS)
        raise ConfigError(f"{where}: behind the digest may stand: disabled, {allowed}")
    if value == "none":
        return name, None
    if not (value.isascii() and value.isdecimal() and 0 < int(value[:20]) <= 10**12):
        raise ConfigError(f"{where}: {name}: a whole number above 0, or none for no bound")
    return name, int(value)


def new_key(name: str) -> tuple[str, str]:
    """A fresh random key (256 bits) and its line for the key file."""
    key = f"xt-{secrets.token_urlsafe(32)}"
    line = f"{name} sha256:{_digest(key)}"
    if _LINE.fullmatch(line) is None:
        raise ConfigError(f"key name {name!r}: use 1 to 64 letters, digits, '.', '_', '@' or '-'")
    return key, line


def add_key(name: str, file: str) -> str:
    """A fresh key whose line is added to ``file``, which is made, readable to its owner only, if
    there is none.

    Raises:
        ConfigError: a name that is taken or is none, or a file that has mistakes or can't be
            written.
    """
    key, line = new_key(name)
    path = Path(file)
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
        keys: dict[str, Key] = {}
        lines = path.read_text(encoding="utf-8").splitlines()
        if any(text.split("#", 1)[0].strip() for text in lines):
            _read(lines, file, into=keys)
        if name in {k.name for k in keys.values()}:
            raise ConfigError(
                f"api_keys_file: {file}: there is a key of {name!r} already; take its line out to "
                "replace it, or give another name"
            )
        append_line(path, line)
    except (OSError, UnicodeDecodeError) as e:
        reason = getattr(e, "strerror", None) or "it is not text"
        raise ConfigError(f"api_keys_file: {file}: can't add a key to it: {reason}") from None
    return key


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
