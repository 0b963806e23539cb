"""The OpenAPI document behind the page at `/docs`.

FastAPI writes what handlers and schemas declare. This module adds what follows from that by rule:
statuses and headers of every call, and the parameters of a list as `filters.py` reads them. That
happens when the document is first asked for, not in a request.

`python docs.py` writes the copy that the repository keeps, `openapi.json`.
"""

import json
import sys
from functools import cache
from pathlib import Path
from typing import Any, Final

import uvicorn
from fastapi import FastAPI

from errors import ApiError, InvalidInput, Unavailable, content, field_error, title
from filters import FIELDS, IMPOSSIBLE, MAX_PAGE, PAGING, SORTABLE
from schemas import MAX_ID

Json = dict[str, Any]

_DESCRIPTION: Final = """\
Tasks at two addresses that behave the same: `/api/tasks` has those of the current user,
`/api/{user_id}/tasks` those of the user in the path.

- Paths work with and without a last slash; HEAD works wherever GET does.
- An error is always a `Problem` (`application/problem+json`, RFC 9457): show its `detail`. So is
  the 404 of an unknown path, and the 405, with `Allow`, of a method that a path does not have.
- Every answer carries `X-Request-ID`; send one, and it is taken over.
- Timestamps are RFC 3339 in UTC and end in `Z`.
- Unknown body fields and query parameters are refused with 422: a misspelt one does no harm."""

# What the app is made with.
ABOUT: Final[Json] = {
    "title": "Tasks",
    "version": "1.0.0",
    "description": _DESCRIPTION,
    "contact": {"name": "Whoever runs this service"},
    "license_info": {"name": "MIT", "identifier": "MIT"},
    "servers": [{"url": "/", "description": "This service"}],
    "openapi_tags": [
        {
            "name": "tasks",
            "description": "The tasks of the current user: of the token's `sub` when auth is on, "
            "else of `DEFAULT_USER_ID`.",
        },
        {"name": "user tasks", "description": "The tasks of the user in the path."},
        {"name": "service", "description": "Whether the service works."},
    ],
    "redoc_url": None,
    "static_url": "/docs/files",
    "swagger_ui_parameters": {
        "tryItOutEnabled": True,
        "displayRequestDuration": True,
        "persistAuthorization": True,
        "defaultModelsExpandDepth": 0,
    },
}

# The headers of answers: what they say, and an example.
_HEADERS: Final[dict[str, tuple[str, str | int]]] = {
    "ETag": ("The version of what is answered.", '"7-1"'),
    "Link": (
        "The pages beside this one, `next` and `prev`, where there are any (RFC 8288).",
        '<http://localhost:8000/api/tasks?limit=50&offset=50>; rel="next"',
    ),
    "X-Total-Count": ("How many match, on all pages.", 120),
    "Location": ("The new task.", "http://localhost:8000/api/tasks/7"),
    "Idempotency-Replayed": ("There when an earlier call with this key made the task.", "true"),
    "Retry-After": ("Seconds to wait.", 1),
    "X-Request-ID": (
        "Names this request in the log; taken from the request when that has a sane one.",
        "5f3c1f0d9b7a4e0c8d2b6a1e4c7f9a3b",
    ),
    "WWW-Authenticate": ("How to authenticate.", "Bearer"),
}

# An example of each refusal.
_REFUSALS: Final = (
    ApiError(400, "The body is not valid JSON in UTF-8."),
    ApiError(401, "A valid bearer token is required.", headers={"WWW-Authenticate": "Bearer"}),
    ApiError(403, "The token is for another user."),
    ApiError(404, "There is no task 7."),
    ApiError(412, "Task 7 has changed since; read it again."),
    ApiError(413, "The body is larger than 256 KiB."),
    ApiError(415, "The Content-Type must be application/json."),
    InvalidInput([field_error("body", "title", "must be 1 to 200 characters")]),
    ApiError(500, "Something went wrong on the server; it has been logged."),
    Unavailable(),
)


def install(app: FastAPI, *, auth_on: bool) -> None:
    """Complete the document that `app` serves at `/openapi.json`."""
    generate = app.openapi
    app.openapi = cache(lambda: _completed(generate(), auth_on))  # type: ignore[method-assign]


def address() -> str:
    """Return the URL of the page, as far as uvicorn's command line tells where it listens."""
    if "uvicorn" not in sys.argv[0]:
        return "/docs"
    # In a worker too: `multiprocessing` hands its arguments on.
    given = uvicorn.main.make_context("uvicorn", sys.argv[1:], resilient_parsing=True).params
    if given["uds"] or given["fd"] or not given["port"]:
        return "/docs"
    scheme = "https" if given["ssl_certfile"] else "http"
    host = {"0.0.0.0": "localhost", "::": "localhost"}.get(given["host"], given["host"])  # noqa: S104
    return f"{scheme}://{host}:{given['port']}{given['root_path']}/docs"


def _completed(generated: Json, auth_on: bool) -> Json:
    """Return FastAPI's document with all that this module knows."""
    document: Json = json.loads(json.dumps(generated), object_hook=_plain)
    components = document["components"]
    task, *bodies = (components["schemas"][name] for name in ("Task", "TaskCreate", "TaskUpdate"))
    for body in bodies:
        for field, schema in body["properties"].items():
            schema["description"] = task["properties"][field]["description"]
    components["parameters"] = _parameters()
    components["headers"] = {
        name: {
            "description": text,
            "schema": {"type": "integer" if isinstance(example, int) else "string"},
            "example": example,
        }
        for name, (text, example) in _HEADERS.items()
        if auth_on or name != "WWW-Authenticate"
    }
    components["responses"] = {
        _name(error.status_code): _refusal(error)
        for error in _REFUSALS
        if auth_on or error.status_code not in (401, 403)
    }
    components["responses"][_name(304)] = {
        "description": "The answer that you have is still good.",
        "headers": _headers("ETag", "X-Request-ID"),
    }
    document["security"] = []
    if auth_on:
        scheme = {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}
        components["securitySchemes"] = {"token": scheme}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            _complete_operation(path, method, operation, auth_on)
    return document


def _plain(schema: Json) -> Json:
    """Return a schema without its title, which repeats its name, and its default.

    Generators of TypeScript take a field with a default for one that must be sent.
    """
    if isinstance(schema.get("title"), str) and schema.keys() & {"type", "anyOf", "$ref"}:
        return {key: value for key, value in schema.items() if key not in ("title", "default")}
    return schema


def _complete_operation(path: str, method: str, operation: Json, auth_on: bool) -> None:
    """Add to an operation its id, parameters, statuses and headers."""
    name = operation["summary"].replace(" ", "")  # FastAPI's "List Tasks", of `list_tasks`
    if "{user_id}" in path:
        name = name.replace("Task", "UserTask")
    operation["operationId"] = name[0].lower() + name[1:]
    tasks = path.startswith("/api/")
    paged = method == "get" and path.endswith("/tasks")
    parameters = operation.setdefault("parameters", [])
    conditions = {each["name"] for each in parameters if each["in"] == "header"}
    if path.endswith(("/tasks", "/stats")) and method != "post":
        names = [name for name in _parameters() if paged or name not in ("sort", *PAGING)]
        parameters += [_ref("parameters", name) for name in names]
    sent = {
        "ETag": conditions and method != "delete",  # which leaves nothing to ask for
        "Link": paged,
        "X-Total-Count": paged,
        "Location": method == "post",
        "Idempotency-Replayed": method == "post",
        "X-Request-ID": True,
    }
    has_body = "requestBody" in operation
    met = {
        304: "If-None-Match" in conditions,
        400: has_body,
        401: tasks and auth_on,
        403: tasks and auth_on and "{user_id}" in path,
        404: "{id}" in path,
        412: "If-Match" in conditions,
        413: has_body,
        415: has_body,
        422: tasks,
        500: tasks,
        503: tasks or path == "/ready",
    }
    status, success = next(iter(operation["responses"].items()))
    success["headers"] = _headers(*(name for name, applies in sent.items() if applies))
    operation["responses"] = {status: success} | {
        str(status): _ref("responses", _name(status)) for status, applies in met.items() if applies
    }
    if tasks and auth_on:
        operation["security"] = [{"token": []}]


def _refusal(error: ApiError) -> Json:
    example = content(error, str(_HEADERS["X-Request-ID"][1]))
    media_type = {"schema": _ref("schemas", "Problem"), "example": example}
    return {
        "description": title(error.status_code),
        "headers": _headers(*(error.headers or ()), "X-Request-ID"),
        "content": {"application/problem+json": media_type},
    }


@cache
def _parameters() -> Json:
    """Return the parameters of a list."""
    schemas = {field: reader.json_schema() for field, reader in FIELDS.items()}
    schemas["completed"] = flag = {"type": "boolean"}
    text = schemas["title"]
    day, instant, empty = schemas["due_date"]["anyOf"]
    bound = {"anyOf": [day, instant]}
    key = f"-?({'|'.join(SORTABLE)})"
    known: dict[str, tuple[str, Json]] = {
        "status": (
            "Whether completed.",
            {"type": "string", "enum": ["all", "pending", "completed"]},
        ),
        "q": ("Text in title or description, in upper or lower case.", text),
        "priority": ("Repeat it for any of several.", _array(schemas["priority"])),
        "tag": ("Repeat it for tasks that have all of several.", _array(schemas["tags"])),
        "overdue": ("Due before now and not completed; a day is over at its end in UTC.", flag),
        "due_before": ("Due before this day or instant.", bound),
        "due_after": ("Due after this day or instant.", bound),
        "sort": (
            "Comma list of fields, `-` for descending: `-priority,due_date`. Without it the newest "
            "come first. Nulls are last both ways; titles sort case-folded; equals go by `id` in "
            "the direction of the last field; a day goes before the instants of that day.",
            {"type": "string", "pattern": f"^({key}(,{key})*)?$"},
        ),
        "limit": (
            f"How many at most; {MAX_PAGE} when not given.",
            {"type": "integer", "minimum": 1, "maximum": MAX_PAGE},
        ),
        "offset": ("How many to skip.", {"type": "integer", "minimum": 0, "maximum": MAX_ID}),
        "id": ("Repeat it for several tasks.", _array(schemas["id"])),
    }
    for field, schema in schemas.items():
        exact = {"anyOf": [instant, empty]} if field.endswith("_at") else schema
        limit = bound if "anyOf" in schema else schema
        for name, relation, value in (
            (field, "equal to", exact),
            (f"{field}_gte", "at least", limit),
            (f"{field}_lte", "at most", limit),
            (f"{field}_ne", "other than", exact),
            (f"{field}_like", "containing", text),
        ):
            if name not in IMPOSSIBLE:
                known.setdefault(name, (f"`{field}` {relation} this.", value))
    return {
        name: {"name": name, "in": "query", "description": description, "schema": schema}
        for name, (description, schema) in known.items()
    }


def _array(items: Json) -> Json:
    return {"type": "array", "items": items}


def _name(status: int) -> str:
    return title(status).replace(" ", "")


def _ref(kind: str, name: str) -> Json:
    return {"$ref": f"#/components/{kind}/{name}"}


def _headers(*names: str) -> Json:
    return {name: _ref("headers", name) for name in names}


if __name__ == "__main__":
    from main import create_app
    from settings import Settings

    document = create_app(Settings.model_construct()).openapi()
    copy = Path(__file__).parent / "openapi.json"
    copy.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
