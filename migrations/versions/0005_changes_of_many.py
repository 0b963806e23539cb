"""An index for the changes of users with very many tasks, on SQLite.

PostgreSQL has none: a toggle raises the position, and would then leave its page (no HOT update).
"""

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        op.execute("CREATE INDEX task_user_id_position ON task (user_id, position)")


def downgrade() -> None:
    op.execute("DROP INDEX IF EXISTS task_user_id_position")
