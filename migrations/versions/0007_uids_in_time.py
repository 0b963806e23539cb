"""On SQLite, the index of uids begins with them.

Those that the service makes begin with the time, so new tasks of many users are on one page.
"""

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        op.execute("CREATE UNIQUE INDEX task_uid_user_id ON task (uid, user_id)")
        op.execute("DROP INDEX task_user_id_uid")


def downgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        op.execute("CREATE UNIQUE INDEX task_user_id_uid ON task (user_id, uid)")
        op.execute("DROP INDEX task_uid_user_id")
