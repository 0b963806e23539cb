"""Indexes for the lists of users with very many tasks, in place of the one in order of creation.

What the version before does goes on working; it sorts the tasks of a user to list them.
"""

from alembic import op

from database import is_distributed

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.execute(
        "CREATE INDEX IF NOT EXISTS task_user_id_id ON task (user_id, id) WHERE deleted_at IS NULL"
    )
    by_priority = "task (user_id, priority DESC, id DESC"
    if op.get_bind().dialect.name == "sqlite":
        op.execute(
            f"CREATE INDEX task_user_id_priority_id_state ON {by_priority}, completed, due_date, "
            "deleted_at) WHERE deleted_at IS NULL"
        )
    else:
        op.execute(
            f"CREATE INDEX IF NOT EXISTS task_user_id_priority_id ON {by_priority}) "
            "WHERE deleted_at IS NULL"
        )
    # Last: reads wait from here on, and not while the others are made.
    op.execute("DROP INDEX task_user_id_created_at_id")


def downgrade() -> None:
    if is_distributed(op.get_bind()):  # which no version before knows
        op.execute("SET LOCAL citus.multi_shard_modify_mode = sequential")
        for table in ("task", "task_feed", "task_gone"):
            op.execute(f"SELECT undistribute_table('{table}')")
        op.execute("DROP FUNCTION task_moved(text), task_text(text[]), task_text(timestamptz)")
    op.execute(
        "CREATE INDEX task_user_id_created_at_id ON task (user_id, created_at DESC, id DESC)"
    )
    state = "_state" if op.get_bind().dialect.name == "sqlite" else ""
    op.execute(f"DROP INDEX task_user_id_priority_id{state}")
    op.execute("DROP INDEX task_user_id_id")
