"""What a client may send: the parts of a chat that are read here, and the `rag` object. The rest is the engine's to check."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from llmops_api.v1alpha1.rag_service import Retrieval, RetrievalMode
from llmops_services.gateway.errors import ApiError, bad_request
from llmops_services.gateway.prompting import Message

T = TypeVar("T", bound="RagOptions")


class RagOptions(BaseModel):
    """The `rag` object of a request: each field overrides the service's `retrieval` for this request."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True, strict=True)

    enabled: bool = True
    indexes: Annotated[tuple[str, ...], Field(min_length=1, max_length=16, strict=False)] | None = None
    top_k: Annotated[int, Field(ge=1, le=100)] | None = None
    mode: Annotated[RetrievalMode, Field(strict=False)] | None = None
    min_score: Annotated[float, Field(allow_inf_nan=False)] | None = None
    filter: Annotated[dict[Annotated[str, Field(min_length=1, max_length=200)], Any], Field(max_length=32)] = {}
    """Values by key of the payload, as `vectors.payload_filter`."""

    def over(self, service: Retrieval) -> Wish:
        """The options of the service with those of this request over them."""
        top_k = self.top_k if self.top_k is not None else service.top_k
        return Wish(
            names=self.indexes,
            mode=self.mode or service.mode,
            top_k=top_k,
            candidates=max(service.candidates, top_k),
            min_score=self.min_score if self.min_score is not None else float(service.min_score),
            where=self.filter,
        )


class RetrieveRequest(RagOptions):
    """The body of `POST /v1/retrieve`."""

    query: Annotated[str, Field(min_length=1, max_length=100_000, pattern=r"\S")]


@dataclass(frozen=True)
class Wish:
    """What is to be looked up for one request."""

    names: tuple[str, ...] | None
    mode: RetrievalMode
    top_k: int
    candidates: int
    min_score: float
    where: Mapping[str, Any]


@dataclass(frozen=True)
class ChatRequest:
    """A chat: `body` is what is sent on (with the engine's name of the model), without the `rag` object."""

    body: dict[str, Any]
    messages: list[Message]
    rag: RagOptions | None
    stream: bool
    max_tokens: int | None

    @classmethod
    def parse(cls, raw: bytes, *, names: tuple[str, ...], engine_model: str) -> ChatRequest:
        """Read a request body. Raises `ApiError` 400, or 404 for a model that is not called by one of `names`."""
        body = parse_object(raw)
        model = body.get("model")
        if not isinstance(model, str) or not model:
            raise bad_request(f"You must provide a model parameter: write {names[0]!r}.", "model")
        if model not in names:
            raise ApiError(
                404,
                f"The model {model!r} does not exist; this service is called {names[0]!r}.",
                code="model_not_found",
                param="model",
            )
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            raise bad_request("messages must be a list with at least one message.", "messages")
        for position, message in enumerate(messages):
            if not isinstance(message, dict) or not isinstance(message.get("role"), str):
                raise bad_request("A message is an object with a role and content.", f"messages[{position}]")
        stream = body.get("stream")
        if not (stream is None or isinstance(stream, bool)):
            raise bad_request("stream must be true or false.", "stream")
        rag = body.pop("rag", None)
        body["model"] = engine_model
        longest = body.get("max_completion_tokens", body.get("max_tokens"))
        return cls(
            body=body,
            messages=messages,
            rag=None if rag is None else rag_options(RagOptions, rag, "rag"),
            stream=bool(stream),
            max_tokens=longest if isinstance(longest, int) and longest > 0 else None,
        )


def parse_object(raw: bytes) -> dict[str, Any]:
    """A JSON object. Raises `ApiError` 400."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise bad_request(f"The request body is not JSON: {error}.", code="invalid_json") from error
    if not isinstance(body, dict):
        raise bad_request("The request body must be a JSON object.")
    return body


def rag_options(kind: type[T], value: object, where: str) -> T:
    """Check options. Raises `ApiError` 400 that names the field."""
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in (where, first["loc"][0] if first["loc"] else "") if part)
        message = "there is no such field" if first["type"] == "extra_forbidden" else first["msg"]
        raise bad_request(f"{field or 'body'}: {message}.", field or None) from error
