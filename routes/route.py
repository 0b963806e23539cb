"""How a request becomes the arguments of a handler: FastAPI's declarations, read the short way.

FastAPI serves the general case: threads, generators, forms, response models. A handler here is a
coroutine that takes path, headers, one JSON body and the owner, and returns a `Response`; solving
that much directly takes half the time of a request (in process, with a stand-in for the database:
80 µs for a get instead of 152). Signatures and the OpenAPI document stay FastAPI's own.
"""

import json
from typing import Any

from fastapi import Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError
from starlette._utils import get_route_path
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

from errors import ApiError, InvalidInput, from_pydantic

MAX_BODY = 256 * 1024  # bytes


class _IdText(StringConvertor):
    """Any text but `stats`: the other methods of that path are 405, not about a strange id."""

    regex = "(?!stats(?:/|$))[^/]+"


register_url_convertor("id", _IdText())


class TaskRoute(APIRoute):
    """A route whose handler is a coroutine that returns a `Response`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.app = self._serve
        if self.body_field:
            body: Any = self.body_field.field_info.annotation
            self._body: TypeAdapter[Any] = TypeAdapter(body)
            self._body_required = self.body_field.field_info.is_required()

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Return whether the path, and then the method, is this route's."""
        if scope["type"] != "http" or not (found := self.path_regex.match(get_route_path(scope))):
            return Match.NONE, {}
        taken = {"endpoint": self.endpoint, "path_params": found.groupdict(), "route": self}
        served = scope["method"] in (self.methods or ())
        return (Match.FULL if served else Match.PARTIAL), taken

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        errors: list[dict[str, str]] = []
        arguments = await _arguments(self.dependant, request, errors)
        if self.body_field:
            arguments[self.body_field.name] = await self._read_body(request, errors)
        if errors:
            raise InvalidInput(errors)
        response = await self.endpoint(**arguments)
        await response(scope, receive, send)

    async def _read_body(self, request: Request, errors: list[dict[str, str]]) -> Any:
        raw = await _bytes(request)
        if not raw:
            if self._body_required:
                errors.append({"field": "body", "message": "is required", "in": "body"})
            return None
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        raw = self.to_json(raw, media_type)
        try:
            return self._body.validate_json(raw)
        except ValidationError as invalid:
            if invalid.errors(include_url=False)[0]["type"] != "json_invalid":
                errors += from_pydantic("body", invalid.errors())
                return None
        try:  # a lone surrogate is no JSON to Pydantic; read by Python, its field has a name
            return self._body.validate_python(json.loads(raw.decode()))
        except ValidationError as invalid:
            errors += from_pydantic("body", invalid.errors())
        except (ValueError, RecursionError):
            raise ApiError(400, "The body is not valid JSON in UTF-8.") from None

    def to_json(self, raw: bytes, media_type: str) -> bytes:
        """Return a body as JSON, or raise 415 for what is none."""
        if media_type != "application/json" and not media_type.endswith("+json"):
            raise ApiError(415, "The Content-Type must be application/json.")
        return raw


async def _arguments(
    dependant: Dependant, request: Request, errors: list[dict[str, str]]
) -> dict[str, Any]:
    """Return the arguments that `dependant` declares; add what is wrong with them to `errors`."""
    arguments: dict[str, Any] = {}
    for field in dependant.path_params:
        value, wrong = field.validate(request.path_params[field.alias])
        arguments[field.name] = value
        if wrong:
            errors += from_pydantic("path", wrong, field.alias)
    for field in dependant.header_params:
        name = field.alias.lower().encode()
        given = [value for header, value in request.scope["headers"] if header == name]
        value, wrong = field.validate(b", ".join(given).decode("latin-1")) if given else (None, [])
        arguments[field.name] = value
        if wrong:
            errors += from_pydantic("header", wrong, field.alias)
    if dependant.request_param_name:
        arguments[dependant.request_param_name] = request
    for sub in dependant.dependencies:
        known = len(errors)
        values = await _arguments(sub, request, errors)
        if sub.call and sub.name and len(errors) == known:
            arguments[sub.name] = await sub.call(**values)
    return arguments


async def _bytes(request: Request) -> bytes:
    """Return the body, or raise 413 once more than `MAX_BODY` of it has come."""
    body = b""
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ApiError(400, "The client went away before the end of the body.")
        body += message.get("body", b"")
        if len(body) > MAX_BODY:
            raise ApiError(413, f"The body is larger than {MAX_BODY // 1024} KiB.")
        more = message.get("more_body", False)
    return body
