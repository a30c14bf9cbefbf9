"""The page at `/`: the Keyhole view, where this installation has it."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.util import find_spec

from starlette.requests import Request
from starlette.responses import Response

from keyhole.serving.http.errors import ApiError

# The page has a policy of its own for what it loads; that of frames can only be said by a header.
_POLICY = "frame-ancestors 'none'"


@cache
def page() -> bytes | None:
    """The page of `keyhole.view`; None where there is none."""
    if find_spec("keyhole.view") is None:
        return None
    return import_module("keyhole.view.page").page(server=True)


async def show(_: Request) -> Response:
    data = page()
    if data is None:
        raise ApiError("this installation has no page; the API is at /v1", status=404, code="not_found")
    return Response(data, media_type="text/html", headers={"Content-Security-Policy": _POLICY})
