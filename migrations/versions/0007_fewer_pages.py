"""On SQLite a write touches fewer pages, and a search none of the trash.

The index of uids begins with them: those that the service makes begin with the time, so new tasks
of many users are on one page of it. A user's position is in its index, not in a table beside. And
of two indexes that serve as well SQLite takes the later one: that is made anew which leaves out the
trash, or it takes the one of positions.
"""

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        op.execute("CREATE UNIQUE INDEX task_uid_user_id ON task (uid, user_id)")
        op.execute("DROP INDEX task_user_id_uid")
        op.execute("DROP INDEX task_user_id_id")
        op.execute("CREATE INDEX task_user_id_id ON task (user_id, id) WHERE deleted_at IS NULL")
        _make_positions_anew(" WITHOUT ROWID")


def downgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        op.execute("CREATE UNIQUE INDEX task_user_id_uid ON task (user_id, uid)")
        op.execute("DROP INDEX task_uid_user_id")
        _make_positions_anew("")


def _make_positions_anew(kind: str) -> None:
    op.execute("CREATE TABLE task_feed_before AS SELECT * FROM task_feed")
    op.execute("DROP TABLE task_feed")
    op.execute(
        "CREATE TABLE task_feed (user_id TEXT NOT NULL, position BIGINT NOT NULL, "
        "forgotten BIGINT NOT NULL, PRIMARY KEY (user_id), "
        f"CONSTRAINT task_feed_position CHECK (position <= {2**53 - 1})){kind}"
    )
    op.execute("INSERT INTO task_feed SELECT * FROM task_feed_before")
    op.execute("DROP TABLE task_feed_before")
