"""What Alembic runs: the migrations, over the service's connection or, by hand, one of its own.

Where the database has Citus, all that belongs to a user is then distributed by the user.
"""

from typing import Final

import sqlalchemy
from alembic import context
from sqlalchemy import Connection

from database import (
    HEAD,
    VERSION_TABLE,
    Database,
    StartupError,
    columns_in,
    is_distributed,
    versions_in,
)
from models import FEED, TASK, Task
from settings import load_settings

_MARKS: Final = {"user_id", "title_folded"}  # columns that nobody else's table of tasks has
# The columns of 0001, which is as far as the schema had come when `alembic_version` said so.
_EARLIER: Final = (
    "id user_id title title_folded description description_folded completed completed_at priority "
    "due_date tags order created_at updated_at version idempotency_key idempotency_fingerprint "
    "idempotency_replays"
)

_DISTRIBUTE: Final = (
    # A read comes in one message with its limit of time. It goes to its node without BEGIN and
    # COMMIT, two round trips more; the nodes themselves ask nobody, and need not know.
    "SET LOCAL citus.enable_alter_role_set_propagation = off",
    "DO $$ BEGIN EXECUTE 'ALTER ROLE CURRENT_USER IN DATABASE ' || quote_ident(current_database()) "
    "|| ' SET citus.select_opens_transaction_block = off'; END $$",
    # See `queries/positions.py`. Where this is, the rest has been done; first, as Citus wants it.
    "CREATE FUNCTION task_moved(owner text) RETURNS bigint LANGUAGE plpgsql AS $$ "
    "DECLARE raised bigint; BEGIN INSERT INTO task_feed (user_id, position, forgotten) "
    "VALUES (owner, 2, 0) ON CONFLICT (user_id) DO UPDATE SET position = task_feed.position + 1 "
    "RETURNING position INTO raised; RETURN raised; END $$",
    # See `engines/spelling.py`: these depend on no setting, and may be called immutable.
    "CREATE FUNCTION task_text(text[]) RETURNS text LANGUAGE sql IMMUTABLE AS "
    "$$ SELECT array_to_string($1, chr(10)) $$",
    "CREATE FUNCTION task_text(timestamptz) RETURNS text LANGUAGE sql IMMUTABLE AS "
    """$$ SELECT to_char($1 AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') $$""",
    "SELECT create_distributed_table('task', 'user_id')",
    "SELECT create_distributed_table('task_feed', 'user_id', colocate_with => 'task')",
    "SELECT create_distributed_table('task_gone', 'user_id', colocate_with => 'task')",
    # What is on the nodes now is no longer here.
    "SELECT truncate_local_data_after_distributing_table(name) "
    "FROM unnest('{task,task_feed,task_gone}'::regclass[]) AS name",
)


def _is_earlier(connection: Connection) -> bool:
    """Return whether the tables are ours, but from before there was a `VERSION_TABLE`.

    Raises `StartupError` if a table has the name of ours and is somebody else's.
    """
    inspector = sqlalchemy.inspect(connection)
    version = versions_in(connection, VERSION_TABLE)
    columns = columns_in(connection).get(TASK.name, set())
    if not inspector.has_table(TASK.name):
        earlier, ours = False, not version
    elif version:
        earlier, ours = False, columns >= _MARKS
    else:
        said = versions_in(connection, "alembic_version")
        earlier = columns == set(_EARLIER.split()) and said == ["0001"]
        ours = earlier
    if not ours:
        raise StartupError(
            f"has a {TASK.name!r} that is not this service's table; nothing was changed"
        )
    return earlier


def _may_lock(connection: Connection) -> bool:
    """Return whether there are positions, all of them on this server."""
    here = connection.dialect.name == "postgresql" and not is_distributed(connection)
    return here and sqlalchemy.inspect(connection).has_table(FEED.name)


def _migrate(connection: Connection) -> None:
    earlier = _is_earlier(connection)
    context.configure(
        connection=connection,
        target_metadata=Task.metadata,
        version_table=VERSION_TABLE,
        transactional_ddl=True,
        render_as_batch=connection.dialect.name == "sqlite",
    )
    if _may_lock(connection):
        # Who writes takes the position first, and then the task; an upgrade that has the tasks
        # locked and comes to the positions after would stand across its way. Reads go on.
        connection.exec_driver_sql("LOCK TABLE task_feed IN SHARE ROW EXCLUSIVE MODE")
    if earlier:  # what says the version moves to a table of its own
        context.get_context().stamp(context.script, "0001")
        connection.exec_driver_sql("DROP TABLE alembic_version")
    context.run_migrations()
    if versions_in(connection, VERSION_TABLE) == [HEAD] and is_distributed(connection) is False:
        for statement in _DISTRIBUTE:
            connection.exec_driver_sql(statement)


if (connection := context.config.attributes.get("connection")) is not None:
    _migrate(connection)
else:
    with Database(load_settings()).schema_transaction() as own:
        _migrate(own)
