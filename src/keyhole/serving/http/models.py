"""`/v1/models` and `/health`."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from keyhole.serving.http.answer import json_answer
from keyhole.serving.http.errors import ApiError
from keyhole.serving.http.service import Service, service_of


async def models(request: Request) -> Response:
    """The one model that is served."""
    return json_answer({"object": "list", "data": [_model(service_of(request))]})


async def model(request: Request) -> Response:
    service, name = service_of(request), request.path_params["name"]
    if name != service.settings.model:
        raise ApiError(
            f"there is no model {name[:100]!r}; this server has {service.settings.model!r}",
            status=404,
            param="model",
            code="model_not_found",
        )
    return json_answer(_model(service))


async def health(request: Request) -> Response:
    """Whether requests are served: status 200, else 503."""
    service = service_of(request)
    alive = service.scheduler.state().alive
    return json_answer({"status": "ok" if alive else "failed"}, status=200 if alive else 503)


def _model(service: Service) -> dict[str, Any]:
    return {
        "id": service.settings.model,
        "object": "model",
        "created": service.began,
        "owned_by": "keyhole",
        "max_model_len": service.context,
        "x_keyhole": {"method": str(service.scheduler.recipe)},
    }
