"""Errors in Qdrant's words and with Qdrant's status codes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class StoreError(Exception):
    """A request that cannot be answered: an HTTP status and the sentence that goes into `status.error`."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def malformed(message: str) -> StoreError:
    """The body is not what the route reads (400)."""
    return StoreError(400, f"Format error in JSON body: {message}")


def invalid(field: str, message: str) -> StoreError:
    """A value of the right type that is out of its range (422)."""
    return StoreError(422, f"Validation error in JSON body: [{field}: {message}]")


def wrong_input(message: str) -> StoreError:
    """A request that contradicts the collection (400)."""
    return StoreError(400, f"Wrong input: {message}")


def not_found(message: str) -> StoreError:
    """A collection, alias or point that is not there (404)."""
    return StoreError(404, f"Not found: {message}")


def unsupported(what: str) -> StoreError:
    """A part of Qdrant's API that this store leaves to a real server (400)."""
    return StoreError(
        400,
        f"Bad request: the embedded vector store does not implement {what}; set QDRANT_URL to the address of a Qdrant server",
    )


def disk_full(message: str) -> StoreError:
    """Not enough space for a write (507)."""
    return StoreError(507, f"Insufficient storage: {message}")


# How the engine's messages begin, and what a Qdrant server answers to them.
_ENGINE_ERRORS = (
    ("Vector dimension error", 400, "Wrong input: "),
    ("Not existing vector name error", 400, "Wrong input: "),
    ("Wrong usage of", 400, "Wrong input: "),
    ("Validation failed", 400, "Bad request: "),
    ("No range index", 400, "Bad request: "),
    ("No appropriate index", 400, "Bad request: "),
    ("No point with id", 404, "Not found: "),
    ("Index required but not found", 400, "Bad request: "),
)


def from_engine(error: BaseException) -> StoreError:
    """What a Qdrant server would answer where Edge raises `error`.

    Edge raises ValueError and TypeError for values it cannot read, and a plain Exception with a telling message otherwise; a
    panic of the engine is a BaseException.
    """
    message = str(error)
    if isinstance(error, ValueError | TypeError):
        return malformed(message.partition("\n")[0])
    for start, status, prefix in _ENGINE_ERRORS:
        if message.startswith(start):
            return StoreError(status, prefix + message)
    if "No space left on device" in message or "Quota exceeded" in message:
        return disk_full(f"{message}; free some space, nothing that was acknowledged is lost")
    return StoreError(500, f"Service internal error: {message}")


@contextmanager
def reading_request() -> Iterator[None]:
    """Turn what goes wrong on a body of another shape into 400."""
    try:
        yield
    except KeyError as error:
        raise malformed(f"missing field {error}") from error
    except (AttributeError, IndexError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise malformed(str(error).partition("\n")[0]) from error
