"""The one router of tasks, mounted twice: a handler a line of the contract's table."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from time import monotonic
from typing import Annotated, Any, Final
from urllib.parse import parse_qsl, urlencode

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from pydantic import WithJsonSchema
from pydantic_core import to_json

import queries
import schemas
from auth import Owner
from database import Database
from engines import BULK_DEADLINE, DEADLINE
from errors import ApiError, Conflict, Unavailable, invalid
from fields import IdempotencyKey, TaskRef
from models import ROW
from openapi import headers, operation_id, refusals
from queries import tasks
from queries.repeating import FOLLOWED, next_uid, nexts_of, read_rules, with_next
from queries.tasks import Positions, Versions
from routes import etags
from routes.answers import answer, json_answer, task_fields, unchanged
from routes.changes import add_changes, position_of
from routes.live import Live
from routes.route import TaskRoute, read_bytes
from schemas import NewTasks, Stats, Task, TaskCreate, TaskQuery, TaskUpdate

Ref = Annotated[TaskRef, Path(alias="id", description="The task: its `id` or its `uid`.")]
Wanted = Annotated[TaskQuery, Query()]
Matching = Annotated[schemas.BulkFilter, Query()]
Counted = Annotated[schemas.TaskFilter, Query()]
How = Annotated[schemas.Deletion, Query()]
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

_BODY: Final = (400, 413, 415)  # what calls with a body also answer
_WRITTEN: Final = {200: headers("ETag", "Link"), **refusals(404, 412, *_BODY)}
_LIST_CHANGED: Final = "The list has changed since; read it again."
_TAKEN: Final = "is that of another task"
_BUSY_KEY: Final = "was used before with another body"


def build_router(
    database: Database, owner: Callable[..., Any], prefix: str, refused: Sequence[int], live: Live
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
        responses={200: headers("ETag", "Link", "X-Total-Count"), **refusals(304)},
    )
    async def list_tasks(
        request: Request, whose: Whose, wanted: Wanted, if_none_match: etags.IfNoneMatch = None
    ) -> Response:
        """Filters narrow the list; all of them must hold."""
        query = request.scope["query_string"]
        mine = (whose.user_id, database.identity)  # at one address each has their own
        content = (*mine, whose.url, query)
        timeless = all(condition.column != "overdue" for condition in wanted.conditions)
        if if_none_match is not None and timeless:
            etag = etags.list_etag(await position_of(database, whose), *content)
            if etags.not_modified(if_none_match, etag):
                return unchanged(etag)
        rows, _ = await database.run(tasks.list_tasks(whose.user_id, wanted))
        if not rows:
            rows, _ = await database.run(tasks.list_tasks(whose.user_id, wanted, certain=True))
        total, position = rows[0][-2:]
        end = wanted.offset + wanted.limit
        more = end < total if wanted.before is None else len(rows) > wanted.limit
        shown = [task_fields(row, whose) for row in rows[: wanted.limit] if row[0] is not None]
        body = to_json(shown)
        following = shown[-1]["id"] if more and shown else None
        found = {"X-Total-Count": str(total), **_links(whose.url, query, wanted, following)}
        etag = etags.list_etag(position, *(content if timeless else (*mine, body, str(total))))
        return answer(body, found, etag, if_none_match)

    @router.post(
        "",
        status_code=201,
        response_model=Task,
        response_description="The new task.",
        responses={
            201: headers("ETag", "Location", "Idempotency-Replayed"),
            **refusals(*_BODY, 409),
        },
    )
    async def create_task(whose: Whose, new: NewTasks, idempotency_key: Key = None) -> Response:
        """Only the title is required.

        An array of 1 to 1000 bodies makes all of them, or none, and is answered with the array.
        """
        if isinstance(new, list):
            return await _create_all(whose, new, idempotency_key)
        try:
            rows, _ = await database.run(tasks.create_task(whose.user_id, new, idempotency_key))
        except Conflict:  # the key has made a task with another uid
            raise invalid("header", "Idempotency-Key", _BUSY_KEY) from None
        row, replayed = rows[0], {}
        if len(row) > len(ROW) and row[-2]:
            replayed = {"Idempotency-Replayed": "true"}
            if row[-1] != tasks.fingerprint(new):
                if new.uid is not None:
                    raise invalid("body", "uid", _TAKEN, 409)
                raise invalid("header", "Idempotency-Key", _BUSY_KEY)
        task = task_fields(row, whose)
        headers = {"Location": task["url"], **replayed}
        return answer(to_json(task), headers, task["etag"], None, 201)

    async def _create_all(whose: Owner, new: list[TaskCreate], key: str | None) -> Response:
        if key is not None:
            detail = "is for one task; what makes an array safe to repeat is a uid in each"
            raise invalid("header", "Idempotency-Key", detail)
        last = {one.uid: place for place, one in enumerate(new)}
        for place, one in enumerate(new):
            if one.uid is not None and (again := last[one.uid]) > place:
                raise invalid("body", f"{again}.uid", "must not repeat in an array")
        try:
            rows, _ = await database.run(tasks.create_tasks(whose.user_id, new))
        except Conflict:
            raise invalid("body", "uid", _TAKEN, 409) from None
        return json_answer([task_fields(row, whose) for row in rows], 201)

    @router.patch("", response_model=schemas.Updated, responses=refusals(*_BODY, 412))
    async def update_matching_tasks(
        whose: Whose, wanted: Matching, change: TaskUpdate, given: etags.Given
    ) -> Response:
        """The same change to every task that the filters match, at once; without a filter, all."""
        known = etags.allowed_positions(given, whose.user_id, database.identity)
        for _ in _tries(BULK_DEADLINE):
            if change.recurrence is None:
                query = tasks.update_tasks(whose.user_id, wanted, change, known)
                with suppress(Conflict):  # another position, or a rule that has to be read
                    updated = await _count(query, whose, known)
                    break
            position = await position_of(database, whose)
            if known is not None and position not in known:
                raise ApiError(412, _LIST_CHANGED)
            rows, _ = await database.run(read_rules(whose.user_id, wanted, change))
            repeating = [dict(zip(FOLLOWED, row, strict=True)) for row in rows]
            nexts = await asyncio.to_thread(nexts_of, repeating, change)
            still = (position,)
            query = tasks.update_tasks(whose.user_id, wanted, change, still, ruled=True)
            with suppress(Conflict):  # another position by now
                updated = await _count(with_next(query, nexts), whose, still)
                break
        return json_answer({"updated": updated})

    @router.delete("", response_model=schemas.Deleted, responses=refusals(*_BODY, 412))
    async def delete_matching_tasks(
        request: Request, whose: Whose, wanted: Matching, given: etags.Given
    ) -> Response:
        """Puts every task that the filters match into the trash, at once; without a filter, all.

        With `deleted=true` it empties the trash.
        """
        if await read_bytes(request) not in (b"", b"{}", b"null"):  # {"ids": [7]} is not "all"
            raise invalid("body", "body", "must be empty; which tasks, the query says: ?id=7&id=8")
        known = etags.allowed_positions(given, whose.user_id, database.identity)
        query = tasks.delete_tasks(whose.user_id, wanted, known)
        try:
            return json_answer({"deleted": await _count(query, whose, known)})
        except Conflict:
            raise ApiError(412, _LIST_CHANGED) from None

    async def _count(query: queries.Query, whose: Owner, known: Positions) -> int:
        """Return how many a bulk call touched; `Conflict` if the user has another position."""
        # What changes nothing does not look at the position itself.
        if known and query.raises is None and await position_of(database, whose) not in known:
            raise ApiError(412, _LIST_CHANGED)
        while True:
            rows, touched = await database.run(query)
            count = rows[0][0] if rows else touched  # one of several steps counts them itself
            if count or not (await database.run(tasks.make_position(whose.user_id))).touched:
                break
        # Whose position is not there yet has no tasks, and nothing that could be compared.
        if known and not count and 1 not in known and await position_of(database, whose) == 1:
            raise ApiError(412, _LIST_CHANGED)
        return int(count)

    add_changes(router, database, owner, live)

    @router.get("/stats", response_model=Stats, responses={200: headers("ETag"), **refusals(304)})
    async def get_task_stats(
        whose: Whose, wanted: Counted, if_none_match: etags.IfNoneMatch = None
    ) -> Response:
        """Counts the tasks that the filters match."""
        rows, _ = await database.run(tasks.count_tasks(whose.user_id, wanted))
        body = to_json(dict(zip(Stats.model_fields, rows[0], strict=True)))
        return answer(body, {}, etags.body_etag(body), if_none_match)

    @router.get(
        "/{id:id}",
        response_model=Task,
        responses={200: headers("ETag"), **refusals(304, 404)},
    )
    async def get_task(whose: Whose, ref: Ref, if_none_match: etags.IfNoneMatch = None) -> Response:
        """The task as it is now; what is in the trash is not found here."""
        task = task_fields(await _read(whose, ref), whose)
        return answer(to_json(task), {}, task["etag"], if_none_match)

    @router.put("/{id:id}", response_model=Task, responses=_WRITTEN, name="put_task")
    @router.patch("/{id:id}", response_model=Task, responses=_WRITTEN)
    async def update_task(
        whose: Whose, ref: Ref, change: TaskUpdate, versions: etags.Allowed
    ) -> Response:
        """Changes the fields that are sent; PUT and PATCH do the same.

        `deleted: false` brings a task back out of the trash.
        """
        return await _change(whose, ref, change, versions)

    @router.patch("/{id:id}/complete", response_model=Task, responses=_WRITTEN)
    async def complete_task(
        whose: Whose, ref: Ref, versions: etags.Allowed, body: schemas.Completion | None = None
    ) -> Response:
        """Toggles; with a body, sets what that says.

        Completing a task that repeats makes the next one, once, and `Link` names that.
        """
        change = None if body is None else TaskUpdate(completed=body.completed)
        return await _change(whose, ref, change, versions)

    async def _change(
        whose: Owner, ref: int | str, change: TaskUpdate | None, versions: Versions
    ) -> Response:
        """Answer with the task, changed or toggled; `Link` names the next one, if there is one."""
        if change is None:
            query = tasks.toggle_task(whose.user_id, ref, versions)
        else:
            query = tasks.update_task(whose.user_id, ref, change, versions)
        trash = change is not None and change.deleted is False
        for _ in _tries(DEADLINE):
            if change is None or change.recurrence is None:
                rows, _ = await database.run(query)
                if rows:
                    break
            # None is found, it repeats or shall, or an older version has made it.
            was = await _read(whose, ref, versions, trash=trash)
            task = task_fields(was, whose)
            setting = change or TaskUpdate(completed=not task["completed"])
            heeding = tasks.update_task(whose.user_id, ref, setting, was[-1:], ruled=True)
            if rows := (await database.run(with_next(heeding, nexts_of([task], setting)))).rows:
                break
            await database.run(tasks.make_position(whose.user_id))
        task, link = task_fields(rows[0], whose), {}
        if task["recurrence"] and task["completed"] and (change is None or change.completed):
            with suppress(Unavailable):  # for the change is made
                following = tasks.read_task(whose.user_id, next_uid(task))
                if found := (await database.run(following)).rows:
                    link = {"Link": f'<{whose.url}/{found[0][0]}>; rel="next"'}
        return answer(to_json(task), link, task["etag"], None)

    @router.delete(
        "/{id:id}",
        response_model=Task,
        response_description="The task as it is now, or as it last was.",
        responses=refusals(404, 412),
    )
    async def delete_task(whose: Whose, ref: Ref, how: How, versions: etags.Allowed) -> Response:
        """Puts the task into the trash, from where `deleted: false` brings it back for 30 days."""
        forever = bool(how.forever)
        query = tasks.delete_task(whose.user_id, ref, versions, forever=forever)
        for _ in _tries(DEADLINE):
            if rows := (await database.run(query)).rows:
                break
            await _read(whose, ref, versions, trash=forever)
            await database.run(tasks.make_position(whose.user_id))
        return json_answer(task_fields(rows[0], whose))

    async def _read(
        whose: Owner, ref: int | str, versions: Versions = None, *, trash: bool = False
    ) -> tuple[Any, ...]:
        """Return a task's row, also out of the `trash`; raise 404, or 412 for another version."""
        rows, _ = await database.run(tasks.read_task(whose.user_id, ref, trash=trash))
        if not rows:
            told = ref if isinstance(ref, int) else "with this uid"
            raise ApiError(404, f"There is no task {told}.")
        if versions is not None and rows[0][-1] not in versions:
            raise ApiError(412, "The task has changed since; read it again.")
        return rows[0]

    return router


def _tries(seconds: float) -> Iterator[None]:
    """Go on for so long, for others may be in the way, then end in 503."""
    until = monotonic() + seconds
    while monotonic() < until:
        yield
    raise Unavailable("Others change this all the time; nothing was done, try again.")


def _links(url: str, query: bytes, wanted: TaskQuery, last: int | None) -> dict[str, str]:
    """Return the `Link` header (RFC 8288) to the pages beside this one.

    `last` is the last task here where more follow: in the default order the next page goes on from
    there, unless this one was asked for by its offset.
    """
    if last is None and not wanted.offset:
        return {}
    kept, by_offset = _not_paging(query)
    pages = {}
    if last is not None:
        by_offset |= bool(wanted.sort)
        pages["next"] = f"offset={wanted.offset + wanted.limit}" if by_offset else f"before={last}"
    if wanted.offset:
        pages["prev"] = f"offset={max(0, wanted.offset - wanted.limit)}"
    link = ", ".join(
        f'<{url}?{kept}limit={wanted.limit}&{where}>; rel="{name}"' for name, where in pages.items()
    )
    return {"Link": link} if len(link) <= _LONGEST_LINK else {}


@lru_cache(maxsize=128)
def _not_paging(query: bytes) -> tuple[str, bool]:
    """Return what a query string says but for paging, and whether it pages by offset."""
    given = parse_qsl(query.decode(), keep_blank_values=True)
    kept = urlencode([(name, value) for name, value in given if name not in schemas.PAGING])
    return kept and kept + "&", any(name in schemas.OFFSETS for name, _ in given)
