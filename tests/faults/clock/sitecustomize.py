"""A process whose wall clock is as far off as the file in ``INSITU_TEST_CLOCK`` says, in seconds; read at every look.

Python imports a module of this name by itself, where its folder is on PYTHONPATH. It turns ``time.time``, SQLite's
clock, and the one by which OpenSSL judges certificates; clocks that never jump are left alone, as they are when
somebody sets a machine's. ``datetime.now``, by which lines of logs are dated and nothing else, stays right.
"""

from __future__ import annotations

import _ssl
import ctypes
import os
import sqlite3
import ssl
import time
from pathlib import Path

_FILE = Path(os.environ["INSITU_TEST_CLOCK"])
_time, _time_ns = time.time, time.time_ns


def off() -> float:
    """Seconds that this process's clock is ahead."""
    try:
        return float(_FILE.read_text() or 0.0)
    except FileNotFoundError:
        return 0.0


time.time = lambda: _time() + off()
time.time_ns = lambda: _time_ns() + int(off() * 1e9)

# ------------------------------------------------------------ SQLite

_connect = sqlite3.dbapi2.connect


def _connected(*given: object, **named: object) -> sqlite3.Connection:
    connection = _connect(*given, **named)  # type: ignore[arg-type]

    def julian(text: str) -> float:
        assert text == "now"
        return time.time() / 86400.0 + 2440587.5

    connection.create_function("julianday", 1, julian)
    return connection


sqlite3.connect = sqlite3.dbapi2.connect = _connected  # type: ignore[assignment]

# ------------------------------------------------------------ OpenSSL

_openssl = ctypes.CDLL(_ssl.__file__)
_openssl.SSL_CTX_get0_param.restype = ctypes.c_void_p
_openssl.SSL_CTX_get0_param.argtypes = [ctypes.c_void_p]
_openssl.X509_VERIFY_PARAM_set_time.argtypes = [ctypes.c_void_p, ctypes.c_long]
_wrap_bio = ssl.SSLContext.wrap_bio


def _wrapped(self: ssl.SSLContext, *given: object, **named: object) -> ssl.SSLObject:
    # The first thing in Python's object after its head is OpenSSL's context.
    context = ctypes.c_void_p.from_address(id(self) + object.__basicsize__).value
    _openssl.X509_VERIFY_PARAM_set_time(_openssl.SSL_CTX_get0_param(context), int(time.time()))
    return _wrap_bio(self, *given, **named)  # type: ignore[arg-type]


ssl.SSLContext.wrap_bio = _wrapped  # type: ignore[method-assign]
