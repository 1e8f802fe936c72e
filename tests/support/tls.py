"""Certificates for servers that live for a test: an authority, and what it signs."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import trustme
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)


class Identity(NamedTuple):
    """Files in PEM; `both` is the key, in PKCS #8 as Java wants it, and its certificate."""

    key: Path
    certificate: Path
    both: Path


class Authority:
    """Signs certificates; whoever trusts `file` trusts them."""

    def __init__(self, directory: Path, name: str) -> None:
        self._ca = trustme.CA(organization_name=name)
        self._directory = directory
        self.file = directory / f"{name}.pem"
        self._ca.cert_pem.write_to_path(self.file)

    def issue(self, name: str) -> Identity:
        """Issue a certificate for a host or an address."""
        issued = self._ca.issue_cert(name)
        stem = self._directory / f"{self.file.stem}-{name}"
        chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
        key = load_pem_private_key(issued.private_key_pem.bytes(), None)
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        made = Identity(*(stem.with_suffix(s) for s in (".key", ".crt", ".both")))
        for file, content in zip(made, (pem, chain, pem + chain), strict=True):
            file.write_bytes(content)
        return made
