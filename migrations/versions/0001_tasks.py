"""The table of tasks."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    sqlite = op.get_bind().dialect.name == "sqlite"
    text_by_code_point = sa.Text() if sqlite else sa.Text(collation="C")
    timestamp = sa.DateTime(timezone=True)
    op.create_table(
        "task",
        sa.Column("id", sa.Integer() if sqlite else sa.BigInteger(), primary_key=True),
        sa.Column("user_id", text_by_code_point, nullable=False),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("title_folded", text_by_code_point, nullable=False),
        sa.Column("description", sa.Text()),
        sa.Column("description_folded", text_by_code_point),
        sa.Column("completed", sa.Boolean(), nullable=False),
        sa.Column("completed_at", timestamp),
        sa.Column("priority", sa.SmallInteger(), nullable=False),
        sa.Column("due_date", text_by_code_point),
        sa.Column("tags", sa.JSON() if sqlite else sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("order", sa.Double()),
        sa.Column("created_at", timestamp, nullable=False),
        sa.Column("updated_at", timestamp, nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("idempotency_key", text_by_code_point),
        sa.Column("idempotency_fingerprint", sa.Text()),
        sa.Column("idempotency_replays", sa.Integer(), nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "task_user_id_created_at_id",
        "task",
        ["user_id", sa.text("created_at DESC"), sa.text("id DESC")],
    )
    keyed = sa.text("idempotency_key IS NOT NULL")
    op.create_index(
        "task_user_id_idempotency_key",
        "task",
        ["user_id", "idempotency_key"],
        unique=True,
        postgresql_where=keyed,
        sqlite_where=keyed,
    )


def downgrade() -> None:
    op.drop_table("task")
