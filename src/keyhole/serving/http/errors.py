"""Errors in the form of OpenAI's API: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

from typing import NamedTuple

from keyhole.core.errors import UnknownDocumentError
from keyhole.serving.requests import Failed, FailureKind, OverloadedError, TooLongError

_RETRY = 5  # seconds after which it is worth trying again, where nothing better is known


class ApiError(Exception):
    """What a client is told: a status, and the fields of OpenAI's error object.

    Args:
        kind: `type` of the error object.
        param: the field of the request that is wrong.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.kind = message, status, kind
        self.param, self.code, self.headers = param, code, headers or {}

    def body(self) -> dict[str, object]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def overloaded(message: str, retry_after: int = _RETRY) -> ApiError:
    return ApiError(
        message,
        status=503,
        kind="server_error",
        code="overloaded",
        headers={"Retry-After": str(max(1, retry_after))},
    )


def refused(error: Exception, param: str | None = None) -> ApiError:
    """What a client is told of an error that a scheduler or the store raised for its request."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, OSError):
        return overloaded(f"the store of documents cannot be used now: {error.strerror or 'it is busy'}")
    if isinstance(error, OverloadedError):
        return overloaded(str(error), error.retry_after)
    if isinstance(error, UnknownDocumentError):
        return ApiError(str(error), status=404, param=param, code="document_not_found")
    if isinstance(error, TooLongError):
        return ApiError(str(error), param=param, code="context_length_exceeded")
    return ApiError(str(error), param=param, code="invalid_value")


class _Told(NamedTuple):
    status: int
    code: str


_FAILURES: dict[FailureKind, _Told] = {
    "model": _Told(500, "model_error"),
    "document": _Told(409, "document_error"),
    "memory": _Told(503, "out_of_memory"),
    "closed": _Told(503, "server_stopping"),
    "stopped": _Told(499, "cancelled"),
}


def failed(failure: Failed) -> ApiError:
    """What a client is told of a request that began and failed."""
    status, code = _FAILURES[failure.kind]
    headers = {"Retry-After": str(_RETRY)} if status == 503 else None
    kind = "invalid_request_error" if status == 409 else "server_error"
    return ApiError(failure.error, status=status, kind=kind, code=code, headers=headers)
