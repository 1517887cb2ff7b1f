"""The web application: endpoints over a backend, whichever engine that has."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import version as version_of
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from .auth_middleware import AuthMiddleware
from .chat import ChatRequest
from .chat_responses import ChatReply
from .completion_service import CompletionService
from .errors import RequestError, from_validation_error, unknown_model
from .metrics import CONTENT_TYPE, Metrics
from .openapi import ERRORS, JSON_OR_EVENTS, METRICS
from .pending_response import Backend
from .responses_schema import ResponsesRequest
from .responses_stream import ResponseReply
from .settings import ServerSettings

_BODIES: Mapping[str, type[BaseModel]] = {"/v1/chat/completions": ChatRequest, "/v1/responses": ResponsesRequest}


def create_app(settings: ServerSettings, backend: Backend, metrics: Metrics) -> FastAPI:
    """An application that starts the backend when it starts, and closes it when it ends."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        backend.start()
        yield
        await asyncio.to_thread(backend.close)

    app = FastAPI(
        title="tersely",
        version=version_of("tersely"),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        responses=ERRORS,
    )
    _refuse_plainly(app)
    _answer(app, settings, backend)
    _tell(app, settings, backend, metrics)
    _name_the_model(app, settings.model)
    app.add_middleware(AuthMiddleware, settings=settings, metrics=metrics)
    return app


def _name_the_model(app: FastAPI, model: str) -> None:
    """Have the schema say which model there is to ask."""
    plain = app.openapi

    def described() -> dict[str, Any]:
        schema: dict[str, Any] = plain()
        for body in _BODIES.values():
            schema["components"]["schemas"][body.__name__]["properties"]["model"]["enum"] = [model]
        return schema

    app.openapi = described  # type: ignore[method-assign]  # FastAPI's own way to change what it says


def _answer(app: FastAPI, settings: ServerSettings, backend: Backend) -> None:
    """The endpoints that answer."""
    desk = CompletionService(settings, backend)

    @app.post("/v1/chat/completions", responses=JSON_OR_EVENTS, response_model=None)
    async def chat(body: ChatRequest, request: Request) -> Response:
        """Answer a conversation."""
        return await desk.answer(request, body.asked(), bool(body.stream), lambda w: ChatReply(w, body.wants_usage))

    @app.post("/v1/responses", responses=JSON_OR_EVENTS, response_model=None)
    async def responses(body: ResponsesRequest, request: Request) -> Response:
        """Answer in the form of OpenAI's Responses."""
        return await desk.answer(request, body.asked(), bool(body.stream), lambda w: ResponseReply(w, body.echo()))


def _tell(app: FastAPI, settings: ServerSettings, backend: Backend, metrics: Metrics) -> None:
    """The endpoints that say how the server is."""
    began = int(time.time())

    def model() -> dict[str, Any]:
        can = backend.abilities
        about = {"thinks": can.thinks, "tools": can.tools, "efforts": dict(settings.caps)}
        head = {"id": settings.model, "object": "model", "created": began, "owned_by": "tersely"}
        return {**head, "max_model_len": can.context, "tersely": about}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The model that is served."""
        return {"object": "list", "data": [model()]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        """The model of that name."""
        if name != settings.model:
            raise unknown_model(name, [settings.model])
        return model()

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether requests are taken in."""
        if not backend.open:
            raise RequestError("the server is shutting down", 503, code="shutting_down", retry_after=5)
        return {"status": "ok"}

    @app.get("/version")
    async def version() -> dict[str, str]:
        """The version of tersely."""
        return {"version": version_of("tersely")}

    @app.get("/metrics", responses=METRICS, response_class=PlainTextResponse)
    async def counted() -> Response:
        """What was counted, as Prometheus reads it."""
        text = metrics.text()
        if text is None:
            raise RequestError("prometheus-client is not installed; pip install 'tersely[serve]'", 501)
        return Response(text, media_type=CONTENT_TYPE)


def _refuse_plainly(app: FastAPI) -> None:
    """Give every error the shape that OpenAI's clients read."""

    def refused(refusal: RequestError, headers: Mapping[str, str] | None = None) -> JSONResponse:
        return JSONResponse(refusal.body, refusal.status, {**refusal.headers, **(headers or {})})

    @app.exception_handler(RequestError)
    async def of_ours(request: Request, error: RequestError) -> JSONResponse:
        return refused(error)

    @app.exception_handler(RequestValidationError)
    async def of_the_body(request: Request, error: RequestValidationError) -> JSONResponse:
        return refused(from_validation_error(error.errors(), _BODIES.get(request.url.path)))

    @app.exception_handler(HTTPException)
    async def of_the_web(request: Request, error: HTTPException) -> JSONResponse:
        where = f"{request.method} {request.url.path}: " if error.status_code in (404, 405) else ""
        return refused(RequestError(f"{where}{error.detail}", error.status_code), error.headers)

    @app.exception_handler(Exception)
    async def of_nobody(request: Request, error: Exception) -> JSONResponse:
        return refused(
            RequestError("something went wrong here; the server's log says what", 500, code="internal_error")
        )
