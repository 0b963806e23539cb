"""The live stream of changes: all since a position, then each as it happens (section 9)."""

import socket
from contextlib import ExitStack
from http.client import HTTPConnection
from typing import Any

import httpx2
import pytest

from tests.conftest import Database
from tests.support.api import assert_refused, create
from tests.support.events import EVENTS, Listener
from tests.support.postgres import Postgres
from tests.support.problems import CORS, assert_problem
from tests.support.processes import wait_until
from tests.support.proxy import Proxy
from tests.support.service import Service
from tests.support.tokens import Key, claims


def changes_of(service: Service, tasks: str, query: str = "") -> str:
    return f"{service.url}{tasks}/changes?{query}"


def position_of(client: httpx2.Client, tasks: str) -> int:
    answer = client.get(f"{tasks}/changes")
    assert answer.status_code == 200
    position: int = answer.json()["position"]
    return position


def test_a_stream_tells_all_that_there_is_then_each_change(
    service: Service, client: httpx2.Client, tasks: str
) -> None:
    first = create(client, tasks, title="first")
    with Listener(changes_of(service, tasks)) as listener:
        listener.wait_for(2)
        assert listener.pages == [{"changes": [first], "position": 2, "more": False}]
        assert listener.headers["content-type"].startswith("text/event-stream")
        # Else what compresses (Express, and so webpack and Next.js) holds each event back.
        assert listener.headers["cache-control"] == "no-store, no-transform"
        second = create(client, tasks, title="second")
        listener.wait_for(3)
        client.patch(f"{tasks}/{first['id']}/complete")
        listener.wait_for(4)
        assert client.delete(f"{tasks}/{second['id']}").json()["deleted"] is True
        listener.wait_for(5)
        client.delete(f"{tasks}/{second['id']}?forever=true")
        client.patch(tasks, json={"priority": "high"})
        listener.wait_for(7)
        assert listener.statuses == [200]
        assert [*listener.tasks.values()] == client.get(tasks).json()
        told = [change for page in listener.pages for change in page["changes"]]
        assert {"id": second["id"], "uid": second["uid"], "deleted": True, "gone": True} in told


def test_who_has_nothing_yet_is_told_so(service: Service, tasks: str) -> None:
    with Listener(changes_of(service, tasks)) as listener:
        listener.wait_for(1)
        assert listener.pages == [{"changes": [], "position": 1, "more": False}]


def test_who_has_all_hears_of_what_comes(
    service: Service, client: httpx2.Client, tasks: str
) -> None:
    create(client, tasks)
    with Listener(changes_of(service, tasks, "since=2")) as listener:
        new = create(client, tasks)
        listener.wait_for(3)
        assert [page["changes"] for page in listener.pages] == [[new]]


@pytest.mark.parametrize(("since", "last"), [(0, 3), (3, 0), (2, 3), (3, 2)])
def test_the_last_event_id_counts_where_it_is_larger(
    service: Service, client: httpx2.Client, tasks: str, since: int, last: int
) -> None:
    made = [create(client, tasks) for _ in range(3)]
    url = changes_of(service, tasks, f"since={since}")
    with Listener(url, {"Last-Event-ID": str(last)}) as listener:
        listener.wait_for(4)
        assert listener.pages[0]["changes"] == made[2:]


def test_a_polyfill_comes_back_with_its_last_event_id_in_the_query(
    service: Service, client: httpx2.Client, tasks: str
) -> None:
    """A page that sends the token as a header has one (npm's `event-source-polyfill`)."""
    made = [create(client, tasks) for _ in range(3)]
    for query in ("lastEventId=3", "since=2&lastEventId=3", "lastEventId=2&since=3"):
        with Listener(changes_of(service, tasks, query)) as listener:
            listener.wait_for(4)
            assert listener.pages[0]["changes"] == made[2:]
    for wrong in ("x", "-1", str(2**53)):
        answer = client.get(f"{tasks}/changes?lastEventId={wrong}", headers=EVENTS)
        assert_refused(answer, "lastEventId", "query")


def test_a_stream_has_pages_of_the_size_asked_for(
    service: Service, client: httpx2.Client, tasks: str
) -> None:
    for _ in range(5):
        create(client, tasks)
    with Listener(changes_of(service, tasks, "limit=2")) as listener:
        listener.wait_for(6)
        assert [len(page["changes"]) for page in listener.pages] == [2, 2, 1]
        assert [page["more"] for page in listener.pages] == [True, True, False]


def test_a_page_of_megabytes_comes_whole(
    service: Service, client: httpx2.Client, tasks: str
) -> None:
    for start in range(0, 200, 20):
        new = [{"title": f"{start + n}", "description": "日" * 3000} for n in range(20)]
        assert client.post(tasks, json=new).status_code == 201
    with Listener(changes_of(service, tasks)) as listener:
        listener.wait_for(11)
        assert len(listener.pages) == 1
        assert {task["description"] for task in listener.tasks.values()} == {"日" * 3000}
        assert len(listener.tasks) == 200


def test_both_mounts_stream_with_their_own_urls(new_database: Database) -> None:
    with (
        Service(DATABASE_URL=new_database.url) as service,
        httpx2.Client(base_url=service.url, trust_env=False) as client,
        Listener(changes_of(service, "/api/tasks")) as current,
        Listener(changes_of(service, "/api/demo/tasks")) as named,
    ):
        create(client, "/api/tasks")
        current.wait_for(2)
        named.wait_for(2)
        for listener, path in ((current, "/api/tasks"), (named, "/api/demo/tasks")):
            assert all(
                task["url"].startswith(service.url + path) for task in listener.tasks.values()
            )


def test_only_the_users_own_changes_are_told(
    service: Service, client: httpx2.Client, tasks: str
) -> None:
    with Listener(changes_of(service, tasks)) as listener:
        create(client, "/api/somebody-else/tasks", title="not theirs")
        create(client, tasks, title="theirs")
        listener.wait_for(2)
        assert listener.titles() == ["theirs"]


def test_a_change_by_another_worker_comes(crowded: Service, tasks: str) -> None:
    with (
        ExitStack() as stack,
        httpx2.Client(base_url=crowded.url, trust_env=False) as client,
    ):
        url = changes_of(crowded, tasks)
        listeners = [stack.enter_context(Listener(url)) for _ in range(8)]
        for number in range(5):
            client.headers["Connection"] = "close"  # so that each may meet another worker
            create(client, tasks, title=str(number))
            for listener in listeners:
                listener.wait_for(number + 2)
        for listener in listeners:
            assert listener.titles() == ["0", "1", "2", "3", "4"]
            assert listener.statuses == [200]


def test_a_change_that_another_program_makes_comes(own_postgres: Postgres, tasks: str) -> None:
    url = own_postgres.create_database()
    with (
        Service(DATABASE_URL=url) as here,
        Service(DATABASE_URL=url) as there,
        Listener(changes_of(here, tasks)) as listener,
        httpx2.Client(base_url=there.url, trust_env=False) as client,
    ):
        create(client, tasks, title="made there")
        listener.wait_for(2)
        assert listener.titles() == ["made there"]


def test_streams_of_one_user_share_a_read(own_postgres: Postgres, tasks: str) -> None:
    with (
        Proxy(own_postgres.port) as proxy,
        Service(DATABASE_URL=proxy.through(own_postgres.create_database())) as service,
        ExitStack() as stack,
        httpx2.Client(base_url=service.url, trust_env=False) as client,
    ):
        create(client, tasks)
        url = changes_of(service, tasks)
        listeners = [stack.enter_context(Listener(url)) for _ in range(30)]
        for listener in listeners:
            listener.wait_for(2)
        proxy.reset()
        create(client, tasks)
        for listener in listeners:
            listener.wait_for(3)
        pages = [sql for sql in proxy.counts.sql if "task_gone" in sql]
        assert 1 <= len(pages) <= 3  # one for the write, maybe one for a look that came between


def test_head_and_conditions_do_not_hang(service: Service, tasks: str) -> None:
    path = f"{tasks}/changes"
    answer = httpx2.head(service.url + path, headers=EVENTS, trust_env=False)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-type"].startswith("text/event-stream")
    connection = HTTPConnection("127.0.0.1", service.port, timeout=30)
    for _ in range(2):  # on one connection, which stays in step
        connection.request("HEAD", path, headers=EVENTS)
        assert connection.getresponse().read() == b""
    connection.close()


def test_what_goes_over_the_wire(service: Service, tasks: str) -> None:
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as wire:
        head = f"GET {tasks}/changes HTTP/1.1\r\nHost: localhost\r\n"
        wire.sendall(f"{head}Accept: text/event-stream\r\n\r\n".encode())
        came = b""
        while b"id: 1\n\n" not in came:
            came += wire.recv(4096)
    begin, page = came.split(b": changes follow\nretry: 2000\n\n")
    assert begin.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"event: changes\ndata: {" in page


def test_what_cannot_be_streamed_is_a_status(
    service: Service, client: httpx2.Client, tasks: str
) -> None:
    create(client, tasks)
    path = f"{tasks}/changes"
    client.headers |= CORS
    assert_problem(client.get(f"{path}?since=3", headers=EVENTS), 410)
    too_late = client.get(path, headers={**EVENTS, "Last-Event-ID": "3"})
    assert_problem(too_late, 410)
    for wrong in ("x", "-1", "1.5", str(2**53)):
        answer = client.get(path, headers={**EVENTS, "Last-Event-ID": wrong})
        assert_refused(answer, "Last-Event-ID", "header")
    assert_refused(client.get(f"{path}?sinc=3", headers=EVENTS), "sinc", "query")
    assert client.post(path, headers=EVENTS).status_code == 405


def test_a_page_of_another_origin_may_listen(service: Service, tasks: str) -> None:
    origin = "http://localhost:5173"
    with Listener(changes_of(service, tasks), {"Origin": origin}) as listener:
        listener.wait_for(1)
        assert listener.headers["access-control-allow-origin"] == origin


SECRET = Key("HS256", private=b"a secret of no less than 32 bytes")


@pytest.fixture(scope="module")
def guarded(database: Database) -> Any:
    """A service with auth on."""
    secret = SECRET.private.decode()
    with Service(DATABASE_URL=database.url, AUTH_SECRET=secret, LOG_LEVEL="debug") as service:
        yield service


def test_a_token_that_is_good_for_ever_keeps_its_stream(guarded: Service, user: str) -> None:
    token = SECRET.token(claims(user, exp=10**400))  # more than a float holds
    bearer = {"Authorization": f"Bearer {token}"}
    url = changes_of(guarded, "/api/tasks")
    with (
        httpx2.Client(base_url=guarded.url, headers=bearer, trust_env=False) as client,
        Listener(url, bearer, once=True) as listener,
    ):
        listener.wait_for(1)
        create(client, "/api/tasks")
        listener.wait_for(2)


def test_a_stream_takes_its_token_from_the_query(guarded: Service, user: str) -> None:
    token = SECRET.token(claims(user))
    bearer = {"Authorization": f"Bearer {token}"}
    with httpx2.Client(base_url=guarded.url, headers=bearer, trust_env=False) as client:
        create(client, "/api/tasks", title="secret")
        for tasks in ("/api/tasks", f"/api/{user}/tasks"):
            with Listener(changes_of(guarded, tasks, f"access_token={token}")) as listener:
                listener.wait_for(2)
                assert listener.titles() == ["secret"]
        with Listener(changes_of(guarded, "/api/tasks"), bearer) as listener:
            listener.wait_for(2)
    with httpx2.Client(base_url=guarded.url, headers=EVENTS | CORS, trust_env=False) as client:
        query = f"?access_token={token}"
        assert_problem(client.get("/api/tasks/changes"), 401)
        assert_problem(client.get(f"/api/tasks/changes{query}x"), 401)
        assert_problem(client.get("/api/tasks/changes?access_token="), 401)
        assert_problem(client.get(f"/api/other/tasks/changes{query}"), 403)
        for path in ("/api/tasks", f"/api/{user}/tasks", "/api/tasks/stats", "/api/tasks/1"):
            assert client.get(path + query).status_code == 401  # this call alone
    wait_until(lambda: "/api/tasks/stats" in guarded.log, "all of it is logged")
    assert token not in guarded.log
    assert "access_token" not in guarded.log
