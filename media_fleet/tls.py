"""The server's side of TLS: a context from PEM, with what BCP 195 (RFC 9325) asks for. Wrong files are told in one sentence."""

from __future__ import annotations

import os
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ALPN = "stun.turn"  # RFC 7443: offered, not required, because most clients do not ask
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"  # of TLS 1.2; RFC 9325 s4.1 has done with the DHE suites that RFC 8489 s6.2.3 still names


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """A certificate with its chain, leaf first, and its unencrypted key: each the path of a PEM file, or PEM text."""

    certificate: str
    key: str = field(repr=False)


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """Reads the files; ValueError says in one sentence what is wrong with them."""
    certificate = _pem(files.certificate, "certificate", "CERTIFICATE-----")
    key = _pem(files.key, "key", "PRIVATE KEY-----")
    if b"ENCRYPTED" in key:
        raise ValueError("The TLS key is encrypted; it must be stored without a passphrase.")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.set_ciphers(_CIPHERS)
    context.set_alpn_protocols([ALPN])
    try:
        with _path(certificate) as certificate_path, _path(key) as key_path:
            context.load_cert_chain(certificate_path, key_path)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ValueError("The TLS key does not belong to the certificate.") from None
        raise ValueError(f"The TLS certificate and key cannot be read: {error.reason or 'they are no valid PEM'}.") from None
    return context


def _pem(source: str, name: str, marker: str) -> bytes:
    """PEM text, from itself or from a file."""
    if "-----BEGIN" in source:
        text = source.encode()
    else:
        try:
            text = Path(source).read_bytes()
        except (OSError, ValueError) as error:
            where = source if name == "certificate" else "file"  # what should be the path of a key may be a key
            raise ValueError(f"The TLS {name} {where} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    if marker.encode() not in text:
        raise ValueError(f"The TLS {name} is not PEM: it has no line that ends in {marker}.")
    return text


@contextmanager
def _path(text: bytes) -> Iterator[str]:
    """OpenSSL reads paths only; a file in memory keeps a key that came as text off the disk, and works where no disk can be written."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("pem")
    else:
        file, name = tempfile.mkstemp()
        os.unlink(name)
    try:
        os.write(file, text)
        os.lseek(file, 0, os.SEEK_SET)
        yield f"/dev/fd/{file}"
    finally:
        os.close(file)
