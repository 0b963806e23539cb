"""The statements of the routes of tasks."""

from collections.abc import Sequence
from functools import lru_cache
from hashlib import sha256
from typing import Any, Final, NamedTuple

import sqlalchemy as sa

# Its ON CONFLICT compiles for SQLite as well.
from sqlalchemy.dialects.postgresql import insert

from engines import BULK_DEADLINE
from engines.spelling import one_of, or_nothing, random_number, timestamp
from models import FEED, GONE, ROW, TASK, NumberList
from queries import Query, gathered, new_uid, now
from queries.conditions import LIVE, OWNED, Shape, by_key, matching, order_by, overdue, settled
from queries.gathered import FRESH, MADE_OF, NEW, ONCE, UNLESS_OTHER
from queries.positions import MADE, MOVED, MOVED_KNOWN, OWNER, RAISE, RAISE_KNOWN, RAISE_OR_MAKE
from schemas import MAX_PAGE, TaskCreate, TaskFilter, TaskQuery, TaskUpdate

Versions = tuple[int, ...] | None  # what If-Match allows; None allows any
Positions = tuple[int, ...] | None  # the same for a bulk call
Ref = int | str  # the id or the uid of a task

task, feed = TASK.c, FEED.c
# Fields that came after fingerprints did: they count only where they say something.
_LATER: Final = ("uid", "deleted", "remind_at", "recurrence", "repeat_from")


def fingerprint(new: TaskCreate) -> str:
    """Return what tells the body of one create from another: a SHA-256 of what it means."""
    fields = TaskCreate.model_fields
    silent = {name for name in _LATER if getattr(new, name) == fields[name].default}
    return sha256(new.model_dump_json(exclude=silent).encode()).hexdigest()


# ---- one task

NOW = sa.bindparam("now", type_=task.updated_at.type)
TOUCHED = {"updated_at": NOW, "version": random_number(), "position": MOVED.c.position}

# What comes again with the same uid or key counts, and shows what it came with first.
_again = {"idempotency_replays": task.idempotency_replays + 1}
_insert = insert(TASK).values(
    position=MADE,
    **FRESH,
    **{column: sa.bindparam(name) for column, name in MADE_OF.items()},
)
_create = _insert.returning(*ROW)
# These make one task however often they come.
_insert_once = _insert.values({column: sa.bindparam(name) for column, name in ONCE.items()})
_create_all = _insert_once.on_conflict_do_update(**UNLESS_OTHER).returning(*ROW)


def _create_once(key: Any, where: Any = None) -> sa.ClauseElement:
    once = _insert_once.values(idempotency_key=sa.bindparam("key")).on_conflict_do_update(
        index_elements=[task.user_id, key], index_where=where, set_=_again
    )
    return once.returning(*ROW, task.idempotency_replays, task.idempotency_fingerprint)


_create_by_uid = _create_once(task.uid)
_create_by_key = _create_once(task.idempotency_key, task.idempotency_key.is_not(None))


class Target(NamedTuple):
    """How a statement finds its one task."""

    key: str  # task_id or task_uid
    guarded: bool = False  # by `If-Match`
    trash: bool = False  # also there

    def found(self) -> sa.ColumnElement[bool]:
        """Return the condition."""
        found = sa.and_(OWNED, task[self.key.removeprefix("task_")] == sa.bindparam(self.key))
        if not self.trash:
            found &= by_key(LIVE)
        if self.guarded:
            found &= one_of(task.version, sa.bindparam("versions", type_=NumberList))
        return found


_GATHERED = Target("task_id")


def read_task(owner: str, ref: Ref, *, trash: bool = False) -> Query:
    """The task, unless it is in the trash and not looked for there."""
    one, values = _target(owner, ref, trash=trash)
    many = gathered.READ if one == _GATHERED else None
    return Query(_read(one), values, repeatable=True, many=many, planned_once=True)


def create_task(owner: str, new: TaskCreate, key: str | None = None) -> Query:
    """The new task.

    With a uid or an idempotency key: the task that it made, now or before; then how often it came
    again, and the fingerprint of the body that it came with first.
    """
    values = _made(owner, new)
    if key is None and new.uid is None:
        return Query(_create, values, many=gathered.CREATE, planned_once=True, raises=RAISE_OR_MAKE)
    values |= {"key": key, "fingerprint": fingerprint(new)}
    once = _create_by_uid if new.uid else _create_by_key
    alone = bool(key and new.uid)  # with both it may be refused after the position is raised
    return Query(once, values, repeatable=True, raises=RAISE_OR_MAKE, alone=alone)


def create_tasks(owner: str, new: Sequence[TaskCreate]) -> Query:
    """The new tasks, all or none: none where a uid is that of a task with another body."""
    return Query(
        _create_all,
        {"owner": owner},
        many=gathered.CREATE_ALL,
        raises=RAISE_OR_MAKE,
        each=[_made(owner, one) | {"fingerprint": fingerprint(one)} for one in new],
        deadline=BULK_DEADLINE,
    )


def _made(owner: str, new: TaskCreate) -> dict[str, Any]:
    """Return the parameters of what a create stores."""
    return {"owner": owner, "new_uid": new.uid or new_uid(), **new_values(new)}


def update_task(
    owner: str, ref: Ref, change: TaskUpdate, versions: Versions = None, *, ruled: bool = False
) -> Query:
    """The task, with the fields that `change` sets, if its version is one of `versions`.

    One in the trash is found where that takes it out; one that repeats, where that matters, if its
    rule is heeded (`ruled`, see `repeating.py`).
    """
    fields = tuple(sorted(change.model_fields_set))
    one, values = _target(owner, ref, versions, trash=change.deleted is False)
    if not fields:
        return Query(_read(one), values, repeatable=True)
    many = gathered.COMPLETE if fields == ("completed",) and one == _GATHERED else None
    values |= new_values(change)
    return Query(_update(one, fields, ruled), values, many=many, raises=RAISE)


def toggle_task(owner: str, ref: Ref, versions: Versions = None) -> Query:
    """The task, completed if it was pending and pending if it was completed, unless it repeats."""
    one, values = _target(owner, ref, versions)
    many = gathered.TOGGLE if one == _GATHERED else None
    values["now"] = now()
    return Query(_toggle(one), values, many=many, planned_once=True, raises=RAISE)


def delete_task(owner: str, ref: Ref, versions: Versions = None, *, forever: bool = False) -> Query:
    """The task as it is in the trash now; gone for good, also from there, as it last was."""
    if not forever:
        return update_task(owner, ref, TaskUpdate(deleted=True), versions)
    one, values = _target(owner, ref, versions, trash=True)
    return Query(_purge(one), values | {"now": now()}, raises=RAISE)


@lru_cache(maxsize=32)
def _read(one: Target) -> sa.ClauseElement:
    return sa.select(*ROW).where(one.found())


@lru_cache(maxsize=32)
def _update(one: Target, fields: tuple[str, ...], ruled: bool) -> sa.ClauseElement:
    return _changed(one, _set_clause(fields), sa.true() if ruled else settled(fields))


@lru_cache(maxsize=32)
def _toggle(one: Target) -> sa.ClauseElement:
    toggled = sa.not_(task.completed)
    values = {"completed": toggled, "completed_at": sa.case((toggled, NOW))}
    return _changed(one, values, settled({"completed"}))


def _changed(one: Target, values: dict[str, Any], may: sa.ColumnElement[bool]) -> sa.ClauseElement:
    found = sa.and_(one.found(), task.user_id == MOVED.c.user_id, may)
    return sa.update(TASK).where(found).values(values | TOUCHED).returning(*ROW)


@lru_cache(maxsize=32)
def _purge(one: Target) -> sa.ClauseElement:
    return purging(one.found(), shown=True)


def purging(
    found: sa.ColumnElement[bool], moved: Any = MOVED, *, shown: bool = False
) -> sa.ClauseElement:
    """Return what deletes all that is found for good, shown or else counted, and writes it down;
    on SQLite a trigger does that.
    """
    which = sa.and_(found, task.user_id == moved.c.user_id)
    deleted = sa.delete(TASK).where(which).returning(*ROW, moved.c.position).cte("deleted")
    told = ("user_id", "id", "uid", "position")
    rows = sa.select(*(deleted.c[name] for name in told), NOW)
    buried = insert(GONE).from_select([*told, "gone_at"], rows).cte("buried")
    columns = [deleted.c[column.name] for column in ROW] if shown else [sa.func.count()]
    there = sa.delete(TASK).where(found)
    purge = sa.select(*columns).select_from(deleted).add_cte(buried)
    return purge.execution_options(on_sqlite=there.returning(*ROW) if shown else there)


def _target(
    owner: str, ref: Ref, versions: Versions = None, *, trash: bool = False
) -> tuple[Target, dict[str, Any]]:
    """Return how a task is found, and the parameters that say which one."""
    key = "task_id" if isinstance(ref, int) else "task_uid"
    guard = {} if versions is None else {"versions": list(versions)}
    return Target(key, versions is not None, trash), {"owner": owner, key: ref, **guard}


def _set_clause(fields: tuple[str, ...]) -> dict[str, Any]:
    changes: dict[str, Any] = {name: sa.bindparam("new_" + name) for name in fields}
    for name in {"title", "description"}.intersection(fields):
        changes[name + "_folded"] = sa.bindparam(name + "_folded")
    for name in {"completed", "deleted"}.intersection(fields):
        is_so, since = sa.bindparam("new_" + name, type_=sa.Boolean()), task[name + "_at"]
        changes[name + "_at"] = sa.case((is_so, sa.func.coalesce(since, NOW)))
    if changes.pop("deleted", None) is not None:
        kept = sa.not_(sa.bindparam("new_deleted", type_=sa.Boolean()))
        changes["idempotency_key"] = sa.case((kept, task.idempotency_key))
    return changes


def new_values(body: TaskCreate | TaskUpdate) -> dict[str, Any]:
    """Return the parameters of what a body says, and what follows from it."""
    moment = now()
    return {
        "now": moment,
        "title_folded": body.title and body.title.casefold(),
        "description_folded": body.description and body.description.casefold(),
        "completed_at": moment if body.completed else None,
        "deleted_at": moment if body.deleted else None,
        "new_deleted": body.deleted,
        **{"new_" + name: getattr(body, name) for name in NEW},
    }


# ---- many tasks


def read_position(owner: str) -> Query:
    """The user's position; nothing before the first change."""
    return Query(_at_position, {"owner": owner}, repeatable=True)


def make_position(owner: str) -> Query:
    """Nothing but the number of rows: one if the user has tasks, but had no position.

    So it is where a version that knew none has made the tasks, during a rolling update.
    """
    return Query(_make_position, {"owner": owner})


def list_tasks(owner: str, wanted: TaskQuery, *, certain: bool = False) -> Query:
    """One page of tasks, each row followed by how many match in all, and the user's position.

    Where the page is empty there is one row, of nulls and those; or none, unless it is to be
    `certain`: without a filter, which finds nothing only for a new user, that row is not worth its
    cost. With `before` there is one task more if there is.
    """
    going_on = wanted.before is not None
    certain |= bool(wanted.offset or wanted.conditions)
    statement = _list(shape_of(wanted), wanted.sort, going_on, certain)
    values = filter_values(owner, wanted)
    values |= {"limit": wanted.limit + going_on, "offset": wanted.offset, "before": wanted.before}
    plain = not (wanted.conditions or wanted.sort or going_on or wanted.offset)
    many = gathered.LIST if plain and wanted.limit == MAX_PAGE else None
    return Query(statement, values, repeatable=True, many=many, planned_once=plain)


def update_tasks(
    owner: str,
    wanted: TaskFilter,
    change: TaskUpdate,
    known: Positions = None,
    *,
    ruled: bool = False,
) -> Query:
    """Nothing but the number of rows: the change made to every match, all at one position.

    With `known`, nothing is done unless that is one of these; nor, unless its rule is heeded
    (`ruled`), where it matters that a match repeats. A change of nothing only counts.
    """
    fields = tuple(sorted(change.model_fields_set))
    if not fields:
        return count_tasks(owner, wanted)
    ruled |= change.completed is False and "due_date" not in fields  # which makes no next task
    return bulk(_update_all, owner, wanted, known, new_values(change), fields, ruled)


def delete_tasks(owner: str, wanted: TaskFilter, known: Positions = None) -> Query:
    """Nothing but the number of rows: every match in the trash, those of the trash gone for good.

    On PostgreSQL what is gone for good is counted in a row.
    """
    if not any(condition.column == "deleted" for condition in wanted.conditions):
        return update_tasks(owner, wanted, TaskUpdate(deleted=True), known)
    return bulk(_purge_all, owner, wanted, known, {"now": now()})


def bulk(
    build: Any, owner: str, wanted: TaskFilter, known: Positions, values: Any, *more: Any
) -> Query:
    guard = {} if known is None else {"positions": list(known)}
    return Query(
        build(shape_of(wanted), known is not None, *more),
        filter_values(owner, wanted) | values | guard,
        deadline=BULK_DEADLINE,
        raises=RAISE if known is None else RAISE_KNOWN,
    )


def count_tasks(owner: str, wanted: TaskFilter) -> Query:
    """The numbers of all matches, of the completed, the pending and the overdue ones."""
    values = filter_values(owner, wanted) | {"present": timestamp(now())}
    return Query(_count(shape_of(wanted)), values, repeatable=True)


_at_position = sa.select(feed.position).where(feed.user_id == OWNER)
# From a row of the user's shard: else Citus counts a row also where there was one.
_row = sa.select(task.user_id, sa.literal(1), sa.literal(0)).where(OWNED).limit(1)
_make_position = (
    insert(FEED).from_select(["user_id", "position", "forgotten"], _row).on_conflict_do_nothing()
)
_position = sa.func.coalesce(_at_position.scalar_subquery(), 1).label("position")


@lru_cache(maxsize=32)
def _list(shape: Shape, sort: tuple[str, ...], going_on: bool, certain: bool) -> sa.ClauseElement:
    # Counted apart: a count over the rows of the page would read all of every match.
    total = sa.select(sa.func.count()).where(matching(shape)).scalar_subquery().label("total")
    page = (
        sa.select(*ROW)
        .where(matching(shape), *([task.id < sa.bindparam("before")] if going_on else []))
        .order_by(*order_by(sort, task))
        .limit(sa.bindparam("limit", type_=sa.BigInteger()))
    )
    if not certain:
        return page.add_columns(total, _position)
    # Nor is a page looked for that the count says is empty.
    known = sa.select(total, _position).cte("known")
    page = page.add_columns(task.title_folded, task.description_folded)
    offset = sa.bindparam("offset", type_=sa.BigInteger())
    page = page.where(sa.select(known.c.total).scalar_subquery() > offset)
    shown = page.offset(offset).subquery()
    rows = sa.select(*(shown.c[column.name] for column in ROW), *known.c)
    return rows.select_from(known.outerjoin(shown, sa.true())).order_by(*order_by(sort, shown.c))


@lru_cache(maxsize=32)
def _update_all(shape: Shape, guarded: bool, fields: tuple[str, ...], ruled: bool) -> Any:
    moved = MOVED_KNOWN if guarded else MOVED
    touched = TOUCHED | {"position": moved.c.position}
    if not ruled:
        touched["version"] = random_number() * or_nothing(settled(fields))
    found = sa.and_(matching(shape), task.user_id == moved.c.user_id)
    return sa.update(TASK).where(found).values(_set_clause(fields) | touched)


@lru_cache(maxsize=32)
def _purge_all(shape: Shape, guarded: bool) -> sa.ClauseElement:
    return purging(matching(shape), MOVED_KNOWN if guarded else MOVED)


@lru_cache(maxsize=32)
def _count(shape: Shape) -> sa.ClauseElement:
    kinds = {"completed": task.completed, "pending": sa.not_(task.completed), "overdue": overdue()}
    counts = [sa.func.count().filter(each).label(name) for name, each in kinds.items()]
    return sa.select(sa.func.count().label("total"), *counts).where(matching(shape))


def shape_of(wanted: TaskFilter) -> Shape:
    return tuple((column, operator) for column, operator, _ in wanted.conditions)


def filter_values(owner: str, wanted: TaskFilter) -> dict[str, Any]:
    values: dict[str, Any] = {"owner": owner}
    if any(condition.column == "overdue" for condition in wanted.conditions):
        values["present"] = timestamp(now())
    return values | {f"p{place}": each.value for place, each in enumerate(wanted.conditions)}
