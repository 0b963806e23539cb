"""The statements that tell what has changed since a position (contract section 9)."""

from collections.abc import Sequence

from sqlalchemy import BigInteger, and_, bindparam, case, func, null, or_, select, true, union_all

from engines import DEADLINE
from engines.spelling import one_of
from models import FEED, GONE, ROW, TASK, TextList
from queries import Query
from queries.conditions import OWNED
from queries.positions import OWNER
from schemas import Since

task, feed, gone = TASK.c, FEED.c, GONE.c


def read_changes(owner: str, wanted: Since) -> Query:
    """Who changed after `since` up to the end of the page, with what stands beside each row: the
    user's position, that of the latest deletion that is forgotten, whether there is more, and the
    end of the page, if it is full.

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
_nth = (
    union_all(select(task.position).where(_tasks_since), select(gone.position).where(_gone_since))
    .order_by("position")
    .limit(1)
    .offset(bindparam("before", type_=BigInteger()))
    .scalar_subquery()
)
# Who has all is not looked for: of very many tasks that takes long.
_sought = case((feed.position > _since, _nth)).label("nth")
# LIMIT keeps a row apart from what it is used in, so that each look is made once.
_at = select(FEED, _sought).where(feed.user_id == OWNER).limit(1).subquery().c
# Not before what is forgotten: who has begun at 0 could not go on from there.
_end = case((_at.nth < _at.forgotten, _at.forgotten), else_=_at.nth)
_page = select(_at.position, _at.forgotten, _end.label("end")).cte("page")
_until = select(func.coalesce(_page.c.end, _page.c.position)).scalar_subquery()
_change = union_all(
    select(*ROW, task.position).where(_tasks_since, task.position <= _until, _until > _since),
    select(
        *((gone[column.name] if column.name in gone else null()) for column in ROW), gone.position
    ).where(_gone_since, gone.position <= _until, _until > _since),
).subquery()
_further = or_(
    select(task.id).where(OWNED, task.position > _page.c.end).exists(),
    select(gone.id).where(_gone_since, gone.position > _page.c.end).exists(),
)
_more = and_(_page.c.end.is_not(None), _further)
_told = select(_page.c.position, _page.c.forgotten, _more.label("more"), _page.c.end)
_beside = _told.limit(1).subquery()
_read_changes = (
    select(*(_change.c[column.name] for column in ROW), *_beside.c)
    .select_from(_beside.outerjoin(_change, true()))
    .order_by(_change.c.position, _change.c.id)
)
