"""The statements that tell what has changed since a position (contract section 9)."""

from collections.abc import Sequence

from sqlalchemy import BigInteger, and_, bindparam, case, func, null, select, union_all

from engines import DEADLINE
from engines.spelling import one_of
from filters import OWNED
from models import FEED, GONE, ROW, TASK, TextList
from positions import OWNER
from queries import Query
from schemas import Since

task, feed, gone = TASK.c, FEED.c, GONE.c


def read_changes(owner: str, wanted: Since) -> Query:
    """Who changed after `since` up to the end of the page, with what stands beside each row: the
    user's position, that of the latest deletion that is forgotten, and of the last of all changes;
    the end of the page, if it is full.

    Without a change there is one row, of nulls and those; before the first change there is none.
    """
    values = {"owner": owner, "since": wanted.since, "before": wanted.limit - 1}
    return Query(_read_changes, values, repeatable=True)


def read_positions(owners: Sequence[str]) -> Query:
    """Those of these users who have changed something yet, and their positions."""
    return Query(_read_positions, {"owners": owners}, repeatable=True, deadline=DEADLINE / 2)


_owners = bindparam("owners", type_=TextList)
_read_positions = select(feed.user_id, feed.position).where(one_of(feed.user_id, _owners))
_since = bindparam("since", type_=BigInteger())
_tasks_since = and_(OWNED, task.position > _since)
_gone_since = and_(gone.user_id == OWNER, gone.position > _since, _since > 0)
_changed_at = union_all(
    select(task.position).where(_tasks_since), select(gone.position).where(_gone_since)
).cte("changed_at")
_nth = (
    select(_changed_at.c.position)
    .order_by(_changed_at.c.position)
    .limit(1)
    .offset(bindparam("before", type_=BigInteger()))
    .scalar_subquery()
)
# Not before what is forgotten: who has begun at 0 could not go on from there.
_end = case((_nth < feed.forgotten, feed.forgotten), else_=_nth)
_change = union_all(
    select(*ROW, task.position).where(_tasks_since),
    select(
        *((gone[column.name] if column.name in gone else null()) for column in ROW), gone.position
    ).where(_gone_since),
).subquery()
_read_changes = (
    select(
        *(_change.c[column.name] for column in ROW),
        feed.position,
        feed.forgotten,
        select(func.max(_changed_at.c.position)).scalar_subquery().label("latest"),
        _end.label("end"),
    )
    .select_from(FEED.outerjoin(_change, _change.c.position <= func.coalesce(_end, feed.position)))
    .where(feed.user_id == OWNER)
    .order_by(_change.c.position, _change.c.id)
)
