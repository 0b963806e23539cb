"""What every failure looks like, whatever its status (contract section 5)."""

import re

import httpx2

ORIGIN = "http://localhost:3000"
CORS = {"Origin": ORIGIN}
TITLES = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    409: "Conflict",
    410: "Gone",
    412: "Precondition Failed",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    422: "Unprocessable Content",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
}


def assert_problem(answer: httpx2.Response, status: int) -> str:
    """Check that the answer is a complete problem that a page at `ORIGIN` may read.

    The request must have carried the headers `CORS`. Returns the problem's detail.
    """
    assert answer.status_code == status, f"{answer.status_code} {answer.text}"
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    problem = answer.json()
    assert list(problem) == [
        *("type", "title", "status", "detail", "message", "errors", "request_id")
    ]
    assert problem["type"] == "about:blank"
    assert (problem["title"], problem["status"]) == (TITLES[status], status)
    assert problem["request_id"] == answer.headers["x-request-id"] != ""
    detail = problem["detail"]
    assert isinstance(detail, str)
    assert re.fullmatch(r"[^\n\[{]{10,}", detail), f"not one plain sentence: {detail}"
    assert problem["message"] == detail
    for error in problem["errors"]:
        assert list(error) == ["field", "message", "in"]
        assert error["in"] in ("body", "path", "query", "header")
        assert f"{error['field']}: {error['message']}" in detail
    assert bool(problem["errors"]) == (status in (409, 422))
    return detail
