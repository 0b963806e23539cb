"""Statements that PostgreSQL reads and plans once a connection (its manual: PREPARE).

To plan one takes longer than to run it. `PREPARE` goes in the same message as the first `EXECUTE`,
so it is no round trip more. The name follows from the text: behind a pooler, where connections are
somebody else's too, a name never means another statement.
"""

from collections.abc import Mapping
from hashlib import sha256


class Prepared:
    """A statement in psycopg2's spelling; `types` are those of its parameters, as SQL."""

    def __init__(self, sql: str, types: Mapping[str, str]) -> None:
        self.plain = sql
        self.name = f"tasks_{sha256(sql.encode()).hexdigest()[:16]}"
        text = sql % {name: f"${place}" for place, name in enumerate(types, 1)}
        given = ", ".join(f"%({name})s" for name in types)
        self.again = f"EXECUTE {self.name}({given})"
        planned = text.replace("%", "%%")  # for psycopg2 reads it, too
        self.first = f"PREPARE {self.name}({', '.join(types.values())}) AS {planned}; {self.again}"


Sql = str | Prepared


def spelt(sql: Sql, prepared: dict[str, bool] | None) -> str:
    """Return what to send where these are `prepared`, and note it; None: where nothing stays so."""
    if isinstance(sql, str):
        return sql
    if prepared is None:
        return sql.plain
    if sql.name in prepared:
        return sql.again
    prepared[sql.name] = True
    return sql.first
