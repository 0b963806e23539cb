"""Agents: the Model Context Protocol at `POST /mcp`, where a tool is a call of the REST API."""

import json
from functools import cache
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field, ValidationError

from auth import Owners
from door import Cors
from errors import ApiError, InvalidInput, Unauthorized, from_pydantic
from fields import PLAIN_DECIMAL
from routes.answers import json_answer
from routes.route import TaskRoute, read_bytes
from schemas import Body, Completion, Task, TaskCreate, TaskQuery, TaskUpdate

Json = dict[str, Any]
MODERN: Final = "2026-07-28"  # each request says all about itself
LEGACY: Final = ("2025-11-25", "2025-06-18", "2025-03-26")  # after a handshake; the newest first
_META: Final = [f"io.modelcontextprotocol/{it}" for it in ("protocolVersion", "clientCapabilities")]
_SERVER: Final = {"name": "tasks", "title": "Tasks", "version": "1.0.0"}
_DONE: Final = {"resultType": "complete", "_meta": {"io.modelcontextprotocol/serverInfo": _SERVER}}
_CACHED: Final = {"ttlMs": 300_000, "cacheScope": "public", **_DONE}
_ABOUT: Final = {"capabilities": {"tools": {}}, "serverInfo": _SERVER, **_CACHED}
_METADATA: Final = ".well-known/oauth-protected-resource"  # RFC 9728
_USER_ID: Final = {"type": "string", "description": "Whose tasks, if not the usual user's."}
_ONE: Final = {"task_id": {"type": ["integer", "string"], "description": "Its `id` or `uid`."}}


class _Listing(TaskQuery, defer_build=True):  # at the first call: it takes 10 ms
    limit: Annotated[int, PLAIN_DECIMAL] = Field(100, ge=1, le=100, description="How many at most.")


class _Completed(Completion):
    completed: bool = Field(True, description="`false` undoes it.")


# What a tool takes beside the fields of a model, as which argument the route's handler takes that
# model, and what the agent is told.
TOOLS: Final[dict[str, tuple[Json, str, type[BaseModel], str]]] = {
    "add_task": ({}, "new", TaskCreate, "Add one task. Returns it, with its `id`."),
    "list_tasks": ({}, "wanted", _Listing, "Find tasks: all filters hold. `offset` turns pages."),
    "get_task": (_ONE, "", Body, "Read one task. Returns it."),
    "update_task": (_ONE, "change", TaskUpdate, "Change what is given; null clears. Returns it."),
    "complete_task": (_ONE, "body", _Completed, "Complete one task, or undo it. Links the next."),
    "delete_task": (_ONE, "", Body, "Move one task to the trash, for 30 days. Returns it."),
}


class _Call(BaseModel, strict=True):  # without an id a notification (JSON-RPC 2.0, section 4)
    jsonrpc: Literal["2.0"]
    id: int | str = ""
    method: str
    params: Json = {}


def build_mcp(owners: Owners, issuer: str | None, cors: Cors, *of: APIRouter) -> list[TaskRoute]:
    """Return `/mcp`; `of` has the routes of the current user's tasks and of a named one's."""
    routes: list[Json] = [{getattr(it, "name", ""): it for it in mount.routes} for mount in of]

    async def admit(request: Request) -> bytes:
        page, host = (request.headers.get(name, "") for name in ("origin", "host"))
        if page and not cors.is_allowed_origin(page) and not page.endswith(f"://{host}"):
            raise ApiError(403, "Pages of this origin may not call: name it in CORS_ORIGINS.")
        try:
            await owners.current(request)
        except Unauthorized as error:
            place = f'resource_metadata="{request.base_url}{_METADATA}/mcp"'
            error.headers = {"WWW-Authenticate": f"Bearer {place}"}
            raise
        return await read_bytes(request)

    async def speak(request: Request) -> Response:
        try:
            call = _Call.model_validate_json(agents.to_json(request, await admit(request)))
        except ValidationError as invalid:
            code = -32700 if invalid.errors()[0]["type"] == "json_invalid" else -32600
            return json_answer(*_error(400, code, "The body must be one JSON-RPC 2.0 message."))
        if "id" not in call.model_fields_set:
            return Response(status_code=202)  # no notification matters here
        content, status = await answer(request, call)
        return json_answer({"jsonrpc": "2.0", "id": call.id, **content}, status)

    async def answer(request: Request, call: _Call) -> tuple[Json, int]:
        given = call.params.get("_meta")
        meta = given if isinstance(given, dict) else {}
        said = [request.headers.get(f"mcp-{it}") for it in ("protocol-version", "method", "name")]
        version = meta.get(_META[0], said[0] or LEGACY[-1])
        modern = version == MODERN
        name = call.params.get("name") if call.method == "tools/call" else said[2]
        if version not in (MODERN, *LEGACY):
            known = {"supported": [MODERN, *LEGACY], "requested": str(version)}
            return _error(400, -32022, "Unsupported protocol version", data=known)
        if modern and not meta.keys() >= {*_META}:
            return _error(400, -32602, f"params._meta must have {' and '.join(_META)}.")
        if modern and said != [version, call.method, name]:
            return _error(400, -32020, "The protocol's headers must say what the body says.")
        if call.method == "tools/call":
            if name in [*TOOLS] and isinstance(given := call.params.get("arguments", {}), dict):
                return {"result": await use(request, name, given)}, 200
            told = f"Needed: one of {', '.join(TOOLS)}, and an object."
            return _error(400 if modern else 200, -32602, told)
        agreed = next((it for it in LEGACY if it == call.params.get("protocolVersion")), LEGACY[0])
        results = {
            ("tools/list", modern): {"tools": [_tool(it, owners) for it in TOOLS], **_CACHED},
            ("server/discover", True): {"supportedVersions": [MODERN, *LEGACY], **_ABOUT},
            ("initialize", False): {"protocolVersion": agreed, **_ABOUT},
            ("ping", False): {},
        }
        if (call.method, modern) not in results:
            return _error(404 if modern else 200, -32601, "There is no such method.")
        return {"result": results[call.method, modern]}, 200

    # The route gets neither `If-Match` nor `Idempotency-Key`: those are not of the tool's call.
    async def use(request: Request, name: str, given: Json) -> Json:
        more, argument, model, _ = TOOLS[name]
        ref = given.pop("task_id", None) if more else None
        path = {"user_id": given.pop("user_id", None), "id": str(ref) if type(ref) is int else ref}
        route = routes[path["user_id"] is not None][name.replace("add", "create")]
        headers = [it for it in request.scope["headers"] if it[0] in (b"host", b"authorization")]
        scope = {**request.scope, "path_params": path, "headers": headers, "query_string": b""}
        try:
            read = model.model_validate(given)
            done = await route.answer(Request(scope), **({argument: read} if argument else {}))
        except ValidationError as invalid:
            wrong = from_pydantic("body" if route.body_field else "query", invalid.errors())
            return _said(InvalidInput(wrong).detail, isError=True)
        except ApiError as error:  # a path has `id` where a tool has `task_id`
            return _said("task_" * error.detail.startswith("id: ") + error.detail, isError=True)
        text, link = done.body.decode(), done.headers.get("link")
        if name == "list_tasks":
            text, link = f'{{"tasks":{text}}}', None
        return _said(text, link, structuredContent=json.loads(text))

    async def name_issuer(request: Request) -> Response:
        servers = {"authorization_servers": [issuer]} if issuer else {}
        return json_answer({"resource": f"{request.base_url}mcp", **servers})

    paths = (f"/{_METADATA}", f"/{_METADATA}/mcp") if owners.tokens else ()
    agents = TaskRoute("/mcp", speak, methods=["POST"], include_in_schema=False)
    return [agents, *(TaskRoute(it, name_issuer, include_in_schema=False) for it in paths)]


def _error(status: int, code: int, message: str, **data: Json) -> tuple[Json, int]:
    return {"jsonrpc": "2.0", "error": {"code": code, "message": message, **data}}, status


def _said(*texts: str | None, **more: Any) -> Json:
    return {"content": [{"type": "text", "text": it} for it in texts if it], **more, **_DONE}


@cache
def _tool(name: str, owners: Owners) -> Json:
    more, _, model, about = TOOLS[name]
    fields: Json = {**more} if owners.tokens else {"user_id": _USER_ID, **more}
    schema = model.model_json_schema() | {"title": name, "description": about}
    for field, rules in schema["properties"].items():
        if model is not _Listing:
            rules.setdefault("description", Task.model_fields[field].description)
        if rules.get("description"):  # else it is one of the spellings that are not shown
            fields[field] = {k: v for k, v in rules.items() if k != "title" and v not in (None, [])}
    schema |= {"properties": fields, "required": [*schema.get("required", []), *more]}
    reads, destroys = name in ("list_tasks", "get_task"), name in ("update_task", "delete_task")
    hints = {"readOnlyHint": reads, "destructiveHint": destroys, "openWorldHint": False}
    return {"name": name, "description": about, "inputSchema": schema, "annotations": hints}
