"""What a request can be refused for: a code for programs, a status for HTTP. The text beside it is for people."""

from __future__ import annotations

CODES: dict[str, int] = {
    # who
    "NO_CERTIFICATE": 401,
    "UNKNOWN_CERTIFICATE": 401,
    "REVOKED": 403,
    "FORBIDDEN": 403,
    "BAD_TOKEN": 403,
    "NAME_TAKEN": 409,
    # what
    "NOT_FOUND": 404,
    "BAD_METHOD": 405,
    "BAD_REQUEST": 400,
    "TOO_LARGE": 413,
    "LENGTH_REQUIRED": 411,
    "BAD_OFFSET": 416,
    "BAD_DIGEST": 422,
    "BAD_MANIFEST": 422,
    "BAD_UPDATE": 422,
    "BAD_WEIGHT": 422,
    "MISSING_CHUNKS": 409,
    "VERSION": 426,
    # when
    "STALE_ROUND": 410,
    "ROUND_CLOSED": 410,
    "UNKNOWN_TASK": 404,
    "BAD_STATE": 409,
    # not now
    "BUSY": 503,
    "TOO_SLOW": 408,
    "TOO_MANY": 429,
    "DISK_FULL": 507,
    "NOT_LEADER": 503,
    "STOPPING": 503,
    "BROKEN": 500,
    # a site's own reasons, told as the failure of a task
    "SITE_REFUSED": 403,
    "MEMORY_LOST": 409,
}
RETRY = ("BUSY", "TOO_MANY", "DISK_FULL", "NOT_LEADER", "STOPPING", "BROKEN", "TOO_SLOW")
"""Codes after which the same request may succeed later."""
