"""The OpenAPI document: complete, true of the live service, and the one kept in the repository."""

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from pydantic import AliasChoices
from pydantic.fields import FieldInfo

from schemas import TaskQuery
from tests.support.api import create
from tests.support.node import JS, node
from tests.support.problems import TITLES
from tests.support.service import REPOSITORY, Service

COPY = REPOSITORY / "openapi.json"
DOCUMENT: dict[str, Any] = json.loads(COPY.read_text())
COMPONENTS = DOCUMENT["components"]
METHODS = {"get", "post", "put", "patch", "delete"}
SECRET = "a secret of at least thirty-two bytes"

Json = dict[str, Any]


def operations(document: Json = DOCUMENT) -> Iterator[tuple[str, str, Json]]:
    """Yield path, method and operation."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def resolved(node: Json) -> Json:
    """Follow `node` if it is a reference."""
    if "$ref" not in node:
        return node
    _, _, kind, name = node["$ref"].split("/")
    found: Json = COMPONENTS[kind][name]
    return found


def parameters(operation: Json, where: str) -> dict[str, Json]:
    """The parameters of an operation in query, path or header, by name."""
    found = (resolved(parameter) for parameter in operation["parameters"])
    return {each["name"]: each for each in found if each["in"] == where}


def example(body: Json) -> Any:
    """The example that the schema of an answer or of a request has."""
    schema = body["content"]["application/json"]["schema"]
    first = (schema.get("anyOf") or schema.get("oneOf") or [schema])[0]
    found = resolved(schema.get("items") or first)["examples"][0]
    return [found] if "items" in schema else found


# ---- the document itself


def test_the_copy_in_the_repository_is_what_the_service_serves(client: httpx2.Client) -> None:
    served = client.get("/openapi.json").json()
    written = json.dumps(served, indent=0, ensure_ascii=False) + "\n"
    assert written == COPY.read_text(), "docs/design.md says how to write it anew"


def test_spectral_has_nothing_to_say() -> None:
    command = [node(), "node_modules/.bin/spectral", "lint", str(COPY)]
    command += ["--ruleset", "spectral.yaml", "--fail-severity", "hint"]
    result = subprocess.run(command, cwd=JS, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "No results" in result.stdout


def test_operation_ids_are_short_and_tell_the_mounts_apart() -> None:
    ids = [operation["operationId"] for _, _, operation in operations()]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch("[a-z]+([A-Z][a-z]+){1,3}", each) for each in ids), ids
    mine = [each for each in ids if "User" not in each and "Task" in each]
    assert {"listTasks", "createTask", "putTask", "updateTask", "completeTask"} <= set(mine)
    assert [each for each in ids if "User" in each] == [
        each.replace("Task", "UserTask") for each in mine
    ]


@pytest.mark.parametrize("path", DOCUMENT["paths"])
def test_every_operation_has_words_and_an_example(path: str) -> None:
    for _, method, operation in operations({"paths": {path: DOCUMENT["paths"][path]}}):
        assert operation["summary"], method
        assert operation["description"], method
        (success,) = (each for status, each in operation["responses"].items() if status[0] == "2")
        assert success["description"], method
        assert example(success), method
        if body := operation.get("requestBody"):
            assert example(body), method
        for parameter in map(resolved, operation["parameters"]):
            assert parameter["description"], parameter


def test_every_failure_is_a_problem_with_an_example_of_its_status() -> None:
    for _, _, operation in operations():
        for status, answer in operation["responses"].items():
            found = resolved(answer)
            assert "X-Request-ID" in found["headers"]
            if status[0] in "45":
                (content,) = found["content"].items()
                assert content[0] == "application/problem+json"
                assert content[1]["schema"] == {"$ref": "#/components/schemas/Problem"}
                problem = content[1]["example"]
                assert (problem["status"], problem["title"]) == (int(status), TITLES[int(status)])
                assert list(problem) == list(COMPONENTS["schemas"]["Problem"]["properties"])
    assert "Retry-After" in COMPONENTS["responses"]["ServiceUnavailable"]["headers"]


def test_schemas_have_one_name_each_and_none_is_the_frameworks() -> None:
    assert set(COMPONENTS["schemas"]) == {
        *("Task", "TaskCreate", "TaskUpdate", "Completion", "Stats", "Updated", "Deleted"),
        *("Problem", "FieldError", "Health", "Changes", "GoneTask"),
    }


def test_the_field_of_every_task_schema_has_a_text_and_no_default() -> None:
    for name in ("Task", "TaskCreate", "TaskUpdate"):
        for field, schema in COMPONENTS["schemas"][name]["properties"].items():
            assert schema["description"], (name, field)
            assert "default" not in schema, f"typed clients would have to send {field}"


# ---- the document and the live service


def test_each_path_allows_the_documented_methods(client: httpx2.Client, user: str) -> None:
    for path, methods in DOCUMENT["paths"].items():
        allow = client.options(path.format(user_id=user, id=1)).headers["allow"]
        assert {method.lower() for method in allow.split(", ")} & METHODS == set(methods), path


Call = Callable[[httpx2.Client, str], httpx2.Response]


def _one(client: httpx2.Client, tasks: str) -> str:
    return f"{tasks}/{create(client, tasks)['id']}"


def _repeated(client: httpx2.Client, tasks: str) -> httpx2.Response:
    headers = {"Idempotency-Key": "key"}
    client.post(tasks, json={"title": "once"}, headers=headers)
    return client.post(tasks, json={"title": "once"}, headers=headers)


def _second_page(client: httpx2.Client, tasks: str) -> httpx2.Response:
    create(client, tasks), create(client, tasks)
    return client.get(tasks, params={"limit": 1})


def _repeating(client: httpx2.Client, tasks: str) -> str:
    task = create(client, tasks, due_date="2044-02-28", recurrence="FREQ=DAILY")
    return f"{tasks}/{task['id']}"


def _example(path: str, method: str) -> Any:
    operation = DOCUMENT["paths"][f"/api/{{user_id}}/tasks{path}"][method]
    return example(operation["requestBody"])


# A call of every operation, so made that all the documented headers come back.
CALLS: dict[str, Call] = {
    "listUserTasks": _second_page,
    "createUserTask": _repeated,
    "updateMatchingUserTasks": lambda client, tasks: client.patch(
        tasks, json=_example("", "patch")
    ),
    "deleteMatchingUserTasks": lambda client, tasks: client.delete(tasks),
    "getUserTaskChanges": lambda client, tasks: client.get(
        f"{tasks}/changes", params={"since": create(client, tasks)["id"] * 0}
    ),
    "getUserTaskStats": lambda client, tasks: client.get(f"{tasks}/stats"),
    "getUserTask": lambda client, tasks: client.get(_one(client, tasks)),
    "putUserTask": lambda client, tasks: client.put(
        _repeating(client, tasks), json=_example("/{id}", "put") | {"completed": True}
    ),
    "updateUserTask": lambda client, tasks: client.patch(
        _repeating(client, tasks), json=_example("/{id}", "patch") | {"completed": True}
    ),
    "deleteUserTask": lambda client, tasks: client.delete(_one(client, tasks)),
    "completeUserTask": lambda client, tasks: client.patch(
        f"{_repeating(client, tasks)}/complete", json=_example("/{id}/complete", "patch")
    ),
    "getHealth": lambda client, _: client.get("/health"),
    "getReadiness": lambda client, _: client.get("/ready"),
}
CALLED = [each for each in operations() if not each[0].startswith("/api/tasks")]


@pytest.mark.parametrize(
    "operation", [pytest.param(each[2], id=each[1] + each[0]) for each in CALLED]
)
def test_an_answer_has_the_documented_headers_and_the_shape_of_its_example(
    operation: Json, client: httpx2.Client, tasks: str
) -> None:
    answer = CALLS[operation["operationId"]](client, tasks)
    documented = operation["responses"][str(answer.status_code)]
    assert str(answer.status_code)[0] == "2", answer.text
    assert [name for name in documented["headers"] if name not in answer.headers] == []
    mentioned = set(COMPONENTS["headers"]) & {name.title() for name in answer.headers}
    assert {name.lower() for name in mentioned} <= {name.lower() for name in documented["headers"]}
    shown, real = example(documented), answer.json()
    if isinstance(shown, list):
        shown, real = shown[0], real[0]
    assert set(real) == set(shown)


def test_the_example_of_a_create_is_accepted_as_it_is(client: httpx2.Client, tasks: str) -> None:
    body = _example("", "post")
    task = create(client, tasks, **body)
    assert {name: task[name] for name in body} == body


def _sample(schema: Json) -> str:
    """A value that a query parameter's schema allows."""
    schema = schema.get("items", schema)
    schema = schema["anyOf"][-1] if "anyOf" in schema else schema
    if schema.get("maxLength") == 0:
        return ""
    if "enum" in schema:
        return str(schema["enum"][0])
    if schema.get("format") == "date-time":
        return "2026-11-21T10:00:00Z"
    by_type = {"boolean": "true", "integer": "1", "number": "1.5"}
    return by_type.get(schema["type"], "title")


@pytest.mark.parametrize(("path", "method"), [("", "get"), ("", "delete"), ("/stats", "get")])
def test_every_documented_parameter_is_one_that_the_call_takes(
    path: str, method: str, client: httpx2.Client, tasks: str
) -> None:
    operation = DOCUMENT["paths"][f"/api/{{user_id}}/tasks{path}"][method]
    for name, parameter in parameters(operation, "query").items():
        answer = client.request(method, tasks + path, params={name: _sample(parameter["schema"])})
        assert answer.status_code == 200, f"{name}: {answer.text}"


def test_a_list_takes_the_parameters_that_it_declares_and_no_other(
    client: httpx2.Client, tasks: str
) -> None:
    spelt = {name for field in TaskQuery.model_fields.items() for name in _spellings(*field)}
    fields = set(DOCUMENT["components"]["schemas"]["Task"]["properties"]) - {"url", "etag"}
    guessed = {f"{name}_{operator}" for name in fields for operator in ("gte", "lte", "ne", "like")}
    unknown = set()
    for name in sorted(spelt | guessed | fields | {"titel", "limit_", "_q"}):
        answer = client.get(tasks, params={name: ""})
        errors = answer.json()["errors"] if answer.status_code == 422 else []
        unknown |= {each["field"] for each in errors if each["message"].startswith("is not a ")}
    impossible = {"tags_gte", "tags_lte", "completed_like", "order_like"}
    impossible |= {f"deleted_{operator}" for operator in ("gte", "lte", "ne", "like")}
    assert unknown == impossible | {"titel", "limit_", "_q"}
    assert {"status", "q", "_start", "title_like", "due_before"} <= spelt


def test_a_list_documents_the_parameters_of_its_own_spelling_and_names_the_others() -> None:
    operation = DOCUMENT["paths"]["/api/{user_id}/tasks"]["get"]
    documented = set(parameters(operation, "query"))
    names = "status q priority tag overdue due_before due_after deleted sort limit offset before id"
    assert documented == set(names.split())
    named = set(re.findall("`([a-zA-Z_]+)`", DOCUMENT["info"]["description"]))
    others = {"search", "_sort", "_order", "_start", "_end", "_limit", "_page"}
    assert others | {"FIELD", "FIELD_gte", "_lte", "_ne", "_like"} <= named


def test_no_call_has_more_than_20_parameters_and_the_document_is_small() -> None:
    for _, method, operation in operations():
        assert len(operation["parameters"]) <= 20, method
    assert len((REPOSITORY / "openapi.json").read_bytes()) < 60_000


def _spellings(name: str, field: FieldInfo) -> set[str]:
    alias = field.validation_alias
    if isinstance(alias, AliasChoices):
        return {choice for choice in alias.choices if isinstance(choice, str)}
    return {alias if isinstance(alias, str) else name}


# ---- auth


def test_with_auth_off_no_operation_asks_for_a_token() -> None:
    assert "securitySchemes" not in COMPONENTS
    assert DOCUMENT["security"] == []
    assert all({"401", "403"}.isdisjoint(each["responses"]) for _, _, each in operations())


def test_with_auth_on_every_task_operation_asks_for_a_bearer_token(tmp_path: Path) -> None:
    with Service(DATABASE_URL=f"sqlite:///{tmp_path}/tasks.db", AUTH_SECRET=SECRET) as service:
        document = httpx2.get(f"{service.url}/openapi.json").json()
    (scheme,) = document["components"]["securitySchemes"].items()
    assert scheme[1].pop("description")
    assert scheme[1] == {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}
    for path, _, operation in operations(document):
        tasks = path.startswith("/api/")
        asked = operation.get("security", document["security"])
        assert asked == ([{scheme[0]: []}] if tasks else [])
        assert ("401" in operation["responses"]) == tasks
        assert ("403" in operation["responses"]) == ("{user_id}" in path)
    assert "WWW-Authenticate" in document["components"]["responses"]["Unauthorized"]["headers"]
