"""Who asks: API keys, known by their SHA-256. The keys themselves are not kept in memory."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Mapping
from pathlib import Path

from gateway.errors import Code, GatewayError
from pipeline.errors import ConfigError
from pipeline.gateway_settings import GatewaySettings, KeySettings

#: Who asks where no keys are configured, which the configuration allows on loopback alone.
ANYONE = KeySettings(name="anyone", sha256="0" * 64, canary=True)
_KEY_BYTES_MIN = 16


class Keyring:
    """The configured keys. Looking one up takes as long whatever is wrong with it."""

    def __init__(
        self, by_digest: Mapping[bytes, KeySettings], metrics_digest: bytes | None = None
    ) -> None:
        self._by_digest = dict(by_digest)
        self._metrics_digest = metrics_digest

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
        found = self._by_digest.get(_digest_of(authorization))
        if found is None:
            raise GatewayError(Code.INVALID_API_KEY)
        return found

    def check_metrics(self, authorization: str | None) -> None:
        """Let pass who may read the metrics: anyone, where they have no key.

        Raises:
            GatewayError: the header does not bear their key.
        """
        wanted = self._metrics_digest
        if wanted is not None and not hmac.compare_digest(wanted, _digest_of(authorization)):
            raise GatewayError(Code.INVALID_API_KEY)


def _digest_of(authorization: str | None) -> bytes:
    """Return the digest of the key that an Authorization header bears; of no key, nobody's."""
    scheme, _, key = (authorization or "").partition(" ")
    if scheme.lower() != "bearer":
        return b""
    return hashlib.sha256(key.strip().encode(errors="replace")).digest()


def read_keys(settings: GatewaySettings) -> Keyring:
    """Read the keys from where the configuration says they are.

    Raises:
        ConfigError: one is missing, too short, or there twice.
    """
    by_digest: dict[bytes, KeySettings] = {}
    for each in settings.keys:
        digest = _digest(each)
        if digest in by_digest:
            raise ConfigError(f"gateway.keys.{each.name}: the key of {by_digest[digest].name} too")
        by_digest[digest] = each
    metrics_digest = None
    if settings.metrics_key_env is not None or settings.metrics_key_file is not None:
        where = "gateway.metrics_key"
        metrics_digest = _read(where, settings.metrics_key_env, settings.metrics_key_file)
    return Keyring(by_digest, metrics_digest)


def _digest(settings: KeySettings) -> bytes:
    if settings.sha256 is not None:
        return bytes.fromhex(settings.sha256)
    return _read(f"gateway.keys.{settings.name}", settings.key_env, settings.key_file)


def _read(where: str, variable: str | None, file: Path | None) -> bytes:
    key = read_secret(where, variable, file)
    if len(key.encode()) < _KEY_BYTES_MIN:
        raise ConfigError(f"{where}: shorter than {_KEY_BYTES_MIN} bytes")
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
