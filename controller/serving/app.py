"""The web application of the transformers server, and the uvicorn server that runs it."""

from __future__ import annotations

import asyncio
import errno
import gc
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from .auth_middleware import Access, AuthMiddleware
from .completion_service import CompletionService
from .errors import RequestError, from_validation_error, unknown_model
from .limits import GRACE, BodyLimits, GuardedProtocol
from .metrics import CONTENT_TYPE, Metrics
from .replies import ChatReply
from .responses_api import ResponsesReply
from .responses_schemas import ResponsesRequest
from .rules import ServerSettings
from .schemas import ChatRequest
from .settings import bind_error, effort_caps
from .worker import RequestWorker, shutting_down

_BODIES: Mapping[str, type[BaseModel]] = {"/v1/chat/completions": ChatRequest, "/v1/responses": ResponsesRequest}
_KEEP_ALIVE = 75
"""Seconds that idle connections are kept: longer than clients do, or one might be closed just as it is used again."""


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every error."""

    error: ErrorDetail


_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": text}
    for status, text in (("4XX", "Refused; the body says why."), ("5XX", "Not answered; the body says why."))
}
_REPLY: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The reply, or its server-sent events with `stream`.",
        "content": {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {}},
    }
}
_METRICS: dict[int | str, dict[str, Any]] = {
    200: {"description": "Counters in Prometheus' text format.", "content": {"text/plain": {}}}
}


def create_app(settings: ServerSettings, workers: Mapping[str, RequestWorker], metrics: Metrics) -> FastAPI:
    """An application that starts the workers of its models when it starts, and closes them when it ends."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        for worker in workers.values():
            worker.start()
        yield
        for worker in workers.values():
            await asyncio.to_thread(worker.close)

    app = FastAPI(
        title="tersely", version=version("tersely"), lifespan=lifespan, docs_url=None, redoc_url=None, responses=_ERRORS
    )
    for kind in (RequestError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, _respond_to_error)
    service = CompletionService(settings, workers)

    @app.post("/v1/chat/completions", responses=_REPLY, response_model=None)
    async def chat(body: ChatRequest, request: Request) -> Response:
        """Answer a conversation."""
        return await service.respond(request, body, lambda resolved: ChatReply(resolved, body.include_usage))

    @app.post("/v1/responses", responses=_REPLY, response_model=None)
    async def responses(body: ResponsesRequest, request: Request) -> Response:
        """Answer in the form of OpenAI's Responses API."""
        return await service.respond(request, body, lambda resolved: ResponsesReply(resolved, body.echo()))

    _add_info_routes(app, settings, workers, metrics)
    _describe_models(app, list(workers))
    access = Access(lambda: settings.config.keys, settings.hosts, settings.metrics)
    limits = BodyLimits(settings.limits.body, settings.limits.held, settings.limits.body_seconds)
    app.add_middleware(AuthMiddleware, metrics=metrics, access=access, limits=limits, log=settings.log)
    return app


def _describe_models(app: FastAPI, models: Sequence[str]) -> None:
    """Name the served models in the schema."""
    default = app.openapi

    def openapi() -> dict[str, Any]:
        schema: dict[str, Any] = default()
        for body in _BODIES.values():
            schema["components"]["schemas"][body.__name__]["properties"]["model"]["enum"] = list(models)
        return schema

    app.openapi = openapi  # type: ignore[method-assign]  # the way that FastAPI documents


def _add_info_routes(
    app: FastAPI, settings: ServerSettings, workers: Mapping[str, RequestWorker], metrics: Metrics
) -> None:
    created = int(time.time())

    def describe(name: str, request: Request) -> dict[str, Any]:
        info, rules = workers[name].model_info, settings.config.rules(name, getattr(request.state, "key", ""))
        limit = min(rules.max_tokens, info.context or rules.max_tokens)
        return {
            "id": name,
            "object": "model",
            "created": created,
            "owned_by": "tersely",
            "max_model_len": info.context,
            "tersely": {
                "thinks": info.thinks,
                "tools": info.tools,
                "policies": info.policies,
                "efforts": effort_caps(rules.caps, limit, rules.max_thinking),
            },
        }

    @app.get("/v1/models")
    async def list_models(request: Request) -> dict[str, Any]:
        """The served models."""
        return {"object": "list", "data": [describe(name, request) for name in workers]}

    @app.get("/v1/models/{name:path}")
    async def get_model(name: str, request: Request) -> dict[str, Any]:
        """The model of that name."""
        if name not in workers:
            raise unknown_model(name, workers)
        return describe(name, request)

    @app.get("/ready")
    @app.get("/health")
    async def health(request: Request) -> dict[str, str]:
        """Whether requests are accepted; for /ready, some model's server must not have been lost a moment ago."""
        if not all(worker.accepting for worker in workers.values()):
            raise shutting_down()
        lost = all(time.monotonic() < worker.lost_until for worker in workers.values())
        if lost and request.url.path.endswith("/ready"):
            raise RequestError("the upstream server was lost; try again", 503, code="server_lost", retry_after=5)
        return {"status": "ok"}

    @app.get("/version")
    async def get_version() -> dict[str, str]:
        """The version of tersely."""
        return {"version": version("tersely")}

    @app.get("/metrics", responses=_METRICS, response_class=PlainTextResponse)
    async def get_metrics() -> Response:
        """Counters for Prometheus."""
        return Response(metrics.render(), media_type=CONTENT_TYPE)


async def _respond_to_error(request: Request, error: Exception) -> JSONResponse:
    """Give every error the shape that OpenAI's clients read."""
    if isinstance(error, RequestError):
        refusal = error
    elif isinstance(error, RequestValidationError):
        refusal = from_validation_error(error.errors(), _BODIES.get(request.url.path))
    elif isinstance(error, HTTPException):
        where = f"{request.method} {request.url.path}: " if error.status_code in (404, 405) else ""
        refusal = RequestError(f"{where}{error.detail}", error.status_code)
    else:
        refusal = RequestError("internal server error; see the server log", 500, code="internal_error")
    return JSONResponse(refusal.body, refusal.status, getattr(error, "headers", None))


class UvicornServer(uvicorn.Server):
    """Serves until stopped: then new requests are refused, and running ones have `drain` seconds.

    A second signal ends it at once. `ready` is printed to standard error once requests are accepted.
    """

    should_exit: bool

    def __init__(
        self,
        app: FastAPI,
        workers: Collection[RequestWorker],
        drain: float,
        ready: str = "",
        reload: Callable[[], object] | None = None,
    ) -> None:
        config = uvicorn.Config(
            app,
            http=GuardedProtocol,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE,
            timeout_graceful_shutdown=GRACE,
            lifespan="on",
        )
        super().__init__(config)
        self.workers, self.drain, self.ready, self.reload = workers, drain, ready, reload
        self._deadline: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start listening and print `ready`; from then on, SIGHUP reloads."""
        await super().startup(sockets)
        if threading.current_thread() is threading.main_thread():  # it has the process for itself
            gc.collect()
            gc.freeze()  # or each full collection would look at all that was imported, which takes half a second
            if self.reload is not None:
                asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self.reload)
        if self.started and self.ready:
            print(self.ready, file=sys.stderr, flush=True)

    def stop(self) -> None:
        """Refuse new requests and end once the running ones are done; may be called from any thread."""
        for worker in self.workers:
            worker.drain()
        self._deadline = time.monotonic() + self.drain

    async def on_tick(self, counter: int) -> bool:
        """Whether to end now; called by uvicorn ten times a second."""
        if self._deadline is not None and not self.should_exit:
            late = time.monotonic() >= self._deadline
            self.should_exit = late or all(worker.idle for worker in self.workers)
            for worker in self.workers if late else ():
                worker.abort()
        return bool(await super().on_tick(counter))

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle a signal: the first stops, the second ends at once; uvicorn does not raise it again."""
        if self._deadline is None:
            self.stop()
        else:
            self.drain, self._deadline = 0.0, time.monotonic()


def serve(server: UvicornServer, bound: socket.socket) -> None:
    """Serve on a bound socket until stopped; raises OptionError if the port has been taken meanwhile."""
    host, port = bound.getsockname()[:2]
    try:
        server.run(sockets=[bound])
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise bind_error(host, port, error) from None
    finally:
        bound.close()
