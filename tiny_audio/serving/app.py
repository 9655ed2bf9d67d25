"""The web application: routes, access control and metrics."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.routing import APIRoute

from tiny_audio.serving import live, status, transcriptions
from tiny_audio.serving.access import AccessControl
from tiny_audio.serving.engine import Engine
from tiny_audio.serving.errors import Failures, handle_errors
from tiny_audio.serving.metrics import Observer
from tiny_audio.serving.options import Options
from tiny_audio.serving.page import routes as page
from tiny_audio.serving.page.card import Card
from tiny_audio.serving.service import Service


def create_app(engine: Engine, options: Options, card: Card) -> FastAPI:
    """Return an application that serves the model of ``engine``.

    Args:
        engine: the engine with the model. The caller closes it.
        options: the server's options.
        card: what the web page says about the model.
    """
    service = Service(engine, options)
    # FastAPI's documentation pages are off, because they load scripts from other hosts.
    app = FastAPI(title="Tiny Audio", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.service = service
    for router in (
        status.router(service),
        transcriptions.router(service),
        live.router(service),
        page.files_router(),
        page.router(service, card),
    ):
        for route in router.routes:
            # Health checks often use HEAD, but FastAPI routes do not accept it. uvicorn answers HEAD without a body.
            if isinstance(route, APIRoute) and route.methods and "GET" in route.methods:
                route.methods.add("HEAD")
        app.include_router(router)
    handle_errors(app)
    app.add_middleware(Failures)
    app.add_middleware(AccessControl, options=options)
    app.add_middleware(Observer, metrics=service.metrics)  # outermost, so that refused requests are counted too
    return app
