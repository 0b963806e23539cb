"""What Alembic runs: the migrations, over the service's connection or, by hand, one of its own."""

from alembic import context
from sqlalchemy import Connection

from database import Database
from models import Task
from settings import load_settings


def _migrate(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Task.metadata,
        transactional_ddl=True,
        render_as_batch=connection.dialect.name == "sqlite",
    )
    context.run_migrations()


if (connection := context.config.attributes.get("connection")) is not None:
    _migrate(connection)
else:
    with Database(load_settings()).schema_transaction() as own:
        _migrate(own)
