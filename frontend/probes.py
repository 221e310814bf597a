"""What operators ask: health, readiness, liveness, version, metrics. None asks the model."""

from typing import Any

from litestar import Response, get

from frontend import metrics
from frontend.errors_over_http import error_response
from frontend.health import Problem
from frontend.server_info import server_info
from frontend.service import ApiRequest, service_of
from frontend.version import VERSION


@get(["/health", "/healthz", "/v1/health", "/v1/healthz"], public=True)
async def show_health(request: ApiRequest) -> Response[bytes]:
    """Whether the rooms behind can answer; draining or a full queue is still healthy."""
    return _verdict(service_of(request).engine.engine_problem())


@get(["/ready", "/readyz", "/v1/ready", "/v1/readyz"], public=True)
async def show_readiness(request: ApiRequest) -> Response[bytes]:
    """Whether to send requests here."""
    return _verdict(service_of(request).engine.readiness_problem())


@get(["/live", "/livez", "/v1/live", "/v1/livez"], public=True)
async def show_liveness() -> Response[bytes]:
    """That this process's loop turns."""
    return _verdict(None)


@get(["/version", "/v1/version"], public=True)
async def show_version() -> dict[str, str]:
    """The server's version."""
    return {"version": VERSION}


@get(["/metrics", "/v1/metrics"], answers={"text/plain": None})
async def show_metrics(request: ApiRequest) -> Response[bytes]:
    """The page that Prometheus scrapes."""
    return Response(service_of(request).metrics.render(), media_type=metrics.MEDIA_TYPE)


@get(["/server_info", "/v1/server_info"])
async def show_server_info(request: ApiRequest) -> dict[str, Any]:
    """What is served here, how, and within which limits; no secrets."""
    return server_info(service_of(request))


def _verdict(problem: Problem | None) -> Response[bytes]:
    if problem is None:
        return Response(b'{"status":"ok"}', media_type="application/json")
    response = error_response(problem.error, status=problem.status)
    response.status_code = 503  # also for a full queue, whose code means 429 to a caller
    return response
