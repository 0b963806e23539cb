"""The OpenAPI document and the page at `/docs`.

FastAPI writes what the signatures say: paths, bodies, schemas. This module adds the rest, once for
both mounts: names, words and examples, every status and header, and the parameters of a list as
`filters.py` reads them. All that happens when the document is first asked for, not in a request.

`python docs.py` writes the copy that the repository keeps, `openapi.json`.
"""

import json
import sys
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, NamedTuple

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse
from starlette.exceptions import HTTPException

from errors import title
from filters import FIELDS, IMPOSSIBLE, MAX_PAGE, OPERATORS, SORTABLE
from models import PRIORITIES
from schemas import MAX_ID, Problem

_COPY: Final = Path(__file__).parent / "openapi.json"
_MOUNTS: Final = {"/api/tasks": "tasks", "/api/{user_id}/tasks": "user tasks"}

_DESCRIPTION: Final = """\
Tasks at two addresses that behave the same: `/api/tasks` has those of the current user,
`/api/{user_id}/tasks` those of the user in the path.

- Paths work with and without a last slash; HEAD works wherever GET does.
- An error is always a `Problem` (`application/problem+json`, RFC 9457): show its `detail`. So is
  the 404 of an unknown path, and the 405, with `Allow`, of a method that a path does not have.
- Every answer carries `X-Request-ID`; send one, and it is taken over.
- Timestamps are RFC 3339 in UTC and end in `Z`.
- Unknown body fields and query parameters are refused with 422: a misspelt one does no harm."""

_TAGS: Final = {
    "tasks": "The tasks of the current user: of the token's `sub` when auth is on, else of "
    "`DEFAULT_USER_ID`.",
    "user tasks": "The tasks of the user in the path.",
    "service": "Whether the service works.",
}

_TASK: Final = {
    "id": 7,
    "url": "http://localhost:8000/api/tasks/7",
    "user_id": "demo",
    "title": "Buy milk",
    "description": None,
    "completed": False,
    "completed_at": None,
    "priority": "high",
    "due_date": "2026-11-21",
    "tags": ["shopping"],
    "order": None,
    "created_at": "2026-11-20T18:30:00.123456Z",
    "updated_at": "2026-11-20T18:30:00.123456Z",
}
_NEW: Final = {name: _TASK[name] for name in ("title", "priority", "due_date", "tags")}
_DONE: Final = _TASK | {
    "completed": True,
    "completed_at": "2026-11-21T07:15:00.654321Z",
    "updated_at": "2026-11-21T07:15:00.654321Z",
}

_FIELD_TEXTS: Final = {
    "id": "Set by the server; never used again.",
    "url": "This task, under the address that it was asked through.",
    "user_id": "The owner: from the path or the token.",
    "title": "Trimmed; 1 to 200 characters after that.",
    "description": "At most 10,000 characters.",
    "completed": "`false` unless it is sent.",
    "completed_at": "When `completed` last turned true; `null` while it is false.",
    "priority": "`none` unless it is sent; sorts by urgency.",
    "due_date": "A day (`2026-11-21`), which stays a day, or an instant with a UTC offset "
    '(`2026-11-21T10:00:00+01:00`), which comes back in UTC. `""` means `null`.',
    "tags": "At most 20, trimmed, no repeats; their order is kept.",
    "order": "A number for your own order, as of drag and drop.",
    "created_at": "Set by the server.",
    "updated_at": "Set by the server.",
}


class Operation(NamedTuple):
    """What the signature of a handler does not say."""

    name: str
    summary: str
    description: str
    answer: str
    example: Any  # of the answer
    headers: tuple[str, ...] = ()  # of the answer
    parameters: tuple[str, ...] = ()  # beside those in the path
    refusals: tuple[int, ...] = ()  # statuses beside 422, 500 and 503
    body: Any = None  # an example


_TEXT: Final = {"type": "string", "pattern": FIELDS["title"].json_schema()["pattern"]}


def _field_filters() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield name, description and schema of every `FIELD` and `FIELD_operator` of a list."""
    words = dict(zip(OPERATORS, ("at least", "at most", "other than", "containing"), strict=True))
    for field, reader in FIELDS.items():
        for operator in ("eq", *OPERATORS):
            schema = _value(field, operator, reader.json_schema())
            if (field, operator) in IMPOSSIBLE or (field, operator) == ("priority", "eq"):
                continue
            if (field, operator) == ("id", "eq"):
                yield "id", "Repeat it for several tasks.", _any_of(schema)
            else:
                name = field if operator == "eq" else f"{field}_{operator}"
                yield name, f"`{field}` {words.get(operator, 'equal to')} this.", schema


def _value(field: str, operator: str, schema: dict[str, Any]) -> dict[str, Any]:
    if operator == "like" or field in ("user_id", "title", "description"):
        return _TEXT
    if field == "completed":
        return {"type": "boolean"}
    if "anyOf" in schema:  # a day, an instant, or the empty text that stands for null
        day, instant, empty = schema["anyOf"]
        if operator in ("gte", "lte"):
            return {"anyOf": [day, instant]}
        return schema if field == "due_date" else {"anyOf": [instant, empty]}
    return schema


def _any_of(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": schema}


def _parameter(where: str, name: str, text: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": where, "description": text, "schema": schema}


_BOUND: Final = {"anyOf": FIELDS["due_date"].json_schema()["anyOf"][:2]}
_SORT_KEY: Final = f"-?({'|'.join(SORTABLE)})"
_ENTITY_TAGS: Final = {
    "anyOf": [
        {"const": "*"},
        {"type": "string", "pattern": '^(W/)?"[!#-~]*"( *, *(W/)?"[!#-~]*")*$'},
    ]
}
_PRIORITY: Final = {"type": "string", "enum": list(PRIORITIES)}


def _query(*parameters: tuple[str, str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: _parameter("query", name, text, schema) for name, text, schema in parameters}


_EVERYDAY: Final = _query(
    ("status", "Whether completed.", {"type": "string", "enum": ["all", "pending", "completed"]}),
    ("q", "Text in title or description, in upper or lower case.", _TEXT),
    ("priority", "Repeat it for any of several.", _any_of(_PRIORITY)),
    ("tag", "Repeat it for tasks that have all of several.", _any_of(FIELDS["tags"].json_schema())),
    (
        "overdue",
        "Due before now and not completed; a day is over when it is over in UTC.",
        {"type": "boolean"},
    ),
    ("due_before", "Due before this day or instant.", _BOUND),
    ("due_after", "Due after this day or instant.", _BOUND),
)
_PAGE: Final = _query(
    (
        "sort",
        "Comma list of fields, `-` for descending: `-priority,due_date`. Without it the newest "
        "come first. Nulls are last both ways; titles sort case-folded; equals go by `id` in the "
        "direction of the last field; a day goes before the instants of that day.",
        {"type": "string", "pattern": f"^({_SORT_KEY}(,{_SORT_KEY})*)?$"},
    ),
    (
        "limit",
        f"How many at most; {MAX_PAGE} when not given.",
        {"type": "integer", "minimum": 1, "maximum": MAX_PAGE},
    ),
    ("offset", "How many to skip.", {"type": "integer", "minimum": 0, "maximum": MAX_ID}),
)
_BY_FIELD: Final = _query(*_field_filters())
_FILTERS: Final = _EVERYDAY | _BY_FIELD
_HEADER_PARAMETERS: Final = {
    name: _parameter("header", name, text, schema)
    for name, text, schema in (
        (
            "Idempotency-Key",
            "Makes the call safe to repeat: with the same key and body it answers the task that it "
            "made before, as that is now. Deleting the task frees its key.",
            {"type": "string", "pattern": "^[!-~]{1,255}$"},
        ),
        (
            "If-Match",
            "The `ETag` of the task as you know it, or several: if it has changed since, nothing "
            "happens and the answer is 412.",
            _ENTITY_TAGS,
        ),
        (
            "If-None-Match",
            "The `ETag` of an answer you have, or several: if it is still good, the answer is an "
            "empty 304.",
            _ENTITY_TAGS,
        ),
    )
}
_PARAMETERS: Final = _EVERYDAY | _PAGE | _BY_FIELD | _HEADER_PARAMETERS
_PATH_PARAMETERS: Final = {
    "id": ("The task.", _TASK["id"]),
    "user_id": ("The user: any text of 1 to 128 characters without `/`.", _TASK["user_id"]),
}

_HEADERS: Final = {
    "ETag": ("The version of what is answered.", {"type": "string"}, '"7-1"'),
    "Link": (
        "The pages beside this one, `next` and `prev`, where there are any (RFC 8288).",
        {"type": "string"},
        '<http://localhost:8000/api/tasks?limit=50&offset=50>; rel="next"',
    ),
    "X-Total-Count": ("How many match, on all pages.", {"type": "integer", "minimum": 0}, 120),
    "Location": ("The new task.", {"type": "string", "format": "uri"}, _TASK["url"]),
    "Idempotency-Replayed": (
        "There when the task was made by an earlier call with this key.",
        {"type": "string", "const": "true"},
        "true",
    ),
    "Retry-After": ("Seconds to wait.", {"type": "integer", "minimum": 0}, 1),
    "X-Request-ID": (
        "Names this request in the log; taken from the request when that has a sane one.",
        {"type": "string"},
        "5f3c1f0d9b7a4e0c8d2b6a1e4c7f9a3b",
    ),
    "WWW-Authenticate": ("How to authenticate.", {"type": "string"}, "Bearer"),
}


_TITLE: Final = {"field": "title", "message": "must be 1 to 200 characters", "in": "body"}
# The answers that are a `Problem`: name, detail and headers.
_REFUSALS: Final[dict[int, tuple[str, str, tuple[str, ...]]]] = {
    400: ("Malformed", "The body is not valid JSON in UTF-8.", ()),
    401: ("Unauthorized", "A valid bearer token is required.", ("WWW-Authenticate",)),
    403: ("Forbidden", "The token is for another user.", ()),
    404: ("NotFound", "There is no task 7.", ()),
    412: ("Changed", "Task 7 has changed since; read it again.", ()),
    413: ("TooLarge", "The body is larger than 256 KiB.", ()),
    415: ("NotJson", "The Content-Type must be application/json.", ()),
    422: ("Invalid", f"title: {_TITLE['message']}", ()),
    500: ("Unexpected", "Something went wrong on the server; it has been logged.", ()),
    503: ("Unavailable", "The database is not available right now.", ("Retry-After",)),
}
_BODY_REFUSALS: Final = (400, 413, 415)

_LIST_TEXT: Final = """\
Filters narrow the list; all of them must hold. json-server's other names work too: `search` for
`q`; `_sort` or `sort_by` with `_order` or `order` for `sort`; `_start`, `_end`, `_limit` and
`_page` for `limit` and `offset`."""
_MERGE_TEXT: Final = (
    "Changes the fields that are sent. One that is left out stays; `null` clears one that may be "
    "`null`. Read-only fields may be sent along and are ignored."
)
OPERATIONS: Final = {
    "GET ": Operation(
        "listTasks", "List tasks", _LIST_TEXT, "One page of tasks.", [_TASK],
        headers=("X-Total-Count", "Link", "ETag"),
        parameters=(*_EVERYDAY, *_PAGE, *_BY_FIELD, "If-None-Match"),
    ),
    "POST ": Operation(
        "createTask", "Create a task", "Only the title is required.", "The new task.", _TASK,
        headers=("Location", "ETag", "Idempotency-Replayed"),
        parameters=("Idempotency-Key",), refusals=_BODY_REFUSALS, body=_NEW,
    ),
    "PATCH ": Operation(
        "updateMatchingTasks", "Change every task that matches",
        "The same change to every task that the filters match, at once; without a filter, to all.",
        "How many tasks matched.", {"updated": 3},
        parameters=tuple(_FILTERS), refusals=_BODY_REFUSALS, body={"completed": True},
    ),
    "DELETE ": Operation(
        "deleteMatchingTasks", "Delete every task that matches",
        "Deletes every task that the filters match, at once; without a filter, all.",
        "How many tasks are gone.", {"deleted": 3}, parameters=tuple(_FILTERS),
    ),
    "GET /stats": Operation(
        "getTaskStats", "Count tasks", "Counts the tasks that the filters match.", "The counts.",
        {"total": 12, "completed": 4, "pending": 8, "overdue": 1},
        headers=("ETag",), parameters=(*_FILTERS, "If-None-Match"),
    ),
    "GET /{id}": Operation(
        "getTask", "Read a task", "", "The task.", _TASK,
        headers=("ETag",), parameters=("If-None-Match",), refusals=(404,),
    ),
    "PUT /{id}": Operation(
        "putTask", "Change a task (as PATCH)", f"{_MERGE_TEXT} The same as PATCH.",
        "The task as it is now.", _TASK, headers=("ETag",), parameters=("If-Match",),
        refusals=(404, 412, *_BODY_REFUSALS), body={"title": "Buy milk", "priority": "high"},
    ),
    "PATCH /{id}": Operation(
        "updateTask", "Change a task", _MERGE_TEXT,
        "The task as it is now.", _TASK, headers=("ETag",), parameters=("If-Match",),
        refusals=(404, 412, *_BODY_REFUSALS), body={"priority": "high"},
    ),
    "DELETE /{id}": Operation(
        "deleteTask", "Delete a task", "To undo, create it again from the answer.",
        "The task as it last was.", _TASK, parameters=("If-Match",), refusals=(404, 412),
    ),
    "PATCH /{id}/complete": Operation(
        "completeTask", "Complete or toggle a task",
        "Without a body: completed turns into pending, and back. With one: completed is what it "
        "says, which is safe to repeat.",
        "The task as it is now.", _DONE, headers=("ETag",), parameters=("If-Match",),
        refusals=(404, 412, *_BODY_REFUSALS), body={"completed": True},
    ),
    "GET /health": Operation(
        "getHealth", "Is the process up?", "Asks nothing else.", "It is.", {"status": "ok"}
    ),
    "GET /ready": Operation(
        "getReadiness", "Can it serve?", "Whether the database answers and its schema is current.",
        "It can.", {"status": "ok"}, refusals=(503,),
    ),
}  # fmt: skip


def install(app: FastAPI, *, auth_on: bool) -> None:
    """Give `app` its document at `/openapi.json` and the page at `/docs`."""
    generate = app.openapi
    app.openapi = cache(lambda: _completed(generate(), auth_on))  # type: ignore[method-assign]
    package = find_spec("fastapi_offline")  # it brings the files of Swagger UI
    assert package
    assert package.submodule_search_locations
    files = Path(package.submodule_search_locations[0]) / "static"

    @app.get("/docs", include_in_schema=False)
    async def page(request: Request) -> Response:
        root = request.scope.get("root_path", "")
        return get_swagger_ui_html(
            openapi_url=f"{root}{app.openapi_url}",
            title=app.title,
            swagger_js_url=f"{root}/docs/swagger-ui-bundle.js",
            swagger_css_url=f"{root}/docs/swagger-ui.css",
            swagger_favicon_url=f"{root}/docs/favicon.png",
            swagger_ui_parameters={
                "tryItOutEnabled": True,
                "displayRequestDuration": True,
                "persistAuthorization": True,
                "defaultModelsExpandDepth": 0,
            },
        )

    @app.get("/docs/{name}", include_in_schema=False)
    async def asset(name: str) -> Response:
        if name not in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png"):
            raise HTTPException(404)
        return FileResponse(files / name, headers={"Cache-Control": "public, max-age=3600"})


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


def _completed(document: dict[str, Any], auth_on: bool) -> dict[str, Any]:
    """Return FastAPI's document with all that this module knows."""
    paths = {
        path: {method: _operation(path, method, operations[method], auth_on) for method in _METHODS
               if method in operations}
        for path, operations in sorted(document["paths"].items(), key=_place)
    }  # fmt: skip
    schemas = document["components"]["schemas"]
    used = {status for status in _REFUSALS if auth_on or status not in (401, 403)}
    components = {
        "schemas": _schemas(schemas | _problem_schemas()),
        "parameters": _PARAMETERS,
        "headers": {
            name: {"description": text, "schema": schema, "example": example}
            for name, (text, schema, example) in _HEADERS.items()
            if auth_on or name != "WWW-Authenticate"
        },
        "responses": {_REFUSALS[status][0]: _refusal(status) for status in sorted(used)}
        | {
            "NotModified": {
                "description": "The answer that you have is still good.",
                "headers": _header_refs("ETag", "X-Request-ID"),
            }
        },
    }
    if auth_on:
        scheme = {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}
        components["securitySchemes"] = {"token": scheme}
    info = {
        **document["info"],
        "description": _DESCRIPTION,
        "contact": {"name": "Whoever runs this service"},
        "license": {"name": "MIT", "identifier": "MIT"},
    }
    return {
        "openapi": document["openapi"],
        "info": info,
        "servers": [{"url": "/", "description": "This service"}],
        "security": [],
        "tags": [{"name": name, "description": text} for name, text in _TAGS.items()],
        "paths": paths,
        "components": components,
    }


_METHODS: Final = ("get", "post", "put", "patch", "delete")


def _place(item: tuple[str, Any]) -> tuple[int, int]:
    """Return where a path goes: a mount after the other, then as `OPERATIONS` has it."""
    mount, rest = _split(item[0])
    places = [key.partition(" ")[2] for key in OPERATIONS]
    return list(_TAGS).index(_MOUNTS.get(mount, "service")), places.index(rest)


def _split(path: str) -> tuple[str, str]:
    mount = next((mount for mount in _MOUNTS if path.startswith(mount)), "")
    return mount, path.removeprefix(mount)


def _operation(path: str, method: str, written: dict[str, Any], auth_on: bool) -> dict[str, Any]:
    mount, rest = _split(path)
    known = OPERATIONS[f"{method.upper()} {rest}"]
    of_user = "{user_id}" in mount
    refusals = (*known.refusals, 422, 500, 503) if mount else known.refusals
    if auth_on and mount:
        refusals = (401, 403, *refusals) if of_user else (401, *refusals)
    status = next(status for status in written["responses"] if status.startswith("2"))
    content = written["responses"][status]["content"]["application/json"]
    responses: dict[str, Any] = {
        status: {
            "description": known.answer,
            "headers": _header_refs(*known.headers, "X-Request-ID"),
            "content": {
                "application/json": {
                    "schema": _renamed(content["schema"]),
                    "example": _for_user(known.example) if of_user else known.example,
                }
            },
        }
    }
    if "If-None-Match" in known.parameters:
        responses["304"] = _ref("responses", "NotModified")
    responses |= {str(code): _ref("responses", _REFUSALS[code][0]) for code in sorted(refusals)}
    operation = {
        "tags": [_MOUNTS.get(mount, "service")],
        "summary": known.summary,
        "description": known.description or f"{known.summary}.",
        "operationId": known.name.replace("Task", "UserTask") if of_user else known.name,
        "parameters": [
            _path_parameter(given)
            for given in written.get("parameters", ())
            if given["in"] == "path"
        ]
        + [_ref("parameters", name) for name in known.parameters],
        "responses": responses,
    }
    if body := written.get("requestBody"):
        content = {"schema": body["content"]["application/json"]["schema"], "example": known.body}
        operation["requestBody"] = {**body, "content": {"application/json": content}}
    if auth_on and mount:
        operation["security"] = [{"token": []}]
    return operation


def _path_parameter(given: dict[str, Any]) -> dict[str, Any]:
    text, example = _PATH_PARAMETERS[given["name"]]
    schema = {key: value for key, value in given["schema"].items() if key != "title"}
    return {**given, "description": text, "schema": schema, "example": example}


def _refusal(status: int) -> dict[str, Any]:
    _, detail, headers = _REFUSALS[status]
    problem = {
        "type": "about:blank",
        "title": title(status),
        "status": status,
        "detail": detail,
        "message": detail,
        "errors": [_TITLE] if status == 422 else [],
        "request_id": _HEADERS["X-Request-ID"][2],
    }
    return {
        "description": title(status),
        "headers": _header_refs(*headers, "X-Request-ID"),
        "content": {
            "application/problem+json": {"schema": _ref("schemas", "Problem"), "example": problem}
        },
    }


def _problem_schemas() -> dict[str, Any]:
    schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    return {**schema.pop("$defs"), "Problem": schema}


def _schemas(written: dict[str, Any]) -> dict[str, Any]:
    """Return the schemas under their names in this API, with a text for every field of a task."""
    schemas = {}
    for name, schema in sorted(written.items()):
        if name not in ("HTTPValidationError", "ValidationError"):  # FastAPI's own errors
            schemas[_SCHEMA_NAMES.get(name, name)] = _renamed(_bare(schema))
    for name in ("Task", "TaskCreate", "TaskUpdate"):
        for field, schema in schemas[name]["properties"].items():
            schema["description"] = _FIELD_TEXTS[field]
    return schemas


_SCHEMA_NAMES: Final = {"TaskRead": "Task"}


def _bare(schema: dict[str, Any]) -> dict[str, Any]:
    """Return an object schema without titles, which repeat names, and defaults.

    Generators of TypeScript take a field with a default for one that must be sent; the defaults are
    in the descriptions.
    """
    properties = {
        name: {key: value for key, value in field.items() if key not in ("title", "default")}
        for name, field in schema["properties"].items()
    }
    rest = {key: value for key, value in schema.items() if key not in ("title", "properties")}
    return {**rest, "properties": properties}


def _renamed(schema: dict[str, Any]) -> dict[str, Any]:
    text = json.dumps({key: value for key, value in schema.items() if key != "title"})
    for old, new in _SCHEMA_NAMES.items():
        text = text.replace(f'schemas/{old}"', f'schemas/{new}"')
    return json.loads(text)  # type: ignore[no-any-return]


def _for_user(example: Any) -> Any:
    if isinstance(example, list):
        return [_for_user(each) for each in example]
    if "url" not in example:
        return example
    return {**example, "url": example["url"].replace("/api/", f"/api/{example['user_id']}/")}


def _ref(kind: str, name: str) -> dict[str, str]:
    return {"$ref": f"#/components/{kind}/{name}"}


def _header_refs(*names: str) -> dict[str, Any]:
    return {name: _ref("headers", name) for name in names}


if __name__ == "__main__":
    from main import create_app
    from settings import Settings

    document = create_app(Settings.model_construct()).openapi()
    _COPY.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
