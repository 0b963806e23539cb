"""Starts a service as its users would, watches its memory, and stops it."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

BENCH = Path(__file__).parent
ROOT = BENCH.parent
WORKERS = 2
SCRIPTS = Path(sysconfig.get_path("scripts"))  # where pip puts programs
# "{port}" in a command becomes the port.
UVICORN = [sys.executable, "-m", "uvicorn", "--host", "127.0.0.1", "--port", "{port}"]
# Comparison services have no request log; the service as shipped has.
QUIET = ["--workers", str(WORKERS), "--no-access-log", "--log-level", "warning"]
OURS = "ours"
COMMANDS = {
    OURS: [*UVICORN, "main:app", "--workers", str(WORKERS)],
    "sync": [*UVICORN, "bench.targets.sync_app:app", *QUIET],
    "async": [*UVICORN, "bench.targets.async_app:app", *QUIET],
    "fastify": ["node", "bench/fastify/server.js"],
    "elysia": [str(SCRIPTS / "bun"), "bench/elysia/server.ts"],
    "raw": [*UVICORN, "bench.targets.raw_app:app", *QUIET],
}
# The service without shared statements, to measure what they bring.
ALONE = [*UVICORN, "bench.targets.alone_app:app", "--workers", str(WORKERS)]
POCKETBASE = [str(SCRIPTS / "pocketbase"), "serve", "--http=127.0.0.1:{port}"]
POCKETBASE += ["--migrationsDir=bench/pocketbase"]
PACKAGED = ("fastify", "elysia")  # each with a package.json
TITLES = {
    OURS: "this service",
    "sync": "FastAPI + SQLModel, sync",
    "async": "FastAPI + SQLModel, async",
    "fastify": "Fastify + pg",
    "elysia": "Elysia on Bun",
    "raw": "raw ASGI (the ceiling)",
    "pocketbase": "PocketBase",
}
HEALTH = {"pocketbase": "/api/health"}
SETTINGS = ("AUTH_", "CORS_", "DATABASE_", "DB_", "DEFAULT_USER_ID", "LOG_LEVEL")


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@dataclass
class Server:
    """A running service, and the most memory that it was seen to hold."""

    name: str
    port: int
    process: psutil.Popen
    peak_bytes: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def tree(self) -> list[psutil.Process]:
        """The processes of the service, the supervisor first."""
        return [self.process, *self.process.children(recursive=True)]

    def watch(self) -> None:
        """Note the memory of the process tree (resident, so shared pages count once a process)."""
        self.peak_bytes = max(self.peak_bytes, sum(map(resident_bytes, self.tree())))

    def workers(self) -> list[psutil.Process]:
        """The processes that serve: the largest ones under the supervisor, or the only one."""
        below = self.tree()[1:] or [self.process]
        return sorted(below, key=resident_bytes, reverse=True)[:WORKERS]

    def spread(self) -> list[int]:
        """How many client connections each worker holds, the fullest first."""
        counts = [
            sum(
                connection.laddr.port == self.port and connection.status == psutil.CONN_ESTABLISHED
                for connection in worker.net_connections("tcp")
            )
            for worker in self.workers()
        ]
        return sorted(counts, reverse=True)

    def answers(self, *, seconds: float = 2) -> bool:
        """Whether its health answers 200 in time."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)
        try:
            connection.request("GET", HEALTH.get(self.name, "/health"))
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()


def resident_bytes(process: psutil.Process) -> int:
    """The resident memory of one process; 0 when it is gone."""
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


@contextmanager
def run(
    name: str,
    *,
    database_url: str,
    logs: Path,
    environment: Mapping[str, str] | None = None,
    command: list[str] | None = None,
    ready: bool = True,
) -> Iterator[Server]:
    """Run a service over `database_url` until the block ends; with `ready`, wait until it answers.

    Its output goes to a file in `logs`. Raises SystemExit with the end of that file if it dies.
    """
    port = free_port()
    command = [part.format(port=port) for part in command or COMMANDS[name]]
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(SETTINGS)}
    own = {"DATABASE_URL": database_url, "PORT": str(port), "WORKERS": str(WORKERS)}
    own["NODE_ENV"] = "production"
    log = logs / f"{name}-{port}.log"
    with log.open("w") as output:
        process = psutil.Popen(
            command,
            cwd=ROOT,
            env={**inherited, **own, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            # Ctrl-C is for the benchmark, which then stops what it started.
            start_new_session=True,
        )
    server = Server(name, port, process)
    try:
        deadline = time.monotonic() + 30
        while ready and not server.answers():
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{name} does not start:\n{log.read_text()[-4000:]}")
            time.sleep(0.05)
        yield server
    finally:
        if process.poll() is None:
            process.terminate()
        with suppress(psutil.TimeoutExpired):
            process.wait(10)
        # The session is the service's own: whatever is left of it goes.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def install(name: str) -> None:
    """Install the exact packages of the lock file of a target, unless they are there."""
    if not (BENCH / name / "node_modules").is_dir():
        npm = ["npm", "ci", "--no-audit", "--no-fund", "--silent"]
        subprocess.run(npm, cwd=BENCH / name, check=True)
