"""Lists: every filter in both dialects, sorts, pages, totals; and what is refused."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from urllib.parse import unquote

import httpx2
import psycopg2
import pytest
import sqlalchemy

from models import TASK
from tests.conftest import Database
from tests.support.api import assert_refused, create
from tests.support.postgres import Postgres
from tests.support.proxy import Proxy
from tests.support.service import Service

SAMPLE: dict[str, dict[str, Any]] = {
    "A": {
        "title": "Éclair 100%",
        "description": "line_one",
        "priority": "high",
        "due_date": "2020-01-01",
        "tags": ["home", "to eat"],
        "order": 2,
    },
    "B": {
        "title": "eclair 100",
        "description": "back\\slash",
        "completed": True,
        "priority": "low",
        "due_date": "2020-01-01T12:00:00Z",
        "tags": ["home"],
        "order": 1,
    },
    "C": {"title": "ÉCLAIR_x", "priority": "urgent"},
    "D": {
        "title": "zebra",
        "description": "Straße",
        "priority": "medium",
        "due_date": "2099-12-31",
        "tags": ["work", "home"],
        "order": 1.5,
    },
    "E": {
        "title": "Äpfel",
        "description": "",
        "completed": True,
        "due_date": "2099-12-31T23:59:59Z",
        "tags": ["Work"],
        "order": -1,
    },
}

QUERIES = [
    # Newest first.
    ("", "EDCBA"),
    ("limit=3", "EDC"),
    # status, completed
    ("status=all", "EDCBA"),
    ("status=pending", "DCA"),
    ("status=completed", "EB"),
    ("completed=true", "EB"),
    ("completed=false", "DCA"),
    ("completed_ne=true", "DCA"),
    ("completed_gte=true", "EB"),
    ("completed_lte=false", "DCA"),
    # q, search: in title and description, whatever the case of whatever letter; nothing is special
    ("q=éclair", "CA"),
    ("q=ÉCLAIR", "CA"),
    ("search=É", "CA"),
    ("q=äPFEL", "E"),
    ("q=STRASSE", "D"),
    ("q=straße", "D"),
    ("q=LINE_ONE", "A"),
    ("q=%25", "A"),
    ("q=_", "CA"),
    ("q=100_", ""),
    ("q=%5C", "B"),
    ("q=k%5Cs", "B"),
    ("q=eclair 100", "B"),
    ("q=eclair+100", "B"),
    ("q='", ""),
    ("q=", "EDCBA"),
    # priority, tag
    ("priority=urgent", "C"),
    ("priority=low&priority=high", "BA"),
    ("priority_ne=none", "DCBA"),
    ("priority_gte=medium", "DCA"),
    ("priority_lte=low", "EB"),
    ("priority_like=e", "EDC"),
    ("priority_like=x", ""),
    ("tag=home", "DBA"),
    ("tag=home&tag=work", "D"),
    ("tag=Home", ""),
    ("tag=hom", ""),
    ("tag=to eat", "A"),
    ("tag= work ", "D"),
    ("tags=work", "D"),
    ("tags_ne=home", "EC"),
    ("tags_like=ork", "ED"),
    ("tags_like=w", "D"),
    ("tags_like=%25", ""),
    ("tags_like=%2C", ""),  # nor is what either database writes between tags
    ("tags_like=", "EDCBA"),
    # due dates: a day ends when all its instants are over
    ("overdue=true", "A"),
    ("overdue=false", "EDCB"),
    ("due_before=2020-01-01", ""),
    ("due_before=2020-01-01T00:00:00Z", "A"),
    ("due_before=2020-01-02", "BA"),
    ("due_before=2020-01-01T12:00:00.000001Z", "BA"),
    ("due_before=2020-01-01T12:00:00Z", "A"),
    ("due_after=2019-12-31", "EDBA"),
    ("due_after=2020-01-01", "ED"),
    ("due_after=2020-01-01T10:00:00%2B01:00", "EDB"),
    ("due_after=2099-12-31", ""),
    ("due_after=2099-12-30&due_before=2100-01-01", "ED"),
    ("due_date=2020-01-01", "A"),
    ("due_date=2020-01-01T13:00:00%2B01:00", "B"),
    ("due_date=", "C"),
    ("due_date_ne=", "EDBA"),
    ("due_date_ne=2020-01-01", "EDCB"),
    ("due_date_gte=2020-01-01T12:00:00Z", "EDB"),
    ("due_date_gte=2099-12-31", "ED"),
    ("due_date_lte=2020-01-01", "BA"),
    ("due_date_lte=2099-12-31T00:00:00Z", "DBA"),
    ("due_date_like=T12", "B"),
    ("due_date_gte=2020-01-01T12:00", "EDB"),
    ("due_after=2020-01-01T12:00", "ED"),
    ("due_before=2020-01-01T12:00", "A"),
    # the other fields
    ("title=zebra", "D"),
    ("title=Zebra", ""),
    ("title_ne=zebra", "ECBA"),
    ("title_gte=ZEBRA", "EDCA"),
    ("title_lte=Zebra", "DB"),
    ("title_like=CLAIR", "CBA"),
    ("description=", "E"),
    ("description=line_one", "A"),
    ("description_ne=line_one", "EDCB"),
    ("description_gte=s", "D"),
    ("description_lte=Back\\slash", "EB"),
    ("description_like=STRASSE", "D"),
    ("description_like=straße", "D"),
    ("title_like=%C3%80", ""),
    ("description_like=", "EDBA"),
    ("order_gte=1.5", "DA"),
    ("order_lte=1.5&order_gte=1.5", "D"),
    ("order_lte=1", "EB"),
    ("order_ne=1", "EDCA"),
    ("completed_at=", "DCA"),
    ("completed_at_ne=", "EB"),
    ("completed_at_like=Z", "EB"),
    ("created_at_gte=2020-01-01", "EDCBA"),
    ("created_at_lte=2020-01-01", ""),
    ("updated_at_gte=2999-01-01T00:00:00Z", ""),
    ("updated_at_ne=2020-01-01T00:00:00Z", "EDCBA"),
    ("created_at_like=T", "EDCBA"),
    ("user_id_ne=x", "EDCBA"),
    ("user_id_like=sample-", "EDCBA"),
    ("user_id=x", ""),
    # sorts: nulls last both ways, ties by id in the direction of the last key
    ("sort=id", "ABCDE"),
    ("sort=-id", "EDCBA"),
    ("sort=created", "ABCDE"),
    ("sort=-created_at", "EDCBA"),
    ("sort=updated", "ABCDE"),
    ("sort=-updated_at", "EDCBA"),
    ("sort=title", "BDEAC"),
    ("sort=-title", "CAEDB"),
    ("sort=description", "EBADC"),
    ("sort=-description", "DABEC"),
    ("sort=priority", "EBDAC"),
    ("sort=-priority", "CADBE"),
    ("sort=due_date", "ABDEC"),
    ("sort=-due_date", "EDBAC"),
    ("sort=order", "EBDAC"),
    ("sort=-order", "ADBEC"),
    ("sort=completed", "ACDBE"),
    ("sort=-completed", "EBDCA"),
    ("sort=completed_at", "BEACD"),
    ("sort=-completed_at", "EBDCA"),
    ("sort=user_id", "ABCDE"),
    ("sort=-user_id", "EDCBA"),
    ("sort=-completed,title", "BEDAC"),
    ("sort=completed, -priority", "CADBE"),
    ("sort=", "EDCBA"),
    ("sort_by=title", "BDEAC"),
    ("sort_by=title&order=desc", "CAEDB"),
    ("_sort=title&_order=ASC", "BDEAC"),
    ("_sort=title&_order=Desc", "CAEDB"),
    ("_sort=completed,title&_order=desc,asc", "BEDAC"),
    ("_sort=completed,title&_order=desc", "BEDAC"),
    ("_sort=completed,title&_order=asc,desc", "CADEB"),
    ("_sort=created&order=asc", "ABCDE"),
    ("order=asc", "ABCDE"),
    ("_order=DESC", "EDCBA"),
    # pages
    ("limit=2&offset=1", "DC"),
    ("offset=4", "A"),
    ("_start=1&_end=4", "DCB"),
    ("_end=2", "ED"),
    ("_start=3", "BA"),
    ("_start=1&_limit=2", "DC"),
    ("_limit=2", "ED"),
    ("_page=2&_limit=2", "CB"),
    ("_page=1", "EDCBA"),
    # together
    ("status=pending&tag=home&sort=title&limit=1&q=e", "D"),
    ("_sort=order&_order=DESC&_start=0&_end=2&completed=false&title_like=a", "AD"),
]
ORDER_OR_PAGE = ("sort", "order=", "limit", "offset", "_start", "_end", "_page")
FILTERS = [query for query in QUERIES if not any(name in query[0] for name in ORDER_OR_PAGE)]

REFUSED = [
    # unknown
    ("completd=true", "completd"),
    ("prioritee=low", "prioritee"),
    ("url=x", "url"),
    ("Status=all", "Status"),
    ("due=2026-11-21", "due"),
    ("title_gt=x", "title_gt"),
    ("title_=x", "title_"),
    ("_like=x", "_like"),
    ("status_ne=all", "status_ne"),
    ("completed_like=t", "completed_like"),
    ("order_like=1", "order_like"),
    ("tags_gte=a", "tags_gte"),
    ("tags_lte=a", "tags_lte"),
    ("skip=1", "skip"),
    ("=x", ""),
    ("status", "status"),
    # more than once, under one name or two
    ("status=all&status=all", "status"),
    ("q=a&search=b", "search"),
    ("q=a&q=a", "q"),
    ("completed=true&completed=true", "completed"),
    ("title_like=a&title_like=b", "title_like"),
    ("tags=a&tags=b", "tags"),
    ("due_before=2026-11-21&due_before=2026-11-22", "due_before"),
    ("overdue=true&overdue=true", "overdue"),
    ("limit=1&limit=2", "limit"),
    ("limit=1&_limit=1", "_limit"),
    ("offset=1&_start=1", "_start"),
    ("sort=title&_sort=title", "_sort"),
    ("sort=title&sort=title", "sort"),
    ("_sort=title&_order=asc&order=asc", "order"),
    # bad values
    ("status=done", "status"),
    ("completed=1", "completed"),
    ("completed=", "completed"),
    ("overdue=yes", "overdue"),
    ("overdue=", "overdue"),
    ("priority=hígh", "priority"),
    ("priority=low&priority=", "priority"),
    ("tag=", "tag"),
    ("tag=" + "x" * 51, "tag"),
    ("q=%00", "q"),
    ("title=%00", "title"),
    ("title_gte=%00", "title_gte"),
    ("due_before=", "due_before"),
    ("due_before=soon", "due_before"),
    ("due_after=2026-11-21T10:00:00.5", "due_after"),
    ("due_date_gte=", "due_date_gte"),
    ("due_date=2026-02-29", "due_date"),
    ("created_at=2026-11-21", "created_at"),
    ("created_at_gte=x", "created_at_gte"),
    ("order=3", "order"),
    ("order_gte=nan", "order_gte"),
    ("order_lte=x", "order_lte"),
    ("id=x", "id"),
    ("id=0", "id"),
    ("id=1&id=1.5", "id"),
    (f"id={2**53}", "id"),
    ("id_gte=", "id_gte"),
    ("sort=tags", "sort"),
    ("sort=titel", "sort"),
    ("sort=title,", "sort"),
    ("sort=--title", "sort"),
    ("_sort=url", "_sort"),
    ("sort=title&_order=up", "_order"),
    ("_sort=title&_order=", "_order"),
    ("limit=0", "limit"),
    ("limit=1001", "limit"),
    ("limit=-1", "limit"),
    ("limit=ten", "limit"),
    ("limit=", "limit"),
    ("limit=1e2", "limit"),
    ("limit=２", "limit"),  # noqa: RUF001
    ("limit=" + "9" * 5000, "limit"),
    ("_limit=0", "_limit"),
    ("offset=-1", "offset"),
    ("offset=x", "offset"),
    (f"offset={2**63}", "offset"),
    ("_start=-1", "_start"),
    ("_start=0&_end=0", "_end"),
    ("_start=5&_end=5", "_end"),
    ("_start=5&_end=4", "_end"),
    ("_start=0&_end=1001", "_end"),
    ("_end=5&limit=5", "_end"),
    ("_page=0", "_page"),
    ("_page=2&offset=10", "_page"),
    ("_page=2&_end=10", "_page"),
    ("before=0", "before"),
    ("before=x", "before"),
    ("before=1&before=2", "before"),
    ("before=7&sort=-created_at", "before"),
    ("before=7&order=asc", "before"),
    ("before=7&offset=5", "before"),
    ("before=7&_end=5", "before"),
    ("before=7&_page=1", "before"),
]


def insert(database: Database, rows: list[dict[str, Any]]) -> None:
    """Insert many tasks at once, straight into the database."""

    def connect() -> Any:
        return psycopg2.connect(database.url)

    engine = (
        sqlalchemy.create_engine(database.url)
        if database.name == "sqlite"
        else sqlalchemy.create_engine("postgresql+psycopg2://", creator=connect)
    )
    with engine.begin() as connection:
        connection.execute(TASK.insert(), rows)
    engine.dispose()


def rows_of(user: str, count: int) -> list[dict[str, Any]]:
    """Return rows of a user's tasks, all made at the same two instants: full of equal sort keys."""
    start = datetime(2026, 1, 1, 0, 0, 0, 1, tzinfo=UTC)
    return [
        {
            "user_id": user,
            "title": f"task {n}",
            "title_folded": f"task {n}",
            "completed": n % 2 == 0,
            "priority": ("none", "low", "medium")[n % 3],
            "due_date": None if n % 5 else "2026-11-21",
            "tags": [],
            "created_at": start + timedelta(days=n % 2),
            "updated_at": start,
            "version": 1,
            "idempotency_replays": 0,
        }
        for n in range(count)
    ]


class Sample(NamedTuple):
    """The tasks of SAMPLE as they are stored: their path, and their ids by letter."""

    tasks: str
    ids: dict[str, int]

    def letters(self, answer: httpx2.Response) -> str:
        """Return which tasks a list holds, in its order."""
        letters = {number: letter for letter, number in self.ids.items()}
        assert answer.status_code == 200, answer.text
        return "".join(letters[task["id"]] for task in answer.json())


@pytest.fixture(scope="module")
def sample(service: Service) -> Sample:
    """The tasks of SAMPLE, for tests that only read."""
    tasks = f"/api/sample-{service.port}/tasks"
    with httpx2.Client(base_url=service.url, trust_env=False, verify=False) as client:
        client.delete(tasks)
        ids = {letter: create(client, tasks, **task)["id"] for letter, task in SAMPLE.items()}
    return Sample(tasks, ids)


@pytest.mark.parametrize(("query", "expected"), QUERIES)
def test_a_query_answers_these_tasks_in_this_order(
    client: httpx2.Client, sample: Sample, query: str, expected: str
) -> None:
    answer = client.get(f"{sample.tasks}?{query}")
    assert sample.letters(answer) == expected


@pytest.mark.parametrize(("query", "expected"), FILTERS)
def test_stats_count_what_the_same_filters_match(
    client: httpx2.Client, sample: Sample, query: str, expected: str
) -> None:
    stats = client.get(f"{sample.tasks}/stats?{query}")
    completed = len(set(expected) & set("BE"))
    assert stats.json() == {
        "total": len(expected),
        "completed": completed,
        "pending": len(expected) - completed,
        "overdue": expected.count("A"),
    }


@pytest.mark.parametrize(("query", "name"), REFUSED, ids=lambda value: value[:30])
def test_a_query_that_means_nothing_is_refused_by_name(
    client: httpx2.Client, sample: Sample, query: str, name: str
) -> None:
    assert_refused(client.get(f"{sample.tasks}?{query}"), name, "query")


def test_every_bad_parameter_is_named_at_once(client: httpx2.Client, tasks: str) -> None:
    answer = client.get(f"{tasks}?limit=0&completd=true&priority=x&sort=y")
    named = {error["field"] for error in answer.json()["errors"]}
    assert named == {"limit", "completd", "priority", "sort"}


def test_thirty_filters_can_be_sorted_and_paged(client: httpx2.Client, tasks: str) -> None:
    create(client, tasks)
    kinds = ("", "_ne", "_gte", "_lte", "_like")
    names = [
        f"{field}{kind}"
        for field in ("title", "description", "uid", "user_id", "recurrence", "remind_at")
        for kind in kinds
    ]
    day = {f"remind_at{kind}": "2026-11-21T10:00" for kind in kinds}
    filters = {name: day.get(name, "x") for name in names}
    keys = "id,title,uid,priority,order,created_at,updated_at,due_date"
    for page in {"limit": "5", "offset": "1"}, {"_limit": "5", "_page": "1"}:
        answer = client.get(tasks, params={**filters, "sort": keys, "order": "desc", **page})
        assert (answer.status_code, answer.json()) == (200, []), answer.text
    answer = client.get(tasks, params={**filters, "q": "x"})
    assert answer.status_code == 422
    assert answer.json()["detail"] == "query: must not have more than 30 filters"


@pytest.mark.parametrize("query", ["title_gte=%00", "due_date_lte=soon", "due_date_gte="])
def test_a_bad_parameter_is_named_once(client: httpx2.Client, tasks: str, query: str) -> None:
    assert len(client.get(f"{tasks}?{query}").json()["errors"]) == 1


def test_ids_pick_tasks_but_never_somebody_elses(
    client: httpx2.Client, sample: Sample, tasks: str
) -> None:
    b, d, mine = sample.ids["B"], sample.ids["D"], create(client, tasks)["id"]

    def picked(query: str) -> str:
        return sample.letters(client.get(f"{sample.tasks}?{query}"))

    assert picked(f"id={b}&id={d}&id={mine}") == "DB"
    assert picked(f"id={b}&id={b}") == "B"
    assert picked(f"id={mine}") == ""
    assert picked(f"id_gte={d}") == "ED"
    assert picked(f"id_lte={b}&sort=id") == "AB"
    assert picked(f"id_ne={b}") == "EDCA"
    assert "B" in picked(f"id_like={b}")
    assert client.get(f"{tasks}?user_id_ne=x").json()[0]["id"] == mine


def test_a_timestamp_that_was_answered_finds_its_task(
    client: httpx2.Client, sample: Sample
) -> None:
    for field in ("created_at", "updated_at", "completed_at"):
        task = client.get(f"{sample.tasks}?completed=true&sort=id").json()[0]
        at = task[field]
        for operator, expected in (("", "B"), ("_ne", "EDCA"), ("_like", "B")):
            found = client.get(sample.tasks, params={field + operator: at})
            assert sample.letters(found) == expected, (field, operator)
        after = client.get(sample.tasks, params={f"{field}_gte": at, "sort": "id"}).json()
        until = client.get(sample.tasks, params={f"{field}_lte": at, "sort": "id"}).json()
        assert after[0]["id"] == until[-1]["id"] == task["id"]


def test_overdue_agrees_for_both_kinds_of_due_date(client: httpx2.Client, tasks: str) -> None:
    def shift(**span: float) -> str:
        return (datetime.now(UTC) + timedelta(**span)).isoformat()

    today = ""
    while today != shift()[:10]:  # again where midnight came between
        today = shift()[:10]
        client.delete(tasks)
        create(client, tasks, title="an hour ago", due_date=shift(hours=-1))
        create(client, tasks, title="in an hour", due_date=shift(hours=1))
        create(client, tasks, title="yesterday", due_date=shift(days=-1)[:10])
        create(client, tasks, title="today", due_date=today)
        create(client, tasks, title="tomorrow", due_date=shift(days=1)[:10])
        create(client, tasks, title="never")
        create(client, tasks, title="done", due_date=shift(days=-9)[:10], completed=True)
        late = client.get(f"{tasks}?overdue=true&sort=id").json()
        rest = client.get(f"{tasks}?overdue=false&sort=id").json()
        stats = client.get(f"{tasks}/stats").json()
    assert [task["title"] for task in late] == ["an hour ago", "yesterday"]
    assert [task["title"] for task in rest] == ["in an hour", "today", "tomorrow", "never", "done"]
    assert stats == {"total": 7, "completed": 1, "pending": 6, "overdue": 2}


@pytest.mark.parametrize(
    ("page", "size", "total"),
    [
        ("limit=2", 2, 5),
        ("limit=5", 5, 5),
        ("limit=1000", 5, 5),
        ("limit=1", 1, 5),
        ("offset=4", 1, 5),
        ("offset=5", 0, 5),
        ("limit=2&offset=9007199254740991", 0, 5),
        ("_start=100&_end=110", 0, 5),
        ("_page=7&_limit=2", 0, 5),
        ("status=completed&offset=2", 0, 2),
        ("q=nothing", 0, 0),
        ("q=nothing&offset=3", 0, 0),
    ],
)
def test_the_total_is_right_on_every_page_and_past_the_last(
    client: httpx2.Client, sample: Sample, page: str, size: int, total: int
) -> None:
    answer = client.get(f"{sample.tasks}?{page}")
    assert (len(answer.json()), answer.headers["x-total-count"]) == (size, str(total))


def test_links_lead_to_the_pages_beside_and_keep_the_query(
    client: httpx2.Client, sample: Sample
) -> None:
    query = "tag=home&q=e&_sort=title&_order=desc&title_ne=%C3%A9%26%25%20x"
    query += "&priority=low&priority=high&priority=medium"

    def page(url: str) -> tuple[str, dict[str, str]]:
        answer = client.get(url)
        letters = sample.letters(answer)
        return letters, {name: link["url"] for name, link in answer.links.items() if name}

    first, links = page(f"{sample.tasks}?{query}&_start=0&_end=1")
    assert (first, list(links)) == ("A", ["next"])
    assert links["next"].startswith(f"{client.base_url.join(sample.tasks)}?")
    assert "title_ne=é&% x" in unquote(links["next"]).replace("+", " ")
    second, links = page(links["next"])
    assert (second, set(links)) == ("D", {"next", "prev"})
    third, links_of_third = page(links["next"])
    assert (third, list(links_of_third)) == ("B", ["prev"])
    assert page(links_of_third["prev"])[0] == "D"
    assert page(links["prev"])[0] == "A"
    assert page(f"{sample.tasks}?{query}") == ("ADB", {})


@pytest.mark.parametrize("query", ["", "limit=700&sort=priority", "_limit=900&_sort=-completed"])
def test_walking_ten_thousand_tasks_by_link_sees_each_once(
    client: httpx2.Client, many: str, query: str
) -> None:
    seen: list[int] = []
    url = f"{many}?{query}"
    while url:
        answer = client.get(url)
        assert answer.headers["x-total-count"] == "10000"
        seen += [task["id"] for task in answer.json()]
        url = answer.links.get("next", {}).get("url", "")
    assert len(seen) == len(set(seen)) == 10_000
    if not query:
        assert seen == sorted(seen, reverse=True)


@pytest.fixture(scope="module")
def many(database: Database, service: Service) -> str:
    """The path of 10,000 tasks, made at two instants; put there behind the service's back."""
    user = f"many-{service.port}"
    insert(database, rows_of(user, 10_000))
    return f"/api/{user}/tasks"


def test_a_thousand_tasks_are_one_page(
    client: httpx2.Client, database: Database, tasks: str, user: str
) -> None:
    insert(database, rows_of(user, 1000))
    answer = client.get(tasks)
    assert (len(answer.json()), answer.headers["x-total-count"]) == (1000, "1000")
    assert "link" not in answer.headers
    create(client, tasks)
    answer = client.get(tasks)
    assert (len(answer.json()), answer.headers["x-total-count"]) == (1000, "1001")
    assert answer.links["next"]["url"].endswith(f"limit=1000&before={answer.json()[-1]['id']}")


@pytest.fixture(scope="module")
def counted(own_postgres: Postgres) -> Iterator[tuple[Service, Proxy, Database]]:
    """The service, and what it says to its database."""
    database = Database("postgresql", own_postgres.create_database(), "")
    with (
        Proxy(own_postgres.port) as proxy,
        Service(DATABASE_URL=proxy.through(database.url)) as service,
    ):
        yield service, proxy, database


def test_a_list_is_one_statement_with_its_total(
    counted: tuple[Service, Proxy, Database], user: str, tasks: str
) -> None:
    service, proxy, database = counted
    insert(database, rows_of(user, 1010))
    with httpx2.Client(base_url=service.url, trust_env=False, verify=False) as client:
        for query, size in (("", 1000), ("offset=5", 1000), ("offset=9999", 0), ("q=task 77", 11)):
            client.get(tasks)  # the connection is there
            proxy.reset()
            answer = client.get(f"{tasks}?{query}")
            assert len(answer.json()) == size
            assert answer.headers["x-total-count"] == ("11" if query.startswith("q") else "1010")
            assert (proxy.counts.queries, proxy.counts.completed) == (1, 2), proxy.counts.sql


def test_a_search_finds_what_a_task_says_now(client: httpx2.Client, tasks: str) -> None:
    one, other = create(client, tasks, title="Ähre"), create(client, tasks, title="Zebra")
    path = f"{tasks}/{one['id']}"

    def found(query: str) -> list[int]:
        return [task["id"] for task in client.get(f"{tasks}?{query}").json()]

    client.patch(path, json={"title": "Übel", "description": "Straße"})
    assert found("q=ähre") == []
    assert found("q=übel") == found("q=STRASSE") == [one["id"]]
    client.patch(f"{tasks}?title=Zebra", json={"title": "Öl", "description": "Maß"})
    assert found("q=zebra") == []
    assert found("q=öl") == found("description_like=MASS") == [other["id"]]
    assert found("sort=title") == [other["id"], one["id"]]
    client.put(path, json={"description": None})
    assert found("q=STRASSE") == []


def test_a_long_text_is_found_as_a_short_one_is(client: httpx2.Client, tasks: str) -> None:
    text = "Stra\u00dfe " * 1000
    task = create(client, tasks, title="x", description=text)
    create(client, tasks, title="no description")
    for part, found in ((text[3:3000], [task["id"]]), (text[3:3000] + "y", [])):
        answer = client.get(tasks, params={"q": part.upper()})
        assert [each["id"] for each in answer.json()] == found


def test_a_filter_is_a_value_never_a_pattern_or_a_piece_of_sql(
    client: httpx2.Client, tasks: str
) -> None:
    words = ["a'b", 'a"b', "a;b", "a--b", "%s", "%(owner)s", ":owner", "?", "$1", "{0}", "a\\"]
    ids = {create(client, tasks, title=word, tags=[word])["id"]: word for word in words}
    for number, word in ids.items():
        for name in ("title", "title_like", "tag", "q"):
            found = [task["id"] for task in client.get(tasks, params={name: word}).json()]
            assert found == [number], (name, word)


# ---- wall-clock times


def test_a_wall_clock_time_counts_as_utc_in_every_filter(client: httpx2.Client, tasks: str) -> None:
    wall, same, later = "2026-12-01T12:00:00", "2026-12-01T12:00:00Z", "2026-12-01T12:00:00.000001Z"
    for title, due in (("day", "2026-12-01"), ("wall", wall), ("same", same), ("later", later)):
        create(client, tasks, title=title, due_date=due)

    def titles(**parameters: str) -> str:
        found = client.get(tasks, params={"sort": "due_date", **parameters})
        assert found.status_code == 200, found.text
        return " ".join(task["title"] for task in found.json())

    assert titles() == "day wall same later"
    for at in (wall[:-3], wall, same, "2026-12-01T13:00:00+01:00"):
        assert titles(due_before=at) == "day"
        assert titles(due_date_gte=at) == "wall same later"
        assert titles(due_date_lte=at) == "day wall same"
        assert titles(due_after=at) == "later"
    assert titles(due_date_lte=later) == "day wall same later"
    assert titles(due_date_gte=later) == "later"
    assert titles(due_date_lte="2026-12-01") == "day wall same later"
    assert titles(due_after="2026-12-01") == ""
    assert titles(due_date=wall[:-3]) == titles(due_date=wall) == "wall"
    assert titles(due_date=same) == "same"
    assert titles(created_at_gte="2020-01-01T12:00") == "day wall same later"


@pytest.mark.parametrize("field", ["due_date", "remind_at"])
def test_a_wall_clock_time_sorts_as_the_same_time_in_utc(
    client: httpx2.Client, tasks: str, field: str
) -> None:
    same = ("2044-01-01T10:00:00Z", "2044-01-01T10:00", "2044-01-01T11:00:00+01:00")
    for at in (*same, "2044-01-01T10:00:00.000001Z", None):
        priority = "low" if at in same[:2] else "high"
        create(client, tasks, title=at or "none", priority=priority, **{field: at})

    def found(sort: str) -> list[str]:
        return [task["title"] for task in client.get(tasks, params={"sort": sort}).json()]

    later = ["2044-01-01T10:00:00.000001Z"]
    assert found(field) == [*same, *later, "none"]
    assert found(f"-{field}") == [*later, *same[::-1], "none"]
    assert found(f"{field},-priority") == [same[2], *same[1::-1], *later, "none"]


def test_a_wall_clock_time_is_overdue_when_utc_says_so(client: httpx2.Client, tasks: str) -> None:
    now = datetime.now(UTC).replace(tzinfo=None)
    for title, due in (("past", now - timedelta(minutes=1)), ("soon", now + timedelta(minutes=9))):
        create(client, tasks, title=title, due_date=due.isoformat(timespec="minutes"))
    late = client.get(f"{tasks}?overdue=true").json()
    assert [task["title"] for task in late] == ["past"]
    assert client.get(f"{tasks}/stats").json()["overdue"] == 1


@pytest.mark.parametrize("word", ["high", "HIGH", "High"])
def test_a_priority_is_read_in_any_case(client: httpx2.Client, tasks: str, word: str) -> None:
    create(client, tasks, title="low", priority="LOW")
    create(client, tasks, title="high", priority=word)
    for query in (f"priority={word}", f"priority_gte={word}", f"priority_like={word[:3]}"):
        found = client.get(f"{tasks}?{query}").json()
        assert [(task["title"], task["priority"]) for task in found] == [("high", "high")]
    body = {"priority": word}
    assert client.patch(f"{tasks}?title=low", json=body).json() == {"updated": 1}
    assert {task["priority"] for task in client.get(tasks).json()} == {"high"}


def test_links_that_a_proxy_would_choke_on_are_left_out(client: httpx2.Client, tasks: str) -> None:
    for _ in range(3):
        create(client, tasks, title="x")
    short = client.get(tasks, params={"limit": 1, "q": "x"})
    assert "next" in short.headers["link"]
    long = client.get(tasks, params=[("limit", "1"), *(("priority", "none") for _ in range(200))])
    assert "link" not in long.headers
    assert long.headers["x-total-count"] == "3"
