"""The page at `/`: the Keyhole view."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from keyhole.view.page import page

# The page has a policy of its own for what it loads; that of frames can only be said by a header.
_POLICY = "frame-ancestors 'none'"


async def show(_: Request) -> Response:
    return Response(page(server=True), media_type="text/html", headers={"Content-Security-Policy": _POLICY})
