"""A token becomes a certificate: the key is made here, and the coordinator is known by the fingerprint in the token."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import ssl
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from insitu.core.errors import ConfigError
from insitu.core.federation import Role
from insitu.engines.https.authority import files, keys, new_key, request_for
from insitu.engines.https.authority.tokens import Token
from insitu.engines.https.transport import CONNECT, HttpsTransport

KEY, CERTIFICATE, AUTHORITY = "key.pem", "certificate.pem", "authority.pem"


async def enrol(token: Token, folder: Path, urls: Sequence[str] = (), proxy: str | None = None) -> tuple[str, Role]:
    """Uses up a token; key, certificate and authority are then files of ``folder``. Returns name and role.

    urls   where the coordinator is, if not where the token says
    proxy  ``http://proxy:3128``, by which it is reached; None: as HTTPS_PROXY says

    Raises ConfigError where the coordinator is not the token's, Refusal where it does not take the token, OSError
    where it cannot be reached. A second attempt with the same folder sends the same key, and gets the same certificate.
    """
    where = list(urls) or list(token.urls)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if (folder / CERTIFICATE).exists():
        raise ConfigError(f"{folder / CERTIFICATE} is there already: this folder is enrolled; take another one")
    if not (folder / KEY).exists():
        files.write(folder / KEY, keys.private_text(new_key()), mode=0o600, replace=False)
    request = request_for(keys.load_key(folder / KEY), token.name)
    body = json.dumps({"token": token.text(), "csr": request.decode()}).encode()
    pinned = await pinned_authority(where, token.fingerprint)
    with tempfile.TemporaryDirectory() as aside:
        bundle = Path(aside) / AUTHORITY
        bundle.write_text(ssl.DER_cert_to_PEM_cert(pinned))
        transport = HttpsTransport(where, None, None, bundle, proxy)
    try:
        reply = await transport.request(
            "POST", "/v1/enrol", headers={"content-type": "application/json"}, body=body, length=len(body)
        )
        told: Any = reply.checked().value()
    finally:
        await transport.close()
    files.write(folder / AUTHORITY, str(told["authority"]).encode())
    files.write(folder / CERTIFICATE, str(told["certificate"]).encode())
    return str(told["name"]), told["role"]


async def pinned_authority(urls: Sequence[str], fingerprint: str) -> bytes:
    """The authority's certificate (DER) with this fingerprint, as a coordinator shows it. Nothing is said to it yet.

    Raises ConfigError where another one is shown, OSError where nobody answers.
    """
    problems = []
    for url in urls:
        try:
            chain = await asyncio.wait_for(_shown(url), CONNECT)
        except (OSError, TimeoutError) as error:
            problems.append(f"{url}: {error or type(error).__name__}")
            continue
        for certificate in chain:
            if hashlib.sha256(certificate).hexdigest() == fingerprint:
                return certificate
        raise ConfigError(
            f"{url} is not the coordinator that the token is for: it shows another authority. Is a proxy in between"
            " that opens TLS, or is the token of another federation?"
        )
    raise ConnectionError("; ".join(problems))


async def _shown(url: str) -> list[bytes]:
    """The chain of certificates that a server shows, unverified."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    parts = urlsplit(url)
    _, writer = await _connected(parts.hostname or "", parts.port or 443, context)
    try:
        return _chain(writer.get_extra_info("ssl_object"))
    finally:
        writer.close()
        with contextlib.suppress(OSError, ssl.SSLError):
            await writer.wait_closed()


async def _connected(host: str, port: int, context: ssl.SSLContext) -> tuple[Any, asyncio.StreamWriter]:
    return await asyncio.open_connection(host, port, ssl=context, server_hostname=host)


def _chain(tls: Any) -> list[bytes]:
    if hasattr(tls, "get_unverified_chain"):  # from Python 3.13 on
        return list(tls.get_unverified_chain())
    found = tls._sslobj.get_unverified_chain() or []
    return [ssl.PEM_cert_to_DER_cert(certificate.public_bytes()) for certificate in found]
