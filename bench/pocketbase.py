"""This service on SQLite beside PocketBase, with the same tasks in the same kind of file."""

import sqlite3
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench import report, servers
from bench.cases import Bench, Contender, details, middle, ratio, row, take_turns
from bench.checks import FIELDS, call, expect
from bench.load import SMALL
from bench.servers import OURS, POCKETBASE, TITLES, UVICORN, Server
from bench.sqlite import POCKETBASE_ROW, ROW, fill, tidy
from engines.sqlite import connect

OPERATIONS = ("get", "list", "create", "change")
AIMS = ("1.00", "1.50", "1.30", "1.80")
USER, TASK = "user-7", SMALL.users + 7  # whose fields and lists are checked


@dataclass(frozen=True)
class Service:
    """One of them: where its tasks are, in the file and by HTTP."""

    name: str
    title: str
    command: list[str]
    file: Path
    table: str
    row: dict[str, str]
    tasks: str
    task: str
    page: str
    owner: dict[str, str]  # what a new task says of its owner, where the path does not

    def run(self, logs: Path) -> AbstractContextManager[Server]:
        """Run it over its file."""
        url = f"sqlite:///{self.file}"
        return servers.run(self.name, database_url=url, logs=logs, command=self.command)


def services(scratch: Path) -> list[Service]:
    """This service with one worker and with two, and PocketBase; their files in `scratch`."""
    tasks = f"/api/{USER}/tasks"
    records, directory = "/api/collections/tasks/records", scratch / "pocketbase"
    mine = f"filter=user_id%20%3D%20%22{USER}%22"
    ours = [
        Service(
            name=OURS,
            title=title,
            command=[*UVICORN, "main:app", f"--workers={workers}"],
            file=scratch / f"tasks-{workers}.db",
            table="task",
            row=ROW,
            tasks=tasks,
            task=f"{tasks}/{TASK}",
            page=tasks,
            owner={},
        )
        for workers, title in ((1, TITLES[OURS]), (2, f"{TITLES[OURS]}, 2 workers"))
    ]
    return [
        *ours,
        Service(
            name="pocketbase",
            title=TITLES["pocketbase"],
            command=[*POCKETBASE, f"--dir={directory}"],
            file=directory / "data.db",
            table="tasks",
            row=POCKETBASE_ROW,
            tasks=records,
            task=f"{records}/{TASK:015d}",
            page=f"{records}?page=1&perPage=10&{mine}&sort=-created_at",
            owner={"user_id": USER},
        ),
    ]


def check(server: Server, service: Service) -> None:
    """Raise SystemExit unless the four operations do what they should."""

    def stored(task_id: object) -> tuple[str, ...]:
        with closing(sqlite3.connect(service.file)) as connection:
            select = f"SELECT user_id, title FROM {service.table} WHERE id = ?"
            rows = connection.execute(select, (task_id,)).fetchall()
        expect(server, len(rows) == 1, f"task {task_id} is not in the database")
        return tuple(rows[0])

    status, task = call(server, "GET", service.task)
    expect(server, status == 200 and task.keys() >= FIELDS, f"get: {status}, {task}")
    seen = int(task["id"]), task["user_id"], task["title"]
    expect(server, seen == (TASK, USER, f"task number {TASK}"), f"get: another task, {task}")
    status, _ = call(server, "GET", f"{service.task}0")
    expect(server, status == 404, f"get: a task that is not there answers {status}")

    status, page = call(server, "GET", service.page)
    tasks, total = (page["items"], page["totalItems"]) if "items" in page else (page, len(page))
    newest_first = [7 + SMALL.users * n for n in reversed(range(SMALL.tasks // SMALL.users))]
    expect(server, (status, total) == (200, len(newest_first)), f"list: {status}, {page}")
    expect(server, [int(task["id"]) for task in tasks] == newest_first, "list: another order")
    expect(server, all(task.keys() >= FIELDS for task in tasks), "list: fields are missing")

    title = {"title": "Is it changed?"}
    was = task["updated_at"]
    status, task = call(server, "PATCH", service.task, title)
    expect(server, status == 200 and task.keys() >= FIELDS, f"change: {status}, {task}")
    expect(server, stored(task["id"]) == (USER, title["title"]), "change: another row")
    expect(server, task["updated_at"] > was, "change: updated_at does not follow")

    body = {"title": "Is it there?", "priority": "high", "tags": ["home"], "due_date": "2026-12-24"}
    status, task = call(server, "POST", service.tasks, service.owner | body)
    expect(server, status in (200, 201) and task.keys() >= FIELDS, f"create: {status}, {task}")
    expect(server, stored(task["id"]) == (USER, body["title"]), "create: another row")
    expect(server, {name: task[name] for name in body} == body, f"create: another task, {task}")
    tidy(service.file, service.table, tasks=SMALL.tasks)


def sqlite(bench: Bench) -> None:
    """Four operations, 64 connections."""
    contenders = []
    with ExitStack() as stack:
        for service in services(bench.scratch):
            with service.run(bench.scratch):
                pass  # it has made the schema
            with closing(connect(str(service.file))) as connection:
                fill(connection, service.table, service.row, SMALL.tasks)
                if service.name == OURS:  # whoever has tasks has a position
                    rows = "SELECT DISTINCT user_id, 1, 0 FROM task"
                    connection.execute(f"INSERT INTO task_feed {rows}")
            server = stack.enter_context(service.run(bench.scratch))
            check(server, service)
            clean = partial(tidy, service.file, service.table, tasks=SMALL.tasks)
            contenders.append(Contender(service.title, server, None, tidy=clean))
        results = take_turns(bench, "SQLite beside PocketBase", contenders, OPERATIONS)
    titles = [c.title for c in contenders]
    rates = [[middle(results[t, op], "rate") for op in OPERATIONS] for t in titles]
    *ours, peer = titles
    ratios = [
        row(title, [ratio(results[title, op], results[peer, op]) for op in OPERATIONS], "{:.2f}")
        for title in ours
    ]
    head = ["", "get", "list of 10", "create", "change"]
    means = [*head, "geometric mean"]
    text = (
        f"# SQLite, beside PocketBase\n\n{SMALL.tasks:,} tasks of {SMALL.users:,} users; "
        "`uvicorn main:app`, the same with 2 workers, and `pocketbase serve`, one process that "
        f"runs on all cores; 64 connections; medians of {bench.rounds} interleaved rounds of "
        f"{bench.seconds} s. This service has every write on disk before it answers "
        "(`synchronous = FULL`), PocketBase leaves that to the system (`NORMAL`).\n"
        f"{report.machine()}\n\nRequests a second:\n\n"
        + report.table(means, [row(*pair, "{:,.0f}") for pair in zip(titles, rates, strict=True)])
        + "\n\nOver PocketBase, medians of the rounds' ratios:\n\n"
        + report.table(means, [*ratios, ["*aim*, at least", *AIMS, ""]])
        + f"\n\n{details(results, contenders, OPERATIONS, head)}"
    )
    report.publish("sqlite", text)
