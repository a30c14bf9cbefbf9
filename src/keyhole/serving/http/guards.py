"""Who may use the server: by which name it was addressed, from which page, with which key.

Pages of other sites are the main danger to a server on the loopback interface: a browser lets them send
requests here, and read the answers once their name is rebound to 127.0.0.1. The former say their `Origin`,
the latter the attacker's name in `Host`.
"""

from __future__ import annotations

import ipaddress
import re

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from keyhole.serving.http.errors import ApiError
from keyhole.serving.http.settings import Settings

OPEN = ("/", "/health")  # paths that need no key
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(?::\d{1,5})?")
_METHODS = "GET, POST, PATCH, DELETE"


class Guards:
    """Refuses, before a body is read, requests that are not for this server or not from its users."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app, self._settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        check_host(headers, self._settings.hosts)
        foreign = foreign_origin(headers, self._settings.origins)
        if foreign is not None and scope["method"] == "OPTIONS" and _is_preflight(headers):
            await _preflight(headers, foreign)(scope, receive, send)
            return
        try:
            if scope["path"] not in OPEN:
                check_key(headers, self._settings)
            await self._app(scope, receive, send if foreign is None else _sharing(send, foreign))
        except ApiError as error:
            # What is refused a page of an allowed site is for it to read, too.
            error.headers |= {} if foreign is None else _shared(foreign)
            raise


def check_host(headers: Headers, names: frozenset[str]) -> None:
    """Refuse a name in `Host` that is not known; addresses cannot be rebound, and are not refused.

    Raises:
        ApiError: 421 for such a name, 400 for what is none.
    """
    stated = headers.getlist("host")
    found = _HOST.fullmatch(stated[0]) if len(stated) == 1 else None
    if found is None:
        raise ApiError("the Host header is missing or malformed", code="invalid_host")
    name = found[1].lower().rstrip(".")
    if name == "localhost" or name in names or _is_address(name):
        return
    raise ApiError(
        f"this server is not known as {name[:100]!r}; use its address, or start it with --allow-host",
        status=421,
        code="unknown_host",
    )


def foreign_origin(headers: Headers, allowed: frozenset[str]) -> str | None:
    """The origin of the page that asks, if it is an allowed one of another site; None for all else.

    Raises:
        ApiError: it is one of another site, and not allowed.
    """
    origin = headers.get("origin")
    # Behind a proxy the page's scheme may be another one than ours.
    if origin is None or origin in (f"http://{headers['host']}", f"https://{headers['host']}"):
        return None
    if origin in allowed:
        return origin
    raise ApiError(
        "pages of this origin may not use the server; start it with --cors-origin to allow that",
        status=403,
        code="origin_not_allowed",
    )


def check_key(headers: Headers, settings: Settings) -> None:
    """Raise ApiError (401) for a request without one of the keys, where there are any."""
    if not settings.keys:
        return
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not settings.keys.allow(key.strip()):
        raise ApiError(
            "send a valid key in the header 'Authorization: Bearer KEY'",
            status=401,
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def _is_preflight(headers: Headers) -> bool:
    return "access-control-request-method" in headers


def _preflight(headers: Headers, origin: str) -> Response:
    wanted = headers.get("access-control-request-headers", "")
    more = {"Access-Control-Allow-Methods": _METHODS, "Access-Control-Max-Age": "600"}
    if wanted:
        more["Access-Control-Allow-Headers"] = wanted
    return Response(status_code=204, headers=_shared(origin) | more)


def _shared(origin: str) -> dict[str, str]:
    return {"Access-Control-Allow-Origin": origin, "Vary": "Origin"}


def _sharing(send: Send, origin: str) -> Send:
    """`send`, which lets a page of an origin read the answer."""

    async def sharing(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers.update(_shared(origin))
            headers["Access-Control-Expose-Headers"] = "x-request-id, retry-after"
        await send(message)

    return sharing
