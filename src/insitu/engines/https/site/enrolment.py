"""A token becomes a certificate: the key is made here, and the coordinator is known by the fingerprint in the token."""

from __future__ import annotations

import hashlib
import json
import ssl
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography import x509

from insitu.core.errors import ConfigError
from insitu.core.federation import Role
from insitu.engines.https.authority import files, keys, new_key, request_for
from insitu.engines.https.authority.names import shown
from insitu.engines.https.authority.tokens import Token
from insitu.engines.https.shown import proxy_for, shown_chain
from insitu.engines.https.transport import CONNECT, HttpsTransport

KEY, CERTIFICATE, AUTHORITY = "key.pem", "certificate.pem", "authority.pem"


async def enrol(token: Token, folder: Path, urls: Sequence[str] = (), proxy: str | None = None) -> tuple[str, Role]:
    """Uses up a token; key, certificate and authority are then files of ``folder``. Returns name and role.

    The folder is made, or becomes, one that only its owner may enter (mode 0700), since what lies in it later are the
    key and what was asked and told; certificates are public, and readable for whoever may enter.

    urls   where the coordinator is, if not where the token says
    proxy  ``http://proxy:3128``, by which it is reached; None: as HTTPS_PROXY says

    Raises ConfigError where the coordinator is not the token's, Refusal where it does not take the token, OSError
    where it cannot be reached. A second attempt with the same folder sends the same key, and gets the same certificate.
    """
    where = list(urls) or list(token.urls)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    if (folder / CERTIFICATE).exists():
        raise ConfigError(f"{folder / CERTIFICATE} is there already: this folder is enrolled; take another one")
    if not (folder / KEY).exists():
        files.write(folder / KEY, keys.private_text(new_key()), mode=0o600, replace=False)
    request = request_for(keys.load_key(folder / KEY), token.name)
    body = json.dumps({"token": token.text(), "csr": request.decode()}).encode()
    pinned = await pinned_authority(where, token.fingerprint, proxy)
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


async def pinned_authority(urls: Sequence[str], fingerprint: str, proxy: str | None = None) -> bytes:
    """The authority's certificate (DER) with this fingerprint, as a coordinator shows it. Nothing is said to it yet.

    Raises ConfigError where another one is shown, OSError where nobody answers.
    """
    problems = []
    for url in urls:
        try:
            chain = await shown_chain(url, proxy_for(url, proxy), CONNECT)
        except (OSError, TimeoutError) as error:
            problems.append(f"{url}: {error or type(error).__name__}")
            continue
        for certificate in chain:
            if hashlib.sha256(certificate).hexdigest() == fingerprint:
                return certificate
        raise ConfigError(
            f"{url} is not the coordinator that the token is for: it shows another authority ({_issuer(chain)}). Is a"
            " proxy in between that opens TLS, or is the token of another federation?"
        )
    raise ConnectionError("; ".join(problems))


def _issuer(chain: Sequence[bytes]) -> str:
    try:
        return shown(x509.load_der_x509_certificate(chain[0]).issuer.rfc4514_string(), 120)
    except (ValueError, IndexError):
        return "one that cannot be read"
