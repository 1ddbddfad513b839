"""An example of each request and its answer, from which the API's description is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

BYTES = "application/octet-stream"
_DIGEST = "8dca235690aa7ee06e97416177f4b9a233a8a7227e561051734c8bbcb9836aa5"
_TASK = "5f0c2a3b4c5d6e7f8091a2b3c4d5e6f7"
_RUN = "20261124-120000-abcd"
_CHUNKS = [[_DIGEST, 484]]
_TENSORS = [
    {"path": ["params", "weight"], "dtype": "float32", "shape": [2, 2], "offset": 0, "nbytes": 16, "kind": "numpy"}
]
_CERTIFICATE = "-----BEGIN CERTIFICATE-----…"
_REQUEST = "-----BEGIN CERTIFICATE REQUEST-----…"


@dataclass(frozen=True)
class Example:
    """What is sent and what comes back: JSON, or a content type where it is bytes.

    query    parameters after the ``?``
    nothing  what 204 means, where that is an answer
    """

    gets: Any
    sends: Any = None
    query: Mapping[str, Any] = field(default_factory=dict)
    nothing: str = ""


_TOLD = {
    "task": _TASK, "run": _RUN, "round": 3, "version": 2, "kind": "train", "index": 1, "place": 3, "block": 4,
    "seed": 0,
    "discount": 1.0, "asked": 4, "description": _DIGEST, "message": _DIGEST, "memory": {"task": _TASK},
    "deadline": 598.2, "lease": 60.0,
}  # fmt: skip
_UPDATE = {
    "protocol": 1, "holds": "update", "length": 484, "chunks": _CHUNKS, "tensors": _TENSORS, "digest": _DIGEST,
    "task": _TASK, "base": _DIGEST, "weight": {"params": 212.0}, "metrics": {"loss": 94.1}, "keeps": False,
}  # fmt: skip
_HELLO = {
    "versions": {"insitu": "0.2.0", "python": "3.12.3", "numpy": "2.4.0"},
    "data": {"examples": 212, "holdout": 91, "features": [32], "classes": [0, 1]},
}
_STATUS = {
    "run": _RUN, "status": "running", "reason": "", "round": 3, "committed": 2, "of": 30, "phase": "waiting for sites",
    "waiting_for": [{"site": "va", "since": 31.4, "phase": "training", "last_contact": 1.2, "deadline_in": 568.6}],
    "accepted": 3, "failed": 0, "asked": 4, "voids": 0, "retries": 3, "history": {"round": 2, "loss": 0.51},
    "next": "round 3 is committed when va has answered, or in 569 s without it",
}  # fmt: skip
_ACCEPTED = {"accepted": True, "duplicate": False}

EXAMPLES: dict[str, Example] = {
    "POST /v1/enrol": Example(
        {"certificate": _CERTIFICATE, "authority": _CERTIFICATE, "name": "berlin", "role": "site"},
        {"token": "insitu1.…", "csr": _REQUEST},
    ),
    "POST /v1/renew": Example({"certificate": _CERTIFICATE, "authority": _CERTIFICATE}, {"csr": _REQUEST}),
    # a site's
    "POST /v1/hello": Example(
        {
            "name": "va",
            "poll": 25.0,
            "lease": 60.0,
            "chunk": 4194304,
            "now": 1795732800.0,
        },
        _HELLO,
    ),
    "GET /v1/next": Example(_TOLD, query={"wait": 25}, nothing="nothing to do within that time"),
    "POST /v1/tasks/{task}/alive": Example({"open": True, "reason": ""}, {"phase": "training", "done": 0.4}),
    "GET /v1/documents/{digest}": Example({"protocol": 1}),
    "GET /v1/chunks/{digest}": Example(BYTES),
    "POST /v1/tasks/{task}/missing": Example({"missing": [[_DIGEST, 0]]}, {"chunks": _CHUNKS}),
    "PUT /v1/tasks/{task}/chunks/{digest}": Example(
        {"offset": 484, "done": True}, BYTES, query={"offset": 0, "length": 484}
    ),
    "POST /v1/tasks/{task}/update": Example(_ACCEPTED, _UPDATE),
    "POST /v1/tasks/{task}/failure": Example(_ACCEPTED, {"code": "FAILED", "error": "no patient is left"}),
    "POST /v1/bye": Example({}, {}),
    # an operator's, and partly a viewer's
    "POST /v1/runs": Example({"run": _RUN}, {"tables": {"algorithm": {"name": "fedavg"}}, "name": ""}),
    "GET /v1/runs": Example({"runs": [{"run": _RUN, "status": "running"}]}),
    "GET /v1/runs/{run}": Example(_STATUS),
    "GET /v1/runs/{run}/events": Example(
        {"events": [{"event": "RoundCommitted", "round": 2}], "last": 15}, query={"after": 12, "wait": 10}
    ),
    "GET /v1/runs/{run}/model": Example(BYTES),
    "POST /v1/runs/{run}/predict": Example(BYTES, BYTES),
    "POST /v1/runs/{run}/stop": Example({"status": "stopping"}),
    "POST /v1/runs/{run}/pause": Example({"status": "paused"}),
    "POST /v1/runs/{run}/resume": Example({"status": "queued"}),
    "GET /v1/sites": Example(
        {
            "sites": [
                {
                    "name": "va",
                    "role": "site",
                    "serial": "7f3a",
                    "enrolled": 1795732800.0,
                    "seen": 1795819200.0,
                    "revoked": None,
                    "declared": {},
                    "connected": True,
                    "last_contact": 1.2,
                    "doing": "training",
                }
            ]
        }
    ),
    "POST /v1/invitations": Example(
        {"token": "insitu1.…", "expires": 1795905600.0}, {"name": "berlin", "role": "site", "seconds": 172800}
    ),
    "POST /v1/members/{name}/revoke": Example({}),
    "GET /v1/audit": Example(
        {
            "entries": [
                {
                    "seq": 101,
                    "at": 1795732800.0,
                    "who": "operator",
                    "what": "invite",
                    "data": {"name": "berlin"},
                    "before": _DIGEST,
                    "hash": _DIGEST,
                }
            ]
        },
        query={"after": 100},
    ),
    "GET /v1/status": Example({"leader": "host:4711", "runs": [], "sites": []}),
    "GET /v1/health": Example({"status": "alive"}),
    "GET /v1/ready": Example({"ready": True, "wrong": {}}),
    "GET /v1/metrics": Example("text/plain"),
}
