"""A task's life, under both mounts and by its owner alone (contract sections 1 and 2)."""

import http.client
import re
from contextlib import closing
from typing import Any
from urllib.parse import quote
from uuid import UUID

import httpx2
import pytest

from tests.support.api import assert_deleted, assert_refused, create
from tests.support.problems import CORS, assert_problem
from tests.support.service import Service

NOBODYS = 2**53 - 1
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
FULL = {
    "title": "Buy milk",
    "description": "two litres",
    "completed": True,
    "priority": "high",
    "due_date": "2026-11-21",
    "tags": ["home", "shop"],
    "order": 1.5,
}
CHANGED = {
    "title": "Buy oat milk",
    "description": "one litre",
    "completed": False,
    "priority": "low",
    "due_date": "2027-01-01T08:00:00.000000Z",
    "tags": ["work"],
    "order": -2.25,
}
# Every call about one task: method, what follows the path of the tasks, and the body.
ONE_TASK: list[tuple[str, str, Any]] = [
    ("GET", "/{id}", None),
    ("HEAD", "/{id}", None),
    ("PUT", "/{id}", {"title": "stolen"}),
    ("PATCH", "/{id}", {"title": "stolen"}),
    ("PUT", "/{id}", {}),
    ("PATCH", "/{id}/complete", None),
    ("PATCH", "/{id}/complete", {"completed": True}),
    ("DELETE", "/{id}", None),
]
ONE_TASK_IDS = [f"{method} {path} {body}" for method, path, body in ONE_TASK]
each_call_about_one_task = pytest.mark.parametrize(
    ("method", "path", "body"), ONE_TASK, ids=ONE_TASK_IDS
)
by_put_and_patch = pytest.mark.parametrize("method", ["PUT", "PATCH"])


@pytest.fixture(params=["current user", "named user"])
def mount(request: pytest.FixtureRequest, tasks: str) -> str:
    """The path of the tasks, under one mount and then under the other."""
    return "/api/tasks" if request.param == "current user" else tasks


@pytest.fixture
def strangers(user: str) -> str:
    """The path of another user's tasks."""
    return f"/api/{user}x/tasks"


def read(client: httpx2.Client, path: str) -> dict[str, Any]:
    """Return the task at `path`."""
    answer = client.get(path)
    assert answer.status_code == 200, answer.text
    task: dict[str, Any] = answer.json()
    return task


def except_for(task: dict[str, Any], *fields: str) -> dict[str, Any]:
    """Return the task without these fields."""
    return {name: value for name, value in task.items() if name not in fields}


# ---- the life of a task


def test_a_task_with_a_title_alone_has_every_field(
    client: httpx2.Client, mount: str, user: str
) -> None:
    answer = client.post(mount, json={"title": "Buy milk"})
    assert answer.status_code == 201
    task = answer.json()
    assert isinstance(task["id"], int)
    assert task["id"] >= 1
    assert TIMESTAMP.fullmatch(task["created_at"])
    assert task == {
        "id": task["id"],
        "uid": str(UUID(task["uid"])),
        "etag": answer.headers["etag"],
        "url": f"{str(client.base_url).rstrip('/')}{mount}/{task['id']}",
        "user_id": "demo" if mount == "/api/tasks" else user,
        "title": "Buy milk",
        "description": None,
        "completed": False,
        "completed_at": None,
        "priority": "none",
        "due_date": None,
        "remind_at": None,
        "recurrence": None,
        "repeat_from": "due",
        "tags": [],
        "order": None,
        "deleted": False,
        "created_at": task["created_at"],
        "updated_at": task["created_at"],
    }
    assert answer.headers["location"] == task["url"]
    again = client.get(task["url"])
    assert (again.status_code, again.json()) == (200, task)
    assert again.headers["etag"] == answer.headers["etag"] != ""


@pytest.mark.smoke
def test_a_task_lives_from_create_to_delete(client: httpx2.Client, mount: str) -> None:
    task = create(client, mount, **FULL)
    path = f"{mount}/{task['id']}"
    assert task == task | FULL
    assert read(client, path) == task
    assert task in client.get(mount, params={"id": task["id"]}).json()

    changed = client.put(path, json=CHANGED).json()
    assert changed == task | CHANGED | {
        "completed_at": None,
        "updated_at": changed["updated_at"],
        "etag": changed["etag"],
    }
    assert changed["updated_at"] > task["updated_at"]

    done = client.patch(f"{path}/complete").json()
    assert done["completed"] is True
    assert done == changed | {
        "completed": True,
        "completed_at": done["updated_at"],
        "updated_at": done["updated_at"],
        "etag": done["etag"],
    }

    assert_deleted(client.delete(path), done)
    assert client.get(path).status_code == 404
    assert client.delete(path).status_code == 404
    assert client.get(mount, params={"id": task["id"]}).json() == []


def test_both_mounts_show_the_same_task(client: httpx2.Client) -> None:
    task = create(client, "/api/tasks")
    named = read(client, f"/api/demo/tasks/{task['id']}")
    assert named == task | {"url": task["url"].replace("/api/tasks", "/api/demo/tasks")}


def test_an_id_is_never_used_again(client: httpx2.Client, tasks: str) -> None:
    last = create(client, tasks)
    assert client.delete(f"{tasks}/{last['id']}").status_code == 200
    assert create(client, tasks)["id"] > last["id"]
    assert client.delete(tasks).json() == {"deleted": 1}
    assert create(client, tasks)["id"] > last["id"] + 1


def test_a_new_task_may_be_completed_already(client: httpx2.Client, tasks: str) -> None:
    task = create(client, tasks, completed=True)
    assert task["completed_at"] == task["created_at"]


# ---- changes


@by_put_and_patch
@pytest.mark.parametrize("field", CHANGED)
def test_a_change_leaves_what_it_does_not_name(
    client: httpx2.Client, tasks: str, method: str, field: str
) -> None:
    task = create(client, tasks, **FULL)
    path = f"{tasks}/{task['id']}"
    changed = client.request(method, path, json={field: CHANGED[field]}).json()
    touched = {"updated_at", "etag"} | ({"completed_at"} if field == "completed" else set())
    assert except_for(changed, *touched) == except_for(task | {field: CHANGED[field]}, *touched)
    assert changed["updated_at"] > task["updated_at"]
    assert read(client, path) == changed


@by_put_and_patch
def test_a_change_of_nothing_changes_nothing(
    client: httpx2.Client, tasks: str, method: str
) -> None:
    task = create(client, tasks, **FULL)
    path = f"{tasks}/{task['id']}"
    before = client.get(path).headers["etag"]
    answer = client.request(method, path, json={})
    assert (answer.status_code, answer.json(), answer.headers["etag"]) == (200, task, before)


@by_put_and_patch
@pytest.mark.parametrize("field", ["description", "due_date", "order"])
def test_null_clears_a_field_that_may_be_null(
    client: httpx2.Client, tasks: str, method: str, field: str
) -> None:
    task = create(client, tasks, **FULL)
    cleared = client.request(method, f"{tasks}/{task['id']}", json={field: None}).json()
    touched = ("updated_at", "etag")
    assert except_for(cleared, *touched) == except_for(task | {field: None}, *touched)
    assert create(client, tasks, **{field: None})[field] is None


@by_put_and_patch
@pytest.mark.parametrize("field", ["title", "completed", "priority", "tags"])
def test_null_is_refused_for_a_field_that_always_has_a_value(
    client: httpx2.Client, tasks: str, method: str, field: str
) -> None:
    task = create(client, tasks, **FULL)
    path = f"{tasks}/{task['id']}"
    assert_refused(client.request(method, path, json={field: None}), field)
    assert_refused(client.post(tasks, json={"title": "x", field: None}), field)
    assert client.get(tasks).json() == [task]


def test_a_client_may_send_the_whole_record_back(client: httpx2.Client, tasks: str) -> None:
    task = create(client, tasks, **FULL)
    forged = {
        "id": task["id"] + 1,
        "url": "https://evil.example/",
        "user_id": "somebody-else",
        "completed_at": "2000-01-01T00:00:00.000000Z",
        "created_at": "2000-01-01T00:00:00.000000Z",
        "updated_at": None,
        "etag": '"7"',
    }
    path = f"{tasks}/{task['id']}"
    for method in ("PUT", "PATCH"):
        again = client.request(method, path, json=task | forged).json()
        assert except_for(again, "updated_at", "etag") == except_for(task, "updated_at", "etag")
        assert again["updated_at"] > task["updated_at"]
    copy = create(client, tasks, **task | forged | {"uid": None})
    server_set = ("id", "uid", "etag", "url", "completed_at", "created_at", "updated_at")
    assert except_for(copy, *server_set) == except_for(task, *server_set)
    assert copy["id"] > task["id"]
    assert copy["created_at"] > task["created_at"]
    assert len(client.get(tasks).json()) == 2


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", ""),
        ("PATCH", ""),
        ("PUT", "/{id}"),
        ("PATCH", "/{id}"),
        ("PATCH", "/{id}/complete"),
    ],
)
@pytest.mark.parametrize("unknown", ["titel", "version", "Title", "", "idempotency_key", "é 日"])
def test_an_unknown_field_is_refused_by_its_name(
    client: httpx2.Client, tasks: str, method: str, path: str, unknown: str
) -> None:
    task = create(client, tasks)
    body = {"completed": True, unknown: "x"} | ({"title": "x"} if method == "POST" else {})
    answer = client.request(method, tasks + path.format(id=task["id"]), json=body)
    assert_refused(answer, unknown or "body")
    assert client.get(tasks).json() == [task]


# ---- text


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (" x ", "x"),
        ("\t\r\n\u3000a  b\u00a0\n", "a  b"),
        ("t" * 200, "t" * 200),
        (" " * 300 + "t" * 200 + " " * 300, "t" * 200),
        ("🛒" * 200, "🛒" * 200),
        ("e\u0301" * 100, "e\u0301" * 100),
    ],
)
def test_a_title_is_trimmed_and_has_1_to_200_characters(
    client: httpx2.Client, tasks: str, sent: str, kept: str
) -> None:
    task = create(client, tasks, title=sent)
    assert task["title"] == kept
    changed = client.patch(f"{tasks}/{task['id']}", json={"title": f"\n{kept}\n"}).json()
    assert changed["title"] == kept
    assert client.get(tasks).json() == [changed]


@pytest.mark.parametrize("title", ["", "   ", "\n\t\u3000", "t" * 201, "🛒" * 201])
def test_a_title_of_another_length_is_refused(
    client: httpx2.Client, tasks: str, title: str
) -> None:
    task = create(client, tasks)
    assert_refused(client.post(tasks, json={"title": title}), "title")
    assert_refused(client.patch(f"{tasks}/{task['id']}", json={"title": title}), "title")
    assert client.get(tasks).json() == [task]


@pytest.mark.smoke
def test_a_title_is_required(client: httpx2.Client, tasks: str) -> None:
    assert_refused(client.post(tasks, json={}), "title")
    assert_refused(client.post(tasks, json={"description": "no title"}), "title")
    assert client.get(tasks).json() == []


def test_a_description_has_up_to_10000_characters(client: httpx2.Client, tasks: str) -> None:
    for longest in ("", "d" * 10_000, "🛒" * 10_000):
        assert create(client, tasks, description=longest)["description"] == longest
    for body in ({"title": "x", "description": "d" * 10_001}, {"description": "🛒" * 10_001}):
        assert_refused(client.patch(tasks, json=body), "description")
    assert_refused(client.post(tasks, json=body | {"title": "x"}), "description")
    assert len(client.get(tasks).json()) == 3


@pytest.mark.parametrize(
    "text",
    [
        "naïve Straße İstanbul ΌΣΟΣ",
        "e\u0301 is not \u00e9",
        "👩‍👩‍👧‍👦 🏳️‍🌈 \U0010ffff \uffff \ufeff",
        "עברית \u202e日本語\u202c العربية",
        "'; DROP TABLE task; -- %s %(owner)s :owner {0} \\ \" $1",
        "line\nfeed\r\ntab\tbell\a escape\x1b delete\x7f \u0085\u2028.",
        "<script>alert(1)</script> &amp; &#0;",
        "\\u0000 \\ud800",
    ],
)
def test_text_comes_back_as_it_was_sent(client: httpx2.Client, tasks: str, text: str) -> None:
    task = create(client, tasks, title=text, description=f" {text} \n")
    assert (task["title"], task["description"]) == (text, f" {text} \n")
    assert client.get(tasks).json() == [task]
    changed = client.patch(f"{tasks}/{task['id']}", json={"title": "x", "description": text})
    assert changed.json()["description"] == text


# ---- completion


def test_completed_at_says_since_when(client: httpx2.Client, tasks: str) -> None:
    task = create(client, tasks)
    path = f"{tasks}/{task['id']}"
    assert task["completed_at"] is None
    done = client.patch(f"{path}/complete").json()
    assert done["completed_at"] == done["updated_at"] > task["updated_at"]
    assert TIMESTAMP.fullmatch(done["completed_at"])
    for again in (
        client.patch(f"{path}/complete", json={"completed": True}),
        client.put(path, json={"completed": True, "title": "still done"}),
        client.patch(path, json={"title": "and still"}),
        client.patch(tasks, json={"completed": True}),
    ):
        assert again.status_code == 200
        assert read(client, path)["completed_at"] == done["completed_at"]
    for pending in (
        client.patch(f"{path}/complete"),
        client.patch(f"{path}/complete", json={"completed": False}),
        client.put(path, json={"completed": False}),
    ):
        assert (pending.json()["completed"], pending.json()["completed_at"]) == (False, None)
    assert client.put(path, json={"completed": True}).json()["completed_at"] > done["completed_at"]


def test_complete_without_a_body_toggles_and_with_one_sets(
    client: httpx2.Client, mount: str
) -> None:
    path = f"{mount}/{create(client, mount)['id']}/complete"
    toggled = [client.patch(path).json()["completed"] for _ in range(4)]
    assert toggled == [True, False, True, False]
    wanted = [True, True, False, False, True]
    assert [client.patch(path, json={"completed": w}).json()["completed"] for w in wanted] == wanted
    empty = client.patch(path, headers={"Content-Type": "application/json"}, content=b"")
    assert empty.json()["completed"] is False


# ---- whose task it is


@each_call_about_one_task
def test_nobody_elses_task_can_be_met_by_its_id(
    client: httpx2.Client, tasks: str, strangers: str, method: str, path: str, body: Any
) -> None:
    theirs = create(client, tasks, **FULL | {"completed": False})
    etag = client.get(f"{tasks}/{theirs['id']}").headers["etag"]
    conditions: list[dict[str, str]] = [{}]
    if method not in ("GET", "HEAD"):
        conditions += [{"If-Match": value} for value in (etag, '"stale"', "*")]
    for mount in ("/api/tasks", strangers, tasks.replace("user", "User")):
        for condition in conditions:
            call = {
                "headers": {**CORS, **condition},
                **({"json": body} if body is not None else {}),
            }
            answers = [
                client.request(method, mount + path.format(id=task_id), **call)
                for task_id in (theirs["id"], NOBODYS)
            ]
            if method == "HEAD":
                assert [answer.status_code for answer in answers] == [404, 404]
                continue
            # Exactly like an id that does not exist.
            theirs_is, nobodys_is = (assert_problem(answer, 404) for answer in answers)
            assert theirs_is.replace(str(theirs["id"]), str(NOBODYS)) == nobodys_is
    unchanged = client.get(f"{tasks}/{theirs['id']}")
    assert (unchanged.json(), unchanged.headers["etag"]) == (theirs, etag)


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("method", "path", "body", "nothing"),
    [
        ("GET", "", None, []),
        ("GET", "/stats", None, {"total": 0, "completed": 0, "pending": 0, "overdue": 0}),
        ("PATCH", "", {"completed": True, "title": "stolen"}, {"updated": 0}),
        ("DELETE", "", None, {"deleted": 0}),
    ],
)
def test_nobody_elses_tasks_are_among_ones_own(
    client: httpx2.Client,
    tasks: str,
    strangers: str,
    user: str,
    method: str,
    path: str,
    body: Any,
    nothing: Any,
) -> None:
    theirs = create(client, tasks, title="precious", due_date="2001-01-01")
    filters = ["", f"?id={theirs['id']}", f"?user_id={user}", "?q=precious", "?overdue=true"]
    for query in [*filters, f"?user_id={user}x&user_id_ne={user}x"]:
        answer = client.request(method, f"{strangers}{path}{query}", json=body)
        assert (answer.status_code, answer.json()) == (200, nothing), query
    # The default user may well have tasks; this one is not among them.
    assert theirs["id"] not in [task["id"] for task in client.get("/api/tasks").json()]
    if path or method != "GET":
        answer = client.request(method, f"/api/tasks{path}{filters[1]}", json=body)
        assert (answer.status_code, answer.json()) == (200, nothing)
    assert client.get(tasks).json() == [theirs]


def test_bulk_calls_and_stats_reach_ones_own_tasks_only(
    client: httpx2.Client, tasks: str, strangers: str
) -> None:
    theirs, own = create(client, tasks), create(client, strangers)
    assert client.patch(strangers, json={"completed": True}).json() == {"updated": 1}
    assert client.get(f"{strangers}/stats").json()["total"] == 1
    assert client.delete(strangers).json() == {"deleted": 1}
    assert client.get(f"{strangers}/{own['id']}").status_code == 404
    assert client.get(tasks).json() == [theirs]


@pytest.mark.parametrize("where", ["?user_id=somebody-else", ""])
def test_no_body_and_no_query_makes_a_task_somebody_elses(
    client: httpx2.Client, mount: str, user: str, where: str
) -> None:
    task = client.post(mount + where, json={"title": "mine", "user_id": "somebody-else"}).json()
    assert task["user_id"] == ("demo" if mount == "/api/tasks" else user)
    moved = client.put(f"{mount}/{task['id']}{where}", json={"user_id": "somebody-else"})
    assert moved.json()["user_id"] == task["user_id"]
    assert client.get(f"/api/somebody-else/tasks/{task['id']}").status_code == 404


@each_call_about_one_task
def test_what_can_be_no_id_is_refused(
    client: httpx2.Client, tasks: str, method: str, path: str, body: Any
) -> None:
    call = {"json": body} if body is not None else {}
    for task_id in ("é", "0", "007", "+1", "1.5", "a" * 65, str(2**53), "9" * 30, "%00", "%20"):
        answer = client.request(method, tasks + path.format(id=task_id), headers=CORS, **call)
        if method == "HEAD":
            assert answer.status_code == 422
        else:
            assert_problem(answer, 422)
            assert_refused(answer, "id", "path")


# ---- who a user can be


@pytest.mark.parametrize(
    "user_id",
    [
        "0195e7a1-6f0e-7c3a-b1d2-0123456789ab",
        "auth0|5f7c8ec7c33c6c004bbafe82",
        "someone+tag@mail.example",
        "stats",
        "Tasks",
        "tasks ",
        "a b",
        "50%",
        "%2F",
        "%74asks",
        "a?b#c&d=e;f",
        "日本語 é e\u0301 👩‍👩‍👧‍👦",
        "..name",
        '"quoted" <b> \\',
        "'; --",
        "u" * 110,
        "🙂" * 110,
    ],
)
def test_a_user_id_is_any_text(client: httpx2.Client, user: str, user_id: str) -> None:
    user_id += user[-8:] if user_id not in ("stats", "Tasks", "tasks ") else ""
    path = f"/api/{quote(user_id, safe='')}/tasks"
    task = create(client, path)
    assert task["user_id"] == user_id
    assert read(client, task["url"]) == task
    assert read(client, f"{path}/{task['id']}") == task
    assert client.get(path, params={"id": task["id"]}).json() == [task]
    assert_deleted(client.delete(task["url"]), task)


def test_user_ids_that_look_alike_are_different_users(client: httpx2.Client, user: str) -> None:
    alike = [f"{user}é", f"{user}e\u0301", f"{user}É", f"{user}É ", f"{user}%C3%89"]
    paths = [f"/api/{quote(user_id, safe='')}/tasks" for user_id in alike]
    own = [create(client, path) for path in paths]
    assert [client.get(path).json() for path in paths] == [[task] for task in own]


@pytest.mark.parametrize(
    "user_id",
    [
        *("%00", "a%00", "a%0Ab", "%1F", "%7F", "%C2%85", "%FF", "%ED%A0%80", "%EF%BF%BD"),
        *("u" * 129, "%F0%9F%99%82" * 129, "tasks", "%74asks"),
    ],
)
def test_what_can_be_no_user_id_is_refused(client: httpx2.Client, user_id: str) -> None:
    for method, path, body in (
        ("GET", "", None),
        ("POST", "", {"title": "x"}),
        ("PATCH", "", {"title": "x"}),
        ("DELETE", "", None),
        ("GET", "/stats", None),
        ("GET", "/1", None),
        ("PUT", "/1", {"title": "x"}),
        ("PATCH", "/1", {"title": "x"}),
        ("PATCH", "/1/complete", None),
        ("DELETE", "/1", None),
    ):
        url = f"/api/{user_id}/tasks{path}"
        answer = client.request(method, url, headers=CORS, json=body)
        if "asks" in user_id:  # then /api/tasks/tasks is a task with the id `tasks`
            assert answer.status_code in (404, 405, 422)
            continue
        assert_problem(answer, 422)
        assert_refused(answer, "user_id", "path")


@pytest.mark.parametrize("user_id", ["", "a%2Fb", "a/b", "%2F"])
def test_a_user_id_has_no_slash(client: httpx2.Client, user_id: str) -> None:
    assert_problem(client.get(f"/api/{user_id}/tasks", headers=CORS), 404)


# ---- paths and methods

ROUTES = [
    ("", "DELETE, GET, HEAD, OPTIONS, PATCH, POST"),
    ("/stats", "GET, HEAD, OPTIONS"),
    ("/{id}", "DELETE, GET, HEAD, OPTIONS, PATCH, PUT"),
    ("/{id}/complete", "OPTIONS, PATCH"),
]
OTHERS = ["/health", "/ready", "/docs", "/openapi.json"]


@pytest.mark.parametrize(("path", "allow"), ROUTES)
def test_options_and_405_list_every_method(
    client: httpx2.Client, mount: str, path: str, allow: str
) -> None:
    assert_allow(client, mount + path.format(id=create(client, mount)["id"]), allow)


@pytest.mark.parametrize("path", ["/", *OTHERS])
def test_options_and_405_of_the_other_paths(client: httpx2.Client, path: str) -> None:
    assert_allow(client, path, "GET, HEAD, OPTIONS")


def assert_allow(client: httpx2.Client, path: str, allow: str) -> None:
    """Check what OPTIONS says, and that each method it leaves out answers 405 and says the same."""
    for slash in ("", "/") if path != "/" else ("",):
        options = client.options(path + slash)
        assert options.status_code in (200, 204)
        assert set(options.headers["allow"].split(", ")) == set(allow.split(", "))
        for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "TRACE"} - set(allow.split(", ")):
            answer = client.request(method, path + slash, headers=CORS)
            assert_problem(answer, 405)
            assert set(answer.headers["allow"].split(", ")) == set(allow.split(", "))


def test_options_of_nothing_is_404(client: httpx2.Client) -> None:
    assert_problem(client.options("/api/nothing", headers=CORS), 404)


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "", None, 200),
        ("POST", "", {"title": "x"}, 201),
        ("GET", "/stats", None, 200),
        ("GET", "/{id}", None, 200),
        ("PUT", "/{id}", {"title": "x"}, 200),
        ("PATCH", "/{id}", {"title": "x"}, 200),
        ("PATCH", "/{id}/complete", None, 200),
        ("DELETE", "/{id}", None, 200),
        ("HEAD", "/{id}", None, 200),
        ("PATCH", "/tasks", {"title": "x"}, 200),  # by its uid
        ("DELETE", "/tasks", None, 200),
    ],
)
def test_a_last_slash_makes_no_difference(
    client: httpx2.Client, tasks: str, method: str, path: str, body: Any, status: int
) -> None:
    task = create(client, tasks, uid="tasks")
    call = {"json": body} if body else {}
    answer = client.request(method, tasks + path.format(id=task["id"]) + "/", **call)
    assert answer.status_code == status
    if method == "POST":
        assert answer.json()["url"] == f"{task['url'].rpartition('/')[0]}/{answer.json()['id']}"


@pytest.mark.parametrize("query", ["", "?status=completed"])
@pytest.mark.parametrize("method", ["PATCH", "DELETE"])
def test_a_call_for_a_task_whose_id_is_empty_is_none_for_all_tasks(
    client: httpx2.Client, tasks: str, method: str, query: str
) -> None:
    kept = create(client, tasks, completed=True)
    for path in (f"{tasks}/", "/api/tasks/"):
        answer = client.request(method, path + query, json={"title": "x"})
        assert answer.status_code == 404
    assert client.get(tasks).json() == [kept]


@pytest.mark.parametrize("path", OTHERS)
def test_the_other_paths_may_end_in_a_slash_too(client: httpx2.Client, path: str) -> None:
    assert client.get(path).status_code == client.get(path + "/").status_code == 200


def test_the_root_leads_to_the_documentation(client: httpx2.Client) -> None:
    answer = client.get("/")
    assert (answer.status_code, answer.headers["location"]) == (307, "/docs")


@pytest.mark.smoke
@pytest.mark.parametrize("path", ["{tasks}", "{tasks}/", "{tasks}/stats", "{tasks}/{id}", *OTHERS])
def test_head_is_get_without_the_body(client: httpx2.Client, tasks: str, path: str) -> None:
    path = path.format(tasks=tasks, id=create(client, tasks)["id"])
    get, head = client.get(path), client.head(path)
    own = ("date", "x-request-id")
    assert [(name, value) for name, value in head.headers.multi_items() if name not in own] == [
        (name, value) for name, value in get.headers.multi_items() if name not in own
    ]
    assert (head.status_code, head.content) == (200, b"")
    assert int(head.headers["content-length"]) == len(get.content)


@pytest.mark.parametrize(
    "path", ["/nothing", "/api", "/api/u", "/api/tasks/1/nothing", "/api//tasks"]
)
def test_there_is_nothing_anywhere_else(client: httpx2.Client, path: str) -> None:
    for method in ("GET", "POST", "DELETE"):
        assert_problem(client.request(method, path, headers=CORS), 404)
    assert client.head(path).status_code == 404


@pytest.mark.parametrize("user_id", ["%2E", "%2E%2E"])
def test_a_user_id_that_clients_take_out_of_paths_is_refused(
    service: Service, user_id: str
) -> None:
    # As many clients would, httpx2 asks for another path; this one sends what it is given.
    with closing(http.client.HTTPConnection(service.url.removeprefix("http://"))) as connection:
        connection.request("GET", f"/api/{user_id}/tasks")
        assert connection.getresponse().status == 422
