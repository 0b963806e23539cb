"""The Model Context Protocol at /mcp, byte by byte (contract section 11)."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import pytest
from pydantic import BaseModel

from routes.mcp import LEGACY, MODERN, TOOLS
from schemas import Completion, TaskCreate, TaskUpdate
from tests.support.api import create
from tests.support.app import in_process
from tests.support.load import Request, at_once
from tests.support.problems import CORS, assert_problem
from tests.support.service import Service
from tests.support.tokens import ISSUER, Key, claims

PARSE_ERROR, INVALID_REQUEST, NO_METHOD, BAD_PARAMS = -32700, -32600, -32601, -32602
HEADER_MISMATCH, NO_SUCH_VERSION = -32020, -32022
META = {
    "io.modelcontextprotocol/protocolVersion": MODERN,
    "io.modelcontextprotocol/clientCapabilities": {},
}
KEY = Key("HS256", private=b"a secret of no less than 32 bytes")


def call(method: str, params: dict[str, Any] | None = None, key: Any = 1) -> dict[str, Any]:
    """Return a request."""
    return {"jsonrpc": "2.0", "id": key, "method": method, "params": params or {}}


def modern(method: str, params: dict[str, Any] | None = None) -> tuple[Any, dict[str, str]]:
    """Return a request of the modern revision, and its headers."""
    headers = {"MCP-Protocol-Version": MODERN, "Mcp-Method": method}
    if method == "tools/call":
        headers["Mcp-Name"] = (params or {})["name"]
    return call(method, {**(params or {}), "_meta": META}), headers


def answered(client: httpx2.Client, message: Any, **headers: str) -> dict[str, Any]:
    """Send a message that is understood; return its result."""
    answer = client.post("/mcp", json=message, headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert "mcp-session-id" not in answer.headers
    content = answer.json()
    assert (content["jsonrpc"], content["id"]) == ("2.0", message["id"])
    result: dict[str, Any] = content["result"]
    return result


def assert_failed(
    client: httpx2.Client, message: Any, code: int, status: int, **headers: str
) -> dict[str, Any]:
    """Check that a message is an error of JSON-RPC; return that."""
    if not isinstance(message, str | bytes):
        message = json.dumps(message)
    headers = {"Content-Type": "application/json", **headers}
    answer = client.post("/mcp", content=message, headers=headers)
    assert answer.status_code == status, answer.text
    content = answer.json()
    assert content.keys() <= {"jsonrpc", "id", "error"}
    error: dict[str, Any] = content["error"]
    assert error["code"] == code, error
    assert error["message"]
    return error


def use(client: httpx2.Client, tool: str, **arguments: Any) -> dict[str, Any]:
    """Use a tool; return what it answers, structured and as text the same."""
    result = answered(client, call("tools/call", {"name": tool, "arguments": arguments}))
    assert not result.get("isError"), result
    structured: dict[str, Any] = result["structuredContent"]
    [text] = result["content"]
    assert text["type"] == "text"
    assert json.loads(text["text"]) == structured
    return structured


def refusal(client: httpx2.Client, tool: str, **arguments: Any) -> str:
    """Use a tool that refuses; return what it says."""
    result = answered(client, call("tools/call", {"name": tool, "arguments": arguments}))
    assert result["isError"] is True, result
    assert "structuredContent" not in result
    detail: str = result["content"][0]["text"]
    return detail


# ---- the tools


@pytest.mark.smoke
def test_a_tasks_whole_life_shows_in_rest(client: httpx2.Client, user: str, tasks: str) -> None:
    mine = {"user_id": user}
    task = use(client, "add_task", title=" Buy milk ", tags=["a"], due_date="2026-12-01", **mine)
    assert task["title"] == "Buy milk"
    assert client.get(task["url"]).json() == task
    same = {"task_id": task["id"], **mine}
    assert use(client, "get_task", **same) == task
    changed = use(client, "update_task", priority="HIGH", description=None, **same)
    assert (changed["priority"], changed["title"]) == ("high", "Buy milk")
    for _ in range(2):  # it sets
        assert use(client, "complete_task", **same)["completed"] is True
    assert client.get(task["url"]).json()["completed"] is True
    assert use(client, "complete_task", completed=False, **same)["completed"] is False
    shown = client.get(tasks).json()
    assert use(client, "list_tasks", **mine) == {"tasks": shown}
    page = client.get(f"{tasks}/changes").json()
    assert page["changes"] == shown
    deleted = use(client, "delete_task", task_id=task["uid"], **mine)
    assert (deleted["id"], deleted["deleted"]) == (task["id"], True)
    assert client.get(task["url"]).status_code == 404
    assert use(client, "list_tasks", **mine) == {"tasks": []}
    since = {"since": page["position"]}
    assert client.get(f"{tasks}/changes", params=since).json()["changes"] == [deleted]
    restored = use(client, "update_task", deleted=False, **same)
    assert client.get(tasks).json() == [restored]


def test_the_answer_to_completing_a_task_that_repeats_names_the_next(
    client: httpx2.Client, user: str, tasks: str
) -> None:
    weekly = {"recurrence": "FREQ=WEEKLY", "due_date": "2026-12-01"}
    for tool, change in (("complete_task", {}), ("update_task", {"completed": True})):
        task = create(client, tasks, **weekly)
        arguments = {"task_id": task["id"], "user_id": user, **change}
        for _ in range(2):  # also when it is repeated
            result = answered(client, call("tools/call", {"name": tool, "arguments": arguments}))
            shown, told = (json.loads(result["content"][0]["text"]), result["content"][1]["text"])
            assert shown == result["structuredContent"] == client.get(task["url"]).json()
            url = told.removeprefix("<").removesuffix('>; rel="next"')
            following = client.get(url).json()
            assert (following["title"], following["completed"]) == (task["title"], False)
        use(client, "delete_task", task_id=following["id"], user_id=user)
        use(client, tool, **arguments)  # there is none any more


def test_without_a_user_the_tasks_are_the_default_users(client: httpx2.Client) -> None:
    task = use(client, "add_task", title="of whom?")
    assert task["user_id"] == "demo"
    assert use(client, "get_task", task_id=task["id"], user_id="demo")["id"] == task["id"]
    assert use(client, "get_task", task_id=task["id"], user_id=None)["id"] == task["id"]
    use(client, "delete_task", task_id=task["id"])


def test_the_schemas_are_those_of_the_rest_api(client: httpx2.Client) -> None:
    tools = {tool["name"]: tool for tool in answered(client, call("tools/list"))["tools"]}
    assert list(tools) == list(TOOLS)
    models: dict[str, type[BaseModel]] = {
        "add_task": TaskCreate,
        "update_task": TaskUpdate,
        "complete_task": Completion,
    }
    document = client.get("/openapi.json").json()
    listing = [
        each["$ref"].partition("query-")[2]
        for each in document["paths"]["/api/tasks"]["get"]["parameters"]
    ]
    for name, tool in tools.items():
        schema = tool["inputSchema"]
        assert (schema["type"], schema["additionalProperties"]) == ("object", False)
        assert tool["description"]
        assert all(rules["description"] for rules in schema["properties"].values())
        assert schema["description"] == tool["description"]  # not that of the code
        fields = list(schema["properties"])
        extra = {"user_id"} | ({"task_id"} & set(fields))
        if name in models:
            assert set(fields) == {*models[name].model_fields} | extra
        elif name == "list_tasks":
            assert set(fields) == {each for each in listing if each} | extra
            limit = {"minimum": 1, "maximum": 100, "default": 100, "type": "integer"}
            assert schema["properties"]["limit"] == {"description": "How many at most.", **limit}
        else:
            assert set(fields) == extra
        if name == "complete_task":  # which is not about a new task
            assert schema["properties"]["completed"]["description"] == "`false` undoes it."
        needed = {"add_task": ["title"], "list_tasks": []}.get(name, ["task_id"])
        assert schema["required"] == needed
        assert tool["annotations"]["readOnlyHint"] == (name in ("list_tasks", "get_task"))
        assert tool["annotations"]["destructiveHint"] == (name in ("update_task", "delete_task"))


def test_a_client_that_sends_the_defaults_of_a_schema_changes_nothing(
    client: httpx2.Client, user: str
) -> None:
    full = {"description": "Skimmed", "due_date": "2044-01-02", "order": 3, "tags": ["shopping"]}
    task = use(client, "add_task", user_id=user, title="Buy milk", **full)
    defaults = {
        tool["name"]: {
            field: rules["default"]
            for field, rules in tool["inputSchema"]["properties"].items()
            if "default" in rules
        }
        for tool in answered(client, call("tools/list"))["tools"]
    }
    sent = {"user_id": user, "task_id": task["id"], **defaults["update_task"]}
    assert use(client, "update_task", **sent).items() >= full.items()
    assert defaults["list_tasks"] == {"status": "all", "q": "", "limit": 100}


@pytest.mark.parametrize(
    ("tool", "arguments", "named"),
    [
        ("add_task", {}, "title: is required"),
        ("add_task", {"title": " "}, "title: must be 1 to 200"),
        ("add_task", {"title": 7}, "title: "),
        ("add_task", {"title": "x", "titel": "y"}, "titel: "),
        ("add_task", {"title": "x", "task_id": 1}, "task_id: "),
        ("add_task", {"title": "x", "due_date": "tomorrow"}, "due_date: must be a day"),
        ("update_task", {"task_id": 1, "priority": "most"}, "priority: "),
        ("complete_task", {"task_id": 1, "completed": "yes"}, "completed: "),
        ("complete_task", {"task_id": 1, "completed": None}, "completed: "),
        ("get_task", {"task_id": 1, "fields": "title"}, "fields: is not a parameter"),
        ("delete_task", {"task_id": 1, "forever": True}, "forever: is not a parameter"),
        ("list_tasks", {"limit": 101}, "limit: must be less than or equal to 100"),
        ("list_tasks", {"limit": 0}, "limit: must be greater than or equal to 1"),
        ("list_tasks", {"limit": True}, "limit: must be a whole number"),
        ("list_tasks", {"offset": True}, "offset: must be a whole number"),
        ("list_tasks", {"id": [True]}, "id: must be a whole number"),
        ("list_tasks", {"id": [1.0]}, "id: must be a whole number"),
        ("list_tasks", {"overdue": 1}, "overdue: must be 'true' or 'false'"),
        ("list_tasks", {"_limit": 1000}, "_limit: "),
        ("list_tasks", {"_end": 1000}, "_end: "),
        ("list_tasks", {"statsu": "pending"}, "statsu: "),
        ("list_tasks", {"q": {"a": ["b"]}, "status": [1, {}]}, "status: "),
        ("list_tasks", {"q": {"a": 1}}, "q: must be a valid string"),
        ("list_tasks", {"sort": 0}, "sort: must be text"),
        ("list_tasks", {"sort": {}}, "sort: must be text"),
        ("list_tasks", {"order_gte": True}, "order_gte: must be a number"),
        ("list_tasks", {"priority": [None]}, "priority: must be 'none', 'low'"),
        ("list_tasks", {"priority": {"high": 1}}, "priority: must be 'none', 'low'"),
        ("list_tasks", {"tag": [["a"]]}, "tag: must be given only once"),
        ("get_task", {}, "task_id: must be"),
        ("get_task", {"task_id": "stats"}, "task_id: must be"),
        ("update_task", {"title": "x"}, "task_id: must be"),
        ("complete_task", {"task_id": None}, "task_id: must be"),
        ("delete_task", {"task_id": 1.0}, "task_id: must be"),
        ("list_tasks", {"user_id": "v1"}, "user_id: "),
        ("add_task", {"title": "x", "user_id": ""}, "user_id: "),
        ("add_task", {"title": "x", "user_id": ["a"]}, "user_id: "),
        ("add_task", {"title": "x", "user_id": "a/b"}, "user_id: "),
    ],
)
def test_bad_arguments_are_what_the_rest_api_says_of_them(
    client: httpx2.Client, tool: str, arguments: dict[str, Any], named: str
) -> None:
    assert named in refusal(client, tool, **arguments)


def test_of_a_lists_countless_wrong_items_the_first_is_told(client: httpx2.Client) -> None:
    told = refusal(client, "list_tasks", id=["x"] * 20_000, tag=[" "] * 20_000, priority=[0] * 9)
    assert [part.partition(":")[0] for part in told.split("; ")] == ["priority", "tag", "id"]


def test_a_refusal_is_the_problem_of_the_rest_api(
    client: httpx2.Client, user: str, tasks: str
) -> None:
    for filters in ({"priority": "x"}, {"overdue": "x"}, {"offset": -1}, {"id": "x"}, {"x": 1}):
        problem = client.get(tasks, params=filters).json()
        assert refusal(client, "list_tasks", user_id=user, **filters) == problem["detail"]
    task = create(client, tasks)
    wrong: list[dict[str, Any]] = [{"title": ""}, {"tags": [1], "order": "x"}, {"x": 1}]
    for fields in (*wrong, {"completed": None}, {"tags": "a"}, {"tags": ["a"] * 21, "uid": 1}):
        problem = client.post(tasks, json={"title": "a", **fields}).json()
        adding = {"title": "a", "user_id": user, **fields}
        assert refusal(client, "add_task", **adding) == problem["detail"]
        problem = client.patch(task["url"], json=fields).json()
        changing = {"task_id": task["id"], "user_id": user, **fields}
        assert refusal(client, "update_task", **changing) == problem["detail"]


def test_numbers_and_text_that_json_cannot_have_are_refused(client: httpx2.Client) -> None:
    text = json.dumps(call("tools/call", {"name": "add_task", "arguments": 0}))
    for number in ("1e999", "NaN", "-Infinity"):
        given = f': {{"title": "x", "order": {number}}}}}'
        headers = {"Content-Type": "application/json"}
        answer = client.post("/mcp", content=text.replace(": 0}", given), headers=headers)
        assert answer.json()["result"]["isError"] is True
    lone = ': {"title": "\\ud800"}}'
    assert_failed(client, text.replace(": 0}", lone), PARSE_ERROR, 400)


@pytest.mark.parametrize(
    "task_id",
    [..., None, "", ".", "..", "../..", "/", "1/complete", "%2e%2e", "?", "#", "*", "stats",
     "changes", "complete", True, False, 1.0, [], [1], {}, {"id": 1}, -1, 0, 10**30, "0x1", " 1",
     "1?limit=1", "\0", "\u0661"],
)  # fmt: skip
@pytest.mark.parametrize("tool", ["get_task", "update_task", "complete_task", "delete_task"])
def test_no_id_whatever_it_is_reaches_another_task_or_all(
    client: httpx2.Client, user: str, tasks: str, tool: str, task_id: Any
) -> None:
    for title in "ab":
        create(client, tasks, title=title)
    before = client.get(tasks).json()
    arguments = {} if task_id is ... else {"task_id": task_id}
    change = {"title": "changed"} if tool == "update_task" else {}
    assert refusal(client, tool, user_id=user, **arguments, **change)
    assert client.get(tasks).json() == before


def test_another_users_task_does_not_exist(client: httpx2.Client, user: str, tasks: str) -> None:
    task = create(client, tasks)
    change = {"update_task": {"title": "stolen"}}
    for tool in ("get_task", "update_task", "complete_task", "delete_task"):
        other = {"task_id": task["id"], "user_id": f"not-{user}", **change.get(tool, {})}
        assert refusal(client, tool, **other) == f"There is no task {task['id']}."
    assert use(client, "list_tasks", user_id=f"not-{user}") == {"tasks": []}
    assert client.get(task["url"]).json() == task


def test_a_list_is_filtered_sorted_and_paged(client: httpx2.Client, user: str, tasks: str) -> None:
    for number in range(103):
        create(client, tasks, title=f"{number:03}", tags=["even", "é & ü"][number % 2 :])
    assert len(use(client, "list_tasks", user_id=user)["tasks"]) == 100
    page = use(client, "list_tasks", user_id=user, sort="title", limit="2", offset=101)["tasks"]
    assert [task["title"] for task in page] == ["101", "102"]
    both = {"tag": ["even", "é & ü"], "status": "pending", "overdue": False, "q": None, "id": []}
    found = use(client, "list_tasks", user_id=user, priority=["none", "low"], **both)["tasks"]
    assert len(found) == 52


def test_headers_for_the_protocol_do_not_reach_the_tasks(
    client: httpx2.Client, user: str, tasks: str
) -> None:
    task = create(client, tasks)
    message = call("tools/call", {"name": "get_task"})
    message["params"]["arguments"] = {"task_id": task["id"], "user_id": user}
    result = answered(client, message, **{"If-None-Match": "*", "If-Match": '"0-0"'})
    assert result["structuredContent"] == task
    message = call("tools/call", {"name": "add_task"})
    message["params"]["arguments"] = {"title": "x", "user_id": user}
    keyed = {"Idempotency-Key": user}
    made = [answered(client, message, **keyed)["structuredContent"]["id"] for _ in range(2)]
    assert made[0] != made[1]


def test_two_hundred_at_once_over_four_workers(crowded: Service) -> None:
    user = uuid4().hex
    adding = [{"title": f"{number}", "user_id": user} for number in range(200)]
    requests = [
        Request("POST", "/mcp", call("tools/call", {"name": "add_task", "arguments": each}, n))
        for n, each in enumerate(adding)
    ]
    contents = [answer.json() for answer in at_once(crowded.url, requests)]
    assert {content["id"] for content in contents} == set(range(200))
    for content in contents:
        task = content["result"]["structuredContent"]
        assert task["title"] == str(content["id"])
    found = httpx2.get(f"{crowded.url}/api/{user}/tasks").json()
    assert Counter(task["title"] for task in found) == Counter(map(str, range(200)))
    toggled: Any = {"name": "complete_task", "arguments": {"task_id": found[0]["id"]}}
    toggled["arguments"]["user_id"] = user
    same = [Request("POST", "/mcp", call("tools/call", toggled))] * 200
    assert all(answer.status == 200 for answer in at_once(crowded.url, same))
    assert httpx2.get(found[0]["url"]).json()["completed"] is True


# ---- the protocol


@pytest.mark.parametrize("version", LEGACY)
def test_a_handshake_is_answered_in_the_revision_that_is_asked(
    client: httpx2.Client, version: str
) -> None:
    asked = {"protocolVersion": version, "capabilities": {}, "clientInfo": {"name": "t"}}
    result = answered(client, call("initialize", asked))
    assert result["protocolVersion"] == version
    assert result["capabilities"] == {"tools": {}}
    assert result["serverInfo"]["name"] == "tasks"
    done = {"jsonrpc": "2.0", "method": "notifications/initialized"}
    told = client.post("/mcp", json=done, headers={"MCP-Protocol-Version": version})
    assert (told.status_code, told.content) == (202, b"")
    answered(client, call("ping", key="a"), **{"MCP-Protocol-Version": version})
    answered(client, call("tools/list"), **{"MCP-Protocol-Version": version})


@pytest.mark.parametrize("version", ["1999-01-01", MODERN, None, 7, [], {}])
def test_a_handshake_for_what_is_not_known_offers_the_newest(
    client: httpx2.Client, version: Any
) -> None:
    asked = answered(client, call("initialize", {"protocolVersion": version}))
    assert asked["protocolVersion"] == LEGACY[0]


def test_a_modern_request_needs_no_handshake(client: httpx2.Client, user: str) -> None:
    message, headers = modern("server/discover")
    found = answered(client, message, **headers)
    assert found["supportedVersions"] == [MODERN, *LEGACY]
    assert found["capabilities"] == {"tools": {}}
    message, headers = modern("tools/list")
    listed = answered(client, message, **headers)
    arguments = {"title": "x", "user_id": user}
    message, headers = modern("tools/call", {"name": "add_task", "arguments": arguments})
    made = answered(client, message, **headers)
    assert made["structuredContent"]["user_id"] == user
    for result in (found, listed, made):
        assert result["resultType"] == "complete"
        assert result["_meta"]["io.modelcontextprotocol/serverInfo"]["name"] == "tasks"
    for result in (found, listed):
        assert result["ttlMs"] >= 0
        assert result["cacheScope"] == "public"


def test_what_the_headers_say_must_be_what_the_body_says(client: httpx2.Client) -> None:
    message, headers = modern("tools/call", {"name": "list_tasks", "arguments": {}})
    for name in headers:
        for wrong in ({}, {name: "else"}, {name: f"{headers[name]}, {headers[name]}"}):
            sent = {key: value for key, value in headers.items() if key != name} | wrong
            if name == "MCP-Protocol-Version" and wrong:
                continue
            assert_failed(client, message, HEADER_MISMATCH, 400, **sent)
    needed = modern("tools/list")[0]
    for key in META:
        message, headers = modern("tools/list")
        message["params"]["_meta"] = {each: META[each] for each in META if each != key}
        assert_failed(client, message, BAD_PARAMS, 400, **headers)
    bad: list[Any] = [None, [], "x", 7]
    for meta in bad:
        needed["params"]["_meta"] = meta
        assert_failed(client, needed, BAD_PARAMS, 400, **headers)


@pytest.mark.parametrize("version", ["1999-01-01", "2099-12-31", "x", "2026-07-28 "])
def test_an_unknown_revision_is_told_the_known_ones(client: httpx2.Client, version: str) -> None:
    message, headers = modern("tools/list")
    declared = version.strip()
    if declared != MODERN:
        message["params"]["_meta"] = META | {"io.modelcontextprotocol/protocolVersion": version}
        headers["MCP-Protocol-Version"] = version
        error = assert_failed(client, message, NO_SUCH_VERSION, 400, **headers)
        assert error["data"] == {"supported": [MODERN, *LEGACY], "requested": version}
        old = {"MCP-Protocol-Version": version}
        assert_failed(client, call("tools/list"), NO_SUCH_VERSION, 400, **old)


@pytest.mark.parametrize("version", ["NaN", "1e999", "-Infinity", "null", "{}", "[5]"])
def test_a_version_that_is_no_text_is_told_as_text(client: httpx2.Client, version: str) -> None:
    meta = f'{{"_meta": {{"io.modelcontextprotocol/protocolVersion": {version}}}}}'
    message = f'{{"jsonrpc": "2.0", "id": 1, "method": "ping", "params": {meta}}}'
    answer = client.post("/mcp", content=message, headers={"Content-Type": "application/json"})
    told = json.loads(answer.text, parse_constant=pytest.fail)
    assert answer.status_code == 400
    assert isinstance(told["error"]["data"]["requested"], str)


@pytest.mark.parametrize("method", ["tools/nothing", "", "resources/list", "server/discover"])
def test_an_unknown_method_is_an_error(client: httpx2.Client, method: str) -> None:
    assert_failed(client, call(method), NO_METHOD, 200)
    message, headers = modern(method if method != "server/discover" else "ping")
    assert_failed(client, message, NO_METHOD, 404, **headers)


@pytest.mark.parametrize(
    "params",
    [{}, {"name": "nothing"}, {"name": None}, {"name": ["add_task"]}, {"name": "create_task"},
     {"name": "add_task", "arguments": []}, {"name": "add_task", "arguments": "x"}],
)  # fmt: skip
def test_an_unknown_tool_is_an_error(client: httpx2.Client, params: dict[str, Any]) -> None:
    assert_failed(client, call("tools/call", params), BAD_PARAMS, 200)


def test_the_answer_has_the_id_of_the_request(client: httpx2.Client) -> None:
    for key in (0, -1, 2**53, "", "a", "é\u2028"):
        answered(client, call("ping", key=key))


TOO_DEEP = (
    '{"jsonrpc":"2.0","id":1,"method":"tools/call","params":' + '{"a":' * 2000 + "1" + "}" * 2001
)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", PARSE_ERROR),
        (b"{", PARSE_ERROR),
        (b"\xff", PARSE_ERROR),
        (b"\xef\xbb\xbf{}", PARSE_ERROR),
        (TOO_DEEP, PARSE_ERROR),
        ("[" * 100_000, PARSE_ERROR),
        ("1" * 5000, PARSE_ERROR),
        ("[]", INVALID_REQUEST),
        ("null", INVALID_REQUEST),
        ("7", INVALID_REQUEST),
        ([call("ping")], INVALID_REQUEST),
        ([call("ping"), call("tools/list")], INVALID_REQUEST),
        ({}, INVALID_REQUEST),
        ({"jsonrpc": "1.0", "id": 1, "method": "ping"}, INVALID_REQUEST),
        ({"id": 1, "method": "ping"}, INVALID_REQUEST),
        ({"jsonrpc": "2.0", "id": 1}, INVALID_REQUEST),
        ({"jsonrpc": "2.0", "id": 1, "result": {}}, INVALID_REQUEST),
        (call("ping", key=None), INVALID_REQUEST),
        (call("ping", key=True), INVALID_REQUEST),
        (call("ping", key=1.5), INVALID_REQUEST),
        (call("ping", key={}), INVALID_REQUEST),
        (call(7), INVALID_REQUEST),  # type: ignore[arg-type]
        ({"jsonrpc": "2.0", "id": 1, "method": "ping", "params": []}, INVALID_REQUEST),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_nonsense_and_batches_are_errors(client: httpx2.Client, body: Any, code: int) -> None:
    assert "id" not in assert_failed(client, body, code, 400)


def test_no_nesting_of_arguments_is_a_failure_of_the_service(client: httpx2.Client) -> None:
    for depth in range(100, 1100, 7):
        nested = '{"a":' * depth + "1" + "}" * depth
        text = json.dumps(call("tools/call", {"name": "add_task", "arguments": 0}))
        answer = client.post(
            "/mcp",
            content=text.replace('"arguments": 0', f'"arguments": {nested}'),
            headers={"Content-Type": "application/json"},
        )
        assert answer.status_code in (200, 400), (depth, answer.text)


def test_what_is_no_matter_of_the_protocol_is_a_problem(client: httpx2.Client) -> None:
    large = call("tools/call", {"name": "add_task", "arguments": {"title": "x" * 256 * 1024}})
    assert_problem(client.post("/mcp", json=large, headers=CORS), 413)
    text = {"Content-Type": "text/plain", **CORS}
    assert_problem(client.post("/mcp", content=json.dumps(call("ping")), headers=text), 415)
    packed = {"Content-Type": "application/json", "Content-Encoding": "gzip", **CORS}
    assert_problem(client.post("/mcp", content=b"x", headers=packed), 415)
    for method in ("GET", "HEAD", "PUT", "PATCH", "DELETE"):
        answer = client.request(method, "/mcp", headers=CORS)
        assert answer.status_code == 405
        assert answer.headers["Allow"] == "OPTIONS, POST"
    assert_problem(client.get("/mcp", headers={"Accept": "text/event-stream", **CORS}), 405)
    assert client.options("/mcp").headers["Allow"] == "OPTIONS, POST"


# ---- whose


@pytest.fixture(scope="module")
def with_auth(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The service with auth on."""
    url = f"sqlite:///{tmp_path_factory.mktemp('auth')}/tasks.db"
    settings = {"AUTH_SECRET": KEY.private.decode(), "AUTH_ISSUER": ISSUER}
    with Service(DATABASE_URL=url, **settings) as service:
        yield service


@pytest.fixture
def guarded(with_auth: Service) -> Iterator[httpx2.Client]:
    """A client of that, without a token."""
    with httpx2.Client(base_url=with_auth.url, trust_env=False, verify=False) as client:
        yield client


def bearer(user: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {KEY.token(claims(user))}"}


@pytest.mark.parametrize("path", ["/mcp", "/mcp/"])
@pytest.mark.parametrize("message", [call("initialize"), call("tools/list"), "nonsense"])
def test_without_a_token_a_client_learns_where_they_come_from(
    guarded: httpx2.Client, path: str, message: Any
) -> None:
    answer = guarded.post(path, json=message, headers=CORS)
    assert_problem(answer, 401)
    found = f"{str(guarded.base_url).rstrip('/')}/.well-known/oauth-protected-resource/mcp"
    assert answer.headers["WWW-Authenticate"] == f'Bearer resource_metadata="{found}"'
    for place in (found, found.removesuffix("/mcp")):
        document = guarded.get(place, headers=CORS)
        assert document.headers["content-type"] == "application/json"
        assert document.headers["access-control-allow-origin"] == CORS["Origin"]
        resource = f"{str(guarded.base_url).rstrip('/')}/mcp"
        assert document.json() == {"resource": resource, "authorization_servers": [ISSUER]}


def test_with_auth_on_the_user_is_the_tokens(guarded: httpx2.Client, user: str) -> None:
    guarded.headers.update(bearer(user))
    task = use(guarded, "add_task", title="mine")
    assert task["user_id"] == user
    assert use(guarded, "list_tasks") == {"tasks": [task]}
    for tool in answered(guarded, call("tools/list"))["tools"]:
        assert "user_id" not in tool["inputSchema"]["properties"]
    for name, argument in (("list_tasks", {}), ("get_task", {"task_id": task["id"]})):
        detail = refusal(guarded, name, user_id="somebody", **argument)
        assert detail == "The token is for another user."
    guarded.headers.update(bearer(f"not-{user}"))
    for name in ("get_task", "complete_task", "delete_task"):
        assert refusal(guarded, name, task_id=task["id"]) == f"There is no task {task['id']}."


def test_without_an_issuer_none_is_named(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/tasks.db"
    with in_process(database_url=url, auth_secret=KEY.private.decode()) as client:
        found = client.get("/.well-known/oauth-protected-resource", headers={"Host": "a.example"})
        assert found.json() == {"resource": "http://a.example/mcp"}


def test_with_auth_off_there_is_no_such_document(client: httpx2.Client) -> None:
    for path in ("", "/mcp"):
        answer = client.get(f"/.well-known/oauth-protected-resource{path}", headers=CORS)
        assert_problem(answer, 404)


# ---- pages

PROTOCOL = "authorization,content-type,mcp-protocol-version,mcp-method,mcp-name"


@pytest.mark.parametrize(
    ("origins", "auth"), [("", False), ("*", False), ("https://app.example", True), ("", True)]
)
def test_pages_of_known_origins_may_call_and_others_may_not(
    tmp_path: Path, origins: str, auth: bool
) -> None:
    settings: dict[str, Any] = {"auth_secret": KEY.private.decode()} if auth else {}
    url = f"sqlite:///{tmp_path}/tasks.db"
    known = "https://app.example" if "app" in origins else "http://localhost:5173"
    with in_process(database_url=url, cors_origins=origins, **settings) as client:
        asked = {
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": PROTOCOL,
        }
        allowed = client.options("/mcp", headers={"Origin": known, **asked})
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-headers"] == PROTOCOL
        credentials = allowed.headers.get("access-control-allow-credentials")
        assert credentials == (None if origins == "*" else "true")
        headers = bearer("zoe") if auth else {}
        called = client.post("/mcp", json=call("ping"), headers={"Origin": known, **headers})
        assert called.status_code == 200
        for foreign in ("https://evil.example", "null", "http://127.0.0.1.evil.example"):
            sent = {"Origin": foreign, **headers}
            answer = client.post("/mcp", json=call("ping"), headers=sent)
            assert answer.status_code == (200 if origins == "*" else 403)
        own = {"Origin": "https://tasks.example", "Host": "tasks.example", **headers}
        answer = client.post("/mcp", json=call("ping"), headers=own)
        assert answer.status_code == (200 if auth or origins == "*" else 403)
