"""The web console and the API's documentation: files with a policy that allows no inline script."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from swagger_ui_bundle import swagger_ui_path

STATIC: Final = Path(__file__).parent / "static"

_CONSOLE_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# Swagger UI sets style attributes and draws its icons from data: addresses.
_DOCS_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

_MEDIA_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


def page_routes() -> list[BaseRoute]:
    swagger = Path(str(swagger_ui_path))
    return [
        _page("/", STATIC / "console.html", _CONSOLE_POLICY),
        _page("/console.css", STATIC / "console.css", _CONSOLE_POLICY),
        _page("/console.js", STATIC / "console.js", _CONSOLE_POLICY),
        _page("/favicon.svg", STATIC / "favicon.svg", _CONSOLE_POLICY),
        _page("/docs", STATIC / "docs.html", _DOCS_POLICY),
        _page("/docs/docs.js", STATIC / "docs.js", _DOCS_POLICY),
        _page("/docs/swagger-ui.css", swagger / "swagger-ui.css", _DOCS_POLICY),
        _page("/docs/swagger-ui-bundle.js", swagger / "swagger-ui-bundle.js", _DOCS_POLICY),
    ]


def _page(address: str, file: Path, policy: str) -> Route:
    async def answer(request: Request) -> Response:
        body, tag = _content(file)
        headers = {
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            # Asked for again each time, and not sent again unless it changed.
            "Cache-Control": "no-cache",
            "ETag": tag,
        }
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(body, headers=headers, media_type=_MEDIA_TYPES[file.suffix])

    return Route(address, answer, methods=["GET"])


@cache
def _content(file: Path) -> tuple[bytes, str]:
    body = file.read_bytes()
    return body, f'"{hashlib.sha256(body).hexdigest()[:32]}"'
