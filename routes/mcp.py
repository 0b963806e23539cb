"""Agents: the Model Context Protocol at `POST /mcp`, over streamable HTTP without sessions.

A tool is a call of the REST API: the route of that call checks the arguments and does the work.
"""

import json
from collections.abc import Callable
from functools import cache
from typing import Any, Final, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ValidationError
from starlette.routing import Route
from starlette.types import Message

from auth import Owners
from errors import ApiError, InvalidInput, field_error
from routes.route import read_bytes
from schemas import UNDOCUMENTED, Body, Completion, Task, TaskCreate, TaskQuery, TaskUpdate

Json = dict[str, Any]
MODERN: Final = "2026-07-28"  # each request says all about itself
LEGACY: Final = ("2025-11-25", "2025-06-18", "2025-03-26")  # after a handshake; the newest first
SUPPORTED: Final = [MODERN, *LEGACY]
_META: Final = "io.modelcontextprotocol/"
_NEEDED: Final = (f"{_META}protocolVersion", f"{_META}clientCapabilities")
_SERVER: Final = {"name": "tasks", "title": "Tasks", "version": "1.0.0"}
_DONE: Final = {"resultType": "complete", "_meta": {f"{_META}serverInfo": _SERVER}}
_CACHED: Final = {"ttlMs": 300_000, "cacheScope": "public", **_DONE}
_ABOUT: Final = {"capabilities": {"tools": {}}, **_CACHED}
_PASSED_ON: Final = (b"host", b"authorization", b"content-type")  # and nothing conditional
_METADATA: Final = ".well-known/oauth-protected-resource"  # RFC 9728
_USER_ID: Final = {"type": "string", "description": "Whose tasks, if not the usual user's."}
_TASK_ID: Final = {"type": ["integer", "string"], "description": "The task's `id` or `uid`."}
_LIMIT: Final = {"description": "How many at most.", "maximum": 100, "default": 100}
# The argument that is needed, what the others are, and what a model is told.
TOOLS: Final[dict[str, tuple[str, type[BaseModel], str]]] = {
    "add_task": ("title", TaskCreate, "Add one task. Returns it, with its `id`."),
    "list_tasks": ("", TaskQuery, "Find tasks: all filters hold. After a full page use `offset`."),
    "get_task": ("task_id", Body, "Read one task. Returns it."),
    "update_task": ("task_id", TaskUpdate, "Change the given fields of one task. Returns it."),
    "complete_task": ("task_id", Completion, "Complete one task, or with `false` undo that."),
    "delete_task": ("task_id", Body, "Move one task to the trash, for 30 days. Returns it."),
}


class Call(BaseModel, strict=True):
    """A request or, without an id, a notification, and no batch (JSON-RPC 2.0, section 4)."""

    jsonrpc: Literal["2.0"]
    id: int | str = ""
    method: str
    params: Json = {}


class Refused(Exception):  # noqa: N818
    """The code, message and data of an error (JSON-RPC 2.0, section 5.1)."""


def build_mcp_routes(
    owners: Owners, issuer: str | None, allows: Callable[[str], bool], *mounts: APIRouter
) -> list[Route]:
    """Return `/mcp`; `mounts` have the current user's tasks and a named one's."""
    routes: list[Json] = [{getattr(it, "name", ""): it for it in mount.routes} for mount in mounts]

    async def speak(request: Request) -> Response:
        origin, host = (request.headers.get(name, "") for name in ("origin", "host"))
        if origin and not allows(origin) and not origin.endswith(f"://{host}"):
            raise ApiError(403, "Pages of this origin may not call: name it in CORS_ORIGINS.")
        try:
            await owners.current(request)
        except ApiError as error:
            if error.status_code == 401:
                where = f'resource_metadata="{request.base_url}{_METADATA}/mcp"'
                error.headers = {"WWW-Authenticate": f"Bearer {where}"}
            raise
        raw = routes[0]["create_task"].to_json(request, await read_bytes(request))
        content: Json = {"jsonrpc": "2.0"}
        modern = True
        try:
            call = _read(raw)
            if "id" not in call.model_fields_set:
                return Response(status_code=202)  # no notification matters here
            content["id"] = call.id
            modern = _is_modern(request, call)
            content["result"] = await answer(request, call, modern)
            return _json(content)
        except Refused as refused:
            content["error"] = dict(zip(("code", "message", "data"), refused.args, strict=False))
            status = 404 if refused.args[0] == -32601 else 400
            # Clients of the older revisions take another status for a failure of HTTP.
            return _json(content, status if modern else 200)

    async def answer(request: Request, call: Call, modern: bool) -> Json:
        match call.method, modern:
            case "initialize", False:
                asked = call.params.get("protocolVersion")
                version = asked if asked in LEGACY else LEGACY[0]
                return {"protocolVersion": version, "serverInfo": _SERVER, **_ABOUT}
            case "ping", False:
                return {}
            case "server/discover", True:
                return {"supportedVersions": SUPPORTED, **_ABOUT}
            case "tools/list", _:
                return {"tools": _tools(auth_on=owners.tokens is not None), **_CACHED}
            case "tools/call", _:
                name, given = str(call.params.get("name")), call.params.get("arguments", {})
                if name not in TOOLS or not isinstance(given, dict):
                    raise Refused(-32602, f"Needed: one of {', '.join(TOOLS)}, and an object.")
                try:
                    text = await use(request, name, given)
                except ApiError as error:
                    text = error.detail
                    return {"content": [{"type": "text", "text": text}], "isError": True, **_DONE}
                content = [{"type": "text", "text": text}]
                return {"content": content, "structuredContent": json.loads(text), **_DONE}
        raise Refused(-32601, "There is no such method in this revision.")

    async def use(request: Request, name: str, given: Json) -> str:
        """Return what the REST API answers to the call that a tool is, or raise its refusal."""
        user_id = given.pop("user_id", None)
        route = routes[user_id is not None][name.replace("add", "create")]
        path, query = {"user_id": user_id}, b""
        if TOOLS[name][0] == "task_id":
            task_id = given.pop("task_id", "")
            path["id"] = str(task_id) if type(task_id) in (int, str) else ""  # which is no id
        if name == "list_tasks":
            query = _query(given)
        elif name == "complete_task":
            given = {"completed": True} | given
        elif given and not route.body_field:
            raise InvalidInput([field_error("body", min(given), "is not an argument here")])
        sent: list[Message] = [{"type": "http.request", "body": json.dumps(given).encode()}]

        async def receive() -> Message:
            return sent.pop() if sent else await request.receive()

        headers = [it for it in request.scope["headers"] if it[0] in _PASSED_ON]
        scope = {**request.scope, "headers": headers, "path_params": path, "query_string": query}
        text: str = (await route.answer(Request(scope, receive))).body.decode()
        if not text:
            raise ApiError(499, "The client went away.")  # nobody reads it
        return f'{{"tasks":{text}}}' if name == "list_tasks" else text

    async def name_issuer(request: Request) -> Response:
        servers = {"authorization_servers": [issuer]} if issuer else {}
        return _json({"resource": f"{request.base_url}mcp", **servers})

    paths = (f"/{_METADATA}", f"/{_METADATA}/mcp") if owners.tokens else ()
    return [Route("/mcp", speak, methods=["POST"]), *(Route(path, name_issuer) for path in paths)]


def _read(raw: bytes) -> Call:
    try:
        return Call.model_validate_json(raw)
    except ValidationError as invalid:
        code = -32700 if invalid.errors()[0]["type"] == "json_invalid" else -32600
        raise Refused(code, "The body must be one JSON-RPC 2.0 message, no batch.") from None


def _is_modern(request: Request, call: Call) -> bool:
    """Return whether a request says all about itself; its headers must then say the same."""
    meta = call.params["_meta"] if isinstance(call.params.get("_meta"), dict) else {}
    said = [request.headers.get(f"mcp-{it}") for it in ("protocol-version", "method", "name")]
    version = meta.get(_NEEDED[0], said[0] or LEGACY[-1])
    if version not in SUPPORTED:
        known = {"supported": SUPPORTED, "requested": version}
        raise Refused(-32022, "Unsupported protocol version", known)
    if version == MODERN and not meta.keys() >= {*_NEEDED}:
        raise Refused(-32602, f"params._meta must have {' and '.join(_NEEDED)}.")
    name = call.params.get("name") if call.method == "tools/call" else said[2]
    if version == MODERN and said != [version, call.method, name]:
        raise Refused(-32020, "MCP-Protocol-Version, Mcp-Method and Mcp-Name must match the body.")
    return bool(version == MODERN)


@cache
def _tools(*, auth_on: bool) -> list[Json]:
    """Return what `tools/list` shows."""
    tools = []
    for name, (needed, model, about) in TOOLS.items():
        fields: Json = {} if auth_on else {"user_id": _USER_ID}
        fields |= {"task_id": _TASK_ID} if needed == "task_id" else {}
        schema = json.loads(json.dumps(model.model_json_schema()), object_hook=_plain)
        for field, rules in schema["properties"].items():
            if field not in UNDOCUMENTED or model is not TaskQuery:
                told = {"description": getattr(Task.model_fields.get(field), "description", field)}
                fields[field] = told | rules | (_LIMIT if field == "limit" else {})
        schema = {"type": "object", "properties": fields, "additionalProperties": False}
        schema["required"] = [needed] if needed else []
        reads, destroys = name in ("list_tasks", "get_task"), name in ("update_task", "delete_task")
        hints = {"readOnlyHint": reads, "destructiveHint": destroys, "openWorldHint": False}
        tool = {"name": name, "description": about, "inputSchema": schema, "annotations": hints}
        tools.append(tool)
    return tools


def _plain(schema: Json) -> Json:
    """Return a schema without what a model need not read."""
    noise = ("title", "default", "pattern", "examples")
    return {name: it for name, it in schema.items() if name not in noise or isinstance(it, dict)}


def _query(given: Json) -> bytes:
    """Return arguments as a query string."""
    given = {"limit": 100} | {name: given[name] for name in given if given[name] is not None}
    if str(given["limit"]) not in map(str, range(1, 101)):
        raise InvalidInput([field_error("query", "limit", "must be 1 to 100")])
    given = {name: str(it).lower() if isinstance(it, bool) else it for name, it in given.items()}
    return urlencode(given, doseq=True, errors="surrogatepass").encode()


def _json(content: Json, status: int = 200) -> Response:
    return Response(json.dumps(content), status, media_type="application/json")
