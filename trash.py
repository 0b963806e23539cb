"""Empties the trash: what was deleted 30 days ago goes for good, and 30 days later is forgotten.

Every worker looks once an hour, and takes small steps, each a statement about one user. It holds
that user's position meanwhile: of several workers one does the step, the others find it done.
"""

import asyncio
import logging
import os
from datetime import timedelta
from typing import Final

from sqlalchemy import ColumnElement, Select, Update, bindparam, case, delete, func, select, update

from database import Database
from errors import ApiError
from models import FEED, GONE, TASK
from queries import Query, now
from queries.conditions import OWNED
from queries.positions import OWNER, RAISE
from queries.tasks import make_position, purging

log = logging.getLogger("tasks")

_KEPT: Final = timedelta(days=30)
_PERIOD: Final = 3600.0  # seconds
_STEP: Final = 500  # tasks
_PAUSE: Final = 0.05  # seconds between two steps, for everybody else

task, gone, feed = TASK.c, GONE.c, FEED.c
_before = bindparam("before", type_=task.deleted_at.type)

_old = task.deleted_at < _before
_whose_trash = select(task.user_id).where(_old).order_by(task.deleted_at).limit(1)
_some = OWNED & _old & task.id.in_(select(task.id).where(OWNED, _old).limit(_STEP))
_empty = purging(_some)

_told: ColumnElement[bool] = (gone.user_id == OWNER) & (gone.gone_at < _before)
_whose_gone = select(gone.user_id).where(gone.gone_at < _before).order_by(gone.gone_at).limit(1)
_few = select(gone.id).where(_told).order_by(gone.position).limit(_STEP)
_these = _told & gone.id.in_(_few)


def _remembering(positions: Select[tuple[int]]) -> Update:
    latest = positions.scalar_subquery()
    later = case((latest > feed.forgotten, latest), else_=feed.forgotten)
    return update(FEED).where(feed.user_id == OWNER).values(forgotten=later)


_forget_there = delete(GONE).where(_these)
_forgotten = _forget_there.returning(gone.position).cte("forgotten")
_forget = _remembering(select(func.max(_forgotten.c.position)))
_forget = _forget.execution_options(on_sqlite=_forget_there)
_remember = _remembering(select(func.max(gone.position)).where(_these))


async def keep_emptying(database: Database) -> None:
    """Empty the trash again and again, until cancelled."""
    await asyncio.sleep(60 * (1 + os.getpid() % 10))  # workers start together, and look in turn
    while True:
        try:
            await empty(database)
        except Exception as error:  # usually it is away, or an account was deleted meanwhile
            unexpected = not isinstance(error, ApiError)
            log.warning("the trash is emptied later", exc_info=unexpected)
        await asyncio.sleep(_PERIOD)


async def empty(database: Database) -> None:
    """Take every step that there is to take now."""
    before = {"before": now() - _KEPT}
    for whose, step, raises in ((_whose_trash, _empty, RAISE), (_whose_gone, _forget, _remember)):
        while rows := (await database.run(Query(whose, before, repeatable=True))).rows:
            values = {"owner": rows[0][0], "now": now(), **before}
            await database.run(make_position(rows[0][0]))  # without one nothing would be done
            await database.run(Query(step, values, raises=raises))
            await asyncio.sleep(_PAUSE)
