"""Statements on tasks that repeat: completing one makes the next (contract section 10).

No database knows the next date. So the rules are read, and the change is made where they are still
what was read; the next tasks are made in the same statement, on SQLite in the same transaction.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

import sqlalchemy
from pydantic_core import to_json
from sqlalchemy import (
    JSON,
    ClauseElement,
    ColumnElement,
    Text,
    Update,
    and_,
    bindparam,
    case,
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

from engines import BULK_DEADLINE
from engines.spelling import one_of, or_nothing, random_number
from filters import UNRULED, Shape, by_key, matching
from models import ROW, TASK, NumberList
from positions import MOVED_KNOWN, OWNER, RAISE
from queries import (
    TOGGLED,
    TOUCHED,
    Query,
    Target,
    Versions,
    bulk,
    changed_one,
    filter_values,
    named,
    new_values,
    now,
    set_clause,
    shape_of,
)
from schemas import TaskFilter, TaskUpdate

task = TASK.c
RULED: Final = ("recurrence", "due_date", "remind_at", "repeat_from")  # what the next follows from
OWN: Final = ("uid", "due_date", "remind_at", "recurrence")
_HIDDEN: Final = ("title_folded", "description_folded", "position")  # not in `ROW`
_SAME: Final = (
    *["user_id", "title", "description", "priority", "repeat_from", "tags", "order"],
    *_HIDDEN,
)
_now = bindparam("now", type_=task.updated_at.type)

# Whether the task is still what the next one was reckoned from.
_unchanged = and_(
    *(task[name].is_not_distinct_from(bindparam("known_" + name, type_=Text())) for name in RULED)
)
# Whether the rule of the task has been read.
_read = one_of(task.id, bindparam("read", type_=NumberList))
_makes = and_(not_(task.completed), one_of(task.id, bindparam("repeating", type_=NumberList)))
_repeated = {"repeated_at": func.coalesce(task.repeated_at, case((_makes, _now)))}


def _next(source: Any, old: Any, own: dict[str, Any], owned: ColumnElement[bool]) -> Any:
    """Return the step that makes the next of every task of `source` that has just been completed.

    `owned`: that the task is the user's.
    """
    values = {
        **{name: old[name] for name in _SAME},
        **own,
        "completed": false(),
        "created_at": _now,
        "updated_at": _now,
        "version": random_number(),
        "idempotency_replays": literal(0),
    }
    rows = select(*values.values()).select_from(source)
    rows = rows.where(old.repeated_at == _now, owned)
    made = insert(TASK).from_select(list(values), rows, include_defaults=False)
    return made.on_conflict_do_nothing(index_elements=[task.user_id, task.uid])


def _with_next(changed: Update, *, count: bool) -> ClauseElement:
    """Return a change that makes the next tasks in the same statement (PostgreSQL).

    It returns the tasks that are changed, or how many.
    """
    columns = (sqlalchemy.column(name, task[name].type) for name in ("id", *OWN))
    records = func.json_to_recordset(sqlalchemy.cast(bindparam("nexts", type_=Text()), JSON))
    new: Any = records.table_valued(*columns).render_derived(name="new", with_types=True)
    hidden = (task[name] for name in (*_HIDDEN, "repeated_at"))
    old = changed.returning(*ROW, *hidden).cte("changed")
    owned = old.c.user_id == OWNER
    its = {name: new.c[name] for name in OWN}
    made = _next(new.join(old, old.c.id == new.c.id), old.c, its, owned)
    shown = [func.count()] if count else [old.c[column.name] for column in ROW]
    return select(*shown).select_from(old).add_cte(made.cte("made"))


_new: Any = func.json_each(bindparam("nexts", type_=Text())).table_valued("value")
_own = {name: func.json_extract(_new.c.value, f"$.{name}") for name in ("id", *OWN)}
# The same as a statement of its own, for SQLite, which has no steps that write. It finds each task
# by its id: it would else go through all of the user's, and for each through all that is new.
_by_id = task.id == _own.pop("id")
_next_there = _next(_new.join(TASK, _by_id), task, _own, by_key(task.user_id == OWNER))


def repeat_task(
    owner: str,
    was: Mapping[str, Any],
    change: TaskUpdate | None,
    versions: Versions,
    nexts: Sequence[Mapping[str, Any]],
) -> Query:
    """The task, changed or toggled, if its rule and its dates are still what they were.

    `nexts` has what the next task has of its own; it is made if this completes the task.
    """
    key, values = named(owner, was["id"], versions)
    trash = change is not None and change.deleted is False
    fields = None if change is None else tuple(sorted(change.model_fields_set))
    together, there = _repeat(Target(key, versions is not None, trash), fields)
    values |= {"known_" + name: was[name] for name in RULED} | _made(nexts)
    values |= {"now": now()} if change is None else new_values(change)
    return Query(together, values, on_sqlite=there, raises=RAISE, then=_next_there)


def read_rules(owner: str, wanted: TaskFilter, change: TaskUpdate) -> Query:
    """Of every match that repeats, of all where `change` makes them: `id`, `uid`, and the rest."""
    statement = _read_rules(shape_of(wanted), change.recurrence is not None)
    values = filter_values(owner, wanted)
    return Query(statement, values, repeatable=True, deadline=BULK_DEADLINE)


def repeat_tasks(
    owner: str,
    wanted: TaskFilter,
    change: TaskUpdate,
    position: int,
    read: Sequence[int],
    nexts: Sequence[Mapping[str, Any]],
) -> Query:
    """How many: the change made to every match, and the next tasks, all at one position.

    Nothing is done unless the user is still at `position`, and what repeats has been `read`.
    """
    values = new_values(change) | {"read": list(read)} | _made(nexts)
    shape = tuple(sorted(change.model_fields_set)), change.recurrence is not None
    query = bulk(_repeat_all, owner, wanted, (position,), values, *shape)
    there = _repeat_all_there(shape_of(wanted), True, *shape)
    return query._replace(on_sqlite=there, then=_next_there)


def _made(nexts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {"nexts": to_json(nexts).decode(), "repeating": [one["id"] for one in nexts]}


@lru_cache(maxsize=32)
def _repeat(one: Target, fields: tuple[str, ...] | None) -> tuple[ClauseElement, ClauseElement]:
    changes = TOGGLED if fields is None else set_clause(fields)
    changed = changed_one(one, changes | TOUCHED | _repeated).where(_unchanged)
    return _with_next(changed, count=False), changed.returning(*ROW)


@lru_cache(maxsize=32)
def _read_rules(shape: Shape, every: bool) -> ClauseElement:
    columns = (task[name] for name in ("id", "uid", *RULED))
    return select(*columns).where(matching(shape), true() if every else not_(UNRULED))


@lru_cache(maxsize=32)
def _repeat_all_there(shape: Shape, guarded: bool, fields: tuple[str, ...], every: bool) -> Update:
    read = or_nothing(_read if every else or_(UNRULED, _read))
    values = {"position": MOVED_KNOWN.c.position, "version": random_number() * read}
    found = and_(matching(shape), task.user_id == MOVED_KNOWN.c.user_id)
    return update(TASK).where(found).values(set_clause(fields) | TOUCHED | values | _repeated)


@lru_cache(maxsize=32)
def _repeat_all(*shape: Any) -> ClauseElement:
    return _with_next(_repeat_all_there(*shape), count=True)
