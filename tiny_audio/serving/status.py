"""Routes for the server's model, health and metrics."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from tiny_audio import __version__
from tiny_audio.serving.parameters import check_model
from tiny_audio.serving.service import Service


def router(service: Service) -> APIRouter:
    """Return the routes."""
    routes = APIRouter()
    model = {
        "id": service.options.model_name,
        "object": "model",
        "created": service.options.created,
        "owned_by": "tiny-audio",
    }

    @routes.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok", "version": __version__}

    @routes.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @routes.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model]}

    @routes.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        check_model(name, service.options.model_name)
        return model

    return routes
