"""The bulk calls: one change or the end for every task that a filter matches, and for no other."""

import httpx2
import pytest

from tests.support.api import assert_refused, create

# A filter, and which of the tasks that `seed` makes it matches.
FILTERS = [
    ("", "abcd"),
    ("status=all", "abcd"),
    ("status=completed", "bd"),
    ("completed=true", "bd"),
    ("completed=false", "ac"),
    ("q=A%25", "a"),
    ("priority=high&priority=low", "abc"),
    ("priority_gte=low", "abc"),
    ("tag=x&tag=y", "b"),
    ("tags_ne=x", "cd"),
    ("overdue=true", "a"),
    ("due_before=2021-01-01", "ab"),
    ("due_date=", "cd"),
    ("order_gte=2&status=pending", "c"),
    ("title_like=z", ""),
]
REFUSED = [
    ("completd=true", "completd"),
    ("id=x", "id"),
    ("status=completed&status=pending", "status"),
    ("completed=yes", "completed"),
    ("priority=", "priority"),
    ("tag=", "tag"),
    ("due_before=", "due_before"),
    # No call for many tasks has an order or a page.
    ("limit=1", "limit"),
    ("offset=1", "offset"),
    ("_start=0&_end=1", "_start"),
    ("_end=1", "_end"),
    ("_limit=1", "_limit"),
    ("_page=1", "_page"),
    ("sort=title", "sort"),
    ("_sort=title", "_sort"),
    ("sort_by=title", "sort_by"),
    ("order=asc", "order"),
    ("order=1", "order"),
    ("_order=desc", "_order"),
]


def seed(client: httpx2.Client, tasks: str) -> None:
    """Make the tasks a, b, c and d."""
    early = "2020-01-01"
    create(client, tasks, title="a%", due_date=early, priority="low", tags=["x"], order=1)
    b = {"due_date": f"{early}T10:00:00Z", "priority": "high", "tags": ["y", "x"], "order": 2}
    create(client, tasks, title="b", completed=True, **b)
    create(client, tasks, title="c", priority="low", tags=["y"], order=3)
    create(client, tasks, title="d", completed=True)


def letters(client: httpx2.Client, tasks: str, query: str = "") -> str:
    """Return the first letters of the titles of the tasks, the oldest first."""
    answer = client.get(f"{tasks}?sort=id&{query}")
    return "".join(task["title"][0] for task in answer.json())


@pytest.mark.parametrize(("query", "matching"), FILTERS)
def test_bulk_update_changes_all_that_match_and_nothing_else(
    client: httpx2.Client, tasks: str, query: str, matching: str
) -> None:
    seed(client, tasks)
    before = client.get(f"{tasks}?sort=id").json()
    answer = client.patch(f"{tasks}?{query}", json={"description": "changed", "tags": ["new"]})
    assert answer.json() == {"updated": len(matching)}
    for old, new in zip(before, client.get(f"{tasks}?sort=id").json(), strict=True):
        if old["title"][0] in matching:
            assert new["updated_at"] > old["updated_at"]
            assert new["etag"] != old["etag"]
            touched = {name: new[name] for name in ("updated_at", "etag")}
            assert new == old | {"description": "changed", "tags": ["new"]} | touched
        else:
            assert new == old


@pytest.mark.parametrize(("query", "matching"), FILTERS)
def test_bulk_delete_deletes_all_that_match_and_nothing_else(
    client: httpx2.Client, tasks: str, query: str, matching: str
) -> None:
    seed(client, tasks)
    answer = client.delete(f"{tasks}?{query}")
    assert answer.json() == {"deleted": len(matching)}
    assert letters(client, tasks) == "".join(sorted(set("abcd") - set(matching)))


@pytest.mark.parametrize("body", ['{"ids": [1]}', "[1]", '{"id": 1}', '{"completed": true}', "x"])
def test_a_bulk_delete_that_names_its_tasks_in_a_body_deletes_nothing(
    client: httpx2.Client, tasks: str, body: str
) -> None:
    seed(client, tasks)
    answer = client.request("DELETE", tasks, content=body)
    assert_refused(answer, field="body")
    assert letters(client, tasks) == "abcd"


@pytest.mark.parametrize("body", ["", "{}", "null"])
def test_a_bulk_delete_may_have_an_empty_body(client: httpx2.Client, tasks: str, body: str) -> None:
    seed(client, tasks)
    assert client.request("DELETE", tasks, content=body).json() == {"deleted": 4}


@pytest.mark.parametrize(("query", "matching"), FILTERS)
def test_stats_count_all_that_match(
    client: httpx2.Client, tasks: str, query: str, matching: str
) -> None:
    seed(client, tasks)
    completed = len(set(matching) & set("bd"))
    assert client.get(f"{tasks}/stats?{query}").json() == {
        "total": len(matching),
        "completed": completed,
        "pending": len(matching) - completed,
        "overdue": matching.count("a"),
    }


@pytest.mark.parametrize(("query", "name"), REFUSED)
def test_a_bulk_call_that_means_nothing_changes_nothing(
    client: httpx2.Client, tasks: str, query: str, name: str
) -> None:
    seed(client, tasks)
    before = client.get(tasks).json()
    assert_refused(client.delete(f"{tasks}?{query}"), name, "query")
    assert_refused(client.patch(f"{tasks}?{query}", json={"completed": True}), name, "query")
    assert_refused(client.get(f"{tasks}/stats?{query}"), name, "query")
    assert client.get(tasks).json() == before


@pytest.mark.parametrize("name", ["id", "priority", "tag"])
def test_an_empty_one_of_several_values_is_refused_as_that(
    client: httpx2.Client, tasks: str, name: str
) -> None:
    """These may be given more than once, so that is not what is wrong."""
    answer = client.delete(tasks, params=[(name, ""), (name, "1"), (name, "2")])
    assert_refused(answer, name, "query")
    assert answer.json()["detail"] == f"{name}: must not be empty"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"completd": True}, "completd"),
        ({"title": ""}, "title"),
        ({"title": None}, "title"),
        ({"completed": "true"}, "completed"),
        ({"due_date": "soon", "completed": True}, "due_date"),
    ],
)
def test_a_bad_bulk_change_is_refused_and_changes_nothing(
    client: httpx2.Client, tasks: str, change: dict[str, object], field: str
) -> None:
    seed(client, tasks)
    before = client.get(tasks).json()
    assert_refused(client.patch(tasks, json=change), field)
    assert client.get(tasks).json() == before


def test_toggle_all_sets_completed_at_once_and_keeps_it(client: httpx2.Client, tasks: str) -> None:
    seed(client, tasks)
    done = {task["id"]: task["completed_at"] for task in client.get(tasks).json()}
    assert client.patch(tasks, json={"completed": True}).json() == {"updated": 4}
    for task in client.get(tasks).json():
        assert task["completed"]
        assert task["completed_at"] == (done[task["id"]] or task["updated_at"])
    assert client.patch(f"{tasks}?status=completed", json={"completed": False}).json() == {
        "updated": 4
    }
    assert {task["completed_at"] for task in client.get(tasks).json()} == {None}


def test_a_bulk_change_gives_every_task_a_new_etag(client: httpx2.Client, tasks: str) -> None:
    seed(client, tasks)
    paths = [f"{tasks}/{task['id']}" for task in client.get(tasks).json()]
    before = {path: client.get(path).headers["etag"] for path in paths}
    client.patch(f"{tasks}?status=completed", json={"priority": "urgent"})
    changed = [client.get(path).headers["etag"] != before[path] for path in paths]
    assert changed == [True, False, True, False]
    stale = client.patch(paths[0], json={"title": "x"}, headers={"If-Match": before[paths[0]]})
    assert stale.status_code == 412


def test_a_bulk_change_of_nothing_counts_but_changes_nothing(
    client: httpx2.Client, tasks: str
) -> None:
    seed(client, tasks)
    before = client.get(tasks).json()
    assert client.patch(f"{tasks}?status=completed", json={}).json() == {"updated": 2}
    read_only = {"id": 1, "url": "x", "user_id": "x", "created_at": "x", "updated_at": "x"}
    assert client.patch(tasks, json=read_only).json() == {"updated": 4}
    assert client.get(tasks).json() == before


def test_a_bulk_change_of_nothing_moves_no_position_and_heeds_the_tag(
    client: httpx2.Client, tasks: str
) -> None:
    seed(client, tasks)
    old = client.get(tasks).headers["ETag"]
    create(client, tasks)
    tag, position = client.get(tasks).headers["ETag"], f"{tasks}/changes"
    before = client.get(position).json()["position"]
    others = [(it, 412) for it in (old, '"x"', f"W/{tag}", f'"0{tag[1:]}')]
    for condition, status in (tag, 200), ("*", 200), *others:
        answer = client.patch(tasks, json={}, headers={"If-Match": condition})
        assert answer.status_code == status, condition
    assert client.patch(tasks, json={}).json() == {"updated": 5}
    assert client.get(position).json()["position"] == before


@pytest.mark.parametrize("query", ["", "?deleted=true"])
def test_the_tag_of_another_list_is_not_that_of_somebody_who_has_none(
    query: str, client: httpx2.Client, tasks: str, user: str
) -> None:
    create(client, tasks)
    stale = {"If-Match": client.get(tasks).headers["ETag"]}
    assert client.delete(f"/api/{user}-new/tasks{query}", headers=stale).status_code == 412


@pytest.mark.parametrize("query", ["", "?overdue=false"])
def test_the_tag_of_another_user_at_the_same_position_does_not_match(
    query: str, client: httpx2.Client, tasks: str, user: str
) -> None:
    """As of a page where one user has logged out and another in."""
    other = f"/api/{user}-2/tasks"
    create(client, tasks)
    create(client, other)
    tag, theirs = (client.get(path + query).headers["ETag"] for path in (tasks, other))
    assert tag.partition("-")[0] == theirs.partition("-")[0]
    for method, body in ("PATCH", {"title": "b"}), ("PATCH", {}), ("DELETE", None):
        refused = client.request(method, tasks, json=body, headers={"If-Match": theirs})
        assert refused.status_code == 412, refused.text
        assert client.get(tasks + query).headers["ETag"] == tag
    assert client.delete(tasks, headers={"If-Match": tag}).json() == {"deleted": 1}


@pytest.mark.parametrize("query", ["", "?q=nothing", "?deleted=true"])
def test_if_none_match_any_refuses_a_bulk_call_for_the_list_is_there(
    query: str, client: httpx2.Client, tasks: str
) -> None:
    condition = {"If-None-Match": "*"}
    for _ in "before the first task", "and after":
        before = client.get(tasks)
        for method, body in ("PATCH", {"title": "b"}), ("PATCH", {}), ("DELETE", None):
            refused = client.request(method, tasks + query, json=body, headers=condition)
            assert refused.status_code == 412, refused.text
            other = {"If-None-Match": before.headers["ETag"]}
            answer = client.request(method, tasks + query, json=body, headers=other)
            assert_refused(answer, "If-None-Match", "header")
        assert client.get(tasks).json() == before.json()
        create(client, tasks)


def test_bulk_calls_touch_only_the_tasks_of_their_user(
    client: httpx2.Client, tasks: str, user: str
) -> None:
    other = f"/api/{user}-2/tasks"
    seed(client, tasks)
    seed(client, other)
    before = client.get(other).json()
    ids = {"id": [task["id"] for task in before]}
    assert client.patch(tasks, params=ids, json={"completed": True}).json() == {"updated": 0}
    assert client.request("DELETE", tasks, params=ids).json() == {"deleted": 0}
    assert client.delete(f"{tasks}?user_id={user}-2").json() == {"deleted": 0}
    assert client.patch(tasks, json={"completed": True}).json() == {"updated": 4}
    assert client.delete(tasks).json() == {"deleted": 4}
    assert client.get(other).json() == before
    stats = {"total": 0, "completed": 0, "pending": 0, "overdue": 0}
    assert client.get(f"{tasks}/stats").json() == stats
    assert client.get(f"{other}/stats").json()["total"] == 4


def test_bulk_calls_take_up_to_a_thousand_ids(client: httpx2.Client, tasks: str) -> None:
    seed(client, tasks)
    newest = client.get(f"{tasks}?limit=1").json()[0]["id"]
    params = {"id": list(range(newest, newest + 1000))}
    assert client.request("DELETE", tasks, params=params).json() == {"deleted": 1}
    assert letters(client, tasks) == "abc"
