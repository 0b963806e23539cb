"""Agents: the Model Context Protocol at `POST /mcp`, over streamable HTTP without sessions.

A tool is a call of the REST API: the route of that call checks the arguments and does the work.
"""

import asyncio
import json
from collections.abc import Callable
from functools import cache
from typing import Any, Final, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ValidationError
from starlette.routing import Route

from auth import Owners
from errors import ApiError, InvalidInput, Unauthorized, field_error
from routes.answers import json_answer
from routes.route import TaskRoute, read_bytes
from schemas import Body, Completion, Task, TaskCreate, TaskQuery, TaskUpdate

Json = dict[str, Any]
MODERN: Final = "2026-07-28"  # each request says all about itself
LEGACY: Final = ("2025-11-25", "2025-06-18", "2025-03-26")  # after a handshake; the newest first
SUPPORTED: Final = [MODERN, *LEGACY]
_META: Final = "io.modelcontextprotocol/"
_NEEDED: Final = (f"{_META}protocolVersion", f"{_META}clientCapabilities")
_SERVER: Final = {"name": "tasks", "title": "Tasks", "version": "1.0.0"}
_DONE: Final = {"resultType": "complete", "_meta": {f"{_META}serverInfo": _SERVER}}
_CACHED: Final = {"ttlMs": 300_000, "cacheScope": "public", **_DONE}
_ABOUT: Final = {"capabilities": {"tools": {}}, "serverInfo": _SERVER, **_CACHED}
_PASSED_ON: Final = (b"host", b"authorization", b"content-type")  # and nothing conditional
_METADATA: Final = ".well-known/oauth-protected-resource"  # RFC 9728
_USER_ID: Final = {"type": "string", "description": "Whose tasks, if not the usual user's."}
_TASK_ID: Final = {"type": ["integer", "string"], "description": "The task's `id` or `uid`."}
_SCALAR: Final = (str, int, float)  # and so true and false
_LIMIT: Final = {"description": "How many at most.", "maximum": 100, "default": 100}
# The argument that is needed, what the others are, and what a model is told.
TOOLS: Final[dict[str, tuple[str, type[BaseModel], str]]] = {
    "add_task": ("title", TaskCreate, "Add one task. Returns it, with its `id`."),
    "list_tasks": ("", TaskQuery, "Find tasks: all filters hold. After a full page use `offset`."),
    "get_task": ("task_id", Body, "Read one task. Returns it."),
    "update_task": ("task_id", TaskUpdate, "Change the given fields of one task. Returns it."),
    "complete_task": ("task_id", Completion, "Complete one task, or undo it. Links the next."),
    "delete_task": ("task_id", Body, "Move one task to the trash, for 30 days. Returns it."),
}


class Call(BaseModel, strict=True):
    """A request or, without an id, a notification, and no batch (JSON-RPC 2.0, section 4)."""

    jsonrpc: Literal["2.0"]
    id: int | str = ""
    method: str
    params: Json = {}


def build_mcp_routes(
    owners: Owners, issuer: str | None, allows: Callable[[str], bool], *mounts: APIRouter
) -> list[Route]:
    """Return `/mcp`; `mounts` have the current user's tasks and a named one's."""
    routes: list[Json] = [{getattr(it, "name", ""): it for it in mount.routes} for mount in mounts]
    auth_on = owners.tokens is not None

    async def speak(request: Request) -> Response:
        origin, host = (request.headers.get(name, "") for name in ("origin", "host"))
        if origin and not allows(origin) and not origin.endswith(f"://{host}"):
            raise ApiError(403, "Pages of this origin may not call: name it in CORS_ORIGINS.")
        try:
            await owners.current(request)
        except Unauthorized as error:
            where = f"{request.base_url}{_METADATA}/mcp"
            error.headers = {"WWW-Authenticate": f'Bearer resource_metadata="{where}"'}
            raise
        raw = routes[0]["create_task"].to_json(request, await read_bytes(request))
        try:
            call = Call.model_validate_json(raw)
        except ValidationError as invalid:
            code = -32700 if invalid.errors()[0]["type"] == "json_invalid" else -32600
            return json_answer(*_error(400, code, "The body must be one JSON-RPC 2.0 message."))
        if "id" not in call.model_fields_set:
            return Response(status_code=202)  # no notification matters here
        content, status = await answer(request, call)
        return json_answer({"jsonrpc": "2.0", "id": call.id, **content}, status)

    async def answer(request: Request, call: Call) -> tuple[Json, int]:
        given = call.params.get("_meta")
        meta = given if isinstance(given, dict) else {}
        said = [request.headers.get(f"mcp-{it}") for it in ("protocol-version", "method", "name")]
        version = meta.get(_NEEDED[0], said[0] or LEGACY[-1])
        if version not in SUPPORTED:
            known = {"supported": SUPPORTED, "requested": version}
            return _error(400, -32022, "Unsupported protocol version", data=known)
        modern = version == MODERN
        if modern and not meta.keys() >= {*_NEEDED}:
            return _error(400, -32602, f"params._meta must have {' and '.join(_NEEDED)}.")
        name = call.params.get("name") if call.method == "tools/call" else said[2]
        if modern and said != [version, call.method, name]:
            return _error(400, -32020, "The protocol's headers must say what the body says.")
        match call.method, modern:
            case "tools/list", _:
                result = {"tools": [_tool(it, auth_on=auth_on) for it in TOOLS], **_CACHED}
            case "tools/call", _:
                given = call.params.get("arguments", {})
                if str(name) not in TOOLS or not isinstance(given, dict):
                    told = f"Needed: one of {', '.join(TOOLS)}, and an object."
                    return _error(400 if modern else 200, -32602, told)
                result = await use(request, str(name), given)
            case "server/discover", True:
                result = {"supportedVersions": SUPPORTED, **_ABOUT}
            case "initialize", False:
                asked = call.params.get("protocolVersion")
                result = {"protocolVersion": asked if asked in LEGACY else LEGACY[0], **_ABOUT}
            case "ping", False:
                result = {}
            case _:  # clients of the older revisions take another status for a failure of HTTP
                return _error(404 if modern else 200, -32601, "There is no such method.")
        return {"result": result}, 200

    async def use(request: Request, name: str, given: Json) -> Json:
        """Return what the REST API answers to the call that a tool is."""
        user_id = given.pop("user_id", None)
        task_id = given.pop("task_id", None) if TOOLS[name][0] == "task_id" else None
        route = routes[user_id is not None][name.replace("add", "create")]
        path = {"user_id": user_id, "id": str(task_id) if type(task_id) is int else task_id}
        headers = [it for it in request.scope["headers"] if it[0] in _PASSED_ON]
        own = {"path_params": path, "headers": headers, "query_string": b""}
        try:
            if TOOLS[name][0] == "task_id" and type(task_id) not in (int, str):
                raise InvalidInput([field_error("body", "task_id", "must be an `id` or a `uid`")])
            if name == "list_tasks":
                own["query_string"] = _query(given)
            elif name == "complete_task":
                given = {"completed": True} | given
            elif given and not route.body_field:
                raise InvalidInput([field_error("body", min(given), "is not an argument here")])
            body: asyncio.Queue[Json] = asyncio.Queue()
            body.put_nowait({"type": "http.request", "body": json.dumps(given).encode()})
            done = await route.answer(Request({**request.scope, **own}, body.get))
        except ApiError as error:
            return _said(error.detail, isError=True)
        text, link = done.body.decode(), done.headers.get("link")
        if name == "list_tasks":
            text, link = f'{{"tasks":{text}}}', None
        return _said(text, link, structuredContent=json.loads(text))

    async def name_issuer(request: Request) -> Response:
        servers = {"authorization_servers": [issuer]} if issuer else {}
        return json_answer({"resource": f"{request.base_url}mcp", **servers})

    paths = (f"/{_METADATA}", f"/{_METADATA}/mcp") if auth_on else ()
    agents = TaskRoute("/mcp", speak, methods=["POST"], include_in_schema=False)
    return [agents, *(Route(path, name_issuer) for path in paths)]


def _error(status: int, code: int, message: str, **data: Json) -> tuple[Json, int]:
    return {"jsonrpc": "2.0", "error": {"code": code, "message": message, **data}}, status


def _said(*texts: str | None, **more: Any) -> Json:
    return {"content": [{"type": "text", "text": it} for it in texts if it], **more, **_DONE}


@cache
def _tool(name: str, *, auth_on: bool) -> Json:
    """Return what `tools/list` shows of a tool."""
    needed, model, about = TOOLS[name]
    fields: Json = {} if auth_on else {"user_id": _USER_ID}
    fields |= {"task_id": _TASK_ID} if needed == "task_id" else {}
    schema = json.loads(json.dumps(model.model_json_schema()), object_hook=_plain)
    for field, rules in schema["properties"].items():
        if "description" in rules or model is not TaskQuery:
            told = {"description": getattr(Task.model_fields.get(field), "description", field)}
            fields[field] = told | rules | (_LIMIT if field == "limit" else {})
    schema = {"type": "object", "properties": fields, "additionalProperties": False}
    schema["required"] = [needed] if needed else []
    reads, destroys = name in ("list_tasks", "get_task"), name in ("update_task", "delete_task")
    hints = {"readOnlyHint": reads, "destructiveHint": destroys, "openWorldHint": False}
    return {"name": name, "description": about, "inputSchema": schema, "annotations": hints}


def _plain(schema: Json) -> Json:
    """Return a schema without what a model need not read."""
    noise = ("title", "default", "pattern", "examples")
    return {name: it for name, it in schema.items() if name not in noise or isinstance(it, dict)}


def _query(given: Json) -> bytes:
    """Return arguments as a query string."""
    given = {"limit": 100} | {name: it for name, it in given.items() if it is not None}
    # Of an object a query string would say the names alone.
    if wrong := [
        field_error("query", name, "must be text, a number, true or false, or a list of those")
        for name, it in given.items()
        if not all(isinstance(each, _SCALAR) for each in (it if isinstance(it, list) else [it]))
    ]:
        raise InvalidInput(wrong)
    if str(given["limit"]) not in map(str, range(1, 101)):
        raise InvalidInput([field_error("query", "limit", "must be 1 to 100")])
    flags = {name: json.dumps(it) for name, it in given.items() if isinstance(it, bool)}
    return urlencode(given | flags, doseq=True).encode()
