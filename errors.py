"""Every failure that a client can meet, and how each becomes `application/problem+json` (RFC 9457).

    HTTPException
    └── ApiError                what this service raises
        ├── Unauthorized  401   says how to authenticate
        ├── InvalidInput  422   names the field and the rule
        └── Unavailable   503   the database is away or overloaded; carries Retry-After

`HANDLERS` gives them, and all that FastAPI and Starlette raise, to one writer.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final, Literal

from fastapi import Request, Response
from pydantic import BaseModel, Field
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.routing import Match

NOWHERE = (
    "There is nothing at this path; tasks are at /api/tasks and at /api/USER_ID/tasks, and with "
    "AUTH_ACCOUNTS on, log-in is at /api/auth/login."
)
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
SORRY = "Something went wrong on the server; it has been logged."
ONE, MANY = "<task>", "<tasks>"  # in the place of an error, which shall not show them
_MOST_ERRORS = 20  # in one answer: it shall not be larger than what it answers
FieldErrors = Sequence[Mapping[str, str]]
# Python 3.11 still knows the first two by the names of RFC 7231, and no log's word for the last.
_TITLES = {413: "Content Too Large", 422: "Unprocessable Content", 499: "Client Closed Request"}
_PLAIN = {
    "missing": "is required",
    "extra_forbidden": "is not a field that can be set",
    "model_attributes_type": "must be a JSON object",
    "string_unicode": "must be text without lone surrogates",
    "list_type": "must be a valid array",  # which Pydantic calls a list where it is no JSON
    "int_from_float": "must be a whole number",
    "int_parsing": "must be a whole number",
    "url_scheme": "must begin with http:// or https://",
}


class FieldError(BaseModel):
    """One rule that the request broke."""

    field: str
    message: str
    in_: Literal["body", "path", "query", "header"] = Field(alias="in")


class Problem(BaseModel):
    """An error, as RFC 9457 writes it; `detail` and `message` are the same plain sentence."""

    type: str
    title: str
    status: int
    detail: str
    message: str
    errors: list[FieldError]
    request_id: str


class ApiError(HTTPException):
    """A failure with its HTTP status, one plain sentence, and the fields at fault."""

    errors: FieldErrors = ()


class Unauthorized(ApiError):  # noqa: N818
    """401: what is wrong with a token is nobody's business, so it says the same of every one."""

    def __init__(self, detail: str = "A valid bearer token is required.") -> None:
        challenge = 'Bearer realm="tasks"'  # never without a parameter (RFC 6750 section 3)
        super().__init__(401, detail, headers={"WWW-Authenticate": challenge})


class InvalidInput(ApiError):  # noqa: N818
    """422, or 409 for what is somebody else's: one or more `{"field", "message", "in"}`."""

    def __init__(self, errors: FieldErrors, status: int = 422) -> None:
        self.errors = errors[:_MOST_ERRORS]
        detail = "; ".join(f"{error['field']}: {error['message']}" for error in self.errors)
        super().__init__(status, detail)


class Unavailable(ApiError):  # noqa: N818
    """503: try again soon."""

    def __init__(self, detail: str = "The database is not available right now.") -> None:
        super().__init__(503, detail, headers={"Retry-After": "1"})


class Conflict(Exception):  # noqa: N818
    """The database refused a statement for what is there already; nothing was done."""


def title(status: int) -> str:
    """Return the name of a status (RFC 9110)."""
    return _TITLES.get(status) or HTTPStatus(status).phrase


def rule(error: Mapping[str, Any]) -> str:
    """Return the rule that a Pydantic error stands for, to follow the name of the field."""
    if plain := _PLAIN.get(error["type"]):
        return plain
    if error["type"] in ("rule", "value_error"):  # said by us: it may begin with a part's name
        return str(error["msg"]).removeprefix("Value error, ")
    message = re.sub(r"^(Input|String|Value|List|Number|Data)\b.*? should ", "must ", error["msg"])
    message = message.partition(" after validation")[0]  # that of how many, and how many there are
    return message[:1].lower() + message[1:]


def invalid(where: str, field: str, message: str, status: int = 422) -> InvalidInput:
    """Return the refusal of one field; `where` is body, path, query or header."""
    return InvalidInput([{"field": field, "message": message, "in": where}], status)


def from_pydantic(
    where: str, errors: Iterable[Mapping[str, Any]], name: str = ""
) -> list[dict[str, str]]:
    """Return the entries for Pydantic's errors about body or query, or about a parameter `name`."""
    entries = []
    for error in errors:
        field = ".".join(str(part) for part in error["loc"] if part not in (ONE, MANY)) or where
        message = rule(error)
        if where == "query" and error["loc"]:
            field = str(error["loc"][0])
            if error["type"] == "extra_forbidden":
                message = "is not a parameter of this call, or another spelling of it is there too"
            # What is empty is wrong itself.
            elif isinstance(error["input"], list) and "" not in error["input"]:
                message = "must be given only once"
        # An unknown field is named by the client: keep the answer short and valid Unicode.
        field = field.encode("utf-8", "backslashreplace").decode()[:100]
        entries.append({"field": name or field, "message": message, "in": where})
    return entries


def content(error: ApiError, request_id: str) -> dict[str, Any]:
    """Return the members of the problem that `error` is (RFC 9457 section 3)."""
    return {
        "type": "about:blank",
        "title": title(error.status_code),
        "status": error.status_code,
        "detail": error.detail,
        "message": error.detail,
        "errors": error.errors,
        "request_id": request_id,
    }


def problem(request: Request, error: ApiError) -> Response:
    """Return the answer for `error`."""
    body = to_json(content(error, request.scope.get("request_id", "")))
    return Response(body, error.status_code, error.headers, "application/problem+json")


def _allowed_methods(request: Request) -> str:
    asked = ({**request.scope, "method": method} for method in METHODS)
    routes = request.app.routes
    methods = {it["method"] for it in asked if any(r.matches(it)[0] is Match.FULL for r in routes)}
    if not methods or "GET" in methods:  # what has no route is a file of the page at `/docs`
        methods |= {"GET", "HEAD"}
    return ", ".join(sorted(methods | {"OPTIONS"}))


async def _http_exception(request: Request, exc: HTTPException) -> Response:
    if isinstance(exc, ApiError):
        return problem(request, exc)
    if exc.status_code == 405:
        allow = {"Allow": _allowed_methods(request)}
        if request.method == "OPTIONS":
            return Response(status_code=204, headers=allow)
        detail = f"{request.method} is not possible here; {allow['Allow']} are."
        return problem(request, ApiError(405, detail, headers=allow))
    detail = NOWHERE if exc.status_code == 404 else exc.detail
    return problem(request, ApiError(exc.status_code, detail))


async def _unexpected(_: Request, error: Exception) -> Response:
    raise error  # which the envelope answers


# What the app is made with.
HANDLERS: Final = {HTTPException: _http_exception, Exception: _unexpected}
