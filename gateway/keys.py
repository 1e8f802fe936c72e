"""Who asks: API keys, known by their SHA-256. The keys themselves are not kept in memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from gateway.errors import Code, GatewayError
from pipeline.errors import ConfigError
from pipeline.gateway_settings import KeySettings

#: Who asks where no keys are configured, which the configuration allows on loopback alone.
ANYONE = KeySettings(name="anyone", sha256="0" * 64)
_KEY_BYTES_MIN = 16


class Keyring:
    """The configured keys. Looking one up takes as long whatever is wrong with it."""

    def __init__(self, by_digest: Mapping[bytes, KeySettings]) -> None:
        self._by_digest = dict(by_digest)

    @property
    def is_open(self) -> bool:
        """Whether anyone may ask."""
        return not self._by_digest

    def identify(self, authorization: str | None) -> KeySettings:
        """Return whose key an Authorization header bears.

        Raises:
            GatewayError: nobody's.
        """
        if self.is_open:
            return ANYONE
        scheme, _, key = (authorization or "").partition(" ")
        digest = hashlib.sha256(key.strip().encode(errors="replace")).digest()
        found = self._by_digest.get(digest)
        if found is None or scheme.lower() != "bearer":
            raise GatewayError(Code.INVALID_API_KEY)
        return found


def read_keys(settings: Sequence[KeySettings]) -> Keyring:
    """Read the keys from where the configuration says they are.

    Raises:
        ConfigError: one is missing, too short, or there twice.
    """
    by_digest: dict[bytes, KeySettings] = {}
    for each in settings:
        digest = _digest(each)
        if digest in by_digest:
            raise ConfigError(f"gateway.keys.{each.name}: the key of {by_digest[digest].name} too")
        by_digest[digest] = each
    return Keyring(by_digest)


def _digest(settings: KeySettings) -> bytes:
    if settings.sha256 is not None:
        return bytes.fromhex(settings.sha256)
    key = read_secret(f"gateway.keys.{settings.name}", settings.key_env, settings.key_file)
    if len(key.encode()) < _KEY_BYTES_MIN:
        raise ConfigError(f"gateway.keys.{settings.name}: shorter than {_KEY_BYTES_MIN} bytes")
    return hashlib.sha256(key.encode()).digest()


def read_secret(where: str, variable: str | None, file: Path | None) -> str:
    """Return a secret from the environment or a file.

    Raises:
        ConfigError: it is not there; names the place, never the secret.
    """
    if variable is not None:
        secret = os.environ.get(variable, "").strip()
        source = f"${variable}"
    else:
        source = str(file)
        try:
            secret = "" if file is None else file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{where}: cannot read {source}: {type(error).__name__}") from None
    if not secret or not secret.isprintable():
        raise ConfigError(f"{where}: no key in {source}")
    return secret
