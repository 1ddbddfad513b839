"""What one port may cost, whoever calls. Times are seconds, sizes bytes, rates bytes per second."""

from __future__ import annotations

from dataclasses import dataclass, fields

from insitu.core.errors import ConfigError


@dataclass(frozen=True)
class Limits:
    """The limits of a port.

    Connections: ``connections`` in all; ``strangers`` of one address that have not shown a certificate yet, or have
    none; ``per_member`` of one certificate (when there is one more, the one that has been idle for longest gives way).

    Times: ``handshake`` for TLS; ``headers`` from the first byte of a request, and after the handshake; ``keepalive``
    between requests; ``body_idle`` without a byte of a body; ``reader_idle`` without a caller taking 80 kB of an
    answer.

    Sizes: ``line`` of a request line or header; ``count`` of headers; ``json`` and ``chunk`` of bodies;
    ``stranger_body`` without a certificate; ``buffer`` of an answer that is being sent (of a
    body up to half a megabyte may wait to be read).

    Uploads: ``uploads`` at a time, others are told to come back; ``rate`` that a body must reach after ``rate_after``.
    """

    connections: int = 4096
    strangers: int = 256
    per_member: int = 32
    handshake: float = 10.0
    headers: float = 10.0
    keepalive: float = 75.0
    body_idle: float = 60.0
    reader_idle: float = 120.0
    line: int = 8190
    count: int = 64
    json: int = 16 * 2**20
    chunk: int = 4 * 2**20
    stranger_body: int = 32 * 1024
    buffer: int = 64 * 1024
    uploads: int = 64
    rate: float = 256.0
    rate_after: float = 30.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
                raise ConfigError(f"Expected {field.name}={value!r} to be a positive number")

    def body(self, method: str, known: bool) -> int:
        """The longest body of a request: chunks are PUT, everything else is JSON."""
        if not known:
            return self.stranger_body
        return self.chunk if method == "PUT" else self.json
