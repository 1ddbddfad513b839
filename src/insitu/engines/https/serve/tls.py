"""TLS on the coordinator's port: version 1.3 only, its own authority's certificates only, none at all for enrolment.

The handshake is asyncio's, with two changes: all connections read into the same two buffers, which are large (an idle
site costs none, and a busy one takes many records at a time), and a certificate that is refused can be named. OpenSSL
forgets it when it is refused, so it is taken from the handshake's messages as they pass; after the handshake nothing
listens any more, as that would cost time for each record.
"""

from __future__ import annotations

import asyncio
import ssl
from asyncio import sslproto
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from cryptography import x509

from insitu.core.errors import ConfigError
from insitu.engines.https.authority.names import shown

ALERT = 1.0
"""Seconds that a caller whose handshake was refused has to read why."""
RECORD = 16 * 2**10
"""Bytes of data that a TLS record has at most (RFC 8446, section 5.1)."""
AT_ONCE = 256 * 2**10
"""Bytes that are taken from a socket at once."""
_HANDSHAKE, _CERTIFICATE = 22, 11


def server_context(chain: Path, key: Path, bundle: Path) -> ssl.SSLContext:
    """A context for a coordinator with these PEM files. Raises ConfigError where they do not fit together."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_cert_chain(chain, key)
        context.load_verify_locations(bundle)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{chain}, {key} and {bundle} are no certificate, key and authority: {error}") from error
    context.verify_mode = ssl.CERT_OPTIONAL  # who has none may enrol, and nothing else
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.num_tickets = 0  # no resumption: each connection shows its certificate, and nothing can be replayed early
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    return context


class Witness:
    """A pair of contexts: one that notes the certificate which a caller shows, and one for after the handshake."""

    def __init__(self, make: Callable[[], ssl.SSLContext]) -> None:
        self._shown: WeakKeyDictionary[Any, bytes] = WeakKeyDictionary()
        self.quiet = make()
        self.context = make()
        if hasattr(self.context, "_msg_callback"):  # without it a refused certificate is logged by its address only
            self.context._msg_callback = self._note

    def _note(self, owner: Any, direction: str, version: Any, content: Any, kind: Any, data: bytes) -> None:
        if direction == "read" and content == _HANDSHAKE and kind == _CERTIFICATE and owner is not None:
            self._shown[owner] = bytes(data[:65536])

    def certificate(self, owner: Any) -> x509.Certificate | None:
        """The certificate that was shown on this connection, verified or not."""
        message = self._shown.get(owner)
        try:
            return None if message is None else x509.load_der_x509_certificate(_first(message))
        except Exception:  # a stranger's bytes: what they are is for OpenSSL to judge, this is for the log only
            return None


def _first(message: bytes) -> bytes:
    """The first certificate in a TLS 1.3 Certificate message (RFC 8446, section 4.4.2)."""
    at = 4 + 1 + message[4] + 3
    length = int.from_bytes(message[at : at + 3], "big")
    return message[at + 3 : at + 3 + length]


class Buffers:
    """What arrives, before and after decryption; for all connections of one loop, as nothing stays in them."""

    def __init__(self) -> None:
        self.sealed = memoryview(bytearray(AT_ONCE))
        self.plain = memoryview(bytearray(AT_ONCE))


class Handshake(sslproto.SSLProtocol):
    """asyncio's TLS for one accepted connection. ``ready`` ends with the handshake, or with what went wrong in it."""

    max_size = RECORD
    _refused = False

    def __init__(
        self, loop: asyncio.AbstractEventLoop, app: asyncio.BaseProtocol, witness: Witness, buffers: Buffers,
        seconds: float,
    ):  # fmt: skip
        self.ready: asyncio.Future[None] = loop.create_future()
        self._witness, self._plain = witness, buffers.plain
        super().__init__(
            loop, app, witness.context, self.ready, server_side=True,
            ssl_handshake_timeout=seconds,  # type: ignore[arg-type]  # typeshed knows whole numbers only
            ssl_shutdown_timeout=5.0,
        )  # fmt: skip
        vars(self).update(_ssl_buffer=buffers.sealed.obj, _ssl_buffer_view=buffers.sealed)

    @property
    def _tls(self) -> Any:
        """OpenSSL's end of it; typeshed does not know the attribute."""
        return vars(self)["_sslobj"]

    def buffer_updated(self, nbytes: int) -> None:
        """What a refused caller still says is thrown away."""
        if not self._refused:
            super().buffer_updated(nbytes)

    def _do_read__copied(self) -> None:
        """As asyncio's, but for the buffer, which it makes anew for each record."""
        own: Any = self
        read, plain, at, count = self._tls.read, self._plain, 0, 1
        try:
            while count:
                if at > AT_ONCE - RECORD:
                    own._app_protocol.data_received(bytes(plain[:at]))
                    at = 0
                count = read(RECORD, plain[at:])
                at += count
        except (ssl.SSLWantReadError, ssl.SSLSyscallError):
            pass
        if at:
            own._app_protocol.data_received(bytes(plain[:at]))
        if not count:  # the caller has said that it ends
            own._call_eof_received()
            own._start_shutdown()

    def _on_handshake_complete(self, handshake_exc: BaseException | None) -> None:
        """As asyncio does, but that a caller who is refused gets to read the alert that says why."""
        own: Any = self
        transport = vars(self).get("_transport")
        if handshake_exc is None or transport is None:
            own_complete: Any = super()
            own_complete._on_handshake_complete(handshake_exc)
            return
        self._refused = True
        own._handshake_timeout_handle.cancel()
        own._process_outgoing()
        own._wakeup_waiter(handshake_exc)
        with suppress(OSError):
            transport.write_eof()
        own._loop.call_later(ALERT, transport.abort)

    def quieten(self) -> None:
        """Called when the handshake is over: from here on no message is looked at."""
        self._tls.context = self._witness.quiet

    def close(self) -> None:
        """Ends a connection that was never made."""
        transport = vars(self).get("_transport")
        if transport is not None and not self._refused:
            transport.abort()

    def certificate(self) -> x509.Certificate | None:
        """What the caller showed, whether it was accepted or not."""
        return self._witness.certificate(self._tls)


def described(certificate: x509.Certificate | None) -> str:
    """A certificate for a log line: subject, issuer, serial and dates, escaped."""
    if certificate is None:
        return "no certificate seen"
    try:
        return (
            f"certificate {shown(certificate.subject.rfc4514_string(), 120)} of "
            f"{shown(certificate.issuer.rfc4514_string(), 120)}, serial {certificate.serial_number:x}, valid "
            f"{certificate.not_valid_before_utc:%Y-%m-%d %H:%M} to {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
        )
    except Exception:
        return "a certificate that cannot be read"
