"""OpenAPI's description of the coordinator's requests, made from the table by which they are answered.

python -m insitu.federation.openapi > docs/openapi.json
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from insitu.engines.https.api.chunks import Chunks
from insitu.engines.https.api.enrol import Enrolment
from insitu.engines.https.api.members import MembersApi
from insitu.engines.https.api.runs import RunsApi
from insitu.engines.https.api.status import StatusApi
from insitu.engines.https.api.tasks import Tasks
from insitu.engines.https.codes import CODES, RETRY
from insitu.engines.https.http import Route
from insitu.federation.examples import EXAMPLES, Example

VERSION = "1"
_PARAMETER = re.compile(r"\{([a-z_]+)\}")


def document(routes: Iterable[Route]) -> dict[str, Any]:
    """OpenAPI 3.1 of these routes. Raises KeyError for one that has no example."""
    paths: dict[str, dict[str, Any]] = {}
    for route in sorted(routes, key=lambda one: (one.path, one.method)):
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "insitu: a federation's coordinator",
            "version": VERSION,
            "description": "Protocol 1, over TLS 1.3 with client certificates. The page on the wire format says more.",
        },
        "servers": [{"url": "https://federation.example.org:8443"}],
        "security": [{"certificate": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"certificate": {"type": "mutualTLS", "description": "of this federation's authority"}},
            "schemas": {"Refusal": _refusal()},
        },
    }


def text(routes: Iterable[Route]) -> str:
    """The same as it is kept in a file."""
    return json.dumps(document(routes), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def routes() -> list[Route]:
    """All requests that a coordinator answers; their handlers have nothing behind them here."""
    nothing: Any = None
    apis: list[Any] = [
        Enrolment(nothing, nothing),
        MembersApi(nothing, nothing, nothing, nothing, nothing),
        RunsApi(nothing),
        StatusApi(nothing, nothing, nothing),
        Tasks(nothing),
        Chunks(nothing, nothing),
    ]
    return [route for api in apis for route in api.routes()]


def _operation(route: Route) -> dict[str, Any]:
    example = EXAMPLES[f"{route.method} {route.path}"]
    who = ", ".join(route.roles) if route.roles else "anyone, without a certificate too"
    told: dict[str, Any] = {
        "operationId": re.sub(r"\W+", "_", f"{route.method} {route.path.removeprefix('/v1/')}").strip("_").lower(),
        "summary": route.summary,
        "description": f"For: {who}.",
        "x-insitu-roles": list(route.roles),
        "responses": _responses(example),
    }
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _PARAMETER.findall(route.path)
    ]
    parameters += [
        {"name": name, "in": "query", "required": False, "schema": schema_of(value), "example": value}
        for name, value in example.query.items()
    ]
    if parameters:
        told["parameters"] = parameters
    if example.sends is not None:
        told["requestBody"] = {"required": True, "content": _content(example.sends)}
    if not route.roles:
        told["security"] = []
    return told


def _responses(example: Example) -> dict[str, Any]:
    refused = {"description": "refused", "content": {"application/json": {"schema": {"$ref": _REFUSAL}}}}
    found: dict[str, Any] = {"200": {"description": "done", "content": _content(example.gets)}, "default": refused}
    if example.nothing:
        found["204"] = {"description": example.nothing}
    return found


_REFUSAL = "#/components/schemas/Refusal"


def _content(value: Any) -> dict[str, Any]:
    if isinstance(value, str):  # a content type: bytes
        return {
            value: {"schema": {"type": "string", "format": "binary"} if "text/" not in value else {"type": "string"}}
        }
    return {"application/json": {"schema": schema_of(value), "example": value}}


def schema_of(value: Any) -> dict[str, Any]:
    """A JSON schema that the example fits: every key of an object is there, others may be."""
    if isinstance(value, Mapping):
        if not value:
            return {"type": "object"}
        return {
            "type": "object",
            "required": sorted(value),
            "properties": {key: schema_of(inner) for key, inner in value.items()},
        }
    if isinstance(value, list):
        kinds = [schema_of(inner) for inner in value]
        alike = bool(kinds) and all(kind == kinds[0] for kind in kinds)
        return {"type": "array", "items": kinds[0]} if alike else {"type": "array"}
    if value is None:
        return {}  # what else it may be, an example does not say
    return {"type": {bool: "boolean", int: "integer", float: "number", str: "string"}[type(value)]}


def _refusal() -> dict[str, Any]:
    codes = dict(sorted(CODES.items()))
    return {
        "type": "object",
        "required": ["error", "message"],
        "properties": {
            "error": {"type": "string", "enum": list(codes)},
            "message": {"type": "string"},
        },
        "x-insitu-status": codes,
        "x-insitu-try-again": sorted(RETRY),
    }


if __name__ == "__main__":
    print(text(routes()), end="")
