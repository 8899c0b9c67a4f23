"""Every bound of the gateway in one place: sizes in bytes, times in seconds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds of one gateway process."""

    body: int = 8 << 20
    """The largest request body; images in messages are the largest that are common."""
    answer: int = 64 << 20
    """The largest answer of an engine that is held whole."""
    in_flight: int = 8192
    """Requests under way; one more is answered 429."""
    retrievals: int = 1024
    """Searches under way or waiting; one more is answered 429."""
    searches: int = 64
    """Requests to the vector store under way; the others wait for their turn."""
    seconds: float = 600.0
    """The longest that an answer may take."""
    retrieval_seconds: float = 30.0
    """The longest that a search may take, the wait for its turn included."""
    connect_seconds: float = 3.0
    """The longest that opening a connection to an engine may take."""
    idle_seconds: float = 4.0
    """An unused connection to an engine is closed after that: below the 5 s of uvicorn, which serves vLLM."""
    idle_connections: int = 1024
    """Unused connections kept to one engine."""
    unread: int = 256 << 10
    """What an engine may be ahead of a slow client before its connection is paused."""
    grace_seconds: float = 15.0
    """How long requests under way may take after SIGTERM."""


LIMITS = Limits()
