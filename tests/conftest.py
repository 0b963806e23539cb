"""What every test can ask for. Tests that use `database` or what follows from it run on both."""

import os
import sqlite3
from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import httpx2
import pytest

from tests.support.pgbouncer import PgBouncer
from tests.support.postgres import Postgres, Server, wheel_version
from tests.support.processes import Daemon
from tests.support.service import Service

EXTERNAL = os.environ.get("TEST_DATABASE_URL")
KINDS = ("sqlite", "postgresql")
# On a Citus cluster there is a test of that, and none of a version that knew nothing of it.
collect_ignore = [
    "integration/test_rolling_update.py"
    if EXTERNAL and Server(EXTERNAL).nodes
    else "integration/test_distributed.py"
]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--through-pgbouncer",
        action="store_true",
        help="run the tests of `service` and `crowded`, 4 workers on PostgreSQL behind PgBouncer",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With --through-pgbouncer, keep what that is about; else begin with the longest, that run.

    Then come those that mostly wait: at the end, all processes would wait in them.
    """
    first = ("faults/test_pgbouncer", "faults/test_live")
    items.sort(key=lambda item: [name not in item.nodeid for name in first])
    if config.getoption("--through-pgbouncer"):
        items[:] = [
            item
            for item in items
            if isinstance(item, pytest.Function)
            and {"service", "crowded"} & set(item.fixturenames)
            and item.callspec.params.get("database") == "postgresql"
        ]


@dataclass(frozen=True)
class Database:
    """An empty database: which kind (`sqlite` or `postgresql`), where, and the server's version."""

    name: str
    url: str
    version: str


@pytest.fixture(scope="session")
def own_postgres() -> Iterator[Postgres]:
    """A PostgreSQL from the wheel, for tests of connections and the wire. Do not kill this one."""
    # Not that of a machine that loses its power; and what it holds in the end, nobody reads.
    with Postgres(fsync="off") as server:
        yield server
        server.kill()


@pytest.fixture(scope="session")
def postgres(request: pytest.FixtureRequest) -> Iterator[Server]:
    """The PostgreSQL of the ordinary tests: TEST_DATABASE_URL when it is set, else our own."""
    server: Server = Server(EXTERNAL) if EXTERNAL else request.getfixturevalue("own_postgres")
    yield server
    if EXTERNAL:  # our own goes away as a whole
        server.drop_databases()


@pytest.fixture(scope="session", params=KINDS)
def database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Database:
    """A fresh, empty database, first a SQLite file, then one on PostgreSQL."""
    return _make_database(request, tmp_path_factory)


@pytest.fixture(params=KINDS)
def new_database(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Database:
    """As `database`, but nobody else's: for tests that start a service of their own."""
    return _make_database(request, tmp_path_factory)


def _make_database(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Database:
    if request.param == "sqlite":
        path = tmp_path_factory.mktemp("sqlite") / "tasks.db"
        return Database("sqlite", f"sqlite:///{path}", f"SQLite {sqlite3.sqlite_version}")
    server: Server = request.getfixturevalue("postgres")
    return Database("postgresql", server.create_database(), server.version)


@pytest.fixture(scope="session")
def run_on(request: pytest.FixtureRequest, database: Database) -> Iterator[dict[str, Any]]:
    """How to run a service on `database`: one worker; with --through-pgbouncer four, behind it."""
    if not request.config.getoption("--through-pgbouncer"):
        yield {"DATABASE_URL": database.url}
        return
    with PgBouncer(request.getfixturevalue("postgres")) as bouncer:
        yield {"DATABASE_URL": bouncer.url(urlsplit(database.url).path[1:]), "workers": 4}


@pytest.fixture(scope="session")
def service(run_on: dict[str, Any]) -> Iterator[Service]:
    """The live service on `database`, no other settings."""
    with Service(**run_on) as service:
        yield service


@pytest.fixture(scope="session")
def crowded(request: pytest.FixtureRequest, database: Database) -> Iterator[Service]:
    """The live service on `database`, four workers: one for all tests of what they do at once."""
    if request.config.getoption("--through-pgbouncer"):
        yield request.getfixturevalue("service")
        return
    with Service(DATABASE_URL=database.url, workers=4) as service:
        yield service


@pytest.fixture
def client(service: Service) -> Iterator[httpx2.Client]:
    """An HTTP client of `service`; follows no redirects."""
    # verify: loading the certificates takes longer than most tests, and nothing here is https.
    with httpx2.Client(base_url=service.url, trust_env=False, verify=False) as client:
        yield client


@pytest.fixture
def user() -> str:
    """A user whom no other test knows: what keeps tests on one database apart."""
    return f"user-{uuid4().hex}"


@pytest.fixture
def tasks(user: str) -> str:
    """The path of this user's tasks."""
    return f"/api/{user}/tasks"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note which database a test ran on; with a failure, show the logs of the servers it used."""
    report = yield
    for name, value in getattr(item, "funcargs", {}).items():
        if isinstance(value, Database):
            report.user_properties.append(("database", value.version))
        elif isinstance(value, Daemon) and report.failed:
            report.sections.append((f"log of {name}", value.log[-5000:]))
    return report


def pytest_report_header() -> str:
    server = "TEST_DATABASE_URL" if EXTERNAL else wheel_version()
    return f"databases: SQLite {sqlite3.sqlite_version}, {server}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tests passed on which database."""
    results: dict[str, Counter[str]] = {}
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.getreports(outcome):
            # A module that fails when it is collected has none.
            if version := dict(getattr(report, "user_properties", ())).get("database"):
                results.setdefault(str(version), Counter())[outcome] += 1
    if results:
        terminalreporter.section("databases")
    for version, counts in results.items():
        figures = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
        terminalreporter.write_line(f"{version}: {figures}")
    not_run = terminalreporter.getreports("skipped")
    if not_run:
        terminalreporter.section("NOT TESTED", red=True, bold=True)
    for report in not_run:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        terminalreporter.write_line(f"{report.nodeid}: {reason}", red=True)
