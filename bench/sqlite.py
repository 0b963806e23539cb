"""Fills a SQLite file with tasks, and takes away what a measurement created."""

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from bench import postgres
from bench.load import SMALL

# Row n of this service's table, where it is spelt another way than in PostgreSQL's.
ROW = postgres.ROW | {
    "user_id": f"'user-' || (1 + (n - 1) % {SMALL.users})",
    "completed": "n % 3 = 0",
    "completed_at": "CASE WHEN n % 3 = 0 THEN '2026-01-01 00:00:00.000001' END",
    "priority": "n % 5",
    "due_date": "CASE WHEN n % 2 = 0 THEN date('2026-01-01', (n % 365) || ' days') END",
    "tags": """'["home", "tag ' || (n % 50) || '"]'""",
    "order": "n * 1.0",
    "created_at": "strftime('%Y-%m-%d %H:%M:%f000', '2026-01-01', n || ' seconds')",
    "updated_at": "strftime('%Y-%m-%d %H:%M:%f000', '2026-01-01', n || ' seconds')",
}
# Row n of PocketBase's: ids are text of 15 characters, and nothing is null.
INSTANT = "strftime('%Y-%m-%d %H:%M:%fZ', '2026-01-01', n || ' seconds')"
POCKETBASE_ROW = {
    **{name: ROW[name] for name in ("user_id", "title", "description", "completed", "tags")},
    "id": "printf('%015d', n)",
    "completed_at": f"iif(n % 3 = 0, {INSTANT}, '')",
    "priority": 'json_extract(\'["none", "low", "medium", "high", "urgent"]\', '
    "'$[' || (n % 5) || ']')",
    "due_date": f"coalesce({ROW['due_date']}, '')",
    "order": "n",
    "created_at": INSTANT,
    "updated_at": INSTANT,
}


def fill(
    connection: sqlite3.Connection,
    table: str,
    row: Mapping[str, str],
    count: int,
    *,
    start: int = 0,
) -> int:
    """Insert rows start + 1 to start + count; return the number of the last."""
    columns = ", ".join(f'"{name}"' for name in row)
    connection.execute(
        f"INSERT INTO {table} ({columns}) WITH RECURSIVE number(n) AS (SELECT {start + 1} "
        f"UNION ALL SELECT n + 1 FROM number WHERE n < {start + count}) "
        f"SELECT {', '.join(row.values())} FROM number"
    )
    return start + count


def tidy(file: Path, table: str, *, tasks: int) -> None:
    """Take away what the last measurement created, and empty the log: all start alike."""
    with closing(sqlite3.connect(file, timeout=10, isolation_level=None)) as connection:
        connection.execute(f"DELETE FROM {table} WHERE rowid > {tasks}")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
