"""What the tests of faults share."""

import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Final
from urllib.parse import urlsplit

import psycopg2
import pytest

from tests.support.postgres import Postgres

# What a server runs on one database for clients; what it does by itself (autovacuum) aside.
BUSY: Final = """SELECT count(*) FROM pg_stat_activity
                 WHERE datname = %s AND state = 'active' AND backend_type = 'client backend'
                 AND pid <> pg_backend_pid()"""


@pytest.fixture
def url(own_postgres: Postgres) -> str:
    """The URL of an empty database on PostgreSQL."""
    return own_postgres.create_database()


@pytest.fixture
def busy(own_postgres: Postgres, url: str) -> Iterator[list[int]]:
    """How many statements the server was running on that database, looked at all the while."""
    counts: list[int] = []
    ended = threading.Event()

    def look() -> None:
        with closing(psycopg2.connect(own_postgres.url())) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                while not ended.wait(0.02):
                    cursor.execute(BUSY, (urlsplit(url).path[1:],))
                    counts.append(cursor.fetchall()[0][0])

    thread = threading.Thread(target=look)
    thread.start()
    yield counts
    ended.set()
    thread.join()
