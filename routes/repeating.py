"""Changes where a rule matters: it is read, then the change is made while it says the same."""

import asyncio
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from time import monotonic
from typing import Any, Final
from uuid import NAMESPACE_URL, uuid5

import queries
import repeating
from auth import Owner
from database import Database
from engines import BULK_DEADLINE
from errors import ApiError, Conflict, InvalidInput, Unavailable, field_error
from queries import Positions, Ref, Versions
from recurrence import check, following
from repeating import OWN, RULED
from routes.answers import task_fields
from routes.changes import position_of
from schemas import TaskFilter, TaskUpdate

Json = dict[str, Any]
_TRIES: Final = 100  # of a bulk call, which needs a moment without another change of the user
CHANGED: Final = "The list has changed since; read it again."


def missing(ref: Ref) -> ApiError:
    """Return the 404 of a task."""
    return ApiError(404, f"There is no task {ref if isinstance(ref, int) else 'with this uid'}.")


def changed() -> ApiError:
    """Return the 412 of a task."""
    return ApiError(412, "The task has changed since; read it again.")


async def repeat_one(
    database: Database, whose: Owner, ref: Ref, change: TaskUpdate | None, versions: Versions
) -> tuple[tuple[Any, ...], dict[str, str]]:
    """Return the task, changed or toggled, and the `Link` to the next.

    Raises 404, 412 if its version is none of `versions`, 422 if it cannot repeat so.
    """
    trash = change is not None and change.deleted is False
    while rows := (await database.run(queries.read_task(whose.user_id, ref, trash=trash))).rows:
        was = task_fields(rows[0], whose)
        if versions is not None and rows[0][-1] not in versions:
            raise changed()
        nexts = _nexts([was], change)
        query = repeating.repeat_task(whose.user_id, was, change, versions, nexts)
        if rows := (await database.run(query)).rows:
            completes = change is None or change.completed
            return rows[0], await _link(database, whose, rows[0]) if completes else {}
        await database.run(queries.make_position(whose.user_id))
    raise missing(ref)


async def _link(database: Database, whose: Owner, row: tuple[Any, ...]) -> dict[str, str]:
    """Return the header that names the next task of one that is completed, while there is one."""
    task = task_fields(row, whose)
    if not task["completed"] or not task["recurrence"]:
        return {}
    try:
        found = await database.run(queries.read_task(whose.user_id, _next_uid(task)))
    except Unavailable:  # but the change is made
        return {}
    return {"Link": f'<{whose.url}/{found.rows[0][0]}>; rel="next"'} if found.rows else {}


async def repeat_all(
    database: Database, whose: Owner, wanted: TaskFilter, change: TaskUpdate, known: Positions
) -> int:
    """Return how many tasks are changed, all at once; raises as `repeat_one` does."""
    await database.run(queries.make_position(whose.user_id))
    until = monotonic() + BULK_DEADLINE
    for _ in range(_TRIES):
        position = await position_of(database, whose)
        if known is not None and position not in known:
            raise ApiError(412, CHANGED)
        rows, _ = await database.run(repeating.read_rules(whose.user_id, wanted, change))
        read = [dict(zip(("id", "uid", *RULED), row, strict=True)) for row in rows]
        nexts = await asyncio.to_thread(_nexts, read, change)
        ids = [task["id"] for task in read]
        query = repeating.repeat_tasks(whose.user_id, wanted, change, position, ids, nexts)
        try:
            rows, touched = await database.run(query)
        except Conflict:
            if monotonic() > until:
                break
            continue
        return int(rows[0][0]) if rows else touched
    raise Unavailable("Others change these tasks all the time, and nothing was done; try again.")


def _nexts(tasks: Iterable[Mapping[str, Any]], change: TaskUpdate | None) -> list[Json]:
    """Return what the next of each task has of its own, or raise 422 if one cannot repeat so."""
    today = datetime.now(UTC).date()
    sent = {} if change is None else change.model_dump(include=change.model_fields_set)
    nexts = []
    for task in tasks:
        rule, due, remind_at, repeat_from = (sent.get(name, task[name]) for name in RULED)
        if rule is None:
            continue
        try:
            check(rule, due)
        except ValueError as error:
            field = "recurrence" if "recurrence" in sent else "due_date"
            told = str(error) if field == "recurrence" else f"does not fit recurrence: {error}"
            raise InvalidInput([field_error("body", field, told)]) from None
        if sent.get("completed", change is None) and (
            found := following(rule, due, remind_at, repeat_from, today)
        ):
            own = (_next_uid(task), *found)
            nexts.append({"id": task["id"], **dict(zip(OWN, own, strict=True))})
    return nexts


def _next_uid(task: Mapping[str, Any]) -> str:
    """Return the uid of the next task: of each one there is one next."""
    return str(uuid5(NAMESPACE_URL, f"next:{task['id']}:{task['uid']}"))
