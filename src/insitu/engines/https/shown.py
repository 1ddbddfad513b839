"""Which certificates a server shows, looked at before any of them is believed; directly or through a proxy."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ssl
import time
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from cryptography import x509

from insitu.core.errors import ConfigError
from insitu.engines.https.authority.names import shown

_NOT_YET, _EXPIRED, _HOST, _ADDRESS = 9, 10, 62, 64  # X509_V_ERR_*, openssl/x509_vfy.h
_HEAD = 16 * 1024


def proxy_for(url: str, proxy: str | None = None) -> str | None:
    """The proxy by which ``url`` is reached: ``proxy`` where one is set, else as HTTPS_PROXY and NO_PROXY say.

    Raises ConfigError for one that is not ``http://…``: others are not spoken.
    """
    found = proxy
    if found is None:
        found = None if proxy_bypass(urlsplit(url).hostname or "") else getproxies().get("https")
    if not found:
        return None
    found = found if "://" in found else f"http://{found}"
    parts = urlsplit(found)
    if parts.scheme != "http" or not parts.hostname:
        raise ConfigError(
            f"the proxy {parts.scheme}://{parts.hostname} is none like http://proxy:3128: give such a one"
        )
    return found


async def shown_chain(url: str, proxy: str | None, seconds: float) -> list[bytes]:
    """The certificates (DER) that a server shows, its own first. Nothing is said to it. Raises OSError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # a proxy that opens TLS may have no later one, and is to be named
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or 443
    async with asyncio.timeout(seconds):
        writer = await _connected(host, port, proxy)
        try:
            await writer.start_tls(context, server_hostname=host)
            return _chain(writer.get_extra_info("ssl_object"))
        finally:
            writer.close()
            with contextlib.suppress(OSError, ssl.SSLError):
                await writer.wait_closed()


async def _connected(host: str, port: int, proxy: str | None) -> asyncio.StreamWriter:
    """A connection to a host; through a proxy, it is a tunnel."""
    if proxy is None:
        return (await asyncio.open_connection(host, port))[1]
    via = urlsplit(proxy)
    reader, writer = await asyncio.open_connection(via.hostname, via.port or 80, limit=_HEAD)
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    head = f"CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n"
    if via.username is not None:
        pair = f"{unquote(via.username)}:{unquote(via.password or '')}".encode()
        head += f"proxy-authorization: Basic {base64.b64encode(pair).decode()}\r\n"
    try:
        writer.write(f"{head}\r\n".encode())
        answer = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[0].decode("latin-1")
        if answer.split(" ")[1:2] != ["200"]:
            raise ConnectionError(f"the proxy {via.hostname} does not let {target} through: {shown(answer)}")
    except BaseException as error:
        writer.close()
        if isinstance(error, (asyncio.IncompleteReadError, asyncio.LimitOverrunError)):
            raise ConnectionError(f"the proxy {via.hostname} did not answer in HTTP") from error
        raise
    return writer


def _chain(tls: Any) -> list[bytes]:
    if hasattr(tls, "get_unverified_chain"):  # from Python 3.13 on
        return list(tls.get_unverified_chain())
    found = tls._sslobj.get_unverified_chain() or []
    return [ssl.PEM_cert_to_DER_cert(certificate.public_bytes()) for certificate in found]


def distrusted(error: ssl.SSLCertVerificationError, host: str, chain: list[bytes]) -> str:
    """Why a server's certificate was not believed, and what to look at."""
    why = f"its certificate is not to be trusted ({error.verify_message})"
    try:
        seen = x509.load_der_x509_certificate(chain[0])
        issuer = shown(seen.issuer.rfc4514_string(), 120)
    except Exception:  # a stranger's bytes, looked at for the sake of a message only
        return why
    if error.verify_code in (_NOT_YET, _EXPIRED):
        return f"{why}: {clock(seen)}; set the clock, or have the coordinator's certificate renewed"
    if error.verify_code in (_HOST, _ADDRESS):
        return f"{why}: it is not for {shown(host)}; use a name that is in it, or have it made for this one too"
    return (
        f"{why}: it was issued by {issuer}, which is not this federation's authority. Is a proxy in between that opens "
        f"TLS? Then ask its administrator to let {shown(host)} through unopened"
    )


def clock(certificate: x509.Certificate) -> str:
    """``this machine's clock says …, and the certificate is valid from … to …``."""
    now = datetime.fromtimestamp(time.time(), UTC)
    first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    form = "%Y-%m-%d %H:%M"
    return f"this machine's clock says {now:{form}} UTC, and it is valid from {first:{form}} to {last:{form}} UTC"
