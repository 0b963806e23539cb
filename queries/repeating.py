"""Tasks that repeat: completing one makes the next (contract section 10).

No database knows the next date. So what repeats is read, and changed while it is still that; the
next tasks are made in the same statement, on SQLite in the same transaction.
"""

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final
from uuid import NAMESPACE_URL, uuid5

import sqlalchemy as sa

# Its ON CONFLICT compiles for SQLite as well.
from sqlalchemy.dialects.postgresql import insert

from engines import BULK_DEADLINE
from engines.spelling import one_of
from errors import invalid
from models import TASK, NumberList
from queries import Query
from queries.conditions import Shape, matching
from queries.gathered import FRESH, NEW
from queries.tasks import NOW, filter_values, shape_of
from recurrence import check, following
from schemas import TaskFilter, TaskUpdate

Nexts = Mapping[int, Sequence[str | None]]  # by the id of a task, what its next has of its own
RULED: Final = ("recurrence", "due_date", "remind_at", "repeat_from")
FOLLOWED: Final = ("id", "uid", "completed", *RULED)  # what the next one follows from
_OWN: Final = ("uid", "due_date", "remind_at", "recurrence")  # that is in this order
# What it has of the old one, but where it has its own.
_SAME: Final = (*NEW, "user_id", "title_folded", "description_folded", "position")


def nexts_of(tasks: Iterable[Mapping[str, Any]], change: TaskUpdate) -> Nexts:
    """Return what the next tasks have of their own, or raise 422 if a task cannot repeat so."""
    today = datetime.now(UTC).date()
    sent = change.model_dump(exclude_unset=True)
    nexts = {}
    for task in tasks:
        rule, due_date, remind_at, repeat_from = (sent.get(name, task[name]) for name in RULED)
        if rule is None:
            continue
        try:
            check(rule, due_date)
        except ValueError as error:
            field = "recurrence" if "recurrence" in sent else "due_date"
            raise invalid("body", field, str(error)) from None
        completes = change.completed and not task["completed"]
        if completes and (found := following(rule, due_date, remind_at, repeat_from, today)):
            nexts[task["id"]] = (next_uid(task), *found)
    return nexts


def next_uid(task: Mapping[str, Any]) -> str:
    """Return the uid of the next task: of each one there is one next."""
    return str(uuid5(NAMESPACE_URL, f"next:{task['id']}:{task['uid']}"))


def read_rules(owner: str, wanted: TaskFilter, change: TaskUpdate) -> Query:
    """What the next task follows from (`FOLLOWED`), of every match that repeats or shall repeat."""
    statement = _read_rules(shape_of(wanted), change.recurrence is not None)
    values = filter_values(owner, wanted)
    return Query(statement, values, repeatable=True, deadline=BULK_DEADLINE)


def with_next(query: Query, nexts: Nexts) -> Query:
    """The same change, with the next tasks: only while what they follow from is as it was read."""
    if not isinstance(query.statement, sa.Update):  # a change of nothing
        return query
    values = {**query.parameters, "nexts": nexts, "repeating": list(nexts)}
    together = _with_next(query.statement)
    return query._replace(statement=together, parameters=values, then=_next_there)


# ---- as SQL

task = TASK.c
_repeats = one_of(task.id, sa.bindparam("repeating", type_=NumberList))
_mark = sa.func.coalesce(task.repeated_at, sa.case((_repeats, NOW)))
_pair = sa.column("key", sa.Text()), sa.column("value", sa.JSON())
_each = sa.func.json_each(sa.bindparam("nexts", type_=sa.JSON()))
_new: Any = _each.table_valued(*_pair, name="new")


@lru_cache(maxsize=32)
def _read_rules(shape: Shape, every: bool) -> sa.ClauseElement:
    columns = (task[name] for name in FOLLOWED)
    ruled = sa.true() if every else task.recurrence.is_not(None)
    return sa.select(*columns).where(matching(shape), ruled)


def _next(old: Any) -> Any:
    """Return what makes the next of each task of `old` that has just been marked."""
    values = {
        **{name: old.c[name] for name in _SAME},
        **{name: _new.c.value[place].as_string() for place, name in enumerate(_OWN)},
        **FRESH,
        "completed": sa.false(),
        "created_at": NOW,
        "updated_at": NOW,
    }
    # Only the owner's tasks are read, and so marked.
    this = old.c.id == sa.cast(_new.c.key, sa.BigInteger)
    rows = sa.select(*values.values()).where(this, old.c.repeated_at == NOW).order_by(old.c.id)
    made = insert(TASK).from_select(list(values), rows, include_defaults=False)
    return made.on_conflict_do_nothing(index_elements=[task.user_id, task.uid])


_next_there = _next(TASK)  # a statement of its own on SQLite, which has no steps that write


@lru_cache(maxsize=64)
def _with_next(change: sa.Update) -> sa.ClauseElement:
    """Return a change, whose last step makes the next tasks; on SQLite, the change alone.

    What comes back is what the change returns, or else how many tasks it has touched.
    """
    # A copy is asked: SQLAlchemy notes the answer, and what is made of the statement keeps it.
    marked, returned = change.values(repeated_at=_mark), copy(change).exported_columns
    more = (column for column in task if column.name not in returned)
    old = marked.returning(*more).cte("changed")
    shown: Any = [old.c[str(column.key)] for column in returned] or [sa.func.count()]
    together = sa.select(*shown).select_from(old).add_cte(_next(old).cte("made"))
    return together.execution_options(on_sqlite=marked)
