"""Which pages may call, and what they may send and read (contract section 6)."""

import httpx2
import pytest

from tests.support.app import in_process
from tests.support.problems import ORIGIN, assert_problem

ALLOWED = "access-control-allow-origin"
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
# What the contract lets a client send, and read beside what CORS shows anyway (Fetch, 3.3).
SENT = [
    *("Content-Type", "Authorization", "Idempotency-Key", "If-Match", "If-None-Match"),
    *("X-Request-ID", "Accept", "Accept-Language"),
]
READABLE = {
    *("ETag", "Link", "Location", "Retry-After", "X-Total-Count", "X-Request-ID"),
    "Idempotency-Replayed",
}
OWN_PAGES = [
    "http://localhost",
    "http://localhost:3000",
    "http://localhost:65535",
    "https://localhost:5173",
    "http://127.0.0.1",
    "http://127.0.0.1:8080",
    "https://127.0.0.1:8443",
]
STRANGERS = [
    "http://evil.example",
    "http://evil.example:3000",
    "http://localhost.evil.example",
    "http://localhost:3000.evil.example",
    "http://localhost:3000@evil.example",
    "http://evil-localhost:3000",
    "http://evil.example/localhost",
    "http://127.0.0.1.evil.example:3000",
    "http://127a0b0c1:3000",
    "http://127.0.0.2:3000",
    "http://0.0.0.0:3000",
    "ftp://localhost",
    "file://localhost",
    "chrome-extension://localhost",
    "http://localhost:3000x",
    "http://localhost:",
    "xhttp://localhost:3000",
    "null",
]


def preflight(
    client: httpx2.Client,
    origin: str,
    *,
    method: str = "POST",
    path: str = "/api/tasks",
    headers: str = "content-type",
) -> httpx2.Response:
    """Ask what a browser asks before it lets a page call."""
    asked = {"Access-Control-Request-Method": method, "Access-Control-Request-Headers": headers}
    return client.options(path, headers={"Origin": origin, **asked})


def comma_list(answer: httpx2.Response, name: str) -> set[str]:
    """Return the members of a header that is a comma list."""
    return {member.strip() for member in answer.headers[name].split(",")}


@pytest.mark.smoke
@pytest.mark.parametrize("origin", OWN_PAGES)
def test_pages_of_this_machine_may_call(client: httpx2.Client, origin: str) -> None:
    assert preflight(client, origin).is_success
    for answer in (
        preflight(client, origin),
        client.get("/api/tasks", headers={"Origin": origin}),
        client.options("/api/tasks", headers={"Origin": origin}),
        client.get("/nothing", headers={"Origin": origin}),
    ):
        assert answer.headers.get_list(ALLOWED) == [origin]
        # Or a cache would answer one origin with what is meant for another.
        assert "Origin" in comma_list(answer, "vary")


@pytest.mark.parametrize("origin", STRANGERS)
def test_no_other_page_may_call(client: httpx2.Client, origin: str) -> None:
    refused = preflight(client, origin)
    assert refused.status_code == 400
    for answer in (
        refused,
        client.get("/api/tasks", headers={"Origin": origin}),
        client.post("/api/tasks", headers={"Origin": origin}, content=b"title=x"),
        client.get("/nothing", headers={"Origin": origin}),
    ):
        assert ALLOWED not in answer.headers


def test_a_refused_preflight_is_a_problem(client: httpx2.Client) -> None:
    assert "method" in assert_problem(preflight(client, ORIGIN, method="BREW"), 400)
    refused = preflight(client, STRANGERS[0])
    assert refused.headers["content-type"] == "application/problem+json"
    problem = refused.json()
    assert (problem["status"], problem["request_id"]) == (400, refused.headers["x-request-id"])
    assert "CORS_ORIGINS" in problem["detail"]
    assert "Origin" in comma_list(refused, "vary")


@pytest.mark.parametrize("path", ["/api/tasks", "/api/u/tasks/1", "/api/u/tasks/1/complete"])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_preflight_allows_every_method_and_header_of_the_contract(
    client: httpx2.Client, path: str, method: str
) -> None:
    for headers in [*SENT, ",".join(SENT).lower()]:
        answer = preflight(client, OWN_PAGES[1], method=method, path=path, headers=headers)
        assert answer.status_code == 200
        assert answer.headers[ALLOWED] == OWN_PAGES[1]
        assert comma_list(answer, "access-control-allow-methods") == METHODS
        allowed = {name.lower() for name in comma_list(answer, "access-control-allow-headers")}
        assert allowed >= {name.lower() for name in headers.split(",")}
        assert int(answer.headers["access-control-max-age"]) > 0
        assert answer.headers["x-request-id"]


def test_a_preflight_touches_nothing(client: httpx2.Client, tasks: str) -> None:
    task = client.post(tasks, json={"title": "x"}).json()
    for method in METHODS:
        assert preflight(client, OWN_PAGES[0], method=method, path=tasks).status_code == 200
    assert client.get(tasks).json() == [task]


def test_a_page_may_read_the_headers_of_the_contract(client: httpx2.Client, tasks: str) -> None:
    origin = {"Origin": OWN_PAGES[1]}
    for answer in (
        client.post(tasks, json={"title": "x"}, headers=origin),
        client.get(tasks, headers=origin),
        client.get("/nothing", headers=origin),
    ):
        assert comma_list(answer, "access-control-expose-headers") == READABLE


def test_a_page_may_send_credentials_which_nobody_reads(client: httpx2.Client) -> None:
    for answer in (
        preflight(client, OWN_PAGES[1]),
        client.get("/api/tasks", headers={"Origin": OWN_PAGES[1], "Cookie": "a=b"}),
        client.get("/nothing", headers={"Origin": OWN_PAGES[1], "Cookie": "a=b"}),
    ):
        assert answer.headers["access-control-allow-credentials"] == "true"
        assert answer.headers[ALLOWED] == OWN_PAGES[1]
        assert "set-cookie" not in answer.headers


@pytest.mark.parametrize(("origin", "status"), [(OWN_PAGES[1], 200), (STRANGERS[0], 400)])
def test_a_page_that_may_call_may_call_into_a_private_network(
    client: httpx2.Client, origin: str, status: int
) -> None:
    asked = {
        "Origin": origin,
        "Access-Control-Request-Method": "GET",
        "Access-Control-Request-Private-Network": "true",
    }
    answer = client.options("/api/tasks", headers=asked)
    assert answer.status_code == status
    assert (ALLOWED in answer.headers) == (status == 200)
    assert ("access-control-allow-private-network" in answer.headers) == (status == 200)


# ---- CORS_ORIGINS; none of this needs the database


def allowed_origin(client: httpx2.Client, origin: str) -> str | None:
    """Return which origin the answers allow when a page of `origin` calls."""
    asked = preflight(client, origin)
    answer = client.get("/health", headers={"Origin": origin})
    assert answer.status_code == 200
    allowed: str | None = answer.headers.get(ALLOWED)
    assert asked.headers.get(ALLOWED) == allowed
    assert asked.status_code == (200 if allowed else 400)
    return allowed


@pytest.mark.parametrize(
    "cors_origins",
    [
        "https://app.example.com",
        "https://app.example.com,http://other.example:8080",
        " http://other.example:8080 , https://app.example.com ,",
    ],
)
def test_listed_origins_may_call_and_no_other(cors_origins: str) -> None:
    client = in_process(cors_origins=cors_origins)
    listed = "https://app.example.com"
    assert allowed_origin(client, listed) == listed
    for origin in (
        *("http://app.example.com", "https://app.example.com:8443", "https://example.com"),
        *("https://xapp.example.com", "https://app.example.com.evil.example", "null"),
        *("http://localhost:3000", "http://127.0.0.1"),
    ):
        assert allowed_origin(client, origin) is None


@pytest.mark.parametrize("origin", ["file://", "app://.", "capacitor://localhost"])
def test_a_listed_app_may_call_and_what_looks_like_it_may_not(origin: str) -> None:
    client = in_process(cors_origins=origin)
    assert allowed_origin(client, origin) == origin
    # What has no route has no database either.
    for page, status in ((origin, 404), ("null", 403), ("about:blank", 403), ("http://", 403)):
        assert client.get("/nothing", headers={"Origin": page}).status_code == status


@pytest.mark.parametrize("origin", ["https://anything.example", "http://localhost:3000", "null"])
def test_a_star_lets_every_page_call(origin: str) -> None:
    client = in_process(cors_origins="*")
    assert allowed_origin(client, origin) == "*"
    for answer in (preflight(client, origin), client.get("/health", headers={"Origin": origin})):
        assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize("unset", ["", " ", ","])
def test_an_empty_list_means_this_machine(unset: str) -> None:
    client = in_process(cors_origins=unset)
    assert allowed_origin(client, "http://localhost:3000") == "http://localhost:3000"
    assert allowed_origin(client, "https://app.example.com") is None


def test_errors_have_the_headers_for_listed_origins_too() -> None:
    client = in_process(cors_origins="http://localhost:3000")
    assert_problem(client.get("/nothing", headers={"Origin": "http://localhost:3000"}), 404)
