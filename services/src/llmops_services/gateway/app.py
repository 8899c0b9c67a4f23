"""The FastAPI application: all routes, each error in OpenAI's shape."""

from __future__ import annotations

import time
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.routing import Route

from llmops_services.gateway import chat as chat_module
from llmops_services.gateway.asgi import ClientGone, read_body
from llmops_services.gateway.errors import ApiError
from llmops_services.gateway.limits import LIMITS, Limits
from llmops_services.gateway.live import Live
from llmops_services.gateway.metrics import Metrics
from llmops_services.gateway.requests import RetrieveRequest, parse_object, rag_options
from llmops_services.gateway.traces import TraceSender


def create_app(
    live: Live, metrics: Metrics, sender: TraceSender | None = None, *, ratio: float = 0.0, limits: Limits = LIMITS
) -> FastAPI:
    """The gateway's routes over the live configuration. The caller starts and stops `live` and `sender`."""
    app = FastAPI(title="llmops gateway", docs_url=None, redoc_url=None, openapi_url=None)
    started = int(time.time())
    metrics.watch("engines", "Engines of the configuration", lambda: len(live.engines))
    metrics.watch("engines_up", "Engines that answer", lambda: live.engines.up())
    if sender is not None:
        metrics.watch("traces_sent", "Traces that MLflow has taken", lambda: sender.sent)
        metrics.watch("traces_dropped", "Traces dropped because too many were waiting", lambda: sender.dropped)
        metrics.watch("traces_failed", "Traces that MLflow refused", lambda: sender.failed)

    # the busiest route comes first, and without FastAPI's validation: the engine checks what it is sent
    chat = chat_module.Chat(live, metrics, sender, ratio=ratio, limits=limits)
    app.router.routes.insert(0, Route("/v1/chat/completions", chat, methods=["POST"]))

    def card() -> dict[str, Any]:
        config = live.revision.config
        return {
            "id": config.object.name,
            "object": "model",
            "created": started,
            "owned_by": "llmops",
            "root": config.model,
            "parent": None,
            "max_model_len": config.max_model_len,
            "indexes": [{"name": index.name, "description": index.description} for index in config.indexes],
        }

    @app.get("/v1/models")
    async def models() -> Response:
        return _json({"object": "list", "data": [card()]})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        known = live.revision.name
        if name != known:
            raise ApiError(
                404,
                f"The model {name!r} does not exist; this service is called {known!r}.",
                code="model_not_found",
                param="model",
            )
        return _json(card())

    @app.post("/v1/retrieve")
    async def retrieve(request: Request) -> Response:
        if metrics.in_flight >= limits.in_flight:
            raise ApiError(
                429, "Too many requests at once. Try again.", kind="rate_limit_error", code="overloaded", retry_after=1
            )
        began = time.perf_counter()
        metrics.enter()
        try:
            body = parse_object(await read_body(request.scope, request.receive, limits.body))
            asked = rag_options(RetrieveRequest, body, "")
            revision = live.revision
            if not revision.lookup.names:
                raise ApiError(400, "This service has no indexes to search.", code="no_indexes")
            wish = asked.over(revision.config.retrieval)
            found = await revision.lookup.find(
                asked.query, mode=wish.mode, candidates=wish.candidates, where=wish.where, names=wish.names
            )
        finally:
            metrics.leave()
        good = [source.citation() for source in found if source.hit.score >= wish.min_score][: wish.top_k]
        metrics.retrieval.observe(time.perf_counter() - began)
        metrics.requested(_route(request), 200)
        return _json({"results": good, "collections": revision.lookup.collections()})

    @app.get("/healthz")
    async def healthz() -> Response:
        return _json({"status": "ok"})

    @app.get("/readyz")
    async def readyz() -> Response:
        report = live.report()
        return _json(report.dump(), 200 if report.ready else 503)

    @app.get("/metrics")
    async def prometheus() -> Response:
        return Response(metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        metrics.requested(_route(request), error.status)
        return Response(error.body(), error.status, headers={k.decode(): v.decode() for k, v in error.headers()})

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        metrics.requested("unknown", error.status_code)
        fault = ApiError(
            error.status_code, f"{request.method} {request.url.path}: {error.detail}.", code="no_such_route"
        )
        return Response(fault.body(), error.status_code, media_type="application/json", headers=error.headers)

    @app.exception_handler(ClientGone)
    async def client_gone(request: Request, error: Exception) -> Response:
        metrics.requested(_route(request), chat_module.CLOSED_BY_CLIENT)
        return Response(status_code=chat_module.CLOSED_BY_CLIENT)

    @app.exception_handler(Exception)
    async def bug(request: Request, error: Exception) -> Response:
        metrics.requested(_route(request), 500)
        fault = ApiError(500, "The gateway failed.", kind="server_error", code="internal_error")
        return Response(fault.body(), 500, media_type="application/json")

    return app


def _route(request: Request) -> str:
    """The route's pattern: a label of metrics must not take any value that a client sends."""
    return str(getattr(request.scope.get("route"), "path", "unknown"))


def _json(value: object, status: int = 200) -> Response:
    return Response(orjson.dumps(value), status, media_type="application/json")
