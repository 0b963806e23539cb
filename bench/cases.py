"""What is measured. Every case prints a section of Markdown and keeps it in `results/`."""

import base64
import hashlib
import hmac
import json
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import geometric_mean, median

from bench import report, servers
from bench.checks import call, check, check_plans, expect
from bench.load import LARGE, OPERATIONS, SMALL, Data, Result, measure
from bench.postgres import Postgres
from bench.servers import ALONE, OURS, TITLES, UVICORN, Server

FAR_SECONDS = 0.010
HEAD = ["", "get", "list of 10", "create", "toggle"]


@dataclass(frozen=True)
class Bench:
    """What every case needs."""

    postgres: Postgres
    scratch: Path
    targets: tuple[str, ...]
    rounds: int
    seconds: int

    def service(
        self,
        name: str,
        database: str | None = None,
        *,
        port: int | None = None,
        environment: Mapping[str, str] | None = None,
        command: list[str] | None = None,
    ) -> AbstractContextManager[Server]:
        """Run one target over its database, there or through the proxy on `port`."""
        return servers.run(
            name,
            database_url=self.postgres.url(database or name, port=port),
            logs=self.scratch,
            environment=environment,
            command=command,
        )


@dataclass(frozen=True)
class Contender:
    """One of the services that are measured in turns."""

    title: str
    server: Server
    database: str | None  # of PostgreSQL, tidied after every write
    data: Data = SMALL
    tokens: Path | None = None
    tidy: Callable[[], None] | None = None  # the same for another database


Results = dict[tuple[str, str], list[Result]]


def prepare(bench: Bench, name: str, *, database: str | None = None, data: Data = SMALL) -> None:
    """Make and load the database of a target, unless an earlier case did."""
    database = database or name
    known = bench.postgres.execute(
        "postgres", "SELECT 1 FROM pg_database WHERE datname = %(name)s", name=database
    )
    if known:
        return
    progress = report.Progress(f"loading {database}", 1)
    progress.begin(f"{data.tasks:,} tasks of {data.users:,} users")
    if name == OURS:
        bench.postgres.execute("postgres", f'CREATE DATABASE "{database}"')
        # The service makes its own schema when it starts.
        with bench.service(name, database):
            pass
    else:
        bench.postgres.create_peer(database)
    bench.postgres.load(database, users=data.users, tasks=data.tasks)
    progress.advance()


def take_turns(
    bench: Bench,
    title: str,
    contenders: Sequence[Contender],
    operations: Sequence[str] = OPERATIONS,
    *,
    rounds: int | None = None,
    seconds: int | None = None,
    connections: int = 64,
    think_ms: int = 0,
) -> Results:
    """Measure every contender once a round, one at a time, after a warm-up; the order rotates."""
    rounds, seconds = rounds or bench.rounds, seconds or bench.seconds
    progress = report.Progress(title, len(contenders) * len(operations) * (rounds + 1))
    results: Results = {(c.title, operation): [] for c in contenders for operation in operations}
    for turn in range(rounds + 1):
        bench.postgres.execute("postgres", "CHECKPOINT")
        for n, operation in enumerate(operations):
            first = (turn + n) % len(contenders)
            for contender in [*contenders[first:], *contenders[:first]]:
                progress.begin(f"round {turn} of {rounds}, {operation}, {contender.title}")
                result = measure(
                    contender.server,
                    operation,
                    data=contender.data,
                    seconds=seconds if turn else min(seconds, 2),
                    connections=connections,
                    seed=1 + turn,
                    think_ms=think_ms,
                    tokens=contender.tokens,
                    tick=progress.draw,
                )
                # Round 0 is the warm-up.
                if turn:
                    results[contender.title, operation].append(result)
                if contender.database and operation not in ("get", "list"):
                    bench.postgres.tidy(contender.database, tasks=contender.data.tasks)
                if contender.tidy and operation not in ("get", "list"):
                    contender.tidy()
                progress.advance()
    return results


def middle(results: Sequence[Result], name: str) -> float:
    """The median of one number over the rounds."""
    return float(median(getattr(result, name) for result in results))


def ratio(over: Sequence[Result], under: Sequence[Result]) -> float:
    """The median of the ratios of two rates, round by round."""
    return float(median(a.rate / max(b.rate, 1e-9) for a, b in zip(over, under, strict=True)))


def row(title: str, values: Sequence[float], pattern: str) -> list[str]:
    """A row of a table: the values and their geometric mean."""
    return [title, *(pattern.format(v) for v in (*values, geometric_mean(values)))]


def details(
    results: Results, contenders: Sequence[Contender], operations: Sequence[str], head: list[str]
) -> str:
    """The latencies of every contender, and what else was seen of it."""
    latencies, totals = [], []
    for c in contenders:
        cells = [
            " / ".join(f"{middle(results[c.title, op], p):.1f}" for p in ("p50", "p95", "p99"))
            for op in operations
        ]
        latencies.append([c.title, *cells])
        seen = [result for op in operations for result in results[c.title, op]]
        longest = max(result.longest for result in seen)
        fullest = median(r.spread[0] / max(sum(r.spread), 1) for r in seen if r.spread)
        counts = [f"{sum(getattr(r, n) for r in seen):,}" for n in ("requests", "errors", "stalls")]
        memory = f"{c.server.peak_bytes / 1e6:,.0f} MB"
        totals.append([c.title, *counts, f"{longest:,.0f} ms", memory, f"{fullest:.0%}"])
    columns = ["", "requests", "errors", "stalls", "longest", "peak memory, all processes"]
    return f"Latency in ms, p50 / p95 / p99:\n\n{report.table(head, latencies)}\n\n" + report.table(
        [*columns, "connections on the fuller worker"], totals
    )


def throughput(bench: Bench) -> None:
    """Every target, four operations, 64 connections."""
    with ExitStack() as stack:
        contenders = []
        for name in bench.targets:
            prepare(bench, name)
            server = stack.enter_context(bench.service(name))
            check(server, bench.postgres, name, data=SMALL)
            contenders.append(Contender(TITLES[name], server, name))
        results = take_turns(bench, "throughput", contenders)
    titles = [c.title for c in contenders]
    rates = {t: {op: middle(results[t, op], "rate") for op in OPERATIONS} for t in titles}
    means = [*HEAD, "geometric mean"]
    text = (
        f"# Throughput\n\n{SMALL.tasks:,} tasks of {SMALL.users:,} users, 2 workers, 64 "
        f"connections, `fsync` on; medians of {bench.rounds} interleaved rounds of "
        f"{bench.seconds} s.\n{report.machine()}\n\nRequests a second:\n\n"
        + report.table(means, [row(t, list(rates[t].values()), "{:,.0f}") for t in titles])
    )
    goals = {"sync": "6.00", "async": "2.50", "fastify": "1.25", "elysia": "0.60", "raw": "0.55"}
    if OURS in bench.targets:
        rows = []
        for name in bench.targets:
            if name != OURS:
                pairs = [
                    (results[TITLES[OURS], op], results[TITLES[name], op]) for op in OPERATIONS
                ]
                ratios = row(f"over {TITLES[name]}", [ratio(*pair) for pair in pairs], "{:.2f}")
                rows.append([*ratios, goals[name]])
        text += "\n\nThis service over the others, medians of the rounds' ratios:\n\n"
        text += report.table([*means, "at least"], rows)
    text += "\n\n" + details(results, contenders, OPERATIONS, HEAD)
    report.plot(report.RESULTS / "throughput.svg", "Requests a second, 64 connections", rates)
    report.publish("throughput", text + "\n\n![Requests a second](throughput.svg)")


def connections(bench: Bench) -> None:
    """1000 connections: as fast as they can, then one request a second each; then the memory."""
    rows = []
    for name in bench.targets:
        prepare(bench, name)
        with bench.service(name) as server:
            contender = Contender(TITLES[name], server, name)
            for think_ms, title in ((0, "no think time"), (1000, "1 request/s each")):
                (seen,) = take_turns(
                    bench,
                    f"1000 connections, {name}, {title}",
                    [contender],
                    ["mix"],
                    rounds=1 if think_ms else bench.rounds,
                    seconds=max(10, bench.seconds) if think_ms else bench.seconds,
                    connections=1000,
                    think_ms=think_ms,
                ).values()
                served = any(result.requests for result in seen)
                p95 = f"{middle(seen, 'p95'):,.1f} ms" if served else "no answer"
                counts = [str(sum(getattr(r, n) for r in seen)) for n in ("errors", "stalls")]
                memory = sum(map(servers.resident_bytes, server.workers())) / 1e6
                fullest = str(max(max(result.spread, default=0) for result in seen))
                cells = [f"{middle(seen, 'rate'):,.0f}", p95, *counts, fullest, f"{memory:,.0f} MB"]
                rows.append([f"{TITLES[name]}, {title}", *cells])
    rows.append(["*aim*, no think time", "", "< 400 ms", "0", "0", "", ""])
    rows.append(["*aim*, 1 request/s each", "", "< 50 ms", "0", "0", "", "< 220 MB"])
    head = ["", "requests/s", "p95", "errors", "stalls"]
    text = (
        "# 1000 connections\n\nGet, list, create and toggle, mixed evenly; without think time "
        f"medians of {bench.rounds} runs of {bench.seconds} s, each with connections of its own.\n"
    )
    report.publish(
        "connections",
        f"{text}{report.machine()}\n\n"
        + report.table([*head, "on the fuller worker", "memory of the 2 workers after"], rows),
    )


@contextmanager
def distant(bench: Bench) -> Iterator[int]:
    """The port of a proxy to PostgreSQL that makes it `FAR_SECONDS` away each way."""
    port = servers.free_port()
    ports = [str(port), str(bench.postgres.port)]
    proxy = [sys.executable, "-m", "bench.proxy", *ports, str(FAR_SECONDS)]
    with subprocess.Popen(proxy, cwd=servers.ROOT) as process:
        time.sleep(1)
        try:
            yield port
        finally:
            process.terminate()


def far(bench: Bench) -> None:
    """A proxy makes the database 10 ms away each way: what counts is round trips."""
    with ExitStack() as stack:
        port = stack.enter_context(distant(bench))
        contenders = []
        for name in bench.targets:
            prepare(bench, name)
            server = stack.enter_context(bench.service(name, port=port))
            contenders.append(Contender(TITLES[name], server, name))
        results = take_turns(bench, "far database", contenders, connections=8)
    trip = 2 * FAR_SECONDS * 1000
    rows = []
    for c in contenders:
        p50 = [middle(results[c.title, op], "p50") for op in OPERATIONS]
        rows.append([c.title, *(f"{p:.1f} ms, {p / trip:.2f}" for p in p50)])
    rows.append(["*aim for this service*", *["at most 1.25"] * 4])
    text = (
        f"# A database {trip:.0f} ms away\n\np50 with a proxy that adds 10 ms each way, 8 "
        f"connections, and how many times that round trip it is.\n{report.machine()}\n\n"
        + report.table(HEAD, rows)
    )
    report.publish("far", text)


def coalescing(bench: Bench) -> None:
    """The service over itself with every call in a statement of its own."""
    prepare(bench, OURS)
    variants = {"shared": servers.COMMANDS[OURS], "alone": ALONE}
    rows = []
    with ExitStack() as stack:
        far_port = stack.enter_context(distant(bench))
        for title, port, connections in (
            ("20 ms away, 256 connections", far_port, 256),
            ("1 connection", None, 1),
        ):
            contenders = [
                Contender(
                    variant,
                    stack.enter_context(bench.service(OURS, port=port, command=command)),
                    OURS,
                )
                for variant, command in variants.items()
            ]
            results = take_turns(bench, title, contenders, connections=connections)
            pairs = [(results["shared", op], results["alone", op]) for op in OPERATIONS]
            rates = [ratio(*pair) for pair in pairs]
            p50 = [median(a.p50 / b.p50 for a, b in zip(*pair, strict=True)) for pair in pairs]
            for what, ratios in (("requests/s", rates), ("p50", p50)):
                cells = [f"{value:.2f}" for value in (*ratios, geometric_mean(ratios))]
                rows.append([f"{title}, {what}", *cells])
    with ExitStack() as stack:
        contenders = [
            Contender(
                variant,
                stack.enter_context(
                    servers.run(
                        OURS,
                        database_url=f"sqlite:///{bench.scratch / variant}.db",
                        logs=bench.scratch,
                        command=[*UVICORN, app],
                    )
                ),
                None,
            )
            for variant, app in (("shared", "main:app"), ("alone", ALONE[len(UVICORN)]))
        ]
        results = take_turns(bench, "SQLite", contenders, ["create"])
    share = ratio(results["shared", "create"], results["alone", "create"])
    rows.append(["SQLite, 1 worker, 64 connections, requests/s", "", "", f"{share:.2f}", "", ""])
    text = (
        "# Sharing statements\n\nThis service over itself with every call in a statement of its "
        "own; aims: 4 times the requests at 20 ms, a p50 of at most 1.05 with 1 connection, 3 "
        f"times the creates on SQLite.\n{report.machine()}\n\n"
    )
    report.publish("coalescing", text + report.table([*HEAD, "geometric mean"], rows))


def growth(bench: Bench) -> None:
    """Ten million tasks of a million users against the hundred thousand of ten thousand."""
    prepare(bench, OURS)
    prepare(bench, OURS, database="large", data=LARGE)
    with bench.service(OURS) as small, bench.service(OURS, "large") as large:
        check(large, bench.postgres, "large", data=LARGE)
        check_plans(bench.postgres.url("large"))
        contenders = [Contender("small", small, OURS), Contender("large", large, "large", LARGE)]
        results = take_turns(bench, "growth", contenders)
    rows = [
        [
            f"{data.tasks:,} tasks",
            *(f"{middle(results[title, op], 'rate'):,.0f}" for op in OPERATIONS),
        ]
        for title, data in (("small", SMALL), ("large", LARGE))
    ]
    costs = [ratio(results["small", op], results["large", op]) for op in OPERATIONS]
    rows += [["cost of growth", *(f"{cost:.2f}" for cost in costs)], ["*aim*", *["< 1.2"] * 4]]
    text = (
        "# Growth\n\nRequests a second, 64 connections. The statements that calls share go by an "
        f"index over the larger table, for 1 call and for 100.\n{report.machine()}\n\n"
    )
    report.publish("growth", text + report.table(HEAD, rows))


def startup(bench: Bench) -> None:
    """From the start of `uvicorn main:app` to the first 200 of `/health`."""

    def first_answer(url: str) -> float:
        began = time.perf_counter()
        command = [*servers.UVICORN, "main:app"]
        with servers.run(
            OURS, database_url=url, logs=bench.scratch, command=command, ready=False
        ) as server:
            while not server.answers() and time.perf_counter() < began + 30:
                time.sleep(0.005)
            return time.perf_counter() - began

    bench.postgres.execute("postgres", "CREATE DATABASE fresh")
    urls = {
        "SQLite": f"sqlite:///{bench.scratch / 'fresh.db'}",
        "PostgreSQL": bench.postgres.url("fresh"),
    }
    rows = []
    for title, url in urls.items():
        empty = first_answer(url)
        again = median(first_answer(url) for _ in range(bench.rounds))
        rows.append([title, f"{empty:.2f} s", f"{again:.2f} s"])
    bench.postgres.execute("postgres", "DROP DATABASE fresh")
    rows.append(["*aim*", "< 1.5 s", "< 1.5 s"])
    head = ["", "empty database", f"schema at head, median of {bench.rounds}"]
    text = f"# Start-up\n\nUntil `/health` first answers 200.\n{report.machine()}\n\n"
    report.publish("startup", text + report.table(head, rows))


def token(subject: str, secret: str) -> str:
    """A bearer token, HS256, good for a day."""

    def encode(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    parts = {"alg": "HS256", "typ": "JWT"}, {"sub": subject, "exp": int(time.time()) + 86_400}
    signed = ".".join(encode(json.dumps(part).encode()) for part in parts)
    return f"{signed}.{encode(hmac.digest(secret.encode(), signed.encode(), hashlib.sha256))}"


def auth(bench: Bench) -> None:
    """What checking a bearer token costs a request: every user has a token of their own."""
    prepare(bench, OURS)
    secret = secrets.token_urlsafe(48)
    tokens = bench.scratch / "tokens.txt"
    bearer = [token(f"user-{n}", secret) for n in range(1, SMALL.users + 1)]
    tokens.write_text("\n".join(bearer) + "\n")
    with (
        bench.service(OURS) as without,
        bench.service(OURS, environment={"AUTH_SECRET": secret}) as with_tokens,
    ):
        refused, _ = call(with_tokens, "GET", "/api/tasks/7")
        served, _ = call(with_tokens, "GET", "/api/tasks/7", token=bearer[6])
        expect(with_tokens, (refused, served) == (401, 200), f"auth: {refused} and {served}")
        contenders = [
            Contender("off", without, OURS),
            Contender("on", with_tokens, OURS, tokens=tokens),
        ]
        results = take_turns(bench, "auth", contenders, ["get"])
    share = ratio(results["on", "get"], results["off", "get"])
    cells = [f"{middle(results[title, 'get'], 'rate'):,.0f}" for title in ("off", "on")]
    text = f"# Auth\n\nGet, requests a second, 64 connections, HS256.\n{report.machine()}\n\n"
    row = ["get", *cells, f"{share:.2f}"]
    report.publish("auth", text + report.table(["", "auth off", "auth on", "on over off"], [row]))


CASES = {
    "main": throughput,
    "connections": connections,
    "far": far,
    "coalescing": coalescing,
    "auth": auth,
    "startup": startup,
    "growth": growth,
}
