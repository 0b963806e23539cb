"""The tables and the types of their columns."""

from datetime import datetime
from typing import Any, Final, Literal, get_args

from sqlalchemy import ARRAY, JSON, BigInteger, Index, Integer, SmallInteger, Text, text
from sqlalchemy.engine import Dialect
from sqlalchemy.types import Double, TypeDecorator
from sqlmodel import Field, SQLModel, desc

from engines.spelling import is_set, new_uuid

Priority = Literal["none", "low", "medium", "high", "urgent"]
PRIORITIES: tuple[Priority, ...] = get_args(Priority)

# Compared and sorted by code point, as SQLite and Python do, whatever the server's locale.
CodePointText = Text().with_variant(Text(collation="C"), "postgresql")
TextList = ARRAY(Text).with_variant(JSON(), "sqlite")
NumberList = ARRAY(BigInteger).with_variant(JSON(), "sqlite")


class Rank(TypeDecorator[str]):
    """A priority, stored as its place in `PRIORITIES` so that it sorts by urgency."""

    impl = SmallInteger
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> int | None:
        return None if value is None else PRIORITIES.index(value)

    def process_result_value(self, value: Any | None, dialect: Dialect) -> str | None:
        return None if value is None else PRIORITIES[value]


class Task(SQLModel, table=True):
    """One task of one user.

    `title_folded` and `description_folded` hold `str.casefold()` of the text: no two databases
    agree on what upper case is beyond ASCII. `due_date` is canonical text, `2026-11-21`,
    `2026-11-21T10:00:00` (a wall-clock time) or `2026-11-21T10:00:00.000000Z`: three kinds in one
    column, in chronological order. `version` is a random number with every change, so that none
    comes again, not even after a restore. `position` is the user's when the task last changed; no
    index has it, so that an update stays on its page (HOT). `repeated_at` says that the task has
    made its next one: it makes no other, even if that is deleted.
    """

    # SQLite reuses the id of a deleted last row otherwise.
    __table_args__ = {"sqlite_autoincrement": True}

    # On PostgreSQL the migrations make it (user_id, id): where tables are distributed by user,
    # every key has the user in it. SQLite counts ids for all.
    id: int | None = Field(
        default=None, primary_key=True, sa_type=BigInteger().with_variant(Integer, "sqlite")
    )
    user_id: str = Field(sa_type=CodePointText)
    title: str = Field(sa_type=Text)
    title_folded: str = Field(sa_type=CodePointText)
    description: str | None = Field(default=None, sa_type=Text)
    description_folded: str | None = Field(default=None, sa_type=CodePointText)
    completed: bool = False
    completed_at: datetime | None = None
    priority: str = Field(default="none", sa_type=Rank)
    due_date: str | None = Field(default=None, sa_type=CodePointText)
    tags: list[str] = Field(default_factory=list, sa_type=TextList)
    order: float | None = Field(default=None, sa_type=Double)
    created_at: datetime
    updated_at: datetime
    version: int = Field(sa_type=BigInteger().with_variant(Integer, "sqlite"))
    idempotency_key: str | None = Field(default=None, sa_type=CodePointText)
    idempotency_fingerprint: str | None = Field(default=None, sa_type=Text)
    idempotency_replays: int = 0
    uid: str = Field(sa_type=CodePointText, sa_column_kwargs={"server_default": new_uuid()})
    position: int = Field(sa_type=BigInteger, sa_column_kwargs={"server_default": text("1")})
    deleted_at: datetime | None = None
    remind_at: str | None = Field(default=None, sa_type=CodePointText)
    recurrence: str | None = Field(default=None, sa_type=CodePointText)
    repeat_from: str = Field(
        default="due", sa_type=CodePointText, sa_column_kwargs={"server_default": "due"}
    )
    repeated_at: datetime | None = None


TASK = Task.__table__  # type: ignore[attr-defined]
task = TASK.c


def _where(condition: Any) -> dict[str, Any]:
    return {"postgresql_where": condition, "sqlite_where": condition}


Index("task_user_id_uid", task.user_id, task.uid, unique=True).ddl_if("postgresql")
# SQLite writes whole pages: new tasks, of whatever users, are on one page of this.
Index("task_uid_user_id", task.uid, task.user_id, unique=True).ddl_if("sqlite")
Index("task_deleted_at", task.deleted_at, **_where(task.deleted_at.is_not(None)))
# What lists and counts go by, however large the trash. On PostgreSQL neither has a column that a
# toggle changes, for then it would leave its page (no HOT update). SQLite has no such thing, and
# counts by state from the index alone; of what is deleted, too, though that is always null here:
# it asks for all columns in an index.
_live = task.deleted_at.is_(None)
_by_priority = (task.user_id, desc(task.priority), desc(task.id))
_state = (task.completed, task.due_date, task.deleted_at)
Index("task_user_id_id", task.user_id, task.id, **_where(_live))
Index("task_user_id_priority_id", *_by_priority, postgresql_where=_live).ddl_if("postgresql")
Index("task_user_id_priority_id_state", *_by_priority, *_state, sqlite_where=_live).ddl_if("sqlite")
# What has changed since. SQLite went through all of a user's tasks in the order of their uids.
Index("task_user_id_position", task.user_id, task.position).ddl_if("sqlite")
_keyed = _where(task.idempotency_key.is_not(None))
Index("task_user_id_idempotency_key", task.user_id, task.idempotency_key, unique=True, **_keyed)

# What statements return of a task: the fields of `schemas.Task` but `etag` and `url`, then the
# version.
ROW: Final = (
    *(task[name] for name in ("id", "uid", "user_id", "title", "description", "completed")),
    *(task[name] for name in ("completed_at", "priority", "due_date", "remind_at")),
    *(task[name] for name in ("recurrence", "repeat_from", "tags", "order")),
    is_set(task.deleted_at).label("deleted"),
    *(task[name] for name in ("created_at", "updated_at", "version")),
)


class Feed(SQLModel, table=True):
    """Where a user's changes have come to: `position` is that of the latest, 1 before the first.

    Every write raises it in its own statement, and so waits for the user's write before it:
    changes become visible in the order of their positions. That of a deleted account is the last
    one that may be: nothing can be written for it any more, whatever worker still takes its tokens.
    `forgotten` is that of the latest deletion that is no longer told. Half of a page stays free, so
    that a new row finds room (HOT). The row of nobody has a random number for a position, which is
    what tells this database from any other.
    """

    __tablename__ = "task_feed"
    __table_args__ = {"postgresql_with": {"fillfactor": 50}, "sqlite_with_rowid": False}

    user_id: str = Field(primary_key=True, sa_type=CodePointText)
    position: int = Field(default=1, sa_type=BigInteger)
    forgotten: int = Field(default=0, sa_type=BigInteger)


class Gone(SQLModel, table=True):
    """A task that was deleted for good; told for 30 days. On SQLite a trigger writes it down."""

    __tablename__ = "task_gone"

    user_id: str = Field(primary_key=True, sa_type=CodePointText)
    id: int = Field(primary_key=True, sa_type=BigInteger)
    uid: str = Field(sa_type=CodePointText)
    position: int = Field(sa_type=BigInteger)
    gone_at: datetime


FEED = Feed.__table__  # type: ignore[attr-defined]
GONE = Gone.__table__  # type: ignore[attr-defined]
Index("task_gone_gone_at", GONE.c.gone_at)


class User(SQLModel):
    """Whom a token is for; `id` is the `user_id` of the account's tasks, which go when it goes."""

    id: str = Field(primary_key=True, sa_type=CodePointText)
    email: str = Field(sa_type=Text)
    name: str | None = Field(sa_type=Text)


class Account(User, table=True):
    """Who may log in: `email_folded` tells them apart, `generation` the tokens that still count."""

    __tablename__ = "task_account"  # that of Better Auth, which may be there too, is `account`

    email_folded: str = Field(sa_type=CodePointText)
    password_hash: str = Field(sa_type=Text)
    generation: int = 1
    created_at: datetime


class FailedLogin(SQLModel, table=True):
    """How often a log-in failed in a row, for an e-mail from an address; kept for an hour.

    Both are keyed hashes: an e-mail that nobody has an account for is still somebody's.
    """

    __tablename__ = "task_failed_login"

    email: str = Field(primary_key=True, sa_type=CodePointText)
    address: str = Field(primary_key=True, sa_type=CodePointText)
    failures: int
    failed_at: float = Field(sa_type=Double)


ACCOUNT = Account.__table__  # type: ignore[attr-defined]
Index("task_account_email_folded", ACCOUNT.c.email_folded, unique=True)
FAILED_LOGIN = FailedLogin.__table__  # type: ignore[attr-defined]
Index("task_failed_login_failed_at", FAILED_LOGIN.c.failed_at)
