"""How a request becomes the arguments of a handler: FastAPI's declarations, read the short way.

FastAPI serves the general case: threads, generators, forms, response models. A handler here is a
coroutine that takes path, headers, one query model, one JSON body and the owner, and returns a
`Response`; solving that much directly takes half the time of a request. Signatures, the OpenAPI
document and the hook stay FastAPI's own ("Custom Request and APIRoute class").
"""

import asyncio
import json
import re
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from functools import lru_cache
from typing import Annotated, Any
from urllib.parse import parse_qs

from fastapi import Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.routing import BaseRoute
from starlette.types import Receive, Scope, Send

from engines import DEADLINE
from errors import ApiError, InvalidInput, Unavailable, from_pydantic
from fields import NO_USER, WORDS

MAX_BODY = 256 * 1024  # bytes
# Bytes of a body past which uvicorn stops reading, and goes on, to see the client go, only when
# somebody asks for more.
_AT_ONCE = 64 * 1024
_USUAL = 256  # bytes of a query string that is remembered
_FEW = 200  # tasks that are asked for at most
_LONG = 128 * 1024  # bytes of an answer
_CALLERS = 1024  # of whom each address remembers whether their answers are long
_LONG_AT_ONCE = 2  # of one caller
_LONG_TOGETHER = 4  # of all callers of an address
_GRACE = 0.8  # seconds past its deadline in which a statement has ended and said why


class _IdText(StringConvertor):
    """Any text but `stats` and `changes`: their other methods are 405, not about a strange id."""

    regex = f"(?!(?:{WORDS})(?:/|$))[^/]+"


class _UserText(StringConvertor):
    """Any text but the words of an address, where there is nothing."""

    regex = f"(?!(?:{NO_USER})/)[^/]+"


register_url_convertor("id", _IdText())
register_url_convertor("user", _UserText())


class TaskRoute(APIRoute):
    """A route whose handler is a coroutine that returns a `Response`."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI) without the exit stacks that FastAPI keeps for generators."""
        if scope["method"] not in (self.methods or ()):
            return await super().handle(scope, receive, send)  # 405
        response = await self.answer(Request(scope, receive))
        await response(scope, receive, send)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what FastAPI calls with a request."""
        body: Any = self.body_field and self.body_field.field_info
        # FastAPI keeps apart what tells the kinds of a body from one another.
        kind: Any = body and Annotated[body.annotation, body]
        reader: TypeAdapter[Any] = TypeAdapter(kind)
        taken = _Arguments(self.dependant)
        turns = _Turns() if self.methods == {"GET"} and "{id" not in self.path else None

        # `given` was read already: an agent's call.
        async def answer(request: Request, **given: Any) -> Response:
            errors: list[dict[str, str]] = []
            arguments = await taken.read(request, errors) | given
            if self.body_field and body and not given:
                raw = await read_bytes(request)
                read = _read_body(self.to_json(request, raw), reader, errors) if raw else None
                arguments[self.body_field.name] = read
                if not raw and body.is_required():
                    errors.append({"field": "body", "message": "is required", "in": "body"})
            if errors:
                raise InvalidInput(errors)
            call: Coroutine[Any, Any, Response] = self.endpoint(**arguments)
            if turns and all(
                getattr(each, "limit", _FEW + 1) > _FEW for each in arguments.values()
            ):
                call = turns.take(request, call)
            return await call

        self.answer = answer
        return answer

    def to_json(self, request: Request, raw: bytes) -> bytes:
        """Return the body of a request as JSON, or raise 415."""
        given = dict(request.scope["headers"]).get(b"content-type", b"")
        media_type = given.partition(b";")[0].strip().lower()
        if media_type != b"application/json" and not media_type.endswith(b"+json"):
            raise ApiError(415, "The Content-Type must be application/json.")
        return raw


class ShortWay:
    """Finds the route of a request by one look at each path: FastAPI asks route after route."""

    def __init__(self, routes: Iterable[BaseRoute]) -> None:
        self._paths: dict[re.Pattern[str], dict[str, TaskRoute]] = {}
        for route in routes:
            if isinstance(route, TaskRoute):
                methods = self._paths.setdefault(route.path_regex, {})
                methods.update(dict.fromkeys(route.methods or (), route))

    def find(self, scope: Scope) -> TaskRoute | None:
        """Return the route that answers, which finds its path parameters in the scope; or None."""
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        for pattern, methods in self._paths.items():
            if match := pattern.match(path):
                scope["path_params"] = match.groupdict()
                return methods.get(scope["method"])
        return None


class _Caller:
    """Whether the answers to somebody are long, once that is known, and whose turn it is."""

    __slots__ = ("long", "turn")

    def __init__(self) -> None:
        self.long: bool | None = None
        self.turn = asyncio.Semaphore(_LONG_AT_ONCE)


class _Turns:
    """Has callers wait for each other where answers are long: those take memory, and the loop.

    How long they are to somebody, the first ones tell; the next ones wait for that.
    """

    def __init__(self) -> None:
        # By a hash of path and token.
        self._caller = lru_cache(maxsize=_CALLERS)(lambda _: _Caller())
        self._together = asyncio.Semaphore(_LONG_TOGETHER)

    async def take(self, request: Request, call: Coroutine[Any, Any, Response]) -> Response:
        """Return the answer, made in its turn; 503 if that is too late."""
        headers = request.scope["headers"]
        token = next((value for name, value in headers if name == b"authorization"), b"")
        caller = self._caller(hash((request.scope["path"], token)))
        if caller.long is None and not caller.turn.locked():  # nobody to wait for
            async with caller.turn:
                response = await call
        else:
            response = await (call if caller.long is False else self._in_turn(caller, call))
        # A short answer, or a 304, says nothing of the next: that may be to another question.
        caller.long = caller.long or len(response.body) > _LONG
        return response

    async def _in_turn(self, caller: _Caller, call: Coroutine[Any, Any, Response]) -> Response:
        try:
            async with asyncio.timeout(DEADLINE + _GRACE):
                async with caller.turn:
                    if caller.long is None:
                        return await call
                    if caller.long:
                        async with self._together:
                            return await call
                return await call
        except TimeoutError:
            detail = "Too much is asked for at once; ask for fewer tasks at a time, or later."
            raise Unavailable(detail) from None
        finally:
            call.close()


class _Arguments:
    """What a handler takes: what FastAPI has found out from its signature, looked up once."""

    def __init__(self, it: Dependant) -> None:
        self._paths = [(each.name, each.alias, each.validate) for each in it.path_params]
        self._queries: list[tuple[str, Any]] = [
            (each.name, each.field_info.annotation) for each in it.query_params
        ]
        self._headers = [
            (each.name, each.alias, each.alias.lower().encode(), each.validate)
            for each in it.header_params
        ]
        self._request = it.request_param_name
        self._others: list[tuple[Any, Any, _Arguments]] = [
            (each.name, each.call, _Arguments(each)) for each in it.dependencies
        ]

    async def read(self, request: Request, errors: list[dict[str, str]]) -> dict[str, Any]:
        """Return the arguments by name; add what is wrong with them to `errors`."""
        scope = request.scope
        arguments: dict[str, Any] = {}
        for name, alias, validate in self._paths:
            arguments[name], wrong = validate(scope["path_params"][alias])
            if wrong:
                errors += from_pydantic("path", wrong, alias)
        for name, model in self._queries:
            arguments[name] = _read_query(model, scope["query_string"], errors)
        for name, alias, header, validate in self._headers:
            # httptools leaves the blanks after a value.
            given = [value.strip() for key, value in scope["headers"] if key == header]
            value, wrong = validate(b", ".join(given).decode("latin-1")) if given else (None, [])
            arguments[name] = value
            if wrong:
                errors += from_pydantic("header", wrong, alias)
        if self._request:
            arguments[self._request] = request
        for name, call, its in self._others:
            known = len(errors)
            values = await its.read(request, errors)
            if name and len(errors) == known:
                arguments[name] = await call(**values)
        return arguments


def _read_query(model: type[BaseModel], raw: bytes, errors: list[dict[str, str]]) -> Any:
    try:
        return (_model_of if len(raw) <= _USUAL else _model_of.__wrapped__)(model, raw)
    except ValidationError as invalid:
        errors += from_pydantic("query", invalid.errors(include_url=False))


@lru_cache(maxsize=1024)  # clients send the same few again and again
def _model_of(model: type[BaseModel], raw: bytes) -> BaseModel:
    # What is not UTF-8 becomes lone surrogates, which no type of a parameter takes.
    query = raw.decode("utf-8", "surrogateescape")
    given = parse_qs(query, keep_blank_values=True, errors="surrogateescape")
    once = {name: values if len(values) > 1 else values[0] for name, values in given.items()}
    return model.model_validate(once)


def _read_body(raw: bytes, reader: TypeAdapter[Any], errors: list[dict[str, str]]) -> Any:
    try:
        return reader.validate_json(raw)
    except ValidationError as invalid:
        found = invalid.errors(include_url=False)
        if found[0]["type"] != "json_invalid":
            errors += from_pydantic("body", found)
            return None
    try:  # a lone surrogate is no JSON to Pydantic; read by Python, its field has a name
        return reader.validate_python(json.loads(raw.decode()))
    except ValidationError as invalid:
        errors += from_pydantic("body", invalid.errors())
    except (ValueError, RecursionError):
        raise ApiError(400, "The body is not valid JSON in UTF-8.") from None


async def read_bytes(request: Request) -> bytes:
    """Return the body, or raise 413 once too much is announced or has come; 415 if compressed."""
    given = dict(request.scope["headers"])
    if given.get(b"content-encoding", b"identity").lower() != b"identity":
        headers = {"Accept-Encoding": "identity"}  # RFC 9110 section 15.5.16
        raise ApiError(415, "The body must not be compressed.", headers=headers)
    body = b""
    size = int(given.get(b"content-length", 0))  # as announced
    more = True
    while more and size <= MAX_BODY:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ApiError(400, "The client went away before the end of the body.")
        body += message.get("body", b"")
        size = max(size, len(body))
        more = message.get("more_body", False)
    if size > MAX_BODY:
        raise ApiError(413, f"The body is larger than {MAX_BODY // 1024} KiB.")
    if len(body) > _AT_ONCE:
        with suppress(TimeoutError):
            async with asyncio.timeout(0):
                await request.receive()
    return body
