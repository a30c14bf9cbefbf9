"""The page at `/`: the Keyhole view, where this installation has it."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response

from keyhole.serving.http.errors import ApiError

_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@cache
def page() -> bytes | None:
    """The page of `keyhole.view`; None where there is none."""
    found = files("keyhole") / "view" / "page.html"
    return found.read_bytes() if found.is_file() else None


async def show(_: Request) -> Response:
    data = page()
    if data is None:
        raise ApiError("this installation has no page; the API is at /v1", status=404, code="not_found")
    return Response(data, media_type="text/html", headers={"Content-Security-Policy": _POLICY})
