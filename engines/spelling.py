"""What the two databases spell differently, as SQL functions that compile for either.

Where PostgreSQL has its tables on several nodes (Citus), a statement that changes something takes
no volatile function, and of a column no stable one: what is either is spelt a third way.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import BigInteger, Integer, Text
from sqlalchemy.dialects.postgresql import psycopg2
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.expression import ColumnElement
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import Boolean, TypeEngine


class Citus(psycopg2.dialect):
    """PostgreSQL whose tables are distributed by user."""

    supports_statement_cache = True


def _spelt(
    kind: TypeEngine[Any], *, postgresql: str, sqlite: str, citus: str | None = None
) -> Callable[..., ColumnElement[Any]]:
    """Return a SQL function that each database spells its own way; `{0}` is its first argument."""

    class Spelt(FunctionElement[Any]):
        type = kind
        inherit_cache = True

        def self_group(self, against: Any = None) -> Any:
            """Stay as it is: compared with 1, as SQLite's dialect would, no index serves it."""
            return self

    @compiles(Spelt)
    def spell(function: Any, compiler: Any, **options: Any) -> str:
        template = sqlite if compiler.dialect.name == "sqlite" else postgresql
        if citus and isinstance(compiler.dialect, Citus):
            template = citus
        return template.format(*(compiler.process(part, **options) for part in function.clauses))

    return Spelt


# Whether the first text holds the second; nothing in it is a wildcard. `long_in` is the service's
# own, in `engines/sqlite.py`: what `instr` takes grows with the product of both lengths.
contains: Final = _spelt(
    Boolean(),
    postgresql="strpos({0}, {1}) > 0",
    sqlite="CASE WHEN length({1}) > 100 THEN long_in({0}, {1}) ELSE instr({0}, {1}) > 0 END",
)
# Whether a value is in a list; the list is one parameter, however long it is.
one_of: Final = _spelt(
    Boolean(), postgresql="{0} = ANY ({1})", sqlite="{0} IN (SELECT value FROM json_each({1}))"
)
# Whether the first tags hold all of the second. With EXCEPT it took SQLite four times as long.
has_tags: Final = _spelt(
    Boolean(),
    postgresql="{0} @> {1}",
    sqlite="NOT EXISTS (SELECT 1 FROM json_each({1}) AS part WHERE NOT EXISTS "
    "(SELECT 1 FROM json_each({0}) AS tag WHERE tag.value = part.value))",
)
# Tags as text, one a line.
tag_lines: Final = _spelt(
    Text(),
    postgresql="array_to_string({0}, chr(10))",
    citus="task_text({0})",
    sqlite="(SELECT coalesce(group_concat(value, char(10)), '') FROM json_each({0}))",
)


def timestamp(moment: datetime) -> str:
    """Return an instant as RFC 3339 text in UTC, to the microsecond, ending in Z."""
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def read_timestamp(stored: Any) -> str | None:
    """Return the same of what SQLite, which has them in UTC, or PostgreSQL gives of an instant."""
    if stored is None:
        return None
    instant = stored.removesuffix("+00")
    if len(instant) != 26:  # PostgreSQL drops zeros at the end
        whole, _, fraction = instant.partition(".")
        instant = f"{whole}.{fraction:0<6}"
    if len(instant) == 26 and instant[20:].isdecimal():  # in UTC
        return f"{instant[:10]}T{instant[11:]}Z"
    moment = datetime.fromisoformat(stored)  # without an offset it is SQLite's, wherever this runs
    return timestamp(moment if moment.tzinfo else moment.replace(tzinfo=UTC))


# The same in a statement.
timestamp_text: Final = _spelt(
    Text(),
    postgresql="to_char({0} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')",
    citus="task_text({0})",
    sqlite="replace({0}, ' ', 'T') || 'Z'",
)
# 1 where the condition holds; else the statement fails and has done nothing: division by zero
# there, on SQLite a NULL in a column that takes none.
or_nothing: Final = _spelt(Integer(), postgresql="(1 / ({0})::int)", sqlite="nullif({0}, 0)")
# Whether there is a value; in RETURNING, SQLite takes IS NOT NULL for true.
is_set: Final = _spelt(Boolean(), postgresql="({0} IS NOT NULL)", sqlite="(typeof({0}) <> 'null')")
# A number that has not been there and does not come again, below 2^53; on several nodes one for all
# rows of a statement.
random_number: Final = _spelt(
    BigInteger(),
    postgresql="(random() * 9007199254740991)::bigint",
    sqlite="abs(random() % 9007199254740991)",
    citus="(hashtextextended(now()::text || pg_backend_pid(), 0) & 9007199254740991)",
)
# The next number of a task. Its sequence may be `task_id_seq1`: another application's table keeps
# its own when it is renamed.
next_id: Final = _spelt(
    BigInteger(),
    postgresql="nextval((SELECT coalesce(pg_get_serial_sequence('task', 'id'), 'task_id_seq')"
    "::regclass))",
    citus="nextval('task_id_seq')",
    sqlite="NULL",  # which numbers them by itself
)
# A UUID of version 4 (RFC 9562 section 5.4), as text: the `uid` of what is stored without one, by a
# version before `queries.new_uid`.
new_uuid: Final = _spelt(
    Text(),
    postgresql="(gen_random_uuid())::text",
    sqlite="lower(hex(randomblob(4)) || '-' || hex(randomblob(2)) || '-4' || "
    "substr(hex(randomblob(2)), 2) || '-8' || substr(hex(randomblob(2)), 2) || '-' || "
    "hex(randomblob(6)))",
)
