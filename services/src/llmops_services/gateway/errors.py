"""Errors as OpenAI's clients expect them."""

from __future__ import annotations

import orjson


class ApiError(Exception):
    """Ends a request with `status` and a body in OpenAI's shape; `retry_after` (seconds) becomes the header of that name."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.code, self.param = status, message, kind, code, param
        self.retry_after = retry_after

    def body(self) -> bytes:
        """The JSON that the client reads."""
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return orjson.dumps({"error": error})

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The headers that go with the status."""
        headers = [(b"content-type", b"application/json")]
        if self.retry_after is not None:
            headers.append((b"retry-after", str(self.retry_after).encode()))
        return headers


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """The client's mistake, in the field `param`."""
    return ApiError(400, message, param=param, code=code)


def unavailable(message: str, code: str, *, retry_after: int = 1) -> ApiError:
    """Something behind the gateway does not answer now; the same request may work in `retry_after` seconds."""
    return ApiError(503, message, kind="service_unavailable", code=code, retry_after=retry_after)


def timed_out(message: str) -> ApiError:
    """An answer that took too long."""
    return ApiError(504, message, kind="timeout", code="timeout")
