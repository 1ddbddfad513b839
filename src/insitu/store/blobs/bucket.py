"""A bucket behind S3's HTTP interface: signed requests (AWS Signature Version 4), tried again where that may help.

Everything asked here is harmless when it is asked twice. Each request has a connection of its own, so nothing stays
open.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import os
import random
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NamedTuple
from urllib.parse import parse_qsl, quote, urlsplit

from insitu.core.errors import DiskFull, StoreError

PATIENCE = 30.0
"""Seconds for which a bucket that is away or busy is asked again."""
TIMEOUT = 30.0
"""Seconds of silence after which a request counts as lost."""
NOTHING = hashlib.sha256(b"").hexdigest()
_PASSES = (408, 425, 429, 500, 502, 503, 504)
_CURES = {
    301: "the bucket is in another region: give it in the URL, ?region=NAME",
    400: "look at the endpoint and the region in the URL",
    403: "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, the bucket's policy and this machine's clock",
    404: "check the bucket's name and the endpoint",
}


@dataclass(frozen=True)
class Keys:
    """What a request is signed with, as S3's own tools take it from the environment."""

    access: str
    secret: str = field(repr=False)
    session: str = field(default="", repr=False)


class Reply(NamedTuple):
    """What a bucket answered. Names of headers are in small letters."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def signed(
    method: str,
    host: str,
    path: str,
    query: Mapping[str, str],
    headers: Mapping[str, str],
    payload: str,
    keys: Keys,
    region: str,
    at: datetime,
) -> dict[str, str]:
    """All headers of a request, its signature among them. ``payload`` is the SHA-256 of its body, ``path`` quoted."""
    stamp, day = at.strftime("%Y%m%dT%H%M%SZ"), at.strftime("%Y%m%d")
    everything = {"host": host, "x-amz-content-sha256": payload, "x-amz-date": stamp, **headers}
    if keys.session:
        everything["x-amz-security-token"] = keys.session
    names = ";".join(sorted(everything))
    lines = "".join(f"{name}:{everything[name]}\n" for name in sorted(everything))
    request = "\n".join([method, path, encoded(query), lines, names, payload])
    scope = f"{day}/{region}/s3/aws4_request"
    told = "\n".join(["AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(request.encode()).hexdigest()])
    key = f"AWS4{keys.secret}".encode()
    for part in (day, region, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, told.encode(), "sha256").hex()
    said = f"AWS4-HMAC-SHA256 Credential={keys.access}/{scope},SignedHeaders={names},Signature={signature}"
    return {**everything, "authorization": said}


def encoded(query: Mapping[str, str]) -> str:
    """A query as it is signed and sent: sorted, every odd character quoted."""
    return "&".join(f"{quote(name, safe='')}={quote(query[name], safe='')}" for name in sorted(query))


class Bucket:
    """``s3://BUCKET/PREFIX?endpoint=URL&region=NAME``; else AWS_ENDPOINT_URL and AWS_REGION count.

    Raises StoreError for what is wrong with the address, the keys or the bucket, DiskFull where it has no room.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        query = dict(parse_qsl(parts.query))
        if parts.scheme != "s3" or not parts.netloc or set(query) - {"endpoint", "region"}:
            raise StoreError(
                f"{url!r} is no bucket: give s3://BUCKET/PREFIX, with ?endpoint=URL&region=NAME if need be"
            )
        self.place = f"s3://{parts.netloc}{parts.path}"
        self.region = query.get("region") or os.environ.get("AWS_REGION", "us-east-1")
        usual = os.environ.get("AWS_ENDPOINT_URL", f"https://s3.{self.region}.amazonaws.com")
        endpoint = urlsplit(query.get("endpoint") or usual)
        if endpoint.scheme not in ("http", "https") or not endpoint.hostname:
            raise StoreError(f"{url!r}: its endpoint is no URL: give https://HOST:PORT")
        self._secure = endpoint.scheme == "https"
        self._host, self._address = endpoint.netloc, (endpoint.hostname, endpoint.port)
        self._root = f"{endpoint.path.rstrip('/')}/{quote(parts.netloc)}"
        self.prefix = "/".join([*filter(None, parts.path.split("/")), ""]).lstrip("/")
        try:
            access, secret = os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
        except KeyError as error:
            raise StoreError(f"{self.place} needs keys, and {error} is not set: set it in the environment") from error
        self._keys = Keys(access, secret, os.environ.get("AWS_SESSION_TOKEN", ""))

    def ask(
        self,
        method: str,
        name: str | None,
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes | memoryview = b"",
        payload: str = NOTHING,
        allowed: tuple[int, ...] = (200,),
    ) -> Reply:
        """A request for the object ``name`` under the prefix, or the bucket itself (None), and its answer."""
        path = self._root if name is None else f"{self._root}/{quote(self.prefix + name)}"
        until, pause = time.monotonic() + PATIENCE, 0.1
        while True:
            try:
                reply = self._once(method, path, query or {}, headers or {}, body, payload)
                if reply.status in allowed:
                    return reply
                wrong = self._wrong(reply)
                passes = reply.status in _PASSES
            except ssl.SSLCertVerificationError as error:
                raise StoreError(f"{self.place}: {error}: check the endpoint and its certificate") from error
            except (OSError, http.client.HTTPException) as error:
                wrong = StoreError(f"{self.place} does not answer ({error or type(error).__name__}): is it up?")
                passes = True
            left = until - time.monotonic()
            if not passes or left <= 0:
                raise wrong
            time.sleep(min(left, pause * random.uniform(0.5, 1.0)))
            pause = min(2 * pause, 2.0)

    def _once(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        headers: Mapping[str, str],
        body: bytes | memoryview,
        payload: str,
    ) -> Reply:
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        host, port = self._address
        now = datetime.now(UTC)
        whole = signed(method, self._host, path, query, headers, payload, self._keys, self.region, now)
        connection = kind(host or "", port, timeout=TIMEOUT)
        try:
            connection.connect()
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            target = f"{path}?{encoded(query)}" if query else path
            whole["content-length"] = str(len(body))
            connection.request(method, target, body=bytes(body) or None, headers=whole)
            answer = connection.getresponse()
            told = {name.lower(): value for name, value in answer.getheaders()}
            return Reply(answer.status, told, answer.read())
        finally:
            connection.close()

    def _wrong(self, reply: Reply) -> StoreError:
        said = " ".join(reply.body[:300].decode("utf-8", "replace").split())
        if reply.status == 507:
            return DiskFull(f"{self.place} has no room left: {said}: make some, and try again")
        cure = _CURES.get(reply.status, "look at what the bucket's server says of it")
        return StoreError(f"{self.place} answers {reply.status} {said}: {cure}")
