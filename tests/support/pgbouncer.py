"""PgBouncer in front of a PostgreSQL, in transaction mode, as Neon's `-pooler` hosts run it."""

import os
import shutil
import signal
from typing import ClassVar
from urllib.parse import urlsplit

import psycopg2

from tests.support.postgres import Server
from tests.support.processes import Daemon


class PgBouncer(Daemon, Server):
    """Debian's pgbouncer with the same databases, user and password as the server behind it.

    with PgBouncer(server, default_pool_size=5) as bouncer: Service(DATABASE_URL=bouncer.url("db"))

    Keywords are lines of its `[pgbouncer]` section. Its own console is the database `pgbouncer`.
    """

    # It keeps nothing, and what its milder signals wait for differs between its versions.
    stop_signal: ClassVar = signal.SIGKILL

    def __init__(self, server: Server, **config: str | int) -> None:
        path = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"))
        program = shutil.which("pgbouncer", path=path)
        if program is None:
            raise RuntimeError("no pgbouncer to test with: install Debian's package pgbouncer")
        self._program = program
        target = urlsplit(server.url())
        database = target.path.lstrip("/")
        Daemon.__init__(self, "pgbouncer", unprivileged=True)
        Server.__init__(
            self,
            f"postgresql://{target.username}:{target.password}@127.0.0.1:{self.port}/{database}",
        )
        users = self.directory / "users.txt"
        users.write_text(f'"{target.username}" "{target.password}"\n')
        settings = {
            "listen_addr": "127.0.0.1",
            "listen_port": self.port,
            "unix_socket_dir": "",
            "auth_type": "scram-sha-256",
            "auth_file": users,
            "admin_users": target.username,
            "pool_mode": "transaction",
            "max_client_conn": 2000,
            "default_pool_size": 20,
            **config,
        }
        lines = ["[databases]", f"* = host={target.hostname} port={target.port or 5432}"]
        lines += ["[pgbouncer]", *(f"{name} = {value}" for name, value in settings.items())]
        (self.directory / "pgbouncer.ini").write_text("\n".join(lines) + "\n")

    def _command(self) -> list[str]:
        return [self._program, str(self.directory / "pgbouncer.ini")]

    def _is_ready(self) -> bool:
        try:
            return bool(self.execute("SHOW VERSION", database="pgbouncer"))
        except psycopg2.OperationalError:
            return False
