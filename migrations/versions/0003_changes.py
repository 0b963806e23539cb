"""Positions of changes, a trash, ids that clients choose, and the fields of repeating tasks.

What the version before does goes on working: all that it does not know has a default.
"""

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from alembic import op

from engines.spelling import new_uuid

revision = "0003"
down_revision = "0002"

_INDEXES = (
    "CREATE INDEX task_user_id_created_at_id ON task (user_id, created_at DESC, id DESC)",
    "CREATE UNIQUE INDEX task_user_id_idempotency_key ON task (user_id, idempotency_key) "
    "WHERE idempotency_key IS NOT NULL",
    "CREATE UNIQUE INDEX task_user_id_uid ON task (user_id, uid)",
    "CREATE INDEX task_deleted_at ON task (deleted_at) WHERE deleted_at IS NOT NULL",
)
_OLD = (
    "id, user_id, title, title_folded, description, description_folded, completed, completed_at, "
    'priority, due_date, tags, "order", created_at, updated_at, version, idempotency_key, '
    "idempotency_fingerprint, idempotency_replays"
)
_NUMBER = "id + 1"  # what is there is numbered as if it had been made one after the other


def _is_sqlite() -> bool:
    return op.get_bind().dialect.name == "sqlite"


def _code_point_text() -> sa.Text:
    return sa.Text() if _is_sqlite() else sa.Text(collation="C")


def _new_columns() -> Iterator[sa.Column[Any]]:
    text = _code_point_text()
    yield sa.Column("uid", text, nullable=False, server_default=new_uuid())
    yield sa.Column("position", sa.BigInteger(), nullable=False, server_default=sa.text("1"))
    yield sa.Column("deleted_at", sa.DateTime(timezone=True))
    yield sa.Column("remind_at", text)
    yield sa.Column("recurrence", text)
    yield sa.Column("repeat_from", text, nullable=False, server_default="due")
    yield sa.Column("repeated_at", sa.DateTime(timezone=True))


def upgrade() -> None:
    op.create_table(
        "task_feed",
        sa.Column("user_id", _code_point_text(), primary_key=True),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("forgotten", sa.BigInteger(), nullable=False),
        postgresql_with={"fillfactor": 50},
    )
    op.create_table(
        "task_gone",
        sa.Column("user_id", _code_point_text(), primary_key=True),
        sa.Column("id", sa.BigInteger(), primary_key=True),
        sa.Column("uid", _code_point_text(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("gone_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("task_gone_gone_at", "task_gone", ["gone_at"])
    if _is_sqlite():
        _rebuild_on_sqlite(*_new_columns())
    else:
        op.execute("LOCK TABLE task IN ACCESS EXCLUSIVE MODE")
        op.alter_column("task", "version", type_=sa.BigInteger())
        for column in _new_columns():
            op.add_column("task", column)
        # In one go, as a change of the type: an UPDATE of all rows took ten times as long.
        op.execute(f"ALTER TABLE task ALTER COLUMN position TYPE BIGINT USING {_NUMBER}")
        for index in _INDEXES[-2:]:
            op.execute(index)
        # The last of them: where a new table's indexes look equal, PostgreSQL goes by the newest.
        op.execute(
            "ALTER TABLE task DROP CONSTRAINT task_pkey, ADD CONSTRAINT task_pkey "
            "PRIMARY KEY (user_id, id)"
        )
    op.execute("INSERT INTO task_feed SELECT user_id, max(position), 0 FROM task GROUP BY user_id")
    _delete_with_the_account("task", "task_feed", "task_gone")
    if _is_sqlite():
        op.execute(
            "CREATE TRIGGER task_deleted AFTER DELETE ON task BEGIN "
            "INSERT INTO task_gone SELECT OLD.user_id, OLD.id, OLD.uid, position, "
            "strftime('%Y-%m-%d %H:%M:%f000', 'now') FROM task_feed WHERE user_id = OLD.user_id; "
            "END"
        )


def downgrade() -> None:
    _delete_with_the_account("task")
    op.execute("DELETE FROM task WHERE deleted_at IS NOT NULL")
    if _is_sqlite():
        op.execute("DROP TRIGGER task_deleted")
        _rebuild_on_sqlite()
    else:
        op.execute(
            "ALTER TABLE task DROP CONSTRAINT task_pkey, ADD CONSTRAINT task_pkey PRIMARY KEY (id)"
        )
        op.execute("DROP INDEX task_user_id_uid, task_deleted_at")
        for column in _new_columns():
            op.drop_column("task", column.name)
        op.execute("UPDATE task SET version = 1 + version % 1000000000")
        op.alter_column("task", "version", type_=sa.Integer())
    op.drop_table("task_gone")
    op.drop_table("task_feed")


def _rebuild_on_sqlite(*added: sa.Column[Any]) -> None:
    """Make the table anew, since a column can be added with a constant for its default only."""
    op.execute("CREATE TABLE task_before AS SELECT * FROM task")
    last = "SELECT seq FROM sqlite_sequence WHERE name = 'task'"
    highest = op.get_bind().scalar(sa.text(last)) or 0
    op.drop_table("task")
    op.create_table(
        "task",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("title_folded", sa.Text(), nullable=False),
        sa.Column("description", sa.Text()),
        sa.Column("description_folded", sa.Text()),
        sa.Column("completed", sa.Boolean(), nullable=False),
        sa.Column("completed_at", sa.DateTime(timezone=True)),
        sa.Column("priority", sa.SmallInteger(), nullable=False),
        sa.Column("due_date", sa.Text()),
        sa.Column("tags", sa.JSON(), nullable=False),
        sa.Column("order", sa.Double()),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("idempotency_key", sa.Text()),
        sa.Column("idempotency_fingerprint", sa.Text()),
        sa.Column("idempotency_replays", sa.Integer(), nullable=False),
        *added,
        sqlite_autoincrement=True,
    )
    new, numbers = (f"{_OLD}, position", f"{_OLD}, {_NUMBER}") if added else (_OLD, _OLD)
    op.execute(f"INSERT INTO task ({new}) SELECT {numbers} FROM task_before")  # noqa: S608
    op.execute("DROP TABLE task_before")
    # The id of a task that was deleted last is not given again.
    op.execute("DELETE FROM sqlite_sequence WHERE name = 'task'")
    op.execute(f"INSERT INTO sqlite_sequence VALUES ('task', {int(highest)})")  # noqa: S608
    for index in _INDEXES[: len(_INDEXES) if added else -2]:
        op.execute(index)


def _delete_with_the_account(*tables: str) -> None:
    """Say what goes with an account."""
    deletes = " ".join(f"DELETE FROM {table} WHERE user_id = OLD.id;" for table in tables)  # noqa: S608
    if _is_sqlite():
        op.execute("DROP TRIGGER task_account_deleted")
        op.execute(
            f"CREATE TRIGGER task_account_deleted AFTER DELETE ON task_account BEGIN {deletes} END"
        )
    else:
        op.execute(
            "CREATE OR REPLACE FUNCTION task_account_deleted() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN {deletes} RETURN NULL; END $$"
        )
