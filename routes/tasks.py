"""The one router of tasks, mounted twice: a handler a line of the contract's table."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any
from urllib.parse import parse_qsl, urlencode

from fastapi import APIRouter, Body, Depends, Header, Path, Query, Request, Response
from pydantic import WithJsonSchema
from pydantic_core import to_json

import queries
from auth import Owner
from database import Database
from errors import ApiError, InvalidInput, field_error
from fields import IdempotencyKey, TaskId
from openapi import headers, operation_id, refusals
from queries import Versions
from routes.etags import allowed_versions, body_etag, not_modified, task_etag
from routes.route import TaskRoute
from schemas import (
    PAGING,
    BulkFilter,
    Completion,
    Deleted,
    Stats,
    Task,
    TaskCreate,
    TaskFilter,
    TaskQuery,
    TaskUpdate,
    Updated,
)

_VERSION = len(queries.ROW) - 1
_FIELDS = tuple(column.name for column in queries.ROW[:_VERSION])
# An answer may be kept, and asked about by its ETag.
_PRIVATE = {"Cache-Control": "private, no-cache"}

_TAG = '(W/)?"[!#-~]*"'
# One plain string: with alternatives some generators leave the whole call out.
_ENTITY_TAGS = WithJsonSchema(
    {"type": "string", "format": "entity-tags", "pattern": f"^([*]|{_TAG}( *, *{_TAG})*)$"}
)
Id = Annotated[TaskId, Path(alias="id", description="The task.")]
IfMatch = Annotated[
    str | None,
    _ENTITY_TAGS,
    Header(alias="If-Match", description="The `ETag` you know; 412 if the task has changed since."),
]
IfNoneMatch = Annotated[
    str | None,
    _ENTITY_TAGS,
    Header(alias="If-None-Match", description="The `ETag` of what you have; 304 if still good."),
]
Wanted = Annotated[TaskQuery, Query()]
Matching = Annotated[BulkFilter, Query()]
Counted = Annotated[TaskFilter, Query()]
Key = Annotated[
    IdempotencyKey | None,
    WithJsonSchema({"type": "string", "pattern": "^[!-~]{1,255}$"}),
    Header(
        alias="Idempotency-Key",
        description="Makes the call safe to repeat: with the same key and body it answers the task "
        "that it made before, as that is now. Deleting the task frees its key.",
    ),
]

_LONGEST_LINK = 2048  # bytes: proxies bound the headers of an answer

# What calls of one kind answer beside their success.
NOT_MODIFIED = refusals(304)
BAD_BODY = refusals(400, 413, 415)
CHANGED = {200: headers("ETag"), **refusals(404, 412), **BAD_BODY}


def build_router(
    database: Database, owner: Callable[..., Any], prefix: str, refused: Sequence[int]
) -> APIRouter:
    """Return the routes of one mount.

    `owner` is the dependency that says whose tasks it has; it answers with the statuses `refused`.
    """
    router = APIRouter(
        prefix=prefix,
        route_class=TaskRoute,
        tags=["user tasks" if "{user_id" in prefix else "tasks"],
        responses=refusals(*refused, 422, 500, 503),
        generate_unique_id_function=operation_id,
    )
    Whose = Annotated[Owner, Depends(owner)]  # noqa: N806

    @router.get(
        "",
        response_model=list[Task],
        response_description="One page of tasks.",
        responses={200: headers("ETag", "Link", "X-Total-Count"), **NOT_MODIFIED},
    )
    async def list_tasks(
        request: Request, whose: Whose, wanted: Wanted, if_none_match: IfNoneMatch = None
    ) -> Response:
        """Filters narrow the list; all of them must hold."""
        rows, _ = await database.run(queries.list_tasks(whose.user_id, wanted))
        total = rows[0][-1] if rows else 0
        body = to_json([_fields(row, whose) for row in rows if row[0] is not None])
        links = _links(whose.url, request.scope["query_string"], wanted, total)
        found = {"X-Total-Count": str(total), **links}
        return _answer(body, found, body_etag(body, str(total)), if_none_match)

    @router.post(
        "",
        status_code=201,
        response_model=Task,
        response_description="The new task.",
        responses={201: headers("ETag", "Location", "Idempotency-Replayed"), **BAD_BODY},
    )
    async def create_task(whose: Whose, new: TaskCreate, idempotency_key: Key = None) -> Response:
        """Only the title is required."""
        rows, _ = await database.run(queries.create_task(whose.user_id, new, idempotency_key))
        row, replayed = rows[0], {}
        if idempotency_key and row[-2]:
            replayed = {"Idempotency-Replayed": "true"}
            if row[-1] != queries.fingerprint(new):
                raise InvalidInput(
                    [field_error("header", "Idempotency-Key", "was used before with another body")]
                )
        return _task(
            row, whose, status=201, headers={"Location": f"{whose.url}/{row[0]}", **replayed}
        )

    @router.patch("", response_model=Updated, responses=BAD_BODY)
    async def update_matching_tasks(whose: Whose, wanted: Matching, change: TaskUpdate) -> Response:
        """The same change to every task that the filters match, at once; without a filter, all."""
        _, count = await database.run(queries.update_tasks(whose.user_id, wanted, change))
        return _json({"updated": count})

    @router.delete("", response_model=Deleted)
    async def delete_matching_tasks(whose: Whose, wanted: Matching) -> Response:
        """Deletes every task that the filters match, at once; without a filter, all."""
        _, count = await database.run(queries.delete_tasks(whose.user_id, wanted))
        return _json({"deleted": count})

    @router.get("/stats", response_model=Stats, responses={200: headers("ETag"), **NOT_MODIFIED})
    async def get_task_stats(
        whose: Whose, wanted: Counted, if_none_match: IfNoneMatch = None
    ) -> Response:
        """Counts the tasks that the filters match."""
        rows, _ = await database.run(queries.count_tasks(whose.user_id, wanted))
        body = to_json(dict(zip(Stats.model_fields, rows[0], strict=True)))
        return _answer(body, {}, body_etag(body), if_none_match)

    @router.get(
        "/{id:id}",
        response_model=Task,
        responses={200: headers("ETag"), **NOT_MODIFIED, **refusals(404)},
    )
    async def get_task(whose: Whose, task_id: Id, if_none_match: IfNoneMatch = None) -> Response:
        """The task as it is now."""
        row = await _one(queries.read_task(whose.user_id, task_id), whose, task_id)
        return _task(row, whose, if_none_match=if_none_match)

    @router.put("/{id:id}", response_model=Task, responses=CHANGED, name="put_task")
    @router.patch("/{id:id}", response_model=Task, responses=CHANGED)
    async def update_task(
        whose: Whose, task_id: Id, change: TaskUpdate, if_match: IfMatch = None
    ) -> Response:
        """Changes the fields that are sent; PUT and PATCH do the same.

        Read-only fields may be sent along and are ignored.
        """
        versions = allowed_versions(if_match, task_id)
        query = queries.update_task(whose.user_id, task_id, change, versions)
        return _task(await _one(query, whose, task_id, versions), whose)

    @router.patch("/{id:id}/complete", response_model=Task, responses=CHANGED)
    async def complete_task(
        whose: Whose,
        task_id: Id,
        body: Annotated[Completion | None, Body()] = None,
        if_match: IfMatch = None,
    ) -> Response:
        """Toggles; with a body, sets what that says, which is safe to repeat."""
        versions = allowed_versions(if_match, task_id)
        if body is None:
            query = queries.toggle_task(whose.user_id, task_id, versions)
        else:
            change = TaskUpdate(completed=body.completed)
            query = queries.update_task(whose.user_id, task_id, change, versions)
        return _task(await _one(query, whose, task_id, versions), whose)

    @router.delete(
        "/{id:id}",
        response_model=Task,
        response_description="The task as it last was.",
        responses=refusals(404, 412),
    )
    async def delete_task(whose: Whose, task_id: Id, if_match: IfMatch = None) -> Response:
        """To undo, create it again from the answer."""
        versions = allowed_versions(if_match, task_id)
        query = queries.delete_task(whose.user_id, task_id, versions)
        row = await _one(query, whose, task_id, versions)
        return _json(_fields(row, whose))

    async def _one(
        query: queries.Query, whose: Owner, task_id: int, versions: Versions = None
    ) -> tuple[Any, ...]:
        """Return the one row; without it only a conditional request asks again: 404 or 412?"""
        rows, _ = await database.run(query)
        if rows:
            return rows[0]
        if versions and (await database.run(queries.read_task(whose.user_id, task_id))).rows:
            raise ApiError(412, f"Task {task_id} has changed since; read it again.")
        raise ApiError(404, f"There is no task {task_id}.")

    return router


def _fields(row: tuple[Any, ...], whose: Owner) -> dict[str, Any]:
    return dict(zip(_FIELDS, row, strict=False), url=f"{whose.url}/{row[0]}")


def _task(
    row: tuple[Any, ...],
    whose: Owner,
    *,
    status: int = 200,
    headers: dict[str, str] | None = None,
    if_none_match: str | None = None,
) -> Response:
    etag = task_etag(row[0], row[_VERSION])
    return _answer(to_json(_fields(row, whose)), headers or {}, etag, if_none_match, status)


def _answer(
    body: bytes, headers: dict[str, str], etag: str, if_none_match: str | None, status: int = 200
) -> Response:
    headers = {**headers, **_PRIVATE, "ETag": etag}
    if if_none_match is not None and not_modified(if_none_match, etag):
        return Response(status_code=304, headers=headers)
    return Response(body, status, headers, "application/json")


def _json(content: dict[str, Any]) -> Response:
    return Response(to_json(content), media_type="application/json")


def _links(url: str, query: bytes, wanted: TaskQuery, total: int) -> dict[str, str]:
    """Return the `Link` header (RFC 8288) to the pages beside this one."""
    offsets = {}
    if wanted.offset + wanted.limit < total:
        offsets["next"] = wanted.offset + wanted.limit
    if wanted.offset:
        offsets["prev"] = max(0, wanted.offset - wanted.limit)
    if not offsets:
        return {}
    given = parse_qsl(query.decode(), keep_blank_values=True)
    kept = [(name, value) for name, value in given if name not in PAGING]
    pages = {
        relation: urlencode([*kept, ("limit", wanted.limit), ("offset", offset)])
        for relation, offset in offsets.items()
    }
    link = ", ".join(f'<{url}?{page}>; rel="{name}"' for name, page in pages.items())
    return {"Link": link} if len(link) <= _LONGEST_LINK else {}
