"""The statements of `tasks.py` that serve many callers at once (PostgreSQL).

`calls` is a JSON array of the parameters of each, numbered by `n`; every row that comes back begins
with the number of the call that it answers. The owner stands in every join.
"""

from collections.abc import Mapping
from typing import Any, Final

import sqlalchemy as sa

# Its ON CONFLICT compiles for SQLite as well.
from sqlalchemy.dialects.postgresql import insert

from engines.spelling import next_id, or_nothing, random_number
from models import FEED, ROW, TASK
from queries.conditions import LIVE, by_key, order_by, settled
from queries.positions import raising_or_making, step
from schemas import MAX_PAGE, TaskCreate

task, feed = TASK.c, FEED.c

# ---- what a create stores

NEW: Final = tuple(name for name in TaskCreate.model_fields if name not in ("uid", "deleted"))
# Of each column that a create sets, the parameter.
MADE_OF: Final = {
    "user_id": "owner",
    "uid": "new_uid",
    "title_folded": "title_folded",
    "description_folded": "description_folded",
    "completed_at": "completed_at",
    "deleted_at": "deleted_at",
    "created_at": "now",
    "updated_at": "now",
    **{name: "new_" + name for name in NEW},
}
FRESH: Final[dict[str, Any]] = {"version": random_number(), "idempotency_replays": sa.literal(0)}
ONCE: Final = {"idempotency_fingerprint": "fingerprint"}
# All or none: a uid that has another body's task stops the statement.
_new_print = insert(TASK).excluded.idempotency_fingerprint
_same = task.idempotency_fingerprint.is_not_distinct_from(_new_print)  # a task may have none
UNLESS_OTHER: Final[dict[str, Any]] = {
    "index_elements": [task.user_id, task.uid],
    "set_": {"idempotency_replays": task.idempotency_replays + or_nothing(_same)},
}

# ---- the statements


def _calls(**types: Any) -> Any:
    """Return the calls, with parameters of these types, read once however often they are used."""
    columns = (sa.column(name, kind) for name, kind in {"n": sa.Integer(), **types}.items())
    records = sa.func.json_to_recordset(sa.cast(sa.bindparam("calls", type_=sa.Text()), sa.JSON))
    call = records.table_valued(*columns).render_derived(name="call", with_types=True)
    return sa.select(*call.c).cte("calls")


_one_call = _calls(
    owner=sa.Text(), task_id=sa.BigInteger(), now=task.updated_at.type, new_completed=sa.Boolean()
)
# LIMIT keeps this apart: one look at the index a call, whatever the planner thinks of the table.
_this = sa.and_(task.user_id == _one_call.c.owner, task.id == _one_call.c.task_id)
_found = sa.select(*ROW).where(_this, by_key(LIVE)).limit(1).lateral()
READ = sa.select(_one_call.c.n, *_found.c).select_from(_one_call.join(_found, sa.true()))

_called = sa.and_(task.user_id == _one_call.c.owner, LIVE)
_total = sa.select(sa.func.count()).where(_called).scalar_subquery().label("total")
_at = sa.select(feed.position).where(feed.user_id == _one_call.c.owner).scalar_subquery()
_position = sa.func.coalesce(_at, 1).label("position")
# OFFSET keeps this apart: else the planner would count once a row, not once a call.
_known = sa.select(_one_call.c.n, _one_call.c.owner, _total, _position).offset(0).subquery()
_page = (
    sa.select(*ROW)
    .where(task.user_id == _known.c.owner, LIVE)
    .order_by(*order_by((), task))
    .limit(MAX_PAGE)
    .lateral()
)
LIST = (
    sa.select(_known.c.n, *_page.c, _known.c.total, _known.c.position)
    .select_from(_known.outerjoin(_page, sa.true()))
    .order_by(_known.c.n, *order_by((), _page.c))
)

# Raised in the order of their users, so that two of these never wait for each other.
# As arrays, since the planner takes a list of unknown length for a reason to read the whole table.
_held = (
    sa.select(feed.user_id)
    .where(feed.user_id == sa.any_(sa.func.array(sa.select(_one_call.c.owner).scalar_subquery())))
    .order_by(feed.user_id)
    .with_for_update()
    .cte("held")
)
_all_moved = step(
    sa.update(FEED)
    .where(feed.user_id == sa.any_(sa.func.array(sa.select(_held.c.user_id).scalar_subquery())))
    .values(position=feed.position + 1)
)


def _complete(completed: sa.ColumnElement[bool], since: Any) -> sa.ClauseElement:
    return (
        sa.update(TASK)
        .where(_this, by_key(LIVE), settled({"completed"}), task.user_id == _all_moved.c.user_id)
        .values(
            completed=completed,
            completed_at=sa.case((completed, since)),
            updated_at=_one_call.c.now,
            version=random_number(),
            position=_all_moved.c.position,
        )
        .returning(_one_call.c.n, *ROW)
    )


TOGGLE = _complete(sa.not_(task.completed), _one_call.c.now)
COMPLETE = _complete(
    _one_call.c.new_completed, sa.func.coalesce(task.completed_at, _one_call.c.now)
)


def _created(made_of: Mapping[str, str]) -> Any:
    """Return the step that makes the tasks of all calls, and their numbers beside their ids."""
    call = _calls(**{name: task[column].type for column, name in made_of.items()})
    owners = sa.select(call.c.owner).distinct().order_by(call.c.owner).subquery()
    made = insert(FEED).from_select(
        ["user_id", "position", "forgotten"],
        sa.select(owners.c.owner, sa.literal(2), sa.literal(0)),
    )
    moved = step(raising_or_making(made))
    # Ids are given out before the insert, for the order of RETURNING means nothing, and in the
    # order of the calls, for a list goes by them.
    new = (
        sa.select(
            call.c.n,
            next_id().label("id"),
            moved.c.position,
            *(value.label(name) for name, value in FRESH.items()),
            *(call.c[name].label(column) for column, name in made_of.items()),
        )
        .select_from(call.join(moved, moved.c.user_id == call.c.owner))
        .order_by(call.c.n)
        .cte("new")
    )
    stored = [column for column in new.c if column.name != "n"]
    inserted = insert(TASK).from_select(
        [column.name for column in stored], sa.select(*stored), include_defaults=False
    )
    return new, inserted


_made = _created(MADE_OF)[1].returning(*ROW).cte("made")
_place = sa.func.row_number().over(order_by=_made.c.id) - 1  # ids are in the order of the calls
CREATE = sa.select(_place, *_made.c)

_new, _inserted = _created(MADE_OF | ONCE)
_made = _inserted.on_conflict_do_update(**UNLESS_OTHER).returning(*ROW).cte("made")
_stored = _new.join(_made, _new.c.uid == _made.c.uid)
CREATE_ALL = sa.select(*_made.c).select_from(_stored).order_by(_new.c.n)
