"""What Alembic runs: the migrations, over the service's connection or, by hand, one of its own."""

from alembic import context
from sqlalchemy import Connection

from database import VERSION_TABLE, Database, is_earlier
from models import Task
from settings import load_settings


def _migrate(connection: Connection) -> None:
    earlier = is_earlier(connection)
    context.configure(
        connection=connection,
        target_metadata=Task.metadata,
        version_table=VERSION_TABLE,
        transactional_ddl=True,
        render_as_batch=connection.dialect.name == "sqlite",
    )
    if earlier:  # what says the version moves to a table of its own
        context.get_context().stamp(context.script, "0001")
        connection.exec_driver_sql("DROP TABLE alembic_version")
    context.run_migrations()


if (connection := context.config.attributes.get("connection")) is not None:
    _migrate(connection)
else:
    with Database(load_settings()).schema_transaction() as own:
        _migrate(own)
