"""Routes for the server's model, health and metrics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from tiny_audio import __version__
from tiny_audio.serving.parameters import check_model
from tiny_audio.serving.service import Service


@dataclass(frozen=True)
class Model:
    """A model in the form of OpenAI's API."""

    id: str
    created: int
    object: Literal["model"] = "model"
    owned_by: str = "tiny-audio"


@dataclass(frozen=True)
class Models:
    """A list of models in the form of OpenAI's API."""

    data: tuple[Model, ...]
    object: Literal["list"] = "list"


def router(service: Service) -> APIRouter:
    """Return the routes of health, metrics and models."""
    routes = APIRouter()
    model = Model(service.options.model_name, service.options.created)

    @routes.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok", "version": __version__}

    @routes.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @routes.get("/v1/models")
    async def models() -> Models:
        return Models((model,))

    @routes.get("/v1/models/{name:path}")
    async def one_model(name: str) -> Model:
        check_model(name, service.options.model_name)
        return model

    return routes
