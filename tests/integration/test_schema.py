"""The schema is brought to head on start-up, or the start is refused and nothing is touched."""

import asyncio
import multiprocessing
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import psycopg2
import pytest
import sqlalchemy
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Connection, text
from sqlmodel import SQLModel

import database
import models
from database import HEAD, StartupError
from database import Database as Store
from errors import Unavailable
from queries import Query
from settings import Settings
from tests.conftest import Database
from tests.support.app import in_process
from tests.support.postgres import PASSWORD, Postgres
from tests.support.processes import Port, drop_root, scratch_directory, wait_until
from tests.support.proxy import Proxy
from tests.support.service import REPOSITORY, Service

MIGRATION = '''
"""One more column, after {0}."""

import sqlalchemy as sa
from alembic import op

revision = "9998"
down_revision = "{0}"


def upgrade() -> None:
    op.add_column("task", sa.Column("colour", sa.Text(), server_default="red"))
    {1}
'''.format
POSTGRESQL_SCHEMA = """
    SELECT 'column', attrelid::regclass::text, attname, format_type(atttypid, atttypmod),
           attnotnull, pg_get_expr(adbin, adrelid), collname, attidentity
      FROM pg_attribute
      JOIN pg_class ON pg_class.oid = attrelid
      LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
      LEFT JOIN pg_collation ON pg_collation.oid = attcollation
     WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'v')
       AND attnum > 0 AND NOT attisdropped
    UNION ALL
    SELECT 'index', tablename, indexname, indexdef, NULL, NULL, NULL, NULL
      FROM pg_indexes WHERE schemaname = 'public'
    UNION ALL
    SELECT 'constraint', conrelid::regclass::text, conname, pg_get_constraintdef(oid),
           NULL, NULL, NULL, NULL
      FROM pg_constraint WHERE connamespace = 'public'::regnamespace
     ORDER BY 1, 2, 3
"""
FIRST = (
    "id user_id title title_folded description description_folded completed "
    "completed_at priority due_date tags order created_at updated_at version idempotency_key "
    "idempotency_fingerprint idempotency_replays"
)
EMPTY: dict[str, list[Any]] = {
    name: [] for name in ("task", "task_account", "task_failed_login", "task_gone")
}
FIRST_COLUMNS = ", ".join(f'"{name}" TEXT' for name in FIRST.split())


def version_table(name: str, version: str) -> list[str]:
    """Return the statements that make one of Alembic's version tables."""
    return [
        f"CREATE TABLE {name} (version_num VARCHAR(32) NOT NULL)",
        f"INSERT INTO {name} VALUES ('{version}')",
    ]


def store(url: str) -> Store:
    """Return the database of the service, not yet open."""
    return Store(Settings(_env_file=None, database_url=url))


def start(url: str) -> None:
    """Do what the service does with its database on start-up."""

    async def open_and_close() -> None:
        opened = store(url)
        try:
            await opened.open()
        finally:
            await opened.close()

    asyncio.run(open_and_close())


@contextmanager
def connected(url: str) -> Iterator[Connection]:
    """Connect to the database and commit at the end."""
    with store(url).schema_transaction() as connection:
        yield connection


def schema(connection: Connection) -> list[tuple[Any, ...]]:
    """Return everything that the database says of its tables, columns and indexes."""
    if connection.dialect.name == "postgresql":
        query = POSTGRESQL_SCHEMA
    else:
        query = "SELECT type, name, replace(sql, '\"', '') FROM sqlite_master ORDER BY name"
    return [tuple(row) for row in connection.execute(text(query))]


def contents(url: str) -> dict[str, Any]:
    """Return the whole schema and all rows."""
    with connected(url) as connection:
        inspector = sqlalchemy.inspect(connection)
        views = [name for name in inspector.get_view_names() if not name.startswith("citus_")]
        tables = inspector.get_table_names() + views
        rows = {
            table: [tuple(row) for row in connection.execute(text(f"SELECT * FROM {table}"))]
            for table in tables
        }
        return {"schema": schema(connection), "rows": rows}


def migrate(connection: Connection, action: Any, revision: str) -> None:
    """Run Alembic's upgrade or downgrade as the service does."""
    config = Config()
    config.set_main_option("script_location", str(REPOSITORY / "migrations"))
    config.attributes["connection"] = connection
    action(config, revision)


def assert_one_clear_line(reason: object) -> str:
    """Check that it is one line that names the variable and gives no secret away."""
    line = str(reason)
    assert re.fullmatch(r"DATABASE_URL: [^\n]{20,300}", line)
    assert PASSWORD not in line
    return line


def assert_refused(service: Service) -> str:
    """Start the service; check that it ends with code 1 and one clear line, and return that."""
    with closing(service):
        service.start(wait=False)
        assert service.wait_exit() == 1, service.log
        assert "Traceback" not in service.log
        assert PASSWORD not in service.log
        # uvicorn's own lines apart, and the warning that the database is away.
        lines = [line for line in service.log.splitlines() if not re.search("INFO|WARNING", line)]
        assert len(lines) == 1, service.log
        return assert_one_clear_line(lines[0])


@pytest.fixture
def next_version(tmp_path: Path) -> Path:
    """The service as it will be one migration later."""
    copy = tmp_path / "next"
    ignored = shutil.ignore_patterns(".*", "tests", "bench", "__pycache__", "*.db*")
    shutil.copytree(REPOSITORY, copy, ignore=ignored)
    (copy / "migrations" / "versions" / "9998_colour.py").write_text(MIGRATION(HEAD, ""))
    return copy


# ---- starts that succeed


def test_an_empty_database_gets_the_schema(new_database: Database) -> None:
    start(new_database.url)
    found = contents(new_database.url)
    found["rows"].pop("sqlite_sequence", None)
    ((nobody, identity, _),) = found["rows"].pop("task_feed")
    assert nobody == ""
    assert 0 <= identity < 2**52  # what no other database has
    assert found["rows"] == EMPTY | {"tasks_schema_version": [(HEAD,)]}


def test_a_database_at_head_is_left_alone(
    new_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with in_process(database_url=new_database.url) as client:
        task = client.post("/api/tasks", json={"title": "kept"}).json()
    before = contents(new_database.url)
    # Not even locked.
    with monkeypatch.context() as patch:
        patch.setattr(Store, "schema_transaction", lambda _: pytest.fail("it is at head"))
        with in_process(database_url=new_database.url) as client:
            assert client.get("/api/tasks").json() == [task]
    assert contents(new_database.url) == before


def test_a_database_of_an_earlier_version_is_upgraded_with_its_rows(
    new_database: Database, next_version: Path
) -> None:
    with in_process(database_url=new_database.url) as client:
        task = client.post("/api/tasks", json={"title": "kept", "tags": ["a"]}).json()
    with (
        Service(DATABASE_URL=new_database.url) as old,
        Service(cwd=next_version, DATABASE_URL=new_database.url) as service,
    ):
        assert httpx2.get(f"{service.url}/ready").status_code == 200
        (kept,) = httpx2.get(f"{service.url}/api/tasks").json()
        assert kept | {"url": ""} == task | {"url": ""}
        assert httpx2.post(f"{service.url}/api/tasks", json={"title": "new"}).status_code == 201
        # The copy that was running serves on: a release only adds.
        assert httpx2.get(f"{old.url}/ready").status_code == 200
        assert httpx2.post(f"{old.url}/api/tasks", json={"title": "old"}).status_code == 201
    with connected(new_database.url) as connection:
        rows = connection.execute(text("SELECT title, colour FROM task ORDER BY id"))
        found = [tuple(row) for row in rows]
        assert found == [("kept", "red"), ("new", "red"), ("old", "red")]

    # This version knows that it does not know that schema.
    before = contents(new_database.url)
    with pytest.raises(StartupError) as refused:
        start(new_database.url)
    assert "9998" in assert_one_clear_line(refused.value)
    assert contents(new_database.url) == before


def test_a_service_whose_database_is_set_back_under_it_is_not_ready(
    new_database: Database,
) -> None:
    table = database.VERSION_TABLE
    with in_process(database_url=new_database.url) as client:
        for change, status in {
            f"UPDATE {table} SET version_num = '0001'": 503,
            f"UPDATE {table} SET version_num = '{HEAD}'": 200,
            f"DROP TABLE {table}": 503,
        }.items():
            with connected(new_database.url) as connection:
                connection.execute(text(change))
            answer = client.get("/ready")
            assert answer.status_code == status
            if status == 503:
                detail = "The database does not have this version's schema."
                assert answer.json()["detail"] == detail
            assert client.get("/health").status_code == 200


TEN_AT_ONCE = """
import asyncio, multiprocessing
import alembic.command, main

fork = multiprocessing.get_context("fork")
ready = fork.Barrier(10)

async def serve():
    async with main.app.router.lifespan_context(main.app):
        pass

def worker():
    ready.wait(30)
    asyncio.run(serve())

workers = [fork.Process(target=worker) for _ in range(10)]
for each in workers:
    each.start()
for each in workers:
    each.join()
print([each.exitcode for each in workers])
"""


def start_ten_at_once(url: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", TEN_AT_ONCE],
        cwd=REPOSITORY,
        env={"PATH": os.environ["PATH"], "DATABASE_URL": url},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.stdout == f"{[0] * 10}\n", ended.stderr
    assert "Traceback" not in ended.stderr


def test_ten_workers_may_start_at_once_on_an_empty_database(new_database: Database) -> None:
    start_ten_at_once(new_database.url)
    found = contents(new_database.url)
    assert found["rows"]["tasks_schema_version"] == [(HEAD,)]
    start(new_database.url)
    assert contents(new_database.url) == found


def test_ten_workers_may_start_at_once_whatever_isolation_their_role_has(
    own_postgres: Postgres,
) -> None:
    url = own_postgres.create_database()
    start_ten_at_once(f"{url}?options=-c%20default_transaction_isolation%3Dserializable")


@pytest.mark.parametrize("version", ["0001", "a1b2c3d4e5f6"])
def test_it_lives_beside_an_application_with_migrations_of_its_own(
    new_database: Database, version: str
) -> None:
    with connected(new_database.url) as connection:
        for statement in version_table("alembic_version", version):
            connection.execute(text(statement))
    for _ in range(2):
        start(new_database.url)
    rows = contents(new_database.url)["rows"]
    rows.pop("sqlite_sequence", None)
    assert len(rows.pop("task_feed")) == 1
    assert rows == EMPTY | {
        "tasks_schema_version": [(HEAD,)],
        "alembic_version": [(version,)],
    }


def test_the_numbers_of_a_table_that_made_way_for_ours_are_not_used(
    own_postgres: Postgres,
) -> None:
    url = own_postgres.create_database()
    with connected(url) as connection:
        connection.execute(text("CREATE TABLE task (id SERIAL); ALTER TABLE task RENAME TO old"))
    with in_process(database_url=url) as client:
        first = client.post("/api/tasks", json={"title": "one"}).json()
        more = client.post("/api/tasks", json=[{"title": "two"}, {"title": "three"}])
    assert more.status_code == 201, more.text
    assert [first["id"], *(task["id"] for task in more.json())] == [1, 2, 3]
    with connected(url) as connection:
        assert connection.scalar(text("SELECT is_called FROM task_id_seq")) is False


def test_a_deployment_from_before_the_version_table_is_taken_over_with_its_rows(
    new_database: Database,
) -> None:
    with connected(new_database.url) as connection:
        migrate(connection, command.upgrade, "0001")
    with in_process(database_url=new_database.url) as client:
        task = client.post("/api/tasks", json={"title": "kept"}).json()
    with connected(new_database.url) as connection:
        made_anew = schema(connection)
        migrate(connection, command.downgrade, "0001")
    make_earlier(new_database.url)
    with in_process(database_url=new_database.url) as client:
        (kept,) = client.get("/api/tasks").json()
    assert kept | {name: task[name] for name in ("uid", "etag")} == task
    with connected(new_database.url) as connection:
        assert schema(connection) == made_anew


def make_earlier(url: str) -> None:
    """Say the version of 0001 as it was said before there was a table of our own for it."""
    with connected(url) as connection:
        connection.execute(text("DROP TABLE tasks_schema_version"))
        for statement in version_table("alembic_version", "0001"):
            connection.execute(text(statement))


def test_a_foreign_table_earlier_in_the_search_path_is_not_taken_for_ours(
    own_postgres: Postgres,
) -> None:
    url = own_postgres.create_database()
    start(url)
    with connected(url) as connection:
        connection.execute(text("CREATE SCHEMA owner"))
        connection.execute(text("CREATE TABLE owner.task (id INTEGER)"))
    with pytest.raises(StartupError) as refused:
        start(url)
    assert "'task'" in assert_one_clear_line(refused.value)


def at(version: str, url: str) -> str:
    """Bring a database to an earlier version of the schema; returns its URL."""
    with connected(url) as connection:
        migrate(connection, command.upgrade, "head")
        migrate(connection, command.downgrade, version)
    return url


def waiting_for_a_table(server: Postgres, url: str) -> bool:
    """Whether somebody waits for the lock of a whole table."""
    sql = "SELECT 1 FROM pg_locks WHERE NOT granted AND locktype = 'relation'"
    return bool(server.execute(sql, database=url.rpartition("/")[2]))


def test_an_upgrade_holds_up_nobody_while_somebody_else_reads_a_table(
    own_postgres: Postgres,
) -> None:
    url = at("0005", own_postgres.create_database())
    with ThreadPoolExecutor() as another, closing(psycopg2.connect(url)) as dump:
        dump.cursor().execute("SELECT count(*) FROM task_feed")
        started = another.submit(start, url)
        wait_until(lambda: waiting_for_a_table(own_postgres, url), "the upgrade waits")
        with closing(psycopg2.connect(url)) as caller:
            caller.autocommit = True
            for _ in range(3):  # each comes while the upgrade waits
                caller.cursor().execute("SET statement_timeout = 3500")
                caller.cursor().execute("SELECT position FROM task_feed")
                wait_until(lambda: waiting_for_a_table(own_postgres, url), "it tries again")
        dump.rollback()
        started.result(30)
    assert contents(url)["rows"]["tasks_schema_version"] == [(HEAD,)]


def test_an_upgrade_and_a_write_do_not_wait_for_each_other(own_postgres: Postgres) -> None:
    url = at("0003", own_postgres.create_database())
    with ThreadPoolExecutor() as another, closing(psycopg2.connect(url)) as writer:
        write = writer.cursor()
        write.execute("SET deadlock_timeout = '1min'")  # so that the other would be the victim
        write.execute("UPDATE task_feed SET position = position + 1")
        started = another.submit(start, url)
        wait_until(lambda: waiting_for_a_table(own_postgres, url), "the upgrade waits")
        write.execute("SET statement_timeout = 500")
        write.execute("UPDATE task SET position = 2")
        writer.commit()
        started.result(30)
    assert contents(url)["rows"]["tasks_schema_version"] == [(HEAD,)]


def test_an_upgrade_that_freezes_lets_go_of_what_it_has_locked(
    own_postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = own_postgres.create_database()
    start(url)
    monkeypatch.setattr(database, "_UPGRADE", database._UPGRADE.replace("15s", "1s"))

    def freeze() -> None:
        with connected(url) as connection:
            connection.execute(text("LOCK TABLE task_feed IN ACCESS EXCLUSIVE MODE"))
            with closing(psycopg2.connect(url)) as caller:  # and no more comes from the upgrade
                caller.cursor().execute("SET statement_timeout = 5000")
                caller.cursor().execute("SELECT position FROM task_feed")
            start(url)

    with pytest.raises(sqlalchemy.exc.DBAPIError):
        freeze()


# ---- starts that are refused


@pytest.mark.parametrize(
    "statements",
    [
        [
            "CREATE TABLE task (id INTEGER PRIMARY KEY, note TEXT)",
            "INSERT INTO task VALUES (1, 'x')",
        ],
        ["CREATE VIEW task AS SELECT 1 AS id"],
        [
            "CREATE TABLE task (id INTEGER)",
            "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)",
        ],
        [
            *version_table("alembic_version", "0001"),
            "CREATE TABLE task (id INTEGER PRIMARY KEY, user_id TEXT, title TEXT)",
            "INSERT INTO task VALUES (1, 'demo', 'x')",
        ],
        [*version_table("alembic_version", "0001"), "CREATE VIEW task AS SELECT 1 AS id"],
        [f"CREATE TABLE task ({FIRST_COLUMNS})"],
        [
            *version_table("alembic_version", "a1b2c3d4e5f6"),
            f"CREATE TABLE task ({FIRST_COLUMNS})",
        ],
        [
            *version_table("alembic_version", "0001"),
            f"CREATE TABLE elsewhere ({FIRST_COLUMNS})",
            "CREATE VIEW task AS SELECT * FROM elsewhere",
        ],
        [*version_table("tasks_schema_version", HEAD), "CREATE TABLE task (id INTEGER)"],
        [*version_table("tasks_schema_version", "0001"), "CREATE TABLE task (id INTEGER)"],
        version_table("tasks_schema_version", HEAD),
        version_table("tasks_schema_version", "0000"),
    ],
    ids=[
        *("table", "view", "table beside an empty alembic_version"),
        *("table beside 0001", "view beside 0001", "our columns", "our columns beside a version"),
        *("view of our columns", "our version", "an earlier version", "no table", "no version"),
    ],
)
def test_what_another_tool_made_is_refused_and_untouched(
    new_database: Database, statements: list[str]
) -> None:
    with connected(new_database.url) as connection:
        for statement in statements:
            connection.execute(text(statement))
    before = contents(new_database.url)
    with pytest.raises(StartupError) as refused:
        start(new_database.url)
    assert_one_clear_line(refused.value)
    assert contents(new_database.url) == before


def test_a_schema_that_lacks_a_column_of_its_version_is_refused(new_database: Database) -> None:
    url = at("0005", new_database.url)
    with connected(url) as connection:
        connection.execute(text("ALTER TABLE task DROP COLUMN repeated_at"))
    before = contents(url)
    for version in ("0005", HEAD):  # what it says, rightly or not
        with connected(url) as connection:
            connection.execute(text(f"UPDATE tasks_schema_version SET version_num = '{version}'"))
        with pytest.raises(StartupError) as refused:
            start(url)
        assert "task.repeated_at" in assert_one_clear_line(refused.value)
        assert contents(url)["schema"] == before["schema"]


def test_a_foreign_file_keeps_every_byte(tmp_path: Path) -> None:
    file = tmp_path / "tasks.db"
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE Task (id INTEGER PRIMARY KEY, note TEXT)")
    before = file.read_bytes()
    with pytest.raises(StartupError):
        start(f"sqlite:///{file}")
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["tasks.db"]


def test_a_foreign_table_ends_the_process_with_one_line(new_database: Database) -> None:
    with connected(new_database.url) as connection:
        connection.execute(text("CREATE TABLE task (id INTEGER PRIMARY KEY, note TEXT)"))
    line = assert_refused(Service(DATABASE_URL=new_database.url))
    assert "'task'" in line
    assert list(contents(new_database.url)["rows"]) == ["task"]


def test_a_newer_schema_is_refused_and_untouched(new_database: Database) -> None:
    start(new_database.url)
    with connected(new_database.url) as connection:
        connection.execute(text("UPDATE tasks_schema_version SET version_num = '9999'"))
    before = contents(new_database.url)
    with pytest.raises(StartupError) as refused:
        start(new_database.url)
    assert "newer schema" in assert_one_clear_line(refused.value)
    assert "9999" in str(refused.value)
    assert contents(new_database.url) == before


def test_a_migration_that_fails_leaves_the_old_schema_and_one_line(
    new_database: Database, next_version: Path
) -> None:
    with in_process(database_url=new_database.url) as client:
        task = client.post("/api/tasks", json={"title": "kept"}).json()
    before = contents(new_database.url)
    version = next_version / "migrations" / "versions" / "9998_colour.py"
    version.write_text(MIGRATION(HEAD, 'op.execute("SELECT * FROM nowhere")'))
    assert_refused(Service(cwd=next_version, DATABASE_URL=new_database.url))
    assert contents(new_database.url) == before
    with in_process(database_url=new_database.url) as client:
        assert client.get("/api/tasks").json() == [task]


def test_a_file_that_is_no_database_is_refused_and_untouched(tmp_path: Path) -> None:
    file = tmp_path / "tasks.db"
    file.write_bytes(b"somebody's letter\n" * 1000)
    with pytest.raises(StartupError) as refused:
        start(f"sqlite:///{file}")
    assert_one_clear_line(refused.value)
    assert file.read_bytes() == b"somebody's letter\n" * 1000


def test_a_worker_that_cannot_ask_at_once_which_database_this_is_asks_again(
    new_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with in_process(database_url=new_database.url) as client:
        client.post("/api/tasks", json={"title": "task"})
        tag = client.get("/api/tasks").headers["etag"]
    run, asked = Store.run, []

    async def away_at_first(store: Store, query: Query) -> Any:
        if query.statement is database._identity:
            asked.append(query)
            if len(asked) == 1:
                raise Unavailable
        return await run(store, query)

    monkeypatch.setattr(Store, "run", away_at_first)
    with in_process(database_url=new_database.url) as client:
        assert client.get("/api/tasks").headers["etag"] == tag
        conditional = {"If-Match": tag}
        answer = client.patch("/api/tasks", json={"priority": "low"}, headers=conditional)
        assert answer.json() == {"updated": 1}
    assert len(asked) == 2


def test_a_role_that_may_not_create_tables_is_told_so(own_postgres: Postgres) -> None:
    role = f"poor_{uuid4().hex}"
    own_postgres.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'")
    url = own_postgres.create_database().replace("owner:", f"{role}:")
    with pytest.raises(StartupError) as refused:
        start(url)
    assert "permission denied" in assert_one_clear_line(refused.value)


def test_a_role_that_may_only_read_starts_on_what_an_earlier_version_left(
    own_postgres: Postgres,
) -> None:
    url = own_postgres.create_database()
    start(url)
    role, name = f"reader_{uuid4().hex}", url.rpartition("/")[2]
    own_postgres.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'")
    own_postgres.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}", database=name)
    own_postgres.execute("DELETE FROM task_feed", database=name)  # no identity
    start(url.replace("owner:", f"{role}:"))


# ---- a database that is away

IMPATIENT = f"""
import sys
sys.path.insert(0, {str(REPOSITORY)!r})
import database
database._PATIENCE = 0.5  # not half a minute
from main import app
"""


def test_a_database_that_stays_away_ends_the_process_with_one_line(tmp_path: Path) -> None:
    port = Port()
    url = f"postgresql://owner:{PASSWORD}@127.0.0.1:{port.number}/tasks"
    (tmp_path / "impatient.py").write_text(IMPATIENT)
    line = assert_refused(Service(cwd=tmp_path, app="impatient:app", DATABASE_URL=url))
    assert "127.0.0.1" in line
    port.release()


def test_a_database_that_lets_nobody_in_is_refused_without_its_password(
    own_postgres: Postgres, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(database.log, "handlers", [caplog.handler])
    wrong = PASSWORD[::-1]
    with pytest.raises(StartupError) as refused:
        start(own_postgres.url().replace(PASSWORD, wrong))
    line = assert_one_clear_line(refused.value)
    assert "password authentication failed" in line
    assert wrong not in line + caplog.text


def test_a_directory_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(StartupError) as refused:
        start(f"sqlite:///{tmp_path}/missing/tasks.db")
    assert f"{tmp_path}/missing/tasks.db" in assert_one_clear_line(refused.value)
    assert not (tmp_path / "missing").exists()


def unprivileged(action: Callable[[], str]) -> str:
    """Return what `action` returns in a process that is not root's."""
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe()

    def run() -> None:
        if identity := drop_root():
            os.setgroups([])
            os.setgid(identity["group"])
            os.setuid(identity["user"])
        theirs.send(action())

    process = fork.Process(target=run)
    process.start()
    theirs.close()
    process.join(60)
    return str(ours.recv())


def refusal(url: str) -> str:
    """Return the line that the start is refused with."""
    with pytest.raises(StartupError) as refused:
        start(url)
    return assert_one_clear_line(refused.value)


@pytest.fixture
def nobodys() -> Iterator[Path]:
    """A directory whose owner is not root."""
    directory = scratch_directory("nobodys", unprivileged=True)
    yield directory
    shutil.rmtree(directory)


@pytest.mark.parametrize(
    ("file_mode", "directory_mode"),
    [(0o400, 0o700), (0o000, 0o700), (None, 0o500), (0o600, 0o500)],
    ids=[
        "read-only file",
        "secret file",
        "no file in a read-only directory",
        "read-only directory",
    ],
)
def test_a_file_that_cannot_be_written_is_refused_at_once(
    nobodys: Path, file_mode: int | None, directory_mode: int
) -> None:
    file = nobodys / "tasks.db"

    def attempt() -> str:
        if file_mode is not None:
            file.touch()
            file.chmod(file_mode)
        nobodys.chmod(directory_mode)
        return refusal(f"sqlite:///{file}")

    assert re.search("[Pp]ermission denied|unable to open|readonly", unprivileged(attempt))


def test_a_file_that_turns_read_only_is_not_ready(nobodys: Path) -> None:
    file = nobodys / "tasks.db"

    def attempt() -> str:
        statuses = []
        with in_process(database_url=f"sqlite:///{file}") as client:
            for mode in (0o600, 0o400, 0o600):
                file.chmod(mode)
                statuses.append(client.get("/ready").status_code)
            file.rename(nobodys / "elsewhere.db")
            statuses.append(client.get("/ready").status_code)
        return str(statuses)

    assert unprivileged(attempt) == "[200, 503, 200, 503]"


def test_a_file_that_was_read_only_is_written_as_soon_as_it_can_be(nobodys: Path) -> None:
    file = nobodys / "tasks.db"

    def attempt() -> str:
        start(f"sqlite:///{file}")
        statuses = []
        with in_process(database_url=f"sqlite:///{file}") as client:
            for mode in (0o400, 0o600):  # before the first write, too
                file.chmod(mode)
                statuses.append(client.post("/api/tasks", json={"title": "a"}).status_code)
        return str(statuses)

    assert unprivileged(attempt) == "[503, 201]"


def test_a_directory_is_no_database(tmp_path: Path) -> None:
    assert "Is a directory" in refusal(f"sqlite:///{tmp_path}")


def test_the_file_of_tasks_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / "tasks.db"
    with in_process(database_url=f"sqlite:///{file}") as client:
        client.post("/api/tasks", json={"title": "private"})
        assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {
            "tasks.db": 0o600,
            "tasks.db-wal": 0o600,
            "tasks.db-shm": 0o600,
        }
    file.chmod(0o640)
    start(f"sqlite:///{file}")
    assert file.stat().st_mode & 0o777 == 0o640


def test_a_database_that_somebody_else_writes_to_is_waited_for_and_the_reason_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_PATIENCE", 0.2)
    monkeypatch.setattr(database, "_ANSWER", 0.1)
    file = tmp_path / "tasks.db"
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        line = refusal(f"sqlite:///{file}")
    assert "did not answer" in line
    assert "locked" in line


def test_an_upgrade_by_another_process_is_waited_for_however_long_it_takes(
    new_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_PATIENCE", 0.2)
    monkeypatch.setattr(database, "_ANSWER", 0.1)
    settings = Settings(_env_file=None, database_url=new_database.url)
    if new_database.name == "postgresql":  # whatever limits calls have
        name = new_database.url.rpartition("/")[2]
        with connected(new_database.url) as connection:
            for limit in ("statement_timeout", "lock_timeout"):
                connection.execute(text(f"ALTER DATABASE {name} SET {limit} = 500"))
    with ThreadPoolExecutor() as another:
        with database.Database(settings).schema_transaction():
            started = another.submit(start, new_database.url)
            time.sleep(2)
            assert not started.done()
        started.result(30)


def test_a_database_that_is_not_in_utf8_is_refused(own_postgres: Postgres) -> None:
    for encoding in ("LATIN1", "SQL_ASCII"):
        name = f"test_{uuid4().hex}"
        own_postgres.execute(
            f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' "
            "LOCALE_PROVIDER libc LOCALE 'C'"
        )
        assert encoding in refusal(own_postgres.url(name))


def test_a_file_that_is_not_in_utf8_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "tasks.db"
    with closing(sqlite3.connect(file)) as connection:
        connection.executescript("PRAGMA encoding = 'UTF-16'; CREATE TABLE mine (a)")
    before = file.read_bytes()
    assert "UTF-16" in refusal(f"sqlite:///{file}")
    assert file.read_bytes() == before


def test_what_a_server_never_lets_in_is_refused_at_once(own_postgres: Postgres) -> None:
    url = own_postgres.url()
    closed = own_postgres.create_database()
    own_postgres.execute(f"REVOKE CONNECT ON DATABASE {closed.rpartition('/')[2]} FROM PUBLIC")
    role = f"poor_{uuid4().hex}"
    own_postgres.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'")
    for wrong, reason in (
        (own_postgres.url("nowhere"), "does not exist"),
        (url.replace("owner:", "nobody:"), "authentication failed"),
        (url.replace(f":{PASSWORD}", ""), "no password supplied"),
        (closed.replace("owner:", f"{role}:"), "permission denied"),
        (f"{url}?sslmode=require", "SSL"),
        (f"{url}?sslmode=perhaps", "sslmode"),
    ):
        assert reason in refusal(wrong)


def test_a_database_that_stays_away_is_waited_for_and_the_last_reason_said(
    own_postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_PATIENCE", 0.2)
    for away in ("nowhere.invalid", "127.0.0.1:1"):
        line = refusal(f"postgresql://owner:{PASSWORD}@{away}/tasks")
        assert re.search(r"did not answer for \d+ s: .*(translate|refused)", line)
    busy = own_postgres.create_database()
    name = busy.rpartition("/")[2]
    own_postgres.execute(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS false")
    assert "not currently accepting connections" in refusal(busy)


def test_a_database_that_comes_later_is_waited_for(own_postgres: Postgres) -> None:
    with Proxy(own_postgres.port) as proxy:
        proxy.refuse()
        url = proxy.through(own_postgres.create_database())
        with closing(Service(DATABASE_URL=url)) as service:
            service.start(wait=False)
            wait_until(lambda: "away" in service.log, "it has tried")
            assert service.running
            proxy.accept()
            service.wait_ready()
            assert httpx2.get(f"{service.url}/ready").status_code == 200


# ---- the migrations themselves


def test_downgrade_and_upgrade_lead_back_to_the_same_schema(new_database: Database) -> None:
    start(new_database.url)
    with connected(new_database.url) as connection:
        before = schema(connection)
        migrate(connection, command.downgrade, "base")
        assert "task" not in sqlalchemy.inspect(connection).get_table_names()
        migrate(connection, command.upgrade, "head")
        assert schema(connection) == before


def test_tasks_from_before_positions_are_numbered_in_the_order_of_their_making(
    new_database: Database,
) -> None:
    with in_process(database_url=new_database.url) as client:
        for start in range(3):
            bodies = [{"title": f"{start} {number}"} for number in range(1000)]
            assert client.post(f"/api/user{start % 2}/tasks", json=bodies).status_code == 201
    at("0002", new_database.url)
    with connected(new_database.url) as connection:
        migrate(connection, command.upgrade, "0003")
        if connection.dialect.name == "postgresql":
            # Each row is written once: an UPDATE of all leaves as much again that is dead.
            connection.execute(text("CREATE TABLE anew AS SELECT * FROM task"))
            sizes = "SELECT pg_relation_size('task') < 1.5 * pg_relation_size('anew')"
            assert connection.scalar(text(sizes))
            connection.execute(text("DROP TABLE anew"))
    with in_process(database_url=new_database.url) as client:
        for user, number in (("user0", 2000), ("user1", 1000)):
            told, page = [], {"position": 0, "more": True}
            while page["more"]:
                query = f"since={page['position']}&limit=300"
                page = client.get(f"/api/{user}/tasks/changes?{query}").json()
                told += [task["id"] for task in page["changes"]]
            assert told == sorted(told)
            assert len(told) == number
            known = page["position"]
            task = client.post(f"/api/{user}/tasks", json={"title": "new"}).json()
            page = client.get(f"/api/{user}/tasks/changes?since={known}").json()
            assert [change["id"] for change in page["changes"]] == [task["id"]]
            assert page["position"] > known


@pytest.mark.parametrize("version", ["0005", "0004", "0003"])
def test_the_way_back_and_forth_again_leaves_tasks_tags_and_positions(
    new_database: Database, version: str
) -> None:
    with in_process(database_url=new_database.url) as client:
        first, second, _ = (
            client.post("/api/tasks", json={"title": title}).json() for title in "abc"
        )
        client.patch(f"/api/tasks/{first['id']}/complete")
        client.delete(f"/api/tasks/{second['id']}?forever=true")
        before = [client.get(f"/api/tasks/changes?since={since}").json() for since in range(6)]
    at(version, new_database.url)
    with in_process(database_url=new_database.url) as client:
        assert before == [
            client.get(f"/api/tasks/changes?since={since}").json() for since in range(6)
        ]


ELSEWHERE = {
    "sqlite": ("task_user_id_priority_id", "task_user_id_uid"),
    "postgresql": ("task_user_id_priority_id_state", "task_user_id_position", "task_uid_user_id"),
}


def test_the_migrated_schema_is_that_of_the_models(new_database: Database) -> None:
    start(new_database.url)
    with connected(new_database.url) as connection:
        options = {
            "compare_type": True,
            "compare_server_default": True,
            "version_table": database.VERSION_TABLE,
            # Alembic does not ask on which database an index is made (`ddl_if`).
            "include_object": lambda _, name, *__: name not in ELSEWHERE[new_database.name],
        }
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, SQLModel.metadata) == []

        # Alembic compares no collations and no conditions of indexes: make the table anew.
        def of_tasks() -> list[Any]:
            others = ("tasks_schema_version", "task_deleted")  # the second is a trigger
            return [row for row in schema(connection) if row[1] not in others]

        migrated = of_tasks()
        connection.execute(text("DROP TABLE task"))
        SQLModel.metadata.create_all(connection, tables=[models.TASK])
        if new_database.name == "postgresql":  # no model can say that this is so on one of them
            key = "DROP CONSTRAINT task_pkey, ADD CONSTRAINT task_pkey PRIMARY KEY (user_id, id)"
            connection.execute(text(f"ALTER TABLE task {key}"))
        assert [normal(row) for row in of_tasks()] == [normal(row) for row in migrated]


def normal(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the row without differences of layout, such as SQLite's ADD COLUMN makes."""
    return tuple(
        " ".join(re.sub("([,)])", r" \1 ", value).split()) if isinstance(value, str) else value
        for value in row
    )
