"""Empties the trash: what was deleted 30 days ago goes for good, and 30 days later is forgotten.

Every worker looks once an hour, and takes small steps, each a statement about one user. It holds
that user's position meanwhile: of several workers one does the step, the others find it done.
"""

import asyncio
import logging
import os
from datetime import timedelta
from typing import Final

from sqlalchemy import ColumnElement, bindparam, case, delete, func, select, update

from database import Database
from errors import Unauthorized, Unavailable
from filters import OWNED
from models import FEED, GONE, TASK
from positions import OWNER, RAISE
from queries import Query, now, purging

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
_empty, _empty_there = purging(_some)

_told: ColumnElement[bool] = (gone.user_id == OWNER) & (gone.gone_at < _before)
_whose_gone = select(gone.user_id).where(gone.gone_at < _before).order_by(gone.gone_at).limit(1)
_few = select(gone.id).where(_told).order_by(gone.position).limit(_STEP)
_forget_there = delete(GONE).where(_told, gone.id.in_(_few))


def _forgetting(latest: ColumnElement[int]) -> ColumnElement[int]:
    return case((latest > feed.forgotten, latest), else_=feed.forgotten)


_forgotten = _forget_there.returning(gone.position).cte("forgotten")
_latest = select(func.max(_forgotten.c.position)).scalar_subquery()
_mine = feed.user_id == OWNER
_forget = update(FEED).where(_mine).values(forgotten=_forgetting(_latest))
_latest_there = select(func.max(gone.position)).where(_told, gone.id.in_(_few)).scalar_subquery()
_remember = update(FEED).where(_mine).values(forgotten=_forgetting(_latest_there))


async def keep_emptying(database: Database) -> None:
    """Empty the trash again and again, until cancelled."""
    await asyncio.sleep(60 * (1 + os.getpid() % 10))  # workers start together, and look in turn
    while True:
        try:
            await empty(database)
        except (Unavailable, Unauthorized):  # it is away, or an account was deleted meanwhile
            log.warning("the trash is emptied later")
        await asyncio.sleep(_PERIOD)


async def empty(database: Database) -> None:
    """Take every step that there is to take now."""
    before = {"before": now() - _KEPT}
    while rows := (await database.run(Query(_whose_trash, before, repeatable=True))).rows:
        values = {"owner": rows[0][0], "now": now(), **before}
        await database.run(Query(_empty, values, on_sqlite=_empty_there, raises=RAISE))
        await asyncio.sleep(_PAUSE)
    while rows := (await database.run(Query(_whose_gone, before, repeatable=True))).rows:
        values = {"owner": rows[0][0], **before}
        await database.run(Query(_forget, values, on_sqlite=_forget_there, raises=_remember))
        await asyncio.sleep(_PAUSE)
