"""Every SQL statement on tasks, as pure functions that return one and its parameters; no I/O.

Each is one statement in autocommit, so each is atomic: nothing is read to be written back. Every
one names the owner first, so somebody else's task is a task that does not exist. A statement of a
given shape is built once; only its parameters change.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import sha256
from typing import Any, Final, NamedTuple, cast

import sqlalchemy
from sqlalchemy import (
    ARRAY,
    JSON,
    BigInteger,
    ClauseElement,
    ColumnElement,
    Integer,
    Text,
    and_,
    bindparam,
    case,
    delete,
    false,
    func,
    literal,
    not_,
    or_,
    select,
    true,
    update,
)

# Its ON CONFLICT compiles for SQLite as well.
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import Boolean, TypeEngine
from sqlmodel.sql.sqltypes import UTCDateTime

from engines import BULK_DEADLINE, DEADLINE
from fields import timestamp
from models import TASK, TextList
from schemas import MAX_PAGE, TaskCreate, TaskFilter, TaskQuery, TaskUpdate

Versions = tuple[int, ...] | None  # what If-Match allows; None allows any

_NUMBERS: Final = ARRAY(BigInteger).with_variant(JSON(), "sqlite")

task = TASK.c
# What statements return of a task: the fields of `schemas.Task` but `url`, then the version.
ROW: Final = (
    task.id,
    task.user_id,
    task.title,
    task.description,
    task.completed,
    task.completed_at,
    task.priority,
    task.due_date,
    task.tags,
    task.order,
    task.created_at,
    task.updated_at,
    task.version,
)
_NEW: Final = tuple(TaskCreate.model_fields)


class Query(NamedTuple):
    """A statement, its parameters, and whether sending it twice does no harm."""

    statement: ClauseElement
    parameters: Mapping[str, Any]
    repeatable: bool = False
    many: ClauseElement | None = None  # the same for many callers at once, see below
    deadline: float = DEADLINE  # seconds


def now() -> datetime:
    """Return the instant in UTC; never a whole second, which would print without its fraction."""
    moment = datetime.now(UTC)
    return moment.replace(microsecond=moment.microsecond or 1)


def fingerprint(new: TaskCreate) -> str:
    """Return what tells the body of one create from another: a SHA-256 of what it means."""
    return sha256(new.model_dump_json().encode()).hexdigest()


# ---- one task

_owned = task.user_id == bindparam("owner")
_this = and_(_owned, task.id == bindparam("task_id"))
_now = bindparam("now", type_=task.updated_at.type)
_touched = {"updated_at": _now, "version": task.version + 1}

_read = select(*ROW).where(_this)
_insert = insert(TASK).values(
    user_id=bindparam("owner"),
    title_folded=bindparam("title_folded"),
    description_folded=bindparam("description_folded"),
    completed_at=bindparam("completed_at"),
    created_at=_now,
    updated_at=_now,
    version=1,
    idempotency_replays=0,
    **{name: bindparam("new_" + name) for name in _NEW},
)
_create = _insert.returning(*ROW)
_create_once = (
    _insert.values(
        idempotency_key=bindparam("key"), idempotency_fingerprint=bindparam("fingerprint")
    )
    .on_conflict_do_update(
        index_elements=[task.user_id, task.idempotency_key],
        index_where=task.idempotency_key.is_not(None),
        set_={"idempotency_replays": task.idempotency_replays + 1},
    )
    .returning(*ROW, task.idempotency_replays, task.idempotency_fingerprint)
)


def read_task(owner: str, task_id: int) -> Query:
    """The task."""
    return Query(_read, {"owner": owner, "task_id": task_id}, repeatable=True, many=_read_many)


def create_task(owner: str, new: TaskCreate, key: str | None = None) -> Query:
    """The new task.

    With an idempotency key: the task that the key made, now or before; then how often the key came
    again, and the fingerprint of the body that it came with first.
    """
    values = {"owner": owner, **_new_values(new)}
    values["completed_at"] = values["now"] if new.completed else None
    if key is None:
        return Query(_create, values, many=_create_many)
    values |= {"key": key, "fingerprint": fingerprint(new)}
    return Query(_create_once, values, repeatable=True)


def update_task(owner: str, task_id: int, change: TaskUpdate, versions: Versions = None) -> Query:
    """The task, with the fields that `change` sets, if its version is one of `versions`."""
    fields = tuple(sorted(change.model_fields_set))
    statement = _update(fields, guarded=versions is not None)
    many = _complete_many if fields == ("completed",) and versions is None else None
    return Query(statement, _one(owner, task_id, versions) | _new_values(change), many=many)


def toggle_task(owner: str, task_id: int, versions: Versions = None) -> Query:
    """The task, completed if it was pending and pending if it was completed."""
    statement = _toggle(guarded=versions is not None)
    many = _toggle_many if versions is None else None
    return Query(statement, _one(owner, task_id, versions) | {"now": now()}, many=many)


def delete_task(owner: str, task_id: int, versions: Versions = None) -> Query:
    """The task as it last was."""
    statement = _delete(guarded=versions is not None)
    return Query(statement, _one(owner, task_id, versions))


@lru_cache(maxsize=64)
def _update(fields: tuple[str, ...], *, guarded: bool) -> ClauseElement:
    return update(TASK).where(_one_task(guarded)).values(_changes(fields)).returning(*ROW)


@lru_cache
def _toggle(*, guarded: bool) -> ClauseElement:
    completed = not_(task.completed)
    toggled = {"completed": completed, "completed_at": case((completed, _now))}
    return update(TASK).where(_one_task(guarded)).values(toggled | _touched).returning(*ROW)


@lru_cache
def _delete(*, guarded: bool) -> ClauseElement:
    return delete(TASK).where(_one_task(guarded)).returning(*ROW)


def _one_task(guarded: bool) -> ColumnElement[bool]:
    """Return the condition for one task, with what an `If-Match` adds."""
    versions = bindparam("versions", type_=_NUMBERS)
    return and_(_this, _one_of(task.version, versions)) if guarded else _this


def _one(owner: str, task_id: int, versions: Versions) -> dict[str, Any]:
    guard = {} if versions is None else {"versions": list(versions)}
    return {"owner": owner, "task_id": task_id, **guard}


def _changes(fields: tuple[str, ...]) -> dict[str, Any]:
    """Return the SET clause for `fields`; without any, one that changes nothing."""
    changes: dict[str, Any] = {name: bindparam("new_" + name) for name in fields}
    for name in {"title", "description"}.intersection(fields):
        changes[name + "_folded"] = bindparam(name + "_folded")
    if "completed" in fields:
        since = func.coalesce(task.completed_at, _now)
        changes["completed_at"] = case((bindparam("new_completed", type_=Boolean()), since))
    return changes | _touched if fields else {"version": task.version}


def _new_values(body: TaskCreate | TaskUpdate) -> dict[str, Any]:
    return {
        "now": now(),
        "title_folded": body.title and body.title.casefold(),
        "description_folded": body.description and body.description.casefold(),
        **{"new_" + name: getattr(body, name) for name in _NEW},
    }


# ---- many tasks

# Of a filter, all but its values: (column, operator).
Shape = tuple[tuple[str, str], ...]


def list_tasks(owner: str, wanted: TaskQuery) -> Query:
    """One page of tasks, each row followed by how many match in all.

    Past the last page there is one row, of nulls and that count.
    """
    statement = _list(_shape(wanted), wanted.sort, wanted.offset > 0)
    page = {"limit": wanted.limit, "offset": wanted.offset}
    narrowed = wanted.conditions or wanted.sort or wanted.offset or wanted.limit < MAX_PAGE
    many = None if narrowed else _list_many
    return Query(statement, _values(owner, wanted) | page, repeatable=True, many=many)


def update_tasks(owner: str, wanted: TaskFilter, change: TaskUpdate) -> Query:
    """Nothing but the number of rows: the change made to every match."""
    statement = _update_all(_shape(wanted), tuple(sorted(change.model_fields_set)))
    values = _values(owner, wanted) | _new_values(change)
    return Query(statement, values, deadline=BULK_DEADLINE)


def delete_tasks(owner: str, wanted: TaskFilter) -> Query:
    """Nothing but the number of rows: every match deleted."""
    return Query(_delete_all(_shape(wanted)), _values(owner, wanted), deadline=BULK_DEADLINE)


def count_tasks(owner: str, wanted: TaskFilter) -> Query:
    """The numbers of all matches, of the completed, the pending and the overdue ones."""
    values = _values(owner, wanted) | _present()
    return Query(_count(_shape(wanted)), values, repeatable=True)


@lru_cache(maxsize=128)
def _list(shape: Shape, sort: tuple[str, ...], skipping: bool) -> ClauseElement:
    if not skipping:
        rows = select(*ROW, func.count().over().label("total")).where(_matching(shape))
        return rows.order_by(*_order_by(sort, task)).limit(bindparam("limit"))
    total = select(func.count().label("total")).where(_matching(shape)).subquery()
    page = (
        select(*ROW, task.title_folded, task.description_folded)
        .where(_matching(shape))
        .order_by(*_order_by(sort, task))
        .limit(bindparam("limit"))
        .offset(bindparam("offset"))
        .subquery()
    )
    rows = select(*(page.c[column.name] for column in ROW), total.c.total)
    return rows.select_from(total.outerjoin(page, true())).order_by(*_order_by(sort, page.c))


@lru_cache(maxsize=64)
def _update_all(shape: Shape, fields: tuple[str, ...]) -> ClauseElement:
    return update(TASK).where(_matching(shape)).values(_changes(fields))


@lru_cache(maxsize=64)
def _delete_all(shape: Shape) -> ClauseElement:
    return delete(TASK).where(_matching(shape))


@lru_cache(maxsize=64)
def _count(shape: Shape) -> ClauseElement:
    counts = [
        func.count().filter(condition).label(name)
        for name, condition in (
            ("completed", task.completed),
            ("pending", not_(task.completed)),
            ("overdue", _overdue()),
        )
    ]
    return select(func.count().label("total"), *counts).where(_matching(shape))


def _order_by(sort: tuple[str, ...], columns: Any) -> list[ColumnElement[Any]]:
    keys = []
    for key in sort or ("-created_at",):
        field = key.removeprefix("-")
        column = columns.get(field + "_folded", columns[field])
        ordered = column.desc() if key.startswith("-") else column.asc()
        keys.append(ordered.nulls_last() if task[field].nullable else ordered)
    # Newest first among equals where the last key goes down: then the default order is an index's.
    return [*keys, columns.id.desc() if not sort or sort[-1].startswith("-") else columns.id.asc()]


def _shape(wanted: TaskFilter) -> Shape:
    return tuple((column, operator) for column, operator, _ in wanted.conditions)


def _values(owner: str, wanted: TaskFilter) -> dict[str, Any]:
    values: dict[str, Any] = {"owner": owner}
    if any(condition.column == "overdue" for condition in wanted.conditions):
        values |= _present()
    return values | {f"p{place}": each.value for place, each in enumerate(wanted.conditions)}


def _present() -> dict[str, str]:
    present = timestamp(datetime.now(UTC))
    return {"present": present, "today": present[:10]}


def _matching(shape: Shape) -> ColumnElement[bool]:
    return and_(_owned, *(_clause(f"p{place}", *part) for place, part in enumerate(shape)))


def _overdue() -> ColumnElement[bool]:
    """Return whether a task is due before now and not completed; days are over when UTC says so.

    As text, a day sorts before the instants of that day, so of all that sorts before the present
    only today itself is not over.
    """
    due = task.due_date
    late = and_(not_(task.completed), due < bindparam("present"), due != bindparam("today"))
    return func.coalesce(late, false(), type_=Boolean())


def _clause(name: str, field: str, operator: str) -> ColumnElement[bool]:
    if field == "text":
        return or_(
            *(_clause(name, f"{part}_folded", operator) for part in ("title", "description"))
        )
    if field == "tags" and operator != "like":
        holds = _has_tags(task.tags, bindparam(name, type_=TextList))
        return holds if operator == "eq" else not_(holds)
    column: Any = _overdue() if field == "overdue" else task[field]
    if operator == "like":
        return _contains(_as_text(column), bindparam(name, type_=Text()))
    if operator == "in":
        return _one_of(column, bindparam(name, type_=_NUMBERS))
    value = bindparam(name, type_=column.type)
    return cast(ColumnElement[bool], _COMPARISONS[operator](column, value))


def _as_text(column: Any) -> Any:
    """Return a column as the text that a client sees; of tags, one a line."""
    if column is task.tags:
        return _tag_lines(column)
    if isinstance(column.type, UTCDateTime):
        return _timestamp_text(column)
    return sqlalchemy.cast(column, Text())


_COMPARISONS: Final[Mapping[str, Callable[[Any, Any], Any]]] = {
    "eq": lambda column, value: column.is_not_distinct_from(value),
    "ne": lambda column, value: column.is_distinct_from(value),
    "lt": lambda column, value: column < value,
    "gt": lambda column, value: column > value,
    "lte": lambda column, value: column <= value,
    "gte": lambda column, value: column >= value,
}


# ---- the same for many callers at once (PostgreSQL)
#
# `calls` is a JSON array of the parameters of each, numbered by `n`; every row that comes back
# begins with the number of the call that it answers. The owner stands in every join.


def _calls(**types: Any) -> Any:
    columns = (sqlalchemy.column(name, kind) for name, kind in {"n": Integer(), **types}.items())
    records = func.json_to_recordset(sqlalchemy.cast(bindparam("calls", type_=Text()), JSON))
    return records.table_valued(*columns).render_derived(name="call", with_types=True)


_one_call = _calls(owner=Text(), task_id=BigInteger(), now=_now.type, new_completed=Boolean())
_call_this = and_(task.user_id == _one_call.c.owner, task.id == _one_call.c.task_id)
_read_many = select(_one_call.c.n, *ROW).select_from(_one_call.join(TASK, _call_this))

_page = (
    select(*ROW, func.count().over().label("total"))
    .where(task.user_id == _one_call.c.owner)
    .order_by(*_order_by((), task))
    .limit(MAX_PAGE)
    .lateral()
)
_list_many = (
    select(_one_call.c.n, *(_page.c[column.name] for column in ROW), _page.c.total)
    .select_from(_one_call.join(_page, true()))
    .order_by(_one_call.c.n, *_order_by((), _page.c))
)

# Locked in the order of their ids, so that two of these never wait for each other.
_locked = (
    select(_one_call.c.n, task.user_id, task.id, _one_call.c.now, _one_call.c.new_completed)
    .select_from(_one_call.join(TASK, _call_this))
    .order_by(task.id)
    .with_for_update(of=TASK)
    .cte("locked")
)


def _complete(completed: ColumnElement[bool], since: Any) -> ClauseElement:
    return (
        update(TASK)
        .where(task.user_id == _locked.c.user_id, task.id == _locked.c.id)
        .values(
            completed=completed,
            completed_at=case((completed, since)),
            updated_at=_locked.c.now,
            version=task.version + 1,
        )
        .returning(_locked.c.n, *ROW)
    )


_toggle_many = _complete(not_(task.completed), _locked.c.now)
_complete_many = _complete(_locked.c.new_completed, func.coalesce(task.completed_at, _locked.c.now))

# Ids are given out before the insert: the order of RETURNING means nothing.
_made_of = {
    "user_id": "owner",
    "title_folded": "title_folded",
    "description_folded": "description_folded",
    "completed_at": "completed_at",
    "created_at": "now",
    "updated_at": "now",
    **{name: "new_" + name for name in _NEW},
}
_new_call = _calls(**{name: task[field].type for field, name in _made_of.items()})
_new = select(
    _new_call.c.n,
    func.nextval("task_id_seq").label("id"),
    *(_new_call.c[name].label(field) for field, name in _made_of.items()),
    literal(1).label("version"),
    literal(0).label("idempotency_replays"),
).cte("new")
_made = (
    insert(TASK)
    .from_select(
        [column.name for column in _new.c if column.name != "n"],
        select(*(column for column in _new.c if column.name != "n")),
        include_defaults=False,
    )
    .returning(*ROW)
    .cte("made")
)
_create_many = select(_new.c.n, *_made.c).select_from(_new.join(_made, _new.c.id == _made.c.id))


# ---- where the two databases differ


def _spelt(
    kind: TypeEngine[Any], *, postgresql: str, sqlite: str
) -> Callable[..., ColumnElement[Any]]:
    """Return a SQL function that each database spells its own way; `{0}` is its first argument."""

    class Spelt(FunctionElement[Any]):
        type = kind
        inherit_cache = True

    def spell(template: str) -> Any:
        def compile_(function: Any, compiler: Any, **options: Any) -> str:
            return template.format(
                *(compiler.process(part, **options) for part in function.clauses)
            )

        return compile_

    compiles(Spelt, "postgresql")(spell(postgresql))
    compiles(Spelt, "sqlite")(spell(sqlite))
    return Spelt


# Whether the first text holds the second; nothing in it is a wildcard.
_contains = _spelt(Boolean(), postgresql="strpos({0}, {1}) > 0", sqlite="instr({0}, {1}) > 0")
# Whether a number is in a list; the list is one parameter, however long it is.
_one_of = _spelt(
    Boolean(),
    postgresql="{0} = ANY ({1})",
    sqlite="{0} IN (SELECT value FROM json_each({1}))",
)
# Whether the first tags hold all of the second.
_has_tags = _spelt(
    Boolean(),
    postgresql="{0} @> {1}",
    sqlite="NOT EXISTS (SELECT value FROM json_each({1}) EXCEPT SELECT value FROM json_each({0}))",
)
# Tags as text, one a line.
_tag_lines = _spelt(
    Text(),
    postgresql="array_to_string({0}, chr(10))",
    sqlite="(SELECT coalesce(group_concat(value, char(10)), '') FROM json_each({0}))",
)
# A timestamp as the text that a client sees.
_timestamp_text = _spelt(
    Text(),
    postgresql="to_char({0} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')",
    sqlite="replace({0}, ' ', 'T') || 'Z'",
)
