"""Listening sockets, and how many connections a process may have at all."""

from __future__ import annotations

import resource
import socket
from contextlib import suppress

from insitu.core.errors import ConfigError

SPARE = 128
"""File descriptors kept for everything but connections."""


def listen(host: str, port: int) -> list[socket.socket]:
    """Listening sockets for a host name or address. Raises ConfigError where another process has the port."""
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    made: list[socket.socket] = []
    try:
        for family, kind, protocol, _, where in dict.fromkeys(found):
            sock = socket.socket(family, kind, protocol)
            made.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(where)
            sock.listen(1024)
            sock.setblocking(False)
    except OSError as error:
        for sock in made:
            sock.close()
        text = f"cannot listen at {host}:{port}: {error.strerror}; is another coordinator running?"
        raise ConfigError(text) from error
    return made


def allowed(wanted: int) -> int:
    """How many connections the limit on file descriptors allows; it is raised as far as it may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + SPARE
    if soft != resource.RLIM_INFINITY and soft < needed:
        ceiling = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (ceiling, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return wanted if soft == resource.RLIM_INFINITY else max(8, soft - SPARE)
