"""Error responses of the routes, in vLLM's shape: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from ksteer_vllm.errors import LifecycleError, SpecError
from ksteer_vllm.server.endpoints.schemas import ErrorBody, Unauthorized

__all__ = ["add_handlers", "documented", "error_response", "not_found"]

_TYPES = {
    400: "BadRequestError",
    403: "ForbiddenError",
    404: "NotFoundError",
    409: "ConflictError",
    413: "ContentTooLargeError",
    500: "InternalServerError",
    503: "ServiceUnavailableError",
}
_MEANINGS = {
    400: "The request is malformed, or asks for something this server cannot run.",
    403: "This server allows no changes, or the admin key is missing or wrong.",
    404: "There is nothing of that name.",
    409: "The name is taken or in use, or the device tables are full.",
    413: "The body is larger than max_spec_bytes.",
    503: "Retiring probes still hold capacity, or another change is in progress; see Retry-After.",
}
_RETRY_AFTER = {
    "Retry-After": {"description": "Seconds to wait before trying again.", "schema": {"type": "integer"}}
}


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route with these errors, besides a wrong API key and anything unforeseen."""
    described: dict[int | str, dict[str, Any]] = {
        401: {"model": Unauthorized, "description": "The API key is missing or wrong (--api-key)."}
    }
    for status in statuses:
        described[status] = {"model": ErrorBody, "description": _MEANINGS[status]}
        if status == 503:
            described[status]["headers"] = _RETRY_AFTER
    return {**described, "default": {"model": ErrorBody, "description": "Any other error."}}


def not_found(kind: str, name: str, there_are: str) -> LifecycleError:
    """No probe or preset of that name."""
    return LifecycleError(404, "name", f"no {kind} named {name[:80]!r}; available: {there_are}")


def error_response(
    status: int, message: str, field: str | None, retry_after: int | None = None
) -> JSONResponse:
    """One error. Lone surrogates are replaced: the answer must be UTF-8."""
    error = {
        "message": _encodable(message),
        "type": _TYPES.get(status) or f"{HTTPStatus(status).phrase.replace(' ', '')}Error",
        "param": None if field is None else _encodable(field),
        "code": status,
    }
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    return JSONResponse({"error": error}, status, headers)


def add_handlers(app: FastAPI) -> None:
    """Turn what the routes raise into responses."""

    async def lifecycle_error(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, LifecycleError)
        return error_response(error.status, str(error), error.field, error.retry_after)

    async def spec_error(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, SpecError)
        return error_response(400, str(error), error.field)

    app.add_exception_handler(LifecycleError, lifecycle_error)
    app.add_exception_handler(SpecError, spec_error)


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()
