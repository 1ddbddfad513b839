"""The API's description is that of the table by which a coordinator answers, and the pages have all of it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from insitu.engines.https.codes import CODES
from insitu.engines.https.http import Response, Route
from insitu.federation import founding, openapi
from insitu.federation.coordinator import Coordinator
from insitu.federation.examples import EXAMPLES
from insitu.federation.folder import Folder

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "wire-format.md").read_text(encoding="utf-8")


def names(routes: Any) -> set[str]:
    return {f"{route.method} {route.path}" for route in routes}


def test_it_is_what_a_coordinator_answers(tmp_path: Path, free_port: int) -> None:
    founding.found(tmp_path / "study", ["localhost"], free_port)
    made = Coordinator(Folder(tmp_path / "study"))
    asked: set[tuple[str, str, tuple[str, ...]]] = set()

    async def began() -> None:
        asked.update((route.method, route.path, route.roles) for route in made.table.routes)
        made._ended.set()

    real = made._refresh
    made._refresh = lambda: _both(began(), real())  # type: ignore[method-assign]  # what runs once all is built
    assert made.serve() == 0
    assert {(route.method, route.path, route.roles) for route in openapi.routes()} == asked


async def _both(first: Any, then: Any) -> None:
    await first
    await then


def test_the_file_is_up_to_date() -> None:
    held = (DOCS / "openapi.json").read_text(encoding="utf-8")
    assert held == openapi.text(openapi.routes()), "python -m insitu.federation.openapi > docs/openapi.json"


def test_every_request_has_an_example_and_stands_on_the_page() -> None:
    assert names(openapi.routes()) == set(EXAMPLES)
    shown = {" ".join(words) for words in re.findall(r"\*\*(GET|POST|PUT) (/v1/[^\s?*]+)", PAGE)}
    assert shown == set(EXAMPLES)


def test_every_code_stands_on_the_page_with_its_status() -> None:
    found: dict[str, int] = {}
    for names_, status in re.findall(r"^\| (`[A-Z_`, ]+) \| (\d{3}) \|", PAGE, re.MULTILINE):
        found |= {name: int(status) for name in re.findall(r"`([A-Z_]+)`", names_)}
    assert found == CODES


def test_it_is_open_api() -> None:
    told = openapi.document(openapi.routes())
    ids = [one["operationId"] for methods in told["paths"].values() for one in methods.values()]
    assert len(ids) == len(set(ids)) == len(openapi.routes())
    for path, methods in told["paths"].items():
        for one in methods.values():
            inside = {parameter["name"] for parameter in one.get("parameters", []) if parameter["in"] == "path"}
            assert inside == set(re.findall(r"\{(\w+)\}", path))
            assert "200" in one["responses"]
    assert [
        path for path, methods in told["paths"].items() if any(one.get("security") == [] for one in methods.values())
    ] == ["/v1/enrol"]
    json.dumps(told, allow_nan=False)


def test_a_request_without_an_example_is_noticed() -> None:
    async def handler(request: Any) -> Response:
        return Response()

    with pytest.raises(KeyError, match="GET /v1/new"):
        openapi.document([*openapi.routes(), Route("GET", "/v1/new", ("site",), handler)])


@pytest.mark.parametrize(
    ("value", "schema"),
    [
        (True, {"type": "boolean"}),
        (3, {"type": "integer"}),
        (None, {}),
        ([1, 2], {"type": "array", "items": {"type": "integer"}}),
        (["a", 1], {"type": "array"}),
        ({"a": 1.5}, {"type": "object", "required": ["a"], "properties": {"a": {"type": "number"}}}),
    ],
)
def test_a_schema_fits_its_example(value: Any, schema: Any) -> None:
    assert openapi.schema_of(value) == schema


@pytest.fixture
def free_port() -> int:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
