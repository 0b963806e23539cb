"""One user with very many tasks, on both databases, beside ten thousand with ten each."""

import http.client
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
from sqlalchemy.dialects import sqlite
from sqlalchemy.dialects.postgresql import psycopg2 as postgresql

from bench import report, servers
from bench.cases import Bench, prepare
from bench.load import SMALL
from bench.postgres import ROW
from bench.servers import OURS, UVICORN, Server
from bench.sqlite import ROW as SQLITE_ROW
from bench.sqlite import fill
from engines.sqlite import connect
from queries import Query
from queries import tasks as statements
from schemas import TaskFilter, TaskQuery

SIZES = {"10k": 10_000, "100k": 100_000, "1M": 1_000_000}
TURNS = 3
SECONDS = 20  # of gets of a small user
Run = Callable[[Any, Any], list[Any]]  # a statement, as SQLAlchemy's or text, and its parameters

# What the service asked before (commit 7959417), over the index that it had.
OLD_INDEX = "CREATE INDEX before ON task (user_id, created_at DESC, id DESC)"
COLUMNS = (
    "id, user_id, title, description, completed, completed_at, priority, due_date, tags, "
    '"order", created_at, updated_at, version'
)
LATE = "coalesce(NOT completed AND due_date < '2026-11-25T12' AND due_date <> '2026-11-25', false)"
OWNED = "FROM task WHERE user_id = '{owner}'"
NEWEST = "ORDER BY created_at DESC, id DESC"
PAGE = f"SELECT {COLUMNS}, count(*) OVER () {OWNED}"
BEFORE = {
    "`?limit=20`": f"{PAGE} {NEWEST} LIMIT 20",
    "`?sort=-priority&limit=20`": f"{PAGE} ORDER BY priority DESC, id DESC LIMIT 20",
    "`?status=pending&limit=20`": f"{PAGE} AND NOT completed {NEWEST} LIMIT 20",
    "`?overdue=true`": f"{PAGE} AND {LATE} {NEWEST} LIMIT 1000",
    "`/stats`": "SELECT count(*), count(*) FILTER (WHERE completed), count(*) FILTER (WHERE NOT "
    f"completed), count(*) FILTER (WHERE {LATE}) {OWNED}",
    "the last page of a walk, 1000 tasks": f"SELECT page.*, total.n FROM (SELECT count(*) AS n "
    f"{OWNED}) AS total LEFT JOIN (SELECT {COLUMNS} {OWNED} {NEWEST} LIMIT 1000 "
    "OFFSET {last}) AS page ON true",
}
NOW: dict[str, Callable[[str, int], Query]] = {
    "`?limit=20`": lambda owner, _: statements.list_tasks(owner, TaskQuery(limit=20)),
    "`?sort=-priority&limit=20`": lambda owner, _: statements.list_tasks(
        owner, TaskQuery(sort="-priority", limit=20)
    ),
    "`?status=pending&limit=20`": lambda owner, _: statements.list_tasks(
        owner, TaskQuery(status="pending", limit=20)
    ),
    "`?overdue=true`": lambda owner, _: statements.list_tasks(owner, TaskQuery(overdue="true")),
    "`/stats`": lambda owner, _: statements.count_tasks(owner, TaskFilter()),
    "the last page of a walk, 1000 tasks": lambda owner, before: statements.list_tasks(
        owner, TaskQuery(before=before)
    ),
}
# Reads every row of the user once.
BARE = f"SELECT count(*), max(updated_at) {OWNED} AND deleted_at IS NULL"


def heavy(bench: Bench) -> None:
    """The questions of one user with 10 thousand, 100 thousand and a million tasks."""
    file = bench.scratch / "heavy.db"
    lite = f"sqlite:///{file}"
    prepare(bench, OURS, database="heavy")
    fill_postgresql(bench)
    with servers.run(OURS, database_url=lite, logs=bench.scratch, command=[*UVICORN, "main:app"]):
        pass  # it has made the schema
    fill_sqlite(file)
    rows, notes = [], []
    with (
        closing(psycopg2.connect(bench.postgres.url("heavy"))) as postgres,
        closing(connect(str(file))) as embedded,
    ):
        postgres.autocommit = True
        for title, run in (("PostgreSQL", by(postgres)), ("SQLite", by(embedded))):
            bare = [best(run, BARE.format(owner=size)) for size in SIZES]
            rows.append([f"**{title}**, a bare SELECT of every row", "", *map(shown, bare), "", ""])
            run(OLD_INDEX, {})
            before = {
                name: [best(run, sql.format(owner=s, last=n - 1000)) for s, n in SIZES.items()]
                for name, sql in BEFORE.items()
            }
            run("DROP INDEX before", {})
            for name, build in NOW.items():
                now = []
                for size, count in SIZES.items():
                    ((first,),) = run(f"SELECT min(id) {OWNED.format(owner=size)}", {})
                    query = build(size, first + min(1000, count))
                    now.append(best(run, query.statement, query.parameters))
                growth, ratio = now[2] / now[1], now[2] / bare[2]
                old = " / ".join(map(shown, before[name]))
                rows.append([name, old, *map(shown, now), f"{growth:.1f}", f"{ratio:.2f}"])
    rows.append(["*aim*", "", "as before", "< 50", "< 300", "", ""])
    for title, server in (
        ("PostgreSQL", bench.service(OURS, "heavy")),
        (
            "SQLite",
            servers.run(
                OURS, database_url=lite, logs=bench.scratch, command=[*UVICORN, "main:app"]
            ),
        ),
    ):
        with server as service:
            alone, beside = gets(service, None), gets(service, "/api/1M/tasks")
            notes.append([title, f"{alone:.1f}", f"{beside:.1f}"])
    notes.append(["*aim*", "", "< 100"])
    head = ["", "before: 10k / 100k / 1M", *SIZES, "1M over 100k", "1M over the bare SELECT"]
    text = (
        "# One user with very many tasks\n\nThe statement alone, best of 3, ms; before: that of "
        "commit 7959417 over its index, on the same rows. A machine twice as slow may take twice "
        f"as long.\n{report.machine()}\n\n{report.table(head, rows)}\n\nA get of a user with ten "
        "tasks, p95 in ms, alone and while one client walks and counts the million:\n\n"
        + report.table(["", "alone", "beside the heavy one"], notes)
    )
    report.publish("heavy", text)


def fill_postgresql(bench: Bench) -> None:
    """Add the heavy users to the tasks of the small ones."""
    ((start,),) = bench.postgres.execute("heavy", "SELECT max(id) FROM task")
    if start > SMALL.tasks:
        return
    for size, count in SIZES.items():
        row = ROW | {"priority": "mod(n, 5)", "user_id": f"'{size}'"}
        columns = ", ".join(f'"{name}"' for name in row)
        bench.postgres.execute(
            "heavy",
            f"INSERT INTO task ({columns}) SELECT {', '.join(row.values())} "
            f"FROM generate_series({start + 1}, {start + count}) AS n",
        )
        bench.postgres.execute("heavy", f"INSERT INTO task_feed VALUES ('{size}', 1, 0)")
        start += count
    bench.postgres.execute("heavy", "VACUUM ANALYZE task")


def fill_sqlite(file: Path) -> None:
    """Make the same tasks in the file."""
    with closing(connect(str(file))) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        start = fill(connection, "task", SQLITE_ROW, SMALL.tasks)
        for size, count in SIZES.items():
            row = SQLITE_ROW | {"user_id": f"'{size}'"}
            start = fill(connection, "task", row, count, start=start)
        connection.execute("INSERT INTO task_feed SELECT DISTINCT user_id, 1, 0 FROM task")


def by(connection: Any) -> Run:
    """Return what runs a statement on a connection of either database."""
    on_sqlite = isinstance(connection, sqlite3.Connection)
    spelt = sqlite.dialect(paramstyle="named") if on_sqlite else postgresql.dialect()  # type: ignore[no-untyped-call]

    def run(statement: Any, parameters: Any) -> list[Any]:
        if not isinstance(statement, str):
            compiled = statement.compile(dialect=spelt)
            statement, parameters = str(compiled), {**compiled.params, **parameters}
        cursor = connection.cursor()
        cursor.execute(statement, parameters or ({} if on_sqlite else None))
        return cursor.fetchall() if cursor.description else []

    return run


def best(run: Run, statement: Any, parameters: Any = None) -> float:
    """Return the milliseconds that the fastest of some runs took."""
    taken = []
    for _ in range(TURNS):
        began = time.perf_counter()
        run(statement, parameters or {})
        taken.append(time.perf_counter() - began)
    return min(taken) * 1e3


def shown(milliseconds: float) -> str:
    """Return it as the table shows it."""
    return f"{milliseconds:,.1f}" if milliseconds < 10 else f"{milliseconds:,.0f}"


def gets(server: Server, beside: str | None) -> float:
    """Return the p95 of a small user's gets, one after the other, while another client asks all
    that it can about the tasks at `beside`.
    """
    done = threading.Event()
    other = threading.Thread(target=ask, args=(server, beside, done))
    if beside:
        other.start()
    taken: list[float] = []
    client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    until = time.monotonic() + (SECONDS if beside else SECONDS / 4)
    while time.monotonic() < until:
        began = time.perf_counter()
        client.request("GET", f"/api/user-7/tasks/{7 + SMALL.users * (len(taken) % 10)}")
        answer = client.getresponse()
        answer.read()
        if answer.status != 200:
            raise SystemExit(f"{server.name}: a small user's get answers {answer.status}")
        taken.append(time.perf_counter() - began)
        time.sleep(0.005)
    done.set()
    if beside:
        other.join()
    return percentile(taken, 95) * 1e3


def ask(server: Server, tasks: str, done: threading.Event) -> None:
    """Walk through all pages again and again; count, and look for what is overdue, in between."""
    client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    following = tasks
    while not done.is_set():
        for path in (following, f"{tasks}/stats", f"{tasks}?status=pending&limit=20"):
            client.request("GET", path)
            answer = client.getresponse()
            answer.read()
            if path == following:
                link = answer.headers["Link"] or ""
                following = tasks + link[link.find("?") : link.find(">")] if link else tasks


def percentile(values: Sequence[float], percent: int) -> float:
    """Return the value that so many percent of them are at most."""
    return sorted(values)[len(values) * percent // 100]
