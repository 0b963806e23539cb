"""Runs wrk against a service and reads what it says."""

import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.servers import BENCH, Server

OPERATIONS = ("get", "list", "create", "toggle")
TRIES = 10  # to get 64 connections of which no worker has more than two thirds


@dataclass(frozen=True)
class Data:
    """How much is loaded: task n belongs to user 1 + (n - 1) % users."""

    users: int
    tasks: int


SMALL = Data(users=10_000, tasks=100_000)
LARGE = Data(users=1_000_000, tasks=10_000_000)


@dataclass(frozen=True)
class Result:
    """What one run of wrk saw; latencies in milliseconds."""

    rate: float
    p50: float
    p95: float
    p99: float
    longest: float
    requests: int
    errors: int
    stalls: int
    spread: tuple[int, ...]


def measure(
    server: Server,
    operation: str,
    *,
    data: Data,
    seconds: int,
    connections: int = 64,
    seed: int = 1,
    think_ms: int = 0,
    tokens: Path | None = None,
    tick: Callable[[], None] = lambda: None,
) -> Result:
    """Load `server` with one operation for some seconds; `tick` is called a few times a second.

    Which worker takes a connection is the kernel's to say, and wrk opens all at once: 64 are opened
    again while one of two workers has more than two thirds; fewer or more are left as they come.

    Errors are answers of 400 and above, and failed sockets. Stalls are whole seconds in which
    nothing was answered, requests of over 10 seconds, and a service that is silent afterwards.
    """
    command = ["wrk", "--threads", "1", "--connections", str(connections), "--latency"]
    command += ["--duration", f"{seconds}s", "--timeout", "10s"]
    command += ["--script", str(BENCH / "wrk.lua"), server.url, "--", operation]
    command += [str(n) for n in (data.users, data.tasks, seed, think_ms, connections)]
    command += [server.name]
    command += [str(tokens)] if tokens else []
    spread: tuple[int, ...] = ()
    with _begin(command, server, tries=TRIES if connections == 64 else 1) as wrk:
        started = time.monotonic()
        try:
            while wrk.poll() is None:
                time.sleep(0.1)
                elapsed = time.monotonic() - started
                if elapsed > seconds + 30:
                    raise TimeoutError(f"wrk did not stop: {server.name} {operation}")
                if not spread and elapsed > seconds / 2:
                    spread = tuple(server.spread())
                tick()
        finally:
            wrk.kill()
        assert wrk.stdout is not None
        output = wrk.stdout.read()
    server.watch()
    seen = json.loads(output.splitlines()[-1])
    return Result(
        rate=(seen["requests"] - seen["status"]) / (seen["microseconds"] / 1e6),
        p50=seen["p50"] / 1e3,
        p95=seen["p95"] / 1e3,
        p99=seen["p99"] / 1e3,
        longest=seen["longest"] / 1e3,
        requests=seen["requests"],
        errors=seen["status"] + seen["socket"],
        stalls=seen["stalled_seconds"] + seen["timeouts"] + (not server.answers()),
        spread=spread,
    )


def _begin(command: list[str], server: Server, *, tries: int) -> subprocess.Popen[str]:
    """Start wrk, and again if the workers' shares of its connections differ too much."""
    wrk = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    time.sleep(0.3)
    shares = server.spread()
    if tries == 1 or len(shares) == 1 or 3 * shares[0] <= 2 * sum(shares):
        return wrk
    wrk.kill()
    wrk.communicate()
    return _begin(command, server, tries=tries - 1)
