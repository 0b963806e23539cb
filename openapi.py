"""The OpenAPI document behind the page at `/docs`: what FastAPI cannot say of the code by itself.

Routes declare what they answer: `responses=refusals(404, 412)`, `headers("ETag")`. What those names
stand for is here, and what holds for every call. Nothing of it happens in a request.
"""

import json
import sys
from functools import cache
from typing import Any, Final

import uvicorn
from fastapi import FastAPI
from fastapi.routing import APIRoute

from errors import SORRY, ApiError, Problem, Unauthorized, Unavailable, content, invalid, title

Json = dict[str, Any]
OPEN: Final[Json] = {"security": []}  # a call that needs no token

_DESCRIPTION: Final = """\
Tasks at two addresses that behave the same: `/api/tasks` has those of the current user,
`/api/{user_id}/tasks` those of the user in the path.

- Paths work with and without a last slash; HEAD works wherever GET does.
- An error is always a `Problem` (`application/problem+json`, RFC 9457): show its `detail`. So is
  the 404 of an unknown path, the 405, with `Allow`, of a method that a path does not have, the 431
  of headers over 64 KiB, and, with auth off, the 403 of a page that `CORS_ORIGINS` does not name.
- Every answer carries `X-Request-ID`; send one, and it is taken over.
- Timestamps are RFC 3339 in UTC and end in `Z`.
- Unknown body fields are refused with 422, and so are query parameters where a call takes any: a
  misspelt one does no harm.
- Whatever takes filters also takes `FIELD`, `FIELD_gte`, `_lte`, `_ne` and `_like` of nearly every
  field of a task, and `search` for `q`; lists also json-server's `_sort`, `_order`, `_start`,
  `_end`, `_limit` and `_page`."""


def operation_id(route: APIRoute) -> str:
    """Return the name that generated clients give a call: `listTasks`, `listUserTasks`."""
    name = route.name.title().replace("_", "")
    if "{user_id" in route.path:
        name = name.replace("Task", "UserTask")
    return name[0].lower() + name[1:]


# What the app is made with.
ABOUT: Final[Json] = {
    "title": "Tasks",
    "version": "1.0.0",
    "description": _DESCRIPTION,
    "contact": {"name": "Whoever runs this service"},
    "generate_unique_id_function": operation_id,
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
        "defaultModelsExpandDepth": 0,
    },
}

# The headers of answers: what they say, and an example.
HEADERS: Final[dict[str, tuple[str, str | int]]] = {
    "ETag": ("The version of what is answered.", '"4503599627370496"'),
    "Link": (
        "The pages beside this one, `next` and `prev`, where there are any (RFC 8288); of a task "
        "that repeats and was completed, the `next` one.",
        '<http://localhost:8000/api/tasks?limit=50&before=7>; rel="next"',
    ),
    "X-Total-Count": ("How many match, on all pages.", 120),
    "Location": ("The new task.", "http://localhost:8000/api/tasks/7"),
    "Idempotency-Replayed": (
        "There when an earlier call with this key, or `uid`, made the task.",
        "true",
    ),
    "Retry-After": ("Seconds to wait.", 1),
    "X-Request-ID": (
        "Names this request in the log; taken from the request when that has a sane one.",
        "5f3c1f0d9b7a4e0c8d2b6a1e4c7f9a3b",
    ),
    "WWW-Authenticate": ("How to authenticate.", 'Bearer realm="tasks"'),
}

# An example of each refusal.
_REFUSALS: Final = (
    ApiError(400, "The body is not valid JSON in UTF-8."),
    Unauthorized(),
    ApiError(403, "The token is for another user."),
    ApiError(404, "There is no task 7."),
    invalid("body", "uid", "is that of another task", 409),
    ApiError(410, "What has changed since then is no longer known; begin again at 0."),
    ApiError(412, "The task has changed since; read it again."),
    ApiError(413, "The body is larger than 256 KiB."),
    ApiError(415, "The Content-Type must be application/json."),
    ApiError(
        429,
        "Too many tries failed for this e-mail; wait before the next.",
        headers={"Retry-After": "1"},
    ),
    invalid("body", "title", "must be 1 to 200 characters"),
    ApiError(500, SORRY),
    Unavailable(),
)


def refusals(*statuses: int) -> dict[int | str, Json]:
    """Return what a route declares of the failures that it answers with."""
    return {status: _ref("responses", _name(status)) for status in statuses}


def headers(*names: str) -> Json:
    """Return what a route declares of the headers of its answer."""
    return {"headers": {name: _ref("headers", name) for name in names}}


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
    path = f"{given['root_path'].strip('/')}/docs".lstrip("/")
    return f"{scheme}://{host}:{given['port']}/{path}"


def _completed(generated: Json, auth_on: bool) -> Json:
    """Return FastAPI's document with all that this module knows, as far as its calls use that."""
    document: Json = json.loads(json.dumps(generated), object_hook=_plain)
    components = document["components"]
    schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas = components["schemas"] | schema.pop("$defs") | {"Problem": schema}
    components["schemas"] = schemas
    for body in (schemas["TaskCreate"], schemas["TaskUpdate"]):
        for field, schema in body["properties"].items():
            schema["description"] = schemas["Task"]["properties"][field]["description"]
    components["headers"] = {
        name: {
            "description": text,
            "schema": {"type": "integer" if isinstance(example, int) else "string"},
            "example": example,
        }
        for name, (text, example) in HEADERS.items()
        if auth_on or name != "WWW-Authenticate"
    }
    calls = json.dumps(document["paths"])
    components["responses"] = {
        _name(error.status_code): _refusal(error)
        for error in _REFUSALS
        if f'/responses/{_name(error.status_code)}"' in calls
    } | {
        _name(304): {
            "description": "The answer that you have is still good.",
            **headers("ETag", "X-Request-ID"),
        }
    }
    document["security"] = [{"token": []}] if auth_on else []
    if auth_on:
        scheme: Json = {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}
        scheme["description"] = "A token, without the word `Bearer`; its `sub` is the user."
        if "/api/auth/login" in document["paths"]:  # relative, so it holds behind a path prefix
            flow = {"tokenUrl": "api/auth/login", "scopes": {}}
            scheme = {"type": "oauth2", "flows": {"password": flow}}
            scheme["description"] = "`username` is the e-mail; leave client id and secret empty."
            told = "People sign up and log in; a token is sent as `Authorization: Bearer`."
            document["tags"].append({"name": "accounts", "description": told})
        components["securitySchemes"] = {"token": scheme}
    components["parameters"] = {}
    for operations in document["paths"].values():
        for operation in operations.values():
            _complete(operation, components["parameters"])
    return document


def _plain(schema: Json) -> Json:
    """Return a schema without its title, which repeats its name, and its default.

    Generators of TypeScript take a field with a default for one that must be sent.
    """
    if isinstance(schema.get("title"), str) and schema.keys() & {"type", "anyOf", "$ref"}:
        return {key: value for key, value in schema.items() if key not in ("title", "default")}
    return schema


def _complete(operation: Json, shared: Json) -> None:
    """Leave out what is not for the document; write each parameter once for all calls."""
    kept = []
    for parameter in operation.get("parameters", ()):
        # The others are taken, but only named in the text: 65 on one call help nobody.
        if "description" in parameter:
            parameter["schema"].pop("description", None)
            name = f"{parameter['in']}-{parameter['name']}"
            while shared.setdefault(name, parameter) != parameter:
                name += "-2"  # of that name there are several
            kept.append(_ref("parameters", name))
    operation["parameters"] = kept
    for answer in operation["responses"].values():
        if "$ref" in answer:
            del answer["description"]  # which the component has
        else:
            answer.setdefault("headers", {}).update(headers("X-Request-ID")["headers"])


def _refusal(error: ApiError) -> Json:
    example = content(error, str(HEADERS["X-Request-ID"][1]))
    media_type = {"schema": _ref("schemas", "Problem"), "example": example}
    return {
        "description": title(error.status_code),
        "content": {"application/problem+json": media_type},
        **headers(*(error.headers or ()), "X-Request-ID"),
    }


def _name(status: int) -> str:
    return title(status).replace(" ", "")


def _ref(kind: str, name: str) -> Json:
    return {"$ref": f"#/components/{kind}/{name}"}
