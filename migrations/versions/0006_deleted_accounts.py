"""Nothing can be written any more for an account that is deleted, by whatever worker.

Every write raises the user's position; that of a deleted account stays, at the last one there is.
It goes there before its tasks go, since who writes takes the position first: else the two deadlock.
"""

from alembic import op

from database import is_distributed

revision = "0006"
down_revision = "0005"

_LAST = 2**53 - 1  # what JavaScript holds exactly
_RULE = f"CONSTRAINT task_feed_position CHECK (position <= {_LAST})"
_END = (
    f"INSERT INTO task_feed (user_id, position, forgotten) VALUES (OLD.id, {_LAST}, 0) "  # noqa: S608
    "ON CONFLICT (user_id) DO UPDATE SET position = excluded.position"
)


def _tasks_of(table: str) -> str:
    return f"DELETE FROM {table} WHERE user_id = OLD.id"  # noqa: S608


def upgrade() -> None:
    _one_node_after_the_other()
    if op.get_bind().dialect.name == "sqlite":
        _rebuild_on_sqlite(f", {_RULE}")
    else:
        op.execute(f"ALTER TABLE task_feed ADD {_RULE}")
    _when_an_account_is_deleted(_END, _tasks_of("task"), _tasks_of("task_gone"))


def downgrade() -> None:
    _one_node_after_the_other()
    _when_an_account_is_deleted(*map(_tasks_of, ("task", "task_feed", "task_gone")))
    op.execute(f"DELETE FROM task_feed WHERE position = {_LAST}")  # noqa: S608
    if op.get_bind().dialect.name == "sqlite":
        _rebuild_on_sqlite("")
    else:
        op.execute("ALTER TABLE task_feed DROP CONSTRAINT task_feed_position")


def _one_node_after_the_other() -> None:
    """Let a function be replaced where tables are distributed; Citus refuses it otherwise."""
    if is_distributed(op.get_bind()):
        op.execute("SET LOCAL citus.multi_shard_modify_mode = sequential")


def _rebuild_on_sqlite(rule: str) -> None:
    """Make the table anew, since a rule cannot be added to one."""
    op.execute("CREATE TABLE task_feed_before AS SELECT * FROM task_feed")
    op.execute("DROP TABLE task_feed")
    op.execute(
        "CREATE TABLE task_feed (user_id TEXT NOT NULL, position BIGINT NOT NULL, "
        f"forgotten BIGINT NOT NULL, PRIMARY KEY (user_id){rule})"
    )
    op.execute("INSERT INTO task_feed SELECT * FROM task_feed_before")
    op.execute("DROP TABLE task_feed_before")


def _when_an_account_is_deleted(*statements: str) -> None:
    deeds = " ".join(f"{statement};" for statement in statements)
    if op.get_bind().dialect.name == "sqlite":
        op.execute("DROP TRIGGER task_account_deleted")
        op.execute(
            f"CREATE TRIGGER task_account_deleted AFTER DELETE ON task_account BEGIN {deeds} END"
        )
    else:
        op.execute(
            "CREATE OR REPLACE FUNCTION task_account_deleted() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN {deeds} RETURN NULL; END $$"
        )
