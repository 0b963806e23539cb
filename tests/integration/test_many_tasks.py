"""Users with very many tasks: a walk by `Link` while others write, and what the databases do."""

import json
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import psycopg2
import pytest
from sqlalchemy.dialects import sqlite
from sqlalchemy.dialects.postgresql import psycopg2 as postgresql

from engines.sqlite import connect
from queries import Query, changes
from queries import tasks as statements
from queries.repeating import with_next
from schemas import Since, TaskFilter, TaskQuery, TaskUpdate
from tests.conftest import Database
from tests.integration.test_lists import insert, rows_of
from tests.support.api import create
from tests.support.app import in_process

MANY = 200_000
FEW = 20
LIVE = {"task_user_id_id", "task_user_id_priority_id_state"}  # without the trash, on SQLite


# ---- walks


def pages(client: httpx2.Client, url: str) -> Iterator[httpx2.Response]:
    """Follow the links from page to page."""
    while url:
        answer = client.get(url)
        assert answer.status_code == 200, answer.text
        yield answer
        url = answer.links.get("next", {}).get("url", "")


def ids(answer: httpx2.Response) -> list[int]:
    return [task["id"] for task in answer.json()]


def test_a_walk_shows_each_task_once_while_others_come_and_go(
    client: httpx2.Client, database: Database, tasks: str, user: str
) -> None:
    insert(database, rows_of(user, 300))
    there = ids(client.get(tasks))
    seen: list[int] = []
    gone: set[int] = set()
    for answer in pages(client, f"{tasks}?limit=20"):
        page = ids(answer)
        seen += page
        # Before the walk, behind it and ahead of it; the task that the next page goes on from too.
        ahead = there[len(seen) : len(seen) + 40 : 2]
        for number in (*page[::3], page[-1], *ahead):
            gone.add(number)
            client.delete(f"{tasks}/{number}{'?forever=true' * (number % 2)}")
        create(client, tasks)
    assert len(seen) == len(set(seen))
    assert set(there) - gone <= set(seen) <= set(there)


def test_a_task_that_comes_back_from_the_trash_is_in_its_old_place(
    client: httpx2.Client, tasks: str
) -> None:
    numbers = [create(client, tasks)["id"] for _ in range(6)]
    client.delete(f"{tasks}/{numbers[1]}")
    walk = pages(client, f"{tasks}?limit=2")
    assert ids(next(walk)) == numbers[:3:-1]
    client.patch(f"{tasks}/{numbers[1]}", json={"deleted": False})
    assert [ids(answer) for answer in walk] == [numbers[3:1:-1], numbers[1::-1]]


@pytest.mark.parametrize(
    "query", ["limit=7", "limit=7&status=pending", "_limit=7&q=task", "limit=7&deleted=true"]
)
def test_every_page_of_a_walk_says_how_many_match_and_the_last_leads_no_further(
    client: httpx2.Client, database: Database, tasks: str, user: str, query: str
) -> None:
    insert(database, rows_of(user, 28))
    client.delete(tasks, params={"id": ids(client.get(tasks))[:14]})
    total = client.get(f"{tasks}?{query}").headers["x-total-count"]
    walked = list(pages(client, f"{tasks}?{query}"))
    assert {answer.headers["x-total-count"] for answer in walked} == {total}
    assert len(walked) == int(total) / 7
    whole = client.get(f"{tasks}?{query.replace('limit=7', 'limit=1000')}")
    assert [number for answer in walked for number in ids(answer)] == ids(whole)
    assert all(f"before={ids(answer)[-1]}" in answer.headers["link"] for answer in walked[:-1])
    assert "link" not in walked[-1].headers


@pytest.mark.parametrize("query", ["offset=0", "_start=0&_end=2", "_page=1&_limit=2", "sort=id"])
def test_who_asks_by_offset_or_in_an_order_is_led_on_by_offset(
    client: httpx2.Client, tasks: str, query: str
) -> None:
    for _ in range(5):
        create(client, tasks)
    limit = "" if "_" in query else "&limit=2"
    link = client.get(f"{tasks}?{query}{limit}").headers["link"]
    assert "limit=2&offset=2" in link
    assert "before" not in link


def test_a_page_goes_on_from_any_id_there_was_or_will_be(
    client: httpx2.Client, tasks: str, user: str
) -> None:
    numbers = [create(client, tasks)["id"] for _ in range(3)]
    client.delete(f"{tasks}/{numbers[1]}?forever=true")
    other = create(client, f"/api/{user}-2/tasks")["id"]
    for before, found in (
        (numbers[0], []),
        (1, []),
        (numbers[1], numbers[:1]),
        (other, numbers[::-2]),
        (2**53 - 1, numbers[::-2]),
    ):
        answer = client.get(f"{tasks}?before={before}")
        assert (ids(answer), answer.headers["x-total-count"]) == (found, "2")
        again = client.get(
            f"{tasks}?before={before}", headers={"If-None-Match": answer.headers["etag"]}
        )
        assert again.status_code == 304


def test_a_page_of_changes_that_is_made_in_pieces_is_whole(
    new_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("database", "routes.answers"):
        monkeypatch.setattr(f"{module}.PIECE", 2)
    with in_process(database_url=new_database.url) as client:
        made = [create(client, "/api/tasks", title=str(n)) for n in range(7)]
        client.delete(f"/api/tasks/{made[0]['id']}?forever=true")
        assert client.patch("/api/tasks", json={"order": 1}).json() == {"updated": 6}
        for since in (0, 9):  # both pages end with the bulk change, which is at one position
            page = client.get("/api/tasks/changes", params={"since": since, "limit": 1}).json()
            told = [task for task in page["changes"] if not task.get("gone")]
            by_id = sorted(told, key=lambda task: task["id"], reverse=True)
            assert by_id == client.get("/api/tasks").json()
            assert (page["position"], page["more"]) == (10, False)


# ---- what the databases do


@pytest.fixture
def connection(new_database: Database) -> Iterator[Any]:
    """A connection to a database in which `heavy` has very many tasks, `hoarder` as many in the
    trash, half of them before and half after the few that are not.

    On SQLite there are none: without statistics, which this service never makes, what it plans does
    not depend on them.
    """
    with in_process(database_url=new_database.url):
        pass
    if new_database.name == "sqlite":
        with closing(sqlite3.connect(new_database.url.removeprefix("sqlite:///"))) as file:
            yield file
        return
    with closing(psycopg2.connect(new_database.url)) as server:
        server.autocommit = True
        cursor = server.cursor()
        for user, kept in (("heavy", "true"), ("hoarder", f"abs(i - {MANY // 2}) < {FEW // 2}")):
            cursor.execute(
                "INSERT INTO task (user_id, title, title_folded, description, completed, priority, "
                "due_date, tags, created_at, updated_at, version, idempotency_replays, deleted_at) "
                "SELECT %s, 'task', 'task', 'what has to be done', i %% 2 = 0, i %% 5, "
                "'2026-11-21', '{}', made.at, made.at, 1, 0, "
                f"CASE WHEN NOT ({kept}) THEN made.at END "
                f"FROM generate_series(1, {MANY}) AS i, "
                "(SELECT timestamptz '2026-11-21 10:00:00.000001' AS at) AS made",
                [user],
            )
        cursor.execute("VACUUM ANALYZE task")
        yield server


def plan(connection: Any, query: Query) -> list[dict[str, Any]]:
    """Run the query; return the steps that PostgreSQL took, from the root (on the one node)."""
    compiled = query.statement.compile(dialect=postgresql.dialect())  # type: ignore[no-untyped-call]
    cursor = connection.cursor()
    cursor.execute(
        f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {compiled}",
        {**compiled.params, **query.parameters},
    )
    steps = [cursor.fetchone()[0][0]["Plan"]]
    if distributed := steps[0].get("Distributed Query"):
        (task,) = distributed["Job"]["Tasks"]
        steps = [task["Remote Plan"][0][0]["Plan"]]
    for step in steps:
        steps += step.get("Plans", [])
    return steps


def plan_of_sqlite(connection: Any, query: Query) -> list[tuple[int, str]]:
    """Return the steps that SQLite takes, each after the number of what it is a part of."""
    compiled = query.statement.compile(dialect=sqlite.dialect(paramstyle="named"))
    given = {**compiled.params, **query.parameters}
    structures = {name: value for name, value in given.items() if isinstance(value, list | dict)}
    given |= {name: json.dumps(value) for name, value in structures.items()}
    rows = connection.execute(f"EXPLAIN QUERY PLAN {compiled}", given)
    return [(row[1], row[3]) for row in rows]


def indexes(steps: list[tuple[int, str]]) -> list[str]:
    """Return the indexes by which SQLite finds tasks; fail where it finds any without."""
    found = [step for _, step in steps if re.search(r"\btask\b", step)]
    by = [re.fullmatch(r"SEARCH task USING (?:COVERING )?INDEX (\w+) .*", step) for step in found]
    assert all(by), found
    return [match[1] for match in by if match]


PAGES: list[dict[str, Any]] = [
    {"limit": FEW},
    {"limit": FEW, "before": MANY // 2},
    {"limit": FEW, "sort": "-priority"},
    {"limit": FEW, "status": "pending"},
    {"limit": FEW, "status": "pending", "before": 100},
    {"limit": FEW, "overdue": "true"},
]


def test_of_very_many_tasks_only_a_page_is_sorted_or_kept(
    connection: Any, new_database: Database
) -> None:
    asked = [statements.list_tasks("heavy", TaskQuery(**page)) for page in PAGES]
    asked.append(statements.count_tasks("heavy", TaskFilter()))
    for query in asked:
        if new_database.name == "sqlite":
            told = plan_of_sqlite(connection, query)
            assert set(indexes(told)) <= LIVE
            whole = {parent for parent, step in told if step.startswith("SEARCH task ")}
            assert not [step for step in told if step[0] in whole and "TEMP B-TREE" in step[1]]
            continue
        steps = plan(connection, query)
        for step in steps:
            if step["Node Type"] in ("Sort", "Incremental Sort", "Materialize", "WindowAgg"):
                assert step["Actual Rows"] <= FEW + 1, steps
        assert steps[0]["Temp Written Blocks"] == 0


def test_the_count_of_very_many_tasks_does_not_read_them(
    connection: Any, new_database: Database
) -> None:
    query = statements.list_tasks("heavy", TaskQuery(limit=FEW))
    if new_database.name == "sqlite":
        # By the page, and by the count, which either index serves.
        by = indexes(plan_of_sqlite(connection, query))
        assert len(by) == 2
        assert set(by) <= LIVE
        return
    steps = plan(connection, query)
    read = [step for step in steps if step.get("Alias") in ("task", "task_1")]
    assert {step["Node Type"] for step in read} == {"Index Only Scan", "Index Scan"}
    assert steps[0]["Shared Hit Blocks"] + steps[0]["Shared Read Blocks"] < MANY / 100


@pytest.mark.parametrize("new_database", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    "query",
    [
        statements.count_tasks("heavy", TaskFilter()),
        statements.count_tasks("heavy", TaskFilter(overdue="true")),
        statements.count_tasks("heavy", TaskFilter(status="pending")),
    ],
)
def test_sqlite_counts_by_state_from_an_index_alone(connection: Any, query: Query) -> None:
    ((_, step),) = plan_of_sqlite(connection, query)
    assert "USING COVERING INDEX task_user_id_priority_id_state " in step


@pytest.mark.parametrize("new_database", ["sqlite"], indirect=True)
def test_sqlite_makes_the_next_of_each_of_many_tasks_by_its_id(connection: Any) -> None:
    """Not for each of the user's tasks by a look at all that are made: 3,000 took 16 seconds."""
    completed = TaskUpdate(completed=True)
    query = with_next(statements.update_tasks("heavy", TaskFilter(), completed, ruled=True), {})
    assert query.then is not None
    steps = [step for _, step in plan_of_sqlite(connection, query._replace(statement=query.then))]
    by_id = "SEARCH task USING INTEGER PRIMARY KEY (rowid=?)"
    assert steps[1:] == [by_id, "USE TEMP B-TREE FOR ORDER BY"]


@pytest.mark.parametrize("new_database", ["sqlite"], indirect=True)
def test_sqlite_looks_for_tags_without_a_table_for_each_task(connection: Any) -> None:
    query = statements.count_tasks("heavy", TaskFilter(tag=["a", "b"]))
    steps = [step for _, step in plan_of_sqlite(connection, query)]
    assert not [step for step in steps if re.search("TEMP|EXCEPT|LIST", step)], steps


@pytest.mark.parametrize("new_database", ["sqlite"], indirect=True)
def test_sqlite_goes_to_what_is_listed_and_looks_at_nothing_else(connection: Any) -> None:
    found_by = [
        (changes.read_changes("heavy", Since(since=5)), "task .*_position .*position>[?]"),
        (changes.read_positions(["heavy", "hoarder"]), "task_feed USING PRIMARY KEY .*user_id=[?]"),
        (statements.list_tasks("heavy", TaskQuery(id=[5, 7])), "task .*AND id=[?]"),
        (
            statements.count_tasks("heavy", TaskFilter(priority=["low", "high"])),
            ".*AND priority=[?]",
        ),
    ]
    for query, search in found_by:
        steps = [step for _, step in plan_of_sqlite(connection, query)]
        assert any(re.match(f"SEARCH {search}", step) for step in steps), steps


def test_of_very_many_tasks_one_is_found_by_its_uid_and_none_looked_at_when_nothing_is_new(
    connection: Any, new_database: Database
) -> None:
    feed = "INSERT INTO task_feed (user_id, position, forgotten) VALUES ('heavy', 1, 0)"
    connection.cursor().execute(feed)
    for query in (
        statements.list_tasks("heavy", TaskQuery(uid="mine")),
        statements.list_tasks("heavy", TaskQuery(uid="mine", deleted="true")),
        changes.read_changes("heavy", Since(since=1)),
    ):
        if new_database.name == "sqlite":
            by = indexes(plan_of_sqlite(connection, query))
            assert set(by) <= {"task_uid_user_id", "task_user_id_position"}
        else:
            root = plan(connection, query)[0]
            assert root["Shared Hit Blocks"] + root["Shared Read Blocks"] < 50, root


def test_a_large_trash_slows_no_page_down(connection: Any, new_database: Database) -> None:
    asked = [{}, *PAGES[:3]]
    for query in (statements.list_tasks("hoarder", TaskQuery(**page)) for page in asked):
        if new_database.name == "sqlite":
            assert set(indexes(plan_of_sqlite(connection, query))) <= LIVE
        else:
            root = plan(connection, query)[0]
            assert root["Shared Hit Blocks"] + root["Shared Read Blocks"] < 50, root


FILTERS: list[dict[str, Any]] = [
    {"q": "x"},
    {"tags": "a"},
    {"title_like": "x", "sort": "title"},
    {"order_gte": "1", "title_ne": "x"},
    {"completed_at": "", "sort": "due_date,-id"},
]


@pytest.mark.parametrize("wanted", FILTERS, ids=str)
def test_on_sqlite_a_large_trash_slows_no_search_down(
    tmp_path: Path, wanted: dict[str, Any]
) -> None:
    with in_process(database_url=f"sqlite:///{tmp_path / 'tasks.db'}"):
        pass
    found = TaskFilter.model_validate({k: v for k, v in wanted.items() if k != "sort"})
    with closing(connect(str(tmp_path / "tasks.db"))) as connection:
        for query in (
            statements.list_tasks("hoarder", TaskQuery.model_validate(wanted)),
            statements.count_tasks("hoarder", found),
            statements.update_tasks("hoarder", found, TaskUpdate(title="b")),
            statements.delete_tasks("hoarder", found),
        ):
            assert set(indexes(plan_of_sqlite(connection, query))) <= LIVE
