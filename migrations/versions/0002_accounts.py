"""The tables of accounts; the tasks of an account go when it goes."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

# What belongs to a user. A foreign key cannot say so: most users have no account here.
_DELETE_ALL = "DELETE FROM task WHERE user_id = OLD.id;"


def upgrade() -> None:
    sqlite = op.get_bind().dialect.name == "sqlite"
    text_by_code_point = sa.Text() if sqlite else sa.Text(collation="C")
    op.create_table(
        "task_account",
        sa.Column("id", text_by_code_point, primary_key=True),
        sa.Column("email", sa.Text(), nullable=False),
        sa.Column("email_folded", text_by_code_point, nullable=False),
        sa.Column("name", sa.Text()),
        sa.Column("password_hash", sa.Text(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("task_account_email_folded", "task_account", ["email_folded"], unique=True)
    op.create_table(
        "task_failed_login",
        sa.Column("email", text_by_code_point, primary_key=True),
        sa.Column("address", text_by_code_point, primary_key=True),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("failed_at", sa.Double(), nullable=False),
    )
    op.create_index("task_failed_login_failed_at", "task_failed_login", ["failed_at"])
    if sqlite:
        op.execute(
            "CREATE TRIGGER task_account_deleted AFTER DELETE ON task_account "
            f"BEGIN {_DELETE_ALL} END"
        )
    else:
        op.execute(
            "CREATE FUNCTION task_account_deleted() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN {_DELETE_ALL} RETURN NULL; END $$"
        )
        op.execute(
            "CREATE TRIGGER task_account_deleted AFTER DELETE ON task_account "
            "FOR EACH ROW EXECUTE FUNCTION task_account_deleted()"
        )


def downgrade() -> None:
    op.drop_table("task_failed_login")
    op.drop_table("task_account")
    if op.get_bind().dialect.name != "sqlite":
        op.execute("DROP FUNCTION task_account_deleted()")
