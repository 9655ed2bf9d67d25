"""The web application: routes, access control and metrics."""

from __future__ import annotations

from fastapi import FastAPI

from tiny_audio.serving import live, status, transcriptions
from tiny_audio.serving.access import AccessControl
from tiny_audio.serving.engine import Engine
from tiny_audio.serving.errors import handle_errors
from tiny_audio.serving.metrics import Observer
from tiny_audio.serving.options import Options
from tiny_audio.serving.service import Service


def create_app(engine: Engine, options: Options) -> FastAPI:
    """Return an application that serves the model of ``engine``. The caller closes the engine."""
    service = Service(engine, options)
    # FastAPI's own pages load scripts from other hosts.
    app = FastAPI(title="Tiny Audio", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.service = service
    app.include_router(status.router(service))
    app.include_router(transcriptions.router(service))
    app.include_router(live.router(service))
    handle_errors(app)
    app.add_middleware(AccessControl, options=options)
    app.add_middleware(Observer, metrics=service.metrics)  # the outermost, so that it counts refused requests, too
    return app
