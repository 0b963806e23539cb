"""What the log says of the settings and of each request, and what it never says (section 8)."""

import errno
import logging
import re
from pathlib import Path
from types import SimpleNamespace

import httpx2
import psycopg2
import pytest

from logs import Log
from tests.conftest import Database
from tests.support.app import in_process
from tests.support.postgres import PASSWORD, Postgres, Server
from tests.support.processes import wait_until
from tests.support.service import REPOSITORY, Service

SECRET = "never-in-a-log-either-0123456789abcdef"


def test_the_log_says_once_which_database_which_users_and_which_origins(
    new_database: Database, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text("CORS_ORIGINS=https://not.example\nLOG_LEVEL=info\n")
    (tmp_path / ".env.local").write_text(
        f"DATABASE_URL={new_database.url}\nCORS_ORIGINS=https://local.example\n"
    )
    args = ["--app-dir", str(REPOSITORY)]
    with Service(cwd=tmp_path, args=args, CORS_ORIGINS="https://app.example.com") as service:
        log = service.log
    place = new_database.url.partition("?")[0].rpartition("@")[2].rpartition("//")[2]
    host, _, name = place.rpartition("/")
    assert (
        f"settings are those of the environment and, in {tmp_path}, of .env.local and .env" in log
    )
    for said in (name, host.partition(":")[0], "auth is off", "https://app.example.com"):
        assert said in log
    assert log.count("auth is off") == log.count("https://app.example.com") == 1
    assert ("SQLite" if new_database.name == "sqlite" else "PostgreSQL") in log
    assert "not.example" not in log
    assert "local.example" not in log
    assert PASSWORD not in log


def test_a_log_that_cannot_be_written_costs_nobody_an_answer(new_database: Database) -> None:
    def write(*_: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with in_process(database_url=new_database.url) as client:
        (handler,) = logging.getLogger("tasks").handlers
        assert isinstance(handler, Log)
        handler.setStream(SimpleNamespace(write=write, flush=write))
        assert client.get("/api/tasks").status_code == 200
        logging.getLogger("tasks").warning("the database is away")
        assert client.get("/api/tasks").status_code == 200


def test_the_log_has_one_line_a_request(
    service: Service, client: httpx2.Client, tasks: str
) -> None:
    calls = [
        ("GET", tasks, 200),
        ("HEAD", f"{tasks}/", 200),
        ("POST", tasks, 422),
        ("GET", f"{tasks}/{2**53 - 1}", 404),
        ("OPTIONS", tasks, 204),
        ("GET", f"{tasks}/a%20b%0Ac%E2%98%83", 422),
    ]
    for method, path, status in calls:
        answer = client.request(method, path, headers={"Authorization": f"Bearer {SECRET}"})
        request_id = answer.headers["x-request-id"]
        wait_until(lambda: f"{request_id}\n" in service.log, "the line, which follows the answer")  # noqa: B023
        (line,) = [line for line in service.log.splitlines() if request_id in line]
        said = re.escape(f" {method} {path} {status} ") + r"\d+\.\d ms " + request_id
        assert re.search(rf"{said}$", line)
    assert service.log.count(tasks) == len(calls)
    assert SECRET not in service.log


def test_no_secret_is_ever_logged(own_postgres: Postgres) -> None:
    """Not even at the most talkative level, while tokens are refused."""
    url = own_postgres.create_database()
    with Service(DATABASE_URL=url, AUTH_SECRET=SECRET, LOG_LEVEL="debug") as service:
        for token in (SECRET, f"{SECRET}.{PASSWORD}.x", "x"):
            answer = httpx2.get(
                f"{service.url}/api/tasks?token={token}",
                headers={"Authorization": f"Bearer {token}"},
            )
            assert answer.status_code == 401
        service.stop()
        assert "GET /api/tasks" in service.log
        for secret in (SECRET, PASSWORD):
            assert secret not in service.log
        assert "Traceback" not in service.log


# By functions and not by triggers, which a distributed table has none of.
_RAISING = """
CREATE FUNCTION refuse(title text) RETURNS boolean LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'not this: %', title; END $$;
ALTER TABLE task ADD CHECK (refuse(title))"""
_CASTING = "ALTER TABLE task ADD CHECK (title::int > 0)"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("ALTER TABLE task ADD CHECK (title <> 'forbidden')", "CheckViolation: (SQLSTATE 23514)"),
        (_RAISING, "RaiseException: (SQLSTATE P0001)"),
        (_CASTING, "InvalidTextRepresentation: (SQLSTATE 22P02)"),
        (
            "ALTER TABLE task DROP COLUMN description_folded",
            'UndefinedColumn: column "description_folded" of relation "task" does not exist',
        ),
    ],
    ids=["check", "raise", "cast", "column"],
)
def test_what_an_administrators_change_refuses_is_not_quoted(
    postgres: Server, change: str, named: str
) -> None:
    url = postgres.create_database()
    with Service(DATABASE_URL=url) as service, httpx2.Client(base_url=service.url) as client:
        with psycopg2.connect(url) as connection, connection.cursor() as cursor:
            cursor.execute(change)
        tags = ["task_feed_position"]  # in the row that PostgreSQL quotes; not what refuses it
        body = {"title": "forbidden", "description": f"{SECRET}\n{SECRET}", "tags": tags}
        assert client.post("/api/tasks", json=body).status_code == 500
        wait_until(lambda: named in service.log, "the traceback is in the log")
    assert SECRET not in service.log
    assert "forbidden" not in service.log
